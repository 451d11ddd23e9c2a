"""Graph of an ONNX model: its nodes in order, its constants, and what flows along its edges.

Of each value that depends on the network's input two things are told: whether it is the image, a
ReLU's output (no element below 0) or something else, and how many downsampling steps lie behind it.
https://onnx.ai/onnx/repo-docs/IR.html
"""

from __future__ import annotations

import math
from collections import ChainMap, defaultdict
from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

from planescope.checkpoints.onnx import nodes as onnx_nodes
from planescope.checkpoints.onnx.nodes import INTEGER_RANGES, Node, node_at
from planescope.checkpoints.onnx.tensors import tensor_at
from planescope.checkpoints.protobuf import Span, WireFile
from planescope.files.errors import CheckpointError
from planescope.hyperplanes.layer import Tensor

_MAX_DEPTH = 16  # of loops and branches within one another
_MAX_FOLDS = 16  # operators in a row on a constant, or between a layer and its norm

# Elements of a constant that is looked at to see whether any is negative.
_MAX_LOOK = 1 << 16

_BODIES = ("If", "Loop", "Scan")
_STRIDED = ("AveragePool", "Conv", "LpPool", "MaxPool")

# What is non-negative behind these if it was before, and still the image if it was the image.
_NEUTRAL = frozenset((
    "AveragePool", "Cast", "CenterCropPad", "DepthToSpace", "DequantizeLinear", "Dropout", "Expand",
    "Flatten", "Gather", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "Identity", "LRN",
    "LpPool", "MaxPool", "MaxRoiPool", "Pad", "QuantizeLinear", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceSum", "Reshape", "Resize", "RoiAlign", "Slice", "SpaceToDepth", "Split",
    "Squeeze", "Tile", "Transpose", "Unsqueeze", "Upsample",
))  # fmt: skip
# The same, if it holds for all that they join.
_JOINING = frozenset((*_BODIES, "Add", "Concat", "Div", "Max", "Mean", "Min", "Mul", "Sum"))
# With constants, how an image is normalised.
_NORMALISING = frozenset(("Add", "BatchNormalization", "Div", "Mul", "Sub"))

_GATES = ("HardSigmoid", "Sigmoid", "Softmax")

# What may stand between a layer and its norm; and between a layer and its ReLU, which commutes with
# the maximum.
_SILENT = ("Cast", "Dropout", "Identity")
_BEFORE_RELU = frozenset((
    *_SILENT, "DequantizeLinear", "Flatten", "MaxPool", "QuantizeLinear", "Reshape", "Squeeze",
    "Transpose", "Unsqueeze",
))  # fmt: skip


class Nature(StrEnum):
    """What a value is: `Input`, and one more."""

    IMAGE = "image"
    RELU = "relu"
    GATE = "gate"  # non-negative and no ReLU's output; scales what it is multiplied with
    OTHER = "other"
    UNKNOWN = "unknown"


class Value(NamedTuple):
    """What is known of a value that depends on the network's input."""

    nature: Nature
    stage: int


class Constant(NamedTuple):
    """A value that does not depend on the network's input."""

    tensor: Tensor
    root: Span  # of the stored tensor that it is made of
    names: tuple[str, ...]  # its own, and of what it is made of, back to the stored tensor


