"""Pickle streams to inert data.

A pickle is a program for a small stack machine that may import and call anything. This machine
does neither: what a pickle names becomes a `Global`, what it would call a `Call`, and plain data
itself. `pickle.Unpickler` with restricted globals is not enough for a file of a stranger: it takes
memory by numbers in the stream and hashes keys that were made to collide.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from planescope.files.pickles.instructions import INSTRUCTIONS
from planescope.files.pickles.machine import MAX_BYTES, Machine
from planescope.files.pickles.records import (
    Call,
    Global,
    Key,
    Persistent,
    Pickled,
    Stretch,
    stretch_bytes,
)

if TYPE_CHECKING:
    from mmap import mmap

__all__ = [
    "MAX_BYTES",
    "Call",
    "Global",
    "Key",
    "Persistent",
    "Pickled",
    "Stretch",
    "read_pickle",
    "stretch_bytes",
]


def read_pickle(
    data: bytes | mmap,
    offset: int = 0,
    *,
    where: str,
    raw_strings: bool = False,
    stretches: bool = False,
    behind: Callable[[Call, int], Stretch | None] | None = None,
) -> Pickled:
    """Read the pickle at `offset`, of any protocol, without executing anything in it.

    Parameters
    ----------
    where : str
        File (and member), for messages.
    raw_strings : bool
        Give the strings of Python 2 as bytes: there one type held text and bytes.
    stretches : bool
        Leave bytes of more than `STRETCH_BYTES`, and texts of more than `STRETCH_TEXT`, in the
        file; the stream may then be as long as the file is.
    behind : callable, optional
        Record whose state was set, and the offset behind it -> bytes of another kind that stand
        there in the stream and belong to it; they become the last of its `elements`.

    Returns
    -------
    Pickled
        None, bool, int, float, str, bytes (for bytearray too), list, tuple, dict, set and frozenset
        as they are, all else as the records of `pickles.records`. Lone surrogates in text, and
        bytes of Python 2 that are not UTF-8, come as backslash escapes.

    Raises
    ------
    CheckpointError
        If the stream is cut short, damaged or out of all proportion, or uses the extension registry
        or out-of-band buffers.
    """
    machine = Machine(data, offset, where, raw_strings=raw_strings, stretches=stretches)
    machine.behind = behind
    value = machine.run(INSTRUCTIONS)
    return Pickled(value, machine.persistent, machine.at)
