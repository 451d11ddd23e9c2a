"""TensorFlow's formats: one network in all of them, against the arrays that TensorFlow gave."""

from __future__ import annotations

import base64
import json
import re
import shutil
import struct
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest
import torch
from torch import nn

import planescope as ps
from checks.fuzz.structures import table as index_of
from planescope.checkpoints import read_contents
from planescope.checkpoints.tensorflow.saved.table import read_table
from planescope.files.errors import CheckpointError
from planescope.hyperplanes.layer import Described, Input, Kind, StateDict
from planescope.networks.state.layers import find_layers

FILES = Path(__file__).parents[1] / "tensorflow_files"

LAYERS = (
    "stem", "deep", "point", "apart.depthwise", "apart.pointwise", "stride", "up", "hidden",
    "answer",
)  # fmt: skip
# What converters make of these names.
IN_GRAPHS = ("stem", "deep", "point", "apart", "apart", "stride", "up", "hidden", "answer")


@pytest.fixture(scope="module")
def expected():
    with np.load(FILES / "expected.npz") as arrays:
        return dict(arrays)


def layers_of(path):
    contents = read_contents(Path(path))[1]
    if isinstance(contents, StateDict):
        layers, skipped = find_layers(contents)
        return layers, [*contents.skipped, *skipped]
    if isinstance(contents, Described):
        return list(contents.layers), list(contents.skipped)
    return contents, []


def assert_same(tensor, array):
    values = tensor.read()
    assert tensor.shape == values.shape
    np.testing.assert_array_equal(values, array, strict=True)


# The arrays, bit by bit.


@pytest.mark.parametrize(
    "file",
    ["net.pb", "saved/saved_model.pb", "checkpoint/net.ckpt.index", "checkpoint/packed.ckpt.index",
     "layers-plain/model.json", "checkpoint/net.ckpt.data-00000-of-00001"],
)  # fmt: skip
def test_weights_are_those_of_the_network(file, expected):
    layers, skipped = layers_of(FILES / file)
    assert skipped == []
    for layer, name in zip(layers, IN_GRAPHS, strict=True):
        assert name in layer.name
    for layer, name in zip(layers, LAYERS, strict=True):
        assert_same(layer.weight, expected[f"weight/{name}"])
        if f"bias/{name}" in expected:
            assert layer.bias is not None, name
            assert_same(layer.bias, expected[f"bias/{name}"])
        else:
            assert layer.bias is None
    norm = layers[0].norm
    assert norm is not None
    assert norm.eps == pytest.approx(1e-3 if "checkpoint" not in file else norm.eps)
    parts = {"gamma": norm.gamma, "beta": norm.beta, "moving_mean": norm.mean,
             "moving_variance": norm.variance}  # fmt: skip
    for name, part in parts.items():
        assert_same(part, expected[f"norm/stem_bn.{name}"])
    assert all(layer.norm is None for layer in layers[1:])


@pytest.mark.parametrize("file", ["net", "int8", "half", "sparse", "grouped"])
def test_lite_weights_are_those_of_its_interpreter(file, expected):
    layers, skipped = layers_of(FILES / f"{file}.tflite")
    assert skipped == []
    arrays = [expected[f"{file}/{n}"] for n in range(len(layers))]
    assert f"{file}/{len(layers)}" not in expected
    for layer, array in zip(layers, arrays, strict=True):
        # What is stored in half precision is widened before it is used.
        assert layer.weight.dtype == ("float16" if file == "half" else "float32")
        np.testing.assert_array_equal(layer.weight.read().astype(np.float32), array, strict=True)


@pytest.mark.parametrize(
    ("file", "error"),
    [
        ("layers-float16", lambda values: abs(values).max() * 2.0**-11),
        ("layers-uint16", lambda values: (values.max() - values.min()) / 65535),
        ("layers-uint8", lambda values: (values.max() - values.min()) / 255),
    ],
)
def test_quantised_shards_are_within_a_step_of_the_network(file, error, expected):
    layers, _ = layers_of(FILES / file / "model.json")
    for layer, name in zip(layers, LAYERS, strict=True):
        array = expected[f"weight/{name}"]
        np.testing.assert_allclose(layer.weight.read(), array, atol=error(array) * 1.01, rtol=0)


