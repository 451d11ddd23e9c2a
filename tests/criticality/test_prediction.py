"""Which layers are critical, without labels: what is counted, and what is said of it."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import planescope as ps
from planescope.cli.app import app
from planescope.criticality.prediction import Prediction, cuts
from planescope.files.errors import CheckpointError, NoLayersError, UsageError

torch = pytest.importorskip("torch")
nn = torch.nn

TRAINED = "tests/parity/lenet-epoch-12.tar"
START = "tests/parity/lenet-epoch-0.pt"
IMAGES = torch.randn(300, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 3


def drawn(seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, 4),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def start():
    return drawn(0).state_dict()


@pytest.fixture(scope="module")
def network():
    """Sure of all its four classes; its first layer has moved a long way, its second hardly."""
    made, others = drawn(0), drawn(1)
    with torch.no_grad():
        made[0].weight += 2 * others[0].weight
        made[4].weight += 0.02 * others[4].weight
        made[8].weight *= 30
        made[8].bias -= made(IMAGES).mean(0)
    return made


def outputs(network, images, **tensors):
    own = copy.deepcopy(network)
    own.load_state_dict({**own.state_dict(), **tensors})
    with torch.no_grad():
        return own(images)


def put_back(start, layer):
    return {name: start[name] for name in (f"{layer}.weight", f"{layer}.bias")}


def test_the_expected_loss_is_that_of_the_plain_loop(network, start):
    before = copy.deepcopy(network.state_dict())
    labels = torch.zeros(len(IMAGES), dtype=torch.long)  # which nobody looks at
    found = ps.predict_critical(network, init=start, data=(IMAGES, labels), kinds="all")
    p = outputs(network, IMAGES).softmax(1).double()
    surest = p.max(1).values
    assert found.method == "unlabelled"
    assert [layer.name for layer in found.layers] == ["0", "4", "8"]
    for layer in found.layers:
        answers = outputs(network, IMAGES, **put_back(start, layer.name)).argmax(1)
        share = 1 - float(p.gather(1, answers[:, None]).sum() / surest.sum())
        assert layer.score == pytest.approx(share, rel=1e-4, abs=1e-6)
        assert layer.loss == pytest.approx(share / (1 - 0.25 / float(surest.mean())), abs=1e-5)
        assert layer.lower <= layer.loss <= layer.upper
        by_definition = "yes" if layer.lower > 0.1 else "no" if layer.upper < 0.1 else "undecided"
        assert layer.critical == by_definition
    assert (found.layers[0].critical, found.layers[1].critical) == ("yes", "no")
    assert found.expected == pytest.approx(float(surest.mean()))
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())


def test_chance_is_what_the_user_knows(network, start):
    told = ps.predict_critical(network, init=start, data=IMAGES, chance=0.5).layers[0]
    plain = ps.predict_critical(network, init=start, data=IMAGES).layers[0]
    mean = outputs(network, IMAGES).softmax(1).max(1).values.double().mean()
    ratio = (1 - 0.25 / float(mean)) / (1 - 0.5 / float(mean))
    assert told.loss == pytest.approx(plain.loss * ratio, rel=1e-5)


def test_synthetic_inputs_rank_and_have_no_loss(network, start):
    # The second layer as it never moved: it costs nothing.
    own = {**start, **{name: t for name, t in network.state_dict().items() if name[0] == "4"}}
    found = ps.predict_critical(network, init=own, input_shape=(1, 8, 8))
    first, second = found.layers
    assert found.method == "synthetic"
    assert (second.score, second.critical) == (0, "no")
    assert first.score > 0
    assert first.critical == cuts.verdict(first.score)
    assert (first.loss, first.lower, first.upper) == (None, None, None)
    # The cuts were tried on other sizes and numbers of classes, which is said.
    assert any("4 classes and pictures of 8×8" in note for note in found.notes)


@pytest.mark.parametrize(
    ("score", "critical"),
    [(0.0, "no"), (cuts.LOWER, "undecided"), (cuts.UPPER, "undecided"), (1.0, "yes")],
)
def test_the_cuts_leave_what_lies_between_undecided(score, critical):
    assert cuts.verdict(score) == critical


def test_a_fresh_draw_is_told_from_the_own_initialisation(network, start):
    def notes(init):
        found = ps.predict_critical(network, init=init, data=IMAGES)
        return [note for note in found.notes if "fresh draw" in note]

    assert notes(start) == []
    assert len(notes(drawn(7).state_dict())) == 1


def test_layers_that_the_initialisation_has_not_are_left_out_by_name(network, start):
    other_head = {**start, "8.weight": torch.zeros(7, 32), "8.bias": torch.zeros(7)}
    found = ps.predict_critical(network, init=other_head, data=IMAGES, kinds="all")
    assert [layer.name for layer in found.layers] == ["0", "4"]
    assert [(one.name, one.reason) for one in found.skipped] == [
        ("8", "init has no 8.weight of its shape")
    ]


def test_the_weights_alone_have_their_agreement_and_no_verdict():
    found = ps.predict_critical(TRAINED, network="lenet")
    measured = ps.measure(TRAINED, network="lenet")
    assert (found.method, found.network) == ("weights", "lenet")
    assert [layer.score for layer in found.layers] == [x.agreement for x in measured.layers]
    assert {(x.loss, x.lower, x.upper, x.critical) for x in found.layers} == {(None,) * 4}
    assert len(found.notes) == 1
    assert ps.predict_critical(measured).layers == found.layers


def test_linear_layers_are_taken_where_there_is_nothing_else():
    rng = np.random.default_rng(0)
    weights = {"a.weight": rng.normal(size=(8, 5)), "b.weight": np.zeros((4, 8))}
    found = ps.predict_critical(weights)
    assert [layer.name for layer in found.layers] == ["a"]
    assert [(one.name, one.reason) for one in found.skipped] == [
        ("b", "no filter of it faces a side: it has no agreement")
    ]


def test_outputs_that_are_no_classes_have_no_verdict():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 1))
    start = {name: tensor * 0.5 for name, tensor in network.state_dict().items()}
    for data in (IMAGES, None):
        found = ps.predict_critical(network, init=start, data=data)
        assert all(layer.score > 0 for layer in found.layers)
        assert {(layer.loss, layer.critical) for layer in found.layers} == {(None, None)}
        assert any("no classes" in note for note in found.notes)


def test_files_hold_what_was_found(network, start, tmp_path):
    found = ps.predict_critical(network, init=start, data=IMAGES)
    found.save(tmp_path / "p.json")
    assert Prediction.load(tmp_path / "p.json") == found
    data = json.loads((tmp_path / "p.json").read_text(), parse_constant=pytest.fail)
    assert data["schema"] == "planescope.prediction/1"
    assert set(data["layers"][0]) == {
        "name", "kind", "score", "loss", "lower", "upper", "critical",
    }  # fmt: skip
    jsonschema = pytest.importorskip("jsonschema")
    schema = (files("planescope.files") / "schemas" / "prediction-1.json").read_text("utf-8")
    for one in (found, ps.predict_critical(TRAINED, network="lenet")):
        jsonschema.validate(one.to_dict(), json.loads(schema))
    found.save(tmp_path / "p.csv")
    head = "schema,path,method,layer,kind,score,loss,lower,upper,critical"
    assert (tmp_path / "p.csv").read_text().splitlines()[0] == head


def test_a_dry_run_tells_the_cells(network, start):
    cost = ps.predict_critical(network, init=start, data=IMAGES, dry_run=True)
    assert (cost.layers, cost.cells, cost.inputs) == (2, 2, 300)


@pytest.mark.parametrize(
    ("command", "schema", "cells"),
    [
        (["predict", TRAINED, "--init", START], "prediction", {"layers": 6, "cells": 6}),
        (["sensitivity", TRAINED, "--ways", "bits:3,bits:2"], "sensitivity", {"cells": 12}),
        (["plan", TRAINED, "--size", "0.5"], "plan", {"tries": 6}),
    ],
    ids=["predict", "sensitivity", "plan"],
)
def test_a_dry_run_as_json_is_a_record(command, schema, cells, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(300, 1, 28, 28)))
    told = ["--network", "lenet", "--inputs", str(tmp_path / "x.npy"), "--dry-run", "--json"]
    done = CliRunner().invoke(app, [*command, *told])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["schema"] == f"planescope.{schema}-forecast/1"
    assert found["source"] == TRAINED
    assert found["seconds"] > 0
    assert found.items() >= cells.items()


def with_value(state, value):
    changed = copy.deepcopy(state)
    changed["0.weight"][0] = value
    return changed


def test_bad_input_is_a_sentence(network, start, tmp_path):
    def refused(error, sentence, model=network, **options):
        with pytest.raises(error, match=sentence):
            ps.predict_critical(model, **({"init": start} | options))

    refused(
        CheckpointError, "init'?: is of another network: it has no 0", init={"a": torch.zeros(3)}
    )
    refused(CheckpointError, "init: 0.weight holds values that are not finite",
            init=with_value(start, float("nan")))  # fmt: skip
    refused(UsageError, "equals its initialisation init in every layer", init=network)
    refused(UsageError, "all inputs are alike", data=torch.zeros(8, 1, 8, 8))
    refused(UsageError, "does not take its batches", data=torch.zeros(8, 3, 8, 8))
    refused(UsageError, "no layer is called 'x'", layers="x")
    refused(UsageError, "data needs init=", init=None, data=IMAGES)
    broken = copy.deepcopy(network)
    broken.load_state_dict(with_value(network.state_dict(), float("inf")))
    refused(CheckpointError, "0.weight holds values that are not finite", broken)
    refused(CheckpointError, "0 holds values that are not finite", broken, init=None)
    refused(NoLayersError, "no layer", nn.ReLU(), init=None)
    torch.save(network.state_dict(), tmp_path / "net.pt")
    refused(UsageError, "does not tell its network; give --network", tmp_path / "net.pt")


def test_the_name_of_a_data_set_is_no_folder_of_that_name(tmp_path, monkeypatch):
    """A study of the digits lies in a folder of their name, beside which one goes on working."""
    given = {"init": Path(START).resolve(), "network": "lenet", "examples": 40}
    trained, layers = Path(TRAINED).resolve(), "features.12"
    wanted = ps.predict_critical(trained, data="digits", layers=layers, **given)
    monkeypatch.chdir(tmp_path)
    Path("digits", "runs").mkdir(parents=True)
    found = ps.predict_critical(trained, data="digits", layers=layers, **given)
    assert found.layers == wanted.layers
    with pytest.raises(ps.CheckpointError, match="no valid file for the classes runs"):
        ps.predict_critical(trained, data="./digits", layers=layers, **given)


def test_one_input_has_no_interval_and_so_no_verdict(network, start):
    found = ps.predict_critical(network, init=start, data=IMAGES[:1])
    assert {(layer.lower, layer.upper, layer.critical) for layer in found.layers} == {
        (None, None, None)
    }
    assert any("few inputs (1)" in note for note in found.notes)


def predict(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "planescope", "predict", *args],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_the_command_takes_an_initialisation_and_inputs(tmp_path):
    images = np.random.default_rng(0).normal(size=(64, 1, 28, 28))
    np.save(tmp_path / "x.npy", images)  # of float64
    done = predict(
        TRAINED, "--network", "lenet", "--init", START, "--inputs", str(tmp_path / "x.npy"),
        "--examples", "50", "--json", "--out", str(tmp_path / "p.csv"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout, parse_constant=pytest.fail)
    assert (found["method"], found["inputs"], found["init"]) == ("unlabelled", 50, START)
    assert found["layers"][0]["critical"] in ("yes", "no", "undecided")
    assert any("cast to the network's float32" in note for note in found["notes"])
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 7


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("missing.pt",), "missing.pt"),
        ((TRAINED, "--network", "lenet", "--init", "missing.pt"), "missing.pt"),
        ((TRAINED, "--inputs", "digits"), "data needs init="),
    ],
)
def test_bad_options_give_a_sentence_and_status_2(args, sentence):
    done = predict(*args)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


_SEVERAL = """
import json, sys
from planescope.cli import _run
for args in json.loads(sys.argv[1]):
    sys.argv = ["planescope", *args]
    status = _run()
    print(status, flush=True)
    print("--", file=sys.stderr, flush=True)
