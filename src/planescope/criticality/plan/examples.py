"""Inputs that a network is repaired or planned on, and those that are kept back to check it.

To import this is to import torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from planescope.criticality.options import InputOptions, Task
from planescope.criticality.resets.engine.answers import Judge, Pick
from planescope.criticality.sensitivity.inputs.given import of_folder
from planescope.criticality.sensitivity.inputs.pictures import synthetic as chosen_for
from planescope.criticality.sensitivity.inputs.rows import read_rows
from planescope.criticality.sensitivity.inputs.watched import Alike, check_finite
from planescope.data.batches import batches
from planescope.data.load import Files, Images, load
from planescope.data.loaders import Loader, call_loader, open_loader
from planescope.data.options import DataOptions, check_unprepared
from planescope.data.roles import Batch
from planescope.files.errors import UsageError
from planescope.networks.answer import answer
from planescope.networks.live.module import read_module
from planescope.networks.state.layers import find_layers

if TYPE_CHECKING:
    from planescope.data.options import Split
    from planescope.data.roles import Unpack

# Of every so many examples the last is kept back.
_FOURTH = 4
# Examples of a batch that is made here.
_BATCH = 100


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
        """Return the examples for fitting."""
        return sum(batch.size for batch in self.fit)

    @property
    def checked(self) -> int:
        """Return the examples kept back."""
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
    labelled: bool = False,
) -> Examples:
    """Take the first examples of what a user handed over, and keep every fourth of them back.

    Of what has examples by number, so many are drawn at random. Images without a class are taken
    unless they are to be `labelled`.

    Raises
    ------
    UsageError
        If there are fewer than two, all are alike, one holds NaN or an infinity, or the network
        does not take them.
    """
    name, notes, source = _opened(
        data, module, most, device, unpack, data_path, data_options, split, seed, labelled
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
    shape: Sequence[int] | None,
    /,
    *,
    most: int,
    seed: int = 0,
    pick: Pick | None = None,
    task: Task | None = None,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
) -> tuple[torch.Tensor, list[str]]:
    """Choose synthetic pictures for a network of which no input is known, as `sensitivity` does.

    Raises
    ------
    UsageError
        If the network takes no such pictures, or answers the same to all.
    """
    size = None if shape is None else tuple(shape)
    options = InputOptions(shape=size, mean=mean, std=std, seed=seed)
    layers, _ = find_layers(read_module(module))
    judge = Judge(pick=pick, task=task)
    given = chosen_for(module, layers, options, judge, None)
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    pictures = torch.cat([batch.args[0] for batch in given.feed.on(device)])
    rows = torch.linspace(0, len(pictures) - 1, min(most, len(pictures))).long()
    return pictures[rows.to(device)], given.notes


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
    labelled: bool,
) -> tuple[str, list[str], Iterator[Batch]]:
    if isinstance(data, str | os.PathLike) and os.fspath(data).endswith(".npy"):
        check_unprepared(data_options, str(data))
        rows, notes = read_rows(data, module)
        loader = open_loader(rows, split=split, batch=_BATCH)
        loader.name, loader.notes = str(data), [*notes, *loader.notes]
        return loader.name, loader.notes, loader.batches(module, device, unpack)
    data = of_folder(data)
    if isinstance(data, str):
        found = call_loader(data, split)
        if found is not None:
            check_unprepared(data_options, data)
        else:
            where = None if data_path is None else Path(data_path)
            wanted = data_options or DataOptions()
            found = load(data, split=split, path=where, options=wanted, labelled=labelled)
        name, data = data, found
        if isinstance(data, Images | Files):
            return name, [], _prepared(data, most, device, seed)
    else:
        check_unprepared(data_options, type(data).__name__)
    loader = data if isinstance(data, Loader) else open_loader(data, split=split, batch=_BATCH)
    if isinstance(data, torch.utils.data.Dataset) and loader.examples and loader.examples > most:
        loader = open_loader(data, split=split, batch=_BATCH, subset=most, seed=seed)
    return loader.name, loader.notes, loader.batches(module, device, unpack)


def _prepared(data: Images | Files, most: int, device: torch.device, seed: int) -> Iterator[Batch]:
    """Yield the examples of a data set by name, drawn at random, prepared as it says."""
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
    seen = Alike()
    for batch in taken:
        seen.look_at(batch)
        check_finite(batch, name)
    seen.refuse(name)
    answer(
        module,
        taken[0].args,
        taken[0].kwargs,
        name=f"{name}: the network",
        given="its batches as they come",
    )
