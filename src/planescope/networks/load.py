"""A checkpoint's weights in the network that they belong to, ready to run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from planescope.files.errors import CheckpointError
from planescope.hyperplanes.layer import StateDict
from planescope.networks import paper
from planescope.networks.build import build
from planescope.networks.residual import FILTERS, FIRST, RESNETS

if TYPE_CHECKING:
    import torch
    from torch import nn


def load_network(name: str, state: StateDict, /) -> nn.Module:
    """Build a network of the size that a state dict shows, and load it.

    Parameters
    ----------
    name : str
        As for `planescope.networks.build.build`. Input channels, classes, width and, for fully
        connected networks, the size of the images follow from the shapes.

    Returns
    -------
    torch.nn.Module
        On the CPU, in evaluation mode.

    Raises
    ------
    UsageError
        If there is no such network.
    CheckpointError
        If the state dict is not that of the network; the message has the first difference.
    """
    module = build_like(name, state, drawn=False)
    _fill(module, paper.match(name, state) if ":" not in name else state, name)
    return module.eval()


def build_like(
    name: str, state: StateDict, /, *, seed: int | None = None, drawn: bool = True
) -> nn.Module:
    """Build a network of the size that a state dict shows, with freshly drawn weights.

    Parameters
    ----------
    name, state
        As for `load_network`.
    seed, drawn
        As for `planescope.networks.build.build`.

    Raises
    ------
    UsageError, CheckpointError
        As `load_network`.
    """
    is_paper = ":" not in name
    if is_paper:
        state = paper.match(name, state)
    shapes = {key: tensor.shape for key, tensor in state.tensors.items()}
    # A file may hold its tensors in any order; safetensors sorts them by name.
    order = [f"{layer}.weight" for layer in paper.places(name)] if is_paper else _weights(name)
    weights = [shapes[key] for key in order if len(shapes.get(key, ())) > 1]
    if not weights:
        raise CheckpointError(f"not the network {name}: the file has no weights")
    first, last = weights[0], weights[-1]
    sizes: dict[str, Any] = {"in_channels": first[1], "classes": last[0]}
    if not is_paper:
        return build(name, **sizes, seed=seed)
    sizes |= _image(first)
    return build(name, **sizes, width=_width(name, shapes), seed=seed, drawn=drawn)


def _weights(name: str) -> list[str]:
    """Return the names of a library's weights, in the order of the network."""
    return [key for key in build(name).state_dict() if key.endswith("weight")]


def _image(first: tuple[int, ...]) -> dict[str, int]:
    """Channels and size of the images of a fully connected network, from its number of inputs."""
    if len(first) > 2:
        return {"image_size": 224}  # of a size that every network takes; no weight depends on it
    inputs = first[1]
    for channels in (3, 1):
        size = math.isqrt(inputs // channels)
        if channels * size * size == inputs:
            return {"in_channels": channels, "image_size": size}
    raise CheckpointError(f"{inputs} inputs are those of no square image of 1 or 3 channels")


def _width(name: str, shapes: Mapping[str, tuple[int, ...]]) -> float:
    """Return the factor that gives every layer its number of filters, each rounded."""
    if name in RESNETS:
        return shapes[f"{FIRST}.weight"][0] / FILTERS
    low, high = 0.0, math.inf
    for operation in paper.network(name).operations:
        if isinstance(operation, paper.Convolution | paper.Linear) and operation.filters:
            found, usual = shapes[f"{operation.name}.weight"][0], operation.filters
            least = (found - 0.5) / usual if found > 1 else 0.0  # no layer has fewer than 1
            low, high = max(low, least), min(high, (found + 0.5) / usual)
            if low >= high:
                raise CheckpointError(
                    f"not the network {name}: {operation.name} has {found} filters, usually "
                    f"{usual}; no one width gives the layers before it theirs too"
                )
    return (low + high) / 2


def _fill(module: nn.Module, state: StateDict, name: str) -> None:
    own = module.state_dict()
    wanted = {key for key in own if not key.endswith("num_batches_tracked")}
    missing = sorted(wanted - state.tensors.keys())
    extra = sorted(key for key in state.tensors.keys() - own.keys())
    for keys, where in ((missing, "the file lacks"), (extra, "the file has beyond it")):
        if keys:
            raise CheckpointError(f"not the network {name}: {where} {keys[0]}")
    for key, tensor in state.tensors.items():
        if tuple(own[key].shape) != tensor.shape:
            raise CheckpointError(
                f"not the network {name}: {key} has shape {tensor.shape} in the file, "
                f"{tuple(own[key].shape)} in the network"
            )
    module.load_state_dict(
        {key: tensor_of(tensor.read()) for key, tensor in state.tensors.items()}, strict=False
    )


def tensor_of(values: Any, /) -> torch.Tensor:
    """Tensor of an array that nobody else has; it takes the memory over where it may be written."""
    import torch

    if isinstance(values, torch.Tensor):
        return values
    return torch.from_numpy(values if values.flags.writeable else values.copy())
