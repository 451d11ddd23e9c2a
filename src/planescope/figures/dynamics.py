"""Statistics by layer through training, beside loss and accuracy."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from planescope.figures.canvas import (
    CHANCE,
    FAINT,
    NEUTRAL,
    SIGNS_AN_INCH,
    Width,
    canvas,
    fitted,
    inches,
    shown,
    styled,
)
from planescope.figures.layers import MANY, legend
from planescope.files.errors import UsageError
from planescope.files.results.result import by_layer
from planescope.hyperplanes import chance
from planescope.hyperplanes.arrays import Floats
from planescope.hyperplanes.chance import LEVEL
from planescope.measurement.record import layers_table
from planescope.training.run import Run
from planescope.training.tracker import pressure
from planescope.training.tracker.history import History

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

# Inches: the least width of a panel, its height with title and ticks, and without them.
NARROWEST_PANEL, PANEL, AXES = 1.25, 1.5, 1.1
# Inches of the legend: what an entry has beside its text, a line of it, and its title.
HANDLE, LINE, HEAD = 0.35, 0.135, 0.2
# Points between the numbers at the ends of lines.
NUMBER_PITCH = 6.0
# With more epochs the axis is logarithmic: what happens, happens early.
MANY_EPOCHS = 30
# Points across of the smallest dot, and of all of a line's points together.
DOT, CROWDED = 1.6, 75.0
LONGEST_NAME = 18
# Points at the edge of a panel are drawn whole. A line of none would count, to the layout, as lying
# at the figure's corner.
ON_TOP: dict[str, Any] = {"clip_on": False, "in_layout": False, "zorder": 3}
# The part of viridis that is dark enough on white.
LIGHTEST = 0.88


@dataclass(frozen=True, kw_only=True)
class Panel:
    """The way in which a statistic is drawn.

    `test` is the column of its corrected p-values; `banded` says that chance has a band for it.
    """

    label: str
    limits: tuple[float | None, float | None] = (None, None)
    test: str | None = None
    banded: bool = False


PANELS = {
    "negative_mass": Panel(label="negative mass", limits=(0, 1), test="q_mass", banded=True),
    "agreement": Panel(label="agreement", limits=(0, 1), test="q_mass", banded=True),
    "mean_cosine": Panel(label="mean cosine"),
    "mean_projection": Panel(label="mean projection"),
    "l2": Panel(label="l2 distance", limits=(0, None)),
    "linf": Panel(label="l∞ distance", limits=(0, None)),
    "negative_centre": Panel(label="negative centre", limits=(0, 1), test="q_centre"),
    "mean_centre": Panel(label="mean centre"),
    "activation_rate": Panel(label="activation rate", limits=(0, 1)),
    pressure.NAME: Panel(label="drift pressure a step"),
}
USUAL = ("negative_mass", "agreement", "mean_cosine", "l2", "negative_centre", pressure.NAME)
NEEDED = ("epoch", "layer", "filters", "degenerate", "non_finite", "q_mass", "q_centre")
# Filters that have no part in a mass; tables of before have not all of these columns.
ASIDE = ("degenerate", "non_finite", "sideless")
METRICS = ("loss", "accuracy")
# The curves of a panel of metrics, by how their columns begin.
CURVES: dict[str, dict[str, Any]] = {
    "train": {"label": "training", "linestyle": (0, (2, 1)), "color": "#777777"},
    "val": {"label": "validation", "linestyle": "-", "color": NEUTRAL},
}


@styled
def dynamics(
    run: Run | History | str | os.PathLike[str] | pd.DataFrame,
    metrics: pd.DataFrame | None = None,
    /,
    *,
    statistics: Iterable[str] | None = None,
    width: Width = "page",
) -> Figure:
    """Draw the statistics of each layer over the epochs, beside loss and accuracy.

    Colours go with depth; up to twelve layers are numbered at the ends of their lines, more have a
    colour bar. In panels of statistics that have a test, a point is filled where the layer is
    beyond chance (corrected p < 0.05). The bands are those that were tested, corrected over the
    layers of each epoch, for the layers with the fewest and the most filters. Where there are many
    epochs, their axis is logarithmic from epoch 1 on.

    Parameters
    ----------
    run : Run, path, Tracker, its history, or DataFrame
        A training run or its folder; what a Tracker saw; or a table with a column `epoch` and
        those of a measurement's table, ``pandas.concat({0: m0.to_pandas(), ...},
        names=["epoch"]).reset_index()``.
    metrics : DataFrame, optional
        Beside a table: `epoch`, and any of `train_loss`, `val_loss`, `train_accuracy` and
        `val_accuracy`.
    statistics : iterable of str, optional
        Any of negative_mass, agreement, mean_cosine, mean_projection, l2, linf, negative_centre,
        mean_centre and activation_rate, and of a Tracker drift_pressure. By default negative_mass,
        agreement, mean_cosine, l2, negative_centre and drift_pressure, as far as they have values.
    width : "column", "page" or inches

    Raises
    ------
    UsageError
        If a table lacks a column or has a layer twice at an epoch, a statistic is unknown or has no
        values, or `width` is invalid.
    CheckpointError
        If there is no such run, nothing was measured yet, or a file of it is damaged.
    """
    import pandas as pd

    across, title = inches(width), None
    if isinstance(run, (str, os.PathLike)):
        run = Run.open(run)
    elif isinstance(history := getattr(run, "history", None), History):  # a Tracker's
        run = history
    if isinstance(run, (Run, History)):
        unit, table, metrics = run.unit, table_of(run), pd.DataFrame()
    else:
        unit, table = "epoch", by_layer(run)
        metrics = pd.DataFrame() if metrics is None else metrics
    if isinstance(run, Run):
        title = fitted(run.path.resolve().name, across)
        metrics = pd.DataFrame(map(vars, run.metrics))
    _check(table)
    chosen = _chosen(table, statistics)
    curves = [name for name in METRICS if _columns(metrics, name)]
    names = list(table["layer"].unique())
    figure, panels = _panels(width, len(curves) + len(chosen), unit)
    for axes, name in zip(panels, curves, strict=False):
        _draw_metrics(axes, metrics, name)
    for axes, name in zip(panels[len(curves) :], chosen, strict=True):
        _draw_statistic(axes, table, name, names)
    epoch_axis(panels[0], max(part["epoch"].max() for part in (table, metrics) if len(part)))
    if len(names) > MANY:
        _color_bar(figure, panels, len(names))
    labels = {label for axes in panels for label in axes.get_legend_handles_labels()[1]}
    if labels:  # many layers, in statistics without a test, have none
        entry = max(map(len, labels)) / SIGNS_AN_INCH + HANDLE
        lines = legend(figure, across, title, entry=entry)
        figure.set_figheight(figure.get_figheight() + HEAD + lines * LINE)
    return figure


def table_of(followed: Run | History, /) -> pd.DataFrame:
    """Return the layers at each update, with the number that tells these apart as `epoch`."""
    import pandas as pd

    if isinstance(followed, Run):
        return followed.measurements.rename(columns={followed.unit: "epoch"})
    drift = followed.numbered_drift
    parts = {
        number: pd.DataFrame(layers_table([one]) | {pressure.NAME: drift[number]})
        for number, one in followed.numbered.items()
    }
    return pd.concat(parts, names=["epoch"]).reset_index(level="epoch")


def _check(table: pd.DataFrame) -> None:
    lacking = [column for column in NEEDED if column not in table]
    if lacking:
        raise UsageError(f"the table of measurements has no column {', '.join(lacking)}")
    twice = table[table.duplicated(["epoch", "layer"])]
    if len(twice):
        epoch, name = twice.iloc[0][["epoch", "layer"]]
        raise UsageError(
            f"the table of measurements has the layer {name!r} twice at epoch {epoch}; choose one "
            "run, and one view"
        )


def _chosen(table: pd.DataFrame, statistics: Iterable[str] | None) -> list[str]:
    there = [name for name in PANELS if name in table and table[name].notna().any()]
    chosen = [name for name in USUAL if name in there] if statistics is None else list(statistics)
    lacking = [name for name in chosen if name not in there]
    if lacking or not chosen:
        raise UsageError(
            f"no layer has a value of {', '.join(lacking) or 'any statistic'}; "
            f"there are values of {', '.join(there) or 'none'}"
        )
    return chosen


def _columns(metrics: pd.DataFrame, name: str) -> list[str]:
    """Return the curves of a metric."""
    columns = {curve: f"{curve}_{name}" for curve in CURVES}
    return [
        curve
        for curve, column in columns.items()
        if column in metrics and metrics[column].notna().any()
    ]


def _panels(width: Width, count: int, unit: str) -> tuple[Figure, list[Axes]]:
    """Return the panels that share the axis of epochs or steps, filled column by column."""
    columns = min(math.ceil(count / 2), max(1, int(inches(width) / NARROWEST_PANEL)))
    rows = math.ceil(count / columns)
    figure = canvas(width, rows * PANEL)
    grid = figure.add_gridspec(rows, columns, wspace=0.05)
    panels: list[Axes] = []
    for i in range(count):
        shared = panels[0] if panels else None
        panels.append(figure.add_subplot(grid[i % rows, i // rows], sharex=shared))
        if i % rows == rows - 1 or i == count - 1:
            panels[i].set_xlabel(unit)
    return figure, panels


def _draw_metrics(axes: Axes, metrics: pd.DataFrame, name: str) -> None:
    for curve in _columns(metrics, name):
        values = metrics[f"{curve}_{name}"].astype(float)
        look = CURVES[curve] | ON_TOP | {"markersize": _dot(len(values))}
        axes.plot(metrics["epoch"], values, marker="o", **look)
    axes.set(title=name, ylim=(0, 1 if name == "accuracy" else None))


def _draw_statistic(axes: Axes, table: pd.DataFrame, name: str, names: Sequence[str]) -> None:
    """Draw a line a layer.

    Where there is a test, a point is filled if the layer is beyond chance.
    """
    panel, few = PANELS[name], len(names) <= MANY
    values = _by_layer(table, name, names)
    epochs, lines = values.index.to_numpy(), values.to_numpy(dtype=float).T
    colors = depth_colors()(np.linspace(0.0, 1.0, len(names)))
    style = ON_TOP | {"marker": "o", "markersize": _dot(len(epochs)) if few else 0.0}
    for i, line in enumerate(lines):
        label = f"{i + 1} {shown(names[i], LONGEST_NAME)}" if few else None
        axes.plot(
            epochs, line, color=colors[i], linewidth=0.9 if few else 0.6, label=label, **style
        )
    if panel.test is not None:
        tested = _by_layer(table, panel.test, names).to_numpy(dtype=float).T
        _draw_points(axes, epochs, lines, tested < LEVEL, colors)
    axes.set(title=panel.label, ylim=panel.limits)
    if panel.banded:
        _draw_bands(axes, table, name)
    if few:
        _number_ends(axes, lines, colors)


def _dot(points: int) -> float:
    return min(DOT, CROWDED / points)


def _by_layer(table: pd.DataFrame, column: str, names: Sequence[str]) -> pd.DataFrame:
    """Return a row an epoch, a column a layer."""
    return table.pivot(index="epoch", columns="layer", values=column)[list(names)]


def depth_colors() -> Colormap:
    """Return the colours of an order, from first to last, all of them dark enough on white."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps["viridis"](np.linspace(0.0, LIGHTEST, 256)))


