"""Layers of an ONNX graph: weights with their scale, and the bias in the layer or behind it."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from planescope.checkpoints.onnx.behind import Deed, Met, met, per_filter
from planescope.checkpoints.onnx.constants.arithmetic import mapped, transposed
from planescope.checkpoints.onnx.constants.folding import REARRANGING
from planescope.checkpoints.onnx.constants.values import Constant, Constants, turned
from planescope.checkpoints.onnx.graph import Graph
from planescope.checkpoints.onnx.nodes import Name, Node
from planescope.checkpoints.onnx.origins import module_of
from planescope.checkpoints.onnx.quantised import scaled
from planescope.checkpoints.onnx.words import activation, saturates
from planescope.files.errors import CheckpointError
from planescope.hyperplanes.layer import Kind, Tensor
from planescope.networks.state import exclusions


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A layer, as its node describes it.

    Attributes
    ----------
    weight : Tensor, shape (filters, channels / groups, *kernel)
    root : hashable
        The same for nodes with the same weights.
    names : tuple of str
        Of the weights in the file.
    value : Name
        What comes out of the layer, its scale and bias included.
    parts : tuple of Node
        Nodes behind it that hold its scale or bias.
    further : tuple of Met
        Constants that meet `value`, and are in no table.
    """

    kind: Kind
    weight: Tensor
    root: Hashable
    names: tuple[str, ...]
    value: Name
    bias: Tensor | None = None
    groups: int = 1
    parts: tuple[Node, ...] = ()
    further: tuple[Met, ...] = ()


class Slots(NamedTuple):
    """Inputs in which an operator has its weights; those of a quantised one with their scale."""

    weight: int = 1
    bias: int | None = None
    scale: int | None = None
    zero: int | None = None
    fed_scale: int | None = None  # of what the layer reads: the bias is in units of both
    spreads: bool = False  # the bias may have any shape that can be spread over the outputs


class LeftOutError(Exception):
    """Weights that are there and cannot be had; says why."""


# How exporters end the name of a node, and what quantisers append to that.
_OPERATOR_NAME = re.compile(
    r"(Conv|ConvTranspose|Conv[123]D|DepthwiseConv\w*|DeformConv|Einsum|GRU|Gather|Gemm|LSTM|MatMul|RNN"
    r"|BatchNormalization)(_\d+)?(_MatMul)?(_quant)?$"
)

_OF_VALUE = re.compile(r"(_output_\d+)?_nchwc$")
_MOST_VIEWS = 16  # of a weight, one upon the other
_INTEGER = ("ConvInteger", "MatMulInteger")

# Operators that hold the bias of the layer before them, and where.
_BIASES = {
    "com.microsoft.BiasAdd": 1,
    "com.microsoft.BiasGelu": 1,
    "com.microsoft.BiasDropout": 1,
    "com.microsoft.BiasSplitGelu": 1,
    "com.microsoft.BitmaskBiasDropout": 1,
    "com.microsoft.FastGelu": 1,
    "com.microsoft.SkipLayerNormalization": 4,
    "com.microsoft.SkipSimplifiedLayerNormalization": 3,
}


@dataclass(frozen=True)
class Operands:
    """A node, and what can be asked of its inputs."""

    graph: Graph
    constants: Constants
    node: Node

    def constant(self, number: int, what: str) -> Constant:
        """Find a constant that a layer cannot do without."""
        name = self.node.input(number)
        found = self.constants.of(name)
        if found is not None:
            return found
        graph = self.graph
        if name is None or name in graph.fed or (name in graph.dynamic and name in graph.makers):
            raise LeftOutError(f"its {what} is computed while the network runs")
        made_by = self.constants.unfollowed(name)
        if made_by is None:
            raise LeftOutError(f"its {what}, {name.text!r}, is not in the file")
        raise LeftOutError(f"its {what} is made by {made_by}, in a way that is not followed")

    def optional(self, number: int | None, what: str) -> Tensor | None:
        """Find a constant that need not be given."""
        if number is None or self.node.input(number) is None:
            return None
        return self.constant(number, what).tensor

    def is_stored(self, name: Name | None) -> bool:
        """Tell whether a value holds a stored tensor's elements in a shape that is worked out."""
        for _ in range(_MOST_VIEWS):
            node = None if name is None else self.graph.makers.get(name)
            if node is None or node.op not in REARRANGING:
                return False
            name = node.input(0)
            if self.constants.of(name) is not None:
                return True
        return False

    def misfit(self, tensor: Tensor) -> CheckpointError:
        """Word the refusal of an operand."""
        return CheckpointError(
            f"{self.node.wire.path}: {self.node.op} {readable(self.node)!r} cannot have an operand "
            f"of shape {tensor.shape}; the file is damaged, get it again"
        )


