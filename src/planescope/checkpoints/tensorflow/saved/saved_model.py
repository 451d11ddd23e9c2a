"""SavedModels: a folder with `saved_model.pb`, whose `variables` are a checkpoint.

The graph that serves is followed, functions and all; where no layer is found in it, the variables
tell what there is.
https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/protobuf/saved_model.proto
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from planescope.checkpoints.protobuf import BYTES, VARINT, Span, WireFile
from planescope.checkpoints.tensorflow.graph import describe
from planescope.checkpoints.tensorflow.operations import Operation, functions_at, operations_at
from planescope.checkpoints.tensorflow.saved.checkpoint import Variables, variables_at
from planescope.checkpoints.tensorflow.saved.checkpoint import files as files_of_checkpoint
from planescope.checkpoints.tensorflow.saved.variables import as_state_dict
from planescope.checkpoints.tensorflow.tensors import tensor_at
from planescope.files.errors import CheckpointError
from planescope.hyperplanes.layer import Described, StateDict, Tensor

if TYPE_CHECKING:
    from planescope.checkpoints.probe import Probe

NAME = "saved-model"

FILE = "saved_model.pb"
INDEX = "variables/variables.index"

# Of a SavedModel: its version, its graphs.
_VERSION, _GRAPHS = 1, 2
# Of a MetaGraphDef: what it is about, the graph, the signatures, the objects.
_INFO, _GRAPH, _SIGNATURES, _OBJECTS = 1, 2, 5, 7
_DEFAULT = "serving_default"
_MOST = 8  # signatures: each is a walk of its own
_VARIABLES = ("VarHandleOp", "VariableV2", "Variable")


def recognises(probe: Probe) -> bool:
    """Tell whether the file is one message with a version and graphs, each about something.

    A name stands where ONNX' second field begins, and a message here.
    """
    if probe.head[:1] != b"\x08":
        return False
    numbers: list[int] = []
    with WireFile(probe.path) as wire:
        try:
            for part in wire.fields(wire.span):
                if {_VERSION: VARINT, _GRAPHS: BYTES}.get(part.number) != part.wire:
                    return False
                if part.number == _GRAPHS and not _is_graph(wire, part.span):
                    return False
                numbers.append(part.number)
        except CheckpointError:
            return _GRAPHS in numbers or _begins_so(probe.head)
    return _GRAPHS in numbers


def _is_graph(wire: WireFile, span: Span) -> bool:
    try:
        first = next(wire.fields(span), None)
    except CheckpointError:
        return False
    return first is not None and (first.number, first.wire) == (_INFO, BYTES)


def _begins_so(head: bytes) -> bool:
    """Tell whether a file that ends early begins as a SavedModel does."""
    at = 3
    while at < len(head) and head[at] >= 0x80:
        at += 1
    # A graph's first field is a message, and behind its length begins a field of that.
    return head[:3] == b"\x08\x01\x12" and head[at + 1 : at + 2] == b"\x0a"


def read(path: Path) -> Described | StateDict:
    """Describe the layers of a SavedModel.

    Raises
    ------
    CheckpointError
        If a file is missing or damaged.
    """
    index = path.parent / INDEX
    found = variables_at(index) if index.is_file() else None
    with WireFile(path) as wire:
        graphs = [part.span for part in wire.fields(wire.span) if part.number == _GRAPHS]
        described = _described(wire, graphs[0], found) if graphs else None
    if described is not None and (described.layers or found is None):
        others = [f"of {len(graphs)} graphs the first is measured"] if len(graphs) > 1 else []
        return replace(described, notes=(*described.notes, *others))
    if found is None:
        raise CheckpointError(
            f"{path}: a TensorFlow SavedModel without a graph; is the download complete?"
        )
    return as_state_dict(found.tensors, found.names, found.skipped)


def files(path: Path) -> list[Path]:
    """List all files that make the model."""
    index = path.parent / INDEX
    return [path, *(files_of_checkpoint(index) if index.is_file() else [])]


def _described(wire: WireFile, meta: Span, found: Variables | None) -> Described:
    graphs: list[Span] = []
    served: dict[str, set[str]] = {}
    bound: dict[str, list[int]] = {}
    for part in wire.fields(meta):
        if part.wire != BYTES:
            continue
        if part.number == _GRAPH:
            graphs.append(part.span)
        if part.number == _SIGNATURES:
            served |= _outputs(wire, part.span)
        if part.number == _OBJECTS:
            bound |= _bound_objects(wire, part.span)
    operations = operations_at(wire, graphs)
    by_name = _by_name(operations, bound, found or Variables())

    def stored(operation: Operation) -> Tensor | None:
        span = operation.attributes.get("value")
        if operation.op == "Const" and isinstance(span, tuple):
            return tensor_at(wire, span, operation.name)
        if operation.op in _VARIABLES:
            if found is None:
                raise CheckpointError(
                    f"{wire.path}: {INDEX} is missing, which holds its weights; put it beside the "
                    "file"
                )
            shared = operation.text("shared_name")
            return by_name.get(operation.name) or by_name.get(shared)
        return None

    functions = list(functions_at(wire, graphs))
    seen: set[str] = set()
    # What several signatures share is told once, as the first has it.
    parts = [
        describe(wire.path, _serving(operations, outputs), functions, stored, seen)
        for _, outputs in sorted(served.items(), key=lambda item: item[0] != _DEFAULT)[:_MOST]
    ] or [describe(wire.path, operations, functions, stored)]
    notes = [note for part in parts for note in part.notes]
    if len(served) > _MOST:
        notes.append(f"of {len(served)} signatures {_MOST} are followed")
    return Described(
        layers=tuple(layer for part in parts for layer in part.layers),
        skipped=tuple({each.name: each for part in parts for each in part.skipped}.values()),
        notes=tuple(dict.fromkeys(notes)),
    )


def _bound_objects(wire: WireFile, span: Span) -> dict[str, list[int]]:
    """Read which objects a function takes behind its arguments, by the function's name."""
    found = {}
    for part in wire.fields(span):
        if part.number == 2 and part.wire == BYTES:
            name, function = wire.find(part.span, 1), wire.find(part.span, 2)
            if name and function and name.wire == function.wire == BYTES:
                found[wire.text(name)] = [
                    number
                    for each in wire.fields(function.span)
                    if each.number == 2
                    for number in wire.integers(each)
                ]
    return found


