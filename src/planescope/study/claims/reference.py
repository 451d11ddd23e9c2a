"""Runs held against a published figure: deviation by layer and epoch, with the spread over runs."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from planescope.criticality.relation.ranks import spearman
from planescope.files.errors import CheckpointError, UsageError, counted
from planescope.files.reading import read_text
from planescope.files.results.result import Table, columns_of, texts_of
from planescope.training.run import REPETITION, Run

if TYPE_CHECKING:
    import pandas as pd

# Rows of a reference that are of the whole network, and the metric of a run that each is.
METRICS = {
    "train accuracy": "train_accuracy",
    "validation accuracy": "val_accuracy",
    "train loss": "train_loss",
    "validation loss": "val_loss",
}
# Those that are percentages, as the masses are.
PERCENT = ("train accuracy", "validation accuracy")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One layer at one epoch, or one metric.

    Attributes
    ----------
    layer : int or None
        Number of the layer from 1 on; None of a metric.
    name : str
        Of the layer, or of the metric.
    epoch : int
    reference : float
        What was published.
    runs : int
    mean, least, largest : float
        Of the runs.
    deviation : float
        `mean` less `reference`.
    within : bool
        The reference lies between the least and the largest of the runs.
    """

    layer: int | None
    name: str
    epoch: int
    reference: float
    runs: int
    mean: float
    least: float
    largest: float
    deviation: float
    within: bool


