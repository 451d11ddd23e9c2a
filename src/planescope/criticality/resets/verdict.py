"""The verdict on resets in sentences: first what can be concluded, then why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from planescope.criticality.definition import THRESHOLD, Critical, agreed
from planescope.files.errors import counted

if TYPE_CHECKING:
    from planescope.criticality.resets.record import ResetCell, Resets

# More names than these are counted.
_NAMED = 3
_WHERE = {"rand": "drawn anew", "fresh": "drawn anew", 0: "put back to epoch 0"}


def verdict(resets: Resets, /) -> str:
    """Say in how many layers it holds that they are critical, put back to the earliest snapshot."""
    first = resets.snapshots[0]
    rows: dict[str, list[ResetCell]] = {}
    for cell in resets.cells:
        if cell.snapshot == first:
            rows.setdefault(cell.layer, []).append(cell)
    where = _WHERE.get(first, f"put back to {first}")
    if resets.trained.value is None or resets.metric is None:
        on = "On synthetic inputs" if resets.split == "synthetic" else "Without labels"
        if resets.metric is not None:
            on = f"{resets.metric} of the trained network is no number"
        return _without_labels(rows, where, on)
    found = {row: agreed(cell.critical for cell in cells) for row, cells in rows.items()}
    named = {each: [row for row in rows if found[row] is each] for each in (*Critical, None)}
    if len(named[None]) == len(rows):
        return f"Undecided: {_reason(resets)}. {_changed(resets, rows, where)}"
    decided = _decided(rows, named, where, _noun(resets, rows))
    return " ".join((*decided, _changed(resets, rows, where)))


def _noun(resets: Resets, rows: Iterable[str]) -> str:
    """Return what is counted: layers, or rows where some are layers put back together."""
    alone = {layer.name for layer in resets.layers} & set(rows)
    return "row" if alone and alone != set(rows) else "layer"


def trained_line(resets: Resets, /) -> str:
    """Return what the trained network attains, in a line."""
    trained = resets.trained
    if resets.split == "synthetic":
        return f"trained: {trained.examples} {resets.data.replace(' of ', ', ', 1)}"
    examples = counted(trained.examples, "example")
    if trained.value is None:
        several = "" if resets.positions is None else f" of {resets.positions:,} positions"
        told = (
            f"{several} without labels"
            if resets.metric is None
            else f", {resets.metric} is no number"
        )
        return f"trained: {examples}{told}"
    if trained.top1 is None:
        interval = "" if trained.low is None else (
            f" (95 % interval {trained.low:.4g} to {trained.high:.4g})"
        )  # fmt: skip
        return f"trained: {resets.metric} {trained.value:.4g} over {examples}{interval}"
    interval = f"95 % interval {trained.low:.1%} to {trained.high:.1%}"
    if resets.positions is not None:
        return (
            f"trained: {trained.top1:.1%} of positions right, {resets.positions:,} in {examples} "
            f"(mean over examples, {interval})"
        )
    return f"trained: {trained.top1:.1%} of {examples} right ({interval})"


def cells_are(resets: Resets, /) -> str:
    """Name what the cells of the table show."""
    if any(cell.relative_drop is not None for cell in resets.cells):
        return "relative drop in %, in parentheses within noise"
    if resets.metric is not None and any(cell.value is not None for cell in resets.cells):
        return resets.metric
    of_classes = any(cell.disagreement is not None for cell in resets.cells)
    return "disagreement with the trained network" if of_classes else "relative change of outputs"


def title(snapshot: int | str, /) -> str:
    """Return what a column of a snapshot is called."""
    return f"epoch {snapshot}" if isinstance(snapshot, int) else snapshot


def _decided(
    rows: dict[str, list[ResetCell]],
    named: dict[Critical | None, list[str]],
    where: str,
    noun: str,
) -> Sequence[str]:
    every = counted(len(rows), noun)
    meaning = f"loss above {THRESHOLD:.0%} with its whole 95 % interval"
    yes, no, undecided = (named[each] for each in (Critical.YES, Critical.NO, Critical.UNDECIDED))
    parts = []
    if yes:
        worst = max(yes, key=lambda row: _loss(rows[row]))
        parts.append(
            f"Holds in {len(yes)} of {every}, {where}: critical, {meaning}; most of all "
            f"{_name(worst)}, {_numbers(rows[worst])}."
        )
    elif no and not undecided:
        parts.append(f"Does not hold: none of {every}, {where}, is critical ({meaning}).")
    else:
        some = f"{len(undecided)} of {every}" if len(undecided) < len(rows) else every
        parts.append(f"Undecided in {some}, {where}: whether critical, {meaning}.")
    if no and (yes or undecided):
        parts.append(f"Does not hold in {_named(no, noun)}.")
    if yes and undecided:
        parts.append(f"Undecided in {_named(undecided, noun)}.")
    if named[None]:
        parts.append(f"Nothing can be said of {_named(named[None], noun)}.")
    return parts


def _reason(resets: Resets) -> str:
    metric, chance, trained = resets.metric, resets.chance, resets.trained
    if trained.low is None:
        return f"{metric} has no value an example, and so no interval"
    if chance is not None and trained.low <= chance:
        return "the trained network is no better than chance"
    if metric == "accuracy":
        return "an earlier version reset these layers, without their loss; reset them again"
    return f"what {metric} is by chance is not known; give chance="


def _changed(resets: Resets, rows: dict[str, list[ResetCell]], where: str) -> str:
    """Say which layers change the metric beyond noise."""
    trained, metric = resets.trained.value or 0.0, resets.metric
    cells, noun = [cell for own in rows.values() for cell in own], _noun(resets, rows)
    lower = [c for c in cells if c.value is not None and c.value < trained]
    lost = [cell for cell in lower if cell.significant]
    if not lower or (not lost and any(cell.significant is not None for cell in cells)):
        beyond = " beyond noise" * bool(lower)
        return f"No {noun}, {where}, lowers {metric}{beyond}."
    worst = min(lost or lower, key=lambda cell: cell.value or 0.0)
    lowest = f"{_value(resets, worst.value)} in place of {_value(resets, trained)}"
    if not lost:
        return f"{metric} is lowest with {_name(worst.layer)} {where}: {lowest}."
    count = len({cell.layer for cell in lost})
    return (
        f"{count} of {counted(len(rows), noun)} {'lowers' if count == 1 else 'lower'} {metric} "
        f"beyond noise, most of all {_name(worst.layer)}: {lowest}."
    )


def _without_labels(rows: dict[str, list[ResetCell]], where: str, on: str) -> str:
    cells = [cell for own in rows.values() for cell in own]
    told = [cell for cell in cells if cell.disagreement is not None]
    if told:
        worst = max(told, key=lambda cell: cell.disagreement or 0.0)
        return (
            f"Undecided. {on}: {_name(worst.layer)}, {where}, changes most answers, "
            f"{worst.disagreement:.1%}."
        )
    moved = [cell for cell in cells if cell.relative_l2 is not None]
    if not moved:
        return "Undecided: outputs are no numbers."
    worst = max(moved, key=lambda cell: cell.relative_l2 or 0.0)
    return (
        f"Undecided. {on}: {_name(worst.layer)}, {where}, changes outputs most, by "
        f"{worst.relative_l2:.1%} of their norm."
    )


def _loss(cells: Sequence[ResetCell]) -> float:
    return sum(cell.loss or 0.0 for cell in cells) / len(cells)


def _numbers(cells: Sequence[ResetCell]) -> str:
    lows = [cell.loss_low for cell in cells if cell.loss_low is not None]
    highs = [cell.loss_high for cell in cells if cell.loss_high is not None]
    return f"with a loss of {_loss(cells):.0%} ({min(lows):.0%} to {max(highs):.0%})"


def _value(resets: Resets, value: float | None) -> str:
    if value is None:
        return "no number"
    return f"{value:.1%}" if resets.metric == "accuracy" else f"{value:.4g}"


def _named(rows: Sequence[str], noun: str) -> str:
    if len(rows) > _NAMED:
        return counted(len(rows), noun)
    names = [_name(row) for row in rows]
    return "".join(names) if len(names) < 2 else f"{', '.join(names[:-1])} and {names[-1]}"


def _name(row: str) -> str:
    """Return the name of a row, such that one that is a number is not read as a count."""
    return f"layer {row}" if row.isdecimal() else row
