"""Disks, folders, files and streams as they should not be: one sentence, nothing lost.

`python -m checks.reliability odd` tries all of it; here are some of each kind, and what it found.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch

import planescope as ps
from planescope.cli import streams
from planescope.cli.app import COMMANDS
from planescope.files.errors import CheckpointError, OutputError
from planescope.files.locks import is_locked
from planescope.files.reading import open_binary, read_text
from planescope.files.targets import check_target
from planescope.files.writing import replacing, write_torch
from planescope.training.config import RunConfig
from planescope.training.folder.status import State
from planescope.training.loop import train
from planescope.training.run import Run

CHECKPOINT = "tests/parity/lenet-epoch-12.tar"
posix = pytest.mark.skipif(os.name == "nt", reason="files and streams as POSIX has them")


def command(*args: str | Path) -> list[str]:
    return [sys.executable, "-m", "planescope", *map(str, args)]


def run(
    *args: str | Path, prefix: tuple[str, ...] = (), **options
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | options.pop("env", {})
    return subprocess.run(
        [*prefix, *command(*args)], text=True, encoding="utf-8", timeout=300, env=environment,
        **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options),
    )  # fmt: skip


# --- what is read --------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        pytest.param(lambda p: p.mkdir(), "cannot be read: is a folder, not a file", id="folder"),
        pytest.param(os.mkfifo, "is not a regular file; copy it into one first", id="pipe"),
        pytest.param(lambda p: p.symlink_to(p.name), "cannot be read: Too many levels", id="loop"),
        pytest.param(lambda p: p.symlink_to("/dev/zero"), "is not a regular file", id="device"),
        pytest.param(lambda p: None, "cannot be read: No such file", id="absent"),
    ],
)
def test_only_regular_files_are_opened_and_none_is_waited_for(tmp_path, make, sentence):
    make(tmp_path / "odd")
    for read in (open_binary, read_text):
        with pytest.raises(CheckpointError, match=sentence):
            read(tmp_path / "odd")


@posix
@pytest.mark.parametrize(
    ("read", "error"),
    [
        pytest.param(read_text, CheckpointError, id="text"),
        pytest.param(ps.load, CheckpointError, id="measurement"),
        pytest.param(ps.Resets.load, CheckpointError, id="resets"),
        pytest.param(ps.Relation.load, CheckpointError, id="relation"),
    ],
)
def test_a_file_of_gigabytes_is_refused_before_memory_is_taken(tmp_path, read, error):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(10 << 30)
    with pytest.raises(error, match="has 10737418240 bytes, and at most 536870912 are read"):
        read(tmp_path / "sparse")


def test_text_is_read_up_to_its_bound(tmp_path):
    (tmp_path / "a").write_bytes("ü".encode() * 4)
    assert read_text(tmp_path / "a", most=8) == "üüüü"
    with pytest.raises(CheckpointError, match="has 8 bytes, and at most 7 are read"):
        read_text(tmp_path / "a", most=7)


def test_a_file_that_goes_away_between_two_looks_at_it_is_named(tmp_path, monkeypatch):
    shutil.copy(CHECKPOINT, tmp_path / "a.tar")
    from planescope import checkpoints

    real = checkpoints.probe

    def look_and_lose(path):
        found = real(path)
        path.unlink()
        return found

    monkeypatch.setattr(checkpoints, "probe", look_and_lose)
    with pytest.raises(CheckpointError, match=r"a\.tar: cannot be read: No such file"):
        ps.measure(tmp_path / "a.tar")


LITTLE_MEMORY = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
from planescope.cli import main
main()
"""


