"""The command line as processes that can be killed whole, cold as a user's or warm.

A warm one is forked from this process, which has imported all that the command imports and done
nothing else: torch and Lightning take seconds to import, and a moment drawn at random would mostly
fall there. This process runs no second thread, which a fork would lose.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Place:
    """The place where a command runs: its folder, one for temporary files, its output."""

    path: Path

    @property
    def work(self) -> Path:
        """The folder that the command is started in."""
        return self.path / "work"

    @property
    def temporary(self) -> Path:
        """Its folder for temporary files."""
        return self.path / "temporary"

    @property
    def printed(self) -> str:
        """Return what the last command printed."""
        return (self.path / "stdout").read_text(encoding="utf-8")

    @property
    def complained(self) -> str:
        """Return what it said on stderr."""
        return (self.path / "stderr").read_text(encoding="utf-8")


class Started:
    """A command that was started, with all processes that it starts itself."""

    def __init__(self, pid: int, join: Callable[[float | None], int | None]) -> None:
        self._pid, self._join = pid, join

    def wait(self, seconds: float | None = None) -> int | None:
        """Exit status, negative for a signal; None if it still runs after so many seconds."""
        return self._join(seconds)

    def send(self, number: int) -> None:
        """Send a signal to the process alone, as a scheduler does."""
        os.kill(self._pid, number)

    def kill(self) -> None:
        """SIGKILL its whole process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):  # before it had a group of its own
            os.kill(self._pid, signal.SIGKILL)
        self._join(None)
        until = time.monotonic() + 10
        while _is_there(self._pid):
            if time.monotonic() > until:
                raise RuntimeError(f"process group {self._pid} outlives SIGKILL")
            time.sleep(0.001)


def _is_there(group: int) -> bool:
    """Tell whether a process of a group is left that is no zombie."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, found = stat.read_text().rpartition(")")[2].split()[:3]
            if int(found) == group and state not in "ZX":
                return True
    return False


def cold(args: Iterable[str], place: Place) -> Started:
    """Start a command as a user does."""
    with (
        (place.path / "stdout").open("wb") as out,
        (place.path / "stderr").open("wb") as err,
    ):
        process = subprocess.Popen(
            [sys.executable, "-m", "planescope", *args],
            cwd=place.work,
            env=os.environ | {"TMPDIR": str(place.temporary)},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )

    def join(seconds: float | None) -> int | None:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    return Started(process.pid, join)


def warm(
    args: Iterable[str],
    place: Place,
    *,
    first: Callable[[], None] | None = None,
    printed: Place | None = None,
) -> Started:
    """Start a command in a fork of this process.

    Parameters
    ----------
    first : callable, optional
        Called in the fork before.
    printed : Place, optional
        Where what it prints is kept, if not in the place that it runs in.
    """
    assert_single_thread()
    process = FORK.Process(target=_command, args=(list(args), place, printed or place, first))
    process.start()
    assert process.pid is not None

    def join(seconds: float | None) -> int | None:
        process.join(seconds)
        return process.exitcode

    return Started(process.pid, join)


def _command(
    args: list[str], place: Place, printed: Place, first: Callable[[], None] | None
) -> None:
    os.setsid()
    os.environ["TMPDIR"] = str(place.temporary)
    tempfile.tempdir = None  # looked up again
    os.chdir(place.work)
    for name, number in (("stdout", 1), ("stderr", 2)):
        with (printed.path / name).open("wb") as file:
            os.dup2(file.fileno(), number)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), encoding="utf-8")
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), encoding="utf-8")
    sys.argv = ["planescope", *args]
    from planescope.cli import main

    if first is not None:
        first()
    try:
        main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def assert_single_thread() -> None:
    """Refuse to fork where a second thread could hold a lock."""
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    # Arrow's memory allocator stops its own thread for a fork, and starts it anew there.
    others = [name for name in names if name != "jemalloc_bg_thd"][1:]
    if others:
        raise RuntimeError(f"threads {others} run: a fork of this process may hang")


def in_child(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a fork; whatever threads it starts end with that."""
    assert_single_thread()
    ours, theirs = FORK.Pipe(duplex=False)

    def call() -> None:
        try:
            theirs.send((function(*args), ""))
        except BaseException:
            theirs.send((None, traceback.format_exc()))

    process = FORK.Process(target=call)
    process.start()
    theirs.close()
    try:
        result, problem = ours.recv()
    finally:
        process.join()
        ours.close()
    if problem:
        raise RuntimeError(problem)
    return result


def import_all(names: Iterable[str]) -> None:
    """Import modules that a command imports; what cannot be imported by itself is left to it."""
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    assert_single_thread()
