"""Figures that others found: an independent program on LeNet, METHOD on EfficientNet-Lite0."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import planescope as ps
from planescope.cli.story import example_checkpoint

PARITY = Path(__file__).parents[1] / "parity"
EXPECTED = json.loads((PARITY / "expected.json").read_text(encoding="utf-8"))
# The independent implementation computed in float32.
CLOSE = {"rel": 1e-5, "abs": 1e-5}


@pytest.fixture(
    scope="module",
    params=["lenet-epoch-12.tar", "lenet-epoch-12-stream.tar"],
    ids=["zip", "stream"],
)
def trained(request):
    return ps.measure(
        PARITY / request.param, network="lenet", init=PARITY / "lenet-epoch-0.pt", kinds="all"
    )


def test_each_layer_has_the_figures_of_the_independent_implementation(trained):
    assert [layer.name for layer in trained.layers] == [row["name"] for row in EXPECTED["layers"]]
    for layer, row in zip(trained.layers, EXPECTED["layers"], strict=True):
        for key in ("stage", "negative_mass", "mean_projection", "mean_cosine", "l2", "linf"):
            assert getattr(layer, key) == pytest.approx(row[key], **CLOSE), (layer.name, key)
        np.testing.assert_allclose(layer.values.projection, row["projection"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(layer.values.cosine, row["cosine"], rtol=1e-5, atol=1e-5)


def test_the_pool_has_the_figures_of_the_independent_implementation():
    trained = ps.measure(PARITY / "lenet-epoch-12.tar")
    for key, value in EXPECTED["network_convolutions"].items():
        assert getattr(trained.network, key) == pytest.approx(value, **CLOSE), key


def test_lenet_has_three_poolings_and_an_image_before_its_first_layer(trained):
    assert [stage.stage for stage in trained.stages] == [0, 1, 2, 3]
    assert [stage.filters for stage in trained.stages] == [12, 32, 128, 214]
    assert [layer.input for layer in trained.layers] == ["image"] + ["relu"] * 8


@pytest.mark.parametrize("epoch", [0, 1, 3, 9])
def test_a_plain_state_dict_is_measured(epoch):
    measured = ps.measure(PARITY / f"lenet-epoch-{epoch}.pt")
    assert measured.network.filters == 172
    assert measured.source.format == "torch-zip"


def test_no_layer_of_the_initialisation_is_biased():
    assert ps.measure(PARITY / "lenet-epoch-0.pt").network.biased_layers == 0


@pytest.fixture(scope="module")
def efficientnet():
    measured = ps.measure(example_checkpoint(), kinds="all")
    return {layer.name: layer for layer in measured.layers}


@pytest.mark.parametrize(
    ("name", "filters", "fan_in", "negative_mass", "mean_cosine"),
    [
        ("_conv_stem", 32, 27, 0.500, 0.0255),
        ("_blocks.11._depthwise_conv", 672, 25, 0.254, 0.3105),
        ("_blocks.14._depthwise_conv", 1152, 25, 0.197, 0.3496),
    ],
)
def test_efficientnet_has_the_masses_of_the_method(
    efficientnet, name, filters, fan_in, negative_mass, mean_cosine
):
    layer = efficientnet[name]
    assert (layer.filters, layer.fan_in) == (filters, fan_in)
    assert layer.negative_mass == pytest.approx(negative_mass, abs=5e-4)
    assert layer.mean_cosine == pytest.approx(mean_cosine, abs=5e-5)


@pytest.mark.parametrize(
    ("name", "filters", "fan_in", "negative_centre", "mean_centre"),
    [
        ("_conv_head", 1280, 320, 1.000, -1.255),
        ("_blocks.14._expand_conv", 1152, 192, 0.844, -0.842),
        ("_blocks.14._project_conv", 192, 1152, 0.479, 0.026),
    ],
)
def test_efficientnet_has_the_centres_of_the_method(
    efficientnet, name, filters, fan_in, negative_centre, mean_centre
):
    layer = efficientnet[name]
    assert (layer.filters, layer.fan_in) == (filters, fan_in)
    assert layer.negative_centre == pytest.approx(negative_centre, abs=5e-4)
    assert layer.mean_centre == pytest.approx(mean_centre, abs=5e-4)


def test_filters_that_are_all_zero_are_counted_and_left_out(efficientnet):
    layer = efficientnet["_blocks.0._depthwise_conv"]
    assert layer.degenerate == 1
    usable = layer.values.usable
    assert usable.sum() == layer.filters - 1
    assert layer.mean_cosine == pytest.approx(layer.values.cosine[usable].mean())


def test_the_effective_view_turns_the_normals_whose_gamma_is_negative():
    import torch

    state = torch.load(example_checkpoint(), weights_only=True)
    raw, effective = (
        ps.measure(example_checkpoint(), view=view, layers=r"^_conv_head$", kinds="pointwise")
        for view in ("raw", "effective")
    )
    gamma = state["_bn1.weight"].double().numpy()
    variance = state["_bn1.running_var"].double().numpy()
    scale = gamma / np.sqrt(variance + 1e-5)
    raw, effective = raw.layers[0].values, effective.layers[0].values
    np.testing.assert_allclose(effective.projection, scale * raw.projection, rtol=1e-12)
    usable = scale != 0
    np.testing.assert_allclose(
        effective.cosine[usable], (np.sign(scale) * raw.cosine)[usable], rtol=1e-12
    )