def test_a_quantised_weight_is_its_step_times_the_scale(tmp_path):
    manifest = [
        {"paths": ["a", "b"], "weights": [
            {"name": "c/kernel", "shape": [1, 1, 1, 4], "dtype": "float32",
             "quantization": {"dtype": "uint16", "scale": 0.1, "min": -0.35}},
            {"name": "c/bias", "shape": [4], "dtype": "float32"},
        ]},
    ]  # fmt: skip
    config = {"class_name": "Sequential", "config": {"layers": [
        {"class_name": "Conv2D", "config": {"name": "c", "strides": [1, 1]}}]}}  # fmt: skip
    model = {"modelTopology": config, "weightsManifest": manifest}
    (tmp_path / "model.json").write_text(json.dumps(model))
    data = struct.pack("<4H4f", 0, 1, 7, 65535, 1, 2, 3, 4)
    (tmp_path / "a").write_bytes(data[:5])  # within a number
    (tmp_path / "b").write_bytes(data[5:])
    (layer,), _ = layers_of(tmp_path / "model.json")
    steps = np.array([0, 1, 7, 65535], np.float64)
    assert_same(layer.weight, (steps * 0.1 - 0.35).astype(np.float32).reshape(4, 1, 1, 1))
    assert_same(layer.bias, np.array([1, 2, 3, 4], np.float32))


def test_a_model_that_was_saved_without_keras_is_read_by_its_graph(expected):
    (conv, last), skipped = layers_of(FILES / "by-hand/saved_model.pb")
    assert skipped == []
    assert_same(conv.weight, expected["by-hand/filters"].transpose(3, 2, 0, 1))
    assert_same(conv.bias, expected["by-hand/shift"])
    assert_same(last.weight, expected["by-hand/last"].T)
    assert (conv.input, last.input) == (Input.IMAGE, Input.RELU)


def test_an_old_checkpoint_is_read_by_the_names_of_its_variables(expected):
    layers, skipped = layers_of(FILES / "old/net-7.index")
    found = {layer.name: layer for layer in layers}
    assert list(found) == ["net.conv1", "net.conv1_depthwise", "net.deconv", "net.head"]
    # (height, width, channels, filters); of the transposed one (height, width, filters, channels)
    conv = expected["old/net/conv1/weights"]
    assert_same(found["net.conv1"].weight, conv.transpose(3, 2, 0, 1))
    deep = expected["old/net/conv1_depthwise/depthwise_weights"]
    assert_same(found["net.conv1_depthwise"].weight, deep.transpose(2, 3, 0, 1))
    up = expected["old/net/deconv/weights"]
    assert_same(found["net.deconv"].weight, up.transpose(2, 3, 0, 1))
    assert_same(found["net.head"].weight, expected["old/net/head/kernel"].T)
    assert found["net.deconv"].kind is Kind.TRANSPOSED
    assert_same(found["net.deconv"].bias, expected["old/net/deconv/biases"])
    norm = found["net.conv1"].norm
    assert norm is not None
    assert_same(norm.mean, expected["old/net/conv1/BatchNorm/moving_mean"])
    assert {each.name: each.reason.split(":")[0] for each in skipped} == {
        "net.rnn.basic_lstm_cell": "a recurrent layer",
        "net.words.embeddings": "an embedding",
    }


# One network, one table.


def table(path, view="raw"):
    measured = ps.measure(FILES / path, kinds="all", view=view)
    return [
        (r.kind, r.filters, r.fan_in, r.groups, r.stage, r.input, r.negative_mass, r.mean_cosine)
        for r in measured.layers
    ]


def test_layers_are_named_as_their_variables():
    names = [layer.name for layer in layers_of(FILES / "saved/saved_model.pb")[0]]
    assert names == [
        "stem",
        "deep",
        "point",
        "apart",
        "apart_2",
        "stride",
        "up",
        "hidden",
        "answer",
    ]


@pytest.mark.parametrize("file", ["net.pb", "saved", "layers-plain"])
def test_the_table_is_that_of_the_keras_file(file):
    assert table(file) == table("net.keras")
    assert ps.measure(FILES / file).notes == ps.measure(FILES / "net.keras").notes


@pytest.mark.parametrize("file", ["graph-plain", "net.tflite", "half.tflite"])
def test_a_converted_network_has_the_effective_table(file):
    """Converters fold the norm into the weights: raw there is what effective is elsewhere."""
    for found, right in zip(table(file), table("net.keras", "effective"), strict=True):
        assert found[:6] == right[:6]
        # In half precision a sum within its rounding of 0 has no side.
        assert found[6] == right[6] or file == "half.tflite"
        assert found[7] == pytest.approx(right[7], abs=1e-4 if "half" in file else 1e-6)
    measured = ps.measure(FILES / file)
    assert any("folded" in note for note in measured.notes)


def test_a_quantised_network_has_nearly_the_effective_table():
    for found, right in zip(table("int8.tflite"), table("net.keras", "effective"), strict=True):
        assert found[:6] == right[:6]
        assert found[7] == pytest.approx(right[7], abs=0.02)


