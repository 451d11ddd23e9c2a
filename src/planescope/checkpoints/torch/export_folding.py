"""Fold what an exported program computes of its parameters before they act: masks, scales, norms.

An operation is followed where all that it reads is stored, or made of what is stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from planescope.checkpoints.onnx.constants.arithmetic import (
    FLOATS,
    mapped,
    reshaped,
    rounded,
    transposed,
)
from planescope.checkpoints.onnx.constants.products import multiplied
from planescope.checkpoints.torch.aten import DTYPES, integers, numeral
from planescope.hyperplanes.layer import Array, Tensor

Arguments = Mapping[str, Any]
Operation = Callable[[Arguments, Mapping[str, Tensor]], Tensor | None]

_SELF = ("self", "input")
_CASTS = ("to", "_to_copy", "type_as")


def fold(word: str, arguments: Arguments, given: Mapping[str, Tensor]) -> Tensor | None:
    """Tell what an operation makes of constants; None for one that is not followed.

    Parameters
    ----------
    given : mapping of str to Tensor
        The tensors among its arguments.
    """
    if word in _CASTS:
        return _cast(arguments, given)
    operation = _OPERATIONS.get(word)
    # Another type, or a rounding by a word of its own, is not followed.
    told = any(
        isinstance(arguments.get(name), dict) and how in arguments[name]
        for name, how in (("dtype", "as_scalar_type"), ("rounding_mode", "as_string"))
    )
    if operation is None or told or not all(tensor.is_floating for tensor in given.values()):
        return None
    try:
        return operation(arguments, given)
    except (ValueError, IndexError, ZeroDivisionError):  # shapes that do not fit
        return None


def _own(given: Mapping[str, Tensor]) -> Tensor:
    for name in _SELF:
        if name in given:
            return given[name]
    raise ValueError("an operation without an operand")


def _flag(arguments: Arguments, name: str, *, default: bool = False) -> bool:
    value = arguments.get(name)
    held = value.get("as_bool", default) if isinstance(value, dict) else default
    return held is True


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise ValueError(f"axis {axis} of {rank}")
    return axis % rank


def _cast(arguments: Arguments, given: Mapping[str, Tensor]) -> Tensor | None:
    dtype: str | None
    if "other" in given:
        dtype = given["other"].dtype
    else:
        number = arguments.get("dtype")
        code = number.get("as_scalar_type") if isinstance(number, dict) else None
        dtype = DTYPES.get(code) if isinstance(code, int) else None
    if dtype not in FLOATS:
        return None
    return mapped(lambda values: rounded(values, dtype), _own(given), dtype=dtype)


# --- element by element


def _binary(function: Callable[[Any, Any], Any], *, scaled: bool = False) -> Operation:
    def operation(arguments: Arguments, given: Mapping[str, Tensor]) -> Tensor | None:
        key = "exponent" if "exponent" in arguments else "other"
        alpha = numeral(arguments.get("alpha")) if scaled else None
        factor = 1.0 if alpha is None else alpha

        def of(one: Any, other: Any) -> Any:
            return function(one, other if factor == 1 else other * factor)

        one, other = given.get("self"), given.get(key)
        if one is not None and other is not None:
            shape = np.broadcast_shapes(one.shape, other.shape)
            dtype = one.dtype if one.shape or not other.shape else other.dtype
            return mapped(of, one, other, shape=shape, dtype=dtype)
        number = numeral(arguments.get("self" if one is None else key))
        if number is None or (one is None and other is None):
            return None
        if one is not None:
            return mapped(lambda values: of(values, number), one)
        return mapped(lambda values: of(number, values), given[key])

    return operation


def _unary(function: Callable[[Any], Any]) -> Operation:
    return lambda _, given: mapped(function, _own(given))


def _clamped(arguments: Arguments, given: Mapping[str, Tensor]) -> Tensor | None:
    if len(given) > 1:
        return None
    least, most = (numeral(arguments.get(name)) for name in ("min", "max"))
    return mapped(lambda values: np.clip(values, least, most), _own(given))


def _softplus(arguments: Arguments, given: Mapping[str, Tensor]) -> Tensor | None:
    if numeral(arguments.get("beta")) not in (None, 1.0) or "threshold" in arguments:
        return None
    return mapped(lambda values: np.logaddexp(values, 0).astype(values.dtype), _own(given))


def _reversed_difference(arguments: Arguments, given: Mapping[str, Tensor]) -> Tensor | None:
    if numeral(arguments.get("alpha")) not in (None, 1.0):
        return None
    return _binary(lambda one, other: other - one)(arguments, given)


# --- sums


def _reduced(function: Callable[..., Any]) -> Operation:
    def operation(arguments: Arguments, given: Mapping[str, Tensor]) -> Tensor | None:
        tensor = _own(given)
        rank = len(tensor.shape)
        axes = {_axis(n, rank) for n in integers(arguments.get("dim"))} or set(range(rank))
        keeps = _flag(arguments, "keepdim")
        shape = tuple(
            1 if axis in axes else extent
            for axis, extent in enumerate(tensor.shape)
            if keeps or axis not in axes
        )
        over = tuple(sorted(axes))
        return mapped(
            lambda values: function(arguments, values, over).reshape(shape), tensor, shape=shape
        )

    return operation


def _variance(arguments: Arguments, values: Array, axes: tuple[int, ...]) -> Any:
    less = numeral(arguments.get("correction"))
    if less is None:
        less = float(_flag(arguments, "unbiased", default=True))
    return np.asarray(values.var(axis=axes, ddof=int(less)))


def _length(_: Arguments, values: Array, axes: tuple[int, ...]) -> Any:
    return np.asarray(np.sqrt(np.square(values).sum(axis=axes)))


def _norm(arguments: Arguments, given: Mapping[str, Tensor]) -> Tensor | None:
    power = numeral(arguments.get("ord", arguments.get("p")))
    return _reduced(_length)(arguments, given) if power in (None, 2.0) else None


def _weight_norm(arguments: Arguments, given: Mapping[str, Tensor]) -> Tensor | None:
    v, g = given["v"], given["g"]
    rank = len(v.shape)
    dim = next(iter(integers(arguments.get("dim"))), 0)
    kept = {} if dim == -1 else {_axis(dim, rank)}
    over = tuple(axis for axis in range(rank) if axis not in kept)
    # As torch has it, of all axes together the length is one number.
    if np.broadcast_shapes(v.shape, g.shape) != v.shape:
        return None
    return mapped(lambda v, g: v * (g / np.sqrt(np.square(v).sum(axis=over, keepdims=True))), v, g)


def _batch_norm(arguments: Arguments, given: Mapping[str, Tensor]) -> Tensor | None:
    """Normalise along axis 1 by the constant's own mean and variance, as in training."""
    tensor, eps = _own(given), numeral(arguments.get("eps"))
    training = any(_flag(arguments, name) for name in ("training", "use_input_stats"))
    if not training or eps is None or len(tensor.shape) < 2:
        return None
    wide = (1, tensor.shape[1], *(1,) * (len(tensor.shape) - 2))
    parts = [name for name in ("weight", "bias") if name in given]
    if any(given[name].shape != tensor.shape[1:2] for name in parts):
        return None
    over = (0, *range(2, len(tensor.shape)))

    def normalised(values: Array, *rest: Array) -> Any:
        wider = values.astype(np.float64)
        mean, variance = (f(wider, axis=over, keepdims=True) for f in (np.mean, np.var))
        found = (wider - mean) / np.sqrt(variance + eps)
        held = dict(zip(parts, rest, strict=True))
        if "weight" in held:
            found = found * held["weight"].reshape(wide)
        if "bias" in held:
            found = found + held["bias"].reshape(wide)
        return found.astype(values.dtype)

    return mapped(normalised, tensor, *(given[name] for name in parts))


