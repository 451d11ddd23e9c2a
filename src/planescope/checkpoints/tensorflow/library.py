"""Functions that a graph calls, put in the place of their calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from planescope.checkpoints.tensorflow.operations import Function, Operation
from planescope.files.errors import CheckpointError

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
# Their bodies may run never or many times: what is in them is told, not measured.
_BODIES = {
    "If": ("then_branch", "else_branch"),
    "StatelessIf": ("then_branch", "else_branch"),
    "While": ("body",),
    "StatelessWhile": ("body",),
}

_MAX_DEPTH = 32  # of calls within calls
_MAX_OPERATIONS = 500_000  # calls of calls of calls double each time

# Of operations with several outputs, the first one.
_FIRST = {"FusedBatchNorm": "y", "FusedBatchNormV2": "y", "FusedBatchNormV3": "y"}


@dataclass
class Inlined:
    """A graph without calls.

    Attributes
    ----------
    operations : list of Operation
    bodies : list of (str, Operation)
        Operations in the bodies of loops and branches, each with the name of what runs it.
    """

    operations: list[Operation] = field(default_factory=list)
    bodies: list[tuple[str, Operation]] = field(default_factory=list)


def inlined(path: Path, operations: Iterable[Operation], functions: Iterable[Function]) -> Inlined:
    """Put functions in the place of their calls.

    Raises
    ------
    CheckpointError
        If calls lie too deep within one another, or there are too many.
    """
    library = {function.name: function for function in functions}
    return _Inlining(path, library).run(list(operations))


class _Inlining:
    def __init__(self, path: Path, library: Mapping[str, Function]) -> None:
        self.path = path
        self.library = library
        self.found = Inlined()
        self.count = 0

    def run(self, operations: Sequence[Operation]) -> Inlined:
        self.add(operations, "", {}, 0)
        return self.found

    def add(
        self, operations: Sequence[Operation], scope: str, given: Mapping[str, str], depth: int
    ) -> dict[str, str]:
        """Add a body; what its values are called outside.

        Parameters
        ----------
        given : mapping of str to str
            What the body's arguments are called outside.
        """
        if depth > _MAX_DEPTH:
            raise CheckpointError(f"{self.path}: functions call one another {depth} deep; refused")
        self._count(len(operations))
        ops = {operation.name: operation.op for operation in operations}
        names = dict(given)  # of what calls give, and of arguments
        calls = [each for each in operations if self._called(each) is not None]
        for call in calls:
            function = self._called(call)
            self._count(len(function.outputs) if function else 0)
            for number in range(len(function.outputs) if function else 0):
                suffix = f":{number}" if number else ""
                names[f"{call.name}{suffix}"] = f"{scope}{call.name}/result{suffix}"

        def outside(value: str) -> str:
            value = _plain(value, ops)
            return names.get(value, scope + value)

        for operation in operations:
            inputs = tuple(map(outside, operation.inputs))
            function = self._called(operation)
            if function is None:
                changed = replace(operation, name=scope + operation.name, inputs=inputs)
                self.found.operations.append(changed)
                self._note_bodies(changed)
                continue
            within = f"{scope}{operation.name}/"
            arguments = dict(zip(function.arguments, inputs, strict=False))
            inner = self.add(function.operations, within, arguments, depth + 1)
            inner_ops = {each.name: each.op for each in function.operations}
            for number, value in enumerate(function.outputs.values()):
                suffix = f":{number}" if number else ""
                name = f"{within}result{suffix}"
                plain = _plain(value, inner_ops)
                source = inner.get(plain, within + plain)
                self.found.operations.append(Operation("Identity", name, (source,)))
        return names

    def _count(self, more: int) -> None:
        self.count += more
        if self.count > _MAX_OPERATIONS:
            raise CheckpointError(
                f"{self.path}: has more than {_MAX_OPERATIONS} operations, those of functions "
                "counted at each call; refused as a bomb"
            )

    def _called(self, operation: Operation) -> Function | None:
        if operation.op in _CALLS:
            return self.library.get(operation.text("f"))
        return self.library.get(operation.op)  # of old: a function's name as the operation

    def _note_bodies(self, operation: Operation) -> None:
        for attribute in _BODIES.get(operation.op, ()):
            function = self.library.get(operation.text(attribute))
            for each in function.operations if function else ():
                self.found.bodies.append((operation.name, each))


def _plain(value: str, ops: Mapping[str, str]) -> str:
    """Write a value of a function's body, ``conv:output:0``, as a graph's."""
    name, *rest = value.split(":")
    if not rest or rest[0].isdecimal():
        return value
    output, number = rest[0], "".join(rest[1:]) or "0"
    if _FIRST.get(ops.get(name, ""), output) != output:
        number = output
    return name if number == "0" else f"{name}:{number}"
