"""The cells of a table of resets, evaluated together: the data once, each prefix once.

To import this is to import torch.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from planescope.confidence import accuracy_bounds
from planescope.resetting.prefixes import Cut, Splittable, copied, split, survey

if TYPE_CHECKING:
    from planescope.resetting.prefixes import Tensors, Values
    from planescope.resetting.tallies import Progress, Tally

# Memory by default: half of what is free, but no more than this; groups of batches gain little
# beyond. And what is taken where the system does not tell.
MOST_BYTES, UNKNOWN_BYTES = 2 << 30, 1 << 30
# Examples of a batch, at most, and the bytes that it may fill: by the kind of device.
BATCHES = {"cpu": (256, 512 << 20), "cuda": (2048, 4 << 30)}
# A step holds what it reads, what it gives, and what it works with.
COPIES_OF_LARGEST = 4

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
    batches : iterable of (inputs, labels)
        Of `plan.batch` examples, in the same order each time. They are gone through once.
    progress : Progress
        Gets the tallies; what it has already is not computed again.
    on_cell : callable, optional
        Called with the name of what is reset before each cell and group.
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
        network, note = split(module, example)
        starts = {names: network.first_use(names) for names in {cell.names for cell in cells}}
        cuts = survey(network, example, starts.values())
        ordered = sorted(cells, key=lambda cell: starts[cell.names])
        work = _Work(network, plan, progress, starts, cuts, stop or threading.Event())
        kept = sum(cell.bytes for cell in cells) <= plan.memory // 2
        read = _Reader(example.device, keep=kept)
        live = max((cut.live_bytes for cut in cuts.values()), default=1)
        size = max(1, plan.memory // 2 // (live * plan.batch))
        with torch.inference_mode():
            seen = 0
            for group in _groups(itertools.chain([first], batches), size):
                seen = work.through(group, seen, ordered, read, on_cell)
    return note


class _Reader:
    """Tensors of cells; read once where there is memory for all."""

    def __init__(self, device: torch.device, *, keep: bool) -> None:
        self._device = device
        self._kept: dict[str, dict[str, torch.Tensor]] | None = {} if keep else None

    def __call__(self, cell: Cell) -> dict[str, torch.Tensor]:
        if self._kept is None:
            return cell.read(self._device)
        if cell.key not in self._kept:
            self._kept[cell.key] = cell.read(self._device)
        return self._kept[cell.key]


Group = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, eq=False)
class _Work:
    network: Splittable
    plan: Plan
    progress: Progress
    starts: dict[tuple[str, ...], int]
    cuts: dict[int, Cut]
    stop: threading.Event

    def through(
        self,
        group: Group,
        seen: int,
        cells: Sequence[Cell],
        read: _Reader,
        on_cell: Callable[[str], None] | None,
    ) -> int:
        """Take a group through the network; the examples seen with it are given back."""
        position, flows = 0, [self.network.begin(inputs) for inputs, _ in group]
        labels = [labels for _, labels in group]
        seen_then = seen + sum(map(len, labels))
        for cell in cells:
            tally = self.progress[cell.key]
            if tally.examples >= seen_then or self.plan.is_done(cell, tally):
                continue
            if on_cell is not None:
                on_cell(cell.layer)
            start = self.starts[cell.names]
            for flow in flows:
                self.network.advance(flow, position, start)
            position = start
            self._count(cell, tally, flows, labels, seen, read(cell))
        return seen_then

    def _count(
        self,
        cell: Cell,
        tally: Tally,
        flows: Sequence[Values],
        labels: Sequence[torch.Tensor],
        seen: int,
        tensors: Tensors,
    ) -> None:
        """Count the answers of the batches that the tally does not have yet."""
        start = self.starts[cell.names]
        changes = self.cuts[start].changes
        found = []
        for values, right_labels in zip(flows, labels, strict=True):
            seen += len(right_labels)
            if seen <= tally.examples or self.stop.is_set():
                continue
            own = copied(values) if changes else values
            found.append(_answers(self.network.finish(own, start, tensors), right_labels))
            if self.plan.tolerance is not None:
                _add(tally, found)
                if self.plan.is_done(cell, tally):
                    break
        _add(tally, found)
        self.progress.save()


def _answers(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Which answers are right, how many among the five best, and the sum of losses."""
    logits = logits.float()
    best = logits.topk(min(5, logits.shape[1])).indices
    losses = cross_entropy(logits, labels, reduction="none")
    return (
        logits.argmax(1) == labels,
        (best == labels[:, None]).sum(),
        losses.sum(dtype=torch.float64),
    )


def _add(tally: Tally, found: list[tuple[torch.Tensor, ...]]) -> None:
    """Count answers, for which the device is waited for."""
    for right, top5, loss in found:
        tally.add(right.cpu().numpy().tobytes(), int(top5), float(loss))
    found.clear()


def _groups(batches: Iterator[Any], size: int) -> Iterator[Group]:
    while group := list(itertools.islice(batches, size)):
        yield group


@contextlib.contextmanager
def _precision(precision: str, device: torch.device) -> Iterator[None]:
    dtype = PRECISIONS.get(precision)
    with torch.autocast(device.type, dtype, enabled=True) if dtype else contextlib.nullcontext():
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
