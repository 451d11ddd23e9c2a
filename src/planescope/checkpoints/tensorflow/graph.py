"""From the operations of a TensorFlow graph to its layers, each in its place.

What an operation does to what flows through it is told by tables of TensorFlow's words; where it
leads, by the walk that all formats share (`planescope.networks.places`).
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

from planescope.checkpoints.onnx.arithmetic import reshaped
from planescope.checkpoints.tensorflow.folding import SILENT, fold
from planescope.checkpoints.tensorflow.kernels import Form, filters_first, fits, kind_of
from planescope.checkpoints.tensorflow.library import inlined
from planescope.checkpoints.tensorflow.network import Network
from planescope.checkpoints.tensorflow.operations import Function, Operation
from planescope.files.errors import CheckpointError
from planescope.hyperplanes.layer import Described, Layer, Norm, Tensor
from planescope.networks.pairing import folded_notes
from planescope.networks.places import Role

_MAX_FOLDS = 24  # operations in a row on a constant, or between a layer and its norm

# Elements of a constant that is looked at to see whether any is negative.
_MAX_LOOK = 1 << 16


class _Use(NamedTuple):
    """The inputs of a layer's operation: its kernel, what it acts on, and the kernel's layout."""

    kernel: int
    data: int
    form: Form


_LAYERS = {
    "Conv2D": _Use(1, 0, Form.CONV),
    "_FusedConv2D": _Use(1, 0, Form.CONV),
    "Conv3D": _Use(1, 0, Form.CONV),
    "DepthwiseConv2dNative": _Use(1, 0, Form.DEPTHWISE),
    "_FusedDepthwiseConv2dNative": _Use(1, 0, Form.DEPTHWISE),
    "FusedDepthwiseConv2dNative": _Use(1, 0, Form.DEPTHWISE),
    "Conv2DBackpropInput": _Use(1, 2, Form.TRANSPOSED),
    "Conv3DBackpropInputV2": _Use(1, 2, Form.TRANSPOSED),
    "MatMul": _Use(1, 0, Form.DENSE),
    "_FusedMatMul": _Use(1, 0, Form.DENSE),
    "BatchMatMul": _Use(1, 0, Form.DENSE),
    "BatchMatMulV2": _Use(1, 0, Form.DENSE),
    "BatchMatMulV3": _Use(1, 0, Form.DENSE),
}
_PLAIN = tuple(op for op in _LAYERS if not op.startswith(("_Fused", "Fused")))
_TURNED = ("transpose_b", "adj_y")

# What has weights and is not measured.
_LEFT_OUT = {
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
_EMBEDDINGS = ("Gather", "GatherV2", "ResourceGather")

_NORMS = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")

_ROLES = {
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
            "Add", "AddN", "AddV2", "BiasAdd", "Concat", "ConcatV2", "Merge", "Minimum", "Pack",
            "Select", "SelectV2",
        ),
        Role.PRODUCT: ("Div", "DivNoNan", "Mul", "MulNoNan", "RealDiv"),
        Role.MAXIMUM: ("Maximum",),
        Role.SHIFT: ("Neg", "ResizeBicubic", "Sub"),
        # Whoever asks for these does not read the values.
        Role.CONSTANT: ("Rank", "Shape", "ShapeN", "Size"),
    }.items()
    for op in ops
}  # fmt: skip

# What is no value of theirs among their inputs.
_NO_VALUES = {"Concat": slice(1, None), "ConcatV2": slice(-1), "Split": slice(1, None),
              "Select": slice(1, None), "SelectV2": slice(1, None)}  # fmt: skip
_STRIDED = (
    "Conv2D", "_FusedConv2D", "Conv3D", "DepthwiseConv2dNative", "_FusedDepthwiseConv2dNative",
    "FusedDepthwiseConv2dNative", "MaxPool", "AvgPool", "MaxPool3D", "AvgPool3D", "MaxPoolV2",
)  # fmt: skip
_INPUTS = ("Placeholder", "PlaceholderV2", "PlaceholderWithDefault", "_Arg", "IteratorGetNext")

_NEXT = ("NextIteration", "RefNextIteration")
# What hands a value to a loop.
_LOOPS = ("Enter", "RefEnter", "StatelessWhile", "While")

_BOOL = 10

# As many channels come out as went in.
_SAME_CHANNELS = frozenset((
    *SILENT, "Add", "AddV2", "AvgPool", "AvgPool3D", "BatchToSpaceND", "BiasAdd", "Cast", "Div",
    "ExpandDims", "Squeeze",
    "Elu", "FakeQuantWithMinMaxVars", "FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3",
    "LeakyRelu", "MaxPool", "MaxPool3D", "Maximum", "Minimum", "MirrorPad", "Mul", "Pad", "PadV2",
    "Prelu", "RealDiv", "Relu", "Relu6", "ResizeBilinear", "ResizeNearestNeighbor", "Selu",
    "Sigmoid", "Softplus", "SpaceToBatchND", "Sub", "Tanh",
))  # fmt: skip

# What may stand between a layer and its bias.
_BEFORE_BIAS = frozenset((*SILENT, "BatchToSpaceND", "Cast", "Reshape", "Squeeze"))
# The last part of a name that only tells the operation.
_WORDS = (
    "convolution", "conv1d", "conv2d_transpose", "conv3d_transpose", "depthwise",
    "separable_conv2d", "MatMul", "BiasAdd",
)  # fmt: skip

# As variables that hold weights are called.
_VARIABLE = re.compile(
    r"(?P<module>.+)/(((depthwise|pointwise)_)?(kernel|weights)|weight|W|w|filters?)(_\d+)?"
)
# Parts of a name that a call adds.
_CALL = re.compile(r"(Stateful)?PartitionedCall(_\d+)?")

# What converters append to the name of an operation for that of its weights.
_STORED = re.compile(r"(/(ReadVariableOp|Cast|merged_input)(_\d+)?(/.*)?|_(weights|merged_input))$")

_FUSED_ROLES = {"Relu": Role.RELU, "Relu6": Role.RELU, "Sigmoid": Role.GATE}


class Constant(NamedTuple):
    """A value that does not depend on the network's input, and the operation that stores it."""

    tensor: Tensor
    root: str


