"""Weights that are stored in parts: weight norm, spectral norm, pruning masks, as torch keeps them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping

from planescope.layer import Array, StateDict, Tensor

_PARTS = re.compile(
    r"(^|\.)(parametrizations\.weight\.(original\d?|\d+\.(_u|_v))|weight_(g|v|u|orig|mask))$"
)


def resolved(state: StateDict, /) -> StateDict:
    """The same state dict with each weight that is stored in parts as one tensor, ``X.weight``.

    The parts stay unread until the weight is. A state dict without such parts is returned as it is.
    """
    if not any(_PARTS.search(name) for name in state.tensors):
        return state
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.tensors.items():
        module = _PARTS.sub("", name)
        whole = f"{module}.weight" if module else "weight"
        if module == name:
            tensors[name] = tensor
        elif whole not in tensors and (joined := _joined(module, state.tensors)) is not None:
            tensors[whole] = joined
    return dataclasses.replace(state, tensors=tensors)


def _weight_norm(v: Array, g: Array) -> Array:
    """``w = g v / ||v||``, the length taken over all but the dimension that g keeps."""
    kept = tuple(i for i, n in enumerate(g.shape) if n == 1 and v.shape[i] != 1)
    return v * (g / ((v * v).sum(kept or tuple(range(1, v.ndim)))).reshape(g.shape) ** 0.5)


def _spectral_norm(w: Array, u: Array, v: Array) -> Array:
    """``w / sigma`` with the stored estimates of the first singular vectors, sigma = u^T W v."""
    return w / (u * (w.reshape(w.shape[0], -1) * v).sum(1)).sum()


def _masked(w: Array, mask: Array) -> Array:
    return w * mask


# Parts of one weight, by their names behind the module's, and the formula that joins them. The first
# part has the shape of the weight.
_FORMS: tuple[tuple[tuple[str, ...], Callable[..., Array]], ...] = (
    (("weight_v", "weight_g"), _weight_norm),
    (("parametrizations.weight.original1", "parametrizations.weight.original0"), _weight_norm),
    (("weight_orig", "weight_u", "weight_v"), _spectral_norm),
    (
        (
            "parametrizations.weight.original",
            "parametrizations.weight.0._u",
            "parametrizations.weight.0._v",
        ),
        _spectral_norm,
    ),
    (("weight_orig", "weight_mask"), _masked),
)


def _joined(module: str, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """The weight of a module from its parts; None where they are not those of a form we know."""
    prefix = f"{module}." if module else ""
    for names, formula in _FORMS:
        parts = [tensors.get(prefix + name) for name in names]
        if all(part is not None for part in parts):
            return _tensor([part for part in parts if part is not None], formula)
    return None


def _tensor(parts: list[Tensor], formula: Callable[..., Array]) -> Tensor:
    return Tensor(parts[0].shape, parts[0].dtype, lambda: formula(*(part.read() for part in parts)))