@posix
def test_a_layer_larger_than_the_memory_ends_in_a_sentence(tmp_path):
    """A whole checkpoint, of which the 10 GB of weights are a hole in the file."""
    size = 4 * (160 << 24)
    tensor = {"dtype": "F32", "shape": [1 << 14, 1 << 10, 16, 10], "data_offsets": [0, size]}
    header = json.dumps({"conv.weight": tensor}).encode()
    with (tmp_path / "a.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    done = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY, "measure", str(tmp_path / "a.safetensors")],
        capture_output=True, text=True, timeout=300, env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert done.stderr.startswith("planescope: memory ran out (")


# --- what is written -----------------------------------------------------------------------------


@posix
def test_a_link_stays_one_and_its_file_gets_the_result(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a.json").write_text("old")
    (tmp_path / "a.json").symlink_to("far/a.json")
    (tmp_path / "b.json").symlink_to("far/b.json")  # which is not there yet
    for name in ("a.json", "b.json"):
        with replacing(tmp_path / name) as draft:
            draft.write_text("new")
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / "far" / name).read_text() == "new"
    assert sorted(p.name for p in (tmp_path / "far").iterdir()) == ["a.json", "b.json"]


@posix
@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda p: p.symlink_to(p.name), lambda p: p.symlink_to("/dev/null")]
)
def test_what_is_no_file_is_not_replaced_by_one(tmp_path, make):
    make(tmp_path / "a.json")
    before = (tmp_path / "a.json").lstat()
    with pytest.raises(OutputError, match=r"a\.json: cannot be written"):
        check_target(tmp_path / "a.json", [".json"])
    with (
        pytest.raises(OutputError, match=r"a\.json: cannot be written"),
        replacing(tmp_path / "a.json") as draft,
    ):
        draft.write_text("new")
    assert (tmp_path / "a.json").lstat() == before


# --- runs that lost something --------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "run"
    train(RunConfig(epochs=1, examples=64, classes=2, width=0.5, threads=1), path)
    return path


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_a_run_that_lost_its_config_is_not_taken_for_another(copied):
    config = Run(copied).config
    (copied / "config.yaml").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"config\.yaml: is empty; put it back"):
        _ = Run(copied).config
    (copied / "config.yaml").unlink()
    before = sorted(copied.rglob("*"))
    for resume in (True, False):
        with pytest.raises(CheckpointError, match=r"holds a run without its config\.yaml"):
            train(config, copied, resume=resume)
    assert sorted(copied.rglob("*")) == before


def test_a_run_that_lost_its_metrics_is_not_gone_on_with(copied):
    config = Run(copied).config
    (copied / "metrics.csv").unlink()
    with pytest.raises(CheckpointError, match=r"metrics\.csv lacks epoch 1, .* remove last\.ckpt"):
        train(config, copied, resume=True)
    assert Run(copied).snapshots.keys() == {0, 1}  # what is there is kept
    (copied / "last.ckpt").unlink()
    assert train(config, copied, resume=True).status.state is State.FINISHED


@posix
def test_a_lock_that_may_only_be_read_tells_all_the_same(tmp_path, monkeypatch):
    import filelock

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    lock = tmp_path / ".lock"
    lock.touch()
    holder = filelock.FileLock(lock)
    with holder:
        monkeypatch.setattr(filelock, "FileLock", refused)
        assert is_locked(lock)
    assert not is_locked(lock)
    assert not is_locked(tmp_path / "absent")


# --- streams -------------------------------------------------------------------------------------


@posix
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize(
    "args", [("measure", CHECKPOINT), ("measure", CHECKPOINT, "--json"), ("-h",)]
)
def test_output_that_does_not_fit_is_said(args):
    with Path("/dev/full").open("w") as full:
        done = run(*args, stdout=full)
    assert (done.returncode, done.stderr) == (
        2,
        "planescope: standard output: No space left on device\n",
    )


@posix
def test_closed_streams_are_nobody_elses(tmp_path):
    out = tmp_path / "a.json"
    line = f'"{sys.executable}" -m planescope measure {CHECKPOINT} --out "{out}" <&- >&- 2>&-'
    assert subprocess.run(line, shell=True).returncode == 0  # noqa: S602
    assert ps.load(out).network.layers == 6


