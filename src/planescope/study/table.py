"""The table of a study: every run at every snapshot, layer by layer, as one Parquet data set.

Each run is a file of its own, whole or absent, so that workers write beside one another; the
folder of them is what pandas, Polars and DuckDB read as one table.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from planescope.config import RunConfig
from planescope.errors import CheckpointError
from planescope.measurement import LAYER_KEYS, LayerMeasurement
from planescope.output import replacing
from planescope.resets import RAND, Resets
from planescope.run import EpochMetrics

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from planescope.run import Run

SCHEMA = "planescope.study-table/1"

# A layer put back to this snapshot: a row's columns from its cell of the resets. `rand_drop` is
# the mean over fresh draws, the same at each of the layer's rows.
RESET_KEYS = ("reset_accuracy", "relative_drop", "reset_p_value", "reset_significant", "rand_drop")

# Fields of a config that hold several values, or say nothing about what became of a run.
_LEFT_OUT = ("milestones", "kinds", "loggers", "download", "workers", "data_path", "view")
CONFIG_KEYS = tuple(name for name in RunConfig.model_fields if name not in _LEFT_OUT)
# Both have `seconds` and such; an epoch's own are told by the prefix they have already.
METRIC_KEYS = tuple(field.name for field in dataclasses.fields(EpochMetrics))


def write_part(run: Run, name: str, folder: Path) -> None:
    """Write a run's rows; what was there before is replaced.

    Raises
    ------
    CheckpointError
        If nothing was measured, or a file of the run is damaged.
    MissingDependencyError
        If pyarrow is not installed.
    OutputError
        If it cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    measured = run.measurements
    rows = len(measured)
    metrics = {row.epoch: row for row in run.metrics}
    config = run.config
    columns: dict[str, Any] = {"run": [name] * rows}
    columns |= {key: [getattr(config, key)] * rows for key in CONFIG_KEYS}
    epochs = [int(epoch) for epoch in measured["epoch"]]
    columns |= {key: [getattr(metrics[epoch], key) for epoch in epochs] for key in METRIC_KEYS}
    layers = {key: measured[key].astype(object) for key in ("view", *LAYER_KEYS)}
    columns |= {key: column.where(column.notna(), None) for key, column in layers.items()}
    columns["kernel"] = [_as_text(kernel) for kernel in measured["kernel"]]
    columns["name"] = list(measured["name"])
    columns |= _reset_columns(run, columns["name"], epochs)
    schema = _schema()
    arrays = [pa.array(list(columns[field.name]), field.type) for field in schema]
    with replacing(folder / f"{name}.parquet") as draft:
        pq.write_table(pa.table(arrays, schema=schema), draft)


def _as_text(kernel: Any) -> str:
    return kernel if isinstance(kernel, str) else "×".join(str(int(size)) for size in kernel)


def _reset_columns(run: Run, names: Sequence[str], epochs: Sequence[int]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {key: [None] * len(names) for key in RESET_KEYS}
    if not run.resets.is_file():
        return columns
    resets = Resets.load(run.resets)
    cells = {(cell.layer, cell.snapshot): cell for cell in resets.cells if cell.draw is None}
    for row, (name, epoch) in enumerate(zip(names, epochs, strict=True)):
        if drawn := resets.drop(name, RAND):
            columns["rand_drop"][row] = drawn[0]
        cell = cells.get((name, epoch))
        if cell is not None:
            values = (cell.top1, cell.relative_drop, cell.p_value, cell.significant)
            for key, value in zip(RESET_KEYS, values, strict=False):
                columns[key][row] = value
    return columns


@functools.cache
def _schema() -> pa.Schema:
    """Types that are the same in each part, whichever values a run happens to lack."""
    import pyarrow as pa

    hints: dict[str, Any] = {"run": str, "view": str}
    hints |= {key: RunConfig.model_fields[key].annotation for key in CONFIG_KEYS}
    metrics, layers = get_type_hints(EpochMetrics), get_type_hints(LayerMeasurement)
    hints |= {key: metrics[key] for key in METRIC_KEYS}
    hints |= {key: layers[key] for key in LAYER_KEYS}
    hints |= dict.fromkeys(RESET_KEYS, float) | {"reset_significant": bool, "kernel": str}
    fields = [pa.field(key, _arrow_type(hint)) for key, hint in hints.items()]
    return pa.schema(fields, metadata={"schema": SCHEMA})


def _arrow_type(hint: Any) -> pa.DataType:
    import pyarrow as pa

    kinds = _kinds(hint)
    for kind, made in ((float, pa.float64()), (bool, pa.bool_()), (int, pa.int64())):
        if kind in kinds:
            return made
    # Each word is kept once: a million rows of names would fill the memory otherwise.
    return pa.dictionary(pa.int32(), pa.string())


def _kinds(hint: Any) -> set[Any]:
    """Types that a value may have; words of a Literal, and enumerations, are text."""
    if get_origin(hint) is Literal or (isinstance(hint, type) and issubclass(hint, str)):
        return {str}
    if get_origin(hint) is types.UnionType or get_args(hint):
        return set().union(*(_kinds(part) for part in get_args(hint)))
    return {hint}


def read_table(
    folder: Path, runs: Collection[str], columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """Rows of some runs, in their order; text is categorical.

    Raises
    ------
    CheckpointError
        If there are none, a column is unknown, or a file is damaged.
    """
    import pyarrow.dataset as ds

    files = [folder / f"{name}.parquet" for name in runs]
    files = [file for file in files if file.is_file()]
    if not files:
        raise CheckpointError(f"{folder}: holds no run yet; make the study, with measure in make")
    try:
        found = ds.dataset([str(file) for file in files], schema=_schema(), format="parquet")
        table = found.to_table(columns=None if columns is None else list(columns))
    except (OSError, ValueError, KeyError) as exc:  # Arrow's errors are among these
        raise CheckpointError(f"{folder}: cannot be read ({exc})") from exc
    # One set of words for the whole column, as pandas wants them.
    unified: pa.Table = table.unify_dictionaries()
    frame: pd.DataFrame = unified.to_pandas(self_destruct=True, split_blocks=True)
    return frame


def remove_others(folder: Path, runs: Collection[str]) -> None:
    """Take out the rows of runs that are not of the study, as after an edit of its file."""
    kept = {f"{name}.parquet" for name in runs}
    for path in folder.glob("*.parquet"):
        if path.name not in kept:
            path.unlink(missing_ok=True)