"""


def test_each_bad_input_of_the_commands_is_one_sentence_and_status_2(tmp_path):
    """In one process, since each would load torch anew."""
    whole = torch.load(TRAINED, weights_only=True)
    held_in = (v for v in (whole, *whole.values()) if isinstance(v, dict))
    state = next(v for v in held_in if "features.0.weight" in v)
    broken = {**state, "features.2.weight": torch.full_like(state["features.2.weight"], np.nan)}
    for name, held in (("nan", broken), ("other", {"a.weight": torch.zeros(4, 3, 3, 3)})):
        torch.save(held, tmp_path / f"{name}.pt")
    rng = np.random.default_rng(0)
    arrays = {
        "colour": rng.normal(size=(8, 3, 28, 28)), "small": rng.normal(size=(8, 1, 3)),
        "alike": np.ones((8, 1, 28, 28)), "bytes": np.zeros((8, 1, 28, 28), np.uint8),
        "objects": np.array([{}, {}]), "hole": np.full((8, 1, 28, 28), np.nan, np.float32),
    }  # fmt: skip
    paths = {name: str(tmp_path / f"{name}.npy") for name in arrays}
    for name, array in arrays.items():
        np.save(paths[name], array)
    lenet, start = [TRAINED, "--network", "lenet"], ["--init", START]
    cases = [
        (["predict", *lenet, "--init", str(tmp_path / "other.pt")], "is of another network"),
        (["predict", TRAINED, *start], "give --network"),
        (["predict", *lenet, *start, "--inputs", paths["colour"]], "does not take its batches"),
        (["predict", *lenet, *start, "--inputs", paths["small"]], "does not take its batches"),
        (["predict", *lenet, *start, "--inputs", paths["alike"]], "all inputs are alike"),
        (["predict", *lenet, *start, "--inputs", paths["hole"]], "holds NaN or an infinity"),
        (["predict", *lenet, *start, "--inputs", paths["bytes"]], "scale them first"),
        (["predict", *lenet, *start, "--inputs", paths["objects"]], "cannot be read"),
        (["predict", START, "--network", "lenet", *start], "equals its initialisation"),
        (["predict", str(tmp_path / "nan.pt"), "--network", "lenet", *start], "not finite"),
        (["predict", *lenet, *start, "--input-shape", "3"], "give channels, height and width"),
        (["sensitivity", *lenet, "--ways", "shrink:0.5"], "shrink"),
        (["sensitivity", *lenet, "--ways", "prune:1.5"], "prune"),
        (["sensitivity", *lenet, "--memory", "much"], "give bytes, as in 500M or 4G"),
        (["sensitivity", TRAINED], "give --network"),
        (["sensitivity", str(tmp_path / "other.pt"), "--network", "torchvision:resnet18"],
         "the file has none of its weights; it lacks conv1.weight and has a.weight"),
        (["sensitivity", str(tmp_path / "nan.pt"), "--network", "lenet"], "not finite"),
        (["sensitivity", *lenet, "--inputs", "x.npy", "--data", "digits"], "not both"),
        (["repair", *lenet, "--reference", "x", "--inputs", "y", "--data", "z"], "not both"),
        (["repair", str(tmp_path / "nan.pt"), *lenet[1:], "--reference", TRAINED],
         "nan.pt: holds NaN or an infinity in features.2.weight"),
        (["repair", TRAINED, *lenet[1:], "--reference", str(tmp_path / "nan.pt")],
         "nan.pt: holds NaN or an infinity in features.2.weight"),
        (["plan", TRAINED, *lenet[1:], "--way", "reset", "--size", "0.5", "--to",
          str(tmp_path / "nan.pt")], "nan.pt: holds NaN or an infinity in features.2.weight"),
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", _SEVERAL, json.dumps([args for args, _ in cases])],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    said = done.stderr.split("--\n")
    for (args, sentence), status, text in zip(cases, done.stdout.split(), said, strict=False):
        assert (status, text.count("\n")) == ("2", 1), (args, status, text)
        assert text.startswith("planescope: "), (args, text)
        assert sentence in text, (args, text)
    assert len(done.stdout.split()) == len(cases), done.stderr
