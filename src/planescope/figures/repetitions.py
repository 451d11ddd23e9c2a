"""Runs that differ in their seeds alone: masses through training as mean and band, as the paper."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from planescope.figures.canvas import (
    CHANCE,
    FAINT,
    NEUTRAL,
    Width,
    canvas,
    inches,
    save,
    shown,
    styled,
)
from planescope.figures.dynamics import CURVES, METRICS, depth_colors, epoch_axis
from planescope.files.errors import UsageError
from planescope.files.folders import inside, make_inside
from planescope.files.results.result import by_layer
from planescope.study.claims.reference import Deviation, deviation
from planescope.training.run import Run

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Layers of a panel: few enough to tell their bands apart.
TOGETHER = 4
# Inches: a panel's height, that of loss and accuracy, and the foot.
PANEL, CURVE, FOOT = 1.0, 0.8, 0.55
BAND = 0.22
LONGEST = 22


@styled
def repetitions(
    table: pd.DataFrame,
    metrics: pd.DataFrame | None = None,
    /,
    *,
    drops: Sequence[int] = (),
    reference: Mapping[str, Mapping[int, float]] | None = None,
    width: Width = "page",
) -> Figure:
    """Draw the negative mass of each layer through training over several runs.

    Four layers share a panel, the first at the top; loss and accuracy stand below. A line is the
    mean over the runs, its band reaches from the least to the largest of them. Dashed lines across
    all panels are drops of the learning rate.

    Parameters
    ----------
    table : DataFrame
        `run`, `epoch`, `layer` and `negative_mass`, a row a run, epoch and layer; layers in order.
    metrics : DataFrame, optional
        `run`, `epoch`, and any of `train_loss`, `val_loss`, `train_accuracy` and `val_accuracy`.
    drops : sequence of int
        Epochs after which the rate falls.
    reference : mapping of layer's name to mapping of epoch to mass, optional
        Masses in [0, 1] to draw beside, as crosses: a published figure's.
    width : {"column", "page"} or inches

    Raises
    ------
    UsageError
        If a column is missing, runs have different layers, or `width` cannot be.
    """
    import pandas as pd

    table = by_layer(table)
    names = _names(table)
    metrics = pd.DataFrame() if metrics is None else metrics
    curves = [m for m in METRICS if any(f"{c}_{m}" in metrics for c in CURVES)]
    parts = [names[first : first + TOGETHER] for first in range(0, len(names), TOGETHER)]
    heights = [PANEL] * len(parts) + [CURVE] * len(curves)
    figure = canvas(width, sum(heights) + FOOT)
    panels = figure.subplots(
        len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )[:, 0]
    # Of a panel each from dark to light: neighbours among all layers could not be told apart.
    palette = depth_colors()(np.linspace(0, 1, TOGETHER))
    colors = {name: palette[i % TOGETHER] for i, name in enumerate(names)}
    numbers = {name: i + 1 for i, name in enumerate(names)}
    for axes, part in zip(panels, parts, strict=False):
        for name in part:
            own = table[table["layer"] == name]
            text = shown(f"{numbers[name]} {name}", LONGEST)
            _mean_and_band(axes, own, "negative_mass", color=colors[name], label=text)
            points = (reference or {}).get(name, {})
            axes.plot(
                list(points), list(points.values()), "x", color=colors[name], markersize=3.5,
                in_layout=False, zorder=4,
            )  # fmt: skip
        axes.axhline(0.5, color=CHANCE, linewidth=0.8, zorder=0)
        axes.set(ylim=(-0.03, 1.03), yticks=(0, 0.5, 1), ylabel="negative\nmass")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    for axes, metric in zip(panels[len(parts) :], curves, strict=True):
        for curve, look in CURVES.items():
            if f"{curve}_{metric}" in metrics and metrics[f"{curve}_{metric}"].notna().any():
                _mean_and_band(axes, metrics, f"{curve}_{metric}", **look)
        axes.set(ylabel=metric, ylim=(0, 1 if metric == "accuracy" else None))
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    for axes in panels:
        for drop in drops:
            axes.axvline(drop, color=NEUTRAL, linewidth=0.6, linestyle=(0, (4, 2)), zorder=0)
        axes.grid(axis="y", color=FAINT, linewidth=0.4)
    epoch_axis(panels[0], float(table["epoch"].max()))
    panels[-1].set_xlabel("epoch")
    panels[0].set_title(_title(table, inches(width), bool(reference)), loc="left")
    return figure


def write_deviation(
    runs: Sequence[Run],
    reference: str | os.PathLike[str],
    out: str | os.PathLike[str],
    /,
    *,
    form: str = "png",
    width: Width = "page",
) -> tuple[Deviation, tuple[Path, ...]]:
    """Hold runs against a published figure, and write the numbers and a figure of both.

    Parameters
    ----------
    runs, reference
        As `planescope.study.claims.reference.deviation`.
    out : path
        Folder, made if need be; it gets ``deviation.json``, ``deviation.csv`` and the figure.
    form : {"png", "svg", "pdf"}
    width : {"column", "page"} or inches

    Raises
    ------
    UsageError, CheckpointError
        As `planescope.study.claims.reference.deviation`.
    OutputError
        If the folder cannot be made or written.
    """
    found = deviation(runs, reference)
    masses: dict[str, dict[int, float]] = {}
    for point in found.points:
        if point.layer is not None:
            masses.setdefault(point.name, {})[point.epoch] = point.reference
    table, metrics = together({run.path.resolve().name: run for run in runs})
    table = table[table["layer"].isin(list(masses))]
    drops = rate_drops(runs[0].config)
    drawn = repetitions(table, metrics, drops=drops, reference=masses, width=width)
    folder = make_inside(out)
    files = [inside(folder, f"deviation.{suffix}") for suffix in ("json", "csv", form)]
    for file in files[:2]:
        found.save(file)
    save(drawn, files[2])
    return found, tuple(files)


def together(runs: Mapping[str, Run], /) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return measurements and metrics of some runs, each row with the name of its `run`."""
    import pandas as pd

    return (
        pd.concat([run.measurements.assign(run=name) for name, run in runs.items()]),
        pd.concat([pd.DataFrame(map(vars, r.metrics)).assign(run=n) for n, r in runs.items()]),
    )


