"""Frozen graphs of TensorFlow: a GraphDef (`.pb`) whose weights are constants among its nodes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from planescope.checkpoints.protobuf import BYTES, VARINT, WireFile
from planescope.checkpoints.tensorflow.graph import describe
from planescope.checkpoints.tensorflow.operations import Operation, functions_at, operations_at
from planescope.checkpoints.tensorflow.tensors import tensor_at
from planescope.files.errors import CheckpointError
from planescope.hyperplanes.layer import Described, Tensor

if TYPE_CHECKING:
    from planescope.checkpoints.probe import Probe

NAME = "tensorflow-graph"

# Fields of a GraphDef: nodes, library, version (of old), versions.
_GRAPH = {1: BYTES, 2: BYTES, 3: VARINT, 4: BYTES, 5: BYTES}
# Fields of a MetaGraphDef, all of them messages: what it is about, the graph, how it was saved.
_META = frozenset(range(1, 8))
# What the names of operations look like.
_OP = re.compile(rb"[A-Za-z_>][\w>./-]*")


def recognises(probe: Probe) -> bool:
    """Tell whether the file is one message with the fields of a graph, nodes of TensorFlow first.

    One that ends early is taken for a graph where its first node is whole.
    """
    with WireFile(probe.path) as wire:
        if _is_meta(wire):
            return True
        known = False
        try:
            for part in wire.fields(wire.span):
                if _GRAPH.get(part.number) != part.wire:
                    return False
                if not known and part.number == 1:
                    if not _is_node(wire, part.span):
                        return False
                    known = True
        except CheckpointError:
            return known
    return known


def _is_meta(wire: WireFile) -> bool:
    """Tell the graph that TensorFlow 1 wrote beside a checkpoint (`.meta`)."""
    graph = None
    try:
        for part in wire.fields(wire.span):
            if part.number not in _META or part.wire != BYTES:
                return False
            if part.number == 2 and graph is None:
                graph = wire.find(part.span, 1)
        return graph is not None and graph.wire == BYTES and _is_node(wire, graph.span)
    except CheckpointError:
        return False


def _is_node(wire: WireFile, span: tuple[int, int]) -> bool:
    parts = []
    for part in wire.fields(span):
        if part.wire != BYTES or not 1 <= part.number <= 7:
            return False
        parts.append(part)
        if len(parts) > 2:
            break
    numbers = [part.number for part in parts]
    if numbers[:2] != [1, 2]:
        return False
    begin, end = parts[1].span
    return end - begin < 200 and _OP.fullmatch(wire.payload(parts[1].span)) is not None


def read(path: Path) -> Described:
    """Describe the layers of a graph, in its order.

    Raises
    ------
    CheckpointError
        If the file is damaged.
    """
    with WireFile(path) as wire:
        if _is_meta(wire):
            raise CheckpointError(
                f"{path}: is the graph of a TensorFlow checkpoint, without its weights; give the "
                ".index file beside it"
            )
        operations = operations_at(wire, [wire.span])
        functions = list(functions_at(wire, [wire.span]))

        def stored(operation: Operation) -> Tensor | None:
            span = operation.attributes.get("value")
            if operation.op != "Const" or not isinstance(span, tuple):
                return None
            return tensor_at(wire, span, operation.name)

        return describe(path, operations, functions, stored)
