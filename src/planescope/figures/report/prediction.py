"""Predictions on the page: a row a layer with its mark, beside what a reset measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from planescope.criticality.definition import Critical
from planescope.criticality.prediction.record import LayerPrediction, Prediction
from planescope.criticality.resets.record import ResetCell, Resets
from planescope.figures.predicted import VERDICTS, cuts, is_share, quantity, value_of
from planescope.files.folders import is_same_place
from planescope.training.run import Run

# Of a row's drawing, in its own units: width, and the margin on both sides of its axis.
WIDTH, MARGIN = 240, 8


@dataclass(frozen=True, kw_only=True)
class MarkShown:
    """A place on a row's axis, and the ends of its interval where there is one."""

    at: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class PredictedShown:
    """A layer of the table; texts are empty where there is nothing to say.

    `look` is ``"yes"``, ``"no"``, ``"undecided"`` or ``"none"``; `measured` and `found` are the
    loss and the verdict of a reset.
    """

    name: str
    kind: str
    score: str
    loss: str
    verdict: str
    look: str
    measured: str
    found: str
    title: str
    mark: MarkShown | None
    ring: float | None


@dataclass(frozen=True, kw_only=True)
class PredictionShown:
    """The part of a prediction that a page shows.

    Attributes
    ----------
    sentence, about, verdict : str
        What the scores are; of which network, on what; and how many layers are critical.
    cost : str
        What the marks stand for.
    rows : tuple of PredictedShown
    has_loss, has_verdict, is_measured : bool
        Whether there is such a column.
    lines : tuple of float
        Upright lines of each drawing: the threshold of the definition, or the cuts.
    marks : str
        What these are.
    ends : tuple of str
        What the axis begins and ends with.
    notes, skipped
        As a prediction has them; layers by reason.
    """

    sentence: str
    about: str
    verdict: str
    cost: str
    rows: tuple[PredictedShown, ...]
    has_loss: bool
    has_verdict: bool
    is_measured: bool
    lines: tuple[float, ...]
    marks: str
    ends: tuple[str, str]
    notes: tuple[str, ...]
    skipped: tuple[tuple[str, tuple[str, ...]], ...]


def prediction_shown(
    found: Prediction, resets: Resets | None = None, run: Run | None = None, /
) -> PredictionShown:
    """Gather what a page shows of a prediction, beside resets of the same layers to the same place.

    Parameters
    ----------
    found : Prediction
    resets : Resets, optional
        Of the same network.
    run : Run, optional
        Whose last snapshot the network is.
    """
    cells = {} if resets is None else _measured(found, resets, run)
    low, high = _ends(found, cells.values())

    def x(value: float) -> float:
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        return round(MARGIN + share * (WIDTH - 2 * MARGIN), 1)

    reasons: dict[str, list[str]] = {}
    for skipped in found.skipped:
        reasons.setdefault(skipped.reason, []).append(skipped.name)
    has_verdict = any(layer.critical is not None for layer in found.layers)
    lines = cuts(found)
    marks = "the threshold of the definition" if found.has_loss else "the frozen cuts"
    return PredictionShown(
        sentence=found.sentence,
        about=_about(found),
        verdict=_verdict(found, cells),
        cost=quantity(found),
        rows=tuple(_row(found, layer, cells.get(layer.name), x) for layer in found.layers),
        has_loss=found.has_loss,
        has_verdict=has_verdict,
        is_measured=bool(cells),
        lines=tuple(map(x, lines)),
        marks=f"{marks}, {' and '.join(map(_share, lines))}" if lines else "",
        ends=(_text(found, low), _text(found, high)),
        notes=found.notes,
        skipped=tuple((reason, tuple(names)) for reason, names in reasons.items()),
    )


def _measured(found: Prediction, resets: Resets, run: Run | None) -> Mapping[str, ResetCell]:
    """Return the resets, by layer, that measured a loss and put back to what the prediction did.

    Another initialisation, or a fresh draw, is another question.
    """
    if found.init is None:
        return {}
    path = Path(found.init)
    names: set[int | str] = {found.init, path.name, path.stem}
    start = None if run is None else run.snapshots.get(0)
    if start is not None and is_same_place(start, path):
        names.add(0)
    there = {layer.name for layer in found.layers}
    return {
        cell.layer: cell
        for cell in resets.cells
        if cell.layer in there
        and cell.snapshot in names
        and cell.draw is None
        and cell.loss is not None
    }


