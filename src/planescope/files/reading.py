"""Files that a user names: opened where they are regular, read whole only up to a bound."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from planescope.files.errors import CheckpointError

if TYPE_CHECKING:
    from typing import BinaryIO

# A relation of a thousand networks has a fifth of this. Parsed, JSON takes ten times its bytes.
MOST_TEXT_BYTES = 1 << 29

# What opens a file that lies elsewhere, by the path that stands for it here.
_ELSEWHERE: dict[Path, Callable[[], BinaryIO]] = {}


def open_binary(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading.

    Raises
    ------
    CheckpointError
        If it is none, or cannot be opened.
    """
    where = path if isinstance(path, Path) else Path(path)
    if (opener := _ELSEWHERE.get(where)) is not None:
        return opener()
    try:
        mode = where.stat().st_mode
        if stat.S_ISDIR(mode):
            raise CheckpointError(f"{path}: cannot be read: is a folder, not a file")
        # Opening a pipe would block, and reading a device might never end.
        if not stat.S_ISREG(mode):
            raise CheckpointError(f"{path}: is not a regular file; copy it into one first")
        return where.open("rb")
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the name
        reason = getattr(exc, "strerror", None) or exc
        raise CheckpointError(f"{path}: cannot be read: {reason}") from exc


def read_elsewhere(path: Path, opener: Callable[[], BinaryIO] | None, /) -> None:
    """Let a path stand for a file that lies elsewhere; with None no longer.

    What `opener` gives must have a `fileno` whose size is that of the file.
    """
    if opener is None:
        _ELSEWHERE.pop(path, None)
    else:
        _ELSEWHERE[path] = opener


def size_of(path: Path, /) -> int:
    """Return the bytes of a file.

    Raises
    ------
    CheckpointError
        If it is no regular file, or cannot be opened.
    """
    with open_binary(path) as file:
        return os.fstat(file.fileno()).st_size


def read_text(path: str | os.PathLike[str], /, *, most: int = MOST_TEXT_BYTES) -> str:
    """Read a file of UTF-8 text whole.

    Raises
    ------
    CheckpointError
        If it is no regular file, cannot be read, or has more than `most` bytes.
    UnicodeDecodeError
        If it is not UTF-8.
    """
    with open_binary(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise CheckpointError(
                f"{path}: has {size} bytes, and at most {most} are read of such a file; is it the "
                "right one?"
            )
        try:
            return file.read(most).decode()
        except OSError as exc:
            raise CheckpointError(f"{path}: cannot be read: {exc.strerror or exc}") from exc


def read_exactly(path: Path, offset: int, length: int) -> bytes:
    """Read `length` bytes at `offset`.

    Raises
    ------
    CheckpointError
        If the file is shorter than that or cannot be read.
    """
    with open_binary(path) as file:
        size = os.fstat(file.fileno()).st_size
        if offset < 0 or length < 0 or offset + length > size:
            raise CheckpointError(
                f"{path}: wants {length} bytes at offset {offset}, but the file has {size}; "
                "is the download complete?"
            )
        file.seek(offset)
        return file.read(length)