def _draw_points(axes: Axes, epochs: Any, lines: Floats, beyond: Any, colors: Any) -> None:
    """Draw filled points beyond chance, hollow ones within it unless they would hide the lines."""
    few = len(lines) <= MANY
    size = min(3.0 if few else 2.0, CROWDED / len(epochs))
    style: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": size, **ON_TOP}
    for label, faces, wanted in (("beyond chance", None, True), ("within chance", "white", False)):
        if wanted or few:
            for line, filled, color in zip(lines, beyond, colors, strict=True):
                chosen = filled == wanted
                axes.plot(epochs[chosen], line[chosen], color=color, mfc=faces, **style)
            axes.plot([], [], color=NEUTRAL, mfc=faces, label=label, **style)


def _draw_bands(axes: Axes, table: pd.DataFrame, name: str) -> None:
    """Draw the tested bands of chance for the layers with the fewest and the most filters.

    Each epoch is tested by itself, corrected over its layers.
    """
    usable = table["filters"] - sum(table[name] for name in ASIDE if name in table)
    counts = usable[usable > 0]
    tests = table.groupby("epoch")["q_mass"]
    found = {epoch: chance.level_of(q.dropna().astype(float)) for epoch, q in tests}
    levels = list(found.values())
    epochs = np.array(list(found), dtype=float)
    edges = np.concatenate([epochs[:1], (epochs[1:] + epochs[:-1]) / 2, epochs[-1:]])
    if len(epochs) == 1:
        edges += (-0.5, 0.5)
    for filters, color in ((counts.min(), FAINT), (counts.max(), CHANCE)):
        low, high = np.array([chance.mass_band(int(filters), level=1 - x) for x in levels]).T
        if name == "agreement":
            low, high = np.zeros_like(low), 2.0 * high - 1.0
        label = f"chance, tested, N = {filters}"
        look: dict[str, Any] = {"fill": True, "color": color, "linewidth": 0, "zorder": 0}
        axes.stairs(high, edges, baseline=low, label=label, **look)