def _ends(found: Prediction, cells: Iterable[ResetCell]) -> tuple[float, float]:
    """Return what the axis begins and ends with: all of a share, and marks that lie beyond."""
    values = [value_of(found, layer) for layer in found.layers]
    if found.has_loss:
        values += [cell.loss for cell in cells]
    there = [value for value in values if value is not None]
    high = max([1.0, *there] if is_share(found) else [*there, 0.0])
    return min([0.0, *there]), high if high > 0 else 1.0


def _row(
    found: Prediction, layer: LayerPrediction, cell: ResetCell | None, x: Callable[[float], float]
) -> PredictedShown:
    value = value_of(found, layer)
    verdict = "" if layer.critical is None else VERDICTS[layer.critical]
    loss = "" if layer.loss is None else _share(layer.loss, 1)
    if layer.lower is not None and layer.upper is not None:
        loss += f" ({_share(layer.lower, 1)} to {_share(layer.upper, 1)})"
    measured = ""
    if cell is not None and cell.loss is not None:
        measured = _share(cell.loss, 1)
        if cell.loss_low is not None and cell.loss_high is not None:
            measured += f" ({_share(cell.loss_low, 1)} to {_share(cell.loss_high, 1)})"
    score = "∞" if layer.score >= 1e6 else f"{layer.score:.3g}"
    told = [f"{layer.name}: {quantity(found)} {loss or score}", verdict]
    if measured:
        told.append(f"a reset measured {measured}")
    mark = None
    if value is not None:
        ends = [None if end is None else x(end) for end in (layer.lower, layer.upper)]
        mark = MarkShown(at=x(value), low=ends[0], high=ends[1])
    return PredictedShown(
        name=layer.name,
        kind=layer.kind.value,
        score=score,
        loss=loss,
        verdict=verdict,
        look="none" if layer.critical is None else layer.critical.value,
        measured=measured,
        found="" if cell is None or cell.critical is None else VERDICTS[cell.critical],
        title=", ".join(filter(None, told)),
        mark=mark,
        ring=x(cell.loss)
        if found.has_loss and cell is not None and cell.loss is not None
        else None,
    )


def _text(found: Prediction, value: float) -> str:
    return _share(value) if is_share(found) else f"{value:.2g}"


def _share(value: float, digits: int = 0) -> str:
    # What rounds to nothing has no sign.
    return f"{round(100 * value, digits) + 0.0:.{digits}f} %"


def _about(found: Prediction) -> str:
    parts = [found.network]
    if found.init is not None:
        parts.append(f"layers put back to {found.init}")
    if found.data is not None:
        parts.append(f"on {found.data}")
    if found.expected is not None:
        parts.append(f"whole network: expects itself to be right in {_share(found.expected, 1)}")
    return ", ".join(parts)


def _verdict(found: Prediction, cells: Mapping[str, ResetCell]) -> str:
    """Say how many layers are critical, and how many of these verdicts resets bear out."""
    told = [layer for layer in found.layers if layer.critical is not None]
    if not told:
        return "No layer has a verdict."
    counts = {one: sum(layer.critical is one for layer in told) for one in Critical}
    text = (
        f"Of {len(told)} {'layer' if len(told) == 1 else 'layers'} {counts[Critical.YES]} "
        f"{'is' if counts[Critical.YES] == 1 else 'are'} critical, {counts[Critical.NO]} not, "
        f"{counts[Critical.UNDECIDED]} undecided."
    )
    sides = (Critical.YES, Critical.NO)
    held = [
        layer.critical is cells[layer.name].critical
        for layer in told
        if layer.critical in sides and layer.name in cells and cells[layer.name].critical in sides
    ]
    if held:
        text += f" Resets with labels decide {len(held)} of these verdicts: {sum(held)} right."
    return text
