"""Networks that are repaired or planned: opened, looked at, and given back in their own form.

To import this is to import torch.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from planescope.checkpoints.keras.live import refuse
from planescope.criticality.plan.fit.holding import weight_of
from planescope.criticality.plan.fit.observation import is_pruned
from planescope.criticality.plan.forms.graphs import GraphNetwork
from planescope.criticality.resets.engine.borrow import borrowed
from planescope.criticality.resets.trained import last_of
from planescope.criticality.resets.weights import state_of, with_weights
from planescope.criticality.sensitivity.job import onnx_file
from planescope.criticality.sensitivity.network import no_graph
from planescope.files.errors import UsageError, nearest
from planescope.networks.live.copies import deep_copy, plain_name
from planescope.networks.live.module import unwrapped
from planescope.networks.state.parametrisations import resolved
from planescope.training.folder.snapshots import input_shape_of
from planescope.training.run import Run

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, eq=False)
class Opened:
    """A network as it was given.

    Attributes
    ----------
    module : torch.nn.Module
        The user's own, or built for a file.
    source : str
        Where it comes from.
    file : str or None
        That its weights are in.
    architecture : str, torch.nn.Module or None
        With which that file was read.
    input_shape : tuple of int or None
        Channels, height and width that it was trained on, where the file says so.
    """

    module: nn.Module
    source: str
    file: str | None = None
    architecture: str | nn.Module | None = None
    input_shape: tuple[int, int, int] | None = None

    def called(self, what: str, /) -> str:
        """Return what a message calls it: its file, or what it is."""
        return f"the {what}" if self.file is None else f"{self.source}:"


def opened(
    network: Any,
    architecture: str | nn.Module | None,
    what: str,
    /,
    *,
    trust: bool | str | Collection[str] = False,
) -> Opened:
    """Open a module, a run, of which the last snapshot is taken, a checkpoint or an ONNX file.

    Raises
    ------
    UsageError
        If its network is not known, or is code that nobody consented to.
    CheckpointError
        If the file is missing, damaged or of another network.
    """
    refuse(network, "run", "export it to ONNX")
    if isinstance(network, nn.Module):
        module = unwrapped(network)
        return Opened(module=module, source=type(module).__name__)
    if (run := Run.found(network, trust=trust)) is not None:
        return _of_run(run, architecture)
    if not isinstance(network, str | os.PathLike):
        raise UsageError(
            f"the {what} is a {type(network).__name__}; give a module, a run or a file"
        )
    if architecture is None:
        if (path := onnx_file(network)) is not None:
            return Opened(module=GraphNetwork(path), source=str(network), file=str(network))
        raise UsageError(
            f"{network}: a checkpoint does not tell its network; give --network NAME (network=; of "
            "repair, architecture=)"
        )
    return _of_file(network, architecture, str(network))


def _of_run(run: Run, architecture: str | nn.Module | None) -> Opened:
    file, named = last_of(run, architecture)
    return _of_file(file, named, str(run.path))


def _of_file(path: str | os.PathLike[str], architecture: str | nn.Module, source: str) -> Opened:
    return Opened(
        module=load_file(path, architecture), source=source, file=str(path),
        architecture=architecture, input_shape=input_shape_of(path),
    )  # fmt: skip


def load_file(path: str | os.PathLike[str], architecture: str | nn.Module, /) -> nn.Module:
    """Load the weights of a file into the network that they belong to."""
    with no_graph(path):
        return with_weights(architecture, resolved(state_of(path)), path)


def check_pair(
    changed: nn.Module,
    whole: nn.Module,
    /,
    *,
    names: tuple[str, str] = ("the network", "the reference"),
) -> None:
    """Refuse two networks of other shapes, equal ones, and weights that are no numbers.

    `names` are what a message calls them.
    """
    own, other = acting(changed), acting(whole)
    check_shapes(own, other, "reference")
    for name, tensor in other.items():
        if own[name].dtype is not tensor.dtype:
            kinds = [str(one.dtype).removeprefix("torch.") for one in (own[name], tensor)]
            raise UsageError(
                f"the network holds {name} as {kinds[0]}, its reference as {kinds[1]}; give both "
                "in one type: module.float()"
            )
    check_finite(own, names[0])
    check_finite(other, names[1])
    if all(
        bool((own[name] == tensor.to(own[name].device)).all()) for name, tensor in other.items()
    ):
        raise UsageError(
            "the network is its reference: no weight differs; give the changed one first, then "
            "the whole one"
        )


def check_shapes(
    own: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor], what: str, /
) -> None:
    """Refuse tensors of another network."""
    for name, tensor in other.items():
        if name not in own:
            raise UsageError(
                f"the {what} has {name}, which the network has not; {nearest(name, own)}"
            )
        if own[name].shape != tensor.shape:
            shapes = " and ".join("×".join(map(str, t.shape)) for t in (tensor, own[name]))
            raise UsageError(f"{name} has shapes {shapes} in the {what} and the network")
    if missing := [name for name in own if name not in other]:
        raise UsageError(f"the network has {missing[0]}, which the {what} has not")


def check_finite(tensors: Mapping[str, torch.Tensor], what: str, /) -> None:
    """Refuse weights that are no numbers."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UsageError(f"{what} holds NaN or an infinity in {name}")


def acting(module: nn.Module, /) -> dict[str, torch.Tensor]:
    """Return the tensors of a network by name, a pruned weight as it acts.

    Counters are left out.
    """
    found = {
        name: tensor.detach()
        for name, tensor in module.state_dict().items()
        if hasattr(tensor, "shape") and not name.endswith("num_batches_tracked")
    }
    for name, part in module.named_modules():
        if is_pruned(part):
            prefix = f"{name}." if name else ""
            del found[f"{prefix}weight_orig"], found[f"{prefix}weight_mask"]
            found[f"{prefix}weight"] = weight_of(part)
    return found


def filled(given: nn.Module, own: nn.Module, /) -> tuple[nn.Module, str]:
    """Copy a network as it is, with the tensors of another of its kind.

    With it, a sentence where the copy lacks something of the network given, or "".
    """
    lacks = ""
    try:
        made = deep_copy(given)
    except Exception:  # hooks hold whatever they like: a lock, the processes among them
        made = borrowed(given, whole=False)
        modes = {plain_name(name): part.training for name, part in given.named_modules()}
        for name, part in made.named_modules():
            part.training = modes[name]
        lacks = (
            "module is whole and without hooks that others put on the network: copy.deepcopy does "
            "not take these"
        )
    held = own.state_dict()
    made.load_state_dict({name: held[plain_name(name)] for name in made.state_dict()})
    return made, lacks