@pytest.mark.parametrize("file", ["grouped.pb", "grouped.tflite"])
def test_groups_are_told_by_the_channels_that_come_in(file, expected):
    (layer,), _ = layers_of(FILES / file)
    assert layer.groups == 2
    assert_same(layer.weight, expected["grouped/weight"])


@pytest.mark.parametrize(
    ("target", "form"),
    [
        ("saved", "saved-model"),
        ("old", "tensorflow-checkpoint"),
        ("checkpoint/net.ckpt", "tensorflow-checkpoint"),
        ("graph-uint8", "tfjs"),
        ("net.tflite", "tflite"),
        ("net.pb", "tensorflow-graph"),
    ],
)
def test_a_model_is_named_by_its_folder_or_by_what_its_files_begin_with(target, form):
    source = ps.measure(FILES / target, kinds="all").source
    assert source.format == form
    path = FILES / target
    every = [f for f in path.parent.glob(f"{path.name}*") if f.is_file()]
    every += [f for f in path.rglob("*") if f.is_file()]
    assert source.bytes == sum(f.stat().st_size for f in every)


def test_a_manifest_without_a_network_is_named_arrays(tmp_path):
    """As face-api.js keeps them: quantised, and called filters."""
    rng = np.random.default_rng(0)
    stored = {
        "conv0/filters": rng.integers(0, 256, (3, 3, 3, 16), np.uint8),
        "conv0/bias": rng.normal(size=16).astype(np.float32),
        "conv1/depthwise_filter": rng.integers(0, 256, (3, 3, 16, 1), np.uint8),
        "conv1/pointwise_filter": rng.integers(0, 256, (1, 1, 16, 8), np.uint8),
        "conv1/bias": rng.normal(size=8).astype(np.float32),
        "fc/weights": rng.normal(size=(8, 2)).astype(np.float32),
        "fc/bias": rng.normal(size=2).astype(np.float32),
    }
    coded = {"quantization": {"dtype": "uint8", "scale": 0.25, "min": -31.5}}
    weights = [
        {"name": name, "shape": list(array.shape), "dtype": "float32"}
        | (coded if array.dtype == np.uint8 else {})
        for name, array in stored.items()
    ]
    (tmp_path / "net.bin").write_bytes(b"".join(array.tobytes() for array in stored.values()))
    path = tmp_path / "net-weights_manifest.json"
    path.write_text(json.dumps([{"weights": weights, "paths": ["net.bin"]}]))

    layers, skipped = layers_of(path)
    assert skipped == []
    assert [(layer.name, layer.kind, layer.groups) for layer in layers] == [
        ("conv0", Kind.CONV, None),
        ("conv1/depthwise", Kind.CONV, 16),
        ("conv1/pointwise", Kind.POINTWISE, None),
        ("fc", Kind.LINEAR, None),
    ]
    numbers = {name: array * np.float32(0.25) - np.float32(31.5) for name, array in stored.items()}
    assert_same(layers[0].weight, numbers["conv0/filters"].transpose(3, 2, 0, 1))
    assert_same(layers[0].bias, stored["conv0/bias"])
    assert_same(layers[1].weight, numbers["conv1/depthwise_filter"].transpose(2, 3, 0, 1))
    assert layers[1].bias is None
    assert_same(layers[2].weight, numbers["conv1/pointwise_filter"].transpose(3, 2, 0, 1))
    assert_same(layers[2].bias, stored["conv1/bias"])
    assert_same(layers[3].weight, stored["fc/weights"].T)

    measured = ps.measure(tmp_path, kinds="all")  # the folder: shards are no models of their own
    assert (measured.source.format, len(measured.layers)) == ("tfjs", 4)
    assert "without its network" in measured.notes[0]
    (tmp_path / "net.bin").unlink()
    with pytest.raises(CheckpointError, match=r"its shard net.bin is missing"):
        ps.measure(path)


# What a graph tells: small ones, as a graph model of TensorFlow.js has them.


class Graph:
    """A graph model in the making: ``add("Relu", "x")`` gives the name of what it made."""

    def __init__(self):
        self.nodes, self.weights, self.data, self.library = [], [], bytearray(), []
        self.image = self.add("Placeholder", dtype={"type": "DT_FLOAT"})

    def add(self, op, *inputs, **attr):
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append({"name": name, "op": op, "input": list(inputs), "attr": attr})
        return name

    def constant(self, values, dtype=np.float32):
        array = np.asarray(values, dtype)
        name = self.add("Const")
        kind = {"f": "float32", "i": "int32"}[array.dtype.kind]
        self.weights.append({"name": name, "shape": list(array.shape), "dtype": kind})
        self.data += array.tobytes()
        return name

    def conv(self, value, *, channels=2, filters=2, op="Conv2D", **attr):
        drawn = np.random.default_rng(len(self.nodes)).normal(size=(3, 3, channels, filters))
        return self.add(op, value, self.constant(drawn), **attr)

    def read(self, folder):
        manifest = [{"paths": ["data"], "weights": self.weights}]
        topology = {"node": self.nodes, "library": {"function": self.library}}
        model = {"modelTopology": topology, "weightsManifest": manifest}
        (folder / "model.json").write_text(json.dumps(model))
        (folder / "data").write_bytes(self.data)
        return read_contents(folder / "model.json")[1]


