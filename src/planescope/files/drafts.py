"""Folders that are there only while a process works in them; the next removes those left behind.

A killed process cannot tidy up. Whoever makes such a folder holds a lock on a file in it, which the
operating system takes back when the process ends, however it ends: a folder whose lock is free is
nobody's. Where locks cannot be had, as on some network file systems, such folders stay.
Its price is this module. One hidden name beside each target would do without locks, and leave what
a killed process wrote until that very target is written again.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from planescope.files import locks

LOCK = ".planescope-lock"
DRAFT, SCRATCH = ".planescope-", "planescope-scratch-"

# What tempfile adds to a prefix, behind the number of a draft's file. A user may have folders of
# his own that begin like ours: only what has the whole name, and our lock, is ever removed.
_OURS = re.compile(rf"({re.escape(DRAFT)}[0-9a-f]{{8}}-|{re.escape(SCRATCH)})[a-z0-9_]{{8}}")


def draft_prefix(target: Path, /) -> str:
    """Return the beginning of the hidden folders' names in which a file is written.

    Its own name is in it as a number: whole, it could make a name that is too long.
    """
    return f"{DRAFT}{zlib.crc32(os.fsencode(target.name)):08x}-"


@contextlib.contextmanager
def draft_of(target: Path, /, *, beside: Path | None = None) -> Iterator[Path]:
    """Give a path of the target's name in a folder of its own, which is gone when the block ends.

    A folder, not a file: what libraries leave there themselves, as safetensors does when it is
    killed, goes with it; and who reads ``*.parquet`` around it does not come upon half a file.

    Parameters
    ----------
    beside : Path, optional
        In which folder of the same file system that is to be; by default in the target's.

    Raises
    ------
    OSError
        If the folder cannot be made.
    """
    with _held(beside or target.parent, draft_prefix(target)) as folder:
        yield folder / target.name


def remove_drafts(folder: Path, /) -> None:
    """Remove what killed processes left in a folder, whichever file it was.

    One that is never written again would keep the folder of its draft, had the process been killed
    just before that was removed.
    """
    _remove_unheld(folder, DRAFT)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Give a folder in the system's folder for temporary files, which is gone when the block ends.

    Raises
    ------
    OSError
        If it cannot be made.
    """
    with _held(Path(tempfile.gettempdir()), SCRATCH) as folder:
        yield folder


@contextlib.contextmanager
def _held(parent: Path, prefix: str) -> Iterator[Path]:
    _remove_unheld(parent, prefix)
    folder, handle = _made(parent, prefix)
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            _empty(folder)
        os.close(handle)  # after that: else the next would find a lock that is free
        with contextlib.suppress(OSError):
            _remove_empty(folder)


def _made(parent: Path, prefix: str) -> tuple[Path, int]:
    """Return a new folder, and its lock, held."""
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
        # Another process may have taken it for one left behind, before the lock was held.
        with contextlib.suppress(FileNotFoundError):
            handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            if locks.take(handle) is not False and _is_there(folder / LOCK, handle):
                return folder, handle
            os.close(handle)


def _is_there(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _remove_unheld(parent: Path, prefix: str) -> None:
    """Remove folders that a killed process left; what cannot be removed stays."""
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        left = [
            Path(entry.path)
            for entry in entries
            if entry.name.startswith(prefix)
            and _OURS.fullmatch(entry.name)
            and entry.is_dir(follow_symlinks=False)
        ]
        for folder in left:
            with contextlib.suppress(OSError):
                _remove_if_unheld(folder)


def _remove_if_unheld(folder: Path) -> None:
    there = [path.name for path in folder.iterdir()]
    if not there:
        folder.rmdir()  # its maker was killed, or is about to make the lock and then finds out
    elif LOCK not in there:
        return
    elif not locks.HAS_LOCKS:
        (folder / LOCK).unlink()  # refused while a process has it open
        shutil.rmtree(folder)
    else:
        # A stranger's folder may hold another thing of this name: a link would be followed.
        handle = os.open(folder / LOCK, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
        try:
            if locks.take(handle):
                _empty(folder)
                _remove_empty(folder)
        finally:
            os.close(handle)


def _empty(folder: Path) -> None:
    """Remove all but the lock, which says that the rest may be removed if this is cut short."""
    for path in folder.iterdir():
        if path.name == LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _remove_empty(folder: Path) -> None:
    (folder / LOCK).unlink(missing_ok=True)
    folder.rmdir()
