"""Files that are whole or absent: written beside their target, then renamed."""

from __future__ import annotations

import contextlib
import csv
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planescope.files.drafts import draft_of
from planescope.files.errors import (
    MissingDependencyError,
    OutputError,
    one_line,
)
from planescope.files.targets import check_target, followed

if TYPE_CHECKING:
    from numpy.typing import NDArray


@contextlib.contextmanager
def replacing(target: str | os.PathLike[str], *, beside: Path | None = None) -> Iterator[Path]:
    """Give a path to write to; it takes the target's place when the block ends without an error.

    It lies in a hidden folder beside the target. A process that is killed leaves that folder; the
    next one that writes the same target removes it.

    Parameters
    ----------
    beside : Path, optional
        Another place for that folder, where the target's own is to hold nothing else.

    Raises
    ------
    OutputError
        If the folder is missing or not writable, or the disk is full.
    """
    target = Path(target)
    try:
        target = followed(target)
        with draft_of(target, beside=beside) as draft:
            yield draft
            # Some writers let nobody else read; a result has the rights of any new file.
            mask = os.umask(0)
            os.umask(mask)
            draft.chmod(0o666 & ~mask)
            draft.replace(target)
    except OSError as exc:
        raise OutputError(f"{target}: cannot be written: {exc.strerror or exc}") from exc


# What a spreadsheet takes for a formula at the start of a cell, or skips before one.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def as_cell(value: Any, /) -> Any:
    """Return what a CSV cell holds: text that a spreadsheet would compute gets a ``'`` before it.

    Numbers stay numbers, also negative ones; `from_cell` gives every text back.
    """
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def from_cell(text: str, /) -> str:
    """Return the text that `as_cell` put into a cell."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def write_csv(target: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write columns of equal length as CSV (RFC 4180, UTF-8); None and NaN are left empty.

    Text that a spreadsheet would take for a formula is written as `as_cell` says.
    """
    # A path whose bytes are no UTF-8 must not cost the whole table.
    with target.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(map(as_cell, columns))
        writer.writerows(_csv_rows(columns))


def _csv_rows(columns: Mapping[str, Sequence[Any]]) -> Iterable[list[Any]]:
    for row in zip(*columns.values(), strict=True):
        yield ["" if isinstance(v, float) and math.isnan(v) else as_cell(v) for v in row]


def in_utf8(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns as tables can hold them, by name.

    Texts that UTF-8 has not, as the name of a file may be, get backslash escapes: they must not
    cost the whole table.
    """
    return {name: _column_in_utf8(values) for name, values in columns.items()}


def _column_in_utf8(values: Any) -> Any:
    if getattr(getattr(values, "dtype", None), "kind", "O") not in "OU":
        return values
    held = values if isinstance(values, (list, tuple)) else values.tolist()
    if all(not isinstance(value, str) or is_utf8(value) for value in held):
        return values
    return [v.encode(errors="backslashreplace").decode() if isinstance(v, str) else v for v in held]


def is_utf8(text: str) -> bool:
    """Tell whether UTF-8 can encode a text, which not every file name lets it."""
    if text.isascii():  # known without a look at it
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def write_parquet(
    target: Path, columns: Mapping[str, Sequence[Any] | NDArray[Any]], metadata: Mapping[str, str]
) -> None:
    """Write columns of equal length as Parquet, with `metadata` in the file's own.

    Raises
    ------
    MissingDependencyError
        If pyarrow is not installed.
    """
    pa = _pyarrow()
    table = pa.table(in_utf8(columns)).replace_schema_metadata(dict(metadata))
    with target.open("wb") as file:  # opened here: Arrow takes no path whose bytes are no text
        pa.parquet.write_table(table, file)


def write_torch(target: Path, held: Any) -> None:
    """Write what `torch.load` reads; a full disk is an error of the system, as elsewhere.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    import torch

    try:
        torch.save(held, target)
    except RuntimeError as exc:  # what torch makes of a full disk, in words of its own
        raise OSError(f"is the disk full? (torch says: {one_line(exc)})") from exc


def read_parquet_metadata(source: Path) -> dict[bytes, bytes]:
    """Return the metadata that `write_parquet` gave a file.

    Raises
    ------
    MissingDependencyError
        If pyarrow is not installed.
    ValueError, OSError
        If the file is damaged or cannot be read.
    """
    pyarrow = _pyarrow()
    try:
        return dict(pyarrow.parquet.read_schema(source).metadata or {})
    # Some of Arrow's errors are ValueErrors, and some are KeyErrors or NotImplementedErrors.
    except pyarrow.ArrowException as exc:
        raise ValueError(one_line(exc)) from exc


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as exc:
        if exc.name != "pyarrow":
            raise
        raise MissingDependencyError(
            "Parquet files need pyarrow: pip install '.[parquet]'"
        ) from exc
    return pyarrow


def write(target: str | os.PathLike[str], writers: Mapping[str, Callable[[Path], None]]) -> None:
    """Write a result in the form that the target's suffix names, whole or not at all."""
    writer = writers[check_target(target, writers)]
    with replacing(target) as draft:
        writer(draft)
