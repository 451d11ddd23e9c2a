"""The fuzzer sees every fault that it looks for, and a short run of it finds none.

The long run is ``make fuzz``; its figures are in docs/reliability.md.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import mmap
import os
import pickle
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from checks.fuzz import campaign
from checks.fuzz.seeds import MAKERS
from checks.fuzz.targets import TARGETS, preload
from planescope.files.errors import CheckpointError

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# Cases below this number warm the worker up.
FIRST = 1000


@pytest.fixture(scope="module", autouse=True)
def _preloaded():
    preload()


def outcome_of(plant, **limits):
    """What three cases come to of which the second meets the planted fault."""

    def read(folder, case, changed):
        if case == FIRST + 1:
            plant()

    seeds = {"only": {"input": b"x"}}
    cases = range(FIRST, FIRST + 3)
    return campaign.run("planted", read, seeds, cases=cases, **limits)


def loop():
    while True:
        pass


def hold(size):
    # Pages of its own: the heap may have some left that are counted already.
    with mmap.mmap(-1, size) as pages:
        for start in range(0, size, mmap.PAGESIZE):
            pages[start] = 1


def refuse_what_memory_forbids():
    try:
        np.empty(1 << 45, np.uint8)
    except MemoryError as exc:
        raise CheckpointError("the file is damaged") from exc


def hide():
    with contextlib.suppress(BaseException):
        Path("/etc/hostname").read_text()


def fork():
    if os.fork() == 0:
        os._exit(0)


class Payload:
    def __reduce__(self):
        return (os.getcwd, ())


PICKLED = pickle.dumps(Payload())


@pytest.mark.parametrize(
    ("plant", "kind"),
    [
        pytest.param(lambda: {}["a"], "another exception: KeyError", id="exception"),
        pytest.param(lambda: sys.exit(0), "another exception: SystemExit", id="exit"),
        pytest.param(lambda: warnings.warn("a"), "another exception: UserWarning", id="warning"),
        pytest.param(lambda: os._exit(0), "a crash: exit status 0", id="quiet-end"),
        pytest.param(lambda: os._exit(3), "a crash: exit status 3", id="status"),
        pytest.param(os.abort, "a crash: SIGABRT", id="abort"),
        pytest.param(lambda: faulthandler._sigsegv(), "a crash: SIGSEGV", id="segmentation-fault"),
        pytest.param(lambda: np.empty(1 << 45), "memory", id="memory-refused"),
        pytest.param(refuse_what_memory_forbids, "memory", id="memory-refused-in-a-sentence"),
        pytest.param(lambda: Path("/etc/hostname").read_text(), "a file outside: open", id="read"),
        pytest.param(lambda: Path("../a").write_text(""), "a file outside: open", id="write"),
        pytest.param(lambda: Path("../a").unlink(), "a file outside: os.remove", id="remove"),
        pytest.param(lambda: Path("a").rename("../b"), "a file outside: os.rename", id="rename"),
        pytest.param(lambda: os.listdir("/"), "a file outside: os.listdir", id="list"),
        pytest.param(hide, "a file outside: open", id="read-and-hidden"),
        pytest.param(lambda: subprocess.run(["true"]), "a process: subprocess", id="subprocess"),
        pytest.param(lambda: os.system("true"), "a process: os.system", id="shell"),
        pytest.param(fork, "a process: os.fork", id="fork"),
        pytest.param(lambda: os.execv("/bin/true", ["true"]), "a process: os.exec", id="exec"),
        pytest.param(
            lambda: os.posix_spawn("/bin/true", ["true"], {}), "a process: os.posix", id="spawn"
        ),
        pytest.param(socket.socket, "a socket: socket.", id="socket"),
        pytest.param(lambda: socket.getaddrinfo("a", 1), "a socket: socket.", id="name-lookup"),
        pytest.param(lambda: __import__("tabnanny"), "an import: import", id="import"),
        pytest.param(lambda: exec("1"), "code: exec", id="exec-of-text"),
        pytest.param(lambda: eval("1"), "code: exec", id="eval"),
        pytest.param(lambda: pickle.loads(PICKLED), "code: pickle.find_class", id="unpickling"),
        pytest.param(lambda: ctypes.CDLL(None), "code: ctypes.dlopen", id="ctypes"),
    ],
)
def test_a_planted_fault_is_seen(plant, kind):
    outcome = outcome_of(plant)
    assert [fault.case for fault in outcome.faults] == [FIRST + 1]
    assert outcome.faults[0].kind.startswith(kind)
    assert (outcome.cases, outcome.results) == (3, 2), "the cases beside it are read all the same"


@pytest.mark.parametrize(
    ("plant", "limits", "kind"),
    [
        pytest.param(loop, {"seconds": 0.3}, "a hang", id="loop"),
        pytest.param(lambda: time.sleep(60), {"wall_seconds": 0.3}, "a hang", id="sleep"),
        pytest.param(lambda: hold(50 << 20), {"memory_bytes": 40 << 20}, "memory", id="memory"),
    ],
)
def test_a_case_beyond_a_limit_is_seen(plant, limits, kind):
    outcome = outcome_of(plant, **limits)
    assert [(fault.case, fault.kind) for fault in outcome.faults] == [(FIRST + 1, kind)]


def test_every_case_beyond_the_limit_on_memory_is_seen():
    def read(folder, case, changed):
        if case >= FIRST and case % 2:
            hold(50 << 20)

    seeds = {"only": {"input": b"x"}}
    cases = range(FIRST, FIRST + 6)
    outcome = campaign.run("planted", read, seeds, cases=cases, memory_bytes=40 << 20)
    assert [fault.case for fault in outcome.faults] == [FIRST + 1, FIRST + 3, FIRST + 5]


def test_what_stays_within_the_limits_is_no_fault():
    outcome = outcome_of(lambda: hold(30 << 20), memory_bytes=40 << 20)
    assert not outcome.faults
    assert 30 << 20 <= outcome.memory[0] < 40 << 20
    assert outcome.memory[1] == FIRST + 1

    def work():
        Path("new").write_text("inside the folder")
        raise CheckpointError("a refusal")

    outcome = outcome_of(work)
    assert not outcome.faults
    assert (outcome.results, sum(outcome.refusals.values())) == (2, 1)


def test_a_case_gives_the_same_files_each_time():
    seeds = {"a": {"input": bytes(range(256))}, "b": {"input": b"{}", "other": b"name: 1\n"}}
    first = [campaign.case_files("npz", seeds, 0, case) for case in range(200)]
    assert first == [campaign.case_files("npz", seeds, 0, case) for case in range(200)]
    assert first != [campaign.case_files("npz", seeds, 1, case) for case in range(200)]
    assert sum(files in seeds.values() for files in first) < 10, "nearly all are changed"


def test_a_failing_case_is_kept_with_the_command_that_repeats_it(tmp_path):
    """A reader that falls over the letter x, found by the command itself."""
    script = f"""
