"""Weights of frameworks that keep filters on the last axis, brought into PyTorch's order.

Flax, Haiku and TensorFlow keep (*kernel, in, out) and (in, out), Paddle (in, out) for linear layers
alone. The length of each bias tells, then those of the other layers, then the name.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

from planescope.hyperplanes.layer import Kind, Place, Tensor
from planescope.networks.layers import WEIGHTS

# Where the filters are where no bias tells.
_LAST = ("kernel", "weights")
_FLAX_TRANSPOSED = re.compile(r"ConvTranspose")


@dataclass(frozen=True, kw_only=True)
class Ordered:
    """Tensors in PyTorch's order.

    Attributes
    ----------
    tensors : mapping of str to Tensor
        Weights whose axes were exchanged are called ``weight``.
    places : mapping of str to Place
        Of transposed convolutions, by module.
    assumed : tuple of str
        Modules of which nothing tells where the filters are.
    """

    tensors: Mapping[str, Tensor]
    places: Mapping[str, Place]
    assumed: tuple[str, ...]


def filters_first(tensors: Mapping[str, Tensor], /) -> Ordered:
    """Bring the filters of all weights to the first axis, as the evidence says."""
    votes: defaultdict[tuple[str, bool], Counter[str]] = defaultdict(Counter)
    told: dict[str, set[str]] = {}
    for name, tensor in tensors.items():
        module, _, ending = name.rpartition(".")
        bias = tensors.get(f"{module}.{WEIGHTS[ending]}") if ending in WEIGHTS else None
        if ending not in WEIGHTS or len(tensor.shape) < 2:
            continue
        told[name] = _fitting(tensor.shape, bias)
        if len(told[name]) == 1:
            votes[ending, len(tensor.shape) == 2].update(told[name])
    ordered: dict[str, Tensor] = {}
    places: dict[str, Place] = {}
    renamed: dict[str, str] = {}
    assumed: list[str] = []
    for name, tensor in tensors.items():
        if name not in told:
            ordered[name] = tensor
            continue
        module, _, ending = name.rpartition(".")
        side = _side(told[name], votes[ending, len(tensor.shape) == 2], ending)
        if side is None:
            assumed.append(module)
        flax = bool(_FLAX_TRANSPOSED.search(module)) and len(tensor.shape) > 2
        if side in ("second", "turned") or (side == "last" and flax):
            places[module] = Place(kind=Kind.TRANSPOSED)
        if side in ("last", "turned"):
            swapped = side == "turned" or flax
            ordered[f"{module}.weight"] = _moved(tensor, inputs_first=swapped, flax=flax)
            renamed[f"{module}.{WEIGHTS[ending]}"] = f"{module}.bias"
        else:
            ordered[name] = tensor
    kept = {renamed.get(name, name): tensor for name, tensor in ordered.items()}
    return Ordered(tensors=kept, places=places, assumed=tuple(assumed))


def _fitting(shape: tuple[int, ...], bias: Tensor | None) -> set[str]:
    """Where the filters can be, given the bias: first, last, second, or last but one."""
    if bias is None or len(bias.shape) != 1:
        return {"first", "last"}
    (outputs,) = bias.shape
    fits = {side for side, at in (("first", 0), ("last", -1)) if shape[at] == outputs}
    if not fits and len(shape) > 2:
        # Transposed: PyTorch's (in, out / groups, *kernel), Haiku's (*kernel, out, in).
        groups = outputs // shape[1] if shape[1] and outputs % shape[1] == 0 else 0
        if groups and shape[0] % groups == 0:
            return {"second"}
        return {"turned"} if shape[-2] == outputs else set()
    return fits


def _side(fits: set[str], votes: Counter[str], ending: str) -> str | None:
    if len(fits) == 1:
        return next(iter(fits))
    if not fits:
        return "first"  # as it is; the bias tells the reader of state dicts more
    last, first = votes["last"] + votes["turned"], votes["first"] + votes["second"]
    if last != first:
        return "last" if last > first else "first"
    if ending in _LAST:
        return "last"
    return "first" if ending == "weight" else None


def _moved(tensor: Tensor, *, inputs_first: bool, flax: bool) -> Tensor:
    """Bring (*kernel, in, out) into (out, in, *kernel), or into (in, out, *kernel)."""
    rank = len(tensor.shape)
    kernel = tuple(range(rank - 2))
    # Flax has the inputs of a transposed convolution before its outputs, Haiku and Keras behind.
    front = (rank - 2, rank - 1) if inputs_first and flax else (rank - 1, rank - 2)
    order = (*front, *kernel)
    shape = tuple(tensor.shape[axis] for axis in order)
    return replace(tensor, shape=shape, read=lambda: tensor.read().transpose(order))
