"""The studies in ``studies/``: what they come to, and that each kind of run in them runs."""

from __future__ import annotations

import json
import pickle
import re
import runpy
import shutil
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from data_files import put, put_cifar10, put_folder, put_mnist, random_bytes

import planescope as ps
from planescope.criticality.relation.record import Relation
from planescope.files.errors import UsageError
from planescope.study import table
from planescope.study.claims.claims import claims
from planescope.study.folder import Study
from planescope.study.plan import Plan, read_plan
from planescope.study.record import RunRecord
from planescope.study.spec import DEFAULTS, Spec
from planescope.study.work.costs import GPU, THREAD, estimate, forward_flops
from planescope.study.work.forecast import forecast
from planescope.study.work.make import make_study
from planescope.study.work.worker import make_run
from planescope.training.run import Run

FOLDER = Path(__file__).parents[2] / "studies"
PLANS = {path.stem: read_plan(path) for path in sorted(FOLDER.glob("*.yaml"))}

# Where runs differ in one of these alone, they go through the same code.
AMOUNTS = {"seed", "data_seed", "classes", "label_noise", "learning_rate", "weight_decay"}
AMOUNTS |= {"epochs", "snapshots_every", "snapshots_until", "width"}


def features(spec: Spec) -> set[tuple[str, Any]]:
    """What a run asks of the code: its network, and each of its options."""
    found = {(field, value) for field, value in spec.settings if field not in AMOUNTS}
    found |= {(field, None) for field in ("classes", "label_noise") if spec.get(field)}
    return found | {("network", spec.get("network"))}


def test_the_studies_come_to_what_their_texts_say():
    counts = {name: len(plan.specs) for name, plan in PLANS.items()}
    assert counts["digits"] == 86
    assert counts["scores"] >= 60
    assert {"paper-cifar10", "paper-cifar100", "paper-imagenet", "paper-mnist"} < set(counts)


def test_the_digits_have_what_each_claim_asks_for():
    specs = PLANS["digits"].specs
    main = [s for s in specs if re.match(r"lenet-digits-s\d", s.name)]
    assert sorted(s.get("seed") for s in main) == [0, 1, 2, 3, 4]
    for network in ("lenet", "vgg11", "vgg11_bn", "mlp"):
        own = [spec for spec in specs if spec.get("network") == network]
        assert {spec.get("classes") for spec in own} == {None, 2, 5}
        assert {spec.get("label_noise") for spec in own} == {0, 0.2, 0.5, 1}
        assert {spec.get("shuffle_pixels") for spec in own} == {False, True}


@pytest.mark.parametrize("name", ["cifar10", "fashion-mnist"])
def test_the_studies_on_real_images_have_what_each_claim_asks_for(name):
    specs = PLANS[name].specs
    assert {spec.get("data") for spec in specs} == {name}
    assert {spec.make for spec in specs} == {("train", "measure", "reset")}
    assert {dict(spec.reset)["kinds"] for spec in specs} == {("conv", "linear")}
    for network, width in (("lenet", 1), ("vgg11", 0.25), ("vgg11_bn", 0.25), ("mlp", 0.125)):
        own = [spec for spec in specs if spec.get("network") == network]
        assert {spec.get("width") for spec in own} == {width}
        varied = ("classes", "label_noise", "labels", "shuffle_pixels")
        seeds: dict[tuple[Any, ...], list[int]] = {}
        for spec in own:
            seeds.setdefault(tuple(map(spec.get, varied)), []).append(spec.get("seed"))
        assert {key: sorted(of) for key, of in seeds.items()} == {
            (None, 0, "given", False): [0, 1, 2, 3, 4],
            (2, 0, "given", False): [0, 1, 2],
            (None, 0.2, "given", False): [0, 1, 2],
            (None, 0.5, "given", False): [0, 1, 2],
            (None, 0, "random", False): [0, 1, 2],
            (None, 0, "given", True): [0, 1, 2],
        }


def test_a_study_that_is_to_be_reset_too_goes_on_with_what_was_trained(tmp_path):
    text = (FOLDER / "cifar10.yaml").read_text(encoding="utf-8")
    before = text.replace("\nmake: [train, measure, reset]\n", "\nmake: [train, measure]\n")
    assert before != text
    (tmp_path / "before.yaml").write_text(before, encoding="utf-8")
    first_part = read_plan(tmp_path / "before.yaml").specs
    record = RunRecord(name="x", made={"train": 1.0, "measure": 1.0})
    for first, second in zip(first_part, PLANS["cifar10"].specs, strict=True):
        assert first.name == second.name
        assert record.missing(second, in_table=True) == ["reset", "measure"]
        assert record.missing(first, in_table=True) == []


