"""Weights and norms as libraries of JAX keep them, in forms and under names of their own.

Flax' WeightNorm and SpectralNorm change the weights of a layer whenever it runs; Haiku's batch norm
keeps its statistics apart, with an axis for each of its input.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping

from planescope.hyperplanes.layer import Array, StateDict, Tensor, joint_digest

_EPS = 1e-12  # of both wrappers, where nobody has set another
# What the wrappers keep for each weight, under its name: WeightNorm_0, Conv_0/kernel/scale.
_ENDS = ("scale", "u", "sigma")
_COLLECTIONS = ("params", "batch_stats", "state", "net_state")
# Haiku keeps what a batch norm has seen in modules of their own: norm/~/mean_ema, average.
HAIKU_MEAN = re.compile(r"(?P<module>.+)/~/(?P<last>mean|var)_ema(?P<separator>[./])average")
# As PyTorch calls the statistics: its epsilon is Haiku's too.
_HAIKU = {"mean": "running_mean", "var": "running_var", "scale": "gamma", "offset": "beta"}

_MISFIT = "a wrapper of Flax's normalises its weight in a way that is not read; save it normalised"


def normalised(state: StateDict, /) -> StateDict:
    """Return the same state dict with each weight as such a wrapper gives it to its layer."""
    if not any("kernel" in name and name.endswith(_ENDS) for name in state.tensors):
        return state
    weights = {_parts(name): name for name in state.tensors}
    found: dict[str, dict[str, str]] = {}
    for name in state.tensors:
        *path, last = _parts(name)
        whole = _wrapped(path, weights) if last in _ENDS else None
        if whole is not None:
            found.setdefault(whole, {})[last] = name
    tensors, reasons = dict(state.tensors), dict(state.reasons)
    for whole, names in found.items():
        parts = {last: tensors.pop(name) for last, name in names.items()}
        acting = _acting(tensors[whole], parts)
        if acting is None:
            reasons[whole.rpartition("/" if "/" in whole else ".")[0]] = _MISFIT
        else:
            tensors[whole] = acting
    return dataclasses.replace(state, tensors=tensors, reasons=reasons)


def with_plain_norms(tensors: Mapping[str, Tensor], /) -> Mapping[str, Tensor]:
    """Give Haiku's batch norms, of shape (1, 1, 1, filters), names and shapes as others have."""
    matches = {name: match for name in tensors if (match := HAIKU_MEAN.fullmatch(name))}
    if not matches:
        return tensors
    split = {name: (m["module"], m["separator"], m["last"]) for name, m in matches.items()}
    norms = {_parts(match["module"]) for match in matches.values()}
    homes: dict[tuple[str, ...], str] = {}
    for name in tensors:
        found = re.fullmatch(r"(.+)([./])(scale|offset)", name)
        if found is not None and _parts(found[1]) in norms:
            split[name] = (found[1], found[2], found[3])
            homes[_parts(found[1])] = found[1]
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in split and tensor.shape[:-1] == (1,) * len(tensor.shape[1:]):
            module, separator, last = split[name]
            home = homes.get(_parts(module), module)
            plain[f"{home}{separator}{_HAIKU[last]}"] = _flat(tensor)
        else:
            plain[name] = tensor
    return plain


def _flat(tensor: Tensor) -> Tensor:
    return dataclasses.replace(
        tensor, shape=tensor.shape[-1:], read=lambda: tensor.read().reshape(-1)
    )


def _parts(name: str) -> tuple[str, ...]:
    """Split a name, without the collection that it stands in."""
    first, *rest = name.replace("/", ".").split(".")
    return tuple(rest) if first in _COLLECTIONS and rest else (first, *rest)


def _wrapped(path: list[str], weights: Mapping[tuple[str, ...], str]) -> str | None:
    """Find the weight that has the same path without the wrapper's name."""
    paths = ((*path[:at], *path[at + 1 :]) for at in range(len(path) - 1))
    return next((weights[each] for each in paths if each in weights), None)


def _acting(weight: Tensor, parts: Mapping[str, Tensor]) -> Tensor | None:
    filters = weight.shape[-1:]
    formula: Callable[[Array, Array], Array]
    scale, direction = parts.get("scale"), parts.get("u")
    if scale is not None and direction is None and scale.shape == filters:
        held, formula = [weight, scale], _weight_norm
    elif scale is None and direction is not None and direction.shape == (1, *filters):
        held, formula = [weight, direction], _spectral_norm
    else:
        return None
    if not all(part.is_real for part in held):
        return None

    def read() -> Array:
        return formula(*(part.read() for part in held))

    return Tensor(weight.shape, weight.dtype, read, None, joint_digest(held))


def _weight_norm(kernel: Array, scale: Array) -> Array:
    """Bring each filter to the length that the scale tells; the filters lie last."""
    squares = (kernel * kernel).sum(tuple(range(kernel.ndim - 1)))
    return kernel * (scale / (squares + _EPS) ** 0.5)


def _spectral_norm(kernel: Array, direction: Array) -> Array:
    """Divide by the greatest singular value, after the one step towards it that each run takes."""
    rows = kernel.reshape(-1, kernel.shape[-1])
    left = direction @ rows.T
    left = left / ((left * left).sum() + _EPS) ** 0.5
    right = left @ rows
    sigma = (right * right).sum() / ((right * right).sum() + _EPS) ** 0.5
    return kernel / (sigma if sigma != 0 else 1)
