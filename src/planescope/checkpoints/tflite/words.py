"""TensorFlow Lite's words for what operators are to a network."""

from __future__ import annotations

from typing import NamedTuple

from planescope.hyperplanes.layer import Kind
from planescope.networks.graph.places import Role


class Use(NamedTuple):
    """The inputs of an operator, data and kernel, and how to bring the filters to the front."""

    data: int
    kernel: int
    rank: int
    axes: tuple[int, ...]  # those of the kernel, in our order
    kind: Kind | None  # None for a convolution, of which the kernel tells it


LAYERS = {
    "CONV_2D": Use(0, 1, 4, (0, 3, 1, 2), None),
    "DEPTHWISE_CONV_2D": Use(0, 1, 4, (3, 0, 1, 2), None),
    "FULLY_CONNECTED": Use(0, 1, 2, (0, 1), Kind.LINEAR),
    "TRANSPOSE_CONV": Use(2, 1, 4, (0, 3, 1, 2), Kind.TRANSPOSED),
    "CONV_3D": Use(0, 1, 5, (4, 3, 0, 1, 2), None),
    "CONV_3D_TRANSPOSE": Use(2, 1, 5, (3, 4, 0, 1, 2), Kind.TRANSPOSED),
    "BATCH_MATMUL": Use(0, 1, 2, (1, 0), Kind.LINEAR),
}
BIAS = {"BATCH_MATMUL": None, "TRANSPOSE_CONV": 3, "CONV_3D_TRANSPOSE": 3}
_RECURRENT = "a recurrent layer: its weights act on its own output"
LEFT_OUT = {
    **dict.fromkeys(
        ("LSTM", "RNN", "UNIDIRECTIONAL_SEQUENCE_LSTM", "UNIDIRECTIONAL_SEQUENCE_RNN",
         "BIDIRECTIONAL_SEQUENCE_LSTM", "BIDIRECTIONAL_SEQUENCE_RNN"),
        _RECURRENT,
    ),
    "SVDF": "a filter over time, of rank 1: two weights in one",
    "EMBEDDING_LOOKUP": "an embedding: its rows are looked up, they cut nothing",
    "STABLEHLO_CONVOLUTION": "an operator of StableHLO, which is not followed",
    "STABLEHLO_DOT_GENERAL": "an operator of StableHLO, which is not followed",
}  # fmt: skip
ROLES = {
    op: role
    for role, ops in {
        Role.RELU: ("RELU", "RELU6", "RELU_0_TO_1"),
        Role.GATE: (
            "LOGISTIC", "SOFTMAX", "EXP", "SQUARE", "SQRT", "RSQRT", "ABS", "SQUARED_DIFFERENCE",
            "ARG_MAX", "ARG_MIN", "ONE_HOT", "EQUAL", "NOT_EQUAL", "GREATER", "GREATER_EQUAL",
            "LESS", "LESS_EQUAL", "LOGICAL_AND", "LOGICAL_OR", "LOGICAL_NOT",
        ),
        Role.IDENTITY: (
            "BATCH_TO_SPACE_ND", "CAST", "DEQUANTIZE", "EXPAND_DIMS", "FAKE_QUANT", "QUANTIZE",
            "SPACE_TO_BATCH_ND", "SQUEEZE",
        ),
        Role.VIEW: (
            "AVERAGE_POOL_2D", "BROADCAST_TO", "DEPTH_TO_SPACE", "DYNAMIC_UPDATE_SLICE", "GATHER",
            "GATHER_ND", "L2_POOL_2D", "LOCAL_RESPONSE_NORMALIZATION", "MAX_POOL_2D", "MEAN",
            "MIRROR_PAD", "PAD", "REDUCE_MAX", "REDUCE_MIN", "RESHAPE", "RESIZE_BILINEAR",
            "RESIZE_NEAREST_NEIGHBOR", "REVERSE_V2", "SLICE", "SPACE_TO_DEPTH", "SPLIT_V",
            "STRIDED_SLICE", "SUM", "TILE", "TOPK_V2", "TRANSPOSE", "UNPACK",
        ),
        Role.JOIN: ("ADD", "ADD_N", "CONCATENATION", "PACK"),
        Role.PRODUCT: ("DIV", "MUL"),
        Role.MAXIMUM: ("MAXIMUM",),
        Role.MINIMUM: ("MINIMUM",),
        Role.SHIFT: ("NEG", "SUB"),
        Role.CONSTANT: ("SHAPE", "RANK"),
    }.items()
    for op in ops
}  # fmt: skip
NO_VALUES = {"SPLIT": slice(1, None), "SELECT": slice(1, None), "SELECT_V2": slice(1, None)}
SPLITS = {"SPLIT": Role.VIEW, "SELECT": Role.JOIN, "SELECT_V2": Role.JOIN}
# ActivationFunctionType.
NONE, RELU, RELU6 = 0, 1, 3
