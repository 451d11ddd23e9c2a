"""Operators of ONNX, and of onnxruntime's own, in the words of `networks.graph.places`."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from planescope.checkpoints.onnx.constants.values import Constants
from planescope.checkpoints.onnx.graph import SILENT, Graph
from planescope.checkpoints.onnx.nodes import Name, Node
from planescope.checkpoints.onnx.quantised import INTEGER_RANGES
from planescope.hyperplanes.layer import Tensor
from planescope.networks.graph import views
from planescope.networks.graph.places import Node as Step
from planescope.networks.graph.places import Role, clamped, is_even

_WORDS = {
    # Of what is rounded the norm behind it is the norm behind the layer.
    Role.IDENTITY: (
        *SILENT,
        *("DequantizeLinear", "QuantizeLinear"),
        *("com.microsoft.DequantizeLinear", "com.microsoft.QuantizeLinear"),
    ),
    Role.NORM: ("BatchNormalization", "com.ms.internal.nhwc.BatchNormalization"),
    Role.RELU: ("Relu",),
    Role.GATE: (
        *("Abs", "Exp", "HardSigmoid", "Sigmoid", "Softmax", "Softplus", "Sqrt"),
        *("ReduceL1", "ReduceL2", "ReduceSumSquare"),
        *("And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or"),
        *("com.microsoft.QLinearSigmoid", "com.microsoft.QLinearSoftmax"),
    ),
    Role.VIEW: (
        *("AveragePool", "CenterCropPad", "Compress", "CumSum", "DepthToSpace"),
        *("DynamicQuantizeLinear", "Expand", "Flatten", "Gather"),
        *("GatherElements", "GatherND", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool"),
        *("LRN", "LpPool", "MaxPool", "MaxRoiPool", "MaxUnpool", "Pad"),
        *("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Reshape", "Resize"),
        *("ReverseSequence", "RoiAlign", "SequenceAt", "Slice", "SpaceToDepth", "Split"),
        *("SplitToSequence", "Squeeze", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze"),
        *("Upsample", "GridSample"),
        *(f"com.microsoft.{word}" for word in (
            "CropAndResize", "ExpandDims", "GatherND", "GridSample",
            "MaxpoolWithMask", "NhwcMaxPool", "Pad", "QLinearAveragePool",
            "QLinearGlobalAveragePool", "QLinearReduceMean", "RemovePadding",
            "RestorePadding", "Trilu", "UnfoldTensor",
        )),
        *(f"com.microsoft.nchwc.{word}" for word in (
            "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "ReorderInput",
            "ReorderOutput", "Upsample",
        )),
        *(f"com.ms.internal.nhwc.{word}" for word in (
            "AveragePool", "DepthToSpace", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool",
            "GridSample", "LRN", "LpPool", "MaxPool", "MaxUnpool", "QLinearAveragePool", "Resize",
            "SpaceToDepth",
        )),
    ),
    Role.JOIN: (
        *("Add", "Concat", "ConcatFromSequence", "If", "Loop", "Mean", "Scan"),
        *("ScatterElements", "ScatterND", "SequenceConstruct", "Sum"),
        *("com.microsoft.BiasAdd", "com.microsoft.QLinearAdd", "com.microsoft.QLinearConcat"),
        "com.microsoft.BiasDropout",
    ),
    Role.PRODUCT: ("Div", "Mul", "com.microsoft.QLinearMul"),
    Role.MAXIMUM: ("Max",),
    # A choice between an image and a constant cuts the image, as the lesser of the two does.
    Role.MINIMUM: ("Min", "Where", "com.microsoft.QLinearWhere"),
    Role.SHIFT: ("Neg", "Sub"),
    # What they give is the same for every input of that shape.
    Role.CONSTANT: ("Shape", "Size"),
}  # fmt: skip
WORDS = {word: role for role, words in _WORDS.items() for word in words}

# Which inputs hold values, where the others are scales, zero points, places or conditions.
_OPERANDS: dict[str, slice] = {
    "CastLike": slice(0, 1),
    "Where": slice(1, None),
    "ScatterElements": slice(0, None, 2),
    "ScatterND": slice(0, None, 2),
    "com.microsoft.QLinearAdd": slice(0, 4, 3),
    "com.microsoft.QLinearMul": slice(0, 4, 3),
    "com.microsoft.QLinearConcat": slice(2, None, 3),
    "com.microsoft.QLinearWhere": slice(1, 5, 3),
}

# Where a quantised operator has the zero point of what it gives.
_ZERO_POINTS = {
    **dict.fromkeys(("QuantizeLinear", "com.microsoft.QuantizeLinear"), 2),
    **dict.fromkeys(("com.microsoft.QLinearAdd", "com.microsoft.QLinearMul"), 7),
    **{f"{domain}QLinearConv": 7 for domain in ("", "com.microsoft.", "com.ms.internal.nhwc.")},
    "com.ms.internal.nhwc.QLinearConvTranspose": 7,
    "QLinearMatMul": 7,
    "com.microsoft.QGemm": 8,
    "com.microsoft.QLinearConcat": 1,
    "com.microsoft.QLinearWhere": 8,
    "com.microsoft.QLinearLeakyRelu": 4,
    "com.microsoft.QLinearAveragePool": 4,
    "com.microsoft.QLinearGlobalAveragePool": 4,
    "com.microsoft.QLinearReduceMean": 4,
}

_MOST_EXTENTS = 8  # of a shape
_MOST_AXES = 16

# What a clip without a bound has in its place.
_LARGEST = 3.4e38

_STRIDED = (
    "AveragePool", "Conv", "ConvInteger", "DeformConv", "FusedConv", "LpPool", "MaxPool",
    "MaxpoolWithMask", "NhwcConv", "NhwcFusedConv", "NhwcMaxPool", "QLinearAveragePool",
    "QLinearConv",
)  # fmt: skip

# Activations that onnxruntime puts into the layer before them.
_FUSED = {
    "relu": Role.RELU,
    "sigmoid": Role.GATE,
    "hardsigmoid": Role.GATE,
    "softplus": Role.GATE,
    "": Role.IDENTITY,
}


def steps(
    graph: Graph, constants: Constants, layers: Mapping[Node, str], parts: Collection[Node]
) -> tuple[list[Step], dict[int, Node]]:
    """Translate a graph into the steps of `places.follow`.

    Parameters
    ----------
    layers : mapping of Node to str
        The layers among the nodes, by name.
    parts : collection of Node
        Nodes that belong to the layer before them, which their scale or bias is.

    Returns
    -------
    steps : list of Step
    norms : dict of int to Node
        The batch norms, by the numbers of their steps.
    """
    made = _Steps(graph, constants, layers, parts)
    for name, is_image in graph.fed.items():
        made.give(name, Step(role=Role.IMAGE if is_image else Role.UNKNOWN))
    for node in graph.nodes:
        made.add(node)
    read = (made.numbers[name] for name in graph.outputs if name in made.numbers)
    made.steps.append(Step(role=Role.OTHER, reads=tuple(read)))
    return made.steps, made.norms


class _Steps:
    def __init__(
        self,
        graph: Graph,
        constants: Constants,
        layers: Mapping[Node, str],
        parts: Collection[Node],
    ) -> None:
        self.steps: list[Step] = []
        self.norms: dict[int, Node] = {}
        self.numbers: dict[Name, int] = {}  # of all that depends on the network's input
        self._constants, self._layers, self._parts = constants, layers, parts
        self._dynamic, self._makers = graph.dynamic, graph.makers
        self._known: dict[Name, int] = {}

    def give(self, name: Name, step: Step) -> None:
        self.numbers[name] = self._put(step)

    def add(self, node: Node) -> None:
        """Add what a node does, where it depends on the input at all."""
        names = [name for name in node.inputs[_OPERANDS.get(node.op, slice(None))] if name]
        if node not in self._layers and self._dynamic.isdisjoint(names):
            return
        reads = tuple(self._number(name) for name in names)
        if WORDS.get(node.op) is Role.CONSTANT:
            last = self._put(Step(role=Role.CONSTANT, is_non_negative=lambda: True))
        elif node in self._layers:
            last = self._layer(node, reads)
        else:
            role = Role.IDENTITY if node in self._parts else self._role(node)
            if node.op == "Clip":
                role, reads = self._clip(node, reads)
            elif node.op == "Pow" and is_even(self._constants.scalar(node.input(1))):
                role, reads = Role.PRODUCT, reads[:1] * 2
            if node in self._parts and names[0] not in self.numbers:
                reads = reads[::-1]
            name = repr(node.inputs[1:5]) if role is Role.NORM else ""
            view = self._view(node) if role is Role.VIEW else None
            step = Step(role=role, reads=reads, name=name, downsamples=downsamples(node), view=view)
            last = self._put(step)
            if role is Role.NORM:
                self.norms[last] = node
            elif role is Role.OTHER:  # a layer that is left out, perhaps
                last = self._within(node, last)
        if saturates(self._constants, node):
            last = self._put(Step(role=Role.SATURATION, reads=(last,)))
        self.numbers.update({name: last for name in node.outputs if name})

    def _put(self, step: Step) -> int:
        self.steps.append(step)
        return len(self.steps) - 1

    def _number(self, name: Name) -> int:
        """Return the number of the step that gives a value; a constant gets one when first read."""
        if name in self.numbers:
            return self.numbers[name]
        if name in self._dynamic:
            self.give(name, Step(role=Role.UNKNOWN))  # it comes from nowhere
            return self.numbers[name]
        if name not in self._known:
            self._known[name] = self._put(
                Step(
                    role=Role.CONSTANT,
                    is_non_negative=lambda: self._constants.is_non_negative(name),
                )
            )
        return self._known[name]

    def _layer(self, node: Node, reads: tuple[int, ...]) -> int:
        """Add a layer, with what onnxruntime has put into it."""
        last = self._put(
            Step(
                role=Role.LAYER,
                reads=reads[:1] if node.input(0) in self._dynamic else reads[1:2] or reads,
                name=self._layers[node],
                downsamples=downsamples(node),
                is_last=gives_last(node),
            )
        )
        return self._within(node, last)

    def _within(self, node: Node, last: int) -> int:
        """Add what onnxruntime has put into a layer: a sum, and an activation."""
        summand = node.input(3) if node.op.endswith(("FusedConv", "nchwc.Conv")) else None
        if summand is not None:
            last = self._put(Step(role=Role.JOIN, reads=(last, self._number(summand))))
        within = activation(node)
        role = _FUSED.get(within, Role.OTHER)
        if within == "clip" and (node.numbers("activation_params") or (-1,))[0] >= 0:
            role = Role.RELU
        return last if role is Role.IDENTITY else self._put(Step(role=role, reads=(last,)))

    def _cuts(self, node: Node) -> bool:
        """Tell a threshold as dynamo exports it: what is at most a number becomes another."""
        condition, filler, kept = (*node.inputs, None, None, None)[:3]
        compared = None if condition is None else self._makers.get(condition)
        if compared is None or compared.op != "LessOrEqual" or compared.input(0) != kept:
            return False
        least, other = self._constants.scalar(compared.input(1)), self._constants.scalar(filler)
        return least is not None and other is not None and min(least, other) >= 0

    def _role(self, node: Node) -> Role:
        role = WORDS.get(node.op, Role.OTHER)
        if node.op == "ThresholdedRelu":
            return Role.RELU if node.number("alpha", 1.0) >= 0 else Role.OTHER
        if node.op == "Where" and self._cuts(node):
            return Role.RELU
        if role is Role.VIEW and (_overshoots(node) or self._pads_below(node)):
            return Role.SHIFT
        return role

    def _clip(self, node: Node, reads: tuple[int, ...]) -> tuple[Role, tuple[int, ...]]:
        """Tell what a clip is: a ReLU, a maximum or a minimum with a number, or both."""
        role, bound = clamped(self._bound(node, 1, "min"), self._bound(node, 2, "max"))
        if bound is None:
            return role, reads[:1]
        constant = self._put(Step(role=Role.CONSTANT, is_non_negative=lambda: bound >= 0))
        return role, (reads[0], constant)

    def _bound(self, node: Node, number: int, name: str) -> float | None:
        """Find a bound of a clip: None where there is none, NaN where it cannot be told."""
        given = node.input(number)
        found = node.number(name, math.inf) if given is None else self._constants.scalar(given)
        if found is None:
            return math.nan
        return None if abs(found) >= _LARGEST else found

    def _view(self, node: Node) -> views.View | None:
        """Tell how a step moves axes; None where that cannot be told."""
        match node.op:
            case "Transpose":
                return views.permuted(node.integers("perm"))
            case "Flatten" if (axis := node.integer("axis", 1)) in (1, 2):
                return views.into_matrix if axis == 1 else views.of_shape((-1, None))
            case "Reshape":
                return views.of_shape(self._shape(node.input(1)))
            case "Squeeze" | "Unsqueeze":
                axes = axes_of(self._constants, node)
                if len(axes) != 1:
                    return None
                way = views.with_axis if node.op == "Unsqueeze" else views.without_axis
                return way(axes[0])
            # Blocks of a processor are the same values in another order.
            case "com.microsoft.nchwc.ReorderInput" | "com.microsoft.nchwc.ReorderOutput":
                return (
                    views.permuted((0, 1, 2, 3)) if not node.integer("channels_last", 0) else None
                )
        return None

    def _shape(self, name: Name | None) -> Sequence[int | None]:
        """Read a shape; None for each extent that the network computes."""
        maker = None if name is None else self._makers.get(name)
        if maker is not None and maker.op == "Concat":
            parts = maker.inputs[:_MOST_EXTENTS]
            return [number for part in parts for number in self._extents(part)]
        return self._extents(name)

    def _extents(self, name: Name | None) -> Sequence[int | None]:
        """Read a part of a shape: what is stored, or the first extents of another shape."""
        maker = None if name is None else self._makers.get(name)
        if maker is not None and maker.op == "Slice":
            start, end = (self._constants.scalar(maker.input(number)) for number in (1, 2))
            is_first = start == 0 and end is not None and 0 < end <= _MOST_EXTENTS
            return [None] * int(end or 0) if is_first else []
        return _numbers(self._constants.tensor(name))

    def _pads_below(self, node: Node) -> bool:
        """Tell whether values that are put around may be negative."""
        if node.op not in ("Pad", "com.microsoft.Pad"):
            return False
        value = node.input(2)
        if value is None:
            return node.number("value", 0.0) < 0
        return not self._constants.is_non_negative(value)


def _numbers(tensor: Tensor | None) -> list[int | None]:
    """Read whole numbers; of what is not stored one that is not known."""
    if tensor is None:
        return [None]
    if tensor.is_floating or math.prod(tensor.shape) > _MOST_EXTENTS:
        return []
    return [int(number) for number in tensor.read().reshape(-1)]


def axes_of(constants: Constants, node: Node) -> tuple[int, ...]:
    """Return the axes that a node takes as an input or, in older opsets, as an attribute.

    Empty where the network computes them.
    """
    given = constants.tensor(node.input(1))
    if given is None:
        return node.integers("axes")
    if given.is_floating or math.prod(given.shape) > _MOST_AXES:
        return ()
    return tuple(int(number) for number in given.read().reshape(-1))


def gives_last(node: Node) -> bool:
    """Tell whether a layer has its filters along the last axis of what it gives."""
    if node.op.rpartition(".")[2] == "QLinearConv":
        return "nhwc" in node.op or bool(node.integer("channels_last", 0))
    return "hwc." in node.op or "Nhwc" in node.op or "Conv" not in node.op


def _overshoots(node: Node) -> bool:
    """Tell whether values between others may lie beyond them."""
    if node.op.rpartition(".")[2] not in ("CropAndResize", "GridSample", "Resize", "Upsample"):
        return False
    return "cubic" in node.text("mode") or node.number("extrapolation_value", 0) < 0


def saturates(constants: Constants, node: Node) -> bool:
    """Tell whether a quantised operator cuts at 0: its zero is the least of the integers."""
    if node.op not in _ZERO_POINTS:
        return False
    name = node.input(_ZERO_POINTS[node.op])
    if name is None:
        is_plain = node.op == "QuantizeLinear" or node.op.startswith("com.microsoft.QLinear")
        return is_plain and node.integer("output_dtype", 2) == 2
    zero = constants.tensor(name)
    lowest = INTEGER_RANGES.get(zero.dtype, (None,))[0] if zero else None
    return lowest is not None and constants.scalar(name) == lowest


def activation(node: Node) -> str:
    """Name the activation within a node that is a layer, in small letters; "" where it has none."""
    if node.op == "com.microsoft.GemmFastGelu":
        return "gelu"
    # ONNX's own operators have none.
    found = node.text("activation").lower() if "." in node.op else ""
    return "" if found == "none" else found


def downsamples(node: Node) -> bool:
    """Tell whether a node is a pooling or convolution with a stride."""
    return node.op.rpartition(".")[2] in _STRIDED and max(node.integers("strides"), default=1) > 1
