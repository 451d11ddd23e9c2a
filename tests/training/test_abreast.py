"""What is taken of layers abreast, as on a GPU, is what is taken of each by itself."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn

import planescope as ps
from planescope.networks.live.module import read_module
from planescope.networks.state.layers import find_layers
from planescope.training.tracker import abreast


@pytest.fixture
def taken_abreast(monkeypatch):
    """Weights on the CPU are taken as those on a GPU would be; how many at a time."""
    windows = []
    take = abreast.take

    def seen(layers, rows, starts):
        windows.append(len(layers))
        return take(layers, rows, starts)

    monkeypatch.setattr(abreast, "can_take", lambda rows: rows.dtype == torch.float32)
    monkeypatch.setattr(abreast, "take", seen)
    return windows


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8, affine=False), nn.ReLU(),
        nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 12, 3, groups=2), nn.ReLU(),
        nn.Conv2d(12, 8, 3).double(),
    )  # fmt: skip


def move(model: nn.Module) -> None:
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor += 0.1 * torch.rand_like(tensor)


def trackers(**options) -> list[ps.Measurement]:
    model, tracker = network(), ps.Tracker(**options)
    for step in range(3):
        tracker.update(model, step)
        move(model)
    return [measurement for _, measurement in tracker.measurements]


@pytest.mark.parametrize("view", ["raw", "effective"])
@pytest.mark.parametrize("reference", ["device", "cpu", None])
@pytest.mark.parametrize("most", [1 << 25, 1000])
def test_a_tracker_finds_the_same(view, reference, most, monkeypatch, taken_abreast):
    options = {"view": view, "reference": reference, "filters": True}
    monkeypatch.setattr(abreast, "MOST", most)
    found = trackers(**options)
    # One window an update, or the layers of at most a thousand weights together; float64 is apart.
    assert taken_abreast == 3 * ([4] if most > 1000 else [2, 1, 1])
    monkeypatch.undo()
    for ours, theirs in zip(found, trackers(**options), strict=True):
        assert [layer.name for layer in ours.layers] == [layer.name for layer in theirs.layers]
        for one, other in zip(ours.layers, theirs.layers, strict=True):
            assert one.negative_mass == other.negative_mass
            for name in ("mean_cosine", "p_mass", "p_cosine", "mean_centre", "l2", "linf"):
                a, b = getattr(one, name), getattr(other, name)
                assert a == b or a == pytest.approx(b, rel=1e-6, abs=1e-12), name
            for name in ("projection", "norm", "cosine", "bias", "crossing", "centre"):
                a, b = getattr(one.values, name), getattr(other.values, name)
                assert (a is None) == (b is None)
                if a is not None:
                    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_what_waits_to_be_read_holds_no_weights():
    layers, _ = find_layers(read_module(network()[:1]))
    rows = torch.randn(8, 27)
    was = rows.sum(dim=1, dtype=torch.float64).numpy()
    held = weakref.ref(rows)
    taken = abreast.take(layers, [rows], [torch.zeros(8, 27)])
    rows += 1
    del rows
    gc.collect()
    assert held() is None
    (one,) = taken()
    np.testing.assert_array_equal(one.planes.projection, was)


def test_filters_that_are_no_numbers_are_left_out_as_they_are_elsewhere(taken_abreast):
    model = network()
    with torch.no_grad():
        model[0].weight[0], model[0].weight[1], model[3].weight[2] = torch.nan, torch.inf, 0
    tracker = ps.Tracker()
    tracker.update(model, 0)
    assert taken_abreast
    (_, ours), theirs = tracker.measurements[0], ps.measure(model)
    for one, other in zip(ours.layers, theirs.layers, strict=True):
        assert (one.degenerate, one.non_finite) == (other.degenerate, other.non_finite)
        assert one.negative_mass == other.negative_mass
