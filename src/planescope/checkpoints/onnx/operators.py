"""Operators of ONNX and onnxruntime that have weights: where each has them, and how they lie.

https://onnx.ai/onnx/operators/
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from planescope.checkpoints.arrays.raw import MAX_DIMENSIONS
from planescope.checkpoints.onnx.constants import blocked
from planescope.checkpoints.onnx.constants.arithmetic import reshaped, transposed
from planescope.checkpoints.onnx.constants.values import Constant, Constants, turned
from planescope.checkpoints.onnx.graph import Graph
from planescope.checkpoints.onnx.nodes import Node
from planescope.checkpoints.onnx.quantised import in_blocks
from planescope.checkpoints.onnx.weights import (
    LeftOutError,
    Operands,
    Slots,
    Weights,
    finished,
    turned_pair,
)
from planescope.checkpoints.onnx.words import WORDS, gives_last
from planescope.hyperplanes.layer import Kind, Tensor, kind_of_convolution
from planescope.networks.state import exclusions
from planescope.networks.state.axes import filters_first

_QUANTISED = Slots(weight=3, scale=4, zero=5, fed_scale=1)
_NHWC = "com.ms.internal.nhwc"

_CONVOLUTIONS = {
    "Conv": Slots(bias=2),
    "com.microsoft.FusedConv": Slots(bias=2),
    "com.microsoft.NhwcConv": Slots(bias=2),
    "com.microsoft.NhwcFusedConv": Slots(bias=2),
    f"{_NHWC}.Conv": Slots(bias=2),
    "DeformConv": Slots(bias=3),
    "ConvInteger": Slots(zero=3),
    **{
        f"{domain}QLinearConv": _QUANTISED._replace(bias=8)
        for domain in ("", "com.microsoft.", f"{_NHWC}.")
    },
}
_TRANSPOSED = {
    "ConvTranspose": Slots(bias=2),
    f"{_NHWC}.ConvTranspose": Slots(bias=2),
    "com.microsoft.ConvTransposeWithDynamicPads": Slots(bias=3),
    f"{_NHWC}.QLinearConvTranspose": _QUANTISED._replace(bias=8),
}
# These add the bias themselves, perhaps times a factor.
_GEMMS = {
    "Gemm": Slots(bias=2, spreads=True),
    "com.microsoft.FusedGemm": Slots(bias=2, spreads=True),
    "com.microsoft.GemmFastGelu": Slots(bias=2, spreads=True),
    "com.microsoft.GemmFloat8": Slots(bias=2, scale=4, spreads=True),
    "com.microsoft.QGemm": _QUANTISED._replace(bias=6, spreads=True),
}
_PRODUCTS = {
    "MatMul": Slots(),
    "com.microsoft.FusedMatMul": Slots(),
    "com.microsoft.TransposeMatMul": Slots(),
    "com.microsoft.FusedMatMulActivation": Slots(),
    "com.microsoft.SparseToDenseMatMul": Slots(),
    "MatMulInteger": Slots(zero=3),
    "QLinearMatMul": _QUANTISED,
    "com.microsoft.MatMulIntegerToFloat": Slots(bias=6, scale=3, zero=5),
    "com.microsoft.DynamicQuantizeMatMul": Slots(bias=4, scale=2, zero=3),
}

_RECURRENT = ("AttnLSTM", "DynamicQuantizeLSTM", "GRU", "LSTM", "RNN")
_ATTENTIONS = (
    *("Attention", "DecoderAttention", "DecoderMaskedSelfAttention", "LongformerAttention"),
    *("PackedAttention", "QAttention", "QOrderedAttention", "QOrderedLongformerAttention"),
)
# Weights in a row, packed for one kernel.
_IN_A_ROW = ("com.microsoft.MatMulBnb4", "com.microsoft.MatMulFpQ4")
_MACHINES = ("ai.onnx.ml.SVMClassifier", "ai.onnx.ml.SVMRegressor")
# These look rows up in a table, turn positions round, or take masks: no constant of theirs is a
# weight.
_TABLES = (
    *("DecoderMaskedMultiHeadAttention", "EmbedLayerNormalization", "GatherBlockQuantized"),
    *("GatherPacked", "GemmaRotaryEmbedding", "GroupQueryAttention", "MRotaryEmbedding"),
    *("MultiHeadAttention", "PackedMultiHeadAttention", "PagedAttention", "RMSNormRotary"),
    *("QEmbedLayerNormalization", "RelativePositionBias", "RotaryEmbedding", "TorchEmbedding"),
    *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "SparseAttention"),
    *("BiasSoftmax", "GroupNorm", "SkipGroupNorm"),
)


def weights_of(graph: Graph, constants: Constants, node: Node) -> Weights | str | None:
    """Find the weights of a node.

    Returns
    -------
    Weights, str or None
        A sentence where the node has weights that cannot be had, None where it is no layer.

    Raises
    ------
    CheckpointError
        If operands cannot belong together.
    """
    reader = _READERS.get(node.op)
    if reader is None:
        return None
    is_convolution = node.op in (*_CONVOLUTIONS, *_TRANSPOSED, blocked.CONVOLUTION)
    if not is_convolution and graph.dynamic.isdisjoint(node.inputs):
        return None  # of constants alone: a weight in the making
    try:
        return reader(Operands(graph, constants, node))
    except LeftOutError as exc:
        return str(exc)


def left_out(graph: Graph, constants: Constants, node: Node) -> str | None:
    """Say why a node that looks like a layer is not measured; None where it does not look so."""
    name = node.op.removeprefix("com.microsoft.")
    if graph.dynamic.isdisjoint(node.inputs):
        return None
    if name in _RECURRENT:
        return exclusions.RECURRENT_LAYER
    if name in _ATTENTIONS:
        return "queries, keys and values of an attention: several linear maps in one"
    if node.op == "Gather":
        table = constants.tensor(node.input(0))
        is_table = table is not None and table.is_floating and _is_matrix(table)
        return exclusions.EMBEDDING if is_table and node.integer("axis", 0) == 0 else None
    if name in _MACHINES:
        return "a support vector machine: its vectors are examples, or act through a kernel"
    if node.op in _IN_A_ROW:
        return "its weights are packed in a few bits each; export the model before it is quantised"
    domain = node.op.rpartition(".")[0]
    if domain in ("", "ai.onnx.ml") or name in _TABLES or node.op in WORDS:
        return None
    for given in node.inputs:
        tensor = constants.tensor(given)
        if tensor is not None and _is_matrix(tensor):
            return (
                f"an operator {node.op} with weights of shape {tensor.shape}; "
                "how it lays them out is not known"
            )
    return None


def _is_matrix(tensor: Tensor) -> bool:
    return sum(extent > 1 for extent in tensor.shape) > 1


# Readers, one for each kind of operator.


def _convolution(given: Operands) -> Weights:
    node, slots = given.node, _CONVOLUTIONS[given.node.op]
    stored = given.constant(slots.weight, "weight")
    tensor, root, groups = stored.tensor, stored.root, node.integer("group", 1)
    if not 3 <= len(tensor.shape) < MAX_DIMENSIONS:
        raise given.misfit(tensor)
    if _channels_last(node, tensor):
        axes = (0, len(tensor.shape) - 1, *range(1, len(tensor.shape) - 1))
        tensor, root = transposed(tensor, axes), turned(root, axes)
    if groups < 1 or tensor.shape[0] % groups:
        raise given.misfit(tensor)
    kind = kind_of_convolution(tensor.shape[2:])
    if groups > 1 and exclusions.is_one_filter(tensor):
        raise LeftOutError(exclusions.ONE_FILTER)
    tail = tensor.shape[:1] if gives_last(node) else None
    return finished(given, slots, stored, kind, tensor, root, groups, tail)


def _channels_last(node: Node, weight: Tensor) -> bool:
    """Tell whether the channels stand behind the kernel, as onnxruntime's own form has them."""
    if "hwc" not in node.op.lower():
        return False
    kernel = node.integers("kernel_shape")
    first, last = weight.shape[2:] == kernel, weight.shape[1:-1] == kernel
    return last > first if first is not last else node.op == "com.microsoft.NhwcConv"


