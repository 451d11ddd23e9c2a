"""What a network loses when layers are put back to earlier weights (METHOD, section 6): records."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planescope.files.errors import CheckpointError, one_line
from planescope.files.records import record
from planescope.files.writing import in_utf8, read_result, write, write_csv, write_parquet
from planescope.hyperplanes.layer import Kind

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = "planescope.resets/1"

# What the suffix of an output file may be.
FORMS = (".json", ".csv", ".parquet")

# What a fresh draw from the network's own initialiser is called in place of a snapshot.
RAND = "rand"

# A drop is significant where chance alone would give such a cell in one of twenty (corrected).
LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """How a network does on validation examples.

    Attributes
    ----------
    top1, top5 : float
        Shares of the examples whose label is the largest output, and among the five largest; in
        [0, 1].
    loss : float or None
        Mean cross-entropy; None where it is not finite.
    examples : int
        How many were looked at.
    low, high : float
        95 % interval of `top1`: Wilson's; with a tolerance, bounds of the accuracy on all examples
        that hold at every moment.
    """

    top1: float
    top5: float
    loss: float | None
    examples: int
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class ResetCell(Accuracy):
    """The network with one layer, or several together, put back.

    Attributes
    ----------
    layer : str
        Name; of several, their names with commas between.
    snapshot : int or str
        Epoch in a run, else the file's name; ``"rand"`` for a fresh draw from the initialiser.
    draw : int or None
        Number of the fresh draw, from 0; None for a snapshot.
    relative_drop : float or None
        ``(a - top1) / a`` with the trained network's accuracy a; None where a is 0 or cannot be
        told from chance.
    p_value : float
        Exact test of whether the two accuracies are one, on the same examples (McNemar).
    significant : bool
        Whether the accuracy changed beyond noise: p-values, corrected over the cells by
        Benjamini-Hochberg, below 0.05.
    """

    layer: str
    snapshot: int | str
    draw: int | None
    relative_drop: float | None
    p_value: float
    significant: bool


@dataclass(frozen=True, kw_only=True)
class ResetLayer:
    """A layer that was reset, and how its hyperplanes face the data once trained."""

    name: str
    kind: Kind
    stage: int | None
    negative_mass: float | None
    agreement: float | None
    biased: bool | None


# The order of a cell's keys in every file form.
CELL_KEYS = (
    "layer", "snapshot", "draw", "top1", "top5", "loss", "relative_drop", "examples",
    "low", "high", "p_value", "significant",
)  # fmt: skip
_ACCURACY_KEYS = tuple(field.name for field in dataclasses.fields(Accuracy))


@dataclass(frozen=True, kw_only=True)
class Resets:
    """The table of layers × snapshots.

    Attributes
    ----------
    source : str
        Path of the run or of the trained checkpoint; name of a module.
    network, data, split : str
        What was evaluated, and on which examples.
    trained : Accuracy
        Of the network as it was trained.
    layers : tuple of ResetLayer
        In the order of the network.
    cells : tuple of ResetCell
        By layer, then snapshot, then draw.
    tolerance : float or None
        Cells were ended once their accuracy was known to this.
    notes : tuple of str
        What a reader should know.
    """

    source: str
    network: str
    data: str
    split: str
    trained: Accuracy
    layers: tuple[ResetLayer, ...]
    cells: tuple[ResetCell, ...]
    tolerance: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of what was reset, in order: layers, then those reset together."""
        return tuple(dict.fromkeys(cell.layer for cell in self.cells))

    @property
    def snapshots(self) -> tuple[int | str, ...]:
        """Where layers were reset to, in order."""
        return tuple(dict.fromkeys(cell.snapshot for cell in self.cells))

    def at(self, layer: str, snapshot: int | str) -> tuple[ResetCell, ...]:
        """Cells of a layer and a snapshot: one, or one a draw."""
        return tuple(c for c in self.cells if (c.layer, c.snapshot) == (layer, snapshot))

    def drop(self, layer: str, snapshot: int | str) -> tuple[float, float] | None:
        """Mean of the relative drop over draws, and its standard deviation; None without one."""
        return mean_drop(self.at(layer, snapshot))

    @property
    def verdict(self) -> str:
        """What resets cost at the earliest snapshot, in a sentence."""
        first = self.snapshots[0]
        cells = [cell for cell in self.cells if cell.snapshot == first]
        where = {RAND: "drawn anew", 0: "put back to epoch 0"}.get(first, f"put back to {first}")
        lost = [cell for cell in cells if cell.significant and cell.top1 < self.trained.top1]
        if not lost:
            return f"No layer, {where}, loses accuracy beyond noise."
        rows = list(dict.fromkeys(cell.layer for cell in lost))
        worst = min(lost, key=lambda cell: cell.top1)
        return (
            f"{len(rows)} of {len({cell.layer for cell in cells})} layers, {where}, lose accuracy "
            f"beyond noise; most of all {worst.layer}: {worst.top1:.1%} in place of "
            f"{self.trained.top1:.1%}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data as in the JSON form; no value of it is NaN."""
        return {
            "schema": SCHEMA,
            "source": self.source,
            "network": self.network,
            "data": self.data,
            "split": self.split,
            "trained": dataclasses.asdict(self.trained),
            "layers": [dataclasses.asdict(layer) for layer in self.layers],
            "cells": [{key: getattr(cell, key) for key in CELL_KEYS} for cell in self.cells],
            "tolerance": self.tolerance,
            "notes": list(self.notes),
        }

    def to_json(self, *, indent: int | None = 2) -> str:
        """JSON text by the schema ``planescope.resets/1``."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def to_pandas(self) -> pd.DataFrame:
        """Table with a row a cell; the columns are the keys of the JSON form."""
        import pandas as pd

        cells = self.to_dict()["cells"]
        columns = {key: [cell[key] for cell in cells] for key in CELL_KEYS}
        return pd.DataFrame(in_utf8(columns))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the resets; the suffix chooses .json, .csv or .parquet.

        CSV holds the cells alone; JSON and Parquet hold all that `load` needs.

        Raises
        ------
        UsageError
            If the suffix is none of these.
        OutputError
            If the file cannot be written; nothing is left behind then.
        """

        def as_json(draft: Path) -> None:
            draft.write_text(self.to_json() + "\n", encoding="utf-8")

        def as_csv(draft: Path) -> None:
            write_csv(draft, self._columns())

        def as_parquet(draft: Path) -> None:
            # A column has one type: snapshots are text there, as epochs and names are both allowed.
            columns = self._columns()
            columns["snapshot"] = [str(snapshot) for snapshot in columns["snapshot"]]
            whole = {"planescope": self.to_json(indent=None), "schema": SCHEMA}
            write_parquet(draft, columns, whole)

        write(path, dict(zip(FORMS, (as_json, as_csv, as_parquet), strict=True)))

    def _columns(self) -> dict[str, list[Any]]:
        columns = {key: [getattr(cell, key) for cell in self.cells] for key in CELL_KEYS}
        return {"schema": [SCHEMA] * len(self.cells), **columns}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Resets:
        """Load what `save` wrote as JSON or Parquet.

        Raises
        ------
        CheckpointError
            If the file is missing, is not such a file, or has another schema version.
        MissingDependencyError
            If a Parquet file needs pyarrow.
        """
        data = read_result(path, "resets", schema=SCHEMA, remedy="reset the layers again")
        try:
            resets = record(cls, {key: each for key, each in data.items() if key != "schema"})
            if not resets.cells:
                raise ValueError("it has no cells")
        except ValueError as exc:
            raise CheckpointError(f"{path}: holds no whole resets ({one_line(exc)})") from exc
        return resets

    def _repr_html_(self) -> str:
        from html import escape

        head = "".join(f"<th>{escape(str(snapshot))}</th>" for snapshot in self.snapshots)
        body = "".join(
            f"<tr><th>{escape(row)}</th>"
            + "".join(f"<td>{self.shown(row, snapshot)}</td>" for snapshot in self.snapshots)
            + "</tr>"
            for row in self.rows
        )
        return (
            f"<p>{escape(self.source)}: {escape(self.verdict)}</p>"
            f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>"
        )

    def shown(self, layer: str, snapshot: int | str) -> str:
        """Text of a cell: relative drop in per cent, or accuracy where there is none.

        In parentheses where it is within noise (of any draw).
        """
        return cell_text(self.at(layer, snapshot))


def mean_drop(cells: Sequence[ResetCell], /) -> tuple[float, float] | None:
    """Mean of the relative drop over some draws, and its standard deviation; None without one."""
    drops = [cell.relative_drop for cell in cells if cell.relative_drop is not None]
    if not drops:
        return None
    return statistics.fmean(drops), statistics.stdev(drops) if len(drops) > 1 else 0.0


def cell_text(cells: Sequence[ResetCell], /) -> str:
    """Text of the cells of one layer and snapshot, as `Resets.shown` gives it."""
    if not cells:
        return ""
    drop = mean_drop(cells)
    if drop is None:
        return f"{statistics.fmean(cell.top1 for cell in cells):.1%}"
    mean, spread = drop
    text = f"{100 * mean:.1f}" + (f" ± {100 * spread:.1f}" if len(cells) > 1 else "")
    # A drop that rounds to nothing has no sign.
    text = text.replace("-0.0", "0.0")
    return text if all(cell.significant for cell in cells) else f"({text})"
