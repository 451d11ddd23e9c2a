"""Weights that torch stores in parts: weight norm, spectral norm, pruning masks."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from planescope.hyperplanes.layer import Array, StateDict, Tensor

Shape = tuple[int, ...]

_PARTS = re.compile(
    r"(^|\.)(parametrizations\.weight\.(original\d?|\d+\.(_u|_v))|weight_(g|v|u|orig|mask))$"
)


def resolved(state: StateDict, /) -> StateDict:
    """The same state dict with each weight that is stored in parts as one tensor, ``X.weight``.

    The parts stay unread until the weight is. Parts that make no weight by a formula we know stay
    as they are.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.tensors.items():
        module = _PARTS.sub("", name)
        whole = f"{module}.weight" if module else "weight"
        if module == name or (joined := _joined(module, state.tensors)) is None:
            tensors[name] = tensor
        else:
            tensors.setdefault(whole, joined)
    return dataclasses.replace(state, tensors=tensors)


def _weight_norm(v: Array, g: Array) -> Array:
    """``w = g v / ||v||``, the length taken over all but the dimension that g keeps."""
    over = tuple(i for i in range(v.ndim) if g.ndim == 0 or g.shape[i] == 1)
    return v * (g / (v * v).sum(over, keepdims=True) ** 0.5)


def _spectral_norm(w: Array, u: Array, v: Array) -> Array:
    """``w / sigma`` with the stored estimates of the first singular vectors, sigma = u^T W v."""
    rows = w if u.shape[0] == w.shape[0] else w.swapaxes(0, 1)
    return w / (u * (rows.reshape(u.shape[0], -1) * v).sum(1)).sum()


def _masked(w: Array, mask: Array) -> Array:
    return w * mask


def _is_weight_norm(v: Shape, g: Shape) -> bool:
    return not g or (len(g) == len(v) and all(n in (1, of) for n, of in zip(g, v, strict=True)))


def _is_spectral_norm(w: Shape, u: Shape, v: Shape) -> bool:
    # W has the filters as rows, which a transposed convolution keeps on the second axis.
    return any((n,) == u and (math.prod(w) // n,) == v for n in w[:2] if n)


def _is_mask(w: Shape, mask: Shape) -> bool:
    return w == mask


@dataclass(frozen=True)
class _Form:
    """Parts by their names behind the module's, the first of the weight's shape; how they join."""

    parts: tuple[str, ...]
    fits: Callable[..., bool]
    join: Callable[..., Array]


_ORIGINAL = "parametrizations.weight.original"
_FORMS = (
    _Form(("weight_v", "weight_g"), _is_weight_norm, _weight_norm),
    _Form((f"{_ORIGINAL}1", f"{_ORIGINAL}0"), _is_weight_norm, _weight_norm),
    _Form(("weight_orig", "weight_u", "weight_v"), _is_spectral_norm, _spectral_norm),
    _Form(
        (_ORIGINAL, "parametrizations.weight.0._u", "parametrizations.weight.0._v"),
        _is_spectral_norm,
        _spectral_norm,
    ),
    _Form(("weight_orig", "weight_mask"), _is_mask, _masked),
)


def _joined(module: str, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """The weight of a module from its parts; None where they are not those of a form we know."""
    prefix = f"{module}." if module else ""
    for form in _FORMS:
        parts = [tensors[prefix + name] for name in form.parts if prefix + name in tensors]
        if len(parts) == len(form.parts) and form.fits(*(part.shape for part in parts)):
            return _tensor(parts, form.join)
    return None


def _tensor(parts: list[Tensor], formula: Callable[..., Array]) -> Tensor:
    return Tensor(parts[0].shape, parts[0].dtype, lambda: formula(*(part.read() for part in parts)))