def test_resets_from_before_an_option_was_there_are_not_made_anew():
    spec = PLANS["cifar10"].specs[0]
    made = {"train": 1.0, "reset": 1.0, "measure": 1.0}
    had = json.loads(json.dumps(dict(spec.reset)))
    assert had.pop("precision") == "32-true"
    assert RunRecord(name="x", made=made, reset=had).missing(spec, in_table=True) == []
    in_bfloat16 = replace(spec, reset=(*had.items(), ("precision", "bf16-mixed")))
    missing = RunRecord(name="x", made=made, reset=had).missing(in_bfloat16, in_table=True)
    assert missing == ["reset", "measure"]


def test_what_is_kept_of_a_study_is_read_as_the_study_is(tmp_path):
    study = FOLDER / "results" / "drift"
    (tmp_path / "a" / "table").mkdir(parents=True)
    for source in sorted((study / "runs").iterdir())[:2]:
        run = Run(tmp_path / "a" / "runs" / source.name)
        shutil.copytree(source, run.path)
        table.write_part(run, source.name, tmp_path / "a" / "table")
    shutil.copyfile(study / "study.yaml", tmp_path / "a" / "study.yaml")
    runpy.run_path(str(FOLDER / "keep.py"))["keep"](tmp_path / "a", tmp_path / "b")
    whole, kept = (Study(tmp_path / name) for name in "ab")
    # Its rows are not kept: they are made of the runs' own files.
    assert not kept.table_folder.exists()
    pd.testing.assert_frame_equal(whole.table(), kept.table())
    assert whole.status.done == kept.status.done == len(kept.runs) == 2
    for run in whole.runs:
        again = kept.run(run.path.name)
        assert again.measured_layers == run.measured_layers
        assert again.metrics == run.metrics


def test_rows_are_made_of_runs_that_were_measured_and_of_no_others(tmp_path):
    """One that is being trained has measurements too, and is in no table before it is whole."""
    study = FOLDER / "results" / "drift"
    shutil.copyfile(study / "study.yaml", tmp_path / "study.yaml")
    first, second = sorted((study / "runs").iterdir())[:2]
    for source in (first, second):
        shutil.copytree(source, tmp_path / "runs" / source.name)
    record = tmp_path / "runs" / second.name / "study.json"
    made = json.loads(record.read_text(encoding="utf-8"))
    del made["made"]["measure"]
    record.write_text(json.dumps(made), encoding="utf-8")
    found = Study(tmp_path)
    assert set(found.table()["run"]) == {first.name}
    assert found.status.done == 1


def test_the_figure_at_full_width_differs_in_width_device_and_resets_alone():
    narrow, full = PLANS["paper-figure"].specs, PLANS["paper-figure-full"].specs
    aside = {"width", "accelerator", "threads", "download"}
    for one, other in zip(narrow, full, strict=True):
        assert {k: v for k, v in one.settings if k not in aside} == {
            k: v for k, v in other.settings if k not in aside
        }
        assert (other.get("width"), other.get("accelerator")) == (1.0, "cuda")
        assert other.make == ("train", "measure", "reset")


def test_the_free_runs_of_the_causal_test_are_the_plain_ones_on_cifar10():
    plain = {s.name for s in PLANS["cifar10"].specs if re.match(r"lenet-cifar10-s\d", s.name)}
    free = {s.name for s in PLANS["centred"].specs if not s.get("centred")}
    assert free == plain
    assert len(PLANS["centred"].specs) == 2 * len(free)


