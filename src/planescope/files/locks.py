"""Locks of folders that one process at a time may write in."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator
from pathlib import Path

from planescope.files.errors import UsageError, one_line


@contextlib.contextmanager
def held(path: Path, /, *, timeout: float = -1) -> Iterator[bool]:
    """Hold a lock; give False where another process still has it after so many seconds.

    Raises
    ------
    UsageError
        If what is there cannot be a lock.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(_lockable(path), timeout=timeout)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    except OSError as exc:
        raise _no_lock(path, exc) from exc
    try:
        yield True
    finally:
        lock.release()


def is_locked(path: Path, /) -> bool:
    """Tell whether a process is known to hold a lock.

    Raises
    ------
    UsageError
        As `held`.
    """
    from filelock import FileLock, Timeout

    if not path.exists():
        return False
    try:
        with FileLock(_lockable(path), timeout=0):
            return False
    except Timeout:
        return True
    except PermissionError:
        return _is_held_by_another(path)
    except OSError as exc:
        raise _no_lock(path, exc) from exc


def _lockable(path: Path) -> Path:
    """Refuse a file that is another one too: whoever takes a lock empties it."""
    with contextlib.suppress(FileNotFoundError):
        about = path.lstat()
        if not stat.S_ISREG(about.st_mode) or about.st_nlink > 1:
            raise UsageError(f"{path}: is no file of its own and cannot be a lock; remove it")
    return path


def _no_lock(path: Path, exc: OSError) -> UsageError:
    return UsageError(f"{path}: cannot be locked: {exc.strerror or one_line(exc)}")


def _is_held_by_another(path: Path) -> bool:
    """Return the same of a file that may be read alone, as a colleague's run is."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        return False
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
