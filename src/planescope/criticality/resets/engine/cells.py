"""The cells of a table of resets, evaluated together: the data once, each prefix once.

To import this is to import torch.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from planescope.criticality.confidence import accuracy_bounds
from planescope.criticality.resets.engine.answers import picked
from planescope.criticality.resets.engine.devices import BATCHES, COPIES_OF_LARGEST, computing_in
from planescope.criticality.resets.engine.tensors import Cell, Reader
from planescope.criticality.resets.parts.inputs import Inputs, copied, stacked
from planescope.criticality.resets.parts.prefix import split, survey

if TYPE_CHECKING:
    from planescope.criticality.resets.engine.answers import Judge
    from planescope.criticality.resets.engine.progress import Progress, Tally
    from planescope.criticality.resets.parts.inputs import Tensors, Values
    from planescope.criticality.resets.parts.prefix import Splittable, Survey
    from planescope.criticality.resets.parts.traced import Trace
    from planescope.data.roles import Batch

# Bytes of the batches of several snapshots, joined to one: a CPU gains nothing by more than its
# caches hold, a GPU by more than keeps it busy.
JOINED_BYTES = {"cpu": 4 << 20, "cuda": 64 << 20}
MOST_TOGETHER = 8


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The evaluation of cells: its order, batches and precision.

    Attributes
    ----------
    examples : int or None
        In all; None where nobody knows before the last batch.
    batch : int
        Examples a batch. The counts are exactly those of evaluating each cell by itself in batches
        of that size: the same kernels run on the same shapes.
    memory : int
        Bytes for values and weights that are kept; a batch on its way takes more.
    precision : str
        ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``.
    tolerance : float or None
    """

    examples: int | None
    batch: int
    memory: int
    precision: str
    tolerance: float | None

    def is_done(self, cell: Cell, tally: Tally) -> bool:
        """Tell whether a cell's accuracy is known as closely as asked; the trained one exactly."""
        if self.examples is None:
            return False
        if self.tolerance is None or not cell.names:
            return tally.examples == self.examples
        low, high = accuracy_bounds(tally.right, tally.examples, self.examples)
        return high - low <= 2 * self.tolerance


