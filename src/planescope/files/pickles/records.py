"""Records of a pickle: names, calls that were not made, and operands that stay in the file."""

from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass(frozen=True, eq=False, slots=True)
class Global:
    """A class or function that the stream names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, slots=True)
class Call:
    """A call of `function` with `args` that was not made; keyword arguments are dropped.

    Attributes
    ----------
    state : object
        What the stream would set on the result; None if nothing.
    items : dict
        What it would put into the result as a mapping.
    elements : list
        What it would append or add to the result.
    """

    function: object
    args: object
    state: object = None
    items: dict[object, object] = field(default_factory=dict)
    elements: list[object] = field(default_factory=list)


@dataclass(frozen=True, eq=False, slots=True)
class Persistent:
    """An object that is stored outside the stream, under `id`."""

    id: object


@dataclass(frozen=True, eq=False, slots=True)
class Key:
    """A dictionary key or set element that is neither text nor bytes, compared by identity.

    Python randomises the hashes of text and bytes alone; numbers and tuples can be made to collide,
    and hashing a tuple of tuples recurses.
    """

    value: object


@dataclass(frozen=True, eq=False, slots=True)
class Stretch:
    """A long operand that stays in the file.

    Attributes
    ----------
    begin, length : int
        Where its bytes lie.
    form : {"bytes", "utf-8", "raw-unicode-escape", "string-escape"}
        How the stream writes it: as bytes, as text of two kinds, or quoted as in Python 2.
    """

    begin: int
    length: int
    form: str = "bytes"


@dataclass(frozen=True, eq=False, slots=True)
class Pickled:
    """The contents of a stream: its value, its persistent objects, and the offset behind it."""

    value: object
    persistent: list[Persistent]
    end: int


_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|.)", re.DOTALL)
_ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"\\": b"\\", b"'": b"'", b'"': b'"'}


def _unescaped(match: re.Match[bytes]) -> bytes:
    """Return one escape as `repr` of Python 2 writes it."""
    code = match[1]
    return bytes.fromhex(code[1:].decode()) if len(code) == 3 else _ESCAPES.get(code, match[0])


def unquoted(quoted: bytes) -> bytes:
    """Return the bytes of a string as `repr` of Python 2 writes it.

    Raises
    ------
    ValueError
        If it has no quotes.
    """
    quoted = quoted.strip()
    if len(quoted) < 2 or quoted[0] != quoted[-1] or quoted[:1] not in (b"'", b'"'):
        raise ValueError("a string without quotes")
    return _ESCAPE.sub(_unescaped, quoted[1:-1])


def stretch_bytes(raw: bytes, form: str, /) -> bytes:
    """Return the bytes that a stretch stands for: of text, those of its characters in Latin-1.

    Raises
    ------
    ValueError
        If it cannot be that.
    """
    if form == "bytes":
        return raw
    if form == "string-escape":
        return unquoted(raw)
    return raw.decode(form).encode("latin-1")
