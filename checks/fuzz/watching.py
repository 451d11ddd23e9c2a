"""Sees what no file may cause, in the process that reads it.

Python tells an audit hook what it opens, starts, connects and imports; the system ends a process
that takes too long and refuses memory beyond a limit. A C library can open files unseen: of those
that read here, Arrow and safetensors, each is given one path and knows no format that names others.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Of processor time for a case. Of wall time more, as others may have the processor.
SECONDS = 10.0
WALL_SECONDS = 60.0

# Beyond what the process held before the first case. The system refuses addresses beyond twice as
# many: between the two it is seen what a library makes of the memory that it asks for.
MEMORY_BYTES = 1 << 30

_PROCESS = (
    "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile",
    "pty.spawn", "os.kill", "signal.pthread_kill",
)  # fmt: skip
_SOCKET = ("socket.", "urllib.", "http.client", "ftplib.", "smtplib.", "webbrowser.")
_CODE = ("exec", "pickle.find_class", "ctypes.", "cpython.run", "code.__new__", "function.__new__")
_KINDS = {"a process": _PROCESS, "a socket": _SOCKET, "code": _CODE, "an import": ("import",)}
# Their first argument is a path; those of two have the other beside it.
_FILES = ("open", "os.", "shutil.", "tempfile.", "sqlite3.", "mmap.")
_NO_FILES = ("os.putenv", "os.unsetenv")


class ForbiddenError(BaseException):
    """A file asked for what is forbidden; no handler of errors may catch this."""


@dataclass
class Watch:
    """All that was seen since the last `begin`.

    Parameters
    ----------
    folder : Path
        Outside of it no file may be touched.
    """

    folder: Path
    seconds: float = SECONDS
    wall_seconds: float = WALL_SECONDS
    memory_bytes: int = MEMORY_BYTES
    seen: list[str] = field(default_factory=list)
    armed: bool = False

    def install(self) -> None:
        """Set limits and hook, for the rest of the process: neither can be taken away."""
        self._root = os.path.join(os.path.realpath(self.folder), "")  # noqa: PTH118
        # What the process held for a moment before would hide as many bytes of a case.
        self.forget_memory()
        self._at_rest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with open("/proc/self/statm") as file:  # noqa: PTH123
            taken = int(file.read().split()[0]) * resource.getpagesize()
        limit = taken + 2 * self.memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # A warning on a user's screen would be neither a result nor a sentence of ours.
        warnings.simplefilter("error")
        sys.addaudithook(self._hook)

    def begin(self) -> None:
        """Start the clocks of a case; whatever happens now is told."""
        self.seen = []
        signal.setitimer(signal.ITIMER_PROF, self.seconds)
        signal.setitimer(signal.ITIMER_REAL, self.wall_seconds)
        self.armed = True

    def end(self) -> None:
        """Stop the clocks."""
        self.armed = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)

    @property
    def memory(self) -> int:
        """Most bytes that were held beyond those at rest, of all cases so far."""
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return max(most - self._at_rest, 0) * 1024

    def forget_memory(self) -> None:
        """Take what is held now for the most, so that the next case beyond the limit is seen."""
        with open("/proc/self/clear_refs", "w") as file:  # noqa: PTH123
            file.write("5")

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        for what, prefixes in _KINDS.items():
            if event.startswith(prefixes):
                self._tell(f"{what}: {event} {args[:1]!r:.200}")
        if event.startswith(_FILES) and not event.startswith(_NO_FILES):
            for path in args[:2]:
                if isinstance(path, (str, bytes, os.PathLike)) and self._is_outside(path):
                    self._tell(f"a file outside: {event} {path!r:.200}")

    def _is_outside(self, path: str | bytes | os.PathLike[Any]) -> bool:
        # Of `open` the second argument is the mode, which as a relative path lies inside.
        whole = os.path.abspath(os.fsdecode(path))  # noqa: PTH100
        return not (whole + os.sep).startswith(self._root)

    def _tell(self, what: str) -> None:
        self.seen.append(what)
        raise ForbiddenError(what)


def caused_by_memory(exc: BaseException) -> bool:
    """Tell whether a refusal of ours stands for memory that could not be had."""
    while exc is not None:
        if isinstance(exc, MemoryError):
            return True
        exc = exc.__cause__ or exc.__context__  # type: ignore[assignment]
    return False