def test_the_page_of_the_causal_test_says_what_its_tables_do():
    page = (FOLDER.parent / "docs" / "results" / "drift.md").read_text(encoding="utf-8")
    losses: dict[str, dict[str, list[float]]] = {"free": {}, "centred": {}}
    masses: dict[str, list[float]] = {}
    for run in Study(FOLDER / "results" / "centred").runs:
        resets = ps.Resets.load(run.resets)
        side = "centred" if run.config.centred else "free"
        losses[side].setdefault("accuracy", []).append(resets.trained.value)
        for layer in resets.layers:
            if layer.kind == "conv" and layer.negative_mass is not None:
                masses.setdefault(layer.name, []).append(layer.negative_mass)
        for cell in resets.cells:
            if cell.layer.startswith("features"):
                assert cell.critical == "yes"
                losses[side].setdefault(cell.layer, []).append(cell.loss)
    for side, found in losses.items():
        accuracies = ", ".join(f"{value:.2f}" for value in found.pop("accuracy"))
        assert f"| {side} | {accuracies} |" in page
    for number, layer in enumerate(masses, 1):
        cells = (
            f"{statistics.mean(of[layer]):.2f} ({min(of[layer]):.2f} to {max(of[layer]):.2f})"
            for of in losses.values()
        )
        mass = statistics.mean(masses[layer])
        assert f"| {number} | {mass:.2f} | {' | '.join(cells)} |" in page


