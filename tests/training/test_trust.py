"""A stranger's folder: no code that only it names runs, and nothing below it leads out of it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import click.testing
import pytest

import planescope as ps
from planescope.cli.app import app
from planescope.criticality.relation.relate import relate
from planescope.files.errors import CheckpointError, PlanescopeError, UsageError
from planescope.files.folders import inside, make_inside, refuse_ways_out
from planescope.files.optional import consented, is_foreign, is_trusted
from planescope.hyperplanes.layer import Input
from planescope.study.folder import Study
from planescope.study.record import RunRecord
from planescope.training.config import RunConfig, dump_config
from planescope.training.loop import train
from planescope.training.run import Run

posix = pytest.mark.skipif(sys.platform == "win32", reason="links need a right on Windows")

# Says that it ran, as an attacker's would do worse.
EVIL = """
import pathlib
pathlib.Path({mark!r}).touch()
from torch import nn
def make(in_channels, classes):
    return nn.Sequential(nn.Conv2d(in_channels, 6, 3), nn.BatchNorm2d(6), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, classes))
"""
SMALL = {"data": "planescope.training.small:sklearn_digits", "epochs": 1, "view": "effective"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a network of somebody's own, with resets, and the folder with his module."""
    folder = tmp_path_factory.mktemp("stranger")
    (folder / "evilnet.py").write_text(EVIL.format(mark=str(folder / "ran")))
    before = Path.cwd()
    os.chdir(folder)
    try:
        config = RunConfig(network="evilnet:make", kinds=("all",), accelerator="cpu", **SMALL)
        train(config, "run")
        ps.reset("run", trust="evilnet:make")
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def stranger(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it as the working folder, in a process that never saw the module."""
    folder = tmp_path / "stranger"
    shutil.copytree(trained, folder)
    (folder / "evilnet.py").write_text(EVIL.format(mark=str(folder / "ran")))
    (folder / "ran").unlink(missing_ok=True)
    monkeypatch.chdir(folder)
    monkeypatch.delitem(sys.modules, "evilnet", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return folder


def command(*arguments: str) -> click.testing.Result:
    return click.testing.CliRunner().invoke(app, arguments, catch_exceptions=True)


READING = (
    ("status", "run"),
    ("report", "run", "--out", "page.html"),
    ("figures", "run", "--out", "figures", "--format", "png"),
    ("relate", "run", "--draws", "99"),
)
RUNNING = (("reset", "run"), ("train", "--resume", "--out", "run"))


@pytest.mark.parametrize("arguments", READING, ids=lambda a: a[0])
@pytest.mark.parametrize("recorded", [True, False])
def test_reading_a_run_needs_none_of_its_code(
    stranger: Path, arguments: tuple[str, ...], recorded: bool
) -> None:
    if not recorded:
        Path("run/network.json").unlink()
    result = command(*arguments)
    assert result.exit_code == 0, result.exception
    assert not Path("ran").exists()


@pytest.mark.parametrize("arguments", RUNNING, ids=lambda a: a[0])
def test_code_of_a_run_needs_consent(stranger: Path, arguments: tuple[str, ...]) -> None:
    refused = command(*arguments)
    assert isinstance(refused.exception, UsageError)
    assert "evilnet:make" in str(refused.exception)
    assert "--network evilnet:make" in str(refused.exception)
    assert "--trust" in str(refused.exception)
    assert not Path("ran").exists()
    assert command(*arguments, "--network", "evilnet:make").exit_code == 0
    assert Path("ran").exists()
    Path("ran").unlink()
    del sys.modules["evilnet"]
    assert command(*arguments, "--trust").exit_code == 0
    assert Path("ran").exists()


@pytest.mark.parametrize("logger", ["wandb", "mlflow"])
def test_a_run_that_is_resumed_sends_nothing_without_consent(
    stranger: Path, monkeypatch: pytest.MonkeyPatch, logger: str
) -> None:
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace("loggers: []", f"loggers: [csv, {logger}]"))
    assert Run("run").config.loggers == ("csv", logger)
    # Whoever gets as far as that began to look for the package.
    monkeypatch.setattr("planescope.training.loop.find_spec", lambda name: None)
    resume = ("train", "--resume", "--out", "run", "--network", "evilnet:make")
    refused = command(*resume)
    assert isinstance(refused.exception, UsageError)
    assert f"names the logger {logger}" in str(refused.exception)
    assert f"give --loggers {logger}" in str(refused.exception)
    with pytest.raises(UsageError, match=f"names the logger {logger}"):
        train(Run("run").config, "run", resume=True, trust="evilnet:make")
    assert not Path("ran").exists()
    wanted = f"pip install {logger}"
    for consent in (("--loggers", logger), ("--trust",)):
        assert wanted in str(command(*resume, *consent).exception)
    with pytest.raises(ps.MissingDependencyError, match=wanted):
        train(Run("run").config, "run", resume=True, trust=("evilnet:make", logger))
    assert command(*resume, "--loggers", "csv").exit_code == 0
    assert Run("run").config.loggers == ("csv", logger), "what it was started with stays on record"


def test_the_recorded_places_are_those_of_the_network(stranger: Path) -> None:
    recorded = relate("run", draws=99)
    (layer,) = (one for one in recorded.layers if one.name == "0")
    assert layer.input is Input.IMAGE
    subject = ps.measure(
        Run("run").snapshots[1], network=Run("run").structure, view="effective", kinds="all"
    )
    (conv, last) = subject.layers
    assert not any("assumed" in note for note in subject.notes)  # as norms by their names
    assert (conv.input, conv.stage, last.input) == ("image", 0, "relu")
    kept = Run("run").measured_layers[1][0]
    assert conv.mean_centre == pytest.approx(kept.mean_centre, rel=1e-6)
    assert not Path("ran").exists()


def test_what_an_older_run_does_not_tell_is_null_and_said(stranger: Path) -> None:
    Path("run/network.json").unlink()
    run = Run("run")
    measured = ps.measure(run.snapshots[1], network=run.structure, kinds="all")
    assert {layer.stage for layer in measured.layers} == {None}
    assert {str(layer.input) for layer in measured.layers} == {"unknown"}
    assert any("--network evilnet:make" in note for note in measured.notes)
    found = relate(run, draws=99)
    assert sum("--network evilnet:make" in note for note in found.notes) == 1


def test_another_name_replaces_that_of_the_run_and_is_told(stranger: Path) -> None:
    Path("mine.py").write_text(Path("evilnet.py").read_text())
    result = command("reset", "run", "--network", "mine:make")
    assert result.exit_code == 0
    assert "run: its network evilnet:make is replaced by mine:make" in result.stderr


@pytest.mark.parametrize(
    ("name", "kind", "foreign"),
    [
        ("lenet", "network", False),
        ("torchvision:resnet18", "network", False),
        ("timm:resnet18", "network", False),
        ("planescope.data.small:sklearn_digits", "data", False),
        ("planescope.training.small:sklearn_digits", "data", False),
        ("folder:pictures", "data", False),
        ("cifar10", "data", False),
        ("folder:make", "network", True),  # a module called folder
        ("torchvision:io", "data", True),
        ("torchvision.models:resnet18", "network", True),
        ("http.server:test", "network", True),
        ("planescope.training.loop:train", "network", True),
    ],
)
def test_names_that_need_trust(name: str, kind: str, foreign: bool) -> None:
    assert is_foreign(name, kind) is foreign  # type: ignore[arg-type]
    if foreign:
        with pytest.raises(UsageError, match="--trust"):
            consented(name, kind=kind, where="run")  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="--trust"):
            consented(name, kind=kind, where="run", trust=["other:name"])  # type: ignore[arg-type]
        assert consented(name, kind=kind, where="run", trust=name) == name  # type: ignore[arg-type]


@pytest.mark.parametrize("trust", [1, None, b"evilnet:make", [1], 0.0])
def test_what_is_not_understood_is_no_consent(
    trust: Any, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    (trained / "ran").unlink(missing_ok=True)
    for call in (ps.reset, ps.relate, ps.predict_critical, ps.sensitivity):
        with pytest.raises(UsageError, match="give True or False, or the names that may run"):
            call("run", trust=trust)
    assert not (trained / "ran").exists()


def test_trust_in_one_name_is_in_no_other_that_is_part_of_it() -> None:
    assert not is_trusted("wandb", "mywandb:make")
    assert not is_trusted("wandb", ("mywandb:make",))
    assert not is_trusted("wandb", False)
    assert is_trusted("wandb", "wandb")
    assert is_trusted("wandb", True)


def test_a_resumed_run_downloads_nothing_that_only_it_asks_for(
    stranger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(data="mnist", download=True, data_path="/elsewhere", epochs=1)
    Run.create("other", config)
    monkeypatch.setattr(
        "planescope.data.sets.sources._download", lambda *_: pytest.fail("downloaded")
    )
    result = command("train", "--resume", "--out", "other")
    assert isinstance(result.exception, CheckpointError)
    assert "/elsewhere" in str(result.exception)


PARTS = (
    "config.yaml", "metrics.csv", "state.json", "environment.json", "network.json", "resets.json",
    "relation.json", "resets-progress.json", "last.ckpt", "measurements.parquet", "snapshots",
    "filters", "snapshots/epoch-0000.safetensors", "filters/epoch-0001.safetensors", ".lock",
)  # fmt: skip


@posix
@pytest.mark.parametrize("part", PARTS)
def test_no_part_of_a_run_leads_out_of_it(stranger: Path, tmp_path: Path, part: str) -> None:
    outside = tmp_path / "outside"
    there = Path("run", part)
    if there.is_dir():
        shutil.copytree(there, outside)
    elif there.exists():
        shutil.copy(there, outside)
    else:
        outside.write_text("{}")
    before = {p: p.read_bytes() for p in (outside, *outside.rglob("*")) if p.is_file()}
    if there.is_dir():
        shutil.rmtree(there)
    else:
        there.unlink(missing_ok=True)
    there.symlink_to(outside)
    failed = 0
    for arguments in (READING[0], READING[1], READING[3], *((*a, "--trust") for a in RUNNING)):
        result = command(*arguments)
        if result.exit_code:
            failed += 1
            assert isinstance(result.exception, PlanescopeError), result.exception
            assert f"{there}: is a link" in str(result.exception)
    assert failed  # some command takes each part
    assert {p: p.read_bytes() for p in before} == before
    assert sorted(outside.rglob("*")) == sorted(p for p in before if p != outside)


@posix
@pytest.mark.parametrize(
    ("root", "arguments", "part"),
    [
        ("run", ("relate", "{}", "--draws", "99", "--out", "{}/relation.json"), "relation.json"),
        (".", ("report", "{}", "--out", "{}/page.html"), "page.html"),
        ("run", ("figures", "{}", "--format", "png", "--out", "{}/drawn"), "drawn"),
        ("run", ("measure", "{}/snapshots/epoch-0001.safetensors", "--out", "{}/m.csv"), "m.csv"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_no_result_that_is_written_into_a_run_leads_out_of_it(
    stranger: Path, monkeypatch: pytest.MonkeyPatch, root: str, arguments: tuple[str, ...],
    part: str,
) -> None:  # fmt: skip
    (outside := stranger / "outside").mkdir()
    outside.joinpath("kept").write_text("kept")
    leads = outside if part == "drawn" else outside / "kept"
    Path("run", part).symlink_to(leads)
    monkeypatch.chdir(stranger if root == "run" else stranger / "run")
    result = command(*(argument.format(root) for argument in arguments))
    assert isinstance(result.exception, PlanescopeError), result.exception
    assert "is a link within" in str(result.exception)
    assert [path.name for path in outside.iterdir()] == ["kept"]
    assert outside.joinpath("kept").read_text() == "kept"


@posix
def test_the_root_itself_may_be_a_link(stranger: Path) -> None:
    Path("run").rename("elsewhere")
    Path("run").symlink_to("elsewhere")
    assert command("status", "run").exit_code == 0
    assert command("reset", "run", "--trust").exit_code == 0


@posix
def test_a_lock_that_is_another_file_too_is_not_emptied(stranger: Path) -> None:
    Path("mine.txt").write_text("kept")
    Path("run/.lock").unlink(missing_ok=True)
    Path("run/.lock").hardlink_to("mine.txt")
    result = command("train", "--resume", "--out", "run", "--trust")
    assert "run/.lock: is no file of its own" in str(result.exception)
    assert Path("mine.txt").read_text() == "kept"


@posix
@pytest.mark.parametrize("part", ["runs", "table", "runs/NAME", "runs/NAME/study.json"])
def test_no_part_of_a_study_leads_out_of_it(tmp_path: Path, part: str) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("grid:\n- network: lenet\nbase: {epochs: 1}\nmake: [train]\n")
    from planescope.study.plan import read_plan

    study = Study.create(tmp_path / "study", read_plan(file))
    study.save_plan()
    (spec,) = study.specs
    study.save_record(RunRecord(name=spec.name, made={"train": 1.0}))
    there = study.path / part.replace("NAME", spec.name)
    there.rename(tmp_path / "outside")
    there.symlink_to(tmp_path / "outside")
    with pytest.raises(CheckpointError, match="is a link"):
        _ = Study(study.path).status


@pytest.mark.parametrize("name", ["../../../../x", "/x", "a/b", "..", ""])
def test_the_record_of_a_run_is_of_that_run(tmp_path: Path, name: str) -> None:
    study = Study(tmp_path)
    (tmp_path / "runs" / "run").mkdir(parents=True)
    (tmp_path / "runs" / "run" / "study.json").write_text(
        json.dumps({"schema": "planescope.study-run/1", "name": name, "made": {}})
    )
    with pytest.raises(CheckpointError, match="cannot be read"):
        study.record("run")
    with pytest.raises(CheckpointError, match="is no name of a file"):
        study.save_record(RunRecord(name=name))
    assert sorted(p.name for p in tmp_path.parent.iterdir() if p.name == "x") == []


def test_names_below_a_root(tmp_path: Path) -> None:
    assert inside(tmp_path, "a", "b") == tmp_path / "a" / "b"
    assert make_inside(tmp_path, "a", "b").is_dir()
    for name in ("..", ".", "", "a/b", "/etc", "a\0b"):
        with pytest.raises(CheckpointError, match="is no name"):
            inside(tmp_path, name)


@posix
def test_logs_do_not_lead_out(tmp_path: Path) -> None:
    logs = make_inside(tmp_path / "run", "logs", "wandb")
    (logs / "run-1").mkdir()
    (logs / "latest-run").symlink_to("run-1")
    refuse_ways_out(tmp_path / "run", "logs")
    (logs / "debug.log").symlink_to(tmp_path / "victim")
    with pytest.raises(CheckpointError, match=r"debug\.log: is a link that leads out"):
        refuse_ways_out(tmp_path / "run", "logs")


def test_a_recorded_network_that_cannot_be_is_refused(stranger: Path) -> None:
    file = Path("run/network.json")
    good = json.loads(file.read_text())
    for path, value in (
        (("places", "0", "kind"), "linear"),
        (("places", "0", "groups"), 0),
        (("places", "0", "kind"), 3),
        (("schema",), "other"),
        (("names",), "x"),
        (("places",), []),
    ):
        data = json.loads(json.dumps(good))
        at = data
        for step in path[:-1]:
            at = at[step]
        at[path[-1]] = value
        file.write_text(json.dumps(data))
        with pytest.raises(CheckpointError, match=r"network\.json"):
            ps.measure(Run("run").snapshots[1], network=Run("run").structure, kinds="all")


def test_a_config_of_ones_own_is_consent(stranger: Path) -> None:
    Path("own.yaml").write_text(
        dump_config(RunConfig(network="evilnet:make", kinds=("all",), accelerator="cpu", **SMALL))
    )
    assert command("train", "--config", "own.yaml", "--out", "new").exit_code == 0
    assert command("train", "--config", "own.yaml", "--out", "new", "--resume").exit_code == 0