@posix
@pytest.mark.parametrize(
    "args",
    [
        pytest.param(("measure", CHECKPOINT), id="table"),
        pytest.param(("measure", CHECKPOINT, "--json", "--out", "a.json"), id="json-beside-a-file"),
        pytest.param(("study", "studies/digits.yaml", "--dry-run"), id="dry-run"),
        pytest.param(("--version",), id="version"),
    ],
)
def test_what_was_to_be_printed_is_missed_where_standard_output_is_closed(args, tmp_path):
    args = [str(tmp_path / arg) if arg == "a.json" else arg for arg in args]
    line = f"{shlex.join(command(*args))} >&-"
    done = subprocess.run(line, shell=True, capture_output=True, text=True)  # noqa: S602
    sentence = "planescope: standard output: is closed, and what was to be printed is lost\n"
    assert (done.returncode, done.stderr) == (2, sentence)


def test_every_option_that_names_a_result_is_known_to_hold_one():
    """What `measure FILE --card a.md >&-` was to print is no loss."""
    for name in COMMANDS:
        command = getattr(import_module(f"planescope.cli.{name}"), name)
        for option in command.params:
            if (getattr(option, "help", None) or "").startswith(("Write ", "Draw ")):
                assert option.name in streams._WRITTEN, (name, option.name)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk")
def test_a_full_disk_is_one_where_torch_writes_too():
    with pytest.raises(OSError, match="disk full"):
        write_torch(Path("/dev/full"), {"weight": torch.ones(3)})


@posix
@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_reader_that_went_away_is_no_error(form):
    reader, writer = os.pipe()
    os.close(reader)
    done = run("measure", CHECKPOINT, *form, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@posix
def test_an_interrupt_is_said_and_has_its_own_status(tmp_path):
    out = tmp_path / "a.json"
    with subprocess.Popen(
        command("measure", *[CHECKPOINT] * 9999, "--out", out), stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:  # fmt: skip
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        _, talk = process.communicate(timeout=60)
    assert (process.returncode, talk.strip()) == (130, "planescope: interrupted")
    assert not list(tmp_path.iterdir())


@posix
def test_standard_input_is_a_checkpoint_where_it_is_a_file():
    with Path(CHECKPOINT).open("rb") as file:
        done = run("measure", "/dev/stdin", stdin=file)
    assert (done.returncode, done.stderr) == (0, "")
    with subprocess.Popen(["cat", CHECKPOINT], stdout=subprocess.PIPE) as cat:  # noqa: S607
        done = run("measure", "/dev/stdin", stdin=cat.stdout)
        assert done.returncode == 2
        assert done.stderr == (
            "planescope: /dev/stdin: is not a regular file; copy it into one first\n"
        )
        cat.stdout.close()


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["trian"], "No such command 'trian'.* (see planescope --help)"),
        (["measure"], "Missing argument 'FILE...' (see planescope measure --help)"),
        (["train", "--epoch", "3"], "--epochs"),
    ],
)
def test_wrong_usage_is_one_sentence(args, sentence):
    done = run(*args)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert re.search(re.escape(sentence).replace(r"\.\*", ".*"), done.stderr), done.stderr


# --- surroundings --------------------------------------------------------------------------------

