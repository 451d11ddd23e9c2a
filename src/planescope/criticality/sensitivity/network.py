"""A network whose layers are replaced: opened, its weights held as they act.

To import this is to import torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from planescope.checkpoints import read_contents
from planescope.checkpoints.keras.live import refuse
from planescope.checkpoints.locate import locate
from planescope.criticality.resets.engine.borrow import borrowed, unheeded_hooks, with_whole_weights
from planescope.criticality.resets.trained import last_of
from planescope.criticality.resets.weights import state_of, with_weights
from planescope.files.errors import CheckpointError, UsageError
from planescope.hyperplanes.layer import StateDict
from planescope.networks.build import load_pretrained
from planescope.networks.live.module import unwrapped
from planescope.networks.state.parametrisations import resolved
from planescope.training.folder.snapshots import input_shape_of
from planescope.training.run import Run

Array = NDArray[Any]

LIBRARIES = ("timm:", "torchvision:")


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """A network of one's own copy, and where it comes from.

    Attributes
    ----------
    source, name : str
        Where it comes from, and what it is called.
    module : torch.nn.Module
        In evaluation mode, its weights held as they act; nobody else's.
    stays : bool
        Evaluate where the module is.
    notes : tuple of str
        What a reader should know of it.
    unheeded : tuple of str
        What its owner runs, and a copy does not.
    input_shape : tuple of int or None
        Channels, height and width that it was trained on, where its file says so.
    """

    source: str
    name: str
    module: nn.Module
    stays: bool = False
    notes: tuple[str, ...] = ()
    unheeded: tuple[str, ...] = ()
    input_shape: tuple[int, int, int] | None = None


def open_network(model: Any, network: str | nn.Module | None, trust: Any = False, /) -> Network:
    """Open a module, a run, published weights, or a checkpoint with its network.

    Raises
    ------
    UsageError
        If the network is not known.
    CheckpointError
        If the file is missing, damaged or of another network.
    """
    refuse(model, "run", "export it to ONNX")
    if isinstance(model, nn.Module):
        whole = unwrapped(model)
        name = type(whole).__name__
        return Network(
            source=name, name=name, module=_plain(borrowed(whole), name), stays=True,
            unheeded=unheeded_hooks(whole),
        )  # fmt: skip
    if isinstance(model, str) and model.startswith(LIBRARIES):
        return Network(
            source=model, name=model, module=_plain(load_pretrained(model).eval(), model)
        )
    if (run := Run.found(model, trust=trust)) is not None:
        file, builder = last_of(run, network)
        return Network(
            source=str(run.path), name=_called(builder), module=_loaded(file, builder),
            input_shape=input_shape_of(file),
        )  # fmt: skip
    if not isinstance(model, str | os.PathLike):
        raise UsageError(
            f"cannot take a {type(model).__name__}; give a module, a run, or a checkpoint with "
            "network="
        )
    if network is None:
        raise UsageError(
            f"{model}: a checkpoint does not tell its network; give --network NAME (network=)"
        )
    return _of_checkpoint(model, network)


def _of_checkpoint(path: str | os.PathLike[str], network: str | nn.Module) -> Network:
    module = _loaded(path, network)
    shape = input_shape_of(path)
    return Network(source=str(path), name=_called(network), module=module, input_shape=shape)


def _loaded(path: str | os.PathLike[str], network: str | nn.Module) -> nn.Module:
    """Return a network of one's own with the weights of a file."""
    if isinstance(network, nn.Module):
        network = borrowed(unwrapped(network))
    with no_graph(path):
        return _plain(with_weights(network, resolved(without_prefix(state_of(path))), path), path)


@contextlib.contextmanager
def no_graph(path: str | os.PathLike[str], /) -> Iterator[None]:
    """Say of an ONNX file that does not fit into a network that it carries its own.

    Raises
    ------
    UsageError
        In place of a CheckpointError.
    """
    try:
        yield
    except CheckpointError as exc:
        if read_contents(locate(path))[0] == "onnx":
            raise UsageError(
                f"{path}: an ONNX file carries its network; leave out --network"
            ) from exc
        raise


def without_prefix(state: StateDict, /) -> StateDict:
    """Leave out the name of a wrapper (DataParallel) where all tensors have it."""
    prefix = "module."
    while state.tensors and all(name.startswith(prefix) for name in state.tensors):
        state = dataclasses.replace(
            state,
            tensors={n.removeprefix(prefix): t for n, t in state.tensors.items()},
            places={n.removeprefix(prefix): p for n, p in state.places.items()},
            norm_eps={n.removeprefix(prefix): e for n, e in state.norm_eps.items()},
        )
    return state


def _called(network: str | nn.Module) -> str:
    return network if isinstance(network, str) else type(unwrapped(network)).__name__


def _plain(module: nn.Module, source: str | os.PathLike[str]) -> nn.Module:
    """Hold weights that are computed from others as they act, so that they can be replaced."""
    for part in module.modules():
        with_whole_weights(part)
    for name, tensor in module.state_dict().items():
        is_floating = isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
        if is_floating and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{source}: {name} holds values that are not finite: nothing can be said of such a "
                "network"
            )
    return module.eval()
