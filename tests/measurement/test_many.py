"""Several processes give what one gives: results, order and errors; and none of them is left."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import save_file

from planescope.files.errors import PlanescopeError, RunError
from planescope.files.results.result import to_json
from planescope.measurement import processes
from planescope.measurement.measure import measure
from planescope.measurement.processes import measure_all
from planescope.measurement.record import Measurement, filters_table

MANY = 40


def weights(seed: int, *, filters: int = 24) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    shapes = {"a.weight": (filters, 3, 3, 3), "b.weight": (filters, filters, 3, 3)}
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "models"
    made.mkdir()
    for number in range(MANY):
        if number % 2:
            np.savez(made / f"{number:03d}.npz", **weights(number))
        else:
            save_file(weights(number), made / f"{number:03d}.safetensors")
    return made


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start processes after the first source, however little is left."""
    monkeypatch.setattr(processes, "WORTH_S", 1e-9)


def sources_in(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.iterdir())]


def helpers() -> list[psutil.Process]:
    """List the processes that measure for this one, which may have others of other tests."""
    return [child for child in psutil.Process().children() if measures(child)]


def measures(process: psutil.Process) -> bool:
    try:
        return any("processes.serve()" in part for part in process.cmdline())
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once another process has answered."""
    event = threading.Event()
    settle = processes._Shared.settle

    def told(*given: Any) -> None:
        settle(*given)
        if isinstance(threading.current_thread(), processes._Helper):
            event.set()

    monkeypatch.setattr(processes._Shared, "settle", told)
    return event


@pytest.fixture
def together(answered: threading.Event) -> Callable[..., Any]:
    """Measure by three processes, of which the others answer before this one is at its second."""
    first = []

    def on_layer(done: int, total: int, name: str) -> None:
        first.append(name)
        assert len(first) <= 2 or answered.wait(60)  # a source has two layers

    def run(sources: list[str], **options: Any) -> Any:
        return outcome(sources, most=3, on_layer=on_layer, **options)

    return run


def outcome(sources: list[str], **options: Any) -> list[Measurement] | tuple[type, str]:
    try:
        return measure_all(sources, **options)
    except PlanescopeError as exc:
        return type(exc), str(exc)


def test_several_processes_give_the_results_of_one_in_their_order(
    folder: Path, together: Callable[..., Any]
) -> None:
    sources = sources_in(folder)
    alone = [measure(source) for source in sources]
    measured = together(sources)
    assert to_json(measured) == to_json(alone)
    theirs, ours = filters_table(measured), filters_table(alone)
    assert theirs.keys() == ours.keys()
    for key, values in ours.items():
        np.testing.assert_array_equal(theirs[key], values)
    assert not helpers()


@pytest.mark.parametrize(
    ("kind", "at"),
    [
        ("cut", 0),
        ("cut", 1),
        ("cut", 17),
        *((kind, 2) for kind in ("text", "empty", "payload", "claims")),
    ],
)
def test_a_file_that_cannot_be_measured_gives_the_error_of_one_process(
    folder: Path, kind: str, at: int, together: Callable[..., Any]
) -> None:
    sources = sources_in(folder)
    # One more behind it, at which another process may be before any is at the first.
    for place in (at, at + 2):
        spoil(Path(sources[place]), kind)
    alone = outcome(sources, most=1)
    assert isinstance(alone, tuple)
    assert sources[at] in alone[1]
    assert together(sources) == alone
    assert not [*folder.glob("*.ran")]
    assert not helpers()


def spoil(path: Path, kind: str) -> None:
    raw = path.read_bytes()
    contents = {
        "cut": raw[: len(raw) // 2],
        "text": b"no model\n",
        "empty": b"",
        "payload": pickle.dumps(Payload(str(path.with_suffix(".ran")))),
        "claims": (1 << 40).to_bytes(8, "little") + b"{" + raw[9:],
    }
    path.write_bytes(contents[kind])


class Payload:
    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.mark, "w")


@pytest.mark.parametrize(
    "options",
    [
        {"layers": "b", "view": "effective", "kinds": ("conv",)},
        {"layers": "nothing of that name"},
        {"entry": "ema"},
    ],
)
def test_options_hold_in_each_process(
    folder: Path, options: dict[str, Any], together: Callable[..., Any]
) -> None:
    alone, measured = (
        outcome(sources_in(folder), most=1, **options),
        together(sources_in(folder), **options),
    )
    if isinstance(alone, tuple):
        assert measured == alone
    else:
        assert to_json(measured) == to_json(alone)


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_process_that_is_killed_is_a_sentence(folder: Path, answered: threading.Event) -> None:
    def on_layer(done: int, total: int, name: str) -> None:
        for child in helpers():
            assert answered.wait(60)
            child.kill()

    with pytest.raises(RunError, match="perhaps for want of memory; measure it alone"):
        measure_all(sources_in(folder) * 20, most=2, on_layer=on_layer)
    assert not helpers()


@pytest.mark.parametrize(
    "options",
    [{"data": "digits"}, {"network": "package.module:callable"}, {"init": "hf:owner/name"}],
)
def test_what_is_not_of_this_machine_s_files_alone_is_left_to_one_process(
    folder: Path, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_Helper", None)
    monkeypatch.setattr(processes, "measure", lambda source, **_: measure(source))
    assert len(measure_all(sources_in(folder), most=3, **options)) == MANY


def test_little_work_is_done_by_one_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "WORTH_S", 1e9)
    monkeypatch.setattr(processes, "_Helper", None)
    assert len(measure_all(sources_in(folder), most=3)) == MANY


COMMAND = """
import sys
from planescope.measurement import processes
from planescope.files.results import versions
processes.WORTH_S, versions.cores = 1e-9, lambda: 3
from planescope.cli import main
main()
"""


@pytest.fixture
def command(folder: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A command that measures for a long time, with three processes."""
    many = [name for name in sources_in(folder) for _ in range(500)]
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, "measure", *many, "--json"],
        cwd=tmp_path, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        until = time.monotonic() + 60
        while len(psutil.Process(process.pid).children()) < 2 and time.monotonic() < until:
            time.sleep(0.02)
        yield process
        process.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_all_processes_with_a_sentence(
    command: subprocess.Popen[str], name: str, status: int
) -> None:
    children = psutil.Process(command.pid).children(recursive=True)
    assert len(children) == 2
    command.send_signal(getattr(signal, name))
    _, said = command.communicate(timeout=60)
    assert (command.returncode, said) == (status, "planescope: interrupted\n")
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_processes_end_with_the_one_that_started_them(command: subprocess.Popen[str]) -> None:
    children = psutil.Process(command.pid).children(recursive=True)
    assert len(children) == 2
    command.kill()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_nothing_of_the_working_folder_is_run(folder: Path, tmp_path: Path) -> None:
    for name in ("pickle", "numpy", "planescope", "threading", "json"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w').close()\n", encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-P", "-c", COMMAND, "measure", "models", "--each", "--json"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ran.stderr == ""
    assert not (tmp_path / "ran").exists()