# --- other shapes


def _view(arguments: Arguments, given: Mapping[str, Tensor]) -> Tensor:
    tensor = _own(given)
    shape = integers(arguments.get("size", arguments.get("shape")))
    if -1 in shape:
        rest = -math.prod(shape)
        shape[shape.index(-1)] = math.prod(tensor.shape) // rest
    return reshaped(tensor, tuple(shape))


def _viewed_as(_: Arguments, given: Mapping[str, Tensor]) -> Tensor:
    return reshaped(_own(given), given["other"].shape)


def _flattened(arguments: Arguments, given: Mapping[str, Tensor]) -> Tensor:
    tensor = _own(given)
    rank = len(tensor.shape)
    begin, end = (
        _axis(next(iter(integers(arguments.get(name))), default), rank)
        for name, default in (("start_dim", 0), ("end_dim", -1))
    )
    middle = math.prod(tensor.shape[begin : end + 1])
    return reshaped(tensor, (*tensor.shape[:begin], middle, *tensor.shape[end + 1 :]))


def _unsqueezed(arguments: Arguments, given: Mapping[str, Tensor]) -> Tensor:
    tensor = _own(given)
    (dim,) = integers(arguments.get("dim"))
    at = _axis(dim, len(tensor.shape) + 1)
    return reshaped(tensor, (*tensor.shape[:at], 1, *tensor.shape[at:]))


