"""Records of what a network loses when layers are reset to earlier weights (METHOD, section 6)."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from planescope.criticality.definition import Critical, agreed
from planescope.criticality.resets.verdict import cells_are, title, trained_line, verdict
from planescope.files.results.result import Table, plain
from planescope.hyperplanes.layer import Kind

SCHEMA = "planescope.resets/2"
_FORMER = "planescope.resets/1"

# What a fresh draw from the network's own initialiser is called in place of a snapshot.
RAND = "rand"
# Likewise a draw by each module's own `reset_parameters`.
FRESH = "fresh"
# The split of what is evaluated on synthetic pictures.
SYNTHETIC = "synthetic"


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """The accuracy of a network on examples.

    Attributes
    ----------
    value : float or None
        The metric, higher is better: the accuracy where none was given; None without labels, or
        where it is no number.
    low, high : float or None
        95 % interval of `value`: Wilson's of an accuracy, the bootstrap's of another metric; with a
        tolerance, bounds of the accuracy on all examples that hold at every moment. None where
        there is no value an example.
    examples : int
        How many were looked at.
    top1, top5 : float or None
        Shares of the examples whose label is the largest output, and among the five largest; in
        [0, 1]. None where right answers were not counted.
    cross_entropy : float or None
        Mean, in nats; None where it is not finite or right answers were not counted.
    """

    value: float | None
    low: float | None
    high: float | None
    examples: int
    top1: float | None = None
    top5: float | None = None
    cross_entropy: float | None = None


# The order of a cell's keys in every file form.
CELL_KEYS = (
    "layer", "snapshot", "draw", "value", "low", "high", "examples", "relative_drop", "loss",
    "loss_low", "loss_high", "critical", "p_value", "significant", "top1", "top5", "cross_entropy",
    "disagreement", "expected_drop", "expected_loss", "expected_loss_low", "expected_loss_high",
    "divergence", "relative_l2",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ResetCell(Accuracy):
    """The network with one layer, or several together, put back.

    Attributes
    ----------
    layer : str
        Name; of several, their names with commas between.
    snapshot : int or str
        Epoch in a run, else the name that was given or that of the file; ``"fresh"`` for a draw by
        each module's own `reset_parameters`, ``"rand"`` for one from the network's initialiser;
        ``"path:k/K"`` for a step of a path.
    draw : int or None
        Number of the fresh draw, from 0; None for a snapshot.
    relative_drop : float or None
        ``(a - value) / a`` with the trained network's value a; None where a is 0 or cannot be told
        from chance.
    loss, loss_low, loss_high : float or None
        ``(a - value) / (a - chance)``, and its 95 % interval (METHOD, section 7).
    critical : {"yes", "no", "undecided"} or None
        Whether that interval lies above 0.1, below it, or on both sides; None where nothing can be
        said: without labels, an interval or chance, or where a cannot be told from chance.
    p_value : float or None
        Exact test of whether the two are one, on the same examples (McNemar, or the sign test).
    significant : bool or None
        Whether the value changed beyond noise: p-values, corrected over the cells by
        Benjamini-Hochberg, below 0.05.
    disagreement : float or None
        Share of examples whose answer is another than the trained network's. This and what follows
        needs no labels; None where outputs are no scores of classes.
    expected_drop : float or None
        Drop of accuracy that the trained network's own probabilities let expect, as a share.
    expected_loss, expected_loss_low, expected_loss_high : float or None
        Likewise of the loss, with its 95 % interval (METHOD, section 7).
    divergence : float or None
        Mean of KL(p, p_l), in nats: p the trained network's softmax, p_l the changed one's.
    relative_l2 : float or None
        Norm of the change of all outputs by the norm of all outputs.
    """

    KEYS: ClassVar[tuple[str, ...]] = CELL_KEYS

    layer: str
    snapshot: int | str
    draw: int | None
    relative_drop: float | None
    loss: float | None = None
    loss_low: float | None = None
    loss_high: float | None = None
    critical: Critical | None = None
    p_value: float | None
    significant: bool | None
    disagreement: float | None = None
    expected_drop: float | None = None
    expected_loss: float | None = None
    expected_loss_low: float | None = None
    expected_loss_high: float | None = None
    divergence: float | None = None
    relative_l2: float | None = None


@dataclass(frozen=True, kw_only=True)
class ResetLayer:
    """A layer that was reset, and how its hyperplanes face the data once trained."""

    name: str
    kind: Kind
    stage: int | None
    negative_mass: float | None
    agreement: float | None
    biased: bool | None


@dataclass(frozen=True, kw_only=True)
class Resets(Table):
    """The table of layers × snapshots.

    Attributes
    ----------
    source : str
        Path of the run or of the trained checkpoint; name of a module.
    network, data, split : str
        What was evaluated, and on which examples: ``"val"``, ``"train"``, ``"given"`` (the user's,
        as they come) or ``"synthetic"``.
    trained : Accuracy
        Of the network as it was trained.
    layers : tuple of ResetLayer
        In the order of the network.
    cells : tuple of ResetCell
        By layer, then snapshot, then draw.
    tolerance : float or None
        Cells were ended once their accuracy was known to this.
    precision : str or None
        What all of it was computed in: ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``; None in
        files from before this was kept.
    metric : str or None
        What `value` is: ``"accuracy"``, or the name of the function that was given; None without.
    chance : float or None
        What the metric is by chance: the share of the commonest label, 1/classes without labels, or
        what was given.
    preprocessing : str or None
        What was done to the inputs here; None where they went to the network as they came.
    needed_steps : dict of str to (float or None)
        Of a path: by row the least share of it that keeps the metric within its interval.
    positions : int or None
        Answers of all examples together, where an example has several, as the pixels of a
        segmentation: accuracies are then means over examples of the share of their positions that
        is right. None where an example has one.
    notes : tuple of str
        What a reader should know.
    """

    SCHEMA: ClassVar[str] = SCHEMA
    WHAT: ClassVar[str] = "resets"
    REMEDY: ClassVar[str] = "reset the layers again"
    DERIVED: ClassVar[tuple[str, ...]] = ("verdict",)

    source: str
    network: str
    data: str
    split: str
    trained: Accuracy
    layers: tuple[ResetLayer, ...]
    cells: tuple[ResetCell, ...]
    tolerance: float | None = None
    precision: str | None = None
    metric: str | None = "accuracy"
    chance: float | None = None
    preprocessing: str | None = None
    needed_steps: dict[str, float | None] = dataclasses.field(default_factory=dict, hash=False)
    positions: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[str, ...]:
        """Return the names of what was reset, in order: layers, then those reset together."""
        return tuple(dict.fromkeys(cell.layer for cell in self.cells))

    @property
    def snapshots(self) -> tuple[int | str, ...]:
        """Return where layers were reset to, in order."""
        return tuple(dict.fromkeys(cell.snapshot for cell in self.cells))

    def at(self, layer: str, snapshot: int | str) -> tuple[ResetCell, ...]:
        """Return the cells of a layer and a snapshot: one, or one a draw."""
        return tuple(c for c in self.cells if (c.layer, c.snapshot) == (layer, snapshot))

    def critical(self, layer: str, snapshot: int | str) -> Critical | None:
        """Return whether a layer is critical; of several draws what these agree on."""
        return agreed(cell.critical for cell in self.at(layer, snapshot))

    def drop(self, layer: str, snapshot: int | str) -> tuple[float, float] | None:
        """Return the mean of the relative drop over draws, and its standard deviation.

        None without one.
        """
        return mean_drop(self.at(layer, snapshot))

    @property
    def verdict(self) -> str:
        """Return in sentences which layers are critical at the earliest snapshot."""
        return verdict(self)

    def columns(self) -> dict[str, list[Any]]:
        """Return the table's columns: a row a cell, by the keys of the JSON form."""
        return {key: [plain(getattr(cell, key)) for cell in self.cells] for key in CELL_KEYS}

    @classmethod
    def parquet_columns(cls, results: Sequence[Self], /) -> dict[str, list[Any]]:
        """Return the columns with snapshots as text: epochs and names are both allowed."""
        columns = cls.file_columns(results)
        return columns | {"snapshot": [str(snapshot) for snapshot in columns["snapshot"]]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], /) -> Self:
        """Make the record of what `to_dict` gave.

        Raises
        ------
        ValueError
            If a part is missing or of another type, or there are no cells.
        """
        resets = super().from_dict(data)
        if not resets.cells:
            raise ValueError("it has no cells")
        return resets

    @classmethod
    def _renewed(cls, data: Any) -> Any:
        is_former = isinstance(data, dict) and data.get("schema") == _FORMER
        return _renewed(data) if is_former else data

    def _summary(self) -> tuple[str, Mapping[str, Sequence[Any]]]:
        """Return what a notebook shows: the verdict, and a row a layer, a column a snapshot."""
        columns: dict[str, Sequence[Any]] = {"layer": self.rows}
        first = self.snapshots[0]
        told = [self.critical(row, first) for row in self.rows]
        if any(told):
            columns["critical"] = ["" if one is None else one.value for one in told]
        columns |= {title(s): [self.shown(row, s) for row in self.rows] for s in self.snapshots}
        sentence = f"{self.source}, {trained_line(self)}. Table: {cells_are(self)}. {self.verdict}"
        return sentence, columns

    def shown(self, layer: str, snapshot: int | str) -> str:
        """Return text of a cell: relative drop in per cent, or the metric where there is none.

        Without labels the disagreement, or the relative L2 of outputs.

        In parentheses where it is within noise (of any draw).
        """
        return cell_text(self.at(layer, snapshot))


