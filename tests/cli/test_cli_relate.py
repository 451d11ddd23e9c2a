"""``planescope relate`` as a process, on real runs: what it prints, and what it refuses."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
import torch
import warm
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import planescope as ps
from planescope.criticality.resets import reset
from planescope.hyperplanes.layer import Input
from planescope.training.config import RunConfig
from planescope.training.loop import train
from planescope.training.run import Run


def relate(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return warm.run("relate", *args)


def trained(path: Path, **fields) -> Path:
    few = {"epochs": 1, "threads": 1, "batch_size": 32, "optimiser": "adam", "learning_rate": 0.003}
    train(RunConfig(**few | fields), path)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """Two short runs whose layers were reset."""
    folder = tmp_path_factory.mktemp("runs")
    paths = [trained(folder / f"run-{seed}", seed=seed) for seed in (0, 1)]
    for path in paths:
        reset(path)
    return paths


def test_the_json_follows_its_schema(runs):
    done = relate(*runs, "--json", "--draws", "199")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout, parse_constant=pytest.fail)
    schema = json.loads(
        (files("planescope.files") / "schemas" / "relation-2.json").read_text("utf-8")
    )
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(found, schema)
    assert found["runs"] == [str(path) for path in runs]


def test_a_run_gives_tables_a_verdict_and_files(runs, tmp_path):
    done = relate(runs[0], "--out", tmp_path / "r.parquet", "--figure", tmp_path / "r.png")
    assert (done.returncode, done.stderr) == (0, "")
    for text in ("Spearman's rho", "features.12", "agreement", "unbiased", "one run:"):
        assert text in done.stdout
    relation = ps.Relation.load(tmp_path / "r.parquet")
    assert relation.verdict.split()[0] in done.stdout
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.parquet", "r.png"]


def test_scores_are_those_of_the_measurement_and_of_the_weights(runs):
    run = Run(runs[0])
    layers = {layer.name: layer for layer in ps.relate(runs[0], draws=99).layers}
    last = max(run.snapshots)
    measured = ps.measure(run.snapshots[last], network="lenet", init=run.snapshots[0])
    resets = ps.Resets.load(run.resets)
    weights = run.load_snapshot(last)
    assert list(layers) == [layer.name for layer in measured.layers]
    for i, layer in enumerate(measured.layers):
        found, cell = layers[layer.name], resets.at(layer.name, 0)[0]
        assert found.relative_drop == cell.relative_drop
        assert (found.loss, found.loss_low, found.loss_high) == (
            cell.loss, cell.loss_low, cell.loss_high,
        )  # fmt: skip
        assert found.critical is cell.critical
        assert (found.trained, found.chance) == (resets.trained.value, resets.chance)
        assert found.input is (Input.IMAGE if i == 0 else Input.RELU)
        for name in ("agreement", "mean_cosine", "l2", "linf"):
            assert found.scores[name] == getattr(layer, name)
        rows = weights[f"{layer.name}.weight"].double().flatten(1)
        spectral = float(rows.svd().S[0])
        assert found.scores["frobenius"] == pytest.approx(float(rows.norm()), rel=1e-9)
        assert found.scores["spectral"] == pytest.approx(spectral, rel=1e-9)
        assert found.scores["stable_rank"] == pytest.approx(
            (float(rows.norm()) / spectral) ** 2, rel=1e-9
        )
        assert found.scores["position"] == i / 5


@pytest.fixture(scope="module")
def saved(runs, tmp_path_factory) -> list[Path]:
    """What a user of any other network has: resets and a measurement, apart from a run."""
    folder = tmp_path_factory.mktemp("saved")
    shutil.copy(Run(runs[0]).resets, folder / "resets.json")
    snapshots = Run(runs[0]).snapshots
    ps.measure(snapshots[1], network="lenet", kinds="all", init=snapshots[0]).save(
        folder / "measured.parquet"
    )
    return [folder / "measured.parquet", folder / "resets.json"]


def test_saved_results_of_any_network_give_what_its_run_gives(runs, saved):
    of_run, of_files = ps.relate(runs[0], draws=99), ps.relate(saved, draws=99)
    assert of_files.runs == (str(saved[1]),)
    ofs = zip(of_run.layers, of_files.layers, strict=True)
    for one, other in ofs:
        assert (one.name, one.critical, one.loss_low, one.input, one.biased, one.tests) == (
            other.name, other.critical, other.loss_low, other.input, other.biased, other.tests
        )  # fmt: skip
        for score in ("agreement", "abs_z", "mean_cosine", "l2", "linf", "position"):
            assert one.scores[score] == other.scores[score]
        assert other.scores["spectral"] is None  # no file of results has weights
    # Records in memory are taken likewise, in any order.
    records = [ps.Resets.load(saved[1]), ps.load(saved[0])]
    assert [x.loss for x in ps.relate(records, draws=99).layers] == [
        x.loss for x in of_files.layers
    ]


def test_saved_results_are_related_on_the_command_line(saved):
    done = relate(*saved, "--draws", "199", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["runs"] == [str(saved[1])]


def test_a_training_that_a_tracker_followed_is_related(tmp_path):
    """A network and loop of one's own: what the Tracker saved, and the resets."""
    torch.manual_seed(0)
    images, labels = torch.rand(200, 1, 8, 8), torch.arange(200) % 2
    images[labels == 1, :, :4] += 0.5
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(128, 2),
    )  # fmt: skip
    start = copy.deepcopy(model.state_dict())
    tracker = ps.Tracker()
    tracker.update(model, 0, epoch=0)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(10):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()
    tracker.update(model, 10, epoch=1)
    tracker.save(tmp_path / "tracked.json")
    loader = DataLoader(TensorDataset(images, labels), batch_size=100)
    reset(model, to={"init": start}, data=loader).save(tmp_path / "resets.json")
    found = ps.relate([tmp_path / "resets.json", tmp_path / "tracked.json"], draws=99)
    assert [layer.name for layer in found.layers] == ["0", "2"]
    assert all(layer.scores["l2"] > 0 for layer in found.layers)
    resets = replace(ps.Resets.load(tmp_path / "resets.json"), precision="bf16-mixed")
    rounded = ps.relate([resets, tracker], draws=99)
    assert rounded.layers == tuple(replace(layer, run=resets.source) for layer in found.layers)
    told = "was reset in bf16-mixed: answers on the edge may be others than in 32-true"
    assert [note.endswith(told) for note in rounded.notes].count(True) == 1
    assert not any(note.endswith(told) for note in found.notes)


