"""The table of a study: every run at every snapshot, layer by layer, as one Parquet data set.

Each run is a file of its own, whole or absent, so that workers write beside one another; the
folder of them is what pandas, Polars and DuckDB read as one table.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import types
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from planescope.criticality.resets.record import RAND, Resets
from planescope.files.errors import CheckpointError, nearest
from planescope.files.folders import inside, replacing_inside
from planescope.files.results.result import COLUMN_OF
from planescope.measurement.record import LAYER_COLUMNS, LAYER_KEYS, LayerMeasurement
from planescope.study.columns import Frame
from planescope.training.config import RunConfig
from planescope.training.folder.metrics import EpochMetrics

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

    from planescope.training.run import Run

SCHEMA = "planescope.study-table/1"

# Of files that are read while those before go into the table: enough that few calls are made a
# column, and a small share of what a large table takes.
BATCH_BYTES = 8 << 20

# A layer put back to this snapshot: a row's columns from its cell of the resets. `rand_drop` is
# the mean over fresh draws, the same at each of the layer's rows.
RESET_KEYS = ("reset_accuracy", "relative_drop", "reset_p_value", "reset_significant", "rand_drop")

# Fields of a config that runs are compared by; the others are in each run's config.yaml.
CONFIG_KEYS = (
    "network", "width", "data", "classes", "examples", "validation", "labels", "label_noise",
    "shuffle_pixels", "resize", "augment", "normalise", "data_seed", "epochs", "batch_size",
    "optimiser", "learning_rate", "weight_decay", "schedule", "centred", "precision", "seed",
)  # fmt: skip
# All but the rate, which would hide the config's; schedules are in each run's metrics.csv.
METRIC_KEYS = tuple(
    field.name for field in dataclasses.fields(EpochMetrics) if field.name != "learning_rate"
)


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
    _save(_rows_of(run, name), folder / f"{name}.parquet")


def _rows_of(run: Run, name: str) -> pa.Table:
    measured = run.measurements
    rows = len(measured)
    metrics = {row.epoch: row for row in run.metrics}
    config = run.config
    columns: dict[str, Any] = {"run": [name] * rows}
    columns |= {key: [getattr(config, key)] * rows for key in CONFIG_KEYS}
    epochs = [int(epoch) for epoch in measured["epoch"]]
    columns |= {key: [getattr(metrics[epoch], key) for epoch in epochs] for key in METRIC_KEYS}
    layers = {key: measured[key].astype(object) for key in ("view", *LAYER_COLUMNS)}
    columns |= {key: column.where(column.notna(), None) for key, column in layers.items()}
    columns["kernel"] = [_as_text(kernel) for kernel in measured["kernel"]]
    columns["layer"] = list(measured["layer"])
    columns |= _reset_columns(run, columns["layer"], epochs)
    return _table(columns)


def save_part(columns: Mapping[str, Sequence[Any] | NDArray[Any]], target: Path) -> None:
    """Write the rows of a run, all columns of `table_schema`.

    Raises
    ------
    MissingDependencyError
        If pyarrow is not installed.
    OutputError
        If it cannot be written.
    """
    _save(_table(columns), target)


def _table(columns: Mapping[str, Sequence[Any] | NDArray[Any]]) -> pa.Table:
    import pyarrow as pa

    schema = table_schema()
    return pa.table([pa.array(columns[f.name], f.type) for f in schema], schema=schema)


def _save(table: pa.Table, target: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Numbers are hardly ever the same twice: to list them first makes files larger, and slower.
    listed = [f.name for f in table.schema if not pa.types.is_floating(f.type)]
    # Not in its folder: Polars reads all of that, half a file too.
    folder = target.parent
    with (
        replacing_inside(folder, target.name, beside=folder.parent) as draft,
        draft.open("wb") as file,
    ):
        pq.write_table(table, file, use_dictionary=listed)


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
            values = (cell.value, cell.relative_drop, cell.p_value, cell.significant)
            for key, value in zip(RESET_KEYS, values, strict=False):
                columns[key][row] = value
    return columns


@functools.cache
def table_schema() -> pa.Schema:
    """Return the types that are the same in each part, whichever values a run happens to lack."""
    import pyarrow as pa

    hints: dict[str, Any] = {"run": str, "view": str}
    hints |= {key: RunConfig.model_fields[key].annotation for key in CONFIG_KEYS}
    metrics, layers = get_type_hints(EpochMetrics), get_type_hints(LayerMeasurement)
    hints |= {key: metrics[key] for key in METRIC_KEYS}
    hints |= {COLUMN_OF.get(key, key): layers[key] for key in LAYER_KEYS}
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
    """Return the types that a value may have; words of a Literal, and enumerations, are text."""
    if get_origin(hint) is Literal or (isinstance(hint, type) and issubclass(hint, str)):
        return {str}
    if get_origin(hint) is types.UnionType or get_args(hint):
        return set().union(*(_kinds(part) for part in get_args(hint)))
    return {hint}


def read_table(
    folder: Path,
    runs: Iterable[str],
    columns: Sequence[str] | None = None,
    *,
    without: Mapping[str, Run] = MappingProxyType({}),
) -> pd.DataFrame:
    """Return the rows of some runs, in their order; text is categorical.

    Parameters
    ----------
    without : dict of str to Run
        Those of them that were measured and have no rows here: they are made for this once.

    Raises
    ------
    CheckpointError
        If there are none, a column is unknown, or a file is damaged.
    """
    import pyarrow as pa

    schema = table_schema()
    if columns is not None:
        for key in set(columns) - set(schema.names):
            raise CheckpointError(f"{folder}: has no column {key!r}; {nearest(key, schema.names)}")
        schema = pa.schema([schema.field(key) for key in columns])
    files = _sizes(folder, runs, without)
    if not files:
        raise CheckpointError(f"{folder}: holds no run yet; make the study, with measure in make")
    frame = Frame(schema)
    for parts in _read_ahead(_batches(files), schema, without):
        frame.add(pa.concat_tables(parts))
    return frame.to_pandas()


def _sizes(folder: Path, runs: Iterable[str], without: Mapping[str, Run]) -> dict[Path, int]:
    """Return the files of those runs that have one, or have rows without, and their bytes."""
    sizes = {}
    for name in runs:
        file = inside(folder, f"{name}.parquet")
        if name in without:
            sizes[file] = 0
            continue
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            sizes[file] = file.stat().st_size
    return sizes


def _batches(sizes: Mapping[Path, int]) -> Iterator[list[Path]]:
    batch: list[Path] = []
    room = BATCH_BYTES
    for file, size in sizes.items():
        batch.append(file)
        room -= size
        if room <= 0:
            yield batch
            batch, room = [], BATCH_BYTES
    if batch:
        yield batch


def _read_ahead(
    batches: Iterable[list[Path]], schema: pa.Schema, without: Mapping[str, Run]
) -> Iterator[list[pa.Table]]:
    """Yield the parts of each batch, while those of the next are read."""
    with ThreadPoolExecutor() as pool:
        before: Iterable[pa.Table] = ()
        for batch in batches:
            ahead = pool.map(_part, batch, repeat(schema), repeat(without))
            if parts := list(before):
                yield parts
            before = ahead
        yield list(before)


def _part(
    file: Path, schema: pa.Schema, without: Mapping[str, Run] = MappingProxyType({})
) -> pa.Table:
    """Return the columns of one run, made of its own files where it is `without` its part.

    Arrow's own threads, and its data sets, take three times as long.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if (run := without.get(file.stem)) is not None:
        return _rows_of(run, file.stem).select(schema.names)
    try:
        # Read as one, not column by column.
        with pq.ParquetFile(pa.BufferReader(file.read_bytes())) as part:
            former = _former(part.schema_arrow.names)
            names = [former.get(key, key) for key in schema.names]
            table = part.read(names, use_threads=False)
        if former:
            table = table.rename_columns([COLUMN_OF.get(key, key) for key in table.column_names])
        return table if table.schema.equals(schema) else _of_other_version(table, schema)
    except (OSError, ValueError) as exc:  # Arrow's errors are among these
        raise CheckpointError(
            f"{file}: cannot be read ({exc}); remove it, and make the study again"
        ) from exc


