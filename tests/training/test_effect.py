"""That it is the paper's effect: networks trained here, for real, with seeds that nobody chose."""

from __future__ import annotations

import math

import pytest
from safetensors.numpy import load_file
from scipy.stats import binomtest, false_discovery_control

import planescope as ps
from planescope.networks.build import build
from planescope.training.config import RunConfig
from planescope.training.loop import train

SEEDS = (0, 1)
EPOCHS = 7


@pytest.mark.parametrize("name", ["lenet", "vgg11"])
def test_at_initialisation_hardly_a_network_has_a_layer_called_biased(name):
    # Benjamini-Hochberg at 0.05: under chance a network has a layer called biased with probability
    # at most 0.05. Of 60 networks 10 or more have one with probability below 1e-3 (binomial).
    networks = [build(name, width=0.25, seed=seed) for seed in range(60)]
    called = sum(ps.measure(network).network.biased_layers > 0 for network in networks)
    assert called < 10


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs of a LeNet on the digits, one a seed."""
    folder = tmp_path_factory.mktemp("runs")
    return [train(RunConfig(epochs=EPOCHS, seed=seed), folder / str(seed)) for seed in SEEDS]


@pytest.mark.slow
def test_after_training_the_last_convolution_faces_away_from_the_orthant(trained):
    # With seed 1 torch 2.6 rounds so that the loss stays where it is for longer: seven epochs give
    # an accuracy of 0.78 and a mass of 0.72, where torch 2.14 comes to more than 0.9.
    for run in trained:
        assert run.metrics[-1].val_accuracy > 0.5
        last = ps.measure(run.snapshots[EPOCHS]).layers[-1]
        assert last.name == "features.12"
        # Chance turns both last layers away as far with probability (0.01 / 2)^2 = 2.5e-5.
        assert last.negative_mass > 0.5
        assert last.p_mass < 0.01


@pytest.mark.slow
def test_the_bias_comes_with_learning_not_with_the_initialisation(trained):
    for run in trained:
        table = run.measurements
        last = table[table.layer == "features.12"].set_index("epoch").negative_mass
        # N = 64: chance gives a mass outside [0.25, 0.75] with probability 7e-5.
        assert 0.25 <= last[0] <= 0.75
        assert last[EPOCHS] > last[0] + 0.15


@pytest.mark.slow
def test_random_labels_are_measured_as_found(tmp_path):
    config = RunConfig(epochs=1, label_noise=1.0)
    run = train(config, tmp_path / "noise")
    # With every label replaced by another class the right one is the only one never shown.
    assert run.metrics[-1].val_accuracy < 0.3
    weights = load_file(run.snapshots[1])
    measured = ps.measure(run.snapshots[1])
    # Counted one filter at a time, and tested by SciPy.
    p_values = []
    for layer in measured.layers:
        sums = [math.fsum(row.ravel()) for row in weights[f"{layer.name}.weight"]]
        negative = sum(total < 0 for total in sums)
        assert layer.negative_mass == negative / len(sums)
        p_values.append(binomtest(negative, len(sums)).pvalue)
        assert layer.p_mass == pytest.approx(p_values[-1], rel=1e-9)
    corrected = false_discovery_control(p_values)
    assert [layer.biased for layer in measured.layers] == [q < 0.05 for q in corrected]
