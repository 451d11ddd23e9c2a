"""The band of drift: what runs on noise reach, and which runs lie beyond it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from planescope.files.errors import UsageError
from planescope.study.claims.drift import Drift, drift_of, prediction


def table(**conditions: dict) -> pd.DataFrame:
    """Runs of one layer of 400 filters; each condition gives masses by seed, and its config."""
    rows = []
    for name, about in conditions.items():
        for seed, mass in enumerate(about["masses"]):
            config = {
                "network": "net", "width": 1.0, "data": "cifar10", "classes": np.nan, "examples": 9,
                "labels": "given", "label_noise": 0.0, "shuffle_pixels": False, "centred": False,
                "epochs": 2, "batch_size": 8, "optimiser": "sgd", "learning_rate": 0.1,
                "weight_decay": 0.0, "schedule": "cosine",
            } | {key: value for key, value in about.items() if key != "masses"}  # fmt: skip
            for epoch, value in ((0, 0.5), (2, mass)):
                rows.append(
                    {"run": f"{name}-{seed}", "epoch": epoch, "layer": "conv", "filters": 400,
                     "negative_mass": value, **config}
                )  # fmt: skip
    return pd.DataFrame(rows)


NOISE = {"masses": [0.80, 0.85, 0.90], "data": "noise:cifar10"}


def test_runs_are_held_against_the_prediction_of_one_more_run_on_noise():
    found = drift_of(table(noise=NOISE, plain={"masses": [0.87, 0.99, 0.5]}), study="made up")
    (layer,) = found.layers
    # Mean 0.85, standard deviation 0.05, Student's quantile of two degrees of freedom.
    half = stats.t.ppf(0.975, 2) * 0.05 * (1 + 1 / 3) ** 0.5
    assert (layer.low, layer.high) == pytest.approx((0.85 - half, 1.0))
    assert (layer.noise, layer.noise_runs) == (pytest.approx(0.85), 3)
    assert (layer.initial, layer.mass) == pytest.approx((0.5, (0.87 + 0.99 + 0.5) / 3))
    assert (layer.beyond, layer.runs) == (1, 3)
    assert found.sentence.startswith("1 of 3 masses lie beyond")
    assert "For 3 of them the band reaches 1, so that no turn away" in found.sentence
    few = drift_of(table(noise={**NOISE, "masses": [0.50, 0.51, 0.52]}, plain={"masses": [0.9]}))
    assert "reaches 1" not in few.sentence


def test_runs_that_happen_to_agree_do_not_make_a_band_without_width():
    low, high = prediction([0.75, 0.75, 0.75], filters=16)
    share = (0.75 * 48 + 1) / 50
    half = stats.t.ppf(0.975, 2) * (share * (1 - share) / 16) ** 0.5 * (4 / 3) ** 0.5
    assert (low, high) == pytest.approx((0.75 - half, min(1.0, 0.75 + half)))
    assert prediction([1.0, 1.0, 1.0], filters=16)[0] < 1


def test_random_labels_are_a_condition_and_centred_filters_have_no_mass_to_compare():
    whole = table(
        noise=NOISE,
        random={"masses": [0.9], "labels": "random"},
        centred={"masses": [0.5], "centred": True},
    )
    found = drift_of(whole)
    assert [layer.condition for layer in found.layers] == ["random labels"]
    assert found.notes == ("1 run with centred filters is left out: these have no side",)


@pytest.mark.parametrize(
    "other",
    [{"masses": [0.9], "epochs": 3}, {"masses": [0.9], "learning_rate": 0.2}],
    ids=["epochs", "rate"],
)
def test_runs_on_noise_that_were_trained_otherwise_make_no_band(other):
    with pytest.raises(UsageError, match="has no network with 3 runs on noise"):
        drift_of(table(noise=NOISE, plain=other))


def test_two_runs_on_noise_are_too_few_and_this_is_said(tmp_path):
    few = {"masses": [0.8, 0.9], "data": "noise:cifar10"}
    whole = pd.concat(
        [
            table(noise=NOISE, plain={"masses": [0.9]}),
            table(few={**few, "network": "other"}, own={"masses": [0.9], "network": "other"}),
        ]
    )
    found = drift_of(whole)
    assert found.notes == ("other: 2 runs on noise, and 3 are needed for a band",)
    found.save(tmp_path / "drift.json")
    assert Drift.load(tmp_path / "drift.json") == found
