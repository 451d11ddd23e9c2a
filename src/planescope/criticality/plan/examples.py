"""Inputs that a network is repaired or planned on, and those that are kept back to check it.

To import this is to import torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from planescope.criticality.plan.patches import CONVOLUTIONS
from planescope.criticality.resets.answers import Pick, picked
from planescope.criticality.synthetic import choose
from planescope.data.batches import batches
from planescope.data.load import DataOptions, Files, Images, load
from planescope.data.loaders import Batch, Loader, call_loader, open_loader
from planescope.data.pictures import Bank
from planescope.files.errors import UsageError, one_line, own_place

if TYPE_CHECKING:
    import os

    from planescope.data.images import Split
    from planescope.data.loaders import Unpack

# Of every so many examples the last is kept back.
_FOURTH = 4
# Examples of a batch that is made here.
_BATCH = 100
# Pixels a side of synthetic pictures, where nobody tells.
_SIDE = 32


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Batches for fitting, and batches that nothing is fitted to.

    Attributes
    ----------
    name : str
        For tables.
    fit, check : list of Batch
    notes : list of str
    """

    name: str
    fit: list[Batch]
    check: list[Batch]
    notes: list[str] = field(default_factory=list)

    @property
    def fitted(self) -> int:
        """Examples for fitting."""
        return sum(batch.size for batch in self.fit)

    @property
    def checked(self) -> int:
        """Examples kept back."""
        return sum(batch.size for batch in self.check)


def take(
    data: Any,
    module: nn.Module,
    /,
    *,
    most: int,
    device: torch.device,
    unpack: Unpack | None = None,
    data_path: str | os.PathLike[str] | None = None,
    data_options: DataOptions | None = None,
    split: Split = "val",
    seed: int = 0,
) -> Examples:
    """Take the first examples of what a user handed over, and keep every fourth of them back.

    Of what has examples by number, so many are drawn at random.

    Raises
    ------
    UsageError
        If there are fewer than two, one holds a number that is none, or the network does not take
        them.
    """
    name, notes, source = _opened(
        data, module, most, device, unpack, data_path, data_options, split, seed
    )
    taken: list[Batch] = []
    left = most
    for batch in source:
        rows = torch.arange(min(batch.size, left), device=device)
        taken.append(batch if len(rows) == batch.size else rows_of(batch, rows))
        left -= len(rows)
        if not left:
            break
    total = most - left
    if total < 2:
        raise UsageError(f"{name}: gives {total} example; give two or more, some to check against")
    _check(taken, module, name)
    fit: list[Batch] = []
    check: list[Batch] = []
    start = 0
    every = min(_FOURTH, total)
    for batch in taken:
        numbers = torch.arange(start, start + batch.size, device=device) % every
        kept_back = numbers == every - 1
        start += batch.size
        for rows, into in ((~kept_back, fit), (kept_back, check)):
            if bool(rows.any()):
                into.append(rows_of(batch, rows.nonzero()[:, 0]))
    return Examples(name=name, fit=fit, check=check, notes=notes)


def halves(both: Examples, most: int, /) -> tuple[Examples, list[Batch]]:
    """Part examples into those that are worked with and those that choose nothing.

    Of more than `most` every second one is set apart; else none.
    """
    if both.fitted + both.checked <= most:
        return both, []
    first: dict[str, list[Batch]] = {"fit": [], "check": []}
    rest: list[Batch] = []
    for name, several in (("fit", both.fit), ("check", both.check)):
        start = 0
        for batch in several:
            odd = (torch.arange(start, start + batch.size) % 2).bool()
            start += batch.size
            for rows, into in ((~odd, first[name]), (odd, rest)):
                if bool(rows.any()):
                    into.append(rows_of(batch, rows.nonzero()[:, 0]))
    return replace(both, fit=first["fit"], check=first["check"]), rest


