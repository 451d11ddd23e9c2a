"""Runs, studies and results of before the code moved into rooms are read as they were."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import planescope as ps
from planescope.figures.sources import open_subjects
from planescope.study.plan import read_plan
from planescope.study.work.make import make_study
from planescope.training.folder.status import State, Status

BEFORE = Path(__file__).parent / "before"


@pytest.fixture
def run(tmp_path) -> ps.Run:
    return ps.Run(shutil.copytree(BEFORE / "run", tmp_path / "run"))


def test_a_run_tells_what_it_told(run):
    assert run.status.state == "finished"
    assert run.config.network == "lenet"
    assert run.config.width == 0.35
    assert [row.epoch for row in run.metrics] == [0, 1, 2, 3]
    assert run.metrics[-1].val_accuracy == 0.852
    assert list(run.snapshots) == [0, 1, 2, 3]
    table = run.measurements
    assert len(table) == 4 * 6
    assert table.query("epoch == 3 and layer == 'features.12'").negative_mass.item() == 20 / 22
    assert len(run.load_filters(3)["features.12"][0]) == 22
    assert run.environments[0]["revision"].startswith("e0a6625")


def test_a_snapshot_measures_as_it_did(run):
    saved = ps.load(BEFORE / "measurement.json")
    again = ps.measure(run.snapshots[3])
    assert [layer.name for layer in again.layers] == [layer.name for layer in saved.layers]
    for now, then in zip(again.layers, saved.layers, strict=True):
        assert now.negative_mass == then.negative_mass
        assert now.mean_cosine == pytest.approx(then.mean_cosine, abs=1e-12)


@pytest.mark.parametrize("form", ["json", "parquet"])
def test_measurements_load(form):
    loaded = ps.load(BEFORE / f"measurement.{form}")
    assert len(loaded.layers) == 6
    assert loaded.layers[-1].negative_mass == 20 / 22


def test_resets_and_their_relation_load(run):
    resets = ps.Resets.load(run.path / "resets.json")
    assert len(resets.cells) == 9 * 2
    assert resets.trained.top1 == 424 / 500
    relation = ps.Relation.load(run.path / "relation.json")
    assert relation.runs == ("run",)
    assert len(relation.layers) == 9
    # Its flags were about the relative drop, and it has no loss: nothing is guessed.
    assert {layer.critical for layer in relation.layers} == {None}
    assert {layer.relative_drop is None for layer in relation.layers} == {False}
    assert (relation.shares, relation.advice) == ((), ())
    assert "relate the runs again" in relation.notes[-1]
    for result in (resets, relation):
        assert type(result).from_dict(json.loads(result.to_json())) == result
        page = result._repr_html_()
        assert page.count("</tr>") > len(result.layers)
        assert result.layers[0].name in page


def test_a_run_is_resumed_from_its_last_checkpoint(run):
    """Killed after its last epoch: what is left is to end it, from the state that was kept."""
    run.save_status(Status(state=State.STOPPED))
    ps.train(run.config, run.path, resume=True)
    assert run.status.state == "finished"
    assert [row.epoch for row in run.metrics] == [0, 1, 2, 3]


def test_a_table_of_before_is_drawn_though_its_layers_are_called_name(run):
    table = run.measurements
    ours, theirs = (
        ps.figures.dynamics(one) for one in (table, table.rename(columns={"layer": "name"}))
    )
    assert len(ours.axes) == len(theirs.axes) > 1


def test_figures_and_pages_open_what_there_is(run):
    (subject,) = open_subjects([run.path])
    assert subject.resets is not None
    assert "features.12" in ps.report(run.path).html


def test_a_study_finds_its_runs_by_the_spelling_they_were_named_after(tmp_path):
    """The data set has moved since; the run's name follows from what the study says of it."""
    folder = shutil.copytree(BEFORE / "study", tmp_path / "study")
    plan = read_plan(folder / "study.yaml")
    names = sorted(path.name for path in (folder / "runs").iterdir())
    assert sorted(spec.name for spec in plan.specs) == names
    assert len(table := ps.Study(folder).table()) == 2 * 2 * 6
    assert set(table["layer"]) >= {"features.0", "features.12"}
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    make_study(folder / "study.yaml", folder, workers=1)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == before


def test_the_file_of_a_tracker_is_what_later_versions_must_read():
    saved = json.loads((BEFORE / "tracked.json").read_text(encoding="utf-8"))
    assert saved["schema"] == "planescope.track/1"
    assert [update["step"] for update in saved["updates"]] == [0, 1, 2, 3]
    assert saved["updates"][3]["measurement"]["layers"][0]["filters"] == 8
