"""Figures of sensitivity: a curve a layer, and a map of layers × ways beside layers' sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from planescope.criticality.sensitivity.record import LayerSensitivity, Sensitivity
from planescope.figures.canvas import NEUTRAL, Width, canvas, inches, shown, styled
from planescope.figures.layers import NAME_PITCH, row_pitch
from planescope.figures.resets import readable, told_apart
from planescope.files.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches: a row of the map; what stands above and below; the bars beside it; the scale.
PITCH, FRAME, BARS, SCALE = 0.2, 1.0, 0.55, 0.1
# Of few layers, so that the words beside the scale have room.
LEAST = 1.2
# Below that width the bars give their room to the map; names of columns nearer than that stand up.
WIDE, UPRIGHT = 5.0, 0.2
# Inches of a panel of curves, of what stands around it, and the panels side by side.
PANEL_WIDTH, PANEL_HEIGHT, AROUND = 1.5, 1.6, 0.6
# As for resets: inches of three digits at a size of one point, and sizes in points.
DIGITS, SMALLEST, LARGEST, FILLING = 0.043, 4.0, 6.5, 60.0
# Above that a relative change of the output is only large.
MOST = 10.0
STRENGTHS = {
    "prune": "share of the weights\nset to 0",
    "filters": "share of the filters\ntaken away",
    "rank": "share of the rank\nthat is kept",
    "bits": "bits a weight",
    "noise": "noise, in norms\nof the weight",
}


@styled
def sensitivity(found: Sensitivity, /, *, width: Width = "page") -> Figure:
    """Draw the cost of each layer against the strength of each way.

    A panel a way, a curve a layer.

    Strength grows to the right: ranks and bits fall. The layer that costs most at the end of a
    panel has its name there.

    Parameters
    ----------
    found : Sensitivity
    width : "column", "page" or inches

    Raises
    ------
    UsageError
        If `width` is invalid, or all ways are of the user's own, which have no strength.
    """
    ladders = found.ladders
    if not ladders:
        raise UsageError("no way has a strength to draw costs against; the map shows them")
    columns = max(1, min(len(ladders), int(inches(width) / PANEL_WIDTH)))
    rows = math.ceil(len(ladders) / columns)
    figure = canvas(width, rows * (PANEL_HEIGHT + AROUND) + 0.15)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    top = _top(found)
    for axes, (kind, steps) in zip(panels, ladders.items(), strict=False):
        _curves(axes, found, steps, top)
        axes.set_xlabel(STRENGTHS[kind])
    for axes in panels[len(ladders) :]:
        axes.remove()
    panels = panels[: len(ladders)]
    for axes in panels[::columns]:
        axes.set_ylabel(cost_words(found))
    _scale_of_depth(figure, list(panels), len(found.layers))
    return figure


def _curves(axes: Axes, found: Sensitivity, steps: Sequence[tuple[str, float]], top: float) -> None:
    import matplotlib as mpl

    colors, count = mpl.colormaps["viridis"], len(found.layers)
    x = np.arange(len(steps))
    ends: list[tuple[float, str]] = []
    for number, layer in enumerate(found.layers):
        y = np.array([_value(found, layer, key) for key, _ in steps])
        if np.isnan(y).all():
            continue
        color = colors(0.9 * number / max(1, count - 1))
        axes.plot(x, np.minimum(y, top), color=color, marker="o", markersize=2, clip_on=False)
        beyond = y > top
        if beyond.any():  # a line without a point has no place, which undoes the layout
            axes.plot(x[beyond], np.full(beyond.sum(), top), "^", color=color, clip_on=False)
        ends.append((float(np.nan_to_num(y[-1], nan=-1.0)), layer.name))
    if len(ends) > 1:
        most, name = max(ends)
        title = axes.annotate(
            shown(name, 22), (x[-1], min(most, top)), xytext=(-3, 3), textcoords="offset points",
            ha="right", va="bottom", color=NEUTRAL, size=5.5,
        )  # fmt: skip
        title.set_in_layout(False)
    axes.set_xticks(x, [f"{amount:g}" for _, amount in steps])
    axes.set_xlim(-0.2, max(0.2, len(steps) - 0.8))
    axes.set_ylim(min(0.0, _least(found)), 1.08 * top)
    if found.is_share:
        from matplotlib.ticker import PercentFormatter

        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _scale_of_depth(figure: Figure, panels: Sequence[Axes], layers: int) -> None:
    """Say which colour is the first layer and which the last."""
    import matplotlib as mpl

    if layers < 2:
        return
    colors = mpl.colors.ListedColormap(mpl.colormaps["viridis"](np.linspace(0, 0.9, 64)))
    mappable = mpl.cm.ScalarMappable(norm=mpl.colors.Normalize(1, layers), cmap=colors)
    bar = figure.colorbar(mappable, ax=list(panels), aspect=30, fraction=0.03, pad=0.01)
    bar.set_ticks([1, layers], labels=["first\nlayer", "last"])
    bar.ax.tick_params(length=0)


@styled
def sensitivity_map(found: Sensitivity, /, *, width: Width = "page") -> Figure:
    """Draw the cost of every way in every layer, in per cent, beside weights and multiply-adds.

    A way that does not apply to a layer is an empty cell. The bars are shares of what the layers of
    the map have together; a narrow figure has none.

    Parameters
    ----------
    found : Sensitivity
    width : "column", "page" or inches

    Raises
    ------
    UsageError
        If `width` is invalid.
    """
    rows, keys = found.layers, found.ways
    pitch = row_pitch(len(rows), PITCH)
    names = told_apart([layer.name for layer in rows])
    bars = [BARS, BARS] if inches(width) >= WIDE else []
    across = max(0.6, inches(width) - 0.075 * max(map(len, names)) - sum(bars) - SCALE - 0.8)
    figure = canvas(width, max(LEAST, len(rows) * pitch) + FRAME)
    axes, *beside, scale = figure.subplots(1, 2 + len(bars), width_ratios=[across, *bars, SCALE])
    values = np.array([[_value(found, layer, key) for key in keys] for layer in rows])
    factor, top = (100, 100) if found.is_share else (1, min(MOST, _top(found)))
    image = axes.imshow(
        values * factor, cmap="viridis", vmin=0, vmax=top, aspect="auto", interpolation="nearest"
    )
    size = min(LARGEST, FILLING * pitch, across / len(keys) / DIGITS)
    if size >= SMALLEST:
        for (i, j), value in np.ndenumerate(values):
            if not math.isnan(value):
                color = readable(image.cmap, factor * value / top)
                axes.text(j, i, _cell(value, found), color=color, size=size, ha="center",
                          va="center")  # fmt: skip
    every = math.ceil(NAME_PITCH / pitch)
    axes.set_yticks(range(0, len(rows), every), names[::every])
    axes.set_xticks(range(len(keys)), [shown(key, 18) for key in keys])
    if across / len(keys) < UPRIGHT:
        axes.tick_params(axis="x", rotation=90)
    else:
        axes.set_xticks(axes.get_xticks(), axes.get_xticklabels(), rotation=40, ha="right",
                        rotation_mode="anchor")  # fmt: skip
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if beside:
        _bars(beside[0], [layer.parameters for layer in rows], "weights")
        _bars(beside[1], [layer.multiply_adds for layer in rows], "multiply-\nadds")
    below, above = bool((values < 0).any()), bool((values * factor > top).any())
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max"}
    label = f"{cost_words(found)}{', %' if found.is_share else ''}"
    figure.colorbar(image, cax=scale, label=label, extend=extend.get((below, above), "both"))
    scale.tick_params(length=2)
    return figure


def _cell(value: float, found: Sensitivity) -> str:
    if found.is_share:
        return f"{100 * value:.0f}".replace("-0", "0")
    return f"{value:.2g}" if value < 1e6 else "∞"


def _bars(axes: Axes, numbers: Sequence[int | None], title: str) -> None:
    """Draw shares of a sum, a row a layer, in the rows of the map."""
    y, total = np.arange(len(numbers)), sum(number or 0 for number in numbers)
    shares = np.array([(number or 0) / total if total else 0.0 for number in numbers])
    axes.barh(y, shares, height=0.7, color="#8A8A8A")
    axes.set(ylim=(len(numbers) - 0.5, -0.5), xlim=(0, max(1e-9, 1.05 * shares.max())))
    axes.set_yticks([])
    axes.set_xticks([0, shares.max()], ["0", f"{shares.max():.0%}"])
    axes.set_title(title, size=6.5, loc="left", color=NEUTRAL)
    axes.spines["left"].set_color("#8A8A8A")


def cost_words(found: Sensitivity, /) -> str:
    """Name what the numbers of a sensitivity are."""
    if found.has_loss:
        return "loss" if found.method == "measured" else "expected loss"
    if not found.is_share:
        return "change of the output"
    return {"measured": "drop", "unlabelled": "change", "synthetic": "disagreement"}[found.method]


def _value(found: Sensitivity, layer: LayerSensitivity, key: str) -> float:
    value = found.value(layer, key)
    return math.nan if value is None else value


def _every(found: Sensitivity) -> list[float]:
    values = (found.value(layer, key) for layer in found.layers for key in found.ways)
    return [value for value in values if value is not None]


def _top(found: Sensitivity) -> float:
    most = max(_every(found), default=1.0)
    if found.is_share:
        return max(0.05, min(most, 1.5))
    return max(1e-6, min(most, MOST))


def _least(found: Sensitivity) -> float:
    return max(-0.5, min(_every(found), default=0.0))
