"""Slots of an ONNX graph's weights: the initialisers to feed so that other weights stand in.

A weight is replaced at the input of its operator, so that the one that acts is replaced, however it
is stored: transposed, cast, quantised, or shared with what is no layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planescope.checkpoints.onnx.constants.values import Constants
from planescope.checkpoints.onnx.graph import Graph
from planescope.checkpoints.onnx.model import described, graph_in, layers_in
from planescope.checkpoints.onnx.nodes import Name, Node
from planescope.checkpoints.onnx.runnable import Call, Port, Replaceable, Runnable, Slot
from planescope.checkpoints.onnx.tensors import DTYPES, is_external, tensor_at
from planescope.checkpoints.onnx.weights import Weights
from planescope.checkpoints.protobuf import VARINT, Span, WireFile
from planescope.hyperplanes.layer import Layer, Skipped
from planescope.networks.graph.surroundings import (
    User,
    has_norm_behind,
    is_coupled,
    last_layers,
)

if TYPE_CHECKING:
    from pathlib import Path

_MAIN = 1  # the scope of the model's own graph
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "com.microsoft.FusedConv")
_NORMS = ("BatchNormalization", "InstanceNormalization")
# Norms whose scale and shift lie elsewhere, or are not of one channel each.
_OTHER_NORMS = ("LayerNormalization", "GroupNormalization", "MeanVarianceNormalization")
# Where channels meet those of others one by one.
_JOINS = ("Add", "Sub", "Sum", "Mul", "Div", "Max", "Min", "Mean")
# What a bias behind a layer may be made of.
_SUMS = ("Add", "Sub", "Sum", "com.microsoft.QLinearAdd")
_GRAPH, _INPUT, _OUTPUT = 7, 11, 12


def read_runnable(path: Path) -> Runnable:
    """Describe a model's layers, and where their weights enter the graph.

    Raises
    ------
    CheckpointError
        If the file is damaged, or wants data from outside of its folder.
    """
    with WireFile(path) as wire:
        graph = graph_in(wire)
        constants = Constants(graph)
        found, names, _ = listed = layers_in(graph, constants)
        all_of_it = described(graph, constants, listed)
        by_name: dict[str, list[Node]] = {}
        for node, name in names.items():
            by_name.setdefault(name, []).append(node)
        finder = _Finder(graph, constants, found)
        replaceable, skipped = [], list(all_of_it.skipped)
        for layer in all_of_it.layers:
            one = finder.replaceable(layer, by_name[layer.name])
            if isinstance(one, str):
                skipped.append(Skipped(name=layer.name, reason=one))
            else:
                replaceable.append(one)
        external = {
            name.text: tensor_at(wire, span)
            for name, span in graph.stored.items()
            if name.scope == _MAIN and is_external(wire, span)
        }
        return Runnable(
            layers=all_of_it.layers,
            replaceable=tuple(replaceable),
            skipped=tuple(skipped),
            inputs=tuple(_ports(wire, graph)),
            outputs=tuple(
                text for span in _members(wire, _OUTPUT) if (text := _text(wire, span, 1))
            ),
            external=external,
        )


@dataclass(eq=False)
class _Finder:
    graph: Graph
    constants: Constants
    found: Mapping[Node, Weights]

    def __post_init__(self) -> None:
        self.values = _Values(self.graph, self.found)
        self.outputs = last_layers(self.values, self.graph.outputs)

    def replaceable(self, layer: Layer, nodes: Sequence[Node]) -> Replaceable | str:
        """Say where the weights of a layer enter, or why they cannot be fed."""
        first = nodes[0]
        if any(node.output.scope != _MAIN for node in nodes):
            return "stands within a loop, a branch or a function of the graph"
        if any(node.op not in _WEIGHTED for node in nodes):
            odd = next(node.op for node in nodes if node.op not in _WEIGHTED)
            return f"its operator {odd} holds weights that cannot be fed as they act"
        slots = [self._slot(node, self._number(node)) for node in nodes]
        weight = slots[0]
        if weight is None or any(slot is None for slot in slots):
            return "its weights cannot be fed"
        places = [place for slot in slots if slot is not None for place in slot.places]
        stored = weight.tensor.read()
        for slot in slots[1:]:
            if slot is None or not np.array_equal(stored, slot.tensor.read()):
                return "its weights are used in several layouts"
        biases = [self._bias(node) for node in nodes]
        bias = biases[0] if len(nodes) == 1 else None
        known = all(
            one is not None or self.found[node].bias is None
            for node, one in zip(nodes, biases, strict=True)
        )
        # Several places with biases or norms of their own have no one filter to take away.
        norm = self._norm(first, layer) if len(nodes) == 1 else ()
        return Replaceable(
            layer=layer,
            weight=Slot(places=tuple(places), tensor=weight.tensor),
            bias=bias,
            norm=norm,
            takes_filters=known and (len(nodes) == 1 or not any(biases)),
            is_output=any(node in self.outputs for node in nodes),
            is_coupled=any(
                is_coupled(self.values, node, [self.found[node].value]) for node in nodes
            ),
            leaves_norm=not norm
            and any(has_norm_behind(self.values, self.found[node].value) for node in nodes),
            sizes=tuple(self._sized(node) for node in nodes),
            calls=tuple(self._call(node) for node in nodes),
            mean=self._mean(first, layer) if len(nodes) == 1 else None,
        )

    def _call(self, node: Node) -> Call:
        read = node.input(1 - self._number(node))
        return Call(
            op=node.op,
            reads="" if read is None else read.text,
            gives=self.found[node].value.text,
            strides=node.integers("strides"),
            dilations=node.integers("dilations"),
            pads=node.integers("pads"),
            auto_pad=node.text("auto_pad"),
        )

    def _number(self, node: Node) -> int:
        is_left = node.op == "MatMul" and self.constants.of(node.input(1)) is None
        return 0 if is_left else 1

    def _slot(self, node: Node, number: int) -> Slot | None:
        if node.output.scope != _MAIN:
            return None
        tensor = self.constants.tensor(node.input(number))
        if tensor is None or not tensor.is_floating:
            return None
        return Slot(places=((node.output.text, number),), tensor=tensor)

    def _bias(self, node: Node) -> Slot | None:
        weights = self.found[node]
        if weights.bias is None:
            return None
        slot = None
        if node.op != "MatMul" and node.input(2) is not None:
            slot = self._slot(node, 2)
        elif [part.op for part in weights.parts if part.op in _SUMS] == ["Add"]:
            behind = weights.parts[-1]
            numbers = [i for i in (0, 1) if self.constants.of(behind.input(i)) is not None]
            slot = self._slot(behind, numbers[0]) if len(numbers) == 1 else None
        if slot is None or math.prod(slot.tensor.shape) != weights.weight.shape[0]:
            return None
        return slot

    def _norm(self, node: Node, layer: Layer) -> tuple[Slot, ...]:
        """Find where scale and shift of a norm enter that is of the layer's own channels."""
        behind = self.graph.only_user(self.found[node].value)
        if behind is not None and behind.op in _NORMS:
            slots = [self._slot(behind, number) for number in (1, 2)]
        else:
            slots = self._of_groups(behind)
        filters = layer.weight.shape[0]
        return tuple(s for s in slots if s is not None and math.prod(s.tensor.shape) == filters)

    def _of_groups(self, node: Node | None) -> list[Slot | None]:
        """Scale and shift of a group norm as it is exported: they follow an instance norm."""
        for op in ("Reshape", "InstanceNormalization", "Reshape"):
            if node is None or node.op != op:
                return []
            node = self.graph.only_user(node.output)
        slots = []
        for op in ("Mul", "Add"):
            if node is None or node.op != op:
                break
            numbers = [i for i in (0, 1) if self.constants.of(node.input(i)) is not None]
            slots.append(self._slot(node, numbers[0]) if len(numbers) == 1 else None)
            node = self.graph.only_user(node.output)
        return slots

    def _mean(self, node: Node, layer: Layer) -> Slot | None:
        behind = self.graph.only_user(self.found[node].value)
        if behind is None or behind.op != "BatchNormalization":
            return None
        slot = self._slot(behind, 3)
        return slot if slot is not None and slot.tensor.shape == layer.weight.shape[:1] else None

    def _sized(self, node: Node) -> str:
        """Return the value of which each element stands for a position, times channels."""
        fed = node.input(0)
        return fed.text if node.op == "ConvTranspose" and fed is not None else node.output.text