def _number_ends(axes: Axes, lines: Floats, colors: Any) -> None:
    """Number the lines beside the panel where they end, one above the other where they meet."""
    from matplotlib.collections import LineCollection
    from scipy.optimize import isotonic_regression

    low, high = axes.get_ylim()
    ends = {i: line[np.isfinite(line)][-1:] for i, line in enumerate(lines)}
    order = sorted((i for i in ends if len(ends[i])), key=lambda i: float(ends[i][0]))
    wanted = np.array([(ends[i][0] - low) / (high - low) for i in order])
    steps = np.arange(len(order)) * NUMBER_PITCH / (72 * AXES)
    # The nearest heights that are in order and a step apart; then moved into the panel.
    heights = isotonic_regression(wanted - steps).x.clip(0.0, 1.0 - steps[-1]) + steps
    place: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False}
    leaders = [((1.01, end), (1.05, height)) for end, height in zip(wanted, heights, strict=True)]
    axes.add_collection(
        LineCollection(leaders, colors=colors[order], linewidths=0.4, **place), autolim=False
    )
    for i, height in zip(order, heights, strict=True):
        axes.text(1.06, height, str(i + 1), color=colors[i], size=5.5, va="center", **place)


def epoch_axis(axes: Axes, last: float) -> None:
    """Set the axis of epochs up to the last: logarithmic from 1 on where there are many."""
    if last > MANY_EPOCHS:
        axes.set_xscale("symlog", linthresh=1.0, linscale=0.4)
        axes.xaxis.set_major_formatter("{x:g}")
    else:
        axes.locator_params(axis="x", integer=True, nbins=5)
    axes.set_xlim(0.0, max(last, 1.0))


def _color_bar(figure: Figure, panels: Sequence[Axes], layers: int) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    depth = ScalarMappable(Normalize(1, layers), depth_colors())
    ticks = np.unique(np.linspace(1, layers, 6).round())
    figure.colorbar(depth, ax=panels, ticks=ticks, label="layer", aspect=40, pad=0.02)
