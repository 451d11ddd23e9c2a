"""The cells of a table of resets, evaluated together: the data once, each prefix once.

To import this is to import torch.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from planescope.criticality.confidence import accuracy_bounds
from planescope.criticality.resets.prefix import copied, split, stacked, survey

if TYPE_CHECKING:
    from planescope.criticality.resets.prefix import Splittable, Survey, Tensors, Trace, Values
    from planescope.criticality.resets.progress import Progress, Tally

# Memory by default: half of what is free, but no more than this; groups of batches gain little
# beyond. And what is taken where the system does not tell.
MOST_BYTES, UNKNOWN_BYTES = 2 << 30, 1 << 30
# Examples of a batch, at most, and the bytes that it may fill: by the kind of device.
BATCHES = {"cpu": (256, 512 << 20), "cuda": (2048, 4 << 30)}
# A step holds what it reads, what it gives, and what it works with.
COPIES_OF_LARGEST = 4
# Bytes of the batches of several snapshots, joined to one: a CPU gains nothing by more than its
# caches hold, a GPU by more than keeps it busy.
JOINED_BYTES = {"cpu": 4 << 20, "cuda": 64 << 20}
MOST_TOGETHER = 8
# Of weights that wait in the host's memory for a GPU.
AHEAD_BYTES = 2 << 30

PRECISIONS = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """Parameters and buffers to put in place of the trained ones; none: the network as it is.

    Attributes
    ----------
    key : str
        Name of its tally.
    layer : str
        What is reset, for progress.
    names : tuple of str
        Of all tensors that are replaced.
    read : callable
        Gives them on a device.
    bytes : int
        What they take.
    """

    key: str
    layer: str
    names: tuple[str, ...]
    read: Callable[[torch.device], dict[str, torch.Tensor]]
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How cells are evaluated.

    Attributes
    ----------
    examples : int
        In all.
    batch : int
        Examples a batch. The counts are exactly those of evaluating each cell by itself in batches
        of that size: the same kernels run on the same shapes.
    memory : int
        Bytes for values and weights that are kept; a batch on its way takes more.
    precision : str
        ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``.
    tolerance : float or None
    """

    examples: int
    batch: int
    memory: int
    precision: str
    tolerance: float | None

    def is_done(self, cell: Cell, tally: Tally) -> bool:
        """Whether a cell's accuracy is known as well as was asked for; the trained one exactly."""
        if self.tolerance is None or not cell.names:
            return tally.examples == self.examples
        low, high = accuracy_bounds(tally.right.count(1), tally.examples, self.examples)
        return high - low <= 2 * self.tolerance


