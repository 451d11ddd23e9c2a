"""Killed at any moment: a short run of the harness, and that it sees what it looks for.

Train, reset and study are killed in the tests of their own command lines.
"""

from __future__ import annotations

import base64
import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import planescope as ps
from checks.reliability.whole import CHECKS, damaged, differences
from planescope import figures
from planescope.figures.card import card
from planescope.files.writing import write_csv, write_parquet
from planescope.training.config import RunConfig, dump_config

pytestmark = pytest.mark.skipif(os.name == "nt", reason="forks and process groups as POSIX has")


@pytest.mark.slow
def test_measure_and_report_killed_at_random_moments_lose_nothing():
    commands = ("--command", "measure", "--command", "report", "--moments", "3")
    done = subprocess.run(
        [sys.executable, "-m", "checks.reliability", "kills", *commands],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("; nothing lost\n") == 2


def whole_files(folder: Path) -> None:
    """A small file of each kind that commands write."""
    import torch
    from matplotlib.figure import Figure
    from safetensors.numpy import save_file

    array = np.arange(6, dtype=np.float32)
    save_file({"a": array}, folder / "a.safetensors", {"planescope": "{}"})
    (folder / "a.json").write_text('{"schema": "planescope.run-state/1", "state": "new"}\n')
    write_parquet(folder / "a.parquet", {"a": [1, 2]}, {})
    write_csv(folder / "a.csv", {"a": [1, 2], "b": [3, 4]})
    np.savez(folder / "a.npz", a=array)
    for form in ("ckpt", "pt", "pth"):
        torch.save({"a": torch.zeros(6)}, folder / f"a.{form}")
    measured = ps.measure({"a.weight": np.ones((2, 1, 3, 3), dtype=np.float32)})
    (folder / "a.md").write_text(card(measured, "a.png"), encoding="utf-8")
    (folder / "config.yaml").write_text(dump_config(RunConfig()))
    plotly = base64.b64encode(gzip.compress(b"a script", mtime=0)).decode()
    (folder / "a.html").write_text(
        '<!doctype html><script id="contents">{}</script>'
        f'<script id="plotly">{plotly}</script></html>\n'
    )
    for form in ("pdf", "svg", "png"):
        figures.save(Figure(), folder / f"a.{form}")


@pytest.fixture
def whole(tmp_path) -> Path:
    folder = tmp_path / "whole"
    folder.mkdir()
    whole_files(folder)
    return folder


def test_whole_files_are_taken_for_whole(whole):
    assert {path.suffix for path in whole.iterdir()} == set(CHECKS)
    assert damaged(whole) == []


@pytest.mark.parametrize("suffix", CHECKS)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.98])
def test_the_first_part_of_a_file_is_taken_for_damaged(whole, suffix, share):
    (path,) = whole.glob(f"*{suffix}")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    (problem,) = damaged(whole)
    assert problem.startswith(f"{path.name}: ")


def test_a_file_of_an_unknown_kind_is_seen(whole):
    (whole / ".tmpAbC").write_text("")
    assert damaged(whole) == [".tmpAbC: is none of our files"]


def test_results_that_differ_in_a_bit_or_are_missing_are_seen(whole, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    whole_files(other)
    assert differences(whole, other) == []
    path = other / "a.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    (other / "a.png").unlink()
    assert differences(whole, other) == ["a.png: is only in one", "a.safetensors: differs"]


def test_of_metrics_wall_time_alone_may_differ(tmp_path):
    for name, seconds, loss in (("a", 1.0, 0.5), ("b", 2.0, 0.5), ("c", 1.0, 0.25)):
        (tmp_path / name).mkdir()
        write_csv(tmp_path / name / "metrics.csv", {"val_loss": [loss], "seconds": [seconds]})
    assert differences(tmp_path / "a", tmp_path / "b") == []
    assert differences(tmp_path / "a", tmp_path / "c") == ["metrics.csv: differs"]
