"""SIGKILL at random moments: every file must be whole then, the end result that of a quiet run."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from checks.reliability.starting import Place, Started, cold, import_all, in_child, warm
from checks.reliability.trials import TRIALS, Args
from checks.reliability.whole import IMPORTS, damaged, differences, drafts

At = Literal["moments", "operations"]

# Rounds that are killed once, twice, three times before they may end.
CHAINS = (1, 1, 1, 1, 2, 3)


@dataclass
class Outcome:
    """The outcome of the rounds with one command.

    Attributes
    ----------
    seconds : float
        A quiet run takes.
    kills, drafts : int
        How often it was killed; and how often that left half a file in a hidden folder.
    problems : list of str
        Whatever was not as it should be.
    """

    command: str
    seconds: float = 0.0
    rounds: int = 0
    kills: int = 0
    drafts: int = 0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lost = f"{len(self.problems)} PROBLEMS" if self.problems else "nothing lost"
        return (
            f"{self.command}: {self.rounds} rounds, {self.kills} kills (a quiet run takes "
            f"{self.seconds:.2f} s), {self.drafts} of them in the middle of writing; {lost}"
        )


@dataclass(frozen=True)
class _Quiet:
    """The files that undisturbed runs left, by variant."""

    places: tuple[Place, ...]
    seconds: float


class Rounds:
    """Rounds with one command.

    Parameters
    ----------
    folder : Path
        Where they are made; what went wrong stays there.
    is_cold : bool
        Start each process as a user does, with its imports.
    seed : int
        Of the moments.
    """

    def __init__(self, command: str, folder: Path, *, is_cold: bool, seed: int) -> None:
        self.outcome = Outcome(command)
        self._command, self._trial, self._folder = command, TRIALS[command], folder
        self._is_cold, self._seed = is_cold, seed
        # Every run is made here: some results tell the path of what they are of.
        self._here = Place(folder / "here")
        import_all(IMPORTS)
        self._template = a_place(folder / "template")
        self._trial.prepare(self._template)
        self._quiet = self._undisturbed()
        self.outcome.seconds = self._quiet.seconds

    def at_moments(self, count: int) -> Outcome:
        """Kill at moments drawn uniformly from the time that a quiet run takes.

        A draw after the end counts for nothing, and is drawn anew.
        """
        for number in range(count):
            rng = random.Random(f"{self._seed} {self._command} {number}")  # noqa: S311
            self._round(number, lambda rng=rng: rng.uniform(0, self._quiet.seconds), rng)
            if number % 10 == 9:
                print(f"so far {self.outcome}", file=sys.stderr)
        return self.outcome

    def at_operations(self) -> Outcome:
        """Kill before each operation on a file in turn, from the first to the last."""
        for variant in range(len(self._trial.variants)):
            number = 0
            while self._before(number, variant):
                number += 1
        return self.outcome

    def _round(self, number: int, moment: Any, rng: random.Random) -> None:
        variant = number % len(self._trial.variants)
        with self._a_place(f"round-{number}") as place:
            wanted, kills = rng.choice(CHAINS), 0
            while kills < wanted:
                if not kills:  # a draw after the end begins anew too
                    renew(place, self._template)
                started = self._start(variant, place, begun=kills > 0)
                status = started.wait(moment())
                if status is None:
                    started.kill()
                    kills += 1
                    self._look(place, f"round {number}, kill {kills}")
                elif kills:
                    break  # it was quicker than the draw, and is finished
            self._finish(variant, place, f"round {number}")

    def _before(self, number: int, variant: int) -> bool:
        """Kill before an operation; False where there are not so many."""
        with self._a_place(f"operation-{variant}-{number}") as place:
            renew(place, self._template)
            bomb = Bomb(number, place.work)
            args = self._trial.args(variant, place.work, begun=False)
            status = warm(args, place, first=bomb.arm).wait()
            if status == 0:
                return False
            where = f"before {bomb.operation}"
            if status != -signal.SIGKILL:
                self._problem(where, f"ended with {status}: {place.complained}")
            self._look(place, where)
            self._finish(variant, place, where)
        return True

    def _look(self, place: Place, where: str) -> None:
        """See what a killed command left."""
        self.outcome.kills += 1
        self.outcome.drafts += bool(drafts(place.path))
        for problem in in_child(damaged, place.work):
            self._problem(where, problem)

    def _finish(self, variant: int, place: Place, where: str) -> None:
        """Let it come to its end, and compare."""
        self.outcome.rounds += 1
        status = self._start(variant, place, begun=True).wait()
        if status or place.complained:
            self._problem(where, f"ended with {status}: {place.complained}")
        quiet = self._quiet.places[variant]
        for problem in in_child(_compared, quiet, place):
            self._problem(where, problem)

    def _problem(self, where: str, problem: str) -> None:
        self.outcome.problems.append(f"{self._command}, {where}: {problem}")
        print(self.outcome.problems[-1], flush=True)

    def _start(self, variant: int, place: Place, *, begun: bool) -> Started:
        args = self._trial.args(variant, place.work, begun=begun)
        if self._is_cold:
            return cold(args, place)
        return warm(args, place)

    def _undisturbed(self) -> _Quiet:
        if not self._is_cold:
            os.environ.update(self._trial.env)  # read when Dask is imported
            commands = (*self._trial.warms, *self._trial.variants)
            import_imports_of(commands, self._here, self._template)
        places, seconds = [], []
        for variant in range(len(self._trial.variants)):
            place = self._here
            for _ in range(3 if not self._is_cold else 1):
                renew(place, self._template)
                began = time.monotonic()
                if self._start(variant, place, begun=False).wait():
                    raise RuntimeError(f"{self._command}: {place.complained}")
                seconds.append(time.monotonic() - began)
            if problems := in_child(damaged, place.work):
                raise RuntimeError(f"{self._command}: {problems}")
            places.append(_moved(place, f"quiet-{variant}"))
        return _Quiet(tuple(places), statistics.median(seconds))

    @contextlib.contextmanager
    def _a_place(self, name: str) -> Iterator[Place]:
        """Give the place, which is kept under a name where there was a problem."""
        problems = len(self.outcome.problems)
        yield self._here
        if len(self.outcome.problems) > problems:
            _moved(self._here, name)


def _compared(quiet: Place, other: Place) -> list[str]:
    problems = differences(quiet.work, other.work)
    problems += [f"{path}: a draft is left" for path in drafts(other.work)]
    # Dask and torch have folders there of their own, after a quiet run too.
    known = {path.name for path in quiet.temporary.iterdir()}
    left = [path for path in other.temporary.iterdir() if path.name not in known]
    problems += [f"{path}: is left in the temporary folder" for path in left]
    if quiet.printed != other.printed:
        problems.append(f"it printed {other.printed!r}, not {quiet.printed!r}")
    return problems


def import_imports_of(commands: Iterable[Args], place: Place, template: Place) -> None:
    """Import what commands import until their end, as processes of their own tell."""
    renew(place, template)
    for args in commands:
        listing = place.path / "modules"
        code = f"import atexit, sys; atexit.register(lambda: open({str(listing)!r}, 'w').write("
        code += "' '.join(sys.modules))); from planescope.cli import main; main()"
        subprocess.run(
            [sys.executable, "-c", code, *args],
            cwd=place.work,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        import_all(listing.read_text(encoding="utf-8").split())


def a_place(path: Path) -> Place:
    """Make a place."""
    place = Place(path)
    place.work.mkdir(parents=True, exist_ok=True)
    place.temporary.mkdir(exist_ok=True)
    return place


def renew(place: Place, template: Place) -> None:
    """Make a place what the template is."""
    shutil.rmtree(place.path, ignore_errors=True)
    shutil.copytree(template.work, place.work)
    place.temporary.mkdir()


def _moved(place: Place, name: str) -> Place:
    return Place(place.path.rename(place.path.with_name(name)))


class Bomb:
    """Kills the process group that it is armed in before its operation of some number.

    Operations are those that Python tells its audit hooks of: to open for writing, rename, remove,
    make a folder, below a folder. Counted over all processes that are forked later.
    """

    _EVENTS = (
        "open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "tempfile.mkdtemp",
    )  # fmt: skip
    _WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def __init__(self, number: int, folder: Path) -> None:
        self._number, self._folder = number, f"{folder}{os.sep}"
        # Memory that forked processes share: how many there were, and the name of the last.
        self._shared = mmap.mmap(-1, 4096)

    @property
    def operation(self) -> str:
        """Return the operation that it exploded before."""
        return self._shared[8:].rstrip(b"\0").decode()

    def arm(self) -> None:
        """Begin to count."""
        sys.addaudithook(self._see)

    def _see(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in self._EVENTS or not isinstance(args[0], (str, bytes, os.PathLike)):
            return
        if event == "open" and not args[2] & self._WRITES:
            return
        path = str(Path.cwd() / os.fsdecode(args[0]))
        if not path.startswith(self._folder):
            return
        (count,) = struct.unpack("q", self._shared[:8])
        if count == self._number:
            told = f"{event} {path.removeprefix(self._folder)} ({count})".encode()[:4000]
            self._shared[8 : 8 + len(told)] = told
            os.killpg(0, signal.SIGKILL)
            time.sleep(60)  # the signal needs no time, but another thread may get it
        self._shared[:8] = struct.pack("q", count + 1)


def kill(
    command: str,
    *,
    at: At = "moments",
    moments: int = 100,
    is_cold: bool = False,
    seed: int = 0,
    folder: Path | None = None,
) -> Outcome:
    """Kill a command, and see what becomes of it.

    Parameters
    ----------
    command : str
        A key of `TRIALS`.
    at : {"moments", "operations"}
        At random, or before each operation on a file in turn.
    folder : Path, optional
        Where to work; by default a temporary one.
    """
    with contextlib.ExitStack() as stack:
        if folder is None:
            name = stack.enter_context(tempfile.TemporaryDirectory(prefix="kills-"))
            folder = Path(name)
        rounds = Rounds(command, folder / command, is_cold=is_cold, seed=seed)
        return rounds.at_moments(moments) if at == "moments" else rounds.at_operations()
