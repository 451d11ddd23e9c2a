"""Resets where there are no data: synthetic pictures that the network is sure of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import planescope as ps
from planescope.files.errors import UsageError


@pytest.fixture(scope="module")
def networks():
    """Return a small network and its initialisation."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(6 * 5 * 5, 4),
    )  # fmt: skip
    init = {name: weight.clone() for name, weight in net.state_dict().items()}
    with torch.no_grad():
        for weight in net.parameters():
            weight += 0.3 * torch.randn_like(weight)
    return net, init


def test_no_data_are_synthetic_pictures_which_rank_layers_as_a_prediction_does(networks):
    net, init = networks
    state = torch.get_rng_state()
    resets = ps.reset(net, to={"init": init}, data=None, input_shape=(1, 16, 16))
    assert torch.equal(state, torch.get_rng_state())
    assert (resets.data, resets.split) == ("synthetic pictures of 1×16×16", "synthetic")
    assert resets.trained.value is None
    assert "On synthetic inputs" in resets.verdict
    assert any("is no loss of accuracy" in note for note in resets.notes)
    told = {"disagreement", "divergence", "relative_l2"}
    of_labels = {"value", "relative_drop", "loss", "critical", "expected_drop", "expected_loss"}
    for cell in resets.cells:
        assert all(getattr(cell, key) is not None for key in told)
        assert all(getattr(cell, key) is None for key in of_labels)
    predicted = ps.predict_critical(net, init=init, input_shape=(1, 16, 16))
    assert [cell.disagreement for cell in resets.cells] == [
        layer.score for layer in predicted.layers
    ]
    assert ps.Resets.from_dict(resets.to_dict()) == resets


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        pytest.param({"metric": lambda outputs, batch: outputs}, "need data", id="metric"),
        pytest.param({"subset": 3}, "a subset is of examples", id="subset"),
        pytest.param({"input_shape": (1, 16)}, "channels, height and width", id="two-sizes"),
        pytest.param({"data": [torch.zeros(2, 1, 16, 16)]}, "is of synthetic", id="with-data"),
    ],
)
def test_what_synthetic_pictures_have_not_is_refused(networks, more, sentence):
    net, init = networks
    settings = {"data": None, "input_shape": (1, 16, 16), **more}
    with pytest.raises(UsageError, match=sentence):
        ps.reset(net, to={"init": init}, **settings)


def test_data_left_out_are_not_synthetic_ones(networks):
    net, init = networks
    with pytest.raises(UsageError, match="give data="):
        ps.reset(net, to={"init": init})