def texts(*words):
    return {"list": {"s": [base64.b64encode(word.encode()).decode() for word in words]}}


def between(graph, op, value):
    """What stands before the second convolution, and whether a ReLU's output comes out."""
    relu, conv = graph.add("Relu", value), value
    positive, negative = graph.constant([1.0, 2.0]), graph.constant([-1.0, 2.0])
    axis = graph.constant(3, np.int32)
    pads = graph.constant([[0, 0]] * 4, np.int32)
    zero, one = graph.constant(0.0), graph.constant(1.0)
    return {
        "relu": (relu, True),
        "relu6": (graph.add("Relu6", conv), True),
        "none": (conv, False),
        "leaky": (graph.add("LeakyRelu", conv), False),
        "clip at 0": (graph.add("ClipByValue", conv, zero, one), True),
        "clip at -1": (graph.add("ClipByValue", conv, negative, one), False),
        "maximum with 0": (graph.add("Maximum", conv, zero), True),
        "maximum with -1": (graph.add("Maximum", conv, negative), False),
        "pooled": (graph.add("MaxPool", relu), True),
        "padded": (graph.add("Pad", relu, pads), True),
        "padded with -1": (graph.add("PadV2", relu, pads, graph.constant(-1.0)), False),
        "two joined": (graph.add("ConcatV2", relu, relu, axis), True),
        "joined with none": (graph.add("ConcatV2", relu, conv, axis), False),
        "positive added": (graph.add("AddV2", positive, relu), True),
        "negative added": (graph.add("AddV2", relu, negative), False),
        "scaled": (graph.add("Mul", relu, positive), True),
        "turned": (graph.add("Mul", relu, negative), False),
        "gated": (graph.add("Mul", graph.add("Sigmoid", conv), relu), True),
        "gate alone": (graph.add("Sigmoid", conv), False),
        "less itself": (graph.add("Sub", relu, relu), False),
        "split": (graph.add("Split", axis, relu), True),
        "cubic": (graph.add("ResizeBicubic", relu), False),
    }[op]


CASES = (
    "relu", "relu6", "none", "leaky", "clip at 0", "clip at -1", "maximum with 0",
    "maximum with -1", "pooled", "padded", "padded with -1", "two joined", "joined with none",
    "positive added", "negative added", "scaled", "turned", "gated", "gate alone", "less itself",
    "split", "cubic",
)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_comes_out_of_a_relu_is_told(case, tmp_path):
    graph = Graph()
    value, is_relu = between(graph, case, graph.conv(graph.image))
    graph.conv(value)
    first, second = graph.read(tmp_path).layers
    assert (first.input, second.input) == (Input.IMAGE, Input.RELU if is_relu else Input.OTHER)


def norm_of_constants(graph, value, **attr):
    parts = [graph.constant([n + 1.0, n + 2.0]) for n in range(4)]
    return graph.add("FusedBatchNormV3", value, *parts, epsilon={"f": 0.01}, **attr)


def test_a_norm_is_that_of_its_layer(tmp_path):
    graph = Graph()
    biased = graph.add("BiasAdd", graph.conv(graph.image), graph.constant([5.0, 6.0]))
    value = norm_of_constants(graph, biased, is_training={"b": False})
    value = graph.add("Relu", value)
    # Read by something else besides, a layer has no norm; nor in training mode.
    second = graph.conv(value)
    norm_of_constants(graph, second, is_training={"b": False})
    third = graph.conv(graph.add("Relu", second))
    norm_of_constants(graph, third)
    layers = graph.read(tmp_path).layers
    assert [layer.norm is not None for layer in layers] == [True, False, False]
    norm = layers[0].norm
    assert norm.eps == 0.01
    assert not any("folded" in note for note in graph.read(tmp_path).notes)
    parts = [norm.gamma, norm.beta, norm.mean, norm.variance]
    assert [part.read().tolist() for part in parts] == [[1, 2], [2, 3], [3, 4], [4, 5]]
    assert layers[0].bias.read().tolist() == [5, 6]


def test_a_scale_that_is_no_norm_is_told(tmp_path):
    graph = Graph()
    scaled = graph.add("Mul", graph.conv(graph.image), graph.constant([2.0, -3.0]))
    graph.add("AddV2", scaled, graph.constant([1.0, 1.0]))
    contents = graph.read(tmp_path)
    assert contents.layers[0].norm is None
    assert re.match("behind 1 layer .* stands a scale", contents.notes[0])