def describe(
    path: Path,
    operations: Iterable[Operation],
    functions: Iterable[Function],
    stored: Callable[[Operation], Tensor | None],
    seen: set[str] | None = None,
) -> Described:
    """Tell the layers of a graph.

    Parameters
    ----------
    functions : iterable of Function
        The library of functions that it may call.
    stored : callable
        What an operation that takes nothing holds; None for one that holds no numbers.
    seen : set of str, optional
        Names of stored weights whose layers were told before; those told now are added.

    Raises
    ------
    CheckpointError
        If the graph makes no sense.
    """
    whole = inlined(path, operations, functions)
    graph = _Graph(path, whole.operations, stored, set() if seen is None else seen)
    for runner, operation in whole.bodies:
        if operation.op in _LAYERS or operation.op in _LEFT_OUT:
            graph.leave_out(operation, f"within {runner}, a loop or branch, which is not followed")
    return graph.described()


class _Graph:
    def __init__(
        self,
        path: Path,
        operations: Iterable[Operation],
        stored: Callable[[Operation], Tensor | None],
        seen: set[str],
    ) -> None:
        self.path = path
        self._before = frozenset(seen)
        self._seen = seen
        self.by_name = {operation.name: operation for operation in operations}
        self.stored = stored
        self.network = Network()
        self.readers: defaultdict[str, list[Operation]] = defaultdict(list)
        for operation in self.by_name.values():
            for name in dict.fromkeys(map(_maker, operation.inputs)):
                self.readers[name].append(operation)
        self._numbers: dict[str, int] = {}
        self._varies: dict[str, bool] = {}
        self._constants: dict[str, Constant | None] = {}
        self._absorbed: dict[str, Role] = {}  # operations that a layer has for its bias
        self._norms: dict[str, Norm] = {}  # by the last of the operations that they are made of
        self._scaled: list[str] = []
        self._looped: set[str] = set()  # weights that loops take
        self._channels: dict[str, int | None] = {}
        self._channels_last = all(
            each.text("data_format", "NHWC").endswith("C") for each in self.by_name.values()
        )

    def described(self) -> Described:
        order = self._in_order()
        for operation in order:
            self._varies[operation.name] = self._depends_on_input(operation)
        self._looped = {
            found.root
            for operation in order
            if operation.op in _LOOPS
            for value in operation.inputs
            if self._is_weight(value) and (found := self.constant(value))
        }
        for operation in order:
            self._channels[operation.name] = self._known_channels(operation)
            self._numbers[operation.name] = self._add(operation)
        if self._scaled:
            self.network.notes.append(
                f"behind {len(self._scaled)} layers ({', '.join(self._scaled[:5])}) stands a scale "
                "that the file does not tell to be a batch norm: they are measured without it"
            )
        fused = (each for each in order if each.op in _LAYERS and each.op not in _PLAIN)
        self.network.notes += folded_notes(
            n for each in fused for n in (each.name, *each.inputs[1:])
        )
        return self.network.described()

    def _in_order(self) -> list[Operation]:
        """Return each operation behind those that it reads; of a loop, in the order of the file."""
        sources = {
            name: [source for source in map(_maker, operation.inputs) if source in self.by_name]
            for name, operation in self.by_name.items()
        }
        try:
            order = list(TopologicalSorter(sources).static_order())
        except CycleError:
            for operation in self.by_name.values():
                if operation.op in _NEXT:
                    sources[operation.name] = []
            try:
                order = list(TopologicalSorter(sources).static_order())
            except CycleError as exc:
                raise CheckpointError(
                    f"{self.path}: its operations read one another in a circle; get it again"
                ) from exc
        return [self.by_name[name] for name in order]

    def _depends_on_input(self, operation: Operation) -> bool:
        if operation.op in _INPUTS:
            return operation.attributes.get("dtype") != _BOOL  # that of a switch
        if operation.op in _NEXT:  # of a loop, whose last round it gives
            return True
        if _ROLES.get(operation.op) is Role.CONSTANT:
            return False
        return any(self._varies.get(_maker(name), False) for name in operation.inputs)

    def _known_channels(self, operation: Operation) -> int | None:
        """Tell how many channels an operation gives, as far as the operations before it tell."""
        shape = operation.integers("shape")
        if operation.op in _INPUTS and len(shape) > 2 and self._channels_last:
            return shape[-1] if shape[-1] > 0 else None
        if operation.op not in _SAME_CHANNELS or not self._keeps_last(operation):
            return None
        known = {
            self._channels.get(_maker(name))
            for name in operation.inputs
            if self._varies.get(_maker(name), True)
        }
        return known.pop() if len(known) == 1 else None

    def _keeps_last(self, operation: Operation) -> bool:
        """Tell whether an operation that changes the axes leaves the last one alone."""
        if operation.op == "ExpandDims":
            axis = self.scalar(operation.inputs[1]) if len(operation.inputs) > 1 else None
            return axis is not None and (axis == 1 or axis < -1)
        if operation.op == "Squeeze":
            axes = operation.integers("squeeze_dims") or operation.integers("axis")
            return bool(axes) and all(axis == 1 or axis < -1 for axis in axes)
        return True

    # One operation to nodes.

    def _add(self, operation: Operation) -> int:
        """Add an operation to the network; the number of the node that gives its value."""
        op, network = operation.op, self.network
        if not self._varies[operation.name]:
            name = operation.name
            return network.add(Role.CONSTANT, is_non_negative=lambda: self._is_non_negative(name))
        if op in _INPUTS:
            return network.add(Role.IMAGE)
        if op in _NEXT:
            return network.add(Role.UNKNOWN)
        if op in _LAYERS:
            return self._add_layer(operation, _LAYERS[op])
        if op in _LEFT_OUT and (op != "Einsum" or any(map(self._is_weight, operation.inputs))):
            self.leave_out(operation, _LEFT_OUT[op])
        elif op in _EMBEDDINGS and self._is_table(operation):
            reason = "an embedding: its rows are looked up, they cut nothing"
            self.leave_out(operation, reason)
            return network.add(Role.OTHER, self._reads(operation))
        reads = self._reads(operation)
        if operation.name in self._norms:
            return network.add_norm(self._norms[operation.name], reads)
        if operation.name in self._absorbed:
            return network.add(self._absorbed[operation.name], reads)
        if op in _NORMS:
            return self._add_norm(operation, reads)
        return network.add(self._role(operation), reads, downsamples=_downsamples(operation))

    def _reads(self, operation: Operation) -> list[int]:
        """Return the numbers of the nodes that an operation reads, what it acts on first."""
        values = operation.inputs[_NO_VALUES.get(operation.op, slice(None))]
        numbers = [self._numbers.get(_maker(name)) for name in values]
        reads = [self.network.add(Role.UNKNOWN) if n is None else n for n in numbers]
        # A constant operand of a sum may be written first.
        if operation.op in ("Add", "AddV2", "Mul", "Maximum", "Minimum") and len(reads) == 2:
            reads.sort(key=lambda number: self.network.nodes[number].role is Role.CONSTANT)
        return reads

    def _role(self, operation: Operation) -> Role:
        if operation.op == "ClipByValue":
            least = self.scalar(operation.inputs[1]) if len(operation.inputs) > 1 else None
            return Role.RELU if least is not None and least >= 0 else Role.OTHER
        if operation.op == "PadV2":
            value = self.scalar(operation.inputs[2]) if len(operation.inputs) > 2 else None
            return Role.VIEW if value is not None and value >= 0 else Role.OTHER
        return _ROLES.get(operation.op, Role.OTHER)

    def _add_norm(self, operation: Operation, reads: list[int]) -> int:
        # In training mode it takes the moments of the batch, and those that it stores do not act.
        if operation.flag("is_training", True):
            return self.network.add(Role.OTHER, reads[:1])
        norm = self._fused_norm(operation.name, operation.inputs[1:5], operation)
        if norm is None:
            return self.network.add(Role.OTHER, reads[:1])
        return self.network.add_norm(norm, reads[:1])

    def _fused_norm(self, name: str, inputs: tuple[str, ...], operation: Operation) -> Norm | None:
        parts = [found.tensor for found in map(self.constant, inputs) if found]
        if len(parts) != 4 or len({part.shape for part in parts}) != 1 or len(parts[0].shape) != 1:
            return None
        gamma, beta, mean, variance = parts
        eps = operation.number("epsilon", 1e-4)
        return Norm(name=_shortened(name, "FusedBatchNorm"), gamma=gamma, beta=beta, mean=mean,
                    variance=variance, eps=eps)  # fmt: skip

    # Layers.

    def _add_layer(self, operation: Operation, use: _Use) -> int:
        network = self.network
        inputs = operation.inputs
        if max(use.kernel, use.data) >= len(inputs):
            raise CheckpointError(
                f"{self.path}: {operation.op} {operation.name!r} has {len(inputs)} inputs; the "
                "file is damaged, get it again"
            )
        reads = [self._numbers.get(_maker(inputs[use.data]), -1)]
        if reads == [-1]:
            reads = [network.add(Role.UNKNOWN)]
        down = _downsamples(operation)
        layer = self._layer(operation, use)
        if layer is None:
            number = network.add(Role.OTHER, reads, downsamples=down)
        else:
            found, root = layer
            self._seen.add(root)
            if root in self._before:
                number = network.add(Role.LAYER, reads, downsamples=down)
            else:
                number = network.add_layer(found, root, reads, downsamples=down)
        return self._add_fused(operation, number)

    def _layer(self, operation: Operation, use: _Use) -> tuple[Layer, str] | None:
        """Describe the layer that an operation is; None for one that is left out."""
        value = operation.inputs[use.kernel]
        if self._varies.get(_maker(value), False):
            # Two values that depend on the input are multiplied: no weights are.
            if operation.op not in ("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"):
                self.leave_out(operation, "its weights are computed from the network's input")
            elif self.constant(operation.inputs[use.data]):
                self.leave_out(operation, "a product with weights in front, on the left side")
            return None
        found = self.constant(value)
        if found is None:
            maker = self.by_name.get(_maker(value))
            what = "nothing in the file" if maker is None else maker.op
            self.leave_out(operation, f"its weights come out of {what}, which is not followed")
            return None
        kernel, root = found
        if root in self._looped:
            self.leave_out(operation, "a recurrent layer: its weights act within a loop")
            return None
        if not kernel.is_floating:
            self.leave_out(
                operation, f"its weights are stored as {kernel.dtype}; convert them to floats"
            )
            return None
        if use.form is Form.DENSE and len(kernel.shape) == 2 and any(map(operation.flag, _TURNED)):
            kernel = _turned(kernel)
        if use.form is Form.DENSE and len(kernel.shape) > 2:
            self.leave_out(operation, "a stack of matrices, one for each example or head")
            return None
        if not fits(use.form, kernel):
            raise CheckpointError(
                f"{self.path}: {operation.op} {operation.name!r} cannot have weights of shape "
                f"{kernel.shape}; the file is damaged, get it again"
            )
        weight = filters_first(kernel, use.form)
        self._channels[operation.name] = weight.shape[0]
        layer = Layer(
            name=_variable_module(root) or _readable(operation),
            kind=kind_of(use.form, kernel),
            weight=weight,
            bias=self._bias(operation, weight.shape[0]),
            groups=self._groups(operation, use, kernel),
        )
        return layer, root

    def _groups(self, operation: Operation, use: _Use, kernel: Tensor) -> int | None:
        channels = self._channels.get(_maker(operation.inputs[use.data]))
        match use.form:
            case Form.DEPTHWISE:
                return kernel.shape[-2]
            case Form.TRANSPOSED:
                return 1
            case Form.CONV if channels is not None:
                groups, rest = divmod(channels, kernel.shape[-2])
                return None if rest or not groups or kernel.shape[-1] % groups else groups
        return None

    def _bias(self, operation: Operation, filters: int) -> Tensor | None:
        """Find the bias of a layer, in it or behind it, and the norm behind both."""
        if operation.op.startswith(("_Fused", "Fused")):
            fused = operation.texts("fused_ops")
            if fused[:1] == ("BiasAdd",) and len(operation.inputs) > 2:
                return self._per_filter(operation.inputs[2], filters)
            return None
        value = operation.name
        bias = None
        reader = self._only_reader(value, _BEFORE_BIAS)
        if reader is not None and reader.op in ("BiasAdd", "Add", "AddV2"):
            bias = self._operand(reader, filters)
            if bias is not None:
                self._absorbed[reader.name] = Role.IDENTITY
                value = reader.name
        self._find_scale(operation, value, filters)
        return bias

    def _find_scale(self, operation: Operation, value: str, filters: int) -> None:
        """Find a batch norm that is written out as a product and a sum; note another scale."""
        product = self._only_reader(value, _BEFORE_BIAS)
        if product is None or product.op != "Mul" or len(product.inputs) != 2:
            return
        scales = [n for n in product.inputs if not self._varies.get(_maker(n), True)]
        if len(scales) != 1 or self._operand(product, filters) is None:
            return
        total = self._only_reader(product.name, SILENT)
        shifts = [] if total is None or total.op not in ("Add", "AddV2", "Sub") else [
            n for n in total.inputs if not self._varies.get(_maker(n), True)
        ]  # fmt: skip
        norm = None
        if len(shifts) == 1 and total is not None and total.op != "Sub":
            norm = self._written_out(product.name, scales[0], shifts[0], filters)
        if norm is None or total is None:
            self._scaled.append(_readable(operation))
            return
        self._absorbed[product.name] = Role.IDENTITY
        self._norms[total.name] = norm

    def _written_out(self, name: str, scale: str, shift: str, filters: int) -> Norm | None:
        """Take apart scale = gamma / sqrt(variance + eps), shift = beta - mean * scale."""
        gamma_name, root = None, self._made_by(scale)
        if root is not None and root.op == "Mul" and len(root.inputs) == 2:
            one, other = map(self._made_by, root.inputs)
            if one is not None and one.op == "Rsqrt":
                gamma_name, root = root.inputs[1], one
            elif other is not None and other.op == "Rsqrt":
                gamma_name, root = root.inputs[0], other
        within = self._made_by(root.inputs[0]) if root and root.op == "Rsqrt" else None
        less = self._made_by(shift)
        if within is None or within.op not in ("Add", "AddV2") or less is None or less.op != "Sub":
            return None
        moved = self._made_by(less.inputs[1]) if len(less.inputs) == 2 else None
        if moved is None or moved.op != "Mul" or len(within.inputs) != 2:
            return None
        scaled = self._made_by(scale)
        means = [n for n in moved.inputs if self._made_by(n) is not scaled]
        eps = self.scalar(within.inputs[1])
        parts = [
            self._per_filter(each, filters)
            for each in (*means[:1], within.inputs[0], less.inputs[0])
        ]
        gamma = self._per_filter(gamma_name, filters) if gamma_name else None
        if len(parts) != 3 or None in parts or eps is None or (gamma_name and gamma is None):
            return None
        mean, variance, beta = (part for part in parts if part is not None)
        return Norm(name=_shortened(name, "mul"), gamma=gamma, beta=beta, mean=mean,
                    variance=variance, eps=eps)  # fmt: skip

    def _add_fused(self, operation: Operation, number: int) -> int:
        """Add what an operation does behind its product: a norm, a sum, an activation."""
        network = self.network
        fused = operation.texts("fused_ops")
        arguments = list(operation.inputs[2:])
        for word in fused if operation.op.startswith(("_Fused", "Fused")) else ():
            if word == "BiasAdd":
                arguments = arguments[1:]
            elif word == "FusedBatchNorm":
                norm = self._fused_norm(operation.name, tuple(arguments[:4]), operation)
                arguments = arguments[4:]
                number = (
                    network.add(Role.OTHER, [number])
                    if norm is None
                    else network.add_norm(norm, [number])
                )
            elif word == "Add":
                other = self._numbers.get(_maker(arguments[0])) if arguments else None
                also = network.add(Role.UNKNOWN) if other is None else other
                number, arguments = network.add(Role.JOIN, [number, also]), arguments[1:]
            else:
                number = network.add(_FUSED_ROLES.get(word, Role.OTHER), [number])
        return number

    def leave_out(self, operation: Operation, reason: str) -> None:
        self.network.skip(_readable(operation), reason)

    def _is_weight(self, value: str) -> bool:
        found = self.constant(value) if not self._varies.get(_maker(value), False) else None
        return found is not None and found.tensor.is_floating and len(found.tensor.shape) > 1

    def _is_table(self, operation: Operation) -> bool:
        found = self.constant(operation.inputs[0]) if operation.inputs else None
        return found is not None and found.tensor.is_floating and len(found.tensor.shape) == 2

    # Constants, and what stands behind a value.

    def constant(self, value: str, folds: int = 0) -> Constant | None:
        """Give a value that is stored, or made of stored ones by operations that we follow."""
        if value not in self._constants:
            self._constants[value] = self._constant(value, folds)
        return self._constants[value]

    def _constant(self, value: str, folds: int) -> Constant | None:
        operation = self.by_name.get(value)  # of the first output alone
        if operation is None or folds == _MAX_FOLDS:
            return None
        tensor = self.stored(operation)
        if tensor is not None:
            return Constant(tensor, operation.name)
        parts: list[Constant] = []
        for name in operation.inputs:
            part = self.constant(name, folds + 1)
            if part is None:
                return None
            parts.append(part)
        try:
            tensor = fold(operation, [part.tensor for part in parts])
        except ValueError as exc:
            raise CheckpointError(
                f"{self.path}: {operation.op} {operation.name!r}: {exc}; the file is damaged, get "
                "it again"
            ) from exc
        return None if tensor is None else Constant(tensor, parts[0].root)

    def scalar(self, value: str) -> float | None:
        """Give a constant of one element."""
        found = self.constant(value)
        if found is None or math.prod(found.tensor.shape) != 1 or "type" in found.tensor.dtype:
            return None
        return float(found.tensor.read().reshape(()))

    def _is_non_negative(self, value: str) -> bool:
        found = self.constant(value)
        if found is None or math.prod(found.tensor.shape) > _MAX_LOOK:
            return False
        return "type" not in found.tensor.dtype and bool((found.tensor.read() >= 0).all())

    def _per_filter(self, value: str, filters: int) -> Tensor | None:
        """Give a constant that has one number for each filter, as shape (filters,)."""
        found = self.constant(value)
        if found is None or not found.tensor.is_floating:
            return None
        shape = found.tensor.shape
        # With channels in front it is spread along two or three axes behind them.
        is_last = shape[-1:] == (filters,)
        is_first = not self._channels_last and filters in (shape[-3:-2] + shape[-4:-3])
        if math.prod(shape) != filters or not (is_last or is_first):
            return None
        return found.tensor if len(shape) == 1 else reshaped(found.tensor, (filters,))

    def _operand(self, operation: Operation, filters: int) -> Tensor | None:
        """Give the constant, one for each filter, that an operation joins to a value."""
        constants = [n for n in operation.inputs if not self._varies.get(_maker(n), False)]
        known = [found for n in constants if (found := self._per_filter(n, filters)) is not None]
        return known[0] if len(constants) == len(known) == 1 else None

    def _only_reader(self, value: str, passing: Iterable[str]) -> Operation | None:
        """Find the operation that alone reads a value, behind such as only hand it on."""
        for _ in range(_MAX_FOLDS):
            readers = self.readers.get(value, ())
            if len(readers) != 1:
                return None
            if readers[0].op not in passing:
                return readers[0]
            value = readers[0].name
        return None

    def _made_by(self, value: str) -> Operation | None:
        """Find the operation that makes a constant, before such as only hand it on."""
        for _ in range(_MAX_FOLDS):
            operation = self.by_name.get(value)
            if operation is None or operation.op not in (*SILENT, "Reshape", "ExpandDims"):
                return operation
            if not operation.inputs:
                return None
            value = operation.inputs[0]
        return None


