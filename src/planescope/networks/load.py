"""A checkpoint's weights in the network that they belong to, ready to run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from planescope.files.errors import CheckpointError
from planescope.hyperplanes.layer import StateDict, Tensor
from planescope.networks import paper
from planescope.networks.build import build

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
    state : StateDict
        Its names may have a prefix, ``model.`` for example, as Lightning writes them.

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
    module, state = _built(name, state, drawn=False)
    _fill(module, state, name)
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
    return _built(name, state, seed=seed, drawn=drawn)[0]


def _built(
    name: str, state: StateDict, *, seed: int | None = None, drawn: bool = True
) -> tuple[nn.Module, StateDict]:
    """Return a network of the size of a state dict, and this by the network's own names."""
    is_paper = ":" not in name
    # A file may hold its tensors in any order; safetensors sorts them by name.
    if is_paper:
        state = paper.match(name, state)
        order = [f"{layer}.weight" for layer in paper.places(name)]
    else:
        own = [key for key in build(name).state_dict() if not key.endswith(COUNTER)]
        state = dataclasses.replace(state, tensors=_named_alike(state.tensors, own))
        order = [key for key in own if key.endswith("weight")]
    shapes = {key: tensor.shape for key, tensor in state.tensors.items()}
    weights = [shapes[key] for key in order if len(shapes.get(key, ())) > 1]
    if not weights:
        lacks = f"; it lacks {order[0]}" if order else ""
        has = f" and has {next(iter(shapes))}" if lacks and shapes else ""
        raise CheckpointError(
            f"not the network {name}: the file has none of its weights{lacks}{has}"
        )
    first, last = weights[0], weights[-1]
    sizes: dict[str, Any] = {"in_channels": first[1], "classes": last[0]}
    if not is_paper:
        return build(name, **sizes, seed=seed), state
    sizes |= _image(first)
    return build(name, **sizes, width=_width(name, shapes), seed=seed, drawn=drawn), state


def _image(first: tuple[int, ...]) -> dict[str, int]:
    """Guess channels and size of the images of a fully connected network from its inputs."""
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
    modules = {key.removesuffix(".weight"): shape for key, shape in shapes.items()}
    try:
        return paper.network(name).width_of(modules)
    except CheckpointError as exc:
        raise CheckpointError(f"not the network {name}: {exc}") from exc


def _fill(module: nn.Module, state: StateDict, name: str) -> None:
    # What is missing first, then what is beyond, then other shapes.
    worst = min(
        _differences(state.tensors, module),
        key=lambda one: (one.held is not None, one.wanted is not None, one.name),
        default=None,
    )
    if worst is not None:
        raise CheckpointError(f"not the network {name}: {_told(worst)}")
    held = {key: tensor_of(tensor.read()) for key, tensor in state.tensors.items()}
    module.load_state_dict(held, strict=False)


def _told(one: _Difference) -> str:
    if one.held is None:
        return f"the file lacks {one.name}"
    if one.wanted is None:
        return f"the file has beyond it {one.name}"
    return f"{one.name} has shape {one.held} in the file, {one.wanted} in the network"


def tensor_of(values: Any, /) -> torch.Tensor:
    """Return the tensor of an array that nobody else has.

    It takes the memory over where it may be written.
    """
    import torch

    if isinstance(values, torch.Tensor):
        return values
    return torch.from_numpy(values if values.flags.writeable else values.copy())


# Batch norm counts batches under this name; no output depends on it.
COUNTER = "num_batches_tracked"


def fitting(
    tensors: Mapping[str, Tensor], module: nn.Module, path: str, /, *, partly: bool = False
) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
    """Give the tensors that have the shapes of a network's, by its names, which all must be there.

    With them, in sentences, those of another shape; `partly`, also what is missing, where half of
    the network's or more is there: a start that had another head. What it has beyond the network is
    left out then, and told by `beyond`.

    Raises
    ------
    CheckpointError
        If one is missing, or is none of the network's.
    """
    own = _shapes(module)
    tensors = _named_alike(tensors, own)
    odd: dict[str, str] = {}
    extra = ""
    for one in _differences(tensors, module):
        layer = one.name.removesuffix(".weight")
        if one.held is None:
            odd[one.name] = f"{path}: is of another network: it has no {layer}"
        elif one.wanted is None:
            extra = extra or (
                f"{path}: is of another network: it has {layer} of shape {_size(one.held)}, which "
                "the trained one has not"
            )
        else:
            odd[one.name] = (
                f"{path}: is of another network: {layer} has shape {_size(one.held)} there, "
                f"{_size(one.wanted)} in the trained one"
            )
    missing = [name for name in odd if name not in tensors]
    partly = partly and 2 * len(odd) <= len(own)
    if (missing or extra) and not partly:
        raise CheckpointError(odd[missing[0]] if missing else extra)
    fits = {name: tensor for name, tensor in tensors.items() if name in own and name not in odd}
    return fits, tuple(odd.values())


def beyond(tensors: Mapping[str, Tensor], module: nn.Module, /) -> tuple[str, ...]:
    """Return what is among some tensors and not in a network: modules, and tensors outside one."""
    own = _shapes(module)
    modules = {name.rpartition(".")[0] for name in own}
    names = (
        one.name if (holder := one.name.rpartition(".")[0]) in modules or not holder else holder
        for one in _differences(_named_alike(tensors, own), module)
        if one.wanted is None
    )
    return tuple(dict.fromkeys(names))


class _Difference(NamedTuple):
    """A tensor that differs; its shape in a file and in a network, None where it is not there."""

    name: str
    held: tuple[int, ...] | None
    wanted: tuple[int, ...] | None


def _differences(tensors: Mapping[str, Tensor], module: nn.Module) -> Iterator[_Difference]:
    """Yield what keeps tensors from being those of a network, counters of batches aside."""
    own = _shapes(module)
    for name, shape in own.items():
        found = tensors.get(name)
        if found is None:
            yield _Difference(name, None, shape)
        elif found.shape != shape:
            yield _Difference(name, found.shape, shape)
    for name, tensor in tensors.items():
        if name not in own and not name.endswith(COUNTER):
            yield _Difference(name, tensor.shape, None)


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(held.shape)
        for name, held in module.state_dict().items()
        if not name.endswith(COUNTER) and hasattr(held, "shape")  # a module may keep what it likes
    }


def _named_alike(tensors: Mapping[str, Tensor], own: Iterable[str]) -> Mapping[str, Tensor]:
    """Name tensors without a wrapper's name before theirs, or with that of the network's own."""
    names = list(own)
    first = next(iter(names), "")
    if first in tensors:
        return tensors
    prefixes = [key.removesuffix(first) for key in tensors if key.endswith(f".{first}")]
    whole = [prefix for prefix in prefixes if all(prefix + name in tensors for name in names)]
    if prefixes:
        prefix = min(whole or prefixes, key=len)  # of several, what is over is refused
        # Beside the network, as Lightning keeps them: weights of a loss, counters of metrics.
        return {
            key.removeprefix(prefix): tensor
            for key, tensor in tensors.items()
            if not whole or key.startswith(prefix) or len(tensor.shape) > 1
        }
    parts = first.split(".")
    for count in range(1, len(parts)):
        outer, inner = ".".join(parts[:count]) + ".", ".".join(parts[count:])
        if inner in tensors and all(name.startswith(outer) for name in names):
            return {f"{outer}{key}": tensor for key, tensor in tensors.items()}
    return tensors


def _size(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))