def test_fused_operations_are_followed(tmp_path):
    graph = Graph()
    bias = graph.constant([1.0, 2.0])
    kernel = graph.constant(np.ones((3, 3, 2, 2)))
    value = graph.add(
        "_FusedConv2D", graph.image, kernel, bias, fused_ops=texts("BiasAdd", "Relu"),
        strides={"list": {"i": ["1", "2", "2", "1"]}},
    )  # fmt: skip
    graph.conv(value, strides={"list": {"i": ["1", "2", "2", "1"]}})
    first, second = graph.read(tmp_path).layers
    assert first.bias.read().tolist() == [1, 2]
    # The image is in stage 0 whatever is done to it.
    assert (second.input, first.stage, second.stage) == (Input.RELU, 0, 1)


def test_weights_that_the_graph_computes_are_computed(tmp_path):
    graph = Graph()
    values = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    shape = graph.constant([1, 1, 2, 4], np.int32)
    kernel = graph.add("Reshape", graph.constant(values), shape)
    kernel = graph.add("Mul", kernel, graph.constant([1.0, 2.0, 3.0, 4.0]))
    begin, end, step = (graph.constant(v, np.int32) for v in ([0] * 4, [1, 1, 2, 2], [1] * 4))
    kernel = graph.add("StridedSlice", kernel, begin, end, step)
    graph.add("Conv2D", graph.image, kernel)
    (layer,) = graph.read(tmp_path).layers
    assert_same(layer.weight, (values * np.float32([1, 2, 3, 4]))[:, :2].T.reshape(2, 2, 1, 1))


def test_a_weight_that_is_used_twice_is_one_layer(tmp_path):
    graph = Graph()
    kernel = graph.constant(np.ones((3, 3, 2, 2)))
    value = graph.add("Relu", graph.add("Conv2D", graph.image, kernel))
    graph.add("Conv2D", value, kernel)
    (layer,) = graph.read(tmp_path).layers
    assert (layer.input, layer.stage) == (Input.OTHER, 0)


class Octaves(nn.Module):
    """A filter bank that each half of a signal goes through, as of a constant-Q transform."""

    def __init__(self):
        super().__init__()
        self.bank = nn.Conv2d(2, 4, 3, bias=False)

    def forward(self, x):
        return self.bank(torch.relu(x)).sum() + self.bank(nn.functional.max_pool2d(x, 2)).sum()


def octaves(container, net, folder):
    """The network in a container whose converter wrote the bank anew for each of its calls."""
    if container == "torch-export":
        torch.export.save(torch.export.export(net, (torch.ones(1, 2, 16, 16),)), folder / "net.pt2")
        return folder / "net.pt2"
    weight = net.bank.weight.detach().numpy()
    if container == "tfjs":
        graph = Graph()
        for value in (graph.add("Relu", graph.image), graph.add("MaxPool", graph.image)):
            graph.add("Conv2D", value, graph.constant(weight.transpose(2, 3, 1, 0)))
        graph.read(folder)
        return folder / "model.json"
    node = onnx.helper.make_node
    nodes = [
        node("Relu", ["image"], ["r"]), node("Conv", ["r", "w"], ["a"], name="Conv_4"),
        node("MaxPool", ["image"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p", "w_1"], ["b"], name="Conv_6"),
    ]  # fmt: skip
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, n, None, None])
        for name, n in (("image", 2), ("a", 4), ("b", 4))
    ]
    weights = [onnx.numpy_helper.from_array(weight, name) for name in ("w", "w_1")]
    graph = onnx.helper.make_graph(nodes, "net", values[:1], values[1:], weights)
    onnx.save(onnx.helper.make_model(graph), folder / "net.onnx")
    return folder / "net.onnx"


@pytest.mark.parametrize("container", ["tfjs", "onnx", "torch-export"])
def test_a_weight_that_is_written_for_each_call_is_one_layer(container, tmp_path):
    torch.manual_seed(0)
    net = Octaves().eval()
    rows = [
        [(x.kind, x.stage, x.input, x.filters, x.negative_mass, x.mean_cosine) for x in m.layers]
        for m in (ps.measure(net), ps.measure(octaves(container, net, tmp_path)))
    ]
    assert rows[0] == rows[1]
    assert [row[:4] for row in rows[0]] == [("conv", 0, "other", 4)]


def test_a_bank_that_is_written_for_each_call_is_told_by_its_other_name(tmp_path):
    measured = ps.measure(octaves("tfjs", Octaves().eval(), tmp_path))
    assert measured.notes[-1] == "Conv2D_4 also stands under Conv2D_6: one layer"


