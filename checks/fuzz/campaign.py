"""Many cases in worker processes, and what became of them."""

from __future__ import annotations

import collections
import contextlib
import faulthandler
import gc
import json
import mmap
import os
import random
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from checks.fuzz.mutations import mutated
from checks.fuzz.targets import Read
from checks.fuzz.watching import (
    MEMORY_BYTES,
    SECONDS,
    WALL_SECONDS,
    ForbiddenError,
    Watch,
    caused_by_memory,
)
from planescope.files.errors import PlanescopeError

Seeds = dict[str, dict[str, bytes]]

# Of one kind; beyond it they are counted.
KEPT_FAULTS = 3

# A worker is begun anew so often at most: a target that falls at each case would never end.
MAX_DEATHS = 200

_REPORT_EVERY = 500

# Exit status of a worker that failed in what is not the reader's.
_OWN_FAULT = 70

# A folder in memory, where the system has one: each case writes a file.
_MEMORY = Path("/dev/shm")  # noqa: S108


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A case with an outcome that is not allowed."""

    case: int
    kind: str
    detail: str = ""


@dataclass(kw_only=True)
class Outcome:
    """The outcome of the cases of a target.

    Attributes
    ----------
    refusals : Counter
        Cases that ended in our own errors, by the line that raised them.
    faults : list of Fault
        The first of each kind; `counts` has them all.
    seconds : float
        Processor time of reading and mutating.
    slowest : tuple
        Seconds of processor time for a single case, and which.
    memory : tuple
        Most bytes beyond those at rest, and the case that took them.
    """

    target: str
    seed: int
    cases: int = 0
    results: int = 0
    refusals: collections.Counter[str] = field(default_factory=collections.Counter)
    faults: list[Fault] = field(default_factory=list)
    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    seconds: float = 0.0
    slowest: tuple[float, int] = (0.0, 0)
    memory: tuple[int, int] = (0, 0)

    def add(self, fault: Fault) -> None:
        """Count a fault, and keep it if it is among the first of its kind."""
        self.counts[fault.kind] += 1
        if self.counts[fault.kind] <= KEPT_FAULTS:
            self.faults.append(fault)


def make_seeds(folder: Path, targets: Sequence[str]) -> None:
    """Have the seeds of some targets made, in a process of its own."""
    subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "checks.fuzz.seeds", folder, *targets],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def load_seeds(folder: Path) -> Seeds:
    """Seeds of a target by name, each its files by path."""
    return {
        seed.name: {
            str(file.relative_to(seed)): file.read_bytes()
            for file in sorted(seed.rglob("*"))
            if file.is_file()
        }
        for seed in sorted(folder.iterdir())
    }


def case_files(target: str, seeds: Seeds, seed: int, case: int) -> dict[str, bytes]:
    """The files of a case, the same each time."""
    rng = random.Random(f"{target} {seed} {case}")
    name = rng.choice(list(seeds))
    donors = [data for files in seeds.values() for data in files.values()]
    return mutated(rng, seeds[name], donors)


def run(
    target: str,
    read: Read,
    seeds: Seeds,
    *,
    cases: Sequence[int],
    seed: int = 0,
    workers: int = 1,
    seconds: float = SECONDS,
    wall_seconds: float = WALL_SECONDS,
    memory_bytes: int = MEMORY_BYTES,
    files: Callable[[int], dict[str, bytes]] | None = None,
    on_progress: Callable[[Outcome], None] | None = None,
) -> Outcome:
    """Read the files of many cases and tell what became of them.

    Parameters
    ----------
    files : callable, optional
        Number of a case -> its files, in place of those that `seed` gives.
    """
    outcome = Outcome(target=target, seed=seed)
    give = files or (lambda case: case_files(target, seeds, seed, case))
    limits = {"seconds": seconds, "wall_seconds": wall_seconds, "memory_bytes": memory_bytes}
    job = _Job(read, list(seeds.values()), give, limits)
    shares = [list(cases[i::workers]) for i in range(workers)]
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        gc.freeze()  # a worker's collector leaves alone, and so shares, what is here already
        stack.callback(gc.unfreeze)
        for share in filter(None, shares):
            _start(job, share, selector, stack)
        while selector.get_map():
            for key, _ in selector.select():
                worker: _Worker = key.data
                line = worker.pipe.readline()
                if line:
                    worker.told += _take(outcome, json.loads(line))
                    if on_progress:
                        on_progress(outcome)
                    continue
                selector.unregister(worker.pipe)
                rest = worker.end(outcome)
                if rest and sum(outcome.counts.values()) < MAX_DEATHS:
                    _start(job, rest, selector, stack)
    return outcome


@dataclass(frozen=True)
class _Job:
    read: Read
    seeds: list[dict[str, bytes]]
    files: Callable[[int], dict[str, bytes]]
    limits: dict[str, Any]


@dataclass
class _Worker:
    pid: int
    pipe: IO[bytes]
    cases: list[int]
    at: mmap.mmap  # shared: which of its cases it is in
    told: int = 0  # cases of which it has told what became of them

    def end(self, outcome: Outcome) -> list[int]:
        """Tell how the process ended; the cases that are left."""
        self.pipe.close()
        _, status = os.waitpid(self.pid, 0)
        index = int.from_bytes(self.at[:8], "little")
        self.at.close()
        if self.told == len(self.cases):
            return []
        code = os.waitstatus_to_exitcode(status)
        if code == _OWN_FAULT:
            raise RuntimeError(f"{outcome.target}: the harness itself failed, as told above")
        name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        kind = "a hang" if name in ("SIGPROF", "SIGALRM") else f"a crash: {name}"
        outcome.add(Fault(case=self.cases[index], kind=kind))
        outcome.cases += 1
        # Those before it once more: what became of them died with the process.
        return self.cases[self.told : index] + self.cases[index + 1 :]


def _start(
    job: _Job, cases: list[int], selector: selectors.BaseSelector, stack: contextlib.ExitStack
) -> None:
    # Removed by the parent: the worker may die.
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=_MEMORY if _MEMORY.is_dir() else None))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    at = mmap.mmap(-1, 8)
    ours, its = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = _OWN_FAULT
        try:
            os.close(ours)
            faulthandler.disable()
            with open(its, "wb", buffering=0) as pipe:  # noqa: PTH123
                _work(job, cases, folder, at, pipe)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(its)
    worker = _Worker(pid, open(ours, "rb"), cases, at)  # noqa: PTH123, SIM115
    selector.register(worker.pipe, selectors.EVENT_READ, worker)


def _work(job: _Job, cases: list[int], folder: Path, at: mmap.mmap, pipe: Any) -> None:
    """Read case after case; what is imported on the way is imported before."""
    inside = folder / "work"
    inside.mkdir()
    os.chdir(inside)
    kept: dict[str, bytes] = {}
    for files in job.seeds:
        kept = _write(inside, files, kept)
        # The first is of those that are measured.
        for number in range(2):
            with contextlib.suppress(PlanescopeError):
                job.read(inside, number, files.keys())
    gc.collect()
    gc.freeze()
    watch = Watch(inside, **job.limits)
    watch.install()

    unchanged = {id(data) for files in job.seeds for data in files.values()}
    news = _News()
    began = time.process_time()
    for index, case in enumerate(cases):
        at[:8] = index.to_bytes(8, "little")
        kept = _write(inside, job.files(case), kept)
        start = time.process_time()
        names = [name for name in kept if id(kept[name]) not in unchanged]
        _read_case(job, inside, case, names, watch, news)
        news.slowest = max(news.slowest, (time.process_time() - start, case))
        news.cases += 1
        if (index + 1) % _REPORT_EVERY == 0 or index + 1 == len(cases):
            news.seconds = time.process_time() - began
            began = time.process_time()
            pipe.write(news.line())
            news = _News()


def _read_case(
    job: _Job, inside: Path, case: int, names: list[str], watch: Watch, news: _News
) -> None:
    """Read one case, and tell what it did that it should not."""
    before = watch.memory
    watch.begin()
    try:
        job.read(inside, case, names)
    except PlanescopeError as exc:
        watch.end()
        news.refused(exc)
        if caused_by_memory(exc):
            news.fault(case, "memory", f"a refusal that hides a MemoryError: {exc}")
    except ForbiddenError:
        watch.end()
    except BaseException as exc:
        watch.end()
        news.fault(case, _kind(exc), "".join(traceback.format_exception(exc))[-3000:])
    else:
        watch.end()
        news.results += not watch.seen
    for what in watch.seen:
        news.fault(case, what, "")
    after = watch.memory
    if after > before:
        news.memory = max(news.memory, (after, case))
        if after > watch.memory_bytes:
            news.fault(case, "memory", f"{after} bytes beyond those at rest")
            watch.forget_memory()


@dataclass
class _News:
    """The report of a worker on its last cases."""

    cases: int = 0
    results: int = 0
    seconds: float = 0.0
    slowest: tuple[float, int] = (0.0, 0)
    memory: tuple[int, int] = (0, 0)
    refusals: dict[str, int] = field(default_factory=dict)
    faults: list[tuple[int, str, str]] = field(default_factory=list)

    def refused(self, exc: PlanescopeError) -> None:
        place = _place(exc)
        self.refusals[place] = self.refusals.get(place, 0) + 1

    def fault(self, case: int, kind: str, detail: str) -> None:
        self.faults.append((case, kind, detail))

    def line(self) -> bytes:
        return json.dumps(self.__dict__).encode("ascii") + b"\n"


def _take(outcome: Outcome, news: dict[str, Any]) -> int:
    """Add what a worker tells; of how many cases."""
    outcome.cases += news["cases"]
    outcome.results += news["results"]
    outcome.seconds += news["seconds"]
    outcome.slowest = max(outcome.slowest, tuple(news["slowest"]))
    outcome.memory = max(outcome.memory, tuple(news["memory"]))
    outcome.refusals.update(news["refusals"])
    for case, kind, detail in news["faults"]:
        outcome.add(Fault(case=case, kind=kind, detail=detail))
    return int(news["cases"])


def _place(exc: BaseException) -> str:
    """The line of code that raised it."""
    frame = exc.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    if frame is None:
        return "?"
    return f"{Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}"


def _kind(exc: BaseException) -> str:
    if isinstance(exc, MemoryError):
        return "memory"
    # The innermost line of our own: where it should have been caught.
    frames = [f for f in traceback.extract_tb(exc.__traceback__) if "planescope" in f.filename]
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else _place(exc)
    return f"another exception: {type(exc).__name__} at {where}"


def _write(folder: Path, files: dict[str, bytes], kept: dict[str, bytes]) -> dict[str, bytes]:
    """Make the folder hold these files; `kept` is what it held. Most of them stay as they are."""
    for name in kept.keys() - files.keys():
        (folder / name).unlink(missing_ok=True)
    for name, data in files.items():
        if kept.get(name) is not data:
            path = folder / name
            if name not in kept:
                path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return files


def save_case(folder: Path, files: dict[str, bytes], about: str) -> None:
    """Write the files of a case, and beside them what it is."""
    _write(folder, files, {})
    (folder / "CASE.txt").write_text(about, encoding="utf-8")