def test_without_a_gpu_the_command_for_one_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    given = [str(FOLDER / "paper-figure-full.yaml"), "--keep", str(tmp_path / "kept")]
    monkeypatch.setattr("sys.argv", ["on_gpu.py", *given])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(FOLDER / "on_gpu.py"), run_name="__main__")
    assert ended.value.code == 2
    assert "nvidia-smi shows no GPU here" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_the_command_for_a_gpu_keeps_what_a_study_made(tmp_path):
    (tmp_path / "tiny.yaml").write_text(
        "schema: planescope.study/1\n"
        "base: {network: vgg19, data: digits, width: 0.0625, resize: pad-32, examples: 64,"
        " batch_size: 32, epochs: 1, accelerator: cpu, threads: 1, snapshots_until: 1}\n"
        "grid: [{seeds: 2}]\n"
        "make: [train, measure, reset]\nreset: {snapshots: [0], subset: 32}\n"
    )
    command = [sys.executable, str(FOLDER / "on_gpu.py"), "tiny.yaml", "--keep", "kept"]
    done = subprocess.run(
        [*command, "--without-gpu"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "2 of 2 runs made" in done.stdout
    kept = Study(tmp_path / "kept")
    assert len(kept.runs) == 2
    assert all(run.resets.is_file() for run in kept.runs)


def test_claims_of_kept_tables_have_the_relation_that_the_weights_gave(tmp_path):
    study = FOLDER / "results" / "cifar10"
    kept = claims(study).relation
    assert kept == Relation.load(study / "relation.json")
    assert {layer.run for layer in kept.layers} <= {
        path.name for path in (study / "runs").iterdir()
    }
    shutil.copytree(study, tmp_path / "study")
    (tmp_path / "study" / "relation.json").unlink()
    with pytest.raises(UsageError, match="kept without their weights"):
        claims(tmp_path / "study")


def test_runs_with_weights_join_the_relation_of_those_whose_tables_alone_are_kept(tmp_path):
    """A study that goes on from its kept tables, on another machine, say."""
    plan = tmp_path / "a.yaml"
    plan.write_text(
        "base: {epochs: 2, snapshots_until: 0, accelerator: cpu}\n"
        "make: [train, measure, reset]\nreset: {snapshots: [0], subset: 200}\nseeds: 2\n",
        encoding="utf-8",
    )
    study = make_study(plan, tmp_path / "a", workers=1)
    keep = runpy.run_path(str(FOLDER / "keep.py"))["keep"]
    keep(tmp_path / "a", tmp_path / "b")
    first, second = (run.path.name for run in study.runs)
    wanted = Relation.load(tmp_path / "b" / "relation.json")
    of_first = replace(
        wanted, runs=(first,), layers=tuple(x for x in wanted.layers if x.run == first)
    )
    of_first.save(tmp_path / "b" / "relation.json")
    shutil.rmtree(tmp_path / "b" / "runs" / second)
    shutil.copytree(tmp_path / "a" / "runs" / second, tmp_path / "b" / "runs" / second)
    keep(tmp_path / "b", tmp_path / "c")
    found = Relation.load(tmp_path / "c" / "relation.json")
    assert found.runs == wanted.runs
    for layer, same in zip(found.layers, wanted.layers, strict=True):
        assert replace(layer, scores={}) == replace(same, scores={})
        assert {**layer.scores, "random": 0} == {**same.scores, "random": 0}
    wanted_rho, found_rho = (one.at("agreement", "all").rho for one in (wanted, found))
    assert found_rho == wanted_rho


def test_held_out_networks_are_of_other_seeds_architectures_and_data():
    fitted = {(s.get("network"), s.get("data"), s.get("seed")) for s in PLANS["scores"].specs}
    held_out = {(s.get("network"), s.get("data"), s.get("seed")) for s in PLANS["held-out"].specs}
    assert not fitted & held_out
    for part in range(3):
        assert {run[part] for run in held_out} - {run[part] for run in fitted}


def test_every_study_of_the_paper_is_estimated_whole():
    for name, plan in PLANS.items():
        if name.startswith("paper-"):
            hours = [estimate(plan.specs, device) for device in (THREAD, GPU)]
            assert all(one.unknown == 0 and one.hours > 0.2 for one in hours)
            said = forecast(FOLDER / f"{name}.yaml").sentence
            assert "on one GPU at 10 TFLOP/s, half an A100's peak" in said
            assert f"{len(plan.specs)} runs, 0 done." in said


@pytest.mark.parametrize(
    ("network", "pixels", "classes", "operations"),
    [
        # Multiplications and additions as torchvision's documentation of the weights has them.
        ("vgg11", 224, 1000, 7.61e9),
        ("vgg16", 224, 1000, 15.47e9),
        ("vgg19_bn", 224, 1000, 19.63e9),
        ("alexnet", 224, 1000, 0.71e9),
    ],
)
def test_operations_are_those_that_torchvision_states(network, pixels, classes, operations):
    ours = forward_flops(network, channels=3, pixels=pixels, classes=classes)
    assert ours / 2 == pytest.approx(operations, rel=0.01)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The data sets in their true forms, small."""
    root = tmp_path_factory.mktemp("data")
    put_cifar10(root, count=20)
    for name, count in (("train", 200), ("test", 100)):
        labels = [n % 100 for n in range(count)]
        content = {b"data": random_bytes(count, 3072), b"fine_labels": labels}
        put(root / "cifar-100-python" / name, pickle.dumps(content, 2))
    for prefix in ("train", "t10k"):
        put_mnist(root / "MNIST" / "raw", count=40, prefix=prefix)
    put_folder(root, classes=[f"n{number:08}" for number in range(100)], each=1)
    return root


def of_each_kind(plan: Plan) -> list[Spec]:
    """Runs that together have every network and every option of a study."""
    seen: set[tuple[str, Any]] = set()
    chosen = []
    for spec in plan.specs:
        if not features(spec) <= seen:
            seen |= features(spec)
            chosen.append(spec)
    return chosen


def two_steps(spec: Spec, data: Path, draws: int) -> Spec:
    """The same run cut to two steps, narrow."""
    cut: dict[str, Any] = {"examples": 4, "batch_size": 2, "epochs": 1, "width": 1 / 32}
    cut |= {"threads": 1, "workers": 0, "accelerator": "cpu", "data_path": str(data)}
    if spec.get("data") == "imagenet":
        cut["classes"] = spec.get("classes") and 10
    elif "digits" in spec.get("data"):  # real ones, of which hundreds validate
        cut |= {"examples": 200, "batch_size": 100}
    settings = {**dict(spec.settings), **cut}
    settings = {k: v for k, v in settings.items() if v != DEFAULTS[k]}
    reset = {**dict(spec.reset), "subset": 2, "draws": draws}
    return replace(spec, settings=tuple(settings.items()), reset=tuple(reset.items()))


@pytest.mark.slow
# Of the others `make slow`.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=() if n in ("held-out", "paper-mnist") else pytest.mark.long)
        for n in PLANS
        if n == "held-out" or n.startswith("paper-")
    ],
)
def test_each_network_and_option_of_a_study_runs(name, data, tmp_path):
    study = Study.create(tmp_path, PLANS[name])
    for index, spec in enumerate(of_each_kind(PLANS[name])):
        draws = 1 if index == 0 and dict(spec.reset)["draws"] else 0
        record = make_run(two_steps(spec, data, draws), str(tmp_path))
        assert (record.name, record.error) == (spec.name, "")
        assert set(record.made) == {"train", "measure", *({"reset"} & set(spec.make))}
        assert study.run(spec.name).metrics[-1].epoch == 1
    assert index >= 3 or name.startswith("paper-figure")  # one network, five seeds