def _blocked_convolution(given: Operands) -> Weights:
    """Describe a convolution whose weights are in the order of one processor."""
    node = given.node
    stored = given.constant(1, "weight")
    given.optional(2, "bias")
    try:
        found = blocked.plain(given.graph, given.constants, node)
    except ValueError as exc:
        raise given.misfit(stored.tensor) from exc
    if found is None:
        raise LeftOutError(
            "its weights stand in the order of one processor, and nothing tells whether in blocks "
            "of 8 or 16; save the optimised model at the level ORT_ENABLE_EXTENDED"
        )
    weight, bias, groups = found
    kind = kind_of_convolution(weight.shape[2:])
    return finished(given, Slots(), stored, kind, weight, stored.root, groups, bias=bias)


def _transposed_convolution(given: Operands) -> Weights:
    node, slots = given.node, _TRANSPOSED[given.node.op]
    stored = given.constant(slots.weight, "weight")
    tensor, groups = stored.tensor, node.integer("group", 1)
    possible = 3 <= len(tensor.shape) < MAX_DIMENSIONS and groups >= 1
    if not possible or tensor.shape[0] % groups:
        raise given.misfit(tensor)
    weight, root = filters_first(tensor, groups), (Kind.TRANSPOSED, groups, stored.root)
    return finished(given, slots, stored, Kind.TRANSPOSED, weight, root, groups)


