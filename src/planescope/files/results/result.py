"""Results of every kind: plain data, JSON, tables, and the files that hold them, once for all."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import Enum
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from planescope.files.errors import CheckpointError, one_line, printable
from planescope.files.results.records import record
from planescope.files.results.saved import Saved, check_schema, read_saved
from planescope.files.targets import TABLES
from planescope.files.writing import (
    in_utf8,
    write,
    write_csv,
    write_parquet,
)

if TYPE_CHECKING:
    import pandas as pd

# Columns of flat tables by what the JSON form calls them: `layers[].name` there, `layer` here.
# Tables of before have the names of the JSON form.
COLUMN_OF = {"name": "layer"}


class Result:
    """A record of what was found: base of dataclasses that become JSON and come back from it.

    Attributes
    ----------
    SCHEMA : str
        Name and version of the JSON form.
    WHAT : str
        What messages call it.
    REMEDY : str
        What to do about a file of another version.
    DERIVED : tuple of str
        Properties that the JSON form has too, for readers; they are not read back.
    """

    SCHEMA: ClassVar[str]
    WHAT: ClassVar[str]
    REMEDY: ClassVar[str] = "write it again"
    DERIVED: ClassVar[tuple[str, ...]] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain data as in the JSON form; no value of it is NaN."""
        derived = {name: plain(getattr(self, name)) for name in self.DERIVED}
        return {"schema": self.SCHEMA, **derived, **_fields(self)}

    def to_json(self, *, indent: int | None = 2) -> str:
        """Return JSON text by the schema that it names."""
        return to_json([self], indent=indent)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON form.

        Raises
        ------
        UsageError
            If the suffix is another than .json.
        OutputError
            If the file cannot be written; nothing is left behind then.
        """
        write(path, {".json": lambda draft: _write_json([self], draft)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Load what `save` wrote as JSON or Parquet.

        Raises
        ------
        CheckpointError
            If the file is missing, is not such a file, holds several, or has another schema
            version.
        MissingDependencyError
            If a Parquet file needs pyarrow.
        """
        return cls.of_saved(read_saved(path, cls.WHAT))

    @classmethod
    def of_saved(cls, saved: Saved, /) -> Self:
        """Make the record of a file that was read.

        Raises
        ------
        CheckpointError
            If it is of another result, holds several, or has another schema version.
        """
        path, data = saved.path, saved.data
        if isinstance(data, list) and data:
            raise CheckpointError(
                f"{path}: holds {len(data)} results; save each {cls.WHAT} in its own file"
            )
        data = cls._renewed(data)
        check_schema(path, data, schema=cls.SCHEMA, remedy=cls.REMEDY)
        try:
            return cls.from_dict(data)
        except ValueError as exc:
            raise CheckpointError(f"{path}: holds no whole {cls.WHAT} ({one_line(exc)})") from exc

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], /) -> Self:
        """Make the record of what `to_dict` gave.

        Raises
        ------
        ValueError
            If a part is missing or of another type.
        """
        left_out = ("schema", *cls.DERIVED)
        return record(cls, {key: each for key, each in data.items() if key not in left_out})

    @classmethod
    def _renewed(cls, data: Any) -> Any:
        """Return plain data of an earlier schema in the words of this one."""
        return data


class Table(Result):
    """A result that is a table too: for pandas, notebooks, CSV and Parquet.

    Attributes
    ----------
    INDEX : str or None
        Column by which pandas finds rows.
    LEFT : str
        What is said of layers that were skipped.
    """

    INDEX: ClassVar[str | None] = None
    LEFT: ClassVar[str] = "left out"

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of the table, as pandas has them."""
        raise NotImplementedError

    @classmethod
    def file_columns(cls, results: Sequence[Self], /) -> dict[str, list[Any]]:
        """Return the columns of one or several results, as CSV and Parquet have them."""
        tables = [one.columns() for one in results]
        keys = list(dict.fromkeys(key for table in tables for key in table))
        lengths = [len(next(iter(table.values()), ())) for table in tables]
        return {"schema": [cls.SCHEMA] * sum(lengths)} | {
            key: [
                value
                for table, length in zip(tables, lengths, strict=True)
                for value in table.get(key, [None] * length)
            ]
            for key in keys
        }

    @classmethod
    def parquet_columns(cls, results: Sequence[Self], /) -> dict[str, list[Any]]:
        """Return the columns as Parquet has them, where a column has one type."""
        return cls.file_columns(results)

    def to_pandas(self) -> pd.DataFrame:
        """Return the table; its columns are keys of the JSON form, but for `layer`, its name."""
        import pandas as pd

        table = pd.DataFrame(in_utf8(self.columns()))
        return table if self.INDEX is None else table.set_index(self.INDEX)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the result; the suffix chooses .json, .csv or .parquet.

        CSV holds the table alone; JSON and Parquet hold all that `load` needs.

        Raises
        ------
        UsageError
            If the suffix is none of these.
        OutputError
            If the file cannot be written; nothing is left behind then.
        """
        save([self], path)

    def _summary(self) -> tuple[str, Mapping[str, Sequence[Any]]]:
        """Return a sentence, and the columns that a notebook shows below it."""
        return getattr(self, "verdict", self.WHAT), self.columns()

    def __str__(self) -> str:
        """Return the table as text, as wide as the terminal, and below what is said of it."""
        sentence, columns = self._summary()
        return "\n".join((_as_text(columns), *map(printable, (sentence, *self._told()))))

    def _told(self) -> Sequence[str]:
        """Return what stands below: remarks and notes, and what was left out."""
        words = (one for name in ("remarks", "notes") for one in getattr(self, name, ()))
        return (*words, *skipped_lines(getattr(self, "skipped", ()), self.LEFT))

    def _repr_html_(self) -> str:
        sentence, columns = self._summary()
        head = "".join(f"<th>{escape(key)}</th>" for key in columns)
        body = "".join(
            f"<tr>{''.join(f'<td>{escape(_short(value))}</td>' for value in row)}</tr>"
            for row in zip(*columns.values(), strict=True)
        )
        notes = "".join(f"<p><small>{escape(one)}</small></p>" for one in self._told())
        return (
            f"<p>{escape(sentence)}</p>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}"
        )


