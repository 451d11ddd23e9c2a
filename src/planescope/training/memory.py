"""The memory of the process: large blocks are kept, where the C library can."""

from __future__ import annotations

import ctypes
import functools
import os

# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# Above any activation of a batch; glibc before 2.35 takes no more than 32 MiB for the second.
_LARGE, _LARGE_ONCE = 1 << 30, 32 << 20


@functools.cache
def keep_memory() -> bool:
    """Let this process keep the large blocks that it frees, instead of giving them back.

    A training step frees all that it took, and takes as much again; glibc returns each large block
    to the system, which then clears every page anew. It changes the whole process, so that only
    processes of our own call it: commands, and the workers of a study.

    Returns
    -------
    bool
        Whether the C library took it; only glibc does.
    """
    if os.name != "posix" or "glibc" not in _libc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    large = mallopt(_MMAP_THRESHOLD, _LARGE) or mallopt(_MMAP_THRESHOLD, _LARGE_ONCE)
    return bool(large and mallopt(_TRIM_THRESHOLD, _LARGE))


def _libc() -> str:
    """Return the name and version of the C library, as the system states them."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):  # another C library has no such name
        return ""
