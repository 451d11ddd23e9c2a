"""Mutation testing: does a test notice when a line of the library is changed?

mutmut makes the mutants, knows which tests reach each of them, and keeps the records; a child
process tests each. What this adds: tests are collected once and not for each mutant, tests that
noticed a mutant of the same function go first, mutants are drawn at random, and there is a table.

    python tests/mutants.py                                   all that have no result yet
    python tests/mutants.py 'planescope.hyperplanes.geometry.*'           some
    python tests/mutants.py --sample 300 'planescope.checkpoints.*'
    python tests/mutants.py --table
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import hashlib
import math
import os
import resource
import signal
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import mutmut.__main__ as mutmut
import pytest
from _pytest.config import _prepareconfig
from mutmut.mutation.data import SourceFileMutationData
from mutmut.runners.harness import PytestRunner
from mutmut.state import state
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import change_cwd, walk_mutatable_files
from mutmut.utils.format_utils import mangled_name_from_mutant_name
from mutmut.workers import isolation

KILLED = ("killed", "timeout", "segfault")
# A mutant that allocates without end fails its test and not the machine.
MEMORY = 6 << 30
TIMED_OUT = 36
UNREACHED = 33
NOTICED = Path("noticed")


class Collected(PytestRunner):
    """mutmut's runner, with one collection of tests that each child inherits."""

    session: pytest.Session
    room: tempfile.TemporaryDirectory[str]
    patience: float = 60.0

    def run_tests(self, *, mutant_name: str | None, tests: Iterable[str]) -> int:
        """Run the tests that reach a mutant, in its child; without one, see that they pass."""
        if mutant_name is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            signal.signal(signal.SIGPROF, lambda *_: os._exit(TIMED_OUT))
            with tempfile.TemporaryDirectory() as room:
                os.environ["PYTEST_DEBUG_TEMPROOT"] = room
                self.session.config._tmp_path_factory._basetemp = None
                function = mangled_name_from_mutant_name(mutant_name)
                return self._until_noticed(function, tests, self.patience)
        if not tests:  # the one that must fail whatever happens
            return super().run_tests(mutant_name=None, tests=tests)
        # Processes that tests start import the mutants too.
        os.environ["PYTHONPATH"] = str(Path("mutants/src").resolve())
        files = sorted({test.partition("::")[0] for test in tests})
        with change_cwd("mutants"), contextlib.redirect_stdout(Path(os.devnull).open("w")):
            config = _prepareconfig(["--rootdir=.", "-q", *self._pytest_add_cli_args, *files])
            Collected.session = pytest.Session.from_config(config)
            config._do_configure()
            config.hook.pytest_sessionstart(session=self.session)
            config.hook.pytest_collection(session=self.session)
        # In the parent, for children to inherit what tests import and keep as they run.
        Collected.room = tempfile.TemporaryDirectory()
        os.environ["PYTEST_DEBUG_TEMPROOT"] = self.room.name
        return self._until_noticed("none", tests, math.inf)

    def _until_noticed(self, function: str, tests: Iterable[str], patience: float) -> int:
        end = time.process_time() + patience
        with change_cwd("mutants"):
            noticed = NOTICED / function
            first = noticed.read_text("utf-8").splitlines() if noticed.exists() else []
            chosen = self._in_order(function, set(tests), first)
            for item, following in zip(chosen, [*chosen[1:], None], strict=True):
                signal.setitimer(signal.ITIMER_PROF, self._limit(item))
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if self.session.testsfailed:
                    if item.nodeid not in first:
                        NOTICED.mkdir(exist_ok=True)
                        noticed.write_text("\n".join([item.nodeid, *first]), "utf-8")
                    return 1
                if time.process_time() > end:
                    break
            signal.setitimer(signal.ITIMER_PROF, 0)
            return 0

    def _in_order(self, function: str, reach: set[str], first: Sequence[str]) -> list[pytest.Item]:
        """Tests that noticed another mutant first, then files of that name, then quick files."""
        durations = state().duration_by_test
        items = [item for item in self.session.items if item.nodeid in reach]
        whole: dict[str, float] = defaultdict(float)
        for item in items:
            whole[item.path.stem] += durations.get(item.nodeid, 0.0)
        place = {name: rank for rank, name in enumerate(first)}
        subject = module(function).rpartition(".")[2].partition("_")[0]

        def rank(item: pytest.Item) -> tuple[int, bool, float, str, float]:
            file = item.path.stem
            other = not file.startswith(f"test_{subject}")
            known = place.get(item.nodeid, len(place))
            return known, other, whole[file], file, durations.get(item.nodeid, 0.0)

        return sorted(items, key=rank)

    def _limit(self, item: pytest.Item) -> float:
        """Seconds of processor time: what no test takes that ends."""
        return 5.0 + 10.0 * state().duration_by_test.get(item.nodeid, 0.0)