def rate_drops(config: Any, /) -> tuple[int, ...]:
    """Return the epochs after which a run's schedule lowers the rate by a step."""
    milestones: tuple[int, ...] = tuple(config.milestones) if config.schedule == "step" else ()
    return tuple(m for m in milestones if m < config.epochs)


def _names(table: pd.DataFrame) -> list[str]:
    """Return the layers in order, the same in every run."""
    lacking = {"run", "epoch", "layer", "negative_mass"} - set(table)
    if lacking or table.empty:
        raise UsageError(
            f"the table of runs has no {f'column {min(lacking)}' if lacking else 'rows'}"
        )
    orders = {tuple(own["layer"].unique()) for _, own in table.groupby("run", observed=True)}
    if len(orders) > 1:
        raise UsageError("runs of one figure must have the same layers; draw them apart")
    return [str(name) for name in orders.pop()]


def _mean_and_band(axes: Axes, rows: pd.DataFrame, column: str, **look: Any) -> None:
    """Draw the mean over runs at each epoch that all of them have."""
    whole = rows.pivot(index="epoch", columns="run", values=column).astype(float).dropna()
    values = whole.to_numpy()
    if values.shape[1] > 1:
        low, high = values.min(1), values.max(1)
        axes.fill_between(
            whole.index, low, high, color=look["color"], alpha=BAND, linewidth=0, zorder=1
        )
    look = {"linewidth": 1.0, **look}
    axes.plot(whole.index, values.mean(1), in_layout=False, zorder=3, **look)


def _title(table: pd.DataFrame, width: float, compared: bool) -> str:
    runs = table["run"].nunique()
    said = f"mean and range of {runs} runs" if runs > 1 else "one run"
    said += "; crosses: the reference" if compared else ""
    return shown(said, math.floor(width * 12))
