"""ONNX models: a graph that tells each layer's place, its norm and what it reads.

The file is walked in place and no weight is read (the onnx package would hold all of it). Left out
are layers whose weights are computed, and those in functions that a model brings along.
"""

from __future__ import annotations

import math
import operator
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from planescope.checkpoints.arrays.raw import MAX_DIMENSIONS
from planescope.checkpoints.onnx.graph import Graph, Nature, Value, downsamples
from planescope.checkpoints.onnx.nodes import Node, mapped, reshaped, transposed
from planescope.checkpoints.protobuf import BYTES, VARINT, Span, WireFile
from planescope.files.errors import CheckpointError
from planescope.hyperplanes.layer import Input, Kind, Layer, Norm, Tensor, kind_of_convolution
from planescope.networks.layers import filters_first

if TYPE_CHECKING:
    from pathlib import Path

    from planescope.checkpoints.probe import Probe

NAME = "onnx"

# Fields of a ModelProto, and their wire types.
_IR_VERSION, _GRAPH = 1, 7
_MODEL = {1: VARINT, 5: VARINT} | dict.fromkeys((2, 3, 4, 6, 7, 8, 14, 20, 25, 26), BYTES)

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

# As frameworks name the weights of a module, and what quantisers append to that.
_WEIGHT_NAME = re.compile(r"(.+)\.weight(_quantized|_DequantizeLinear_Output)?")


def recognises(probe: Probe) -> bool:
    """Whether the file is one message with the fields of an ONNX model, a graph among them.

    A protocol buffer has no magic. One that ends early is taken for a model where it begins as all
    writers begin them, so that it can be called truncated rather than unknown.
    """
    numbers: list[int] = []
    with WireFile(probe.path) as wire:
        try:
            for part in wire.fields(wire.span):
                if _MODEL.get(part.number, part.wire if numbers else None) != part.wire:
                    return False
                numbers.append(part.number)
        except CheckpointError:
            return numbers[:1] == [_IR_VERSION]
    return _GRAPH in numbers


def read(path: Path) -> list[Layer]:
    """Describe the layers of a model, in the order of its graph.

    Raises
    ------
    CheckpointError
        If the file is damaged, or the data of a layer are not where it says.
    """
    with WireFile(path) as wire:
        spans = [part.span for part in wire.fields(wire.span) if part.number == _GRAPH]
        if not spans:
            raise CheckpointError(f"{path}: holds no graph; is it an ONNX model?")
        layers: dict[Span, Layer] = {}
        for graph, node in Graph(wire, spans).walk():
            if node.op in _LAYERS and (found := _layer(graph, node)):
                layers.setdefault(*found)  # used twice, it is still one arrangement
    return list(_uniquely_named(layers.values()))


def _layer(graph: Graph, node: Node) -> tuple[Span, Layer] | None:
    """Describe the layer that a node is; None where its weights or bias are computed."""
    given = [graph.constant(name) if name else None for name in node.inputs[1:3]]
    stored = given[0] if given else None
    if stored is None or not stored.tensor.is_floating or 0 in stored.tensor.shape:
        return None
    weight = _oriented(node, stored.tensor)
    if weight is None or (given[1:] == [None] and node.inputs[2]):
        return None
    value = node.outputs[0]
    bias = _bias(node, given[1].tensor, weight) if given[1:] and given[1] else None
    if bias is None and (added := _operand(graph, value, "Add", weight)):
        bias, value = added
    norm, value = _norm(graph, value, weight)
    source = graph.values.get(node.inputs[0], Value(Nature.UNKNOWN, 0))
    known = source.nature is not Nature.UNKNOWN
    return stored.root, Layer(
        name=_module(stored.names) or _readable(node),
        kind=_kind(node, weight),
        weight=weight,
        bias=bias,
        groups=node.integer("group", 1),
        stage=source.stage + downsamples(node, {source.nature}) if known else None,
        input=Input.OTHER if source.nature is Nature.GATE else Input(source.nature),
        norm=norm,
        relu_follows=graph.relu_follows(value),
    )


def _norm(graph: Graph, value: str, weight: Tensor) -> tuple[Norm | None, str]:
    """The batch norm that alone reads a value, and what comes out behind it."""
    node = graph.only_user(value)
    if node is None or node.op != "BatchNormalization":
        return None, value
    parts = [graph.constant(name) for name in node.inputs[1:5]]
    tensors = [part.tensor for part in parts if part]
    # The norm of a linear layer over sequences may stand on another axis.
    if [tensor.shape for tensor in tensors] != [weight.shape[:1]] * 4:
        return None, value
    gamma, beta, mean, variance = tensors
    value = node.outputs[0]
    # Caffe has the affine part as a layer of its own.
    if scaled := _operand(graph, value, "Mul", weight):
        factor, value = scaled
        gamma, beta = (mapped(operator.mul, part, factor) for part in (gamma, beta))
    if shifted := _operand(graph, value, "Add", weight):
        shift, value = shifted
        beta = mapped(operator.add, beta, shift)
    norm = Norm(
        name=(parts[0] and _module(parts[0].names)) or _readable(node),
        gamma=gamma,
        beta=beta,
        mean=mean,
        variance=variance,
        eps=node.number("epsilon", 1e-5),
    )
    return norm, value


