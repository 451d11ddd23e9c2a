"""Which layers are critical, by a fitted model: calibrated, honest about its reach, and shipped."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import planescope as ps
from planescope.criticality.fitting import fit_relation
from planescope.criticality.prediction import FEATURES, CriticalModel, features_of, shipped_model
from planescope.criticality.relate import relate_layers
from planescope.criticality.relation import RelatedLayer, Relation
from planescope.criticality.scores import SCORES
from planescope.files.errors import CheckpointError, UsageError
from planescope.hyperplanes.layer import Kind

TRAINED = "tests/parity/lenet-epoch-12.tar"


def simulated(rng, runs, *, weight=6.0) -> Relation:
    """Runs of five layers whose odds of being critical are `weight` (agreement - 1/2)."""
    layers = []
    for run in range(runs):
        for i in range(5):
            agreement = float(rng.random())
            critical = bool(rng.random() < 1 / (1 + np.exp(-weight * (agreement - 0.5))))
            scores = dict.fromkeys(SCORES, None) | {
                "agreement": agreement,
                "mean_cosine": float(rng.normal() / 10),
                "abs_z": float(rng.exponential(3)),
                "position": i / 4,
                "random": float(rng.random()),
            }
            drop = 0.5 if critical else 0.01
            layers.append(
                RelatedLayer(
                    run=f"run{run}",
                    network="net",
                    name=f"conv{i}",
                    kind=Kind.CONV,
                    first=i == 0,
                    biased=None,
                    drop=drop,
                    drop_low=drop,
                    drop_high=drop,
                    critical=critical,
                    robust=not critical,
                    scores=scores,
                )
            )
    return relate_layers(layers, draws=99)


@pytest.fixture(scope="module")
def model() -> CriticalModel:
    rng = np.random.default_rng(0)
    return fit_relation(simulated(rng, 80), simulated(rng, 80), data=["made up"])


def test_a_planted_law_is_found_and_calibrated(model):
    # 400 layers held out; the slope's standard error is about 0.15: five of them on either side
    # fail by chance in less than one of a million.
    tried = model.held_out
    assert tried.calibration_slope == pytest.approx(1.0, abs=0.75)
    assert tried.brier < tried.brier_of_position - 0.02
    assert tried.auc > 0.7
    assert model.cross_validated.brier == pytest.approx(tried.brier, abs=0.06)


def test_probabilities_rise_with_what_was_planted(model):
    low, high = (np.array([[agreement, 0.05, 1.0, 0.0, 0.0, 0.5, 0.0]]) for agreement in (0.1, 0.9))
    assert model.probabilities(low)[0] < 0.3 < 0.7 < model.probabilities(high)[0]


def test_probabilities_are_the_logistic_function_by_hand():
    plain = dataclasses.replace(
        shipped_model(),
        centre=(0.0,) * 7,
        scale=(1.0,) * 7,
        coefficients=(2.0, 0, 0, 0, 0, 0, 0),
        intercept=-1.0,
    )
    rows = np.zeros((3, 7))
    rows[:, 0] = 0.5, 1.0, 1e6  # odds 0, 1 and endless
    expected = [0.5, 1 / (1 + np.exp(-1.0)), 1.0]
    assert plain.probabilities(rows) == pytest.approx(expected)


def test_what_lies_beyond_99_percent_of_the_fitted_layers_is_far(model):
    near = np.array([[0.5, 0.08, 1.1, 0.0, 0.0, 0.5, 0.0]])
    assert model.far(np.concatenate([near, near + 50])).tolist() == [False, True]


def test_a_saved_model_predicts_the_same(model, tmp_path):
    model.save(tmp_path / "m.json")
    assert CriticalModel.load(tmp_path / "m.json") == model


def test_the_shipped_model_says_what_it_was_fitted_on_and_was_tried_on_others():
    model = shipped_model()
    assert model.features == FEATURES
    assert model.cross_validated.runs >= 50
    assert model.held_out is not None
    assert model.held_out.runs >= 5
    assert model.fitted_on.startswith(f"Fitted on {model.cross_validated.runs} runs (")


def test_a_checkpoint_gets_a_probability_a_layer():
    found = ps.predict_critical(ps.measure(TRAINED, network="lenet"))
    assert [layer.name for layer in found.layers][-1] == "features.12"
    assert all(0 <= layer.probability <= 1 for layer in found.layers)
    assert found.fitted_on == shipped_model().fitted_on


def test_features_are_those_of_the_measurement():
    measured = ps.measure(TRAINED, network="lenet")
    rows = features_of(measured)
    last = measured.layers[-1]
    expected = (last.agreement, abs(last.mean_cosine), np.log1p(abs(last.z)), 0, 0, 1, 0)
    assert rows[-1] == pytest.approx(expected)
    assert rows[:, -1].tolist() == [1, 0, 0, 0, 0, 0]


def test_a_layer_without_filters_has_no_probability():
    rng = np.random.default_rng(0)
    weights = {"a": np.zeros((4, 3, 3, 3)), "b": rng.normal(size=(4, 4, 3, 3))}
    found = ps.predict_critical(ps.measure(weights))
    assert [layer.probability is None for layer in found.layers] == [True, False]


def test_a_network_far_from_those_fitted_gets_a_warning():
    rng = np.random.default_rng(0)
    deep = {f"conv{i}": rng.normal(size=(8, 8, 3, 3)) + 1 for i in range(60)}
    found = ps.predict_critical(ps.measure(deep))
    assert any("60 layers were measured, and the model was fitted on" in n for n in found.notes)
    assert any("are unlike those that the model was fitted on" in n for n in found.notes)


def test_the_effective_view_gets_a_warning():
    measured = ps.measure(TRAINED, network="lenet", view="effective")
    assert any("raw view" in note for note in ps.predict_critical(measured).notes)


def test_too_few_or_equal_runs_cannot_be_fitted():
    with pytest.raises(UsageError, match="3 runs are too few to fit a model to; give 10 or more"):
        fit_relation(simulated(np.random.default_rng(0), 3), data=[])
    with pytest.raises(UsageError, match="all layers are alike"):
        fit_relation(_none_critical(), data=[])


def _none_critical() -> Relation:
    relation = simulated(np.random.default_rng(0), 12)
    layers = [dataclasses.replace(x, critical=False) for x in relation.layers]
    return relate_layers(layers, draws=99)


def shipped(**changes: object) -> str:
    """The model that comes with the package, changed."""
    text = (Path(ps.__file__).parent / "criticality" / "critical-model.json").read_text(
        encoding="utf-8"
    )
    return json.dumps(json.loads(text) | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "its schema is None"),
        ("[]", "its schema is None"),
        ('{"schema": "planescope.critical-model/1"}', "holds no whole model"),
        ("nothing", "holds no model"),
        (shipped(scale=[0.0] * len(FEATURES)), "it has a scale that is 0 or too small"),
        (shipped(intercept=-1e300), "it has a number beyond all measure"),
        (shipped(centre=[0.0]), "its numbers are not one a feature"),
        (shipped(intercept="none"), "the intercept of a CriticalModel is 'none'"),
        (shipped(features=["other"]), "its features are others"),
    ],
)
def test_a_damaged_model_is_refused(text, message, tmp_path):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        CriticalModel.load(tmp_path / "m.json")


def predict(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "planescope", *args], capture_output=True, text=True, timeout=300
    )


def test_the_command_prints_a_table_and_json(tmp_path):
    done = predict("predict", TRAINED, "--network", "lenet", "--out", str(tmp_path / "p.csv"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "features.12" in done.stdout
    assert "Fitted on" in done.stdout
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 7
    done = predict("predict", TRAINED, "--network", "lenet", "--json")
    found = json.loads(done.stdout, parse_constant=pytest.fail)
    assert found["schema"] == "planescope.critical/1"
    assert found["layers"][0]["name"] == "features.0"


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("predict", "missing.pt"), "missing.pt"),
        (("predict", TRAINED, "--model", "missing.json"), "missing.json: cannot be read"),
        (("fit", "missing", "--out", "m.json"), "missing: is no run"),
        (("fit", "missing", "--out", "m.txt"), "must end in"),
    ],
)
def test_bad_input_gives_a_sentence_and_status_2(args, sentence):
    done = predict(*args)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