class Graph:
    """A graph: the model's own or the body of a loop or branch, which sees what its parent has.

    Parameters
    ----------
    spans : list of (int, int)
        Where it lies; a message may be written in parts.
    """

    def __init__(self, wire: WireFile, spans: list[Span], parent: Graph | None = None) -> None:
        self.wire = wire
        self.depth: int = parent.depth + 1 if parent else 0
        if self.depth > _MAX_DEPTH:
            raise CheckpointError(f"{wire.path}: loops and branches lie {_MAX_DEPTH} deep; refused")
        self.nodes: list[Node] = []
        self.outputs: set[str] = set()
        self.stored: ChainMap[str, Span] = parent.stored.new_child() if parent else ChainMap()
        self.values: ChainMap[str, Value] = parent.values.new_child() if parent else ChainMap()
        self.makers: ChainMap[str, Node] = parent.makers.new_child() if parent else ChainMap()
        self.users: defaultdict[str, list[Node]] = defaultdict(list)
        self._constants: dict[str, Constant | None] = {}
        inputs = self._read(spans)
        # What feeds a body is known to its operator alone.
        fed = Value(Nature.UNKNOWN if parent else Nature.IMAGE, 0)
        # Up to version 3 all stored tensors are listed as inputs too.
        self.values.update({name: fed for name in inputs if name not in self.stored})

    def _read(self, spans: list[Span]) -> list[str]:
        """Take in a graph; return the names of its inputs."""
        inputs: list[str] = []
        for part in (part for span in spans for part in self.wire.fields(span)):
            match part.number:
                case 1:
                    self._add(node_at(self.wire, part.span))
                case 5:
                    self.stored[self._name(part.span, 8)] = part.span
                case 11:
                    inputs.append(self._name(part.span, 1))
                case 12:
                    self.outputs.add(self._name(part.span, 1))
        return inputs

    def _name(self, span: Span, number: int) -> str:
        found = self.wire.find(span, number)
        return self.wire.text(found) if found else ""

    def _add(self, node: Node) -> None:
        if not any(node.outputs):
            return
        self.nodes.append(node)
        self.makers.update(dict.fromkeys(node.outputs, node))
        for name in filter(None, set(node.inputs)):
            self.users[name].append(node)

    def walk(self) -> Iterator[tuple[Graph, Node]]:
        """Each node with its graph, bodies included, once it is known what comes out of it."""
        for node in self.nodes:
            spans = node.graphs() if node.op in _BODIES else ()
            bodies = [Graph(self.wire, [span], self) for span in spans]
            for body in bodies:
                yield from body.walk()
            self._flow(node, bodies)
            yield self, node

    # What flows along the edges.

    def _flow(self, node: Node, bodies: list[Graph]) -> None:
        """Tell what the outputs of a node are; nothing of constants."""
        # The input of a branch is its condition: of no account for what comes out.
        names = () if node.op == "If" else node.inputs
        incoming = [self.values[name] for name in names if name in self.values]
        for body in bodies:
            incoming += [body.values[name] for name in body.outputs if name in body.values]
        if not incoming:
            return
        natures = {value.nature for value in incoming}
        stage = max(value.stage for value in incoming) + downsamples(node, natures)
        value = Value(self._nature(node, natures), stage)
        self.values.update({name: value for name in node.outputs if name})

    def _nature(self, node: Node, incoming: set[Nature]) -> Nature:
        if node.op in _GATES:
            return Nature.GATE
        if node.op in _NEUTRAL:
            first = self.values.get(node.inputs[0], Value(Nature.OTHER, 0)).nature
            is_cut = first is Nature.OTHER and self.clips_at_zero(node)
            return Nature.RELU if is_cut else first
        if self.clips_at_zero(node):
            return Nature.RELU
        if node.op == "Mul" and Nature.RELU in incoming:
            incoming = incoming - {Nature.GATE}
        if len(incoming) > 1:
            return Nature.OTHER
        (nature,) = incoming
        if nature in (Nature.RELU, Nature.GATE):
            constants = [name for name in node.inputs if name and name not in self.values]
            holds = node.op in _JOINING and all(map(self._is_non_negative, constants))
        else:
            holds = node.op in _JOINING or node.op in _NORMALISING
        return nature if holds else Nature.OTHER

    def clips_at_zero(self, node: Node) -> bool:
        """Whether a node is a ReLU, by whatever name."""
        given = [*node.inputs, "", "", ""]
        if node.op == "Clip":
            least = self._scalar(given[1]) if given[1] else node.number("min", -math.inf)
            return least is not None and least >= 0
        if node.op == "QuantizeLinear":  # where the zero is the least of the integers
            zero = self.constant(given[2]) if given[2] else None
            if zero is None:
                return not given[2] and node.integer("output_dtype", 2) == 2
            lowest = INTEGER_RANGES.get(zero.tensor.dtype, (None,))[0]
            return lowest is not None and self._scalar(given[2]) == lowest
        return node.op == "Relu"

    def _is_non_negative(self, name: str) -> bool:
        found = self.constant(name)
        if found is None or math.prod(found.tensor.shape) > _MAX_LOOK:
            return False
        return bool((found.tensor.read() >= 0).all())

    def _scalar(self, name: str) -> float | None:
        found = self.constant(name)
        if found is None or math.prod(found.tensor.shape) != 1:
            return None
        return float(found.tensor.read().reshape(()))

    # Constants, and what they are made of.

    def constant(self, name: str, folds: int = 0) -> Constant | None:
        """A value that is stored, or made of stored ones by operators that we follow."""
        if name not in self._constants:
            self._constants[name] = self._constant(name, folds)
        return self._constants[name]

    def _constant(self, name: str, folds: int) -> Constant | None:
        if name in self.stored:
            span = self.stored[name]
            return Constant(tensor_at(self.wire, span), span, (name,))
        node = self.makers.get(name)
        if node is None or node.outputs[0] != name:
            return None
        if node.op == "Constant":
            tensor = onnx_nodes.constant(node)
            return Constant(tensor, node.attributes[0], (name,)) if tensor else None
        if node.op not in onnx_nodes.OPERATORS or folds == _MAX_FOLDS:
            return None
        parts = [self.constant(part, folds + 1) if part else None for part in node.inputs]
        if any(part is None and given for part, given in zip(parts, node.inputs, strict=True)):
            return None
        tensor = onnx_nodes.fold(node, [part.tensor if part else None for part in parts])
        if tensor is None or parts[0] is None:
            return None
        return Constant(tensor, parts[0].root, (name, *parts[0].names))

    # What stands behind a value.

    def only_user(self, value: str) -> Node | None:
        """The node that alone reads a value."""
        for _ in range(_MAX_FOLDS):
            users = self.users.get(value, ())
            if len(users) != 1 or value in self.outputs:
                return None
            if users[0].op not in _SILENT:
                return users[0]
            value = users[0].outputs[0]
        return None

    def relu_follows(self, value: str) -> bool:
        """Whether a value goes into a ReLU before anything else is made of it."""
        waiting, seen = [value], {value}
        while waiting:
            for node in self.users.get(waiting.pop(), ()):
                if self.clips_at_zero(node):
                    return True
                if node.op in _BEFORE_RELU and node.outputs[0] not in seen:
                    waiting.append(node.outputs[0])
                    seen.add(node.outputs[0])
        return False


def downsamples(node: Node, incoming: set[Nature]) -> bool:
    """Whether a node opens a new stage; the image, whatever is done to it, is in stage 0."""
    if incoming == {Nature.IMAGE}:
        return False
    return node.op in _STRIDED and max(node.integers("strides"), default=1) > 1
