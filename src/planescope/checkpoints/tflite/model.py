"""From the operators of a TensorFlow Lite model to its layers, each in its place."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from planescope.checkpoints.onnx.constants.arithmetic import reshaped, transposed
from planescope.checkpoints.tensorflow.network import Network
from planescope.checkpoints.tflite.schema import Graph, Operator, Stored, graphs_at
from planescope.checkpoints.tflite.weights import DTYPES, LEAST, dequantised, tensor_of
from planescope.checkpoints.tflite.words import (
    BIAS,
    LAYERS,
    LEFT_OUT,
    NO_VALUES,
    NONE,
    RELU,
    RELU6,
    ROLES,
    SPLITS,
    Use,
)
from planescope.files.errors import CheckpointError
from planescope.hyperplanes.layer import Described, Kind, Layer, Tensor, kind_of_convolution
from planescope.networks.graph.places import Role
from planescope.networks.state.pairing import folded_notes, scaled_notes

if TYPE_CHECKING:
    from planescope.checkpoints.probe import Probe

NAME = "tflite"

MAGIC = b"TFL3"

_MAX_FOLDS = 16
_MAX_LOOK = 1 << 16


# What names of weights say of the operation that they were made for.
_WORDS = (
    r"(Conv2D(BackpropInput)?|Conv3D|conv[123]d(_transpose)?|convolution|depthwise|DepthwiseConv2d"
    r"(Native)?|separable_conv2d|conv_transpose|MatMul|weights|kernel|Tensordot)"
)
_MADE_FOR = re.compile(rf"(?P<module>.+)/{_WORDS}\d*(_?\d+)?(_dequantize\d*)?(/.*)?", re.IGNORECASE)


@dataclass(frozen=True)
class _Constant:
    tensor: Tensor
    root: int  # number of the tensor that stores it


def recognises(probe: Probe) -> bool:
    """Tell a FlatBuffer by the name of its schema."""
    return probe.head[4:8] == MAGIC


def read(path: Path) -> Described:
    """Describe the layers of a model, in the order of its graph.

    Raises
    ------
    CheckpointError
        If the file is damaged.
    """
    graphs = graphs_at(path)
    if not graphs:
        raise CheckpointError(
            f"{path}: a TensorFlow Lite model without a graph; is the download complete?"
        )
    walk = _Walk(path, graphs[0])
    for number, graph in enumerate(graphs[1:], 1):
        for operator in graph.operators:
            if operator.op in LAYERS or operator.op in LEFT_OUT:
                where = f"within graph {number}, of a loop or branch, which is not followed"
                walk.network.skip(_Walk(path, graph).name_of(operator), where)
    return walk.described()


class _Walk:
    def __init__(self, path: Path, graph: Graph) -> None:
        self.path = path
        self.graph = graph
        self.network = Network()
        self.makers = {n: each for each in graph.operators for n in each.outputs}
        self.readers: defaultdict[int, list[Operator]] = defaultdict(list)
        for operator in graph.operators:
            for number in dict.fromkeys(operator.inputs):
                self.readers[number].append(operator)
        self._numbers: dict[int, int] = {}  # of nodes, by tensor
        self._constants: dict[int, _Constant | None] = {}
        self._absorbed: set[int] = set()  # outputs of sums that a layer has for its bias
        self._scaled: list[str] = []

    def described(self) -> Described:
        for number in self.graph.inputs:
            self._numbers[number] = self.network.add(Role.IMAGE)
        for operator in self.graph.operators:
            node = self._add(operator)
            self._numbers.update(dict.fromkeys(operator.outputs, node))
        self.network.notes += scaled_notes(self._scaled)
        layers = [operator for operator in self.graph.operators if operator.op in LAYERS]
        numbers = [n for each in layers for n in (*each.inputs[1:], *each.outputs[:1])]
        self.network.notes += folded_notes(s.name for n in numbers if (s := self._stored(n)))
        return self.network.described()

    # One operator to nodes.

    def _add(self, operator: Operator) -> int:
        op = operator.op
        if op in LAYERS and not operator.is_custom:
            return self._rectified(operator, self._add_layer(operator, LAYERS[op]))
        if operator.is_custom or op in LEFT_OUT:
            self._leave_out_unknown(operator)
            return self.network.add(Role.OTHER, self._reads(operator))
        if op == "GATHER" and operator.inputs and (table := self.constant(operator.inputs[0])):
            if table.tensor.is_floating and len(table.tensor.shape) == 2:
                self.network.skip(self.name_of(operator), LEFT_OUT["EMBEDDING_LOOKUP"])
            return self.network.add(Role.OTHER, self._reads(operator))
        reads = self._reads(operator)
        if self._absorbed.intersection(operator.outputs):
            return self._rectified(operator, self.network.add(Role.IDENTITY, reads))
        if op == "PADV2":
            value = self.constant(operator.inputs[2]) if len(operator.inputs) > 2 else None
            role = Role.VIEW if value and self._is_non_negative(value) else Role.OTHER
        else:
            role = SPLITS.get(op) or ROLES.get(op, Role.OTHER)
        down = op.endswith("POOL_2D") and _strides(operator) > 1
        return self._rectified(operator, self.network.add(role, reads, downsamples=down))

    def _rectified(self, operator: Operator, node: int) -> int:
        """Add what an operator does to what it gives: an activation, a cut at the least integer."""
        activation = operator.options.get("activation", NONE)
        if activation in (RELU, RELU6):
            return self.network.add(Role.RELU, [node])
        if activation == NONE and self._cuts(operator):
            return self.network.add(Role.SATURATION, [node])
        return node if activation == NONE else self.network.add(Role.OTHER, [node])

    def _cuts(self, operator: Operator) -> bool:
        """Tell whether the output's zero is the least of the integers that it is rounded to."""
        if not operator.outputs or operator.op not in (*LAYERS, "ADD", "QUANTIZE"):
            return False
        output = self._stored(operator.outputs[0])
        if output is None or output.quantisation is None:
            return False
        least = LEAST.get(DTYPES.get(output.type, ""))
        return least is not None and output.quantisation.zeros.tolist() == [least]

    def _reads(self, operator: Operator) -> list[int]:
        numbers = [n for n in operator.inputs[NO_VALUES.get(operator.op, slice(None))] if n >= 0]
        reads = [self._node(number) for number in numbers]
        if operator.op in ("ADD", "MUL", "MAXIMUM", "MINIMUM") and len(reads) == 2:
            # A constant operand may be written first.
            reads.sort(key=lambda number: self.network.nodes[number].role is Role.CONSTANT)
        return reads

    def _node(self, number: int) -> int:
        """Give the node of a tensor's value."""
        if number not in self._numbers:
            found = self.constant(number) if number >= 0 else None
            if found is None:
                return self.network.add(Role.UNKNOWN)
            self._numbers[number] = self.network.add(
                Role.CONSTANT, is_non_negative=lambda: self._is_non_negative(found)
            )
        return self._numbers[number]

    def _is_non_negative(self, found: _Constant) -> bool:
        tensor = found.tensor
        return math.prod(tensor.shape) <= _MAX_LOOK and bool((tensor.read() >= 0).all())

    # Layers.

    def _add_layer(self, operator: Operator, use: Use) -> int:
        network, inputs = self.network, operator.inputs
        if max(use.data, use.kernel) >= len(inputs) or not operator.outputs:
            raise CheckpointError(
                f"{self.path}: {operator.op} with {len(inputs)} inputs; the file is damaged"
            )
        reads = [self._node(inputs[use.data])]
        down = use.kind is None and _strides(operator) > 1
        found = self._layer(operator, use)
        if found is None:
            return network.add(Role.OTHER, reads, downsamples=down)
        layer, root = found
        return network.add_layer(layer, root, reads, downsamples=down)

    def _layer(self, operator: Operator, use: Use) -> tuple[Layer, int] | None:
        number = operator.inputs[use.kernel]
        found = self.constant(number)
        if found is None:
            if operator.op != "BATCH_MATMUL" or self._is_made_of_constants(number):
                reason = "its weights come out of operators that are not followed"
                if not self._is_made_of_constants(number):
                    reason = "its weights are computed from the network's input"
                self.network.skip(self.name_of(operator), reason)
            return None
        kernel = found.tensor
        name = self.name_of(operator)
        if not kernel.is_floating:
            reason = f"its weights are stored as {kernel.dtype} without a scale"
            self.network.skip(name, reason)
            return None
        if operator.options.get("format"):
            self.network.skip(name, "its weights are shuffled for one kind of processor")
            return None
        if operator.op == "BATCH_MATMUL":
            if len(kernel.shape) != 2:
                self.network.skip(name, "a stack of matrices, one for each example or head")
                return None
            if operator.options.get("turned"):
                kernel = transposed(kernel, (1, 0))
        if len(kernel.shape) != use.rank or 0 in kernel.shape:
            raise CheckpointError(
                f"{self.path}: {operator.op} {name!r} cannot have weights of shape "
                f"{kernel.shape}; the file is damaged, get it again"
            )
        if operator.op == "DEPTHWISE_CONV_2D" and kernel.shape[0] != 1:
            raise CheckpointError(
                f"{self.path}: depthwise {name!r} has weights of shape {kernel.shape}, which does "
                "not begin with 1; the file is damaged, get it again"
            )
        weight = transposed(kernel, use.axes)
        kind = use.kind or kind_of_convolution(weight.shape[2:])
        bias = self._bias(operator, weight.shape[0], name)
        groups = self._groups(operator, use, weight)
        return Layer(name=name, kind=kind, weight=weight, bias=bias, groups=groups), found.root

    def _groups(self, operator: Operator, use: Use, weight: Tensor) -> int | None:
        if use.kind is not None:
            return 1 if use.kind is Kind.TRANSPOSED else None
        data = self._stored(operator.inputs[use.data])
        channels = data.shape[-1] if data is not None and data.shape else -1
        if channels < 1:
            multiplier = operator.options.get("multiplier", 0)
            return weight.shape[0] // multiplier if multiplier > 0 else None
        groups, rest = divmod(channels, weight.shape[1])
        return None if rest or weight.shape[0] % groups else groups

    def _bias(self, operator: Operator, filters: int, name: str) -> Tensor | None:
        at = BIAS.get(operator.op, 2)
        if at is not None and len(operator.inputs) > at and operator.inputs[at] >= 0:
            found = self.constant(operator.inputs[at])
            if found is None or not found.tensor.is_floating:
                self.network.notes.append(f"the bias of {name} is computed, and not measured")
                return None
            if found.tensor.shape != (filters,):
                raise CheckpointError(
                    f"{self.path}: {name!r} has {filters} filters and a bias of shape "
                    f"{found.tensor.shape}; the file is damaged, get it again"
                )
            return found.tensor
        if operator.options.get("activation", NONE) != NONE:
            return None
        readers = self.readers[operator.outputs[0]]
        if len(readers) != 1 or operator.outputs[0] in self.graph.outputs:
            return None
        constants = [
            found.tensor for n in readers[0].inputs if n >= 0 and (found := self.constant(n))
        ]
        fitting = [
            tensor
            for tensor in constants
            if tensor.is_floating and math.prod(tensor.shape) == filters == (*tensor.shape, 1)[-1]
        ] if readers[0].op in ("ADD", "MUL") else []  # fmt: skip
        if len(fitting) != 1:
            return None
        if readers[0].op == "MUL":
            self._scaled.append(name)
            return None
        self._absorbed.update(readers[0].outputs)
        return reshaped(fitting[0], (filters,))

    def _leave_out_unknown(self, operator: Operator) -> None:
        """Tell of an operator that has weights and is not followed."""
        reason = LEFT_OUT.get(operator.op)
        if operator.is_custom:
            tensors = [self._stored(number) for number in operator.inputs]
            if not any(t and t.begin < t.end and len(t.shape) > 1 for t in tensors):
                return
            reason = f"a custom operator, {operator.op}, which is not followed"
        self.network.skip(self.name_of(operator), reason or "")

    def name_of(self, operator: Operator) -> str:
        """Name the module that an operator stands for, by its weights or what it gives."""
        names = []
        for number in (*operator.inputs[1:2], *operator.outputs[:1]):
            stored = self._stored(number)
            root = self._constants.get(number)
            if root is not None:
                stored = self._stored(root.root)
            names += stored.name.split(";") if stored is not None else []
        for name in names:
            if match := _MADE_FOR.fullmatch(name):
                return match["module"]
        return next(filter(None, names), operator.op)

    # Constants.

    def _stored(self, number: int) -> Stored | None:
        return self.graph.tensors[number] if 0 <= number < len(self.graph.tensors) else None

    def constant(self, number: int, folds: int = 0) -> _Constant | None:
        """Give a tensor that is stored, or made of stored ones by operators that we follow."""
        if number not in self._constants:
            self._constants[number] = self._constant(number, folds)
        return self._constants[number]

    def _constant(self, number: int, folds: int) -> _Constant | None:
        stored = self._stored(number)
        if stored is None or folds > _MAX_FOLDS:
            return None
        tensor = tensor_of(self.path, stored)
        if tensor is not None:
            return _Constant(dequantised(self.path, stored, tensor) or tensor, number)
        maker = self.makers.get(number)
        if maker is None or not maker.inputs or maker.op not in _FOLDED:
            return None
        found = self.constant(maker.inputs[0], folds + 1)
        if found is None:
            return None
        if maker.op in ("DENSIFY", "DEQUANTIZE"):
            return found
        try:
            if maker.op == "RESHAPE":
                return _Constant(reshaped(found.tensor, stored.shape), found.root)
            order = self.constant(maker.inputs[1], folds + 1) if len(maker.inputs) > 1 else None
            if order is None or math.prod(order.tensor.shape) > len(found.tensor.shape):
                return None
            axes = tuple(int(axis) for axis in np.ravel(order.tensor.read()))
            return _Constant(transposed(found.tensor, axes), found.root)
        except ValueError as exc:
            raise CheckpointError(
                f"{self.path}: {maker.op} of constants: {exc}; the file is damaged, get it again"
            ) from exc

    def _is_made_of_constants(self, number: int) -> bool:
        waiting, seen = [number], {number}
        while waiting:
            at = waiting.pop()
            if at in self.graph.inputs:
                return False
            for source in self.makers[at].inputs if at in self.makers else ():
                if source not in seen:
                    seen.add(source)
                    waiting.append(source)
        return True


_FOLDED = ("DENSIFY", "DEQUANTIZE", "RESHAPE", "TRANSPOSE")


def _strides(operator: Operator) -> int:
    return max((n for name, n in operator.options.items() if name.startswith("stride")), default=1)
