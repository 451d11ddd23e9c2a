"""ONNX operators that multiply matrices of constants, within a bound of work."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from planescope.checkpoints.onnx.constants.arithmetic import mapped, rounded
from planescope.checkpoints.onnx.constants.elementwise import Others
from planescope.checkpoints.onnx.nodes import Node
from planescope.hyperplanes.layer import Tensor

# Multiplications; weights of a merge of low ranks take far fewer.
_MAX_WORK = 1 << 31


def matrix_product(_node: Node, tensor: Tensor, others: Others) -> Tensor | None:
    """Multiply matrices, of stacks that fit, or vectors."""
    other = _second(tensor, others)
    return None if other is None else multiplied(tensor, other)


def multiplied(tensor: Tensor, other: Tensor, /) -> Tensor | None:
    """Multiply matrices, stacks of them or vectors of one type; None where that is much work.

    Raises
    ------
    ValueError
        If their shapes do not fit.
    """
    one, two = tensor.shape, other.shape
    if not one or not two or one[-1] != two[-2:][0]:
        raise ValueError(f"shapes {one} and {two} cannot be multiplied")
    stack = np.broadcast_shapes(one[:-2], two[:-2])
    shape = (*stack, *one[-2:-1], *(two[-1:] if len(two) > 1 else ()))
    if math.prod(shape) * one[-1] > _MAX_WORK:
        return None
    return mapped(
        lambda *given: rounded(np.asarray(np.matmul(*_wide(*given))), tensor.dtype),
        tensor,
        other,
        shape=shape,
    )


def general_product(node: Node, tensor: Tensor, others: Others) -> Tensor | None:
    """Multiply two matrices, either turned or not, by a factor, and add a third to it."""
    other = _second(tensor, others)
    summand = others[1] if len(others) > 1 else None
    if other is None or len(tensor.shape) != 2 or len(other.shape) != 2:
        return None
    turns = [bool(node.integer(name, 0)) for name in ("transA", "transB")]
    one, two = (
        s[::-1] if t else s for s, t in zip((tensor.shape, other.shape), turns, strict=True)
    )
    if one[1] != two[0]:
        raise ValueError(f"shapes {one} and {two} cannot be multiplied")
    shape = (one[0], two[1])
    if math.prod(shape) * one[1] > _MAX_WORK:
        return None
    if summand is not None and np.broadcast_shapes(summand.shape, shape) != shape:
        raise ValueError(f"shape {summand.shape} cannot be added to {shape}")
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)

    def product(*given: np.ndarray) -> np.ndarray:
        left, right, *rest = _wide(*given)
        found = alpha * ((left.T if turns[0] else left) @ (right.T if turns[1] else right))
        for each in rest:
            found = found + beta * each
        return rounded(found, tensor.dtype)

    operands = [tensor, other, *([] if summand is None else [summand])]
    return mapped(product, *operands, shape=shape)


def einstein_sum(node: Node, tensor: Tensor, others: Others) -> Tensor | None:
    """Sum up products of one or two constants along the axes that an equation names."""
    operands = [tensor, *(other for other in others if other is not None)]
    terms, arrow, out = node.text("equation").replace(" ", "").partition("->")
    names = terms.split(",")
    if "." in terms or not tensor.is_floating or len(operands) > 2:
        return None
    if len(names) != len(operands) or len({operand.dtype for operand in operands}) != 1:
        return None
    extents: dict[str, int] = {}
    for term, operand in zip(names, operands, strict=True):
        if len(term) != len(operand.shape) or not (term.isalpha() or not term):
            raise ValueError(f"{term!r} does not name the axes of shape {operand.shape}")
        for name, extent in zip(term, operand.shape, strict=True):
            if extents.setdefault(name, extent) != extent:
                raise ValueError(f"axis {name!r} has {extents[name]} and {extent} elements")
    if not arrow:
        out = "".join(sorted(name for name in extents if terms.count(name) == 1))
    if not extents.keys() >= set(out) or len(set(out)) != len(out):
        raise ValueError(f"{out!r} does not name axes of {terms!r}")
    if math.prod(extents.values()) > _MAX_WORK:
        return None
    equation = f"{terms}->{out}"
    return mapped(
        lambda *given: rounded(
            np.asarray(np.einsum(equation, *_wide(*given), optimize=len(given) > 1)), tensor.dtype
        ),
        *operands,
        shape=tuple(extents[name] for name in out),
    )


def _second(tensor: Tensor, others: Others) -> Tensor | None:
    """Return the second factor, if both are of one type of floating-point numbers."""
    other = others[0] if others else None
    return other if other and tensor.is_floating and tensor.dtype == other.dtype else None


def _wide(*given: np.ndarray) -> Sequence[np.ndarray]:
    """Return arrays that NumPy multiplies fast: it has no such product of float16."""
    return [each.astype(np.float32) if each.dtype == np.float16 else each for each in given]