def _gemm(given: Operands) -> Weights | None:
    node, slots = given.node, _GEMMS[given.node.op]
    if given.graph.dynamic.issuperset((node.input(0), node.input(slots.weight))):
        return None  # of two values that the network computes
    if given.constants.of(node.input(0)) is not None or node.integer("transA", 0):
        raise LeftOutError("its weights stand before its input, or meet it turned round")
    stored = given.constant(slots.weight, "weight")
    if len(stored.tensor.shape) != 2:
        raise given.misfit(stored.tensor)
    weight, root = turned_pair(stored, is_turned=node.integer("transB", 0) == 0)
    return finished(given, slots, stored, Kind.LINEAR, weight, root)


def _matrix_product(given: Operands) -> Weights | None:
    node, slots = given.node, _PRODUCTS[given.node.op]
    name = node.input(slots.weight)
    before = given.constants.of(node.input(0)) if slots.weight == 1 else None
    if before is not None:
        return _product_from_left(given, before)
    if name is None or name in given.graph.dynamic:
        if any(given.is_stored(each) for each in node.inputs):
            raise LeftOutError("its weight is put into a shape that depends on the input")
        return None  # of two values that the network computes, as in attention
    stored = given.constant(slots.weight, "weight")
    shape = stored.tensor.shape
    if len(shape) == 1:
        stored = stored._replace(tensor=reshaped(stored.tensor, (*shape, 1)))
    elif len(shape) > 2 and math.prod(shape[:-2]) == 1:
        stored = stored._replace(tensor=reshaped(stored.tensor, shape[-2:]))
    if len(stored.tensor.shape) != 2 or node.integer("transBatchB", 0):
        raise LeftOutError(f"a stack of matrices of shape {shape}, each for inputs of its own")
    weight, root = turned_pair(stored, is_turned=node.integer("transB", 0) == 0)
    return finished(given, slots, stored, Kind.LINEAR, weight, root)


def _product_from_left(given: Operands, stored: Constant) -> Weights:
    """Describe the product of a weight with what stands behind it: its rows are the filters."""
    shape = stored.tensor.shape
    if len(shape) > 2 and math.prod(shape[:-2]) == 1:
        stored = stored._replace(tensor=reshaped(stored.tensor, shape[-2:]))
    if len(stored.tensor.shape) != 2:
        raise LeftOutError(f"a weight of shape {shape} before its input")
    if stored.tensor.shape[1] == 1:
        raise LeftOutError("each of its weights meets one number alone: it cuts no space")
    weight, root = turned_pair(stored, is_turned=given.node.integer("transA", 0) == 1)
    # The filters lie along the last axis but one of what comes out.
    return finished(given, Slots(), stored, Kind.LINEAR, weight, root, tail=(weight.shape[0], 1))


