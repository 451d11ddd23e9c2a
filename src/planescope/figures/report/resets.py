"""The cost of resets, as a page has it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from planescope.criticality.definition import agreed
from planescope.criticality.resets.record import (
    ResetCell,
    Resets,
    cell_text,
    mean_drop,
    mean_loss,
)
from planescope.figures.report.rounding import rounded
from planescope.measurement.record import LayerMeasurement


@dataclass(frozen=True, kw_only=True)
class ResetsShown:
    """The table of layers × snapshots.

    Attributes
    ----------
    verdict, data, split : str
    top1 : float
        Accuracy of the trained network.
    examples : int
        It was evaluated on.
    is_drop : bool
        Whether values are relative drops; accuracies where there are none.
    rows : tuple of str
        Names of what was reset.
    layers : tuple of int or None
        Which layer of the network each row is; None of several together.
    columns : tuple of int or str
    values : list of list of float or None
        Per cent, by row and column.
    texts : list of list of str
        In parentheses where within noise.
    losses : list of list of (value, low, high) or None
        Per cent; of several draws the mean, and the widest interval.
    verdicts : list of list of str or None
        Critical by that interval: "yes", "no", "undecided".
    """

    verdict: str
    data: str
    split: str
    top1: float | None
    examples: int
    is_drop: bool
    rows: tuple[str, ...]
    layers: tuple[int | None, ...]
    columns: tuple[int | str, ...]
    values: list[list[float | None]]
    texts: list[list[str]]
    losses: list[list[tuple[float | None, float | None, float | None] | None]]
    verdicts: list[list[str | None]]
    notes: tuple[str, ...]


def resets_shown(resets: Resets, layers: Sequence[LayerMeasurement], /) -> ResetsShown:
    """Gather what a page shows of resets of some layers."""
    cells: dict[tuple[str, int | str], list[ResetCell]] = {}
    for cell in resets.cells:
        cells.setdefault((cell.layer, cell.snapshot), []).append(cell)
    places = {layer.name: i for i, layer in enumerate(layers)}
    is_drop = any(cell.relative_drop is not None for cell in resets.cells)
    rows, columns = resets.rows, resets.snapshots
    table = [[cells.get((row, column), []) for column in columns] for row in rows]
    return ResetsShown(
        verdict=resets.verdict,
        data=resets.data,
        split=resets.split,
        top1=resets.trained.value,
        examples=resets.trained.examples,
        is_drop=is_drop,
        rows=rows,
        layers=tuple(places.get(row) for row in rows),
        columns=columns,
        values=[[_per_cent(each, is_drop=is_drop) for each in row] for row in table],
        texts=[[cell_text(each) for each in row] for row in table],
        losses=[[_loss(each) for each in row] for row in table],
        verdicts=[[agreed(cell.critical for cell in each) for each in row] for row in table],
        notes=resets.notes,
    )


def _loss(
    cells: Sequence[ResetCell],
) -> tuple[float | None, float | None, float | None] | None:
    value, low, high = (None if x is None else rounded(100 * x) for x in mean_loss(cells))
    return None if value is None else (value, low, high)


def _per_cent(cells: Sequence[ResetCell], *, is_drop: bool) -> float | None:
    if not cells:
        return None
    if not is_drop:
        values = [cell.value for cell in cells if cell.value is not None]
        return rounded(100 * statistics.fmean(values)) if values else None
    drop = mean_drop(cells)
    return None if drop is None else rounded(100 * drop[0])
