"""What a file shows outweighs what its names suggest: the same filters from every way of storing.

Each case is written as one framework or script writes it, and compared with the weights that it
was made from. Sums of weights do not depend on the order of the other axes; kinds do.
"""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn
from torch.nn import functional as F

import planescope as ps
from planescope.measurement.source import find


def drawn(*shape):
    """Weights whose filters have means apart, so that another axis gives another mass."""
    rng = np.random.default_rng(sum(shape))
    moved = rng.standard_normal((shape[0],) + (1,) * (len(shape) - 1))
    return (rng.standard_normal(shape) + 0.6 * moved).astype(np.float32)


def last(weight):
    """(out, in, *kernel) as (*kernel, in, out)."""
    return np.moveaxis(weight, (0, 1), (-1, -2))


def around(weight):
    """(out, in, *kernel) as (out, *kernel, in)."""
    return np.moveaxis(weight, 1, -1)


def turned(weight):
    """(out, in, *kernel) as torch stores a transposed convolution."""
    return np.swapaxes(weight, 0, 1)


def norm(name, width):
    rng = np.random.default_rng(width)
    return {
        f"{name}.{part}": rng.random(width, dtype=np.float32) + 0.5
        for part in ("weight", "bias", "running_mean", "running_var")
    }


def expected(*layers):
    """What is right: kind, filters, fan-in, negative mass."""
    rows = []
    for kind, weight in layers:
        flat = weight.reshape(len(weight), -1).astype(float)
        rows.append((kind, *flat.shape, round(float((flat.sum(1) <= 0).mean()), 6)))
    return rows


def measured(source, **options):
    found = ps.measure(source, kinds="all", **options)
    return found, [
        (str(layer.kind), layer.filters, layer.fan_in, round(layer.negative_mass, 6))
        for layer in found.layers
    ]


A, B, C = drawn(16, 3, 3, 3), drawn(32, 16, 3, 3), drawn(24, 32, 5, 5)
TALL = drawn(64, 3, 3, 3)
POINT, DENSE, UP = drawn(32, 16, 1, 1), drawn(10, 32), drawn(16, 32, 3, 3)