def test_the_norms_of_two_calls_are_not_taken_for_one(tmp_path):
    graph = Graph()
    kernel = np.random.default_rng(0).normal(size=(3, 3, 2, 2))
    for beta in (1.0, 2.0):
        value = graph.add("Conv2D", graph.image, graph.constant(kernel))
        parts = [graph.constant([v, v]) for v in (1.0, beta, 0.0, 1.0)]
        graph.add("FusedBatchNormV3", value, *parts, is_training={"b": False})
    graph.read(tmp_path)
    measured = ps.measure(tmp_path)
    (layer,) = measured.layers
    assert layer.mean_centre is None
    assert "with a bias or norm of its own, which is not measured" in measured.notes[-1]


@pytest.mark.parametrize(
    ("op", "make", "reason"),
    [
        ("CudnnRNNV3", lambda g: [g.image, g.constant([[1.0]])], "a recurrent layer"),
        ("Einsum", lambda g: [g.image, g.constant([[1.0]])], "an Einsum"),
        ("GatherV2", lambda g: [g.constant([[1.0]]), g.image], "an embedding"),
        ("Conv2D", lambda g: [g.image, g.add("Relu", g.image)], "its weights are computed from"),
        ("Conv2D", lambda g: [g.image, g.add("Tanh", g.constant([1.0]))],
         "its weights come out of Tanh"),
        ("Conv2D", lambda g: [g.image, g.constant(np.ones((1, 1, 1, 1)), np.int32)],
         "its weights are stored as int32"),
        ("BatchMatMulV2", lambda g: [g.image, g.constant(np.ones((2, 3, 4)))], "a stack of"),
        ("MatMul", lambda g: [g.constant(np.ones((3, 4))), g.image], "a product with weights in"),
    ],
)  # fmt: skip
def test_what_looks_like_a_layer_and_is_not_measured_is_told(op, make, reason, tmp_path):
    graph = Graph()
    graph.conv(graph.image)
    graph.add(op, *make(graph))
    contents = graph.read(tmp_path)
    assert len(contents.layers) == 1
    (skipped,) = contents.skipped
    assert skipped.reason.startswith(reason)


def test_two_values_that_are_multiplied_are_no_layer(tmp_path):
    graph = Graph()
    graph.conv(graph.image)
    graph.add("BatchMatMulV2", graph.image, graph.image)
    contents = graph.read(tmp_path)
    assert (len(contents.layers), contents.skipped) == (1, ())


def function(name, *nodes):
    return {
        "signature": {"name": name, "inputArg": [{"name": "x"}, {"name": "w"}],
                      "outputArg": [{"name": "y"}]},
        "nodeDef": list(nodes), "ret": {"y": "last:0"},
    }  # fmt: skip


def test_functions_are_put_in_the_place_of_their_calls(tmp_path):
    graph = Graph()
    inner = {"name": "last", "op": "Conv2D", "input": ["x", "w"], "attr": {}}
    relu = {"name": "last", "op": "Relu", "input": ["call:y:0"], "attr": {}}
    name = {"func": {"name": "inner"}}
    call = {"name": "call", "op": "PartitionedCall", "input": ["x", "w"], "attr": {"f": name}}
    graph.library = [function("inner", inner), function("outer", call, relu)]
    kernel = graph.constant(np.ones((3, 3, 2, 2)))
    value = graph.add("StatefulPartitionedCall", graph.image, kernel, f={"func": {"name": "outer"}})
    graph.conv(value)
    first, second = graph.read(tmp_path).layers
    assert (first.input, second.input) == (Input.IMAGE, Input.RELU)
    assert_same(first.weight, np.ones((2, 2, 3, 3), np.float32))


def test_layers_within_loops_and_branches_are_told(tmp_path):
    graph = Graph()
    inner = {"name": "last", "op": "Conv2D", "input": ["x", "w"], "attr": {}}
    graph.library = [function("body", inner)]
    graph.conv(graph.image)
    graph.add("While", graph.image, graph.image, body={"func": {"name": "body"}})
    (skipped,) = graph.read(tmp_path).skipped
    assert (skipped.name, skipped.reason[:12]) == ("last", "within While")


