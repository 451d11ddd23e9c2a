"""Kept tables of runs: held against a published figure, drawn, and counted as made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from planescope import Study, figures
from planescope.files.errors import CheckpointError, UsageError
from planescope.study.claims.claims import claims
from planescope.study.claims.reference import Deviation, deviation
from planescope.study.folder import runs_in

KEPT = Path(__file__).parents[2] / "studies" / "results" / "paper-figure"


@pytest.fixture(scope="module")
def runs():
    return runs_in([KEPT])


def written(tmp_path, *rows: str, head: str = "layer,0,75") -> Path:
    file = tmp_path / "reference.csv"
    file.write_text("\n".join(["# read off a figure", head, *rows]) + "\n")
    return file


def test_runs_without_weights_count_as_made(runs):
    study = Study(KEPT)
    assert study.status.done == len(runs) >= 2
    assert not any(run.snapshots for run in runs)
    assert claims(study).of(5)


def test_masses_are_held_against_the_percentages_of_a_figure(runs, tmp_path):
    rows = [f"{number},50,100" for number in range(1, 17)]
    rows[2] = "3,,90"
    found = deviation(
        runs, written(tmp_path, *rows, "validation accuracy,,90", "train accuracy,,99")
    )
    assert len(found.points) == 15 + 16 + 1
    table = Study(KEPT).table(["run", "epoch", "layer", "negative_mass", "val_accuracy"])
    last = table[table["epoch"] == 75]
    for point in found.points:
        if point.layer is None:
            values = last.groupby("run", observed=True)["val_accuracy"].first()
            assert (point.name, point.reference) == ("validation accuracy", 0.9)
        else:
            at = table[(table["epoch"] == point.epoch) & (table["layer"] == point.name)]
            values = at.set_index("run")["negative_mass"]
        assert point.runs == len(values) == len(runs)
        assert (point.mean, point.least, point.largest) == pytest.approx(
            (values.mean(), values.min(), values.max())
        )
        assert point.deviation == pytest.approx(values.mean() - point.reference)
        assert point.within == (values.min() <= point.reference <= values.max())
    masses = [abs(p.deviation) for p in found.points if p.layer is not None]
    assert f"Over 31 masses the mean absolute deviation is {np.mean(masses):.2f}" in found.sentence
    assert found.notes == ("the runs have no train accuracy",)
    found.save(tmp_path / "deviation.json")
    assert Deviation.load(tmp_path / "deviation.json") == found


@pytest.mark.parametrize(
    ("rows", "head", "message"),
    [
        (["1,50,100"], "layer,0,75", "has 1 layer, and the runs have 16 convolutions"),
        (["1,0.5,1.0"], "layer,0,75", "masses must be percentages"),
        (["1,50,100"], "epoch,0,75", "its first column is not 'layer'"),
        (["1,50,100", "3,50,100"], "layer,0,75", "after layer 1 comes 3"),
        (["1,50"], "layer,0,75", "is no table of a figure"),
        (["1,50,nan"], "layer,0,75", "a value that is no number"),
        ([f"{n},50,60" for n in range(1, 17)], "layer,33,44", "shares no epoch with all"),
    ],
)
def test_a_reference_that_does_not_fit_is_refused(runs, tmp_path, rows, head, message):
    with pytest.raises((UsageError, CheckpointError), match=message):
        deviation(runs, written(tmp_path, *rows, head=head))


def test_the_command_gives_a_row_a_layer_and_the_numbers(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "planescope", "claims", str(KEPT), "--out", str(tmp_path),
         "--reference", str(KEPT / "reference.csv")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "features.34" in done.stdout
    assert "mean absolute deviation" in done.stdout
    assert (
        (tmp_path / "deviation.csv").read_text().startswith("schema,number,layer,epoch,reference")
    )


def test_repetitions_are_drawn_from_the_tables(runs, tmp_path):
    done = figures.write_all([KEPT], tmp_path, form="svg", each=False)
    assert {file.name for file in done.files} == {"repetitions.svg", "repetitions.csv"}
    table = Study(KEPT).table(["run", "epoch", "layer", "negative_mass"])
    figure = figures.repetitions(table, drops=(25, 50), reference={"features.0": {75: 0.5}})
    panels = figure.axes
    assert len(panels) == 4
    texts = [text.get_text() for axes in panels for text in axes.get_legend().get_texts()]
    assert texts[0] == "1 features.0"
    assert texts[-1] == "16 features.34"
    line = panels[0].lines[0]
    first = table[table["layer"] == "features.0"].groupby("epoch")["negative_mass"].mean()
    assert line.get_ydata() == pytest.approx(first.to_numpy())
    marks = [line.get_xdata()[0] for line in panels[-1].lines if len(set(line.get_xdata())) == 1]
    assert marks[-2:] == [25, 50]


def test_runs_of_other_layers_are_not_drawn_as_one():
    table = Study(KEPT).table(["run", "epoch", "layer", "negative_mass"])
    some = table["run"] == table["run"].iloc[0]
    with pytest.raises(UsageError, match="must have the same layers"):
        figures.repetitions(table[~(some & (table["layer"] == "features.0"))])