def of_an_earlier_version(runs, tmp_path):
    """A run whose resets were written before they had a loss."""
    path = copied(runs[0], tmp_path)
    data = json.loads(Run(path).resets.read_text())
    lost = ("loss", "loss_low", "loss_high", "critical")
    data["cells"] = [{k: v for k, v in cell.items() if k not in lost} for cell in data["cells"]]
    del data["chance"]
    Run(path).resets.write_text(json.dumps(data))
    return path


def test_without_a_loss_nothing_is_called_critical_and_one_note_says_what_to_do(runs, tmp_path):
    relation = ps.relate([of_an_earlier_version(runs, tmp_path)], draws=99)
    assert {layer.critical for layer in relation.layers} == {None}
    assert {advice.critical for advice in relation.advice} == {None}
    assert all(share.layers == 0 for share in relation.shares)
    (note,) = (note for note in relation.notes if "critical" in note)
    assert note.endswith("of an earlier version, without the loss; reset the layers again")


def copied(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "copy")
    return tmp_path / "copy"


def not_reset(runs, tmp_path):
    path = copied(runs[0], tmp_path)
    Run(path).resets.unlink()
    return [path]


def unfinished(runs, tmp_path):
    path = copied(runs[0], tmp_path)
    (path / "state.json").write_text('{"state": "stopped", "message": ""}')
    return [path]


def trained_further(runs, tmp_path):
    path = copied(runs[0], tmp_path)
    snapshot = Run(path).snapshots[1]
    save_file({name: -tensor for name, tensor in load_file(snapshot).items()}, snapshot)
    return [path]


def without_epoch_0(runs, tmp_path):
    path = copied(runs[0], tmp_path)
    data = json.loads(Run(path).resets.read_text())
    data["cells"] = [cell | {"snapshot": 1} for cell in data["cells"]]
    Run(path).resets.write_text(json.dumps(data))
    return [path]


def at_chance(runs, tmp_path):
    path = copied(runs[0], tmp_path)
    data = json.loads(Run(path).resets.read_text())
    data["cells"] = [cell | {"relative_drop": None} for cell in data["cells"]]
    Run(path).resets.write_text(json.dumps(data))
    return [path]


def other_layers(runs, tmp_path):
    path = copied(runs[1], tmp_path)
    data = json.loads(Run(path).resets.read_text())
    data["layers"] = data["layers"][:-1]
    Run(path).resets.write_text(json.dumps(data))
    return [runs[0], path]


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda runs, tmp: [tmp / "none"], "is no run: it has no config.yaml"),
        (lambda runs, tmp: [runs[0], runs[0]], "is given twice; a run counts once"),
        (not_reset, "its layers were not reset yet; run planescope reset"),
        (unfinished, "the run is not finished but stopped; let it finish"),
        (trained_further, "its layers were reset before it was trained further"),
        (without_epoch_0, "were not put back to epoch 0, which the relation is about"),
        (at_chance, "has no relative drops: its network is no better than chance"),
        (other_layers, "are both lenet, but features.12 was reset in one of them only"),
        (lambda runs, tmp: [Run(runs[0]).resets], "needs the measurement of the same network"),
        (lambda runs, tmp: [runs[0], "--critical", "2"], "critical must lie in (0, 1), not 2.0"),
        (lambda runs, tmp: [runs[0], "--out", tmp / "x.txt"], "must end in .json, .csv or .parq"),
    ],
)  # fmt: skip
def test_bad_input_gives_a_sentence_and_status_2(build, sentence, runs, tmp_path):
    done = relate(*build(runs, tmp_path))
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.startswith("planescope: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_help_imports_nothing_heavy():
    code = "import sys; sys.argv = ['planescope', 'relate', '--help']\n"
    code += "from planescope.cli import main\ntry:\n    main()\nexcept SystemExit: pass\n"
    code += "print(*[n for n in ('numpy', 'scipy', 'torch', 'rich') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""