def test_weights_that_a_loop_takes_are_those_of_a_recurrent_layer(tmp_path):
    graph = Graph()
    graph.conv(graph.image)
    kernel = graph.constant(np.ones((4, 4)))
    within = graph.add("Enter", kernel)
    state = graph.add("Merge", graph.add("Enter", graph.image), "NextIteration_9")
    value = graph.add("MatMul", state, within)
    assert graph.add("Tanh", value) == "Tanh_8"
    graph.add("NextIteration", "Tanh_8")
    # Its first step may stand before the loop.
    graph.add("MatMul", graph.image, kernel)
    # What comes out of it is known to come from the input.
    graph.add("MatMul", graph.add("Exit", state), graph.constant(np.ones((4, 2))))
    contents = graph.read(tmp_path)
    assert [layer.kind for layer in contents.layers] == [Kind.CONV, Kind.LINEAR]
    assert contents.layers[1].input is not Input.IMAGE
    assert {each.reason[:17] for each in contents.skipped} == {"a recurrent layer"}


def test_a_norm_that_is_written_out_is_found_behind_a_squeeze(tmp_path):
    graph = Graph()
    value = graph.add("Squeeze", graph.conv(graph.image), squeeze_dims={"list": {"i": ["1"]}})
    gamma, beta, mean, variance = (graph.constant([n + 1.0, n + 2.0]) for n in range(4))
    root = graph.add("Rsqrt", graph.add("AddV2", variance, graph.constant(0.001)))
    scale = graph.add("Mul", root, gamma)
    product = graph.add("Mul", value, scale)
    graph.add("AddV2", product, graph.add("Sub", beta, graph.add("Mul", mean, scale)))
    (layer,) = graph.read(tmp_path).layers
    norm = layer.norm
    assert norm is not None
    assert norm.eps == np.float32(0.001)
    parts = [norm.gamma, norm.beta, norm.mean, norm.variance]
    assert [part.read().tolist() for part in parts] == [[1, 2], [2, 3], [3, 4], [4, 5]]


# Files that are damaged, or mean harm.


def copied(tmp_path, name):
    target = tmp_path / Path(name).name
    (shutil.copytree if (FILES / name).is_dir() else shutil.copy)(FILES / name, target)
    return target


@pytest.mark.parametrize("name", ["net.pb", "net.tflite", "saved/saved_model.pb"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_file_that_ends_early_is_called_so(name, share, tmp_path):
    data = (FILES / name).read_bytes()
    file = tmp_path / Path(name).name
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match="complete"):
        ps.measure(file, kinds="all")


def test_data_that_were_damaged_are_told_by_their_checksum(tmp_path):
    folder = copied(tmp_path, "old")
    data = folder / "net-7.data-00000-of-00001"
    raw = bytearray(data.read_bytes())
    raw[40] ^= 1
    data.write_bytes(raw)
    with pytest.raises(CheckpointError, match="checksum of 'net/conv1/"):
        ps.measure(folder, kinds="all", view="effective")


def test_an_index_that_was_damaged_is_told_by_its_checksum(tmp_path):
    folder = copied(tmp_path, "old")
    index = folder / "net-7.index"
    raw = bytearray(index.read_bytes())
    raw[40] ^= 1
    index.write_bytes(raw)
    with pytest.raises(CheckpointError, match="checksum of bytes"):
        ps.measure(folder)


@pytest.mark.parametrize(
    ("folder", "missing", "sentence"),
    [
        ("old", "net-7.data-00000-of-00001", "net-7.data-00000-of-00001 is missing"),
        ("saved", "variables/variables.index", "variables/variables.index is missing"),
        ("layers-plain", "group1-shard2of6.bin", "its shard group1-shard2of6.bin is missing"),
    ],
)
def test_a_file_that_is_missing_is_named(folder, missing, sentence, tmp_path):
    target = copied(tmp_path, folder)
    (target / missing).unlink()
    with pytest.raises(CheckpointError, match=sentence):
        ps.measure(target)


def test_parts_of_a_checkpoint_are_called_so(tmp_path):
    folder = copied(tmp_path, "old")
    index, data = (folder / f"net-7.{end}" for end in ("index", "data-00000-of-00001"))
    renamed = index.rename(folder / "net-7.ckpt")
    with pytest.raises(CheckpointError, match=r"put the \.index file beside it"):
        ps.measure(data)
    with pytest.raises(CheckpointError, match=r"net-7\.ckpt\.data-00000-of-00001 is missing"):
        ps.measure(renamed)
    # What version 1 begins with, where version 2 has the number of its files.
    first = folder / "first.ckpt"
    first.write_bytes(index_of([(b"", b"\x0a\x00")]))
    with pytest.raises(CheckpointError, match="of version 1; load it in TensorFlow"):
        ps.measure(first)
    graph = (FILES / "grouped.pb").read_bytes()
    length = bytes([len(graph) & 127 | 128, len(graph) >> 7])
    (folder / "net-7.meta").write_bytes(b"\x0a\x02\x22\x00\x12" + length + graph)
    with pytest.raises(CheckpointError, match=r"without its weights; give the \.index"):
        ps.measure(folder / "net-7.meta")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "C:\\secret", "a/../../secret", ""])