def _former(names: Collection[str]) -> dict[str, str]:
    """Return what a file of before calls columns that have another name by now."""
    return {now: then for then, now in COLUMN_OF.items() if then in names and now not in names}


def _of_other_version(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the columns of a run, empty where it lacks them."""
    import pyarrow as pa

    there = set(table.column_names)
    return pa.table(
        [
            table[field.name].cast(field.type)
            if field.name in there
            else pa.nulls(len(table), field.type)
            for field in schema
        ],
        schema=schema,
    )


def renew(folder: Path) -> None:
    """Write parts of before anew: to others the folder is one table, a column has one name."""
    parts = sorted(folder.glob("*.parquet"))
    # The first is written last: where it is new, all are.
    if parts and _is_former(parts[0]):
        schema = table_schema()
        for path in reversed(parts):
            if _is_former(path):
                save_part(_part(path, schema).to_pydict(), path)


def _is_former(file: Path) -> bool:
    """Tell whether columns have names of before; what is damaged is told by who reads it."""
    import pyarrow.parquet as pq

    try:
        return bool(_former(pq.read_schema(file).names))
    except (OSError, ValueError):
        return False


def remove_others(folder: Path, runs: Collection[str]) -> None:
    """Take out the rows of runs that are not of the study, as after an edit of its file."""
    kept = {f"{name}.parquet" for name in runs}
    for path in folder.glob("*.parquet"):
        if path.name not in kept:
            path.unlink(missing_ok=True)