def turned_pair(stored: Constant, *, is_turned: bool) -> tuple[Tensor, Hashable]:
    """Return a matrix with its filters first, from (in, out) where it is turned."""
    if not is_turned:
        return stored.tensor, stored.root
    return transposed(stored.tensor, (1, 0)), turned(stored.root, (1, 0))


def finished(
    given: Operands,
    slots: Slots,
    stored: Constant,
    kind: Kind,
    weight: Tensor,
    root: Hashable,
    groups: int = 1,
    tail: tuple[int, ...] | None = None,
    *,
    bias: Tensor | None = None,
) -> Weights:
    """Scale the weights, and find the bias, in the layer or behind it.

    Parameters
    ----------
    tail : tuple of int, optional
        Last extents of what comes out, along which the filters lie; by default those of a layer
        with its channels in front of the kernel.
    bias : Tensor, optional
        Where it is no input as it stands.
    """
    node, value = given.node, given.node.output
    parts: list[Node] = []
    if 0 in weight.shape:
        raise LeftOutError("it has no weights")
    scale = given.optional(slots.scale, "scale")
    zero = given.optional(slots.zero, "zero point")
    if node.op in _INTEGER:
        scale, value, parts = _scale_behind(given)
    if scale is not None:
        weight = _dequantised(given, weight, scale, zero)
    elif not weight.is_floating:
        raise LeftOutError(exclusions.not_floating(weight))
    alpha = node.number("alpha", 1) if kind is Kind.LINEAR and node.op != "Einsum" else 1
    if alpha != 1:
        weight = mapped(lambda values: values * values.dtype.type(alpha), weight)
    bias = bias or _own_bias(given, slots, weight, scale)
    tail = tail or channels(weight)
    steps = list(_met(given, kind, weight, value, tail))
    if bias is None:
        if added := _added(steps, weight.shape[0]):
            bias, taken = added
            steps = steps[len(taken) :]
            parts += [node for step in taken for node in (*step.before, step.node)]
            value = taken[-1].node.output
        else:
            bias = _bias_behind(given, value, tail)
    return Weights(
        kind=kind,
        weight=weight,
        root=root,
        names=stored.names,
        value=value,
        bias=bias,
        groups=groups,
        parts=tuple(parts),
        further=tuple(steps),
    )


def _met(
    given: Operands, kind: Kind, weight: Tensor, value: Name, tail: tuple[int, ...]
) -> Iterator[Met]:
    """Yield what meets the outputs of a layer, unless it has cut them or acts on them itself."""
    if saturates(given.constants, given.node) or activation(given.node):
        return iter(())
    rank = None if kind is Kind.LINEAR else len(weight.shape)
    return met(given.graph, given.constants, value, tail, rank)