def _renewed(data: dict[str, Any]) -> dict[str, Any]:
    """Return plain data of the first schema in the words of this one."""

    def cell(of: object) -> object:
        if not isinstance(of, dict) or "top1" not in of:
            return of
        rest = {key: value for key, value in of.items() if key != "loss"}
        return {**rest, "value": of["top1"], "cross_entropy": of.get("loss")}

    cells = data.get("cells")
    return {
        **data,
        "schema": SCHEMA,
        "trained": cell(data.get("trained")),
        "cells": [cell(one) for one in cells] if isinstance(cells, list) else cells,
    }


def mean_loss(cells: Sequence[ResetCell], /) -> tuple[float | None, float | None, float | None]:
    """Return the mean of the loss over some draws, and the widest of their intervals.

    None where one lacks.
    """
    losses, lows, highs = (
        [value for cell in cells if (value := getattr(cell, name)) is not None]
        for name in ("loss", "loss_low", "loss_high")
    )
    if not cells or len(losses) < len(cells):
        return None, None, None
    if min(len(lows), len(highs)) < len(cells):
        return statistics.fmean(losses), None, None
    return statistics.fmean(losses), min(lows), max(highs)


def mean_drop(cells: Sequence[ResetCell], /) -> tuple[float, float] | None:
    """Return the mean of the relative drop over some draws, and its standard deviation.

    None without one.
    """
    drops = [cell.relative_drop for cell in cells if cell.relative_drop is not None]
    if not drops:
        return None
    return statistics.fmean(drops), statistics.stdev(drops) if len(drops) > 1 else 0.0


def cell_text(cells: Sequence[ResetCell], /) -> str:
    """Return text of the cells of one layer and snapshot, as `Resets.shown` gives it."""
    if not cells:
        return ""
    drop = mean_drop(cells)
    if drop is None:
        value = _mean(cells)
        if value is None:
            return _label_free(cells)
        return f"{value:.1%}" if cells[0].top1 is not None else f"{value:.4g}"
    mean, spread = drop
    text = f"{100 * mean:.1f}" + (f" ± {100 * spread:.1f}" if len(cells) > 1 else "")
    # A drop that rounds to nothing has no sign.
    text = text.replace("-0.0", "0.0")
    noise = any(cell.significant is False for cell in cells)
    return f"({text})" if noise else text


def _mean(cells: Sequence[ResetCell]) -> float | None:
    values = [cell.value for cell in cells if cell.value is not None]
    return statistics.fmean(values) if values else None


def _label_free(cells: Sequence[ResetCell]) -> str:
    for name in ("disagreement", "relative_l2"):
        values = [getattr(cell, name) for cell in cells]
        if None not in values:
            return f"{statistics.fmean(values):.1%}"
    return ""