def _einsum(given: Operands) -> Weights | None:
    """Describe an Einstein sum of one value and one matrix, or what can be put as one."""
    node = given.node
    known = [given.constants.of(name) for name in node.inputs]
    dynamic = [name in given.graph.dynamic for name in node.inputs]
    if all(dynamic):
        return None
    if len(known) != 2:
        if any(each is not None and _is_matrix(each.tensor) for each in known):
            raise LeftOutError(f"a sum {node.text('equation')!r} that is no one linear map")
        return None
    at = dynamic.index(False)
    stored = known[at] or given.constant(at, "weight")
    terms, arrow, out = node.text("equation").replace(" ", "").partition("->")
    term = terms.split(",")[at] if terms.count(",") == 1 else ""
    fed = terms.split(",")[1 - at] if term else ""
    summed = [axis for axis in term if axis not in out]
    filters = [axis for axis in term if axis in out and axis not in fed]
    plain = len(set(term)) == len(term) == len(stored.tensor.shape) and "." not in term
    if not (arrow and plain and summed and filters) or len(summed) + len(filters) != len(term):
        raise LeftOutError(f"a sum {node.text('equation')!r} that is no one linear map")
    axes = [term.index(axis) for axis in (*filters, *summed)]
    turned_tensor = transposed(stored.tensor, axes)
    count = math.prod(turned_tensor.shape[: len(filters)])
    weight = reshaped(turned_tensor, (count, math.prod(turned_tensor.shape[len(filters) :])))
    root = turned(stored.root, axes)
    is_last = out.endswith("".join(filters))
    tail = turned_tensor.shape[: len(filters)] if is_last else (-1,)
    return finished(given, Slots(), stored, Kind.LINEAR, weight, root, tail=tail)


def _blocks(given: Operands) -> Weights:
    """Describe a product with a matrix whose numbers are packed to a few bits."""
    node = given.node
    stored, scales = given.constant(1, "weight"), given.constant(2, "scale").tensor
    if node.input(4) is not None or node.integer("weight_prepacked", 0):
        raise LeftOutError("its weights are packed in the order of one processor")
    try:
        weight = in_blocks(node, stored.tensor, scales, given.optional(3, "zero point"))
    except ValueError as exc:
        raise given.misfit(stored.tensor) from exc
    return finished(given, Slots(bias=5), stored, Kind.LINEAR, weight, stored.root)


def _attribute_weights(given: Operands) -> Weights:
    """Describe a linear model of ai.onnx.ml, whose weights are attributes."""
    node = given.node
    values, bias = node.numbers("coefficients"), node.numbers("intercepts")
    rows = len(bias) or node.integer("targets", 1)
    if node.op.endswith("Classifier") and not bias:
        rows = len(node.texts("classlabels_strings") or node.integers("classlabels_ints")) or 1
    if not values or len(values) % rows:
        raise LeftOutError(f"its {len(values)} weights cannot be divided among {rows} outputs")
    shape = (rows, len(values) // rows)
    return Weights(
        kind=Kind.LINEAR,
        weight=_held(values, shape),
        root=node,
        names=(),
        value=node.output,
        bias=_held(bias, (rows,)) if bias else None,
    )


def _held(values: Sequence[float], shape: tuple[int, ...]) -> Tensor:
    return Tensor(shape, "float32", lambda: np.array(values, np.float32).reshape(shape))


_Reader = Callable[[Operands], Weights | None]

_READERS: dict[str, _Reader] = {
    **dict.fromkeys(_CONVOLUTIONS, _convolution),
    **dict.fromkeys(_TRANSPOSED, _transposed_convolution),
    blocked.CONVOLUTION: _blocked_convolution,
    **dict.fromkeys(_GEMMS, _gemm),
    **dict.fromkeys(_PRODUCTS, _matrix_product),
    "Einsum": _einsum,
    "com.microsoft.MatMulNBits": _blocks,
    "ai.onnx.ml.LinearClassifier": _attribute_weights,
    "ai.onnx.ml.LinearRegressor": _attribute_weights,
}
