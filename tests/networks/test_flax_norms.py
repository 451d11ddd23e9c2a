"""Weights that Flax normalises whenever it runs are measured as they act."""

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