# Types whose values are nearly all of a result's.
_PLAIN = frozenset((float, int, str, bool, type(None)))


def plain(value: Any, /) -> Any:
    """Return a value as JSON has it: records as objects, by their `KEYS` or fields."""
    if type(value) in _PLAIN:
        return value
    match value:
        case Result():
            return value.to_dict()
        case Enum():
            return value.value
        case dict():
            return {key: plain(each) for key, each in value.items()}
        case list() | tuple():
            return [plain(each) for each in value]
    return _fields(value) if dataclasses.is_dataclass(value) else value


def _fields(value: Any) -> dict[str, Any]:
    """Return plain data of a record; fields that do not count in comparisons are in no file."""
    keys = getattr(value, "KEYS", None) or [
        field.name for field in dataclasses.fields(value) if field.compare
    ]
    return {key: plain(getattr(value, key)) for key in keys}


def columns_of(
    records: Sequence[Any], kind: type[Any], /, *, but: Collection[str] = ()
) -> dict[str, list[Any]]:
    """Return a table's columns, a row a record: all fields of their class that are in files.

    The name of a layer is the column `layer`.
    """
    keys = [f.name for f in dataclasses.fields(kind) if f.compare and f.name not in but]
    return {
        COLUMN_OF.get(key, key): [plain(getattr(record, key)) for record in records] for key in keys
    }


def by_layer(table: pd.DataFrame, /) -> pd.DataFrame:
    """Return a table of layers with a column `layer`; one of before has it as `name`."""
    return table if "layer" in table else table.rename(columns=COLUMN_OF)


def texts_of(rows: Iterable[Sequence[Any]], titles: Sequence[str], /) -> dict[str, list[Any]]:
    """Return the columns of a table whose rows are texts, by their titles."""
    rows = list(rows)
    return {title: [row[i] for row in rows] for i, title in enumerate(titles)}


def to_json(results: Sequence[Result], /, *, indent: int | None = 2) -> str:
    """Return JSON text of one result, or an array of several."""
    data = [result.to_dict() for result in results]
    return json.dumps(data[0] if len(data) == 1 else data, indent=indent, allow_nan=False)


def save(results: Sequence[Table], path: str | os.PathLike[str], /) -> None:
    """Write results of one kind to one file; the suffix chooses .json, .csv or .parquet.

    Raises
    ------
    UsageError, OutputError
        As `Table.save`.
    """
    kind = type(results[0])

    def as_csv(draft: Path) -> None:
        write_csv(draft, kind.file_columns(results))

    def as_parquet(draft: Path) -> None:
        whole = {"planescope": to_json(results, indent=None), "schema": kind.SCHEMA}
        write_parquet(draft, kind.parquet_columns(results), whole)

    writers = (lambda draft: _write_json(results, draft), as_csv, as_parquet)
    write(path, dict(zip(TABLES, writers, strict=True)))


def _write_json(results: Sequence[Result], draft: Path) -> None:
    draft.write_text(to_json(results) + "\n", encoding="utf-8", newline="\n")


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _as_text(columns: Mapping[str, Sequence[Any]]) -> str:
    """Return a table of as many columns as there is room for; a line names those left out."""
    room = shutil.get_terminal_size().columns
    texts = {
        key: ["" if value is None else printable(_short(value)) for value in values]
        for key, values in columns.items()
    }
    widths = {key: max(len(key), *map(len, column), 0) for key, column in texts.items()}
    kept = list(texts)
    while len(kept) > 1 and sum(widths[key] + 2 for key in kept) - 2 > room:
        kept.pop()

    def line(cells: Iterable[tuple[str, str]]) -> str:
        # Names and sentences stand to the left, numbers to the right.
        made = (
            text.ljust(widths[key]) if _is_text(columns[key]) else text.rjust(widths[key])
            for key, text in cells
        )
        return "  ".join(made).rstrip()

    rows = zip(*(texts[key] for key in kept), strict=True)
    lines = [line((key, key) for key in kept), "  ".join("-" * widths[key] for key in kept)]
    lines += [line(zip(kept, row, strict=True)) for row in rows]
    if len(kept) < len(texts):
        left = ", ".join(list(texts)[len(kept) :])
        lines.append(f"left out at {room} columns: {left}; to_pandas() has them")
    return "\n".join(lines)


def _is_text(values: Sequence[Any]) -> bool:
    return any(isinstance(value, str) and value[:1].isalpha() for value in values)


def skipped_lines(skipped: Iterable[Any], words: str = "left out", /) -> list[str]:
    """Return one line a reason, with how many layers it left out."""
    reasons: dict[str, list[str]] = {}
    for each in skipped:
        reasons.setdefault(each.reason, []).append(each.name)
    return [
        f"{words}: {names[0] if len(names) == 1 else f'{len(names)} layers'} ({reason})"
        for reason, names in reasons.items()
    ]