def _outputs(wire: WireFile, span: Span) -> dict[str, set[str]]:
    """Name the operations that a signature's outputs come from, by the signature's name."""
    key, signature = wire.find(span, 1), wire.find(span, 2)
    if not key or not signature or key.wire != BYTES or signature.wire != BYTES:
        return {}
    names = set()
    for part in wire.fields(signature.span):
        info = wire.find(part.span, 2) if part.number == 2 and part.wire == BYTES else None
        name = wire.find(info.span, 1) if info and info.wire == BYTES else None
        if name and name.wire == BYTES:
            names.add(wire.text(name).partition(":")[0])
    return {wire.text(key): names} if names else {}


def _serving(operations: list[Operation], outputs: set[str]) -> list[Operation]:
    """Keep what the outputs of the signatures are made of: not what saves, restores and trains."""
    by_name = {operation.name: operation for operation in operations}
    wanted, waiting = set(), [name for name in outputs if name in by_name]
    while waiting:
        name = waiting.pop()
        if name not in wanted:
            wanted.add(name)
            makers = (value.partition(":")[0] for value in by_name[name].inputs)
            waiting += [maker for maker in makers if maker in by_name]
    return [operation for operation in operations if operation.name in wanted] or operations


def _by_name(
    operations: list[Operation], bound: Mapping[str, list[int]], found: Variables
) -> dict[str, Tensor]:
    """Tell the tensors of variables, by the names of the operations that stand for them."""
    known = found.tensors
    called = {name: known[key] for key, name in found.names.items() if key in known}
    taken = {}
    for operation in operations:
        objects = bound.get(operation.text("f"), [])
        # What it takes of the objects comes last; objects that are no variables have no key.
        for value, number in zip(reversed(operation.inputs), reversed(objects), strict=False):
            key = found.objects.get(number)
            if key in known:
                taken[value] = known[key]
    return {**known, **called, **taken}
