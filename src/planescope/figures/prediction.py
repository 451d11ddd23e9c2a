"""Predictions drawn: a row a layer, as far as is told without labels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from planescope.criticality.definition import Critical
from planescope.criticality.prediction.record import Method, Prediction
from planescope.figures.canvas import AWAY, CHANCE, NEUTRAL, TOWARD, Width, canvas, styled
from planescope.figures.layers import NAME_PITCH, row_pitch
from planescope.figures.predicted import VERDICTS, cuts, is_share, quantity, value_of
from planescope.figures.resets import told_apart
from planescope.files.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches: a row, and what stands above and below.
PITCH, FRAME, LEAST = 0.2, 1.0, 1.2
_LOOKS = {
    Critical.YES: (AWAY, "D"),
    Critical.NO: (TOWARD, "o"),
    Critical.UNDECIDED: (NEUTRAL, "s"),
    None: (NEUTRAL, "o"),
}


@styled
def prediction(found: Prediction, /, *, width: Width = "column") -> Figure:
    """Draw what each layer is expected to cost when it is put back, with its verdict.

    With inputs: the expected loss, its 95 % interval, and the threshold of the definition. Without
    a loss: the score, and for synthetic pictures the two cuts of the verdict.

    Parameters
    ----------
    found : Prediction
    width : "column", "page" or inches

    Raises
    ------
    UsageError
        If `width` is invalid, or no layer was predicted.
    """
    if not found.layers:
        raise UsageError(f"{found.source}: has no predicted layer to draw")
    rows = found.layers
    pitch = row_pitch(len(rows), PITCH)
    figure = canvas(width, max(LEAST, len(rows) * pitch) + FRAME)
    axes = figure.subplots()
    for cut in cuts(found):
        axes.axvline(cut, color=CHANCE, linewidth=0.8, linestyle="--")
    values = [value_of(found, layer) for layer in rows]
    for verdict, (color, marker) in _LOOKS.items():
        label = "no verdict" if verdict is None else VERDICTS[verdict]
        own = [i for i, layer in enumerate(rows) if layer.critical is verdict]
        there = [i for i in own if values[i] is not None]
        if not there:
            continue
        for i in there:
            low, high = rows[i].lower, rows[i].upper
            if found.has_loss and low is not None and high is not None:
                axes.plot([low, high], [i, i], color=color, linewidth=1)
        axes.plot([values[i] or 0.0 for i in there], there, marker, color=color, linestyle="none",
                  markersize=4, label=label, clip_on=False, zorder=3)  # fmt: skip
    names = told_apart([layer.name for layer in rows])
    every = math.ceil(NAME_PITCH / pitch)
    axes.set_yticks(range(0, len(rows), every), names[::every])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(_words(found))
    _limits(axes, found, [value for value in values if value is not None])
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return figure


def _limits(axes: Axes, found: Prediction, values: list[float]) -> None:
    ends = [
        *values,
        *(x for layer in found.layers for x in (layer.lower, layer.upper) if x is not None),
    ]
    low, high = min(0.0, *ends), max(1.0 if is_share(found) else 0.0, *ends)
    axes.set_xlim(low - 0.02 * (high - low), high + 0.02 * (high - low))
    if is_share(found):
        from matplotlib.ticker import PercentFormatter

        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _words(found: Prediction) -> str:
    """Return the title of the axis."""
    if found.method is Method.WEIGHTS:
        return f"{quantity(found)} of the hyperplanes"
    on = ",\nsynthetic pictures" if found.method is Method.SYNTHETIC else ""
    return f"{quantity(found)} when put back{on}"
