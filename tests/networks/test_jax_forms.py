"""Weights that Flax normalises whenever it runs, and norms under the names of others."""

from __future__ import annotations

import numpy as np
import pytest

from planescope.measurement.source import find


def arrays(wrapper, *, shape):
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((3, 3, 4, 8)).astype(np.float32)
    held = {"params/block/Conv_0/kernel": kernel, "params/block/Conv_0/bias": np.ones(8)}
    part = rng.standard_normal(shape).astype(np.float32)
    if wrapper == "WeightNorm_0":
        held["params/block/WeightNorm_0/Conv_0/kernel/scale"] = part
    else:
        held["batch_stats/block/SpectralNorm_0/Conv_0/kernel/u"] = part
        held["batch_stats/block/SpectralNorm_0/Conv_0/kernel/sigma"] = np.float32(3)
    return held, kernel.reshape(-1, 8).astype(float), part.astype(float)


def test_weight_norm_gives_each_filter_its_length():
    held, kernel, scale = arrays("WeightNorm_0", shape=(8,))
    (layer,) = find(held).layers
    expected = kernel / np.linalg.norm(kernel, axis=0) * scale
    np.testing.assert_allclose(_rows(layer), expected, rtol=1e-4, atol=1e-6)


def test_spectral_norm_divides_by_what_one_step_of_the_power_method_gives(tmp_path):
    held, kernel, u = arrays("SpectralNorm_0", shape=(1, 8))
    np.savez(tmp_path / "net.npz", **held)
    (layer,) = find(tmp_path / "net.npz").layers
    left = kernel @ u[0]
    sigma = np.linalg.norm(kernel.T @ (left / np.linalg.norm(left)))
    np.testing.assert_allclose(_rows(layer), kernel / sigma, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("wrapper", "shape"), [("WeightNorm_0", (4, 8)), ("SpectralNorm_0", (8,))])
def test_other_forms_of_the_wrappers_are_left_out_by_name(wrapper, shape):
    found = find(arrays(wrapper, shape=shape)[0])
    assert not found.layers
    assert found.skipped[0].name == "params/block/Conv_0"


def _rows(layer):
    return layer.weight.read().transpose(2, 3, 1, 0).reshape(-1, 8)


NORMS = {
    "haiku": ("n/conv/w", "n/conv_bn", {"n/conv_bn/scale": 1, "n/conv_bn/offset": 2,
              "n/conv_bn/~/mean_ema/average": 3, "n/conv_bn/~/var_ema/average": 4}),
    "haiku, apart": ("params/n/conv/w", "params/n/conv_bn", {
        "params/n/conv_bn/scale": 1, "params/n/conv_bn/offset": 2,
        "state/n/conv_bn/~/mean_ema/average": 3, "state/n/conv_bn/~/var_ema/average": 4}),
    "caffe": ("conv/weights", "bn_conv", {"bn_conv/scale": 1, "bn_conv/offset": 2,
              "bn_conv/mean": 3, "bn_conv/variance": 4}),
    "tensorpack": ("conv/W:0", "conv/bn", {"conv/bn/gamma:0": 1, "conv/bn/beta:0": 2,
                   "conv/bn/mean/EMA:0": 3, "conv/bn/variance/EMA:0": 4}),
}  # fmt: skip


@pytest.mark.parametrize("kind", NORMS)
def test_a_norm_under_the_names_of_others_is_the_layers(tmp_path, kind):
    weight, norm, parts = NORMS[kind]
    shape = (1, 1, 1, 8) if "haiku" in kind else (8,)
    held = {name: np.full(shape, value, np.float32) for name, value in parts.items()}
    np.savez(tmp_path / "net.npz", **held, **{weight: np.ones((3, 3, 4, 8), np.float32)})
    (layer,) = find(tmp_path / "net.npz").layers
    assert layer.norm.name == norm
    found = [layer.norm.gamma, layer.norm.beta, layer.norm.mean, layer.norm.variance]
    assert [part.read().tolist() for part in found] == [[value] * 8 for value in (1, 2, 3, 4)]
    assert layer.norm.eps == 1e-5


def test_names_that_all_end_in_value_are_read_without_it():
    held = {"c.kernel.value": np.ones((3, 3, 4, 8)), "c.bias.value": np.ones(8)}
    (layer,) = find(held).layers
    assert (layer.name, layer.bias.shape) == ("c", (8,))
