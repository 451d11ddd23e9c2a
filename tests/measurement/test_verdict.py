"""The sentences about a network say first what can be concluded, and agree with its table."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import planescope as ps
from planescope.hyperplanes import chance
from planescope.hyperplanes.layer import Input
from planescope.measurement.verdict import finding, verdict

LENET = "tests/parity/lenet-epoch-12.tar"


def filters(away: int, toward: int, *, seed: int = 0) -> np.ndarray:
    """Make filters of which so many have a negative sum, and the rest a positive one."""
    rows = np.abs(np.random.default_rng(seed).normal(size=(away + toward, 3, 3, 3)))
    rows[:away] *= -1
    return rows.astype(np.float32)


@pytest.mark.parametrize(
    ("layers", "first"),
    [
        pytest.param({"a": filters(64, 0)}, "Holds in 1 of 1 layer: ", id="all-away"),
        pytest.param(
            {"a": filters(2, 2)}, "Undecided in 1 layer: ", id="four-filters-tell-nothing"
        ),
        pytest.param(
            {"a": np.random.default_rng(3).normal(size=(256, 3, 3, 3))},
            "Does not hold: none of 1 layer faces one way",
            id="many-filters-near-half",
        ),
    ],
)
def test_the_conclusion_comes_first(layers, first):
    assert ps.measure(layers).verdict.startswith(first)


def test_layers_called_by_a_number_are_not_read_as_counts():
    text = ps.measure({"0": filters(2, 2), "2": filters(64, 0), "fc1": filters(2, 2)}).verdict
    assert "most of all layer 2, with" in text
    assert "Undecided in layer 0 and fc1: too few filters to tell." in text


def test_behind_a_norm_the_centre_tells():
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(),
        torch.nn.Conv2d(8, 64, 3), torch.nn.BatchNorm2d(64), torch.nn.ReLU(),
    )  # fmt: skip
    torch.nn.init.constant_(net[3].bias, -0.5)  # its data lie on the side that the ReLU cuts off
    measured = ps.measure(net.eval(), kinds="all")
    layer = next(one for one in measured.layers if one.name == "2")
    assert not layer.biased
    assert finding(layer).by == {"centre": True}
    assert measured.verdict.startswith("Holds in 1 of 1 layer behind a ReLU: ")
    assert "by centre in 1; all away" in measured.verdict
    assert "with a negative centre in 1.000 of its filters" in measured.verdict


def test_cosines_tell_where_the_sides_are_even():
    # 32 filters lie along the diagonal and away from it, 32 a little toward: m = 1/2, z = -25.
    rows = np.random.default_rng(1).normal(size=(64, 3, 3, 3))
    rows[:32] = filters(32, 0)
    rows[32:] *= np.sign(rows[32:].sum(axis=(1, 2, 3), keepdims=True))
    measured = ps.measure({"a": rows})
    assert (measured.layers[0].negative_mass, measured.layers[0].biased) == (0.5, False)
    assert measured.verdict.startswith(
        "Holds in 1 of 1 layer: beyond chance (corrected p < 0.05) by cosine in 1; all away from"
    )
    assert f"z = {measured.layers[0].z:+.1f}" in measured.verdict


def test_layers_outside_the_theory_are_named_apart():
    measured = ps.measure(LENET, network="lenet")
    assert measured.layers[0].input is Input.IMAGE
    assert measured.verdict.startswith("Holds in 5 of 5 layers behind a ReLU: ")
    assert "features.0, whose input is an image; it is beyond chance." in measured.verdict
    assert verdict(measured.layers[:1]).startswith("Undecided: no layer that was measured lies")


def test_the_json_has_the_verdict_and_what_is_loaded_says_the_same(tmp_path):
    measured = ps.measure(LENET, network="lenet")
    assert json.loads(measured.to_json())["verdict"] == measured.verdict
    measured.save(tmp_path / "m.json")
    assert ps.load(tmp_path / "m.json").verdict == measured.verdict


def test_masses_lie_outside_the_tested_band_where_their_layers_are_biased_and_nowhere_else():
    torch.manual_seed(0)
    rows = {f"l{i}": filters(16 + i, 16 - i, seed=i) for i in range(13)}
    measured = ps.measure(rows)
    level = chance.called_level([layer.p_mass for layer in measured.layers])
    biased = [layer.biased for layer in measured.layers]
    assert 0 < sum(biased) < len(biased)
    for layer in measured.layers:
        low, high = chance.mass_band(layer.filters, level=1 - level)
        assert layer.biased == (not low <= layer.negative_mass <= high)


def test_a_result_prints_as_its_table_and_says_what_did_not_fit(monkeypatch):
    measured = ps.measure(LENET, network="lenet")
    monkeypatch.setenv("COLUMNS", "200")
    head, *_, verdict, note, left_out = str(measured).splitlines()
    assert head.split() == [
        *("layer", "filters", "fan_in", "negative_mass", "mean_cosine", "q_mass", "biased")
    ]
    assert measured.verdict in verdict
    assert (note, left_out) == (
        *measured.notes, "left out: 3 layers (a linear layer; measured with --kinds linear)",
    )  # fmt: skip
    monkeypatch.setenv("COLUMNS", "40")
    narrow = str(measured).splitlines()
    assert "left out at 40 columns: negative_mass, mean_cosine, q_mass, biased" in narrow[-4]
    assert all(len(line) <= 40 for line in narrow[:-4])
