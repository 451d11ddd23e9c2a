"""What asks a command to end is heard: a sentence, its status, nothing left, and work goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX"),
    pytest.mark.slow,
]

TRAIN = ("train", "--epochs", "200", "--examples", "256", "--accelerator", "cpu", "--out", "run")
STUDY = """\
base: {epochs: 100, classes: 2, examples: 256, width: 0.5, accelerator: cpu, threads: 1}
grid: {learning_rate: [0.02, 0.01]}
make: [train]
"""


def ended(
    folder: Path,
    arguments: tuple[str, ...],
    number: int,
    began: Callable[[], bool],
    *,
    twice: bool = False,
    ignored: bool = False,
    group: bool = False,
    env: dict[str, str] | None = None,
) -> tuple[int, str]:
    """Status and last words of a command that gets a signal once it has begun."""
    (folder / "scratch").mkdir(exist_ok=True)
    prefix = ["nohup"] if number == signal.SIGHUP and ignored else []
    with subprocess.Popen(
        [*prefix, sys.executable, "-m", "planescope", *arguments], cwd=folder, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        process_group=0 if group else None,
        env={**os.environ, "TMPDIR": str(folder / "scratch"), **(env or {})},
    ) as process:  # fmt: skip
        until = time.monotonic() + 120
        while not began() and process.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        if group:  # as a terminal that is closed does
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        if twice:
            time.sleep(0.2)
            process.send_signal(number)
        if ignored:
            time.sleep(2)
            assert process.poll() is None
            process.terminate()
        _, said = process.communicate(timeout=120)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    left = [p.name for p in (folder / "scratch").iterdir() if p.name != "torchinductor_root"]
    assert not [name for name in left if not name.startswith("torchinductor")]
    assert not [*folder.rglob(".planescope-*")]
    return process.returncode, said


@pytest.mark.parametrize(
    ("name", "status", "twice"),
    [
        ("SIGINT", 130, True),
        ("SIGTERM", 143, False),
        pytest.param("SIGINT", 130, False, marks=pytest.mark.long),
        pytest.param("SIGTERM", 143, True, marks=pytest.mark.long),
        pytest.param("SIGHUP", 129, False, marks=pytest.mark.long),
        pytest.param("SIGHUP", 129, True, marks=pytest.mark.long),
    ],
)
def test_a_training_ends_as_by_ctrl_c(tmp_path: Path, name: str, status: int, twice: bool) -> None:
    last = tmp_path / "run" / "last.ckpt"
    code, said = ended(tmp_path, TRAIN, getattr(signal, name), last.exists, twice=twice)
    assert (code, said) == (
        status,
        "planescope: run: interrupted; go on with: planescope train --out run --resume\n",
    )


def test_nohup_stays_ignored(tmp_path: Path) -> None:
    last = tmp_path / "run" / "last.ckpt"
    code, said = ended(tmp_path, TRAIN, signal.SIGHUP, last.exists, ignored=True)
    assert code == 143
    assert "run: interrupted" in said


def test_a_scheduler_that_puts_a_job_back_in_its_queue_is_asked_to_and_the_run_goes_on(
    tmp_path: Path,
) -> None:
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "$@" >> asked\n')
    (tmp_path / "scontrol").chmod(0o755)
    slurm = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "job"} | dict.fromkeys(
        ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"), "0"
    )
    env = {**slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    last, asked = tmp_path / "run" / "last.ckpt", tmp_path / "asked"
    # It goes on until the scheduler ends it.
    code, said = ended(tmp_path, TRAIN, signal.SIGUSR1, last.exists, env=env, ignored=True)
    assert (code, said.count("planescope: run: interrupted")) == (143, 1)
    assert asked.read_text() == "requeue 77\n"
    assert not [*(tmp_path / "run").glob("hpc*")]
    from planescope.training.run import Run

    made = len(Run(tmp_path / "run").metrics)
    resumed = ("train", "--resume", "--out", "run")
    grown = lambda: len(Run(tmp_path / "run").metrics) > made + 1  # noqa: E731
    assert ended(tmp_path, resumed, signal.SIGTERM, grown, env=env)[0] == 143
    assert [row.epoch for row in Run(tmp_path / "run").metrics][: made + 1] == [*range(made + 1)]


def test_what_was_kept_at_a_requeue_is_not_taken_for_a_checkpoint(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from planescope.files.errors import CheckpointError
    from planescope.training.recording import WholeCheckpoints

    kept = tmp_path / "hpc_ckpt_1.ckpt"
    WholeCheckpoints().save_checkpoint({}, kept)
    assert not kept.exists()
    torch.save({}, kept)
    with pytest.raises(CheckpointError, match=r"hpc_ckpt_1\.ckpt: is no checkpoint of planescope"):
        WholeCheckpoints().load_checkpoint(kept)


@pytest.mark.parametrize(
    ("name", "status"),
    [("SIGTERM", 143), pytest.param("SIGHUP", 129, marks=pytest.mark.long)],
)
@pytest.mark.parametrize("group", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_study_ends_with_its_workers(tmp_path: Path, name: str, status: int, group: bool) -> None:
    (tmp_path / "s.yaml").write_text(STUDY)
    arguments = ("study", "s.yaml", "--out", "out", "--workers", "2")
    code, said = ended(
        tmp_path,
        arguments,
        getattr(signal, name),
        lambda: any(tmp_path.glob("out/runs/*/last.ckpt")),
        group=group,
    )
    assert (code, said) == (status, "planescope: out: interrupted; the same command goes on\n")


def by_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run lines that hear signals as the command line does."""
    hear = "import os, signal\nfrom planescope.files import signals\nsignals.hear()\n"
    return subprocess.run(
        [sys.executable, "-c", hear + code, *arguments], text=True, capture_output=True
    )


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_the_status_holds_where_the_signal_came_in_code_that_was_text(name: str) -> None:
    # As in the making of a dataclass: the interpreter would end by SIGINT, whatever is said here.
    done = by_python(f"""
try:
    eval("os.kill(os.getpid(), signal.{name}) or [0 for _ in range(100)]")
except KeyboardInterrupt:
    raise SystemExit(signals.status())
""")
    assert (done.returncode, done.stderr) == (128 + getattr(signal, name), "")


def test_a_second_signal_does_not_cut_short_what_the_first_has_begun_to_save(
    tmp_path: Path,
) -> None:
    done = by_python(
        """
import sys
from planescope.files.errors import StoppedError
from planescope.training.config import RunConfig
from planescope.training.folder.status import State
from planescope.training.loop import _outcome
from planescope.training.run import Run
class Slow(Run):
    def save_status(self, status):
        os.kill(os.getpid(), signal.SIGINT)
        super().save_status(status)
Run.create(sys.argv[1], RunConfig())
try:
    with _outcome(Slow(sys.argv[1])):
        raise StoppedError("between two batches, at a first signal that had it stop there")
except StoppedError as exc:
    print(exc, Run(sys.argv[1]).status.state, file=sys.stderr)
""",
        str(tmp_path / "run"),
    )
    assert done.stderr.count("--resume stopped\n") == 1, done.stderr


def test_a_study_whose_workers_are_starting_ends_in_its_sentence_alone(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    done = by_python(
        """
import asyncio, sys, distributed
from planescope.study.work.cluster import local_client
async def instantiate(self):
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(60)
if __name__ == "__main__":
    distributed.Nanny.instantiate = instantiate
    try:
        with local_client(1):
            pass
    except KeyboardInterrupt:
        raise SystemExit(signals.status())
"""
    )
    assert (done.returncode, done.stderr) == (143, "")