def _turned(kernel: Tensor) -> Tensor:
    from planescope.checkpoints.onnx.arithmetic import transposed

    return transposed(kernel, (1, 0))


def _maker(value: str) -> str:
    """Name of the operation that gives a value."""
    return value.partition(":")[0]


def _downsamples(operation: Operation) -> bool:
    strides = operation.integers("strides")
    return operation.op in _STRIDED and max(strides, default=1) > 1


def _variable_module(root: str) -> str | None:
    """Name the module of a variable that holds weights, where its name tells."""
    match = _VARIABLE.fullmatch(root)
    return match["module"] if match else None


def _readable(operation: Operation) -> str:
    """Name the module that an operation stands for; fused, it has the name of what came last."""
    name = operation.name
    if operation.op.startswith(("_Fused", "Fused")) and len(operation.inputs) > 1:
        name = _STORED.sub("", operation.inputs[1])
    return _shortened(name, operation.op.lstrip("_").removeprefix("Fused"))


def _shortened(name: str, word: str) -> str:
    """Name of the module that an operation stands for: a/conv of a/conv/Conv2D."""
    parts = [part for part in name.split("/") if not _CALL.fullmatch(part)]
    if len(parts) > 1 and parts[-1].startswith((word, *_WORDS)):
        parts.pop()
    return "/".join(parts) or name
