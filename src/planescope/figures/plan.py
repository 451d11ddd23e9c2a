"""The figure of a plan: what each size costs, as it is and repaired, with the rivals."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from planescope.criticality.plan.planned import Plan
from planescope.figures.canvas import (
    AWAY,
    FAINT,
    NEUTRAL,
    TOWARD,
    Width,
    canvas,
    inches,
    our_style,
    shown,
    styled,
)
from planescope.figures.layers import NAME_PITCH, legend, row_pitch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of allocations, in their order; Okabe and Ito's.
COLOURS = (NEUTRAL, AWAY, TOWARD)
MARKS = ("o", "s", "^")
# Inches: a narrow figure has its panels one above the other.
WIDE = 5.0
HEIGHT = 2.6
# Inches of a legend's entry: names of allocations are long.
ENTRY = 2.2


@styled
def plan(plan: Plan, /, *, width: Width = "page") -> Figure:
    """Draw the loss at each size that was tried, and the share of each layer that stays.

    A line is an allocation, dashed as it is and drawn through where it is repaired; the diamond is
    the plan. The loss is METHOD's where there is one, else the measure that the plan names.

    Parameters
    ----------
    plan : Plan
    width : "column", "page" or inches

    Raises
    ------
    UsageError
        If `width` cannot be.
    """
    rows = len(plan.layers)
    height = max(HEIGHT, rows * row_pitch(rows, NAME_PITCH) + 0.8)
    if inches(width) >= WIDE:
        figure = canvas(width, height)
        costs, sizes = figure.subplots(1, 2, width_ratios=[3, 2])
    else:
        figure = canvas(width, HEIGHT + height)
        costs, sizes = figure.subplots(2, 1, height_ratios=[HEIGHT, height])
    _costs(costs, plan)
    _sizes(sizes, plan)
    legend(figure, inches(width), entry=ENTRY)
    return figure


def numbers(plan: Plan, /) -> dict[str, list[Any]]:
    """Return the numbers behind the figure, a row a rival."""
    rivals = (*plan.rivals, *plan.curve)
    keys = ("name", "repaired", "size", "divergence", "agreement", "accuracy", "loss")
    found = {key: [getattr(rival, key) for rival in rivals] for key in keys}
    return found | {"chosen": [rival == plan.chosen for rival in rivals]}


def picture(made: Plan, /) -> str:
    """Return the figure as the address of an SVG that holds it."""
    held = io.BytesIO()
    with our_style():
        plan(made).savefig(held, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(held.getvalue()).decode()}"


def _costs(axes: Axes, plan: Plan) -> None:
    rivals = (*plan.rivals, *plan.curve)
    has_loss = any(rival.loss is not None for rival in rivals)
    key = "loss" if has_loss else "divergence"
    scale = 100 if has_loss else 1
    names = list(dict.fromkeys(rival.name for rival in plan.rivals))
    for name, colour, mark in zip(
        names, _cycled(COLOURS, names), _cycled(MARKS, names), strict=True
    ):
        for repaired in (False, True):
            own = sorted(
                (r.size, scale * getattr(r, key))
                for r in rivals
                if r.name == name and r.repaired is repaired and getattr(r, key) is not None
            )
            if own:
                axes.plot(
                    *zip(*own, strict=True), color=colour, marker=mark, clip_on=False,
                    markerfacecolor=colour if repaired else "white", zorder=3,
                    linestyle="-" if repaired else "--",
                    label=f"{name}{', repaired' if repaired else ''}",
                )  # fmt: skip
        if name == names[0]:  # so that each column of the legend is an allocation
            _mark(axes, plan, key, scale)
    axes.axhline(0, color=NEUTRAL, linewidth=0.5)
    axes.set(xlabel=_size_label(plan), ylabel=_cost_label(plan, has_loss=has_loss))
    top = max((r.size for r in rivals), default=1.0)
    axes.set_xlim(0, min(1.0, 1.15 * top))


def _mark(axes: Axes, plan: Plan, key: str, scale: float) -> None:
    chosen = getattr(plan.chosen, key)
    if chosen is not None:
        axes.plot(
            [plan.chosen.size], [scale * chosen], marker="D", markersize=8, linestyle="",
            markerfacecolor="none", color=NEUTRAL, zorder=4, clip_on=False, label="the plan",
        )  # fmt: skip


def _cycled(some: Sequence[str], names: Sequence[str]) -> list[str]:
    return [some[number % len(some)] for number in range(len(names))]


def _size_label(plan: Plan) -> str:
    if plan.way == "bits":
        return "size, of 32 bits a weight"
    return "size: share of the weights that stays"


def _cost_label(plan: Plan, *, has_loss: bool) -> str:
    if not has_loss:
        return plan.measure
    return "loss, %" if plan.method == "measured" else "expected loss, %"


def _sizes(axes: Axes, plan: Plan) -> None:
    y = range(len(plan.layers))
    axes.barh(y, [1.0 for _ in y], height=0.7, color=FAINT)
    axes.barh(y, [layer.size for layer in plan.layers], height=0.7, color=TOWARD)
    axes.set_yticks(list(y), [shown(layer.name, 18) for layer in plan.layers])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(len(plan.layers) - 0.5, -0.5)
    axes.set(xlim=(0, 1), xlabel="what stays of each layer")