def collect_or_load_stats(*args: object, **options: object) -> None:
    """As mutmut does; what tests run in other processes alone, the file named after it reaches."""
    _collect_or_load_stats(*args, **options)
    reach = state().tests_by_mangled_function_name
    for function in {mangled_name_from_mutant_name(name) for name in records([], 0)}:
        if not reach.get(function):
            file = f"/test_{module(function).rpartition('.')[2]}.py::"
            reach[function] = {test for test in state().duration_by_test if test.startswith(file)}


_collect_or_load_stats = mutmut.collect_or_load_stats


def make() -> None:
    """Write the mutants of files that have changed since; mutmut does it again, and finds none."""
    Path("mutants").mkdir(exist_ok=True)
    with contextlib.redirect_stdout(None):
        mutmut.copy_src_dir()
        mutmut.copy_also_copy_files()
        mutmut.create_mutants(1)


def records(patterns: Sequence[str], seed: int) -> dict[str, int | None]:
    """Exit status of each mutant that a pattern names, in an order that the seed draws."""
    found: dict[str, int | None] = {}
    for path in walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        data.load()
        found.update(data.exit_code_by_key)
    names = [n for n in found if not patterns or any(fnmatch.fnmatch(n, p) for p in patterns)]
    # By a digest, for each mutant to keep its place among others as the code changes.
    names.sort(key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    return {name: found[name] for name in names}


def wilson(hits: int, count: int) -> tuple[float, float]:
    """95 % interval of a share."""
    z = 1.959964
    middle = (hits + z * z / 2) / (count + z * z)
    half = z * math.sqrt(hits * (count - hits) / count + z * z / 4) / (count + z * z)
    return middle - half, middle + half


def table(statuses: dict[str, int | None]) -> None:
    """Print what was noticed of what has been tested, a row a module."""
    print("| module | mutants | tested | noticed | share | 95 % interval |")
    print("| --- | ---: | ---: | ---: | ---: | --- |")
    for each in [*sorted({module(name) for name in statuses}), None]:
        made = [status for name, status in statuses.items() if each in (module(name), None)]
        tested = [status_by_exit_code[status] for status in made if status is not None]
        if not tested:
            continue
        noticed = sum(word in KILLED for word in tested)
        low, high = wilson(noticed, len(tested))
        interval = "" if len(tested) == len(made) else f"{100 * low:.1f} to {100 * high:.1f}"
        share = f"{100 * noticed / len(tested):.1f} %"
        row = (each or "together", len(made), len(tested), noticed, share, interval)
        print("| " + " | ".join(map(str, row)) + " |")


def module(name: str) -> str:
    """File of a mutant, as planescope.hyperplanes.chance.x_function__mutmut_1 names it."""
    return name.rpartition(".")[0].removeprefix("planescope.")


def main() -> None:
    """Run from the root of the repository."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mutants", nargs="*", help="patterns of names (default: all)")
    parser.add_argument("--survivors", action="store_true", help="those too that were not noticed")
    parser.add_argument("--sample", type=int, help="so many at most, drawn at random")
    parser.add_argument("--seed", type=int, default=1, help="of the order in which they are drawn")
    parser.add_argument("--table", action="store_true", help="print the records and test nothing")
    parser.add_argument(
        "--patience", type=float, default=60.0, help="seconds of tests for a mutant (default: 60)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    options = parser.parse_args()
    if not options.table:
        make()
    drawn = dict(list(records(options.mutants, options.seed).items())[: options.sample])
    survivors = [
        name for name, status in drawn.items() if options.survivors and status in (0, UNREACHED)
    ]
    names = [*survivors, *(name for name, status in drawn.items() if status is None)]
    if names and not options.table:
        # In the order drawn, so that what has been tested is a sample at each moment.
        place = {name: rank for rank, name in enumerate(names)}
        mutmut.estimated_worst_case_time = place.__getitem__
        Collected.patience = options.patience
        isolation.PytestRunner = Collected
        mutmut.collect_or_load_stats = collect_or_load_stats
        mutmut._run(tuple(names), options.jobs)
    table(dict(list(records(options.mutants, options.seed).items())[: options.sample]))


if __name__ == "__main__":
    main()
