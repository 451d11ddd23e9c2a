"""Weights that torch stores in parts: weight norm, spectral norm, masks, and their chains."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from planescope.hyperplanes.layer import Array, StateDict, Tensor, joint_digest
from planescope.networks.state.jax_forms import normalised, with_plain_norms

if TYPE_CHECKING:
    from collections.abc import Iterable

Shape = tuple[int, ...]

# X.parametrizations.NAME.original (or original0, ...), and the buffers of each step by its number.
_STEPS = re.compile(r"(?:^|(?P<module>.*)\.)parametrizations\.(?P<name>[^.]+)\.(?P<part>.+)$")
_STEP = re.compile(r"(?:(?P<owner>.*)\.)?parametrizations\.(?P<name>[^.]+)\.\d+$")
# The steps of which the tensors in a file tell all.
_TOLD = re.compile(r"(torch\.nn\.utils\.parametrizations\.)?_(WeightNorm|SpectralNorm)")
_ORIGINAL = re.compile(r"original\d?$")
_SPECTRAL = re.compile(r"(\d+)\.(_u|_v)$")
_OLD = re.compile(r"(?:^|(?P<module>.*)\.)(?P<name>[^.]+)_(?P<part>orig|mask|g|v|u)$")

# Most names have nothing of these, and are told so at once.
_MARK = "parametrizations."
_ENDS = ("_orig", "_mask", "_g", "_v", "_u")

# A weight, or the part of it that has its shape.
WEIGHT_OR_PARTS = (
    "weight",
    "weight_v",
    "weight_orig",
    "parametrizations.weight.original1",
    "parametrizations.weight.original",
)

NOT_TOLD = "{} is computed from parts by a formula that a state dict does not tell; give the module"


def resolved(state: StateDict, /) -> StateDict:
    """Return the same state dict with each weight or bias that is stored in parts as one tensor.

    The parts stay unread until the weight is. Parts that make no weight by a formula we know stay
    as they are, and `reasons` tells why their module is no layer to be measured.
    """
    plain = with_plain_norms(state.tensors)
    state = normalised(dataclasses.replace(state, tensors=plain))
    if not any(_MARK in name or name.endswith(_ENDS) for name in state.tensors):
        return state
    tensors = _unmasked(state.tensors)
    chains: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    olds: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        if match := _STEPS.fullmatch(name):
            chains[_whole(match)][match["part"]] = tensor
        elif match := _OLD.fullmatch(name):
            olds[_whole(match)][match["part"]] = tensor
    wholes = {whole: _chained(parts) for whole, parts in chains.items()}
    wholes |= {whole: _old(parts) for whole, parts in olds.items() if whole not in tensors}
    joined: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = _STEPS.fullmatch(name) or _OLD.fullmatch(name)
        whole = None if match is None else _whole(match)
        if whole is None or wholes.get(whole) is None:
            joined[name] = tensor
        else:
            joined.setdefault(whole, wholes[whole])  # type: ignore[arg-type]
    untold = [whole for whole in chains if wholes[whole] is None]
    untold += [
        whole for whole, parts in olds.items() if {"orig"} & parts.keys() and not wholes.get(whole)
    ]
    reasons = {_module(whole): NOT_TOLD.format(f"its {_last(whole)}") for whole in untold}
    return dataclasses.replace(state, tensors=joined, reasons={**state.reasons, **reasons})


def _whole(match: re.Match[str]) -> str:
    return f"{match['module']}.{match['name']}" if match["module"] else match["name"]


def _module(whole: str) -> str:
    return whole.rpartition(".")[0] or whole


def _last(whole: str) -> str:
    return whole.rpartition(".")[2]


def untold_step(name: str, of_class: str, /) -> tuple[str, str] | None:
    """Return the layer and attribute that a module is a step of, by a formula that is not known.

    A step without tensors of its own leaves no trace in a state dict, and the weight would be read
    as if it were not there; where modules are listed it is.
    """
    match = _STEP.fullmatch(name)
    if match is None or _TOLD.fullmatch(of_class):
        return None
    return match["owner"] or "weight", match["name"]


def is_part(name: str, /) -> bool:
    """Return whether a tensor is a part of one that is computed."""
    return name.endswith(("_orig", "_mask")) or (_MARK in name and bool(_STEPS.fullmatch(name)))


def _unmasked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put each pruned tensor in place of its values and its mask, whatever it is a part of."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stem = re.sub(r"_(orig|mask)$", "", name)
        parts = [tensors.get(f"{stem}_{part}") for part in ("orig", "mask")]
        values, mask = parts
        if stem != name and values is not None and mask is not None and _fit(values, mask):
            found.setdefault(stem, _tensor([values, mask], lambda w, mask: w * mask))
        else:
            found[name] = tensor
    return found


def _fit(values: Tensor, mask: Tensor) -> bool:
    return values.shape == mask.shape and values.is_real and mask.is_real


def _weight_norm(v: Array, g: Array) -> Array:
    """Return ``w = g v / ||v||``, the length taken over all but the dimension that g keeps."""
    over = tuple(i for i in range(v.ndim) if g.ndim == 0 or g.shape[i] == 1)
    return v * (g / (v * v).sum(over, keepdims=True) ** 0.5)


def _spectral_norm(w: Array, u: Array, v: Array) -> Array:
    """Return ``w / sigma``; sigma = u^T W v, of the stored estimates of the singular vectors.

    W has the filters as rows: the first axis, or the second of a transposed convolution. Where both
    are as long the greater sigma tells: of the wrong axis it is near 0, of either sign.
    """
    may_be = [rows for rows in (w, w.swapaxes(0, 1)) if rows.shape[0] == u.shape[0]]
    if w.ndim == 2:  # no convolution
        may_be = may_be[:1]
    return w / max((u * (rows.reshape(u.shape[0], -1) * v).sum(1)).sum() for rows in may_be)


def _is_weight_norm(v: Shape, g: Shape) -> bool:
    return not g or (len(g) == len(v) and all(n in (1, of) for n, of in zip(g, v, strict=True)))


def _is_spectral_norm(w: Shape, u: Shape, v: Shape) -> bool:
    # W has the filters as rows, which a transposed convolution keeps on the second axis.
    return any((n,) == u and (math.prod(w) // n,) == v for n in w[:2] if n)


def _chained(parts: Mapping[str, Tensor]) -> Tensor | None:
    """Return the tensor of torch's own parametrisations from their parts.

    None where one is unknown.
    """
    originals = [name for name in parts if _ORIGINAL.fullmatch(name)]
    steps: defaultdict[int, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in parts.items():
        if match := _SPECTRAL.fullmatch(name):
            steps[int(match[1])][match[2]] = tensor
        elif name not in originals:
            return None  # the part of a formula that we do not know
    if sorted(originals) == ["original0", "original1"]:
        # Weight norm is the only one of torch's that takes its tensor apart.
        g, v = parts["original0"], parts["original1"]
        if not _is_weight_norm(v.shape, g.shape) or not (g.is_real and v.is_real):
            return None
        whole, first = _tensor([v, g], _weight_norm), 1
    elif originals == ["original"] and steps:
        whole, first = parts["original"], 0
    else:
        return None
    # A step without buffers of its own leaves a gap in the numbers.
    if sorted(steps) != list(range(first, first + len(steps))):
        return None
    for number in sorted(steps):
        step = _spectral(whole, steps[number].get("_u"), steps[number].get("_v"))
        if step is None:
            return None
        whole = step
    return whole


def _spectral(w: Tensor, u: Tensor | None, v: Tensor | None) -> Tensor | None:
    if u is None or v is None or not _is_spectral_norm(w.shape, u.shape, v.shape):
        return None
    if not (w.is_real and u.is_real and v.is_real):
        return None
    return _tensor([w, u, v], _spectral_norm)


def _old(parts: Mapping[str, Tensor]) -> Tensor | None:
    """Return the tensor of the older weight norm and spectral norm, which hooks compute."""
    match parts:
        case {"g": g, "v": v} if (
            len(parts) == 2 and _is_weight_norm(v.shape, g.shape) and g.is_real and v.is_real
        ):
            return _tensor([v, g], _weight_norm)
        case {"orig": w, "u": u, "v": v}:
            return _spectral(w, u, v)
    return None


def _tensor(parts: Iterable[Tensor], formula: Callable[..., Array]) -> Tensor:
    parts = list(parts)

    def read() -> Array:
        return formula(*(part.read() for part in parts))

    return Tensor(parts[0].shape, parts[0].dtype, read, None, joint_digest(parts))