def evaluate(
    module: nn.Module,
    trace: Trace,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    cells: Sequence[Cell],
    plan: Plan,
    progress: Progress,
    *,
    on_cell: Callable[[str], None] | None = None,
    stop: threading.Event | None = None,
) -> str:
    """Count the right answers of all cells.

    Groups of batches, as many as memory holds, go through the network together: before each layer
    they wait while its cells go through what follows.

    Parameters
    ----------
    module : torch.nn.Module
        In evaluation mode, on the device of the batches. Its parameters are not written, ever.
    trace : Trace
        Of the module.
    batches : iterable of (inputs, labels)
        Of `plan.batch` examples, in the same order each time. They are gone through once.
    progress : Progress
        Gets the tallies; what it has already is not computed again.
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
        return ""
    batches = iter(batches)
    first = next(batches)
    example = first[0][:1]
    with _precision(plan.precision, example.device):
        network, note = split(module, trace, first[0])
        by_names: dict[tuple[str, ...], list[Cell]] = {}
        for cell in cells:
            by_names.setdefault(cell.names, []).append(cell)
        rows = [_Row(own, *network.uses(names)) for names, own in by_names.items()]
        rows.sort(key=lambda row: row.start)
        found = survey(network, example, {row.start for row in rows})
        kept = sum(cell.bytes for cell in cells) <= plan.memory // 2
        left = [
            cell for row in rows for cell in row.cells if not plan.is_done(cell, progress[cell.key])
        ]
        live = max(found.live_bytes[row.start] for row in rows)
        size = max(1, plan.memory // 2 // (max(live, 1) * plan.batch))
        with torch.inference_mode(), ThreadPoolExecutor(1) as pool:
            # A GPU leaves the processor time for that.
            read = _Reader(example.device, left if example.is_cuda else (), keep=kept, pool=pool)
            work = _Work(
                network, plan, progress, found, read, stop or threading.Event(), len(first[0]),
                example.device.type,
            )  # fmt: skip
            seen = 0
            for group in _groups(itertools.chain([first], batches), size):
                seen = work.through(group, seen, rows, on_cell)
    return note


@dataclass(frozen=True, eq=False)
class _Row:
    """Cells that replace the same tensors, which play a part in some steps only."""

    cells: list[Cell]
    start: int
    stop: int


class _Reader:
    """Tensors of cells; read once where there is memory for all.

    Where cells are given in the order in which they come, those of the next ones are read
    meanwhile, as many as `AHEAD_BYTES` hold.
    """

    def __init__(
        self, device: torch.device, order: Iterable[Cell], *, keep: bool, pool: Executor
    ) -> None:
        self._device, self._pool = device, pool
        self._next = deque(order)
        self._ahead: dict[Cell, Future[dict[str, torch.Tensor]]] = {}
        self._kept: dict[Cell, dict[str, torch.Tensor]] | None = {} if keep else None

    def __call__(self, cell: Cell) -> dict[str, torch.Tensor]:
        if self._kept is None:
            return self._read(cell)
        if cell not in self._kept:
            self._kept[cell] = self._read(cell)
        return self._kept[cell]

    def _read(self, cell: Cell) -> dict[str, torch.Tensor]:
        if self._next and self._next[0] is cell:  # the first of all
            self._next.popleft()
        ahead = self._ahead.pop(cell, None)
        tensors = cell.read(self._device) if ahead is None else ahead.result()
        held = sum(other.bytes for other in self._ahead)
        while self._next and held + self._next[0].bytes <= AHEAD_BYTES:
            following = self._next.popleft()
            held += following.bytes
            self._ahead[following] = self._pool.submit(following.read, torch.device("cpu"))
        return {name: tensor.to(self._device) for name, tensor in tensors.items()}


Group = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(eq=False)
class _Work:
    network: Splittable
    plan: Plan
    progress: Progress
    survey: Survey
    read: _Reader
    stop: threading.Event
    # Examples of a batch that is not the last, and the kind of device.
    size: int
    kind: str
    # Whether batches that are joined before a step give the same, where that was tried.
    tried: dict[int, bool] = field(default_factory=dict)

    def through(
        self,
        group: Group,
        seen: int,
        rows: Sequence[_Row],
        on_cell: Callable[[str], None] | None,
    ) -> int:
        """Take a group through the network; the examples seen with it are given back."""
        position, flows = 0, [self.network.begin(inputs) for inputs, _ in group]
        labels = [labels for _, labels in group]
        seen_then = seen + sum(map(len, labels))
        for row in rows:
            left = [cell for cell in row.cells if not self._is_done(cell, seen_then)]
            if not left:
                continue
            for flow in flows:
                self.network.advance(flow, position, row.start, {})
            position = row.start
            for cells in _chunks(left, self._most(row)):
                if on_cell is not None:
                    on_cell(row.cells[0].layer)
                self._count(row, cells, flows, labels, seen)
        return seen_then

    def _is_done(self, cell: Cell, examples: int) -> bool:
        tally = self.progress[cell.key]
        return tally.examples >= examples or self.plan.is_done(cell, tally)

    def _join(self, row: _Row) -> int:
        """Step before which the batches of a row's cells become one; the last step is never."""
        allowed = min(JOINED_BYTES.get(self.kind, JOINED_BYTES["cpu"]), self.plan.memory // 4)
        several = self.size * min(len(row.cells), MOST_TOGETHER)
        steps = range(row.stop, self.network.steps)
        fitting = (step for step in steps if several * self.survey.live_bytes[step] <= allowed)
        join = next(fitting, self.network.steps)
        return join if self.tried.get(join, True) else self.network.steps

    def _most(self, row: _Row) -> int:
        """How many cells of a row may go through the network together."""
        join = self._join(row)
        if join == self.network.steps:
            return 1
        peak = self.size * COPIES_OF_LARGEST * max(self.survey.live_bytes[join:])
        _, allowed = BATCHES.get(self.kind, BATCHES["cpu"])
        fitting = min(allowed // peak, self.plan.memory // 2 // row.cells[0].bytes)
        return min(max(1, fitting), MOST_TOGETHER)

    def _count(
        self,
        row: _Row,
        cells: Sequence[Cell],
        flows: Sequence[Values],
        labels: Sequence[torch.Tensor],
        seen: int,
    ) -> None:
        """Count the answers of the batches that the tallies do not have yet."""
        tensors = {cell: self.read(cell) for cell in cells}
        found: dict[Cell, list[tuple[torch.Tensor, ...]]] = {cell: [] for cell in cells}
        for values, right_labels in zip(flows, labels, strict=True):
            seen += len(right_labels)
            left = [cell for cell in cells if not self._is_done(cell, seen)]
            if self.stop.is_set() or not left:
                continue
            replaced = [tensors[cell] for cell in left]
            if len(left) > 1 and len(right_labels) == self.size:
                outputs = self._together(row, replaced, values)
            else:
                outputs = self._apart(row, replaced, values)
            for cell, logits in zip(left, outputs, strict=True):
                found[cell].append(_answers(logits, right_labels))
                if self.plan.tolerance is not None:
                    _add(self.progress[cell.key], found[cell])
        for cell in cells:
            _add(self.progress[cell.key], found[cell])
        self.progress.save()

    def _apart(
        self, row: _Row, several: Sequence[Tensors], values: Values
    ) -> Iterable[torch.Tensor]:
        """Outputs for a batch with other tensors in place each time."""
        for tensors in several:
            yield self.network.finish(self._own(row, values), row.start, tensors)

    def _together(
        self, row: _Row, several: Sequence[Tensors], values: Values
    ) -> Iterable[torch.Tensor]:
        """The same, as one batch from the step on where that is tried to change nothing."""
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
        outputs = self.network.finish(stacked(parts, self.size), join, {})
        return [outputs[at : at + self.size] for at in range(0, len(outputs), self.size)]

    def _own(self, row: _Row, values: Values) -> Values:
        """Values that may be changed."""
        return copied(values) if self.survey.changes[row.start] else dict(values)


def _answers(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Which answers are right, how many among the five best, the sum of losses, and how many none.

    An output that is not a number is a wrong answer, which the largest of others would not tell.
    """
    logits = logits.float()
    none = logits.isnan().any(1)
    best = logits.topk(min(5, logits.shape[1])).indices
    losses = cross_entropy(logits, labels, reduction="none")
    return (
        (logits.argmax(1) == labels) & ~none,
        ((best == labels[:, None]) & ~none[:, None]).sum(),
        losses.sum(dtype=torch.float64),
        none.sum(),
    )


def _add(tally: Tally, found: list[tuple[torch.Tensor, ...]]) -> None:
    """Count answers, for which the device is waited for."""
    for right, top5, loss, none in found:
        tally.add(right.cpu().numpy().tobytes(), int(top5), float(loss), int(none))
    found.clear()


def _groups(batches: Iterator[Any], size: int) -> Iterator[Group]:
    while group := list(itertools.islice(batches, size)):
        yield group


def _chunks(cells: Sequence[Cell], size: int) -> Iterator[Sequence[Cell]]:
    for start in range(0, len(cells), size):
        yield cells[start : start + size]


@contextlib.contextmanager
def _precision(precision: str, device: torch.device) -> Iterator[None]:
    dtype = PRECISIONS.get(precision)
    # Whatever precision the caller computes in.
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        yield


def default_memory(device: torch.device, /) -> int:
    """Bytes to use where nobody says: half of what is free, within reason."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] // 2)
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on every system
        free = 2 * UNKNOWN_BYTES
    return min(free // 2, MOST_BYTES)


def batch_size(module: nn.Module, example: torch.Tensor, memory: int | None, kind: str, /) -> int:
    """Examples a batch: a power of 2, from the network and what the user allows alone.

    What happens to be free plays no part: work that goes on must have the same batches.

    Parameters
    ----------
    module : torch.nn.Module
        In evaluation mode.
    example : torch.Tensor, shape (1, channels, height, width)
    memory : int or None
        Bytes that the user allows.
    kind : str
        Of the device that batches will be on: ``"cpu"``, ``"cuda"``.
    """
    largest = example.nbytes

    def look(_module: nn.Module, _args: Any, output: Any) -> None:
        nonlocal largest
        largest = max(largest, getattr(output, "nbytes", 0))

    hooks = [part.register_forward_hook(look) for part in module.modules()]
    try:
        with torch.inference_mode():
            module(example.clone())
    finally:
        for hook in hooks:
            hook.remove()
    size, allowed = BATCHES.get(kind, BATCHES["cpu"])
    if memory is not None:
        allowed = min(allowed, memory // 4)
    while size > 1 and size * largest * COPIES_OF_LARGEST > allowed:
        size //= 2
    return size