ENVIRONMENTS = {
    "dumb terminal": {"TERM": "dumb"},
    "narrow": {"COLUMNS": "20"},
    "ascii": {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "warnings": {"PYTHONWARNINGS": "error"},
    "no home": {"HOME": "/nonexistent", "XDG_CONFIG_HOME": "/nonexistent"},
}


@pytest.fixture(scope="module")
def usual(tmp_path_factory) -> bytes:
    """The table in usual surroundings."""
    path = tmp_path_factory.mktemp("usual") / "a.json"
    ps.measure(CHECKPOINT).save(path)
    return path.read_bytes()


@posix
@pytest.mark.parametrize("case", ENVIRONMENTS)
def test_surroundings_change_no_number(case, usual, tmp_path):
    out = tmp_path / "a.json"  # beside the table, which is printed in these surroundings
    assert run("measure", CHECKPOINT, "--out", out, env=ENVIRONMENTS[case]).returncode == 0
    assert out.read_bytes() == usual


COMMA = """
import locale, sys
locale.setlocale(locale.LC_ALL, "de_DE.UTF-8")
assert locale.localeconv()["decimal_point"] == ","
from planescope.cli import main
main()
"""


@posix
def test_commas_for_decimal_points_change_no_file(tmp_path):
    if shutil.which("localedef") is None or not Path("/usr/share/i18n/locales/de_DE").exists():
        pytest.skip("no German locale can be made here")
    made = tmp_path / "locales" / "de_DE.UTF-8"
    made.parent.mkdir()
    subprocess.run(["localedef", "-i", "de_DE", "-f", "UTF-8", str(made)], check=True)  # noqa: S607
    args = ("--json", "--out", tmp_path / "t.csv", "--filters", tmp_path / "f.csv")
    env = os.environ | {"LOCPATH": str(made.parent), "LC_ALL": "de_DE.UTF-8"}
    written = []
    for code in (COMMA, "from planescope.cli import main; main()"):
        done = subprocess.run(
            [sys.executable, "-c", code, "measure", CHECKPOINT, *map(str, args)],
            capture_output=True, text=True, env=env, timeout=300,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        files = [(tmp_path / name).read_bytes() for name in ("t.csv", "f.csv")]
        written.append([done.stdout, *files])
    assert written[0] == written[1]


def test_a_clock_set_back_makes_no_run_unreadable(copied):
    """Files from the future, as after the clock was put right."""
    future = time.time() + 10 * 365 * 86400
    before = Run(copied).measurements
    for path in copied.rglob("*"):
        os.utime(path, (future, future))
    run = Run(copied)
    assert run.status.state is State.FINISHED
    assert run.measurements.equals(before)
    assert train(run.config, copied, resume=True).status.state is State.FINISHED


@posix
def test_names_of_any_kind_are_names(copied, tmp_path):
    strange = tmp_path / "with space, ü 名前\nand a line"
    shutil.copytree(copied, strange)
    done = run("status", strange)
    assert (done.returncode, done.stderr) == (0, "")
    measured = strange / "a\n.json"
    snapshot = strange / "snapshots" / "epoch-0001.safetensors"
    assert run("measure", snapshot, "--out", measured).returncode == 0
    assert ps.load(measured).source.path == str(snapshot)
    done = run("measure", strange / "none\n.pt")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


# --- the harness ---------------------------------------------------------------------------------


@posix
def test_the_harness_sees_what_may_not_be():
    odd = pytest.importorskip("checks.reliability.odd")
    ended = odd.Ended
    assert not list(odd.problems_of(ended(status=0, complained="")))
    assert not list(odd.problems_of(ended(status=2, complained="planescope: a: is no b\n")))
    for status, complained in (
        (None, ""),
        (-9, ""),
        (139, ""),
        (2, ""),
        (2, "planescope: a\nb\n"),
        (2, "error: a\n"),
        (1, "Traceback (most recent call last):\n  a\nOSError: b\n"),
    ):
        assert list(odd.problems_of(ended(status=status, complained=complained)))
    before = {"a": "1", "b": "2"}
    assert not list(odd.lost(before, before | {"c": "3"}, may_write=False))
    assert list(odd.lost(before, {"a": "1"}, may_write=True)) == ["b is gone"]
    assert list(odd.lost(before, {"a": "1", "b": "3"}, may_write=False)) == ["b changed"]
    left = list(odd.lost(before, before | {".planescope-1-a/b": "3"}, may_write=True))
    assert left == [".planescope-1-a/b was left behind"]


@posix
@pytest.mark.slow
def test_some_cases_of_each_kind_lose_nothing():
    with contextlib.suppress(KeyError):
        del os.environ["PYTEST_CURRENT_TEST"]
    done = subprocess.run(
        [sys.executable, "-m", "checks.reliability", "odd", "--quick"],
        capture_output=True, text=True, timeout=580,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    inputs, folders, disks, scratch = done.stdout.splitlines()
    assert inputs == "inputs: 24 cases, 0 fell"
    assert folders == "folders: 32 cases, 0 fell"
    assert re.fullmatch(r"disks: (\d+ cases, 0 fell|left out.*)", disks)
    assert re.fullmatch(r"scratch: (2 cases, 0 fell|left out.*)", scratch)