def _dequantised(given: Operands, weight: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    for tensor in filter(None, (scale, zero)):
        if math.prod(tensor.shape) not in (1, weight.shape[0]):
            raise given.misfit(tensor)
    return scaled(weight, scale, zero)


def _scale_behind(given: Operands) -> tuple[Tensor, Name, list[Node]]:
    """Find the scale of weights where the product is turned back into real numbers."""
    graph, constants, value = given.graph, given.constants, given.node.output
    parts: list[Node] = []
    apart: Tensor | None = None
    is_fed = False
    while (node := graph.only_user(value)) is not None and node.op == "Mul" and len(parts) < 2:
        parts.append(node)
        # One operand comes from the layer, the other is the product of both scales, or one of them.
        for name in filter(None, node.inputs):
            maker = graph.makers.get(name)
            if (found := constants.tensor(name)) is not None:
                apart = found
            elif maker is not None and maker.op == "DynamicQuantizeLinear":
                is_fed = True
            elif maker is not None and maker.op == "Mul" and maker not in parts:
                for factor in filter(None, maker.inputs):
                    if (scale := constants.tensor(factor)) is not None:
                        return scale, node.output, parts
        if apart is not None and is_fed:
            return apart, node.output, parts
        value = node.output
    raise LeftOutError("its weights are whole numbers, and nothing tells their scale")


def _own_bias(given: Operands, slots: Slots, weight: Tensor, scale: Tensor | None) -> Tensor | None:
    """Find the bias that a node has itself, of shape (filters,)."""
    bias = given.optional(slots.bias, "bias")
    if bias is None:
        return None
    filters, is_gemm = weight.shape[0], slots.spreads
    if is_gemm and math.prod(bias.shape) == 1:
        bias = mapped(lambda one: one.reshape(1).repeat(filters), bias, shape=(filters,))
    spread = per_filter(bias, (filters,)) if is_gemm else bias
    if spread is None or spread.shape != (filters,):
        raise given.misfit(bias)
    if slots.fed_scale is not None and scale is not None:
        if bias.is_floating:
            return spread
        fed = given.constant(slots.fed_scale, "scale of its input").tensor
        if math.prod(fed.shape) != 1:
            raise given.misfit(fed)
        factor = given.node.number("alpha", 1)
        both = mapped(lambda one, two: one.reshape(-1) * two.reshape(()) * factor, scale, fed)
        return scaled(spread, both, None)
    factor = given.node.number("beta", 1) if is_gemm else 1
    return spread if factor == 1 else mapped(lambda values: values * factor, spread)


def _added(steps: Sequence[Met], filters: int) -> tuple[Tensor, list[Met]] | None:
    """Sum up what steps behind a layer add to each filter, and tell which they are."""
    bias: Tensor | None = None
    taken: list[Met] = []
    for step in steps:
        each = step.each(filters) if step.deed in (Deed.ADDS, Deed.TAKES) else None
        if each is None:
            break
        if step.deed is Deed.TAKES:
            each = mapped(operator.neg, each)
        bias = each if bias is None else mapped(operator.add, bias, each)
        taken.append(step)
    return None if bias is None else (bias, taken)


def _bias_behind(given: Operands, value: Name, tail: tuple[int, ...]) -> Tensor | None:
    """Find the bias that onnxruntime has moved into the operator behind the layer."""
    node = given.graph.only_user(value)
    if node is None:
        return None
    if node.op == "com.microsoft.MultiHeadAttention":
        return _bias_of_attention(given, node, value, math.prod(tail))
    bias = given.constants.tensor(node.input(_BIASES[node.op])) if node.op in _BIASES else None
    return None if bias is None else per_filter(bias, tail)


def _bias_of_attention(given: Operands, node: Node, value: Name, filters: int) -> Tensor | None:
    """Cut the bias of a query, key or value from those of all three."""
    bias = given.constants.tensor(node.input(3))
    position = next((i for i in range(3) if node.input(i) == value), None)
    if bias is None or position is None:
        return None
    total = math.prod(bias.shape)
    # The query and the key are as wide as one another; the value has what remains.
    begin = (0, filters, total - filters)[position]
    if filters < 1 or total < begin + filters or begin < 0:
        return None
    return mapped(
        lambda values: values.reshape(-1)[begin : begin + filters], bias, shape=(filters,)
    )


def channels(weight: Tensor) -> tuple[int, ...]:
    """Return the last extents of a constant that has one element for each filter."""
    return (weight.shape[0], *(1,) * len(weight.shape[2:]))


def readable(node: Node) -> str:
    """Name of the module that a node stands for: layer1.0.conv1 of /layer1/layer1.0/conv1/Conv."""
    if module := module_of(node):
        return module
    name = node.name
    if node.op.startswith("com.microsoft.nchwc."):
        # The value that it gives is all that onnxruntime calls it by; a bias may keep its name.
        bias = "".join(node.input_texts[2:3])
        if bias.endswith(".bias"):
            return bias.removesuffix(".bias")
        name = _OF_VALUE.sub("", name)
    parts = [part for part in name.split("/") if part]
    if len(parts) > 1 and _OPERATOR_NAME.match(parts[-1]):
        parts.pop()
    path: list[str] = []
    for part in parts:
        # A part that repeats the one before it, as members of a Sequential do, stands for both.
        if path and part.startswith(f"{path[-1]}."):
            path.pop()
        path.append(part)
    return ".".join(path) or node.output.text
