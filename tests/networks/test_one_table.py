"""One network in every format, and one table: what torch writes and what TensorFlow wrote.

The files of TensorFlow are kept in `tests/tensorflow_files`; `Twin` is their network in torch, with
the arrays that TensorFlow gave, and is written here in every other format.
"""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import planescope as ps

FILES = Path(__file__).parents[1] / "tensorflow_files"
GRAPHS = ["live", "onnx", "pt2", "caffemodel"]
TABLES = ["net.keras", "net.pb", "saved", "layers-plain"]
# Converters fold the norm into the weights before it: raw is there what is effective elsewhere.
FOLDED = ["net.tflite", "graph-plain"]
BARE = ["state", "safetensors", "npz", "hdf5", "flax", "pickled", "scripted", "checkpoint"]


class Apart(nn.Module):
    """A separable convolution."""

    def __init__(self):
        super().__init__()
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.pointwise = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return self.pointwise(self.depthwise(x)).relu()


class Twin(nn.Module):
    """The network of `tests/tensorflow_files/make_fixtures.py`."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(8, eps=1e-3)
        self.deep = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.point = nn.Conv2d(16, 8, 1)
        self.apart = Apart()
        self.stride = nn.Conv2d(8, 6, 3, stride=2)
        self.up = nn.ConvTranspose2d(6, 5, 2, stride=2)
        self.hidden, self.answer = nn.Linear(5, 7), nn.Linear(7, 4)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.stem_bn(self.stem(x / 255)).relu(), 2)
        x = self.point(nn.functional.relu6(self.deep(x)))
        x = self.stride(x + self.apart(x)).relu()
        x = self.up(x).relu().mean((2, 3))
        return self.answer(self.hidden(x).relu()).softmax(1)


NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean"}
NORM["running_var"] = "moving_variance"


def twin():
    net = Twin().eval()
    with np.load(FILES / "expected.npz") as arrays:
        for name, held in net.state_dict().items():
            module, _, part = name.rpartition(".")
            if part == "num_batches_tracked":
                continue
            is_norm = module == "stem_bn"
            found = arrays[f"norm/{module}.{NORM[part]}" if is_norm else f"{part}/{module}"]
            found = found.swapaxes(0, 1) if (module, part) == ("up", "weight") else found
            held.copy_(torch.from_numpy(found))
    return net


def keras_arrays(net):
    """The arrays by names of Keras, with filters on the last axis."""
    arrays = {}
    for name, tensor in net.state_dict().items():
        module, _, part = name.rpartition(".")
        array = tensor.numpy()
        if module == "stem_bn":
            if part in NORM:
                arrays[f"{module}/{NORM[part]}"] = array
        elif part == "bias":
            arrays[f"{module}/bias"] = array
        elif module == "up":  # (height, width, filters, channels)
            arrays["up/kernel"] = array.transpose(2, 3, 1, 0)
        else:
            arrays[f"{module}/kernel"] = np.moveaxis(array, (0, 1), (-1, -2))
    return arrays


def flax_file(net, path):
    msgpack = pytest.importorskip("msgpack")

    def packed(array):
        parts = (array.shape, array.dtype.name, np.ascontiguousarray(array).tobytes())
        return msgpack.ExtType(1, msgpack.packb(parts))

    tree = {"params": {}, "batch_stats": {"stem_bn": {}}}
    words = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}
    for name, array in keras_arrays(net).items():
        module, part = name.split("/")
        part = words.get(part, part)
        if name == "up/kernel":  # Flax has the filters last there too
            module, array = "ConvTranspose_0", array.swapaxes(-1, -2)
        module = "ConvTranspose_0" if module == "up" else module
        root = tree["batch_stats" if part in ("mean", "var") else "params"]
        root.setdefault(module, {})[part] = packed(array)
    path.write_bytes(msgpack.packb(tree))


def hdf5_file(net, path):
    with h5py.File(path, "w") as file:
        for name, array in keras_arrays(net).items():
            file[name] = array


def message(*fields):
    """Write fields of a protocol buffer: (number, text, bytes, int, float or array)."""

    def varint(value):
        low = value & 127
        return bytes([low | 128]) + varint(value >> 7) if value > 127 else bytes([low])

    written = b""
    for number, value in fields:
        if isinstance(value, int):
            written += varint(number << 3) + varint(value)
        elif isinstance(value, float):
            written += varint(number << 3 | 5) + struct.pack("<f", value)
        else:
            held = value.encode() if isinstance(value, str) else bytes(value)
            written += varint(number << 3 | 2) + varint(len(held)) + held
    return written


def caffe_file(net, path):
    """Write the network as Caffe lists it, by the numbers of its schema."""
    state = {name: np.ascontiguousarray(held.numpy()) for name, held in net.state_dict().items()}

    def arrays(*names):
        held = [state[name] if isinstance(name, str) else np.float32([name]) for name in names]
        return [(7, message((7, message((1, bytes(a.shape)))), (5, a.tobytes()))) for a in held]

    def layer(kind, bottoms, top, *options):
        reads = [(3, bottom) for bottom in bottoms.split()]
        return (100, message((1, top), (2, kind), *reads, (4, top), *options))

    def weighted(kind, module, bottom, top, *options, bias=True):
        held = arrays(f"{module}.weight", *[f"{module}.bias"] * bias)
        return layer(kind, bottom, top, *held, (106, message(*options)))

    norm = arrays("stem_bn.running_mean", "stem_bn.running_var", 1.0)
    layers = [
        layer("Input", "", "data"),
        layer("Power", "data", "scaled", (122, message((2, 1 / 255)))),
        weighted("Convolution", "stem", "scaled", "stem", bias=False),
        layer("BatchNorm", "stem", "bn", *norm, (139, message((3, 1e-3)))),
        layer("Scale", "bn", "stem_bn", *arrays("stem_bn.weight", "stem_bn.bias")),
        layer("ReLU", "stem_bn", "r1"),
        layer("Pooling", "r1", "pool", (121, message((2, 2), (3, 2)))),
        weighted("Convolution", "deep", "pool", "deep", (5, 8)),
        layer("ReLU", "deep", "r2"),
        weighted("Convolution", "point", "r2", "point"),
        weighted("Convolution", "apart.depthwise", "point", "a", (5, 8), bias=False),
        weighted("Convolution", "apart.pointwise", "a", "b"),
        layer("ReLU", "b", "r3"),
        layer("Eltwise", "point r3", "sum"),
        weighted("Convolution", "stride", "sum", "stride", (6, 2)),
        layer("ReLU", "stride", "r4"),
        weighted("Deconvolution", "up", "r4", "up", (6, 2)),
        layer("ReLU", "up", "r5"),
        layer("Pooling", "r5", "mean", (121, message((1, 1)))),
        weighted("InnerProduct", "hidden", "mean", "hidden"),
        layer("ReLU", "hidden", "r6"),
        weighted("InnerProduct", "answer", "r6", "answer"),
        layer("Softmax", "answer", "probability"),
    ]
    path.write_bytes(message((1, "twin"), *layers))


def write(net, container, path):
    """Write the network into a file of a format."""
    image, state = torch.zeros(1, 3, 16, 16), net.state_dict()
    if container == "onnx":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the older exporter, which needs no other package
            keep = torch.onnx.TrainingMode.PRESERVE
            options = {"dynamo": False, "training": keep, "do_constant_folding": False}
            torch.onnx.export(net, (image,), path, **options)
        return
    writers = {
        "state": lambda: torch.save(state, path),
        "checkpoint": lambda: torch.save((3, {"model": [state]}), path),
        "safetensors": lambda: save_file({n: t.contiguous() for n, t in state.items()}, path),
        "npz": lambda: np.savez(path.open("wb"), **keras_arrays(net)),
        "hdf5": lambda: hdf5_file(net, path),
        "flax": lambda: flax_file(net, path),
        "caffemodel": lambda: caffe_file(net, path),
        "pickled": lambda: torch.save({"nets": [net]}, path),
        "scripted": lambda: torch.jit.save(torch.jit.script(net), path),
        "pt2": lambda: torch.export.save(torch.export.export(net, (image,)), path),
    }
    writers[container]()


def rows(measured):
    """What no format changes: sums of float32 differ in their last digits."""
    return [
        (
            *(str(layer.kind), layer.filters, layer.fan_in, round(layer.negative_mass, 4)),
            round(layer.mean_cosine, 4) + 0.0,
        )
        for layer in measured.layers
    ]


def places(measured):
    return [(layer.stage, str(layer.input)) for layer in measured.layers]


@pytest.fixture(scope="module")
def right():
    return ps.measure(twin(), kinds="all", view="effective")


def test_the_table_is_that_of_the_arrays(right):
    """Kinds, shapes and places by hand; the numbers from the arrays that TensorFlow gave."""
    assert [row[:3] for row in rows(right)] == [
        *[("conv", 8, 27), ("conv", 16, 9), ("pointwise", 8, 16), ("conv", 8, 9)],
        *[("pointwise", 8, 8), ("conv", 6, 72), ("transposed", 5, 24)],
        *[("linear", 7, 5), ("linear", 4, 7)],
    ]
    assert places(right) == [
        *[(0, "image"), (1, "relu"), (1, "relu"), (1, "other"), (1, "other")],
        *[(2, "other"), (2, "relu"), (2, "relu"), (2, "relu")],
    ]
    with np.load(FILES / "expected.npz") as arrays:
        weights = arrays["weight/deep"].reshape(16, 9).astype(float)
    cosine = weights.sum(1) / np.linalg.norm(weights, axis=1) / 3
    assert right.layers[1].mean_cosine == pytest.approx(cosine.mean(), abs=1e-9)


@pytest.mark.parametrize("file", [*TABLES, *FOLDED])
def test_files_of_tensorflow_give_it(right, file):
    found = ps.measure(FILES / file, kinds="all", view="raw" if file in FOLDED else "effective")
    assert rows(found) == rows(right)
    assert places(found) == places(right)


@pytest.mark.parametrize("container", GRAPHS[1:])
def test_graphs_of_others_give_it(right, tmp_path, container):
    write(twin(), container, tmp_path / f"net.{container}")
    found = ps.measure(tmp_path / f"net.{container}", kinds="all", view="effective")
    assert rows(found) == rows(right)
    assert places(found) == places(right)
    assert [r.norm is None for r in found.layers] == [r.norm is None for r in right.layers]


@pytest.mark.parametrize("container", BARE)
def test_files_without_a_graph_give_it_but_for_the_places(right, tmp_path, container):
    suffix = {"flax": "msgpack", "hdf5": "h5", "npz": "npz", "safetensors": "safetensors"}
    path = tmp_path / f"net.{suffix.get(container, 'pt')}"
    write(twin(), container, path)
    found = ps.measure(path, kinds="all", view="effective", eps=1e-3)
    assert sorted(rows(found)) == sorted(rows(right))
    assert {str(layer.input) for layer in found.layers} == {"unknown"}
    assert found.skipped == ()


class Cut(nn.Module):
    """A convolution that reads an image with something done to it."""

    def __init__(self, change):
        super().__init__()
        self.norm, self.conv, self.change = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), change

    def forward(self, image):
        return self.conv(self.change(self.norm(image)))


# An image that is cut is none any more; what is called a ReLU's output is never negative.
CHANGES = {
    "relu": (lambda x: x.relu(), "relu"),
    "clamped": (lambda x: x.clamp(min=0), "relu"),
    "clamped-to-1": (lambda x: x.clamp(0, 1), "relu"),
    "at-least-0": (lambda x: torch.maximum(x, torch.zeros(1)), "relu"),
    "threshold": (lambda x: nn.functional.threshold(x, 0.0, 0.0), "relu"),
    "above--1": (lambda x: x.clamp(min=-1), "other"),
    "below-1": (lambda x: x.clamp(max=1), "other"),
    "at-most-1": (lambda x: torch.minimum(x, torch.ones(1)), "other"),
    "of-a-relu-below-6": (lambda x: x.relu().clamp(max=6), "relu"),
    "of-a-relu-below--1": (lambda x: x.relu().clamp(max=-1), "other"),
    "of-a-relu-squared": (lambda x: x.relu() ** 2, "relu"),
    "squared": (torch.square, "other"),
    "times-itself": (lambda x: x * x, "other"),
    "to-the-4th": (lambda x: x**4, "other"),
    "moved": (lambda x: x - 0.5, "image"),
    "turned-round": (lambda x: -x, "image"),
    "a-relu-turned-round": (lambda x: -x.relu(), "other"),
}


def in_container(net, image, container, folder):
    """Return a network as it is, or the file of its graph, with its norms as they are."""
    if container == "live":
        return net
    path = folder / f"net.{container.rpartition('.')[2]}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if container == "onnx":
            torch.onnx.export(
                net, (image,), path, dynamo=False, do_constant_folding=False,
                training=torch.onnx.TrainingMode.PRESERVE,
            )  # fmt: skip
        else:
            program = torch.export.export(net, (image,))
            core = program.run_decompositions() if container == "core.pt2" else program
            torch.export.save(core, path)
    return path


@pytest.mark.parametrize("container", ["live", "onnx", "pt2", "core.pt2"])
@pytest.mark.parametrize("change", CHANGES)
def test_an_image_that_is_cut_is_the_same_in_every_graph(tmp_path, change, container):
    done, expected = CHANGES[change]
    if (change, container) == ("threshold", "core.pt2"):
        expected = "other"  # a choice between two values by then
    source = in_container(Cut(done).eval(), torch.zeros(1, 3, 8, 8), container, tmp_path)
    (layer,) = ps.measure(source).layers
    assert layer.input == expected


class Viewed(nn.Module):
    """Batch norms behind views that leave the filters together, and behind others."""

    def __init__(self):
        super().__init__()
        self.rows, self.turned, self.wide = nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(10, 14)
        self.flat, self.pooled = nn.Conv1d(7, 4, 3), nn.Conv1d(4, 6, 3)
        widths = {"rows": 8, "turned": 10, "wide": 7, "flat": 4, "pooled": 6}
        for name, width in widths.items():
            norm = nn.BatchNorm1d(width)
            for tensor in (norm.weight, norm.bias, norm.running_mean):
                nn.init.uniform_(tensor, -2, 2)
            self.add_module(f"{name}_bn", norm)

    def forward(self, x):
        x = self.rows(x)
        x = self.rows_bn(x.flatten(0, 1)).reshape_as(x).relu()
        x = self.turned_bn(self.turned(x).transpose(1, 2)).relu().transpose(1, 2)
        x = self.wide_bn(self.wide(x).reshape(-1, 7)).reshape(-1, 7, 10)
        x = self.flat_bn(torch.flatten(self.flat(x), 2)).relu()
        return self.pooled_bn(self.pooled(x).mean(-1))


@pytest.mark.parametrize("container", ["live", "onnx", "pt2"])
def test_a_norm_behind_views_is_that_of_the_filters_it_acts_on(tmp_path, container):
    torch.manual_seed(0)
    net = Viewed().eval()
    source = in_container(net, torch.randn(2, 5, 6), container, tmp_path)
    found = ps.measure(source, kinds="all", view="effective")
    assert [layer.norm for layer in found.layers] == ["rows_bn", "turned_bn", None, "flat_bn", None]
    notes = " ".join(found.notes)
    assert "behind pooled a batch norm acts on what was pooled or rearranged" in notes
    assert "behind wide a batch norm of another width acts" in notes
    # Weight and bias that do what the layer and its norm do.
    zero, one = torch.zeros(1, 1, 6), torch.eye(6)[:, None]
    bias = net.rows_bn(net.rows(zero).flatten(0, 1))
    weight = (net.rows_bn(net.rows(one).flatten(0, 1)) - bias).T.double()
    cosine = (weight.sum(1) / weight.norm(dim=1) / 6**0.5).mean().item()
    assert found.layers[0].mean_cosine == pytest.approx(cosine, abs=1e-6)


class Crossed(nn.Module):
    """Batch norms along another axis than the filters, of which there are as many."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 6), nn.Linear(6, 6)
        self.rank4, self.squeezed = nn.BatchNorm2d(6), nn.BatchNorm1d(6)
        self.conv = nn.Conv2d(1, 6, (6, 1))

    def forward(self, x):
        x = self.rank4(self.first(x).unsqueeze(-1)).squeeze(-1).relu()
        x = self.second(x).relu()[:, None]
        return self.squeezed(self.conv(x).squeeze(2))


@pytest.mark.parametrize("container", ["live", "onnx", "pt2"])
def test_a_norm_along_another_axis_is_no_layers(tmp_path, container):
    source = in_container(Crossed().eval(), torch.randn(2, 6, 8), container, tmp_path)
    found = ps.measure(source, kinds="all")
    assert {layer.name: layer.norm for layer in found.layers} == {
        "first": None, "second": None, "conv": "squeezed",
    }  # fmt: skip
    assert "behind first a batch norm acts on what was" in " ".join(found.notes)
