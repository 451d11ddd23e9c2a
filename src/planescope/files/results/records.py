"""Records of plain data that anybody may have written: each field is what its record says.

JSON has any type anywhere, and a dataclass takes it: only what uses the field would fail.
Its price is this module: pydantic would do it, and takes 0.11 s to import, a third of `measure` on
a small file; results are read without it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Hashable
from enum import Enum
from typing import Any, TypeVar

T = TypeVar("T")

# What other programs, and tables, hold of integers.
_INTEGERS = range(-(1 << 63), 1 << 63)

# Gives the value as the record has it; raises ValueError.
_Reader = Callable[[Any], Any]


def record(kind: type[T], data: object, /) -> T:
    """Make a dataclass of a mapping, and the dataclasses in its fields.

    Lists become tuples where the field is one, and integers floats. NaN and infinities are
    refused, as no file of ours has them. Fields that do not count in comparisons are in no file.

    Raises
    ------
    ValueError
        If a field is missing, unknown or of another type; the message names it.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{_shown(data)} stands for a {kind.__name__}")
    readers = _readers(typing.cast("Hashable", kind))
    values = {}
    for name, value in data.items():
        if name not in readers:
            raise ValueError(f"a {kind.__name__} has no {name!r:.40}")
        try:
            values[name] = readers[name](value)
        except _NotThatError as exc:
            raise ValueError(f"the {name} of a {kind.__name__} is {_shown(exc.value)}") from None
    for name in _required(typing.cast("Hashable", kind)):
        if name not in values:
            raise ValueError(f"a {kind.__name__} lacks {name!r}")
    return kind(**values)


class _NotThatError(Exception):
    """A value of another type than its field."""

    def __init__(self, value: object) -> None:
        self.value = value


def _shown(value: object) -> str:
    if isinstance(value, (dict, list, tuple)):
        return f"a {type(value).__name__}"
    # Python refuses to write integers of more than 4,300 digits.
    return f"{value!r:.40}" if type(value) is not int or value in _INTEGERS else "a huge number"


@functools.cache
def _readers(kind: Any) -> dict[str, _Reader]:
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)
    return {each.name: _reader(hints[each.name]) for each in fields if each.compare}


@functools.cache
def _required(kind: Any) -> tuple[str, ...]:
    missing = dataclasses.MISSING
    fields = dataclasses.fields(kind)
    return tuple(f.name for f in fields if f.default is missing and f.default_factory is missing)


def _reader(hint: Any) -> _Reader:
    """Return a reader for values of a type, as annotations write it."""
    arguments = typing.get_args(hint)
    match typing.get_origin(hint) or hint:
        case types.UnionType:
            return functools.partial(_one_of, tuple(map(_reader, arguments)))
        case kind if kind is tuple:
            return functools.partial(_tuple, _reader(arguments[0]))
        case kind if kind is dict:
            return functools.partial(_dict, _reader(arguments[1]))
        case kind if kind is Any:
            return lambda value: value
        case kind if kind is float:
            return _float
        case kind if kind is int:
            return _int
        case type() as kind if dataclasses.is_dataclass(kind):
            return functools.partial(_part, kind)
        case kind if issubclass(kind, Enum):
            return functools.partial(_member, kind)
        case kind:  # bool, str, None
            return functools.partial(_exactly, kind)


def _part(kind: Any, value: object) -> object:
    """Read a record within another; a whole result in it has a schema of its own, perhaps older."""
    schema = getattr(kind, "SCHEMA", None)
    if schema is not None:
        value = kind._renewed(value)
    if not isinstance(value, dict) or (schema is not None and value.get("schema") != schema):
        raise _NotThatError(value)
    return record(kind, value) if schema is None else kind.from_dict(value)


def _one_of(readers: tuple[_Reader, ...], value: object) -> object:
    for read in readers:
        try:
            return read(value)
        except _NotThatError:
            continue
    raise _NotThatError(value)


def _tuple(read: _Reader, value: object) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _NotThatError(value)
    return tuple(map(read, value))


def _dict(read: _Reader, value: object) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise _NotThatError(value)
    return {key: read(each) for key, each in value.items()}


def _float(value: object) -> float:
    whole = type(value) is int and value in _INTEGERS
    if not whole and not (isinstance(value, float) and math.isfinite(value)):
        raise _NotThatError(value)
    return float(value)  # type: ignore[arg-type]


def _int(value: object) -> int:
    if type(value) is not int or value not in _INTEGERS:
        raise _NotThatError(value)
    return value


def _member(kind: type[Enum], value: object) -> Enum:
    try:
        return kind(value)
    except ValueError:
        raise _NotThatError(value) from None


def _exactly(kind: type, value: object) -> object:
    if type(value) is not kind:
        raise _NotThatError(value)
    return value