def synthetic(
    module: nn.Module,
    shape: tuple[int, ...] | None,
    /,
    *,
    most: int,
    seed: int = 0,
    pick: Pick | None = None,
) -> tuple[torch.Tensor, list[str]]:
    """Choose synthetic pictures for a network of which no input is known.

    Without a shape, channels are those of the first convolution, and pictures of 32 pixels a side
    are assumed, which a note says.

    Raises
    ------
    UsageError
        If the network takes no such pictures, or answers the same to all.
    """
    notes = []
    if shape is None:
        first = next((m for m in module.modules() if isinstance(m, CONVOLUTIONS)), None)
        shape = (3 if first is None else first.in_channels, _SIDE, _SIDE)
        sizes = "×".join(map(str, shape))
        notes.append(f"nobody told the size of the inputs: {sizes} was assumed")
    if len(shape) != 3:
        raise UsageError("an input shape of pictures has channels, height and width")
    held = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(1))

    def run(pictures: Any) -> torch.Tensor:
        with torch.no_grad():
            given = torch.from_numpy(pictures.copy()).to(held)
            found: torch.Tensor = picked(module(given), pick)
        return found

    sizes = "×".join(map(str, shape))
    bank = Bank(channels=shape[0], height=shape[1], width=shape[2], seed=seed)
    try:
        output = run(next(iter(bank))[:2])
    except (RuntimeError, ValueError, TypeError, IndexError) as exc:
        raise UsageError(
            f"the network takes no pictures of {sizes} ({one_line(exc)}); give their size, or "
            "inputs of its own by --data (data=)"
        ) from exc
    of_classes = output.ndim > 1 and output.shape[1] > 1
    chosen = choose(lambda p: run(p).double().cpu().numpy(), bank, of_classes=of_classes)
    rows = torch.linspace(0, len(chosen.images) - 1, min(most, len(chosen.images))).long()
    return torch.from_numpy(chosen.images)[rows].to(held), notes


def _opened(
    data: Any,
    module: nn.Module,
    most: int,
    device: torch.device,
    unpack: Unpack | None,
    data_path: str | os.PathLike[str] | None,
    data_options: DataOptions | None,
    split: Split,
    seed: int,
) -> tuple[str, list[str], Iterator[Batch]]:
    if isinstance(data, str):
        found = None
        if ":" in data and not data.startswith("folder:"):
            found = call_loader(data, split)
        if found is None:
            where = None if data_path is None else Path(data_path)
            found = load(data, split=split, path=where, options=data_options or DataOptions())
        name, data = data, found
        if isinstance(data, Images | Files):
            return name, [], _prepared(data, most, device, seed)
    loader = data if isinstance(data, Loader) else open_loader(data, split=split, batch=_BATCH)
    if isinstance(data, torch.utils.data.Dataset) and loader.examples and loader.examples > most:
        loader = open_loader(data, split=split, batch=_BATCH, subset=most, seed=seed)
    return loader.name, loader.notes, loader.batches(module, device, unpack)


def _prepared(data: Images | Files, most: int, device: torch.device, seed: int) -> Iterator[Batch]:
    """Examples of a data set by name, drawn at random, prepared as it says."""
    order = torch.randperm(len(data.labels), generator=torch.Generator().manual_seed(seed))
    chosen = order[:most].sort().values
    for images, labels in batches(data.take(chosen), batch_size=_BATCH, device=device):
        raw = (images, labels)
        yield Batch(args=(images,), kwargs={}, labels=labels, raw=raw, size=len(labels))


def rows_of(batch: Batch, rows: torch.Tensor, /) -> Batch:
    """Take some examples of a batch: of every tensor in it that has a row an example."""

    def part(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            own = value.ndim and len(value) == batch.size
            return value[rows.to(value.device)] if own else value
        if isinstance(value, Mapping):
            return {name: part(each) for name, each in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(part, value))
        return type(value)(map(part, value)) if isinstance(value, list | tuple) else value

    return replace(
        batch,
        args=part(batch.args),
        kwargs=part(dict(batch.kwargs)),
        labels=part(batch.labels),
        raw=part(batch.raw),
        size=len(rows),
    )


def _check(taken: Sequence[Batch], module: nn.Module, name: str) -> None:
    for batch in taken:
        for value in (*batch.args, *batch.kwargs.values()):
            is_number = isinstance(value, torch.Tensor) and value.is_floating_point()
            if is_number and not bool(value.isfinite().all()):
                raise UsageError(f"{name}: an input holds NaN or an infinity; leave it out")
    try:
        with torch.no_grad():
            module(*taken[0].args, **taken[0].kwargs)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as exc:
        place = own_place(exc)
        where = f" in code of its own, {place}" if place else ""
        raise UsageError(
            f"{name}: the network does not take its batches as they come{where} ({one_line(exc)})"
        ) from exc
