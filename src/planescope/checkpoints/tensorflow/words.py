"""TensorFlow's words for what operations are to a network."""

from __future__ import annotations

from typing import NamedTuple

from planescope.checkpoints.tensorflow.folding import SILENT
from planescope.checkpoints.tensorflow.kernels import Form
from planescope.networks.graph.places import Role


class Use(NamedTuple):
    """The inputs of a layer's operation: its kernel, what it acts on, and the kernel's layout."""

    kernel: int
    data: int
    form: Form


LAYERS = {
    "Conv2D": Use(1, 0, Form.CONV),
    "_FusedConv2D": Use(1, 0, Form.CONV),
    "Conv3D": Use(1, 0, Form.CONV),
    "DepthwiseConv2dNative": Use(1, 0, Form.DEPTHWISE),
    "_FusedDepthwiseConv2dNative": Use(1, 0, Form.DEPTHWISE),
    "FusedDepthwiseConv2dNative": Use(1, 0, Form.DEPTHWISE),
    "Conv2DBackpropInput": Use(1, 2, Form.TRANSPOSED),
    "Conv3DBackpropInputV2": Use(1, 2, Form.TRANSPOSED),
    "MatMul": Use(1, 0, Form.DENSE),
    "_FusedMatMul": Use(1, 0, Form.DENSE),
    "BatchMatMul": Use(1, 0, Form.DENSE),
    "BatchMatMulV2": Use(1, 0, Form.DENSE),
    "BatchMatMulV3": Use(1, 0, Form.DENSE),
}
PLAIN = tuple(op for op in LAYERS if not op.startswith(("_Fused", "Fused")))
TURNED = ("transpose_b", "adj_y")
# What has weights and is not measured.
LEFT_OUT = {
    **dict.fromkeys(
        ("BlockLSTM", "BlockLSTMV2", "LSTMBlockCell", "GRUBlockCell", "CudnnRNN", "CudnnRNNV2",
         "CudnnRNNV3"),
        "a recurrent layer: its weights act on its own output",
    ),
    **dict.fromkeys(
        ("QuantizedConv2D", "QuantizedConv2DWithBias", "QuantizedConv2DWithBiasAndRelu",
         "QuantizedConv2DWithBiasAndReluAndRequantize", "QuantizedDepthwiseConv2D",
         "QuantizedMatMul", "QuantizedMatMulWithBias", "UniformQuantizedConvolution",
         "UniformQuantizedDot"),
        "its weights are stored as integers and this file does not tell their scale with them; "
        "measure the network before it was quantised",
    ),
    "Einsum": "an Einsum with weights, whose axes only its equation tells",
    "Dilation2D": "a morphological dilation: it takes maxima, and cuts by no hyperplane",
}  # fmt: skip
EMBEDDINGS = ("Gather", "GatherV2", "ResourceGather")
NORMS = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")
ROLES = {
    op: role
    for role, ops in {
        Role.RELU: ("Relu", "Relu6"),
        Role.GATE: (
            "Sigmoid", "Softmax", "Exp", "Softplus", "Square", "Abs", "Sqrt", "Rsqrt",
            "SquaredDifference", "HardSigmoid", "ArgMax", "OneHot", "Greater", "GreaterEqual",
            "Less", "LessEqual", "Equal", "NotEqual", "LogicalNot", "LogicalAnd", "LogicalOr",
        ),
        # SpaceToBatchND and its inverse stand about dilated convolutions.
        Role.IDENTITY: (
            *SILENT, "BatchToSpaceND", "Cast", "ExpandDims", "FakeQuantWithMinMaxArgs",
            "FakeQuantWithMinMaxVars", "FakeQuantWithMinMaxVarsPerChannel", "Exit", "Reshape",
            "SpaceToBatchND", "Squeeze", "Switch",
        ),
        Role.VIEW: (
            "AvgPool", "AvgPool3D", "BroadcastTo", "CropAndResize", "DepthToSpace", "Gather",
            "GatherNd", "GatherV2", "LRN", "Max", "MaxPool", "MaxPool3D", "MaxPoolV2", "Mean",
            "Min", "MirrorPad", "Pad", "ResizeArea", "ResizeBilinear",
            "ResizeNearestNeighbor",
            "ReverseV2", "Slice", "SpaceToDepth", "Split", "SplitV", "StridedSlice", "Sum", "Tile",
            "TopKV2", "Transpose", "Unpack",
        ),
        Role.JOIN: (
            "Add", "AddN", "AddV2", "BiasAdd", "Concat", "ConcatV2", "Merge", "Pack",
            "Select", "SelectV2",
        ),
        Role.PRODUCT: ("Div", "DivNoNan", "Mul", "MulNoNan", "RealDiv"),
        Role.MAXIMUM: ("Maximum",),
        Role.MINIMUM: ("Minimum",),
        Role.SHIFT: ("Neg", "ResizeBicubic", "Sub"),
        # Whoever asks for these does not read the values.
        Role.CONSTANT: ("Rank", "Shape", "ShapeN", "Size"),
    }.items()
    for op in ops
}  # fmt: skip
# What is no value of theirs among their inputs.
NO_VALUES = {"Concat": slice(1, None), "ConcatV2": slice(-1), "Split": slice(1, None),
              "Select": slice(1, None), "SelectV2": slice(1, None)}  # fmt: skip
STRIDED = (
    "Conv2D", "_FusedConv2D", "Conv3D", "DepthwiseConv2dNative", "_FusedDepthwiseConv2dNative",
    "FusedDepthwiseConv2dNative", "MaxPool", "AvgPool", "MaxPool3D", "AvgPool3D", "MaxPoolV2",
)  # fmt: skip
INPUTS = ("Placeholder", "PlaceholderV2", "PlaceholderWithDefault", "_Arg", "IteratorGetNext")
NEXT = ("NextIteration", "RefNextIteration")
# What hands a value to a loop.
LOOPS = ("Enter", "RefEnter", "StatelessWhile", "While")
BOOL = 10
# As many channels come out as went in.
SAME_CHANNELS = frozenset((
    *SILENT, "Add", "AddV2", "AvgPool", "AvgPool3D", "BatchToSpaceND", "BiasAdd", "Cast", "Div",
    "ExpandDims", "Squeeze",
    "Elu", "FakeQuantWithMinMaxVars", "FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3",
    "LeakyRelu", "MaxPool", "MaxPool3D", "Maximum", "Minimum", "MirrorPad", "Mul", "Pad", "PadV2",
    "Prelu", "RealDiv", "Relu", "Relu6", "ResizeBilinear", "ResizeNearestNeighbor", "Selu",
    "Sigmoid", "Softplus", "SpaceToBatchND", "Sub", "Tanh",
))  # fmt: skip
# What may stand between a layer and its bias.
BEFORE_BIAS = frozenset((*SILENT, "BatchToSpaceND", "Cast", "Reshape", "Squeeze"))
FUSED_ROLES = {"Relu": Role.RELU, "Relu6": Role.RELU, "Sigmoid": Role.GATE}