@dataclass(frozen=True, kw_only=True)
class Deviation(Table):
    """The deviation of runs from a published figure.

    Attributes
    ----------
    reference : str
        Path of its numbers.
    runs : tuple of str
    points : tuple of Point
        By layer and epoch, metrics last.
    notes : tuple of str
        What of the reference could not be compared.
    """

    SCHEMA: ClassVar[str] = "planescope.deviation/1"
    WHAT: ClassVar[str] = "deviation"
    REMEDY: ClassVar[str] = "compare again"
    DERIVED: ClassVar[tuple[str, ...]] = ("sentence",)

    reference: str
    runs: tuple[str, ...]
    points: tuple[Point, ...]
    notes: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """Return what the deviations come to."""
        masses = [p for p in self.points if p.layer is not None]
        last = [p for p in masses if p.epoch == max(q.epoch for q in masses)]
        inside = sum(p.within for p in masses)
        largest = max(last, key=lambda point: abs(point.deviation)).deviation
        rho = _rho(last)
        ranks = "" if rho is None else f" Spearman's rho of the layers at that epoch is {rho:.2f}."
        return (
            f"Over {len(masses)} masses the mean absolute deviation is {_size(masses):.2f}; at the "
            f"last epoch, {last[0].epoch}, it is {_size(last):.2f}, the largest {largest:+.2f}. "
            f"{inside} of {len(masses)} lie within the range of {_counted(len(self.runs))}.{ranks}"
        )

    def columns(self) -> dict[str, list[Any]]:
        """Return the table's columns: a row a layer and epoch; `number` is the reference's."""
        columns = columns_of(self.points, Point, but=("layer", "name"))
        return {
            "number": [point.layer for point in self.points],
            "layer": [point.name for point in self.points],
            **columns,
        }

    def _summary(self) -> tuple[str, Mapping[str, Sequence[Any]]]:
        """Return what a notebook shows: a sentence, and a row a layer."""
        return self.sentence, texts_of(self.rows(), COLUMNS)

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Yield texts of a table: a row a layer, its deviations over the epochs and at the last."""
        for name in dict.fromkeys(point.name for point in self.points):
            own = [point for point in self.points if point.name == name]
            last = own[-1]
            yield (
                "" if last.layer is None else str(last.layer),
                name,
                str(len(own)),
                f"{_size(own):.2f}",
                str(last.epoch),
                f"{last.reference:.2f}",
                f"{last.mean:.2f}",
                f"{last.least:.2f} to {last.largest:.2f}",
                f"{last.deviation:+.2f}",
            )


# What `Deviation.rows` gives.
COLUMNS = (
    "number", "layer", "points", "mean |deviation|", "last epoch", "reference", "runs' mean",
    "range", "deviation",
)  # fmt: skip


def deviation(runs: Sequence[Run], reference: str | os.PathLike[str], /) -> Deviation:
    """Compare the negative masses of runs with a published figure's.

    Parameters
    ----------
    runs : sequence of Run
        Alike but for their seeds. Their weights need not be there.
    reference : path
        CSV: lines that begin with ``#`` are left out, the first other one is ``layer,EPOCH,...``,
        then a row a layer, numbered from 1, with its negative masses as percentages, and rows of
        ``train accuracy``, ``validation accuracy`` (percentages), ``train loss`` and
        ``validation loss``. Empty cells are not known.

    Raises
    ------
    UsageError
        If there are no runs, they differ in more than seeds, their convolutions are not as many as
        the reference's layers, or they share no epoch with it.
    CheckpointError
        If a file is missing or is not of that form, or a run has no measurements.
    """
    path = Path(reference)
    layers, metrics = _read(path)
    _must_be_alike(runs)
    tables = [_masses(run) for run in runs]
    names = list(tables[0])
    if len(names) != len(layers):
        raise UsageError(
            f"{path}: has {counted(len(layers), 'layer')}, and the runs have {len(names)} "
            "convolutions; give runs of that network"
        )
    points, missing = [], set()
    for number, (name, cells) in enumerate(zip(names, layers.values(), strict=True), 1):
        for epoch, value in cells.items():
            values = [table[name].get(epoch) for table in tables]
            if not _known(values):
                missing.add(epoch)
            else:
                points.append(_point(number, name, epoch, value / 100, values))
    if not points:
        raise UsageError(f"{path}: shares no epoch with all of the runs")
    for name, cells in metrics.items():
        for epoch, value in cells.items():
            found = [
                {row.epoch: getattr(row, METRICS[name]) for row in run.metrics}.get(epoch)
                for run in runs
            ]
            if _known(found):
                scale = 100 if name in PERCENT else 1
                points.append(_point(None, name, epoch, value / scale, found))
    notes = []
    if missing:
        notes.append(f"not all runs have epochs {', '.join(map(str, sorted(missing)))}")
    lacking = [name for name in metrics if name not in {point.name for point in points}]
    if lacking:
        notes.append(f"the runs have no {' and no '.join(lacking)}")
    return Deviation(
        reference=str(path),
        runs=tuple(run.path.resolve().name for run in runs),
        points=tuple(points),
        notes=tuple(notes),
    )


Cells = dict[int, float]


def _read(path: Path) -> tuple[dict[int, Cells], dict[str, Cells]]:
    """Read layers by number, and metrics by name: values by epoch."""
    lines = [line for line in read_text(path).splitlines() if line and not line.startswith("#")]
    layers: dict[int, Cells] = {}
    metrics: dict[str, Cells] = {}
    try:
        (first, *epochs), *rows = csv.reader(lines)
        if first != "layer":
            raise ValueError("its first column is not 'layer'")
        for name, *cells in rows:
            found = {
                int(epoch): float(cell)
                for epoch, cell in zip(epochs, cells, strict=True)
                if cell.strip()
            }
            if not all(map(math.isfinite, found.values())):
                raise ValueError(f"{name} has a value that is no number")
            if name in METRICS:
                metrics[name] = found
            elif int(name) == len(layers) + 1:
                layers[int(name)] = found
            else:
                raise ValueError(f"after layer {len(layers)} comes {name}")
    except (ValueError, csv.Error) as exc:
        raise CheckpointError(f"{path}: is no table of a figure ({exc})") from exc
    masses = [value for cells in layers.values() for value in cells.values()]
    if not masses:
        raise CheckpointError(f"{path}: is no table of a figure (it has no masses)")
    if not 1 < max(masses) <= 100 or min(masses) < 0:
        raise CheckpointError(f"{path}: masses must be percentages, from 0 to 100")
    return layers, metrics


def _must_be_alike(runs: Sequence[Run]) -> None:
    if not runs:
        raise UsageError("give a run, or several, to hold against the reference")
    for run in runs[1:]:
        for field, ours, theirs in runs[0].config.differences(run.config):
            if field not in REPETITION:
                raise UsageError(
                    f"{runs[0].path} and {run.path} differ in {field} ({ours!r}, {theirs!r}); give "
                    "runs that differ in their seeds alone"
                )


def _masses(run: Run) -> dict[str, dict[int, float]]:
    """Return the negative masses of a run's convolutions, by layer in order, and by epoch."""
    table: pd.DataFrame = run.measurements
    table = table[table["kind"] == "conv"]
    return {
        str(name): dict(zip(own["epoch"], own["negative_mass"], strict=True))
        for name, own in table.groupby("layer", sort=False)
    }


def _known(values: Sequence[float | None]) -> bool:
    return all(value is not None and math.isfinite(value) for value in values)


def _point(layer: int | None, name: str, epoch: int, reference: float, values: Any) -> Point:
    least, largest, mean = min(values), max(values), float(np.mean(values))
    return Point(
        layer=layer,
        name=name,
        epoch=int(epoch),
        reference=reference,
        runs=len(values),
        mean=mean,
        least=float(least),
        largest=float(largest),
        deviation=mean - reference,
        within=bool(least <= reference <= largest),
    )


def _size(points: Sequence[Point]) -> float:
    return float(np.mean([abs(point.deviation) for point in points]))


def _rho(points: Sequence[Point]) -> float | None:
    """Return the rank correlation of masses; None where there is none."""
    masses = [np.array([getattr(p, key) for p in points]) for key in ("reference", "mean")]
    rho = float(spearman(*masses))
    return None if len(points) < 3 or math.isnan(rho) else rho


def _counted(runs: int) -> str:
    return f"{runs} runs" if runs > 1 else "one run, which is a point"