import sys
from checks.fuzz import __main__, campaign
def fall(folder, case, changed):
    assert (folder / "input").read_bytes() != b"x", "planted"
__main__.TARGETS["idx"] = fall
campaign.case_files = lambda target, seeds, seed, case: {{"input": b"x" if case > 6 else b"y"}}
sys.argv = ["fuzz", "idx", "--cases", "9", "--workers", "1", "--out", {str(tmp_path)!r}]
sys.exit(__main__.main())
"""
    done = run_python("-c", script)
    assert done.returncode == 1, done.stderr
    assert "python -m checks.fuzz idx --seed 0 --case 7" in done.stdout
    assert "2 cases: another exception: AssertionError" in done.stdout
    assert (tmp_path / "idx-0-7" / "input").read_bytes() == b"x"
    kept = (tmp_path / "idx-0-7" / "CASE.txt").read_text()
    assert "python -m checks.fuzz idx --seed 0 --case 7" in kept
    assert "AssertionError: planted" in kept


def run_python(*arguments):
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_every_target_has_seeds():
    assert MAKERS.keys() == TARGETS.keys()


def test_a_short_run_finds_nothing(tmp_path):
    done = run_python(
        "-m", "checks.fuzz", "--cases", "50", "--workers", "1", "--out", str(tmp_path)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(TARGETS)
    for line in lines:
        assert ": 50 cases, " in line
        # Files of other formats are there to be refused by name.
        assert line.startswith("foreign") or ", 0 results" not in line, "some can still be read"
    assert not any(tmp_path.iterdir())
