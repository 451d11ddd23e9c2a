"""Folders that are there only while a process works in them; the next removes those left behind.

A killed process cannot tidy up. Whoever makes such a folder holds a lock on a file in it, which the
operating system takes back when the process ends, however it ends: a folder whose lock is free is
nobody's. Where locks cannot be had, as on some network file systems, such folders stay.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ModuleNotFoundError:  # Windows, where a file that a process has open cannot be removed
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
DRAFT, SCRATCH = ".planescope-", "planescope-"


def draft_prefix(target: Path, /) -> str:
    """How the names of the folders begin in which a file is written: hidden, beside it.

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
        os.close(handle)
        shutil.rmtree(folder, ignore_errors=True)


def _made(parent: Path, prefix: str) -> tuple[Path, int]:
    """A new folder, and its lock, held."""
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
        # Another process may have taken it for one left behind, before the lock was held.
        with contextlib.suppress(FileNotFoundError):
            handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            if _locks(handle) is not False and _is_there(folder / LOCK, handle):
                return folder, handle
            os.close(handle)


def _locks(handle: int) -> bool | None:
    """Take the lock of an open file: whether that was possible; None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


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
            if entry.name.startswith(prefix) and entry.is_dir(follow_symlinks=False)
        ]
        for folder in left:
            with contextlib.suppress(OSError):
                _remove_if_unheld(folder)


def _remove_if_unheld(folder: Path) -> None:
    there = [path.name for path in folder.iterdir()]
    if not there:
        folder.rmdir()  # its maker was killed, or is about to make the lock and then finds out
    elif LOCK not in there:
        shutil.rmtree(folder)  # who makes one begins with the lock: a removal that was killed
    elif fcntl is None:
        (folder / LOCK).unlink()  # refused while a process has it open
        shutil.rmtree(folder)
    else:
        handle = os.open(folder / LOCK, os.O_RDWR)
        try:
            if _locks(handle):
                shutil.rmtree(folder)
        finally:
            os.close(handle)
