"""The tables of a run's folder as columns: a CSV or Parquet file to lists of values, and back.

In memory the column of epochs is `epoch`; in files it has the name of what a run is numbered by.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from planescope.files.errors import CheckpointError, one_line
from planescope.files.reading import open_binary, read_text
from planescope.files.results.result import COLUMN_OF
from planescope.files.writing import from_cell, write_csv, write_parquet
from planescope.measurement.record import (
    LAYER_COLUMNS,
    LAYER_KEYS,
    LayerMeasurement,
    layer_from_dict,
)

MEASUREMENTS_SCHEMA = "planescope.run-measurements/1"
MEASUREMENT_KEYS = ("schema", "epoch", "view", *LAYER_COLUMNS)

# What later versions measure too, and what a file of before has in its place.
_LATER = {"sideless": 0}
_TEXT_KEYS = ("schema", "view", "layer", "kind", "input", "kernel")


def key_in_files(key: str, unit: str, /) -> str:
    """Return what files call a column; that of epochs has the name of the unit there."""
    return unit if key == "epoch" else key


def read_measurements(path: Path, unit: str, /) -> dict[str, list[Any]]:
    """Read the columns of a table of measurements, of either form.

    Raises
    ------
    CheckpointError
        If it is damaged.
    """
    if path.suffix == ".csv":
        return read_csv(path, MEASUREMENT_KEYS, unit, later=_LATER)
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # One file as it is: what reads several together imports pandas, half a second.
        with open_binary(path) as file:
            table = pq.ParquetFile(file)
            # Packed, a few bytes can stand for a billion rows; each of ours takes hundreds.
            if table.metadata.num_rows > os.fstat(file.fileno()).st_size:
                raise ValueError("it claims more rows than bytes")
            columns = table.read().to_pydict()
    except (OSError, ValueError, pa.ArrowException) as exc:
        raise CheckpointError(f"{path}: is damaged ({one_line(exc)})") from exc
    rows = len(next(iter(columns.values()), ()))
    columns = {key: [value] * rows for key, value in _LATER.items()} | columns
    columns = _renewed(_with_epochs(columns, unit))
    if columns.keys() != set(MEASUREMENT_KEYS):
        raise CheckpointError(f"{path}: is damaged (its columns are others)")
    return {key: columns[key] for key in MEASUREMENT_KEYS}


def layers_by_epoch(
    table: Mapping[str, list[Any]], path: Path, /
) -> dict[int, tuple[LayerMeasurement, ...]]:
    """Return the layers of a table of measurements by epoch, in order.

    Raises
    ------
    CheckpointError
        If a value is none of a layer's; it names the file.
    """
    found: dict[int, list[LayerMeasurement]] = {}
    for values in zip(*table.values(), strict=True):
        row = dict(zip(table, values, strict=True))
        fields = {key: row[COLUMN_OF.get(key, key)] for key in LAYER_KEYS}
        try:
            fields["kernel"] = [
                int(extent) for extent in (row["kernel"] or "").split("x") if extent
            ]
            found.setdefault(int(row["epoch"]), []).append(layer_from_dict(fields))
        except (ValueError, TypeError, AttributeError, OverflowError) as exc:
            raise CheckpointError(f"{path}: is damaged ({one_line(exc)})") from exc
    return {epoch: tuple(found[epoch]) for epoch in sorted(found)}


def write_measurements(path: Path, columns: Mapping[str, list[Any]], unit: str, /) -> None:
    """Write the columns of a table of measurements, in the form that the file's name says."""
    columns = {key_in_files(key, unit): column for key, column in columns.items()}
    if path.suffix == ".csv":
        write_csv(path, columns)
    else:
        write_parquet(path, columns, {"schema": MEASUREMENTS_SCHEMA})


def read_csv(
    path: Path, keys: Sequence[str], unit: str, /, *, later: Mapping[str, Any] | None = None
) -> dict[str, list[Any]]:
    """Read the columns, of these names, of a table that `write_csv` wrote; an empty cell is None.

    Columns of `later` may be missing, and then have its value.

    Raises
    ------
    CheckpointError
        If its columns are others, or a row is not whole.
    """
    names = [key_in_files(key, unit) for key in keys]
    try:
        head, *rows = csv.reader(io.StringIO(read_text(path), newline=""))
        head = list(_renewed(dict.fromkeys(head))) if "layer" in names else head
        missing = {key: value for key, value in (later or {}).items() if key not in head}
        if sorted([*head, *missing]) != sorted(names):
            raise ValueError("its columns are others")
        columns = zip(*rows, strict=True) if rows else [()] * len(head)
        found = {
            key: [_value(key, cell) for cell in column]
            for key, column in zip(head, columns, strict=True)
        }
        found |= {key: [value] * len(rows) for key, value in missing.items()}
        return _with_epochs({name: found[name] for name in names}, unit)
    except (OSError, ValueError, csv.Error) as exc:
        raise CheckpointError(f"{path}: is damaged ({exc})") from exc


def _value(key: str, cell: str) -> Any:
    if cell == "" or key in _TEXT_KEYS:
        return from_cell(cell) or None
    if cell in ("True", "False"):
        return cell == "True"
    with contextlib.suppress(ValueError):
        return int(cell)
    return float(cell)


def _with_epochs(columns: Mapping[str, list[Any]], unit: str) -> dict[str, list[Any]]:
    """Return the columns of a file by the names that they have here."""
    return {"epoch" if key == unit else key: column for key, column in columns.items()}


def _renewed(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a file of before by the names that flat tables have."""
    return {COLUMN_OF.get(key, key): column for key, column in columns.items()}
