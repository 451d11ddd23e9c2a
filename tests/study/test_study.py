"""Studies made by real processes: what is made, once, and what survives a disturbance."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import warm

import planescope as ps
from planescope.files.drafts import LOCK, draft_prefix
from planescope.study.folder import StudyStatus
from planescope.study.plan import read_plan
from planescope.study.work.make import _Drive, _tidy, make_study
from planescope.study.work.worker import make_run
from planescope.training.folder.status import State

SMALL = """
base: {classes: 2, examples: 128, width: 0.5, snapshots_until: 1, threads: 1, accelerator: cpu}
reset: {snapshots: [0], subset: 100}
"""
# The second one diverges.
THREE = SMALL + "grid:\n- {epochs: 2, learning_rate: [0.02, 1000000, 0.01]}\n"
# The last one takes the process it is in with it.
FOUR = THREE + "- {data: killer:data}\n"
KILLER = "import os, signal\n\ndef data():\n    os.kill(os.getpid(), signal.SIGKILL)\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def command(*args: str | Path) -> list[str]:
    return [sys.executable, "-m", "planescope", "study", *map(str, args)]


def study(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*args), capture_output=True, text=True, timeout=900)


def wait_for(condition, seconds: float = 900) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def bits(made: ps.Study) -> dict[str, bytes]:
    return {
        f"{run.path.name}/{epoch}": path.read_bytes()
        for run in made.runs
        for epoch, path in run.snapshots.items()
    }


def starts(made: ps.Study) -> list[int]:
    return [len(run.environments) for run in made.runs]


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> tuple[ps.Study, subprocess.CompletedProcess[str], str]:
    """A study of which two runs fail, made while the same command was given a second time."""
    folder = tmp_path_factory.mktemp("four")
    file, out = written(folder, FOUR), folder / "out"
    (folder / "killer.py").write_text(KILLER, encoding="utf-8")
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    # Once is enough here; by default a run may kill four workers before it is given up.
    env = {"PYTHONPATH": path, "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
    with subprocess.Popen(
        command(file, "--out", out, "--workers", "1", "--json"), env=os.environ | env,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        wait_for(lambda: list(out.glob("runs/*/.study.lock")) or process.poll() is not None)
        second = study(file, "--out", out)
        stdout, stderr = process.communicate(timeout=900)
    assert process.returncode == 1, stderr
    assert "2 of 4 runs failed; --status tells why, --retry-failed tries" in stderr
    assert stderr.count("\n") == 1
    return ps.Study(out), second, stdout


@pytest.mark.slow
def test_runs_that_fail_are_kept_with_their_errors_and_the_others_are_made(four):
    made, _, stdout = four
    status = json.loads(stdout)
    assert status["schema"] == "planescope.study-status/1"
    assert (status["total"], status["done"]) == (4, 2)
    diverged, killed = status["failed"]
    assert "train: " in diverged["error"]
    assert "the loss is no longer finite in epoch 1" in diverged["error"]
    assert made.run(diverged["name"]).status.state is State.FAILED
    assert "its workers were killed one after another" in killed["error"]
    assert made.record(killed["name"]).error == killed["error"]
    assert [run.config.learning_rate for run in made.runs] == [0.02, 0.01]
    assert all(run.resets.is_file() for run in made.runs)


@pytest.mark.slow
def test_a_run_whose_worker_died_before_it_could_tell_that_it_was_done_is_done(four):
    made, _, _ = four
    failed = {name for name, _ in made.status.failed}
    drive = _Drive(made, None, retry_failed=False)
    for spec in made.specs:
        had = made.record(spec.name)
        if spec.name not in failed:
            assert drive._died(spec, RuntimeError("lost")) == had == made.record(spec.name)
            assert had.error == ""


@pytest.mark.slow
def test_a_study_that_is_being_made_is_refused_and_nothing_is_made_twice(four):
    made, second, _ = four
    assert (second.returncode, second.stdout, second.stderr.count("\n")) == (2, "", 1)
    assert "another process is making this study" in second.stderr
    assert starts(made) == [1, 1]


@pytest.mark.slow
def test_status_tells_why_a_run_failed(four):
    made, _, _ = four
    done = study(made.path / "study.yaml", "--out", made.path, "--status")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(
        r"2 of 4 runs done, 2 failed\n  lenet\S+: failed: train: .*finite", done.stdout
    )


@pytest.mark.slow
def test_every_reader_of_parquet_finds_one_table(four):
    duckdb, polars = pytest.importorskip("duckdb"), pytest.importorskip("polars")
    import pandas as pd

    made, _, _ = four
    ours = made.table()
    # Two runs, epochs 0, 1 and 2, the six convolutions of LeNet.
    assert len(ours) == 2 * 3 * 6
    assert ours["relative_drop"].notna().sum() + ours["reset_accuracy"].notna().sum() > 0
    assert set(ours.loc[ours["reset_accuracy"].notna(), "epoch"]) == {0}
    files = str(made.table_folder / "*.parquet")
    theirs = {
        "pandas": pd.read_parquet(made.table_folder)["negative_mass"].sum(),
        "polars": polars.read_parquet(files)["negative_mass"].sum(),
        "duckdb": duckdb.sql(f"select sum(negative_mass) from '{files}'").fetchall()[0][0],  # noqa: S608
    }
    assert theirs == pytest.approx(dict.fromkeys(theirs, ours["negative_mass"].sum()))
    assert list(made.table(["run", "epoch"]).columns) == ["run", "epoch"]


SIX = SMALL + "grid: {epochs: 6, examples: 256, learning_rate: [0.02, 0.01]}\n"


@pytest.fixture(scope="module")
def six(tmp_path_factory) -> dict[str, bytes]:
    """Snapshots of a study that nothing disturbed, made in this process."""
    folder = tmp_path_factory.mktemp("six")
    made = ps.Study.create(folder / "out", read_plan(written(folder, SIX)))
    for spec in made.specs:
        assert not make_run(spec, str(made.path)).error
    return bits(made)


@pytest.fixture
def warm_workers(monkeypatch) -> Iterator[None]:
    """Let Dask take its workers from the process that has all imports made."""
    import dask
    from distributed import utils

    monkeypatch.setattr(utils, "_forkserver_preload_set", True)  # it would choose its own
    method = warm.CONTEXT.get_start_method()
    with dask.config.set({"distributed.worker.multiprocessing-method": method}):
        yield


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")
def test_a_worker_killed_in_the_middle_of_a_run_loses_nothing(
    six, warm_workers, tmp_path, monkeypatch
):
    # On a quick machine a whole run would fit between two looks.
    monkeypatch.setattr("planescope.study.work.make.LOOK_S", 0.02)
    killed: list[int] = []

    def kill_one(status: StudyStatus) -> None:
        for run in status.running:
            if not killed and 1 <= run.epoch <= 4:
                lock = str(tmp_path / "out" / "runs" / run.name / ".study.lock")
                for process in psutil.Process().children(recursive=True):
                    if any(file.path == lock for file in process.open_files()):
                        process.kill()
                        killed.append(process.pid)

    file, out = written(tmp_path, SIX), tmp_path / "out"
    made = make_study(file, out, workers=1, on_status=kill_one)
    assert len(killed) == 1
    assert (made.status.done, made.status.failed) == (2, ())
    assert sorted(starts(made)) == [1, 2]
    assert bits(made) == six


@pytest.mark.slow
def test_an_interrupt_ends_the_workers_at_once_and_says_how_to_go_on(tmp_path):
    began: list[float] = []

    def interrupt(_: StudyStatus) -> None:
        began.append(time.monotonic())
        raise KeyboardInterrupt

    file, out = written(tmp_path, SMALL), tmp_path / "out"
    with pytest.raises(ps.StoppedError, match="interrupted; the same command goes on"):
        make_study(file, out, workers=1, on_status=interrupt)
    # Dask waits 30 seconds for tasks to end; a busy machine takes some for anything.
    assert time.monotonic() - began[0] < 20
    assert ps.Study(out).status.running == ()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def dask(*args: str, code: str = "", **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """Dask's command line, as who has a cluster starts it."""
    code += "\nimport sys\nfrom dask.__main__ import main\nmain()"
    with subprocess.Popen(
        [sys.executable, "-c", code, *args], env=os.environ | env,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def scheduler(port: int) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    return dask("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard")


def worker(address: str, *args: str, code: str = "", **env: str):
    options = ("--no-nanny", "--no-dashboard", *(args or ("--nthreads", "1")))
    return dask("worker", address, *options, code=code, **env)


@pytest.mark.long
def test_a_scheduler_that_goes_away_and_comes_back_loses_nothing(six, tmp_path):
    port = free_port()
    address, out = f"tcp://127.0.0.1:{port}", tmp_path / "out"
    file = written(tmp_path, SIX)

    def epochs() -> int:
        return sum(len(path.read_text().splitlines()) for path in out.glob("runs/*/metrics.csv"))

    with scheduler(port) as first, worker(address) as hand:
        process = subprocess.Popen(
            command(file, "--out", out, "--scheduler", address),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        with process:
            wait_for(lambda: epochs() >= 3 or process.poll() is not None)
            first.kill()
            first.wait()
            hand.kill()
            with scheduler(port), worker(address):
                stdout, stderr = process.communicate(timeout=900)
    assert process.returncode == 0
    assert stderr.count("\n") == 1
    assert "whoever reaches that port runs code" in stderr  # plain TCP, warned of once
    made = ps.Study(out)
    assert stdout == f"{out}: 2 of 2 runs done\n"
    assert sum(starts(made)) == 3
    assert bits(made) == six


FULL = """
import resource, signal
from planescope.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="limits the size of files as POSIX does")
def test_of_an_edited_study_what_changed_is_made_once_there_is_room_on_the_disk(
    four, warm_workers, tmp_path
):
    out = tmp_path / "out"
    shutil.copytree(four[0].path, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    # One run is no more of the study, one is new, and resets are to be others.
    edited = THREE.replace("[0.02, 1000000, 0.01]", "[0.01, 0.005]").replace("100}", "50}")
    file, program = written(tmp_path, edited), tmp_path / "full.py"

    # A snapshot has 133 kB, what resuming needs twice that.
    program.write_text(FULL, encoding="utf-8")
    full = [sys.executable, program, "study", file, "--out", out, "--workers", "1"]
    done = subprocess.run(full, capture_output=True, text=True, timeout=900)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert re.search(r"1 of 2 runs done, 1 failed\n.*: train: .*last\.ckpt: ", done.stdout)

    assert make_study(file, out, workers=1).status.done == 1  # what failed is left alone
    made = make_study(file, out, workers=1, retry_failed=True)
    kept, new = made.runs
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert starts(made) == [1, 2]
    # Resets were made anew, the training was not repeated for them.
    assert [ps.Resets.load(run.resets).trained.examples for run in made.runs] == [50, 50]
    assert set(made.table(["run"])["run"]) == {kept.path.name, new.path.name}
    whole = ps.Study.create(tmp_path / "whole", read_plan(file))
    make_run(whole.specs[1], str(whole.path))
    assert bits(whole).items() <= bits(made).items()


NO_PACKAGE = "import sys; sys.modules['planescope'] = None"


@pytest.mark.slow
def test_workers_that_are_not_fit_are_refused(tmp_path):
    port = free_port()
    address, file = f"tcp://127.0.0.1:{port}", written(tmp_path, SMALL)
    other = tmp_path / "other" / "planescope"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("__version__ = '0.0.1'\n")
    old = {"PYTHONPATH": str(other.parent)}
    version = re.escape(ps.__version__)
    cases = [
        (worker(address, code=NO_PACKAGE), rf"has no planescope; install {version} there"),
        (worker(address, **old), rf"has planescope 0\.0\.1, and this is {version}"),
        (worker(address, "--nthreads", "2"), "has 2 threads .* start it with --nthreads 1"),
    ]
    with scheduler(port):
        for hand, sentence in cases:
            with hand:
                done = study(file, "--out", tmp_path / "out", "--scheduler", address)
            # Plain TCP is warned of, in the line before.
            assert (done.returncode, done.stderr.count("\n")) == (2, 2), done.stderr
            assert re.search(sentence, done.stderr), done.stderr


def test_a_scheduler_that_does_not_answer_is_named_with_how_long_it_had(tmp_path, monkeypatch):
    monkeypatch.setattr("planescope.study.work.cluster.ANSWER_S", 0.5)
    address = f"tcp://127.0.0.1:{free_port()}"
    with pytest.raises(ps.UsageError, match=f"{address}: no scheduler answered within 0.5 seconds"):
        make_study(written(tmp_path, SMALL), tmp_path / "out", scheduler=address)


def test_what_killed_workers_left_half_written_is_removed_wherever_they_write(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text("grid:\n- network: lenet\nbase: {epochs: 1}\nmake: [train]\n")
    study = ps.Study.create(tmp_path / "study", read_plan(file))
    study.save_plan()
    run = study.run(study.specs[0].name).path
    for folder in (study.path, study.table_folder, run, run / "snapshots", run / "filters"):
        draft = folder / f"{draft_prefix(Path('half.parquet'))}abcd0123"
        draft.mkdir(parents=True)
        (draft / LOCK).touch()
        (draft / "half.parquet").write_text("half")
    _tidy(study)
    assert not [*study.path.rglob(".planescope-*")]