@dataclass(eq=False)
class _Values:
    """A graph by its values, as `networks.graph.surroundings` takes it."""

    graph: Graph
    found: Mapping[Node, Weights]

    def layer(self, value: Name, /) -> Node | None:
        """Return the node of the layer that gives a value."""
        node = self.graph.makers.get(value)
        return node if node is not None and node in self.found else None

    def sources(self, value: Name, /) -> list[Name] | None:
        """Return what a value is computed from; None of an input of the model."""
        node = self.graph.makers.get(value)
        return None if node is None else self._live(node)

    def users(self, value: Name, /) -> list[User[Name]]:
        """Return the nodes that take a value; the model's output counts as one."""
        ends: list[User[Name]] = [User()] if value in self.graph.outputs else []
        return ends + [self._user(node) for node in self.graph.users.get(value, ())]

    def _user(self, node: Node) -> User[Name]:
        weights = self.found.get(node)
        return User(
            layer=None if weights is None else node,
            is_depthwise=weights is not None
            and weights.groups > 1
            and weights.weight.shape[1] == 1,
            joins=tuple(self._live(node)) if node.op in _JOINS else (),
            is_norm=node.op in (*_NORMS, *_OTHER_NORMS),
            gives=tuple(name for name in node.outputs if name is not None),
        )

    def _live(self, node: Node) -> list[Name]:
        return [name for name in node.inputs if name is not None and name in self.graph.dynamic]


def _members(wire: WireFile, number: int) -> list[Span]:
    """Return where the parts of the model's graph of some number lie."""
    graphs = (part.span for part in wire.fields(wire.span) if part.number == _GRAPH)
    return [p.span for span in graphs for p in wire.fields(span) if p.number == number]


def _text(wire: WireFile, span: Span, number: int) -> str:
    found = wire.find(span, number)
    return wire.text(found) if found else ""


def _ports(wire: WireFile, graph: Graph) -> Iterable[Port]:
    """Give what has to be fed: the inputs that are not stored."""
    stored = {name.text for name in graph.stored if name.scope == _MAIN}
    for span in _members(wire, _INPUT):
        name = _text(wire, span, 1)
        if name in stored:
            continue
        kind = wire.find(span, 2)
        tensor = wire.find(kind.span, 1) if kind else None  # TypeProto.tensor_type
        if tensor is None:
            yield Port(name=name, dtype="", shape=())
            continue
        element, shape = wire.find(tensor.span, 1), wire.find(tensor.span, 2)
        extents: list[int | None] = []
        for dim in wire.fields(shape.span) if shape else ():
            value = wire.find(dim.span, 1) if dim.number == 1 else None
            # 0 and what is negative are written where an extent is free.
            known = value.value if value is not None and value.wire == VARINT else 0
            extents.append(known if 0 < known < 1 << 31 else None)
        dtype = DTYPES.get(element.value, "") if element else ""
        yield Port(name=name, dtype=dtype, shape=tuple(extents))