def _operand(graph: Graph, value: str, op: str, weight: Tensor) -> tuple[Tensor, str] | None:
    """The constant, one for each filter, that `op` joins to a value, and what comes out."""
    node = graph.only_user(value)
    if node is None or node.op != op:
        return None
    for found in filter(None, map(graph.constant, filter(None, node.inputs))):
        if operand := _per_filter(found.tensor, weight):
            return operand, node.outputs[0]
    return None


def _kind(node: Node, weight: Tensor) -> Kind:
    if node.op == "Conv":
        return kind_of_convolution(weight.shape[2:])
    return Kind.TRANSPOSED if node.op == "ConvTranspose" else Kind.LINEAR


def _oriented(node: Node, weight: Tensor) -> Tensor | None:
    """Weights of shape (filters, channels / groups, *kernel); None for a stack of matrices."""
    shape, groups = weight.shape, node.integer("group", 1)
    if node.op == "MatMul":  # (in, out)
        return transposed(weight, (1, 0)) if len(shape) == 2 else None
    if node.op == "Gemm":
        if len(shape) != 2:
            raise _misfit(node, weight)
        alpha = node.number("alpha", 1)
        weight = weight if node.integer("transB", 0) else transposed(weight, (1, 0))
        return weight if alpha == 1 else mapped(lambda values: values * alpha, weight)
    if not 3 <= len(shape) < MAX_DIMENSIONS or groups < 1 or shape[0] % groups:
        raise _misfit(node, weight)
    return weight if node.op == "Conv" else filters_first(weight, groups)


def _bias(node: Node, bias: Tensor, weight: Tensor) -> Tensor:
    """Bias of shape (filters,)."""
    filters = weight.shape[0]
    if node.op != "Gemm":
        if bias.shape != (filters,):
            raise _misfit(node, bias)
        return bias
    beta = node.number("beta", 1)
    if math.prod(bias.shape) == 1:
        return mapped(lambda one: one.reshape(1).repeat(filters) * beta, bias, shape=(filters,))
    spread = _per_filter(bias, weight)
    if spread is None:
        raise _misfit(node, bias)
    return spread if beta == 1 else mapped(lambda values: values * beta, spread)


def _per_filter(tensor: Tensor, weight: Tensor) -> Tensor | None:
    """The tensor as shape (filters,), where that is how it would be spread over the outputs."""
    filters = weight.shape[:1]
    channels_first = filters + (1,) * len(weight.shape[2:])
    if tensor.shape[-len(channels_first) :] != channels_first:
        return None
    return reshaped(tensor, filters) if math.prod(tensor.shape) == filters[0] else None


def _misfit(node: Node, tensor: Tensor) -> CheckpointError:
    return CheckpointError(
        f"{node.wire.path}: {node.op} {_readable(node)!r} cannot have an operand of shape "
        f"{tensor.shape}; the file is damaged, get it again"
    )


def _module(names: Iterable[str]) -> str | None:
    """Name of the module that weights belong to, where one of their names tells."""
    matches = (_WEIGHT_NAME.fullmatch(name) for name in names)
    return next((match[1] for match in matches if match), None)


def _readable(node: Node) -> str:
    """Name of the module that a node stands for: layer1.0.conv1 of /layer1/layer1.0/conv1/Conv."""
    parts = [part for part in node.name.split("/") if part]
    if len(parts) > 1 and parts[-1].startswith(node.op):
        parts.pop()
    path: list[str] = []
    for part in parts:
        # A part that repeats the one before it, as members of a Sequential do, stands for both.
        if path and part.startswith(f"{path[-1]}."):
            path.pop()
        path.append(part)
    return ".".join(path) or node.outputs[0]


def _uniquely_named(layers: Iterable[Layer]) -> Iterator[Layer]:
    taken: Counter[str] = Counter()
    for layer in layers:
        name = layer.name
        while taken[name]:
            taken[layer.name] += 1
            name = f"{layer.name}_{taken[layer.name]}"
        taken[name] = 1
        yield layer if name == layer.name else replace(layer, name=name)
