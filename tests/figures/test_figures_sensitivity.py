"""Figures, page and terminal table of a sensitivity show its numbers, and all of them."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest

from planescope import figures
from planescope.criticality.sensitivity.record import (
    Estimate,
    LayerSensitivity,
    Method,
    Sensitivity,
)
from planescope.figures.report import report
from planescope.files.errors import UsageError
from planescope.hyperplanes.layer import Kind
from tests.drawn_text import assert_inside

CHECKPOINT = Path("tests/parity/lenet-epoch-12.tar")
WAYS = ("prune:0.5", "prune:0.9", "filters:0.5", "rank:0.5", "rank:0.1", "bits:4", "bits:2", "mine")


def sensitivity(layers: int = 6, source: str = str(CHECKPOINT), **options) -> Sensitivity:
    """Layer i costs i/10 by the strongest step of each way; the last takes no filters."""

    def cost(number: int, key: str) -> Estimate | None:
        if key.startswith("filters") and number == layers - 1:
            return None
        return Estimate(score=number / 10 / layers * (1 if key in WAYS[1::3] else 2))

    return Sensitivity(
        source=source, network="lenet", method=Method.SYNTHETIC, data="pictures", inputs=100,
        layers=tuple(
            LayerSensitivity(
                name=f"features.{i}", kind=Kind.CONV, parameters=100 * i + 1, multiply_adds=7 * i,
                ways={key: cost(i, key) for key in WAYS},
            )
            for i in range(layers)
        ),
        **options,
    )  # fmt: skip


@pytest.mark.parametrize(("layers", "width"), [(1, "column"), (6, "page"), (60, "column")])
def test_the_map_has_a_cell_for_each_layer_and_way(layers, width):
    found = sensitivity(layers)
    figure = figures.sensitivity_map(found, width=width)
    values = figure.axes[0].get_images()[0].get_array()
    assert values.shape == (layers, len(WAYS))
    for i, layer in enumerate(found.layers):
        for j, key in enumerate(WAYS):
            one = layer.ways[key]
            assert bool(values.mask[i, j]) if one is None else values[i, j] == 100 * one.score
    assert_inside(figure)


@pytest.mark.parametrize("width", ["column", "page"])
def test_a_curve_a_layer_runs_from_little_to_much(width):
    figure = figures.sensitivity(sensitivity(), width=width)
    panels = [axes for axes in figure.axes if axes.get_xlabel()]
    shown = [[label.get_text() for label in axes.get_xticklabels()] for axes in panels]
    assert shown == [["0.5", "0.9"], ["0.5"], ["0.5", "0.1"], ["4", "2"]]
    assert [len(axes.lines) for axes in panels] == [6, 5, 6, 6]
    assert_inside(figure)


def test_ways_of_the_user_s_own_have_no_strength_to_draw_against():
    one = LayerSensitivity(
        name="a", kind=Kind.CONV, parameters=1, multiply_adds=None,
        ways={"mine": Estimate(score=0.5)},
    )  # fmt: skip
    found = Sensitivity(
        source="x", network="x", method=Method.SYNTHETIC, data="x", inputs=1, layers=(one,)
    )
    figures.sensitivity_map(found)
    with pytest.raises(UsageError, match="the map shows them"):
        figures.sensitivity(found)


def test_a_saved_sensitivity_is_drawn_with_its_numbers(tmp_path):
    found = sensitivity()
    found.save(tmp_path / "costs.json")
    written = figures.write_all([tmp_path / "costs.json"], tmp_path / "out", form="svg").files
    assert [path.name for path in written] == [
        "sensitivity.svg", "sensitivity.csv", "sensitivity-map.svg", "sensitivity-map.csv",
    ]  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "out" / "sensitivity.csv").open()))
    assert len(rows) == 6 * len(WAYS) - 1
    jsonschema.validate(
        json.loads(found.to_json(), parse_constant=pytest.fail),
        json.loads((files("planescope.files") / "schemas" / "sensitivity-1.json").read_text()),
    )


def test_the_page_of_a_network_has_its_costs(tmp_path):
    found = sensitivity()
    found.save(tmp_path / "moved.json")
    page = report(CHECKPOINT, tmp_path / "moved.json")
    (section,) = re.findall(r'<section id="sensitivity".*?</section>', page.html, flags=re.S)
    assert section.count("<svg") == 4
    assert section.count("<tr>") == 1 + 6
    for layer in found.layers:
        assert f">{layer.name}</th><td>{layer.parameters:,}</td>" in section
    assert "filters:0.5 does not apply to features.5" in section
    with pytest.raises(UsageError, match="nothing to report: give a run, a checkpoint"):
        report(tmp_path / "moved.json")


def test_names_in_a_page_are_text_alone():
    found = sensitivity(2)
    bad = LayerSensitivity(
        name="</svg><script>", kind=Kind.CONV, parameters=1, multiply_adds=1,
        ways=found.layers[0].ways,
    )  # fmt: skip
    page = report(CHECKPOINT, Sensitivity(**{**vars(found), "layers": (bad, *found.layers)}))
    assert "</svg><script>" not in page.html


@pytest.mark.parametrize("width", [80, 240])
def test_the_terminal_shows_every_way_however_narrow_and_says_what_top_leaves_out(
    width, monkeypatch, capsys
):
    from planescope.cli import printing
    from planescope.cli.sensitivity import print_sensitivity

    monkeypatch.setattr(printing, "PIPE_WIDTH", width)
    print_sensitivity(sensitivity(9), top=2)
    told = capsys.readouterr().out
    for amount in ("0.1", "4", "mine"):
        assert amount in told
    assert max(map(len, told.splitlines())) <= width
    assert "features.8" in told
    assert "features.6" not in told
    assert "not shown: the 7 layers that cost least (--top 2)" in told


def test_a_target_that_cannot_be_is_refused_before_anything_is_loaded():
    command = [sys.executable, "-m", "planescope", "sensitivity", "none.pt", "--figure", "a.gif"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "a.gif" in done.stderr
