"""Values of a TensorFlow graph: its constants, and what depends on the network's input."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

from planescope.checkpoints.onnx.constants.arithmetic import reshaped
from planescope.checkpoints.tensorflow.folding import SILENT, fold
from planescope.checkpoints.tensorflow.names import maker
from planescope.checkpoints.tensorflow.operations import Operation
from planescope.checkpoints.tensorflow.words import (
    BOOL,
    INPUTS,
    LOOPS,
    NEXT,
    ROLES,
    SAME_CHANNELS,
)
from planescope.files.errors import CheckpointError
from planescope.hyperplanes.layer import Tensor
from planescope.networks.graph.places import Role

_MAX_FOLDS = 24  # operations in a row on a constant, or between a layer and its norm
# Elements of a constant that is looked at to see whether any is negative.
_MAX_LOOK = 1 << 16


class Constant(NamedTuple):
    """A value that does not depend on the network's input, and the operation that stores it."""

    tensor: Tensor
    root: str


class Values:
    """The operations of a graph in order, and what is known of their values.

    Attributes
    ----------
    order : list of Operation
        Each behind those that it reads; of a loop, in the order of the file.
    varies : dict of str to bool
        Whether what an operation gives depends on the network's input.
    channels : dict of str to int or None
        How many channels it gives, where that is known.
    looped : set of str
        Names of the stored weights that loops take.
    """

    def __init__(
        self,
        path: Path,
        operations: Iterable[Operation],
        stored: Callable[[Operation], Tensor | None],
    ) -> None:
        self.path = path
        self.by_name = {operation.name: operation for operation in operations}
        self._stored = stored
        self._readers: defaultdict[str, list[Operation]] = defaultdict(list)
        for operation in self.by_name.values():
            for name in dict.fromkeys(map(maker, operation.inputs)):
                self._readers[name].append(operation)
        self._constants: dict[str, Constant | None] = {}
        self._channels_last = all(
            each.text("data_format", "NHWC").endswith("C") for each in self.by_name.values()
        )
        self.order = self._in_order()
        self.varies: dict[str, bool] = {}
        for operation in self.order:
            self.varies[operation.name] = self._depends_on_input(operation)
        self.looped = {
            found.root
            for operation in self.order
            if operation.op in LOOPS
            for value in operation.inputs
            if self.is_weight(value) and (found := self.constant(value))
        }
        self.channels: dict[str, int | None] = {}

    def _in_order(self) -> list[Operation]:
        """Return each operation behind those that it reads; of a loop, in the order of the file."""
        sources = {
            name: [source for source in map(maker, operation.inputs) if source in self.by_name]
            for name, operation in self.by_name.items()
        }
        try:
            order = list(TopologicalSorter(sources).static_order())
        except CycleError:
            for operation in self.by_name.values():
                if operation.op in NEXT:
                    sources[operation.name] = []
            try:
                order = list(TopologicalSorter(sources).static_order())
            except CycleError as exc:
                raise CheckpointError(
                    f"{self.path}: its operations read one another in a circle; get it again"
                ) from exc
        return [self.by_name[name] for name in order]

    def _depends_on_input(self, operation: Operation) -> bool:
        if operation.op in INPUTS:
            return operation.attributes.get("dtype") != BOOL  # that of a switch
        if operation.op in NEXT:  # of a loop, whose last round it gives
            return True
        if ROLES.get(operation.op) is Role.CONSTANT:
            return False
        return any(self.varies.get(maker(name), False) for name in operation.inputs)

    def known_channels(self, operation: Operation) -> int | None:
        """Tell how many channels an operation gives, as far as the operations before it tell."""
        shape = operation.integers("shape")
        if operation.op in INPUTS and len(shape) > 2 and self._channels_last:
            return shape[-1] if shape[-1] > 0 else None
        if operation.op not in SAME_CHANNELS or not self._keeps_last(operation):
            return None
        known = {
            self.channels.get(maker(name))
            for name in operation.inputs
            if self.varies.get(maker(name), True)
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

    def is_weight(self, value: str) -> bool:
        """Tell whether a value is a constant of numbers with several axes."""
        found = self.constant(value) if not self.varies.get(maker(value), False) else None
        return found is not None and found.tensor.is_floating and len(found.tensor.shape) > 1

    def is_table(self, operation: Operation) -> bool:
        """Tell whether what an operation reads first is a constant matrix."""
        found = self.constant(operation.inputs[0]) if operation.inputs else None
        return found is not None and found.tensor.is_floating and len(found.tensor.shape) == 2

    def constant(self, value: str, folds: int = 0) -> Constant | None:
        """Give a value that is stored, or made of stored ones by operations that we follow."""
        if value not in self._constants:
            self._constants[value] = self._constant(value, folds)
        return self._constants[value]

    def _constant(self, value: str, folds: int) -> Constant | None:
        operation = self.by_name.get(value)  # of the first output alone
        if operation is None or folds == _MAX_FOLDS:
            return None
        tensor = self._stored(operation)
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

    def is_non_negative(self, value: str) -> bool:
        """Tell whether a value is a constant without a number below 0."""
        found = self.constant(value)
        if found is None or math.prod(found.tensor.shape) > _MAX_LOOK:
            return False
        return "type" not in found.tensor.dtype and bool((found.tensor.read() >= 0).all())

    def per_filter(self, value: str, filters: int) -> Tensor | None:
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

    def operand(self, operation: Operation, filters: int) -> Tensor | None:
        """Give the constant, one for each filter, that an operation joins to a value."""
        constants = [n for n in operation.inputs if not self.varies.get(maker(n), False)]
        known = [found for n in constants if (found := self.per_filter(n, filters)) is not None]
        return known[0] if len(constants) == len(known) == 1 else None

    def only_reader(self, value: str, passing: Iterable[str]) -> Operation | None:
        """Find the operation that alone reads a value, behind such as only hand it on."""
        for _ in range(_MAX_FOLDS):
            readers = self._readers.get(value, ())
            if len(readers) != 1:
                return None
            if readers[0].op not in passing:
                return readers[0]
            value = readers[0].name
        return None

    def made_by(self, value: str) -> Operation | None:
        """Find the operation that makes a constant, before such as only hand it on."""
        for _ in range(_MAX_FOLDS):
            operation = self.by_name.get(value)
            if operation is None or operation.op not in (*SILENT, "Reshape", "ExpandDims"):
                return operation
            if not operation.inputs:
                return None
            value = operation.inputs[0]
        return None