def test_a_shard_outside_of_the_folder_is_refused(name, tmp_path):
    model = {"modelTopology": {}, "weightsManifest": [{"paths": [name], "weights": []}]}
    (tmp_path / "model.json").write_text(json.dumps(model))
    with pytest.raises(CheckpointError, match="no file of its own folder"):
        ps.measure(tmp_path / "model.json")


def test_functions_that_call_one_another_twice_are_refused(tmp_path):
    """Thirty lines would stand for a thousand million operations."""
    graph = Graph()

    def twice(number):
        name = {"func": {"name": f"f{number + 1}"}}
        calls = [
            {"name": each, "op": "PartitionedCall", "input": ["x", "w"], "attr": {"f": name}}
            for each in ("a", "last")
        ]
        return function(f"f{number}", *calls)

    graph.library = [*map(twice, range(30)), function("f30")]
    graph.add("PartitionedCall", graph.image, graph.image, f={"func": {"name": "f0"}})
    with pytest.raises(CheckpointError, match="refused"):
        graph.read(tmp_path)


def test_operations_in_a_circle_are_refused(tmp_path):
    graph = Graph()
    graph.add("Relu", "Tanh_2")
    graph.add("Tanh", "Relu_1")
    with pytest.raises(CheckpointError, match="in a circle"):
        graph.read(tmp_path)


def test_a_number_that_stands_for_too_many_is_refused(tmp_path):
    shape = b"\x12\x06\x08" + b"\xff\xff\xff\xff\x0f"[:5]  # a dimension of 2^32 - 1
    tensor = b"\x08\x01" + b"\x12" + bytes([len(shape)]) + shape
    value = b"\x42" + bytes([len(tensor)]) + tensor
    entry = b"\x0a\x05value\x12" + bytes([len(value)]) + value
    const = b"\x0a\x01w\x12\x05Const\x2a" + bytes([len(entry)]) + entry
    image = b"\x0a\x01x\x12\x0bPlaceholder"
    conv = b"\x0a\x01c\x12\x06Conv2D\x1a\x01x\x1a\x01w"
    graph = b"".join(b"\x0a" + bytes([len(node)]) + node for node in (image, const, conv))
    (tmp_path / "bomb.pb").write_bytes(graph)
    with pytest.raises(CheckpointError, match="refused as a bomb"):
        ps.measure(tmp_path / "bomb.pb")


def test_a_packed_block_is_the_block(expected):
    plain = read_table(FILES / "checkpoint/net.ckpt.index")
    assert read_table(FILES / "checkpoint/packed.ckpt.index") == plain


def test_the_smallest_file_of_lite_is_called_damaged(tmp_path):
    (tmp_path / "a.tflite").write_bytes(b"\x08\0\0\0TFL3aaaaaaaa")
    with pytest.raises(
        CheckpointError, match="TensorFlow Lite model, whose tables lead out of the file"
    ):
        ps.measure(tmp_path / "a.tflite")


def test_layers_of_tensorflow_js_that_are_not_followed_are_named(tmp_path):
    """An embedding, whose weights are a matrix, and a layer whose weights the manifest lacks."""
    rng = np.random.default_rng(0)
    arrays = {
        "words/embeddings": rng.normal(size=(9, 4)),
        "conv/kernel": rng.normal(size=(3, 4, 8)),
        "conv/bias": np.zeros(8),
    }
    config = [
        {"class_name": "Embedding", "config": {"name": "words", "batch_input_shape": [None, 12]}},
        {"class_name": "Conv1D", "config": {"name": "conv", "activation": "relu"}},
        {"class_name": "Conv1D", "config": {"name": "lost", "activation": "relu"}},
    ]
    told = {
        "format": "layers-model",
        "modelTopology": {
            "model_config": {"class_name": "Sequential", "config": {"name": "n", "layers": config}}
        },
        "weightsManifest": [
            {
                "paths": ["shard.bin"],
                "weights": [
                    {"name": name, "shape": list(array.shape), "dtype": "float32"}
                    for name, array in arrays.items()
                ],
            }
        ],
    }
    (tmp_path / "model.json").write_text(json.dumps(told))
    raw = b"".join(array.astype("<f4").tobytes() for array in arrays.values())
    (tmp_path / "shard.bin").write_bytes(raw)
    measured = ps.measure(tmp_path / "model.json")
    (layer,) = measured.layers
    sums = arrays["conv/kernel"].astype("f4").sum(axis=(0, 1))
    assert (layer.name, layer.negative_mass) == ("conv", np.mean(sums <= 0))
    assert {one.name: one.reason for one in measured.skipped} == {
        "words": "an embedding: its rows are looked up, they cut nothing",
        "lost": "its weights are not in the manifest",
    }
