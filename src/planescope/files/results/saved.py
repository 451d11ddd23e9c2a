"""Results in files, as plain data: JSON, or Parquet that holds it in its metadata."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planescope.files.errors import CheckpointError, one_line
from planescope.files.reading import open_binary, read_text
from planescope.files.writing import read_parquet_metadata

# What the names of such files end in.
_SUFFIXES = (".json", ".parquet")


@dataclass(frozen=True)
class Saved:
    """A result as a file has it.

    Attributes
    ----------
    path : str
    data : dict, list or None
        Several results are a list; None is a table without the JSON form.
    schema : str or None
        Of the result, or the first of several that has one.
    """

    path: str
    data: Any
    schema: str | None


def read_saved(path: str | os.PathLike[str], what: str) -> Saved:
    """Read a result that was saved as JSON or Parquet.

    Parameters
    ----------
    what : str
        What the file is to hold, as a message calls it.

    Raises
    ------
    CheckpointError
        If the file cannot be read, or holds neither.
    MissingDependencyError
        If a Parquet file needs pyarrow.
    """
    path = Path(path)
    try:
        with open_binary(path) as file:
            is_parquet = file.read(4) == b"PAR1"
        if is_parquet:
            metadata = read_parquet_metadata(path)
            data = json.loads(metadata.get(b"planescope", b"null"))
            schema = metadata.get(b"schema", b"none").decode()
            return Saved(str(path), data, schema if data is None else _schema_of(data))
        data = json.loads(read_text(path))
    except OSError as exc:
        raise CheckpointError(f"{path}: cannot be read: {exc.strerror or one_line(exc)}") from exc
    except (ValueError, RecursionError) as exc:  # JSON, UTF-8 and Arrow errors are ValueErrors
        raise CheckpointError(f"{path}: holds no {what}; save it with --out") from exc
    return Saved(str(path), data, _schema_of(data))


def found_saved(source: Any, /) -> Saved | None:
    """Read the saved result that a path leads to; None of other files, as a checkpoint.

    Raises
    ------
    CheckpointError, MissingDependencyError
        As `read_saved`.
    """
    if not isinstance(source, str | os.PathLike):
        return None
    path = Path(source)
    if path.suffix.lower() not in _SUFFIXES or not path.is_file():
        return None
    saved = read_saved(path, "saved result")
    # An index of a checkpoint's shards is JSON too.
    return None if saved.schema is None and isinstance(saved.data, dict) else saved


def _schema_of(data: Any) -> str | None:
    several = data if isinstance(data, list) else [data]
    return next((str(one["schema"]) for one in several if _has_schema(one)), None)


def _has_schema(data: Any) -> bool:
    return isinstance(data, dict) and "schema" in data


def check_schema(path: str | os.PathLike[str], data: Any, /, *, schema: str, remedy: str) -> None:
    """Check that the plain data of a result has a schema version.

    Raises
    ------
    CheckpointError
        If it has another one, or none.
    """
    found = data.get("schema") if isinstance(data, dict) else None
    kind, wanted = (
        str(one).partition("/")[0].removeprefix("planescope.") for one in (found, schema)
    )
    if kind != wanted and str(found).startswith("planescope."):
        raise CheckpointError(
            f"{path}: is a result of the kind {kind!r:.80}, not {wanted!r}; the class of its kind "
            "loads it, as planescope.Relation.load does a relation"
        )
    if found != schema:
        raise CheckpointError(
            f"{path}: its schema is {found!r:.80}, and this version of planescope reads "
            f"{schema!r}; {remedy}"
        )