def evaluate(
    module: nn.Module,
    trace: Trace,
    batches: Iterable[Batch],
    cells: Sequence[Cell],
    plan: Plan,
    progress: Progress,
    judge: Judge,
    *,
    device: torch.device,
    on_cell: Callable[[str], None] | None = None,
    stop: threading.Event | None = None,
) -> str:
    """Count the answers of all cells.

    Groups of batches, as many as memory holds, go through the network together: before each layer
    they wait while its cells go through what follows.

    Parameters
    ----------
    module : torch.nn.Module
        In evaluation mode, on the device of the batches. Its parameters are not written, ever.
    trace : Trace
        Of the module.
    batches : iterable of Batch
        On the device, in the same order each time. They are gone through once.
    progress : Progress
        Gets the tallies; what it has already is not computed again.
    judge : Judge
        What is counted; it has looked at the first batch.
    device : torch.device
        Of the module.
    on_cell : callable, optional
        Called with the name of what is reset before its cells go through a group.
    stop : Event, optional
        Set it to stop between two batches.

    Returns
    -------
    str
        A note where the network had to be run as a whole for each cell; else "".
    """
    if all(plan.is_done(cell, progress[cell.key]) for cell in cells):
        return progress.note
    batches = iter(batches)
    first = next(batches)
    inputs = _inputs(first, device)
    with computing_in(plan.precision, device):
        network, note = split(module, trace, inputs)
        progress.note = note or progress.note  # kept with the tallies
        by_names: dict[tuple[str, ...], list[Cell]] = {}
        for cell in cells:
            by_names.setdefault(cell.names, []).append(cell)
        by_names.setdefault((), [])  # whose outputs all others are held against
        rows = [_Row(names, own, *network.uses(names)) for names, own in by_names.items()]
        rows.sort(key=lambda row: (row.start, not row.names))
        found = survey(network, inputs.example, {row.start for row in rows})
        kept = sum(cell.bytes for cell in cells) <= plan.memory // 2
        left = [
            cell for row in rows for cell in row.cells if not plan.is_done(cell, progress[cell.key])
        ]
        live = max(found.live_bytes[row.start] for row in rows)
        size = max(1, plan.memory // 2 // (max(live, 1) * first.size))
        with torch.inference_mode(), ThreadPoolExecutor(1) as pool:
            # A GPU leaves the processor time for that.
            is_cuda = device.type == "cuda"
            read = Reader(device, left if is_cuda else (), keep=kept, pool=pool)
            output = found.output_bytes * first.size
            several = max(1, plan.memory // 4 // max(1, output * len(cells)))
            waits = (
                network.steps > 1 and plan.tolerance is None
                and output * len(cells) <= plan.memory // 4
            )  # fmt: skip
            size = min(size, several if waits else max(1, plan.memory // 4 // max(1, output)))
            work = _Work(
                network, plan, progress, judge, found, read, stop or threading.Event(),
                first.size, device, waits=waits,
            )  # fmt: skip
            seen = 0
            for group in _groups(itertools.chain([first], batches), size):
                seen = work.through(group, seen, rows, on_cell)
    return progress.note


@dataclass(frozen=True, eq=False)
class _Row:
    """Cells that replace the same tensors, which play a part in some steps only."""

    names: tuple[str, ...]
    cells: list[Cell]
    start: int
    stop: int


Group = list["Batch"]


def _inputs(batch: Batch, device: torch.device) -> Inputs:
    return Inputs(args=batch.args, kwargs=batch.kwargs, size=batch.size, device=device)


@dataclass(eq=False)
class _Work:
    network: Splittable
    plan: Plan
    progress: Progress
    judge: Judge
    survey: Survey
    read: Reader
    stop: threading.Event
    # Examples of a batch that is not the last.
    size: int
    device: torch.device
    # Whether outputs are kept until those of the trained network are there, which spares a pass.
    waits: bool = False
    # Whether batches that are joined before a step give the same, where that was tried.
    tried: dict[int, bool] = field(default_factory=dict)
    # Of the batches of a group: outputs of the trained network, and those that wait for them.
    references: list[torch.Tensor] = field(default_factory=list)
    waiting: dict[Cell, list[tuple[int, torch.Tensor]]] = field(default_factory=dict)

    def through(
        self,
        group: Group,
        seen: int,
        rows: Sequence[_Row],
        on_cell: Callable[[str], None] | None,
    ) -> int:
        """Take a group through the network; the examples seen with it are given back."""
        position, flows = 0, [self.network.begin(_inputs(b, self.device)) for b in group]
        seen_then = seen + sum(batch.size for batch in group)
        every = [cell for row in rows for cell in row.cells]
        if all(self._is_done(cell, seen_then) for cell in every):
            return seen_then
        self.references, began = [], time.monotonic()
        if not self.waits:
            self.references = [self._answer(copied(flow), 0, {}) for flow in flows]
        for row in rows:
            left = [cell for cell in row.cells if not self._is_done(cell, seen_then)]
            if not row.names:
                self._settle(flows, position, group)
                for cell in left:
                    self._judge(cell, list(enumerate(self.references)), group)
                continue
            if not left:
                continue
            for flow in flows:
                self.network.advance(flow, position, row.start, {})
            position = row.start
            try:
                for cells in _chunks(left, self._most(row)):
                    if on_cell is not None:
                        on_cell(row.cells[0].layer)
                    self._count(row, cells, flows, group, seen)
            except BaseException:
                # What was computed is not to be lost where work is kept.
                with contextlib.suppress(Exception):
                    self._settle(flows, position, group)
                raise
            if self.progress.is_kept and time.monotonic() - began > self.progress.patience:
                self._settle(flows, position, group)
        self.progress.save()
        return seen_then

    def _settle(self, flows: Sequence[Values], position: int, group: Group) -> None:
        """Count what waits for the outputs of the trained network, which are found if need be."""
        if not self.references:
            changes = self.survey.changes.get(position, True)
            own = [copied(flow) if changes else flow for flow in flows]
            self.references = [self._answer(flow, position, {}) for flow in own]
        waiting, self.waiting = self.waiting, {}
        for cell, found in waiting.items():
            self._judge(cell, found, group)

    def _judge(self, cell: Cell, found: Sequence[tuple[int, torch.Tensor]], group: Group) -> None:
        """Count outputs of a cell, which are given with the numbers of their batches."""
        if found:
            self.judge.judge(
                self.progress[cell.key],
                [output for _, output in found],
                [self.references[index] for index, _ in found],
                [group[index] for index, _ in found],
            )

    def _answer(self, values: Values, start: int, tensors: Tensors) -> torch.Tensor:
        """Take the answer out of the network's output."""
        answer: torch.Tensor = picked(self.network.finish(values, start, tensors), self.judge.pick)
        return answer

    def _is_done(self, cell: Cell, examples: int) -> bool:
        tally = self.progress[cell.key]
        waiting = self.waiting.get(cell)
        return tally.examples >= examples or (not waiting and self.plan.is_done(cell, tally))

    def _join(self, row: _Row) -> int:
        """Step before which the batches of a row's cells become one; the last step is never."""
        allowed = min(
            JOINED_BYTES.get(self.device.type, JOINED_BYTES["cpu"]), self.plan.memory // 4
        )
        several = self.size * min(len(row.cells), MOST_TOGETHER)
        steps = range(row.stop, self.network.steps)
        fitting = (step for step in steps if several * self.survey.live_bytes[step] <= allowed)
        join = next(fitting, self.network.steps)
        return join if self.tried.get(join, True) else self.network.steps

    def _most(self, row: _Row) -> int:
        """Return how many cells of a row may go through the network together."""
        join = self._join(row)
        if join == self.network.steps:
            return 1
        peak = self.size * COPIES_OF_LARGEST * max(self.survey.live_bytes[join:])
        _, allowed = BATCHES.get(self.device.type, BATCHES["cpu"])
        fitting = min(allowed // peak, self.plan.memory // 2 // row.cells[0].bytes)
        return min(max(1, fitting), MOST_TOGETHER)

    def _count(
        self,
        row: _Row,
        cells: Sequence[Cell],
        flows: Sequence[Values],
        group: Group,
        seen: int,
    ) -> None:
        """Count the answers of the batches that the tallies do not have yet."""
        tensors = {cell: self.read(cell) for cell in cells}
        for index, (values, batch) in enumerate(zip(flows, group, strict=True)):
            seen += batch.size
            left = [cell for cell in cells if not self._is_done(cell, seen)]
            if self.stop.is_set() or not left:
                continue
            replaced = [tensors[cell] for cell in left]
            if len(left) > 1 and batch.size == self.size:
                outputs = self._together(row, replaced, values)
            else:
                outputs = self._apart(row, replaced, values)
            for cell, answer in zip(left, outputs, strict=True):
                if not self.references:
                    self.waiting.setdefault(cell, []).append((index, answer))
                else:
                    self._judge(cell, [(index, answer)], group)
        if self.references:
            self.progress.save()

    def _apart(
        self, row: _Row, several: Sequence[Tensors], values: Values
    ) -> Iterable[torch.Tensor]:
        """Yield the outputs for a batch with other tensors in place each time."""
        for tensors in several:
            yield self._answer(self._own(row, values), row.start, tensors)

    def _together(
        self, row: _Row, several: Sequence[Tensors], values: Values
    ) -> Iterable[torch.Tensor]:
        """Return the same, as one batch from the step on where that is tried to change nothing."""
        join = self._join(row)
        if join == self.network.steps:
            return self._apart(row, several, values)
        if join in self.tried:
            return self._joined(row, several, values, join)
        apart = list(self._apart(row, several, values))
        self.tried[join] = self._is_same(row, several[:2], values, join, apart[:2])
        return apart

    def _is_same(
        self,
        row: _Row,
        several: Sequence[Tensors],
        values: Values,
        join: int,
        apart: Sequence[torch.Tensor],
    ) -> bool:
        try:
            joined = self._joined(row, several, values, join)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # forward is anybody's code, and may be for one size of batches alone
            return False
        return len(joined) == len(apart) and all(map(torch.equal, joined, apart))

    def _joined(
        self, row: _Row, several: Sequence[Tensors], values: Values, join: int
    ) -> list[torch.Tensor]:
        parts = [self._own(row, values) for _ in several]
        for part, tensors in zip(parts, several, strict=True):
            self.network.advance(part, row.start, join, tensors)
        outputs = self._answer(stacked(parts, self.size), join, {})
        return [outputs[at : at + self.size] for at in range(0, len(outputs), self.size)]

    def _own(self, row: _Row, values: Values) -> Values:
        """Return the values that may be changed."""
        return copied(values) if self.survey.changes[row.start] else dict(values)


def _groups(batches: Iterator[Batch], size: int) -> Iterator[Group]:
    while group := list(itertools.islice(batches, size)):
        yield group


def _chunks(cells: Sequence[Cell], size: int) -> Iterator[Sequence[Cell]]:
    for start in range(0, len(cells), size):
        yield cells[start : start + size]