STORED = {
    "norms say last": (
        {"c1.weight": last(A), "c2.weight": last(B), **norm("bn1", 16), **norm("bn2", 32)},
        [("conv", A), ("conv", B)],
        "the width of the norm says",
    ),
    "one layer, its norm says last": (
        {"conv.weight": last(C), **norm("bn", 24)},
        [("conv", C)],
        "the width of the norm says",
    ),
    "shapes say last": (
        {"c1.weight": last(A), "c2.weight": last(B)},
        [("conv", A), ("conv", B)],
        "is assumed from the shapes",
    ),
    "shapes say first": ({"w1": A, "w2": B}, [("conv", A), ("conv", B)], "from the shapes"),
    "channels last, a 1x1 kernel": (
        {"a.weight": around(A), "b.weight": around(POINT), "c.weight": around(C)},
        [("conv", A), ("pointwise", POINT), ("conv", C)],
        "as MLX has them",
    ),
    "channels last, one dimension": (
        {"a.weight": around(drawn(16, 8, 5)), "b.weight": around(drawn(32, 16, 1))},
        [("conv", drawn(16, 8, 5)), ("pointwise", drawn(32, 16, 1))],
        "as MLX has them",
    ),
    "an autoencoder without biases": (
        {
            "encoder.0.weight": drawn(16, 1, 3, 3),
            "encoder.2.weight": B,
            "decoder.0.weight": turned(UP),
            "decoder.2.weight": turned(drawn(1, 16, 3, 3)),
        },
        [
            *[("conv", drawn(16, 1, 3, 3)), ("conv", B)],
            *[("transposed", UP), ("transposed", drawn(1, 16, 3, 3))],
        ],
        "read as transposed",
    ),
    "the norm behind says transposed": (
        {"a.weight": TALL, "x.weight": turned(drawn(32, 64, 2, 2)), **norm("x_bn", 32)},
        [("conv", TALL), ("transposed", drawn(32, 64, 2, 2))],
        "read as transposed",
    ),
    "branches side by side are alike": (
        {f"convs.{i}.weight": (i + 1) * drawn(16, 32, 3, 3) for i in range(4)},
        [("conv", drawn(16, 32, 3, 3))] * 4,
        "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("container", ["safetensors", "npz", "torch"])
@pytest.mark.parametrize("case", STORED)
def test_the_filters_are_those_of_the_weights(tmp_path, case, container):
    arrays, layers, note = STORED[case]
    path = tmp_path / f"net.{container}"
    if container == "safetensors":
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    elif container == "npz":
        np.savez(path.open("wb"), **arrays)
    else:
        copied = {n: torch.from_numpy(np.ascontiguousarray(a)) for n, a in arrays.items()}
        torch.save(copied, path)
    found, rows = measured(path)
    assert sorted(rows) == sorted(expected(*layers))
    assert note in " ".join(found.notes)


def test_of_a_list_the_vector_behind_a_weight_is_its_bias(tmp_path):
    """As Lasagne saves: convolutions (out, in, *kernel), dense layers (in, out)."""
    path = tmp_path / "list.npz"
    np.savez(path.open("wb"), A, np.ones(16), B, np.ones(32), DENSE.T, np.ones(10))
    _, rows = measured(path)
    assert sorted(rows) == sorted(expected(("conv", A), ("conv", B), ("linear", DENSE)))


def test_the_user_says_that_channels_are_last():
    (layer,) = measured({"a.weight": around(POINT)}, layout="channels-last")[0].layers
    assert (str(layer.kind), layer.filters, layer.kernel) == ("pointwise", 32, (1, 1))


def test_an_even_kernel_of_one_width_is_told_as_open():
    found, _ = measured({"mask.weight": drawn(8, 8, 2, 2), "mask.bias": np.zeros(8)})
    assert "whether mask is a transposed convolution cannot be told" in " ".join(found.notes)


def test_an_odd_kernel_of_one_width_is_told_as_open_where_none_of_its_name_shows_more():
    bare = {"a.weight": drawn(8, 8, 3, 3)}
    assert "whether a is a transposed convolution cannot be told" in " ".join(
        measured(bare)[0].notes
    )
    assert measured(bare, transposed="a")[0].notes == ()
    # One that goes from 3 to 8 channels, as the next takes them, is ordinary, and so its neighbour.
    assert measured({"0.weight": drawn(8, 3, 3, 3), "2.weight": drawn(8, 8, 3, 3)})[0].notes == ()


def test_the_norm_behind_tells_the_groups_of_a_transposed_convolution():
    arrays = {"a.weight": drawn(8, 3, 3, 3), "up.weight": drawn(8, 4, 2, 2), **norm("up_bn", 16)}
    (layer,) = (layer for layer in measured(arrays)[0].layers if layer.name == "up")
    assert (str(layer.kind), layer.filters, layer.fan_in) == ("transposed", 16, 2 * 2 * 2)


def test_a_group_is_no_upsampling():
    """As in NextViT: 96 channels in three groups, behind 96 and before 96."""
    arrays = {"a.weight": drawn(96, 8, 1, 1), "mhca.group_conv.weight": drawn(96, 32, 3, 3)}
    found, _ = measured(arrays | {"b.weight": drawn(8, 96, 1, 1)})
    assert [str(layer.kind) for layer in found.layers] == ["pointwise", "conv", "pointwise"]


HEADS = {
    "attention/query/kernel": (8, 2, 4),
    "attention/key/kernel": (8, 2, 4),
    "attention/out/kernel": (2, 4, 8),
    "mlp/Dense_0/kernel": (8, 2, 4),
    "conv/kernel": (3, 3, 3, 8),
    "rms/weight": (1, 8),
    "label_emb/weight": (20, 8),
}


@pytest.mark.parametrize("container", ["npz", "safetensors"])
def test_three_axes_or_one_row_make_no_layer(tmp_path, container):
    arrays = {name: drawn(*shape) for name, shape in HEADS.items()}
    path = tmp_path / f"net.{container}"
    if container == "npz":
        np.savez(path.open("wb"), **arrays)
    else:
        save_file(arrays, path)
    found, _ = measured(path)
    assert [layer.name for layer in found.layers] == ["conv"]
    assert {each.name for each in found.skipped} == {
        name.rpartition("/")[0] for name in HEADS if name != "conv/kernel"
    }


# --- classes of their own


class Functional(nn.Module):
    """Names that say nothing, and a sign that no file shows."""

    def __init__(self):
        super().__init__()
        self.raw = nn.Parameter(torch.from_numpy(A))

    def forward(self, x):
        return F.conv2d(x, -self.raw)


class Scaled(nn.Module):
    """Takes the weight of a layer within, and never calls the layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.conv.weight.data = torch.from_numpy(A)
        self.scale = nn.Parameter(-torch.ones(1))

    def forward(self, x):
        return F.conv2d(x, self.conv.weight * self.scale, self.conv.bias)


@pytest.mark.parametrize("make", [Functional, Scaled])
def test_live_it_is_the_weight_that_acts(make):
    assert measured(make())[1] == expected(("conv", -A))


def test_a_layer_whose_weight_another_takes_is_left_out_by_name():
    (left,) = ps.measure(nn.Sequential(Scaled()), kinds="all").skipped
    assert (left.name, left.reason.partition(";")[0]) == ("0.conv", "not called itself")


def test_pickled_a_class_of_its_own_is_left_out_by_name(tmp_path):
    torch.save(nn.Sequential(Functional(), nn.ReLU()), tmp_path / "net.pt")
    with pytest.raises(ps.PlanescopeError, match=r"0\.raw \(of the class .*Functional"):
        ps.measure(tmp_path / "net.pt")


@pytest.mark.parametrize("container", ["mapping", "pickle"])
def test_a_list_of_biases_is_that_of_the_weights_beside(tmp_path, container):
    """As scikit-learn's perceptrons are: coefs_ (in, out), intercepts_ (out,)."""
    weights = [drawn(8, 5), drawn(3, 8)]
    held = {
        "coefs_": [w.T.copy() for w in weights],
        "intercepts_": [np.arange(len(w), dtype=np.float32) + 1 for w in weights],
    }
    path = tmp_path / "net.pkl"
    path.write_bytes(pickle.dumps(held))
    source = held if container == "mapping" else path
    found, rows = measured(source)
    assert rows == expected(*(("linear", w) for w in weights))
    np.testing.assert_array_equal(find(source).layers[0].bias.read(), np.arange(8) + 1)
    assert found.notes == ()


LISTED = {
    "list of state dicts": [{"c.weight": A}, {"c.weight": B}],
    "epoch and state dict": (3, {"c.weight": A}),
    "modules in a list": {"nets": [Scaled().conv, nn.Conv2d(3, 4, 3)]},
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("case", LISTED)
def test_networks_in_lists_are_found(tmp_path, case, stream):
    def tensors(value):
        if isinstance(value, np.ndarray):
            return torch.from_numpy(value)
        if isinstance(value, dict):
            return {key: tensors(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(tensors(each) for each in value)
        return value

    path = tmp_path / "net.pt"
    torch.save(tensors(LISTED[case]), path, _use_new_zipfile_serialization=not stream)
    found, rows = measured(path)
    assert rows == expected(("conv", A))
    if len(LISTED[case]) > 1 and case.startswith("list"):
        assert "tensors at '1'" in " ".join(found.notes)
        assert measured(path, entry="1")[1] == expected(("conv", B))


def test_a_norm_outside_of_the_blocks_is_not_that_of_the_last_convolution_in_them():
    shapes = {"layer1.0.conv1.weight": (8, 3, 3, 3), "layer1.0.conv2.weight": (8, 8, 3, 3)}
    shapes |= {
        f"bn_last.{part}": (8,) for part in ("weight", "bias", "running_mean", "running_var")
    }
    found = find({name: np.ones(shape, np.float32) for name, shape in shapes.items()})
    assert [layer.norm for layer in found.layers] == [None, None]
    assert any("bn_last" in note for note in found.notes)


@pytest.mark.parametrize("container", ["pt", "nested.pt", "pkl"])
def test_arrays_of_numpy_in_a_torch_file_are_measured(tmp_path, container):
    weight, path = drawn(4, 3, 3, 3), tmp_path / f"net.{container.rpartition('.')[2]}"
    state = {"c.weight": weight, "c.bias": np.zeros(4, np.float32)}
    if container == "pkl":
        path.write_bytes(pickle.dumps(state))
    else:
        torch.save({"epoch": 3, "state_dict": state} if "nested" in container else state, path)
    (layer,) = find(str(path)).layers
    np.testing.assert_array_equal(layer.weight.read(), weight)


def test_an_array_of_numpy_among_tensors_is_named(tmp_path):
    state = {"a.weight": torch.randn(4, 3, 3, 3), "b.weight": drawn(4, 4, 3, 3)}
    torch.save(state | {"mean": np.zeros(3)}, tmp_path / "net.pt")
    found = ps.measure(tmp_path / "net.pt")
    assert [layer.name for layer in found.layers] == ["a"]
    ((name, reason),) = [(one.name, one.reason) for one in found.skipped]
    assert name == "b"
    assert "a NumPy array among tensors" in reason


@pytest.mark.parametrize("container", ["pt", "safetensors", "npz"])
@pytest.mark.parametrize("kept", ["weight_momentum", "weight_ema", "exp_avg"])
def test_what_a_trainer_keeps_beside_a_weight_does_not_hide_it(tmp_path, kept, container):
    weight, path = drawn(4, 3, 3, 3), tmp_path / f"net.{container}"
    arrays = {"c.weight": weight, f"c.{kept}": drawn(4, 3, 3, 3) + 1, "d.weight": drawn(4, 4, 3, 3)}
    match container:
        case "pt":
            torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)
        case "safetensors":
            save_file(arrays, path)
        case "npz":
            np.savez(path, **arrays)
    found = find(str(path))
    assert [layer.name for layer in found.layers] == ["c", "d"]
    np.testing.assert_array_equal(found.layers[0].weight.read(), weight)
    assert [one.name for one in found.skipped] == [f"c.{kept}"]


def test_a_parameter_w_of_three_axes_may_be_a_stack_and_complex_ones_cut_nothing():
    found = find({"w": drawn(3, 6, 5), "gate.weight": drawn(3, 6), "gate.bias": drawn(3)})
    assert "w read as a convolution of one dimension" in " ".join(found.notes)
    weight = torch.randn(3, 4, dtype=torch.complex64)
    found = find({"a.weight": weight, "b.weight": torch.randn(4, 3)})
    assert [(one.name, one.reason.partition(":")[0]) for one in found.skipped] == [
        ("a", "its weights are stored as complex64")
    ]


@pytest.mark.parametrize("part", ["weight_mask", "weight_g"])
def test_a_complex_part_of_a_weight_leaves_it_out(tmp_path, part):
    rest = {"weight_mask": "weight_orig", "weight_g": "weight_v"}[part]
    arrays = {f"a.{part}": np.ones((4, 4) if part == "weight_mask" else (4, 1), complex)}
    arrays |= {f"a.{rest}": drawn(4, 4), "b.weight": drawn(3, 4)}
    np.savez(tmp_path / "net.npz", **arrays)
    for source in (arrays, tmp_path / "net.npz"):
        found = ps.measure(source, kinds="all")
        assert [layer.name for layer in found.layers] == ["b"]
        assert any(one.name.startswith("a") for one in found.skipped)


def test_a_wrong_entry_is_told_what_the_file_holds(tmp_path):
    nets = {"one": {"a.weight": torch.randn(4, 3)}, "two": {"b.weight": torch.randn(5, 3, 3, 3)}}
    torch.save(nets, tmp_path / "net.pt")
    with pytest.raises(ps.UsageError, match="holds tensors at 'two'"):
        ps.measure(tmp_path / "net.pt", entry="three")