def _squeezed(arguments: Arguments, given: Mapping[str, Tensor]) -> Tensor:
    tensor = _own(given)
    rank = len(tensor.shape)
    axes = {_axis(n, rank) for n in integers(arguments.get("dim"))} or set(range(rank))
    kept = [n for axis, n in enumerate(tensor.shape) if n != 1 or axis not in axes]
    return reshaped(tensor, tuple(kept))


def _spread(arguments: Arguments, given: Mapping[str, Tensor]) -> Tensor:
    tensor, size = _own(given), integers(arguments.get("size"))
    ahead = len(size) - len(tensor.shape)
    wanted = [
        (*(1,) * ahead, *tensor.shape)[axis] if extent == -1 else extent
        for axis, extent in enumerate(size)
    ]
    shape = np.broadcast_shapes(tensor.shape, tuple(wanted))
    return mapped(lambda values: np.broadcast_to(values, shape), tensor, shape=shape)


def _permuted(arguments: Arguments, given: Mapping[str, Tensor]) -> Tensor:
    tensor = _own(given)
    rank = len(tensor.shape)
    return transposed(tensor, [_axis(n, rank) for n in integers(arguments.get("dims"))])


def _swapped(arguments: Arguments, given: Mapping[str, Tensor]) -> Tensor:
    tensor = _own(given)
    axes = list(range(len(tensor.shape)))
    names = ("dim0", "dim1")
    one, other = (_axis(integers(arguments.get(name))[0], len(axes)) for name in names)
    axes[one], axes[other] = axes[other], axes[one]
    return transposed(tensor, axes)


def _turned(_: Arguments, given: Mapping[str, Tensor]) -> Tensor:
    tensor = _own(given)
    return transposed(tensor, range(len(tensor.shape))[::-1])


# --- products


def _product(_: Arguments, given: Mapping[str, Tensor]) -> Tensor | None:
    one = _own(given)
    names: Sequence[str] = ("mat2", "other", "vec", "tensor")
    other = next((given[name] for name in names if name in given), None)
    return None if other is None else multiplied(one, other)


_OPERATIONS: dict[str, Operation] = {
    **dict.fromkeys(("add", "add_"), _binary(np.add, scaled=True)),
    **dict.fromkeys(("sub", "sub_"), _binary(np.subtract, scaled=True)),
    "rsub": _reversed_difference,
    **dict.fromkeys(("mul", "mul_"), _binary(np.multiply)),
    **dict.fromkeys(("div", "div_"), _binary(np.divide)),
    "maximum": _binary(np.maximum),
    "minimum": _binary(np.minimum),
    "pow": _binary(np.power),
    "neg": _unary(np.negative),
    "exp": _unary(np.exp),
    "log": _unary(np.log),
    "sqrt": _unary(np.sqrt),
    "rsqrt": _unary(lambda values: 1 / np.sqrt(values)),
    "reciprocal": _unary(np.reciprocal),
    "square": _unary(np.square),
    "abs": _unary(np.abs),
    "sign": _unary(np.sign),
    "tanh": _unary(np.tanh),
    "sigmoid": _unary(lambda values: 1 / (1 + np.exp(-values))),
    "relu": _unary(lambda values: np.maximum(values, 0)),
    "softplus": _softplus,
    **dict.fromkeys(("clamp", "clamp_min", "clamp_max"), _clamped),
    "mean": _reduced(lambda _, values, axes: np.asarray(values.mean(axis=axes))),
    "sum": _reduced(lambda _, values, axes: np.asarray(values.sum(axis=axes))),
    "amax": _reduced(lambda _, values, axes: np.asarray(values.max(axis=axes))),
    "amin": _reduced(lambda _, values, axes: np.asarray(values.min(axis=axes))),
    "var": _reduced(_variance),
    "std": _reduced(lambda given, values, axes: np.sqrt(_variance(given, values, axes))),
    **dict.fromkeys(("norm", "linalg_vector_norm"), _norm),
    **dict.fromkeys(("_weight_norm", "_weight_norm_interface"), _weight_norm),
    "batch_norm": _batch_norm,
    **dict.fromkeys(("view", "_unsafe_view", "reshape"), _view),
    **dict.fromkeys(("view_as", "reshape_as"), _viewed_as),
    "flatten": _flattened,
    "unsqueeze": _unsqueezed,
    "squeeze": _squeezed,
    "expand": _spread,
    "permute": _permuted,
    **dict.fromkeys(("transpose", "swapaxes"), _swapped),
    "t": _turned,
    **dict.fromkeys(("detach", "alias", "lift_fresh_copy", "clone", "contiguous"),
                    lambda _, given: _own(given)),
    **dict.fromkeys(("mm", "matmul", "bmm", "mv", "dot", "vdot"), _product),
}  # fmt: skip
