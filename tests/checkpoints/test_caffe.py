"""Caffe's networks, written by the classes of its own schema, in all three of its forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import planescope as ps
from planescope.checkpoints import read_contents
from planescope.files.errors import CheckpointError
from planescope.hyperplanes.layer import Input, Kind

FIXTURES = Path(__file__).parents[1] / "formats"


@pytest.fixture(scope="module")
def arrays():
    with np.load(FIXTURES / "caffe.expected.npz") as file:
        return dict(file)


def read(name):
    form, contents = read_contents(FIXTURES / f"{name}.caffemodel")
    assert form == "caffe"
    return {layer.name: layer for layer in contents.layers}, contents.skipped


def test_layers_stand_in_their_places():
    layers, skipped = read("newest")
    assert {name: (each.kind, each.stage, each.input) for name, each in layers.items()} == {
        "conv1": (Kind.CONV, 0, Input.IMAGE),
        "left": (Kind.CONV, 1, Input.RELU),
        "right": (Kind.POINTWISE, 1, Input.RELU),
        "up": (Kind.TRANSPOSED, 1, Input.OTHER),  # behind a leaky ReLU
        "head": (Kind.LINEAR, 1, Input.OTHER),
        "turned": (Kind.LINEAR, 1, Input.OTHER),
    }
    assert [each.name for each in skipped] == ["table"]
    assert (layers["left"].groups, layers["up"].groups) == (2, 1)


@pytest.mark.parametrize("name", ["newest", "middle", "oldest", "shared"])
def test_weights_and_biases_come_bit_by_bit(arrays, name):
    layers, _ = read(name)
    for layer in layers.values():
        wanted = arrays[f"{name}.{layer.name}.0"]
        if layer.kind is Kind.TRANSPOSED:
            wanted = wanted.swapaxes(0, 1)
        elif layer.name == "turned":
            wanted = wanted.T
        assert layer.weight.read().tobytes() == np.ascontiguousarray(wanted).tobytes()
        bias = arrays.get(f"{name}.{layer.name}.1")
        assert (layer.bias is None) == (bias is None)
        if bias is not None:
            assert layer.bias.read().tobytes() == bias.tobytes()


def test_batch_norm_and_the_scale_behind_it_are_one_norm(arrays):
    norm = read("newest")[0]["conv1"].norm
    factor = arrays["newest.bn1.2"]
    np.testing.assert_array_equal(norm.mean.read(), arrays["newest.bn1.0"] / factor)
    np.testing.assert_array_equal(norm.variance.read(), arrays["newest.bn1.1"] / factor)
    np.testing.assert_array_equal(norm.gamma.read(), arrays["newest.scale1.0"])
    np.testing.assert_array_equal(norm.beta.read(), arrays["newest.scale1.1"])
    assert norm.eps == np.float32(1e-3)


def test_weights_that_two_layers_share_are_one_layer():
    layers, skipped = read("shared")
    assert list(layers) == ["first"]
    assert skipped[0].name == "again"
    assert "the weights of first" in skipped[0].reason


def test_a_network_is_measured():
    measured = ps.measure(FIXTURES / "newest.caffemodel", kinds="all", view="effective")
    assert next(layer.name for layer in measured.layers) == "conv1"
    assert measured.layers[0].negative_centre is not None


DAMAGE = {
    "cut": (lambda raw: raw[:-200], "is the download complete|damaged"),
    "dimension": (lambda raw: raw.replace(b"\x0a\x04\x04\x03\x03\x03", b"\x0a\x04\x04\x03\x03\x04"),
                  "claims values of shape"),
    "minus": (lambda raw: raw.replace(b"\x0a\x04\x04\x03\x03\x03",
                                      b"\x0a\x04\x04\x03\x03\xff"), "damaged|does not end|shape"),
    "bias": (lambda raw: raw.replace(b"\x0a\x04\x04\x02\x03\x03", b"\x0a\x04\x02\x04\x03\x03"),
             "cannot have an array of shape"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_network_is_refused_with_the_reason(tmp_path, damage):
    change, match = DAMAGE[damage]
    raw = (FIXTURES / "newest.caffemodel").read_bytes()
    assert change(raw) != raw
    (tmp_path / "net.caffemodel").write_bytes(change(raw))
    with pytest.raises(CheckpointError, match=match):
        read_contents(tmp_path / "net.caffemodel")
