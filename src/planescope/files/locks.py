"""Locks of folders that one process at a time may write in."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator
from pathlib import Path

from planescope.files.errors import UsageError, one_line

try:
    import fcntl
except ModuleNotFoundError:  # Windows, where a file that a process has open cannot be removed
    fcntl = None  # type: ignore[assignment]

HAS_LOCKS = fcntl is not None


def take(handle: int, /, *, shared: bool = False) -> bool | None:
    """Take the lock of an open file: whether that was possible; None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


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
    with contextlib.suppress(OSError), path.open("rb") as file:
        return take(file.fileno(), shared=True) is False
    return False
