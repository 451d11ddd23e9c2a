"""ONNX models read as the onnx package reads them, without it, and no more than is asked for."""

from __future__ import annotations

import contextlib
import math
import os
import struct
import subprocess
import sys
import time
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx.reference
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from planescope.checkpoints.onnx import model as reader
from planescope.checkpoints.onnx.tensors import tensor_at
from planescope.checkpoints.probe import probe
from planescope.checkpoints.protobuf import MAX_FIELDS, WireFile, signed, unpack_varints
from planescope.files.errors import CheckpointError
from planescope.hyperplanes.layer import Input, Kind, Layer, Tensor

IMAGE = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 32, 32])

FLOATS = {
    TensorProto.FLOAT: np.dtype("float32"),
    TensorProto.DOUBLE: np.dtype("float64"),
    TensorProto.FLOAT16: np.dtype("float16"),
    TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    TensorProto.FLOAT8E4M3FN: np.dtype(ml_dtypes.float8_e4m3fn),
    TensorProto.FLOAT8E4M3FNUZ: np.dtype(ml_dtypes.float8_e4m3fnuz),
    TensorProto.FLOAT8E5M2: np.dtype(ml_dtypes.float8_e5m2),
    TensorProto.FLOAT8E5M2FNUZ: np.dtype(ml_dtypes.float8_e5m2fnuz),
}
INTEGERS = {
    TensorProto.INT8: np.dtype("int8"),
    TensorProto.UINT8: np.dtype("uint8"),
    TensorProto.INT16: np.dtype("int16"),
    TensorProto.UINT16: np.dtype("uint16"),
    TensorProto.INT32: np.dtype("int32"),
    TensorProto.UINT32: np.dtype("uint32"),
    TensorProto.INT64: np.dtype("int64"),
    TensorProto.UINT64: np.dtype("uint64"),
}


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def stored(name: str, values: np.ndarray) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values), name)


def conv(
    source: str, out: str, weight: str, bias: str = "", **attributes: object
) -> onnx.NodeProto:
    inputs = [source, weight, bias] if bias else [source, weight]
    return helper.make_node("Conv", inputs, [out], **attributes)


def model(
    nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray] | list[TensorProto] = ()
) -> onnx.ModelProto:
    """A model from `image` to whatever its last node gives."""
    tensors = (
        [stored(name, values) for name, values in weights.items()]
        if isinstance(weights, dict)
        else list(weights)
    )
    answer = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "net", [IMAGE], [answer], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])


@pytest.fixture
def read(tmp_path):
    """Write a model, check that it is recognised, and read its layers by name."""

    def write_and_read(proto: onnx.ModelProto | bytes) -> dict[str, Layer]:
        path = tmp_path / "net.onnx"
        path.write_bytes(proto if isinstance(proto, bytes) else proto.SerializeToString())
        assert reader.recognises(probe(path))
        layers = reader.read(path).layers
        named = {layer.name: layer for layer in layers}
        assert len(named) == len(layers)
        return named

    return write_and_read


def read_tensor(path: Path, proto: TensorProto | bytes) -> Tensor:
    path.write_bytes(proto if isinstance(proto, bytes) else proto.SerializeToString())
    with WireFile(path) as wire:
        return tensor_at(wire, wire.span)


def assert_same_bits(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    if theirs.dtype.name.startswith(("bfloat", "float8")):  # ours come widened
        theirs = theirs.astype(np.float32)
    assert ours.dtype == theirs.dtype
    assert ours.tobytes() == theirs.tobytes()


def varint(value: int) -> bytes:
    octets = bytearray()
    while value > 0x7F:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*octets, value])


# Values, against the onnx package.


def typed(data_type: int, values: np.ndarray) -> TensorProto:
    """A tensor whose elements are in a typed field."""
    return helper.make_tensor("w", data_type, values.shape, values.flatten())


def unpacked(proto: TensorProto) -> bytes:
    """The same tensor as a plain proto2 writer has it: each element a field of its own."""
    name, tag, form = {
        TensorProto.FLOAT: ("float_data", 4 << 3 | 5, "<f"),
        TensorProto.DOUBLE: ("double_data", 10 << 3 | 1, "<d"),
    }[proto.data_type]
    elements = list(getattr(proto, name))
    proto.ClearField(name)
    loose = b"".join(bytes([tag]) + struct.pack(form, element) for element in elements)
    return proto.SerializeToString() + loose


@pytest.mark.parametrize("way", ["raw", "typed"])
@pytest.mark.parametrize("data_type", [*FLOATS, *INTEGERS], ids=TensorProto.DataType.Name)
def test_values_are_those_of_the_onnx_package_to_the_last_bit(tmp_path, data_type, way):
    dtype = (FLOATS | INTEGERS)[data_type]
    values = draw(3, 2, 5) * 9
    if data_type in INTEGERS:  # negative ones wrap where there is no sign
        values = values.astype(np.int64)
    values = values.astype(dtype)
    proto = stored("w", values) if way == "raw" else typed(data_type, values)
    assert proto.HasField("raw_data") == (way == "raw")
    tensor = read_tensor(tmp_path / "w.pb", proto)
    assert tensor.shape == (3, 2, 5)
    assert tensor.dtype == dtype.name
    assert_same_bits(tensor.read(), numpy_helper.to_array(proto))


@pytest.mark.parametrize("data_type", [TensorProto.FLOAT, TensorProto.DOUBLE], ids=["f32", "f64"])
def test_unpacked_fields_are_the_same_as_packed_ones(tmp_path, data_type):
    proto = typed(data_type, draw(4, 3).astype(FLOATS[data_type]))
    expected = numpy_helper.to_array(proto)
    loose = unpacked(proto)
    assert numpy_helper.to_array(TensorProto.FromString(loose)).tolist() == expected.tolist()
    assert_same_bits(read_tensor(tmp_path / "w.pb", loose).read(), expected)


@pytest.mark.parametrize("way", ["raw", "typed"])
@pytest.mark.parametrize("data_type", [TensorProto.INT4, TensorProto.UINT4], ids=["int4", "uint4"])
@pytest.mark.parametrize("count", [6, 7])
def test_integers_of_four_bits_lie_two_to_a_byte(tmp_path, data_type, count, way):
    low = -8 if data_type == TensorProto.INT4 else 0
    proto = helper.make_tensor("w", data_type, [count], np.arange(low, low + count))
    if way == "raw":
        proto.raw_data = bytes(proto.int32_data)
        proto.ClearField("int32_data")
    ours = read_tensor(tmp_path / "w.pb", proto).read()
    np.testing.assert_array_equal(ours, np.arange(low, low + count))


def test_external_data_are_read_in_place(tmp_path):
    weights = {"a.weight": draw(4, 3, 3, 3), "b.weight": draw(2, 4, 1, 1, seed=1)}
    proto = model([conv("image", "x", "a.weight"), conv("x", "answer", "b.weight")], weights)
    path = tmp_path / "net.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="net.data", size_threshold=0)
    assert path.stat().st_size < 600
    for layer in reader.read(path).layers:
        assert_same_bits(layer.weight.read(), weights[f"{layer.name}.weight"])


def test_external_data_may_be_linked_as_the_hub_caches_them(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    weights = {"a.weight": draw(4, 3, 3, 3)}
    proto = model([conv("image", "answer", "a.weight")], weights)
    onnx.save(proto, blobs / "0", save_as_external_data=True, location="net.data", size_threshold=0)
    (blobs / "net.data").rename(blobs / "1")
    (snapshot / "net.onnx").symlink_to("../../blobs/0")
    (snapshot / "net.data").symlink_to("../../blobs/1")
    (layer,) = reader.read(snapshot / "net.onnx").layers
    assert_same_bits(layer.weight.read(), weights["a.weight"])


def test_packed_integers_of_every_length():
    values = [0, 1, 127, 128, 300, 2**32 - 1, 2**63, 2**64 - 1]
    packed = b"".join(varint(value) for value in values)
    assert unpack_varints(np.frombuffer(packed, np.uint8)).tolist() == values
    assert unpack_varints(np.zeros(0, np.uint8)).tolist() == []
    assert [signed(2**64 - 1), signed(2**63), signed(5)] == [-1, -(2**63), 5]


# Layers.


def test_filters_come_first_whatever_the_operator(read):
    grouped, transposed = draw(6, 1, 3, 3), draw(4, 3, 2, 2)
    gemm, gemm_turned, matmul = draw(5, 7), draw(7, 5, seed=1), draw(5, 3)
    layers = read(
        model(
            [
                conv("image", "a", "grouped.weight", group=3),
                helper.make_node("ConvTranspose", ["a", "up.weight"], ["b"], group=2),
                helper.make_node("Gemm", ["b", "gemm.weight"], ["c"], transB=1),
                helper.make_node("Gemm", ["c", "turned.weight"], ["d"], alpha=2.0),
                helper.make_node("MatMul", ["d", "matmul.weight"], ["e"]),
                conv("e", "f", "point.weight"),
            ],
            {
                "grouped.weight": grouped,
                "up.weight": transposed,
                "gemm.weight": gemm,
                "turned.weight": gemm_turned,
                "matmul.weight": matmul,
                "point.weight": draw(2, 3, 1),
            },
        )
    )
    assert {name: (layer.kind, layer.groups) for name, layer in layers.items()} == {
        "grouped": (Kind.CONV, 3),
        "up": (Kind.TRANSPOSED, 2),
        "gemm": (Kind.LINEAR, 1),
        "turned": (Kind.LINEAR, 1),
        "matmul": (Kind.LINEAR, 1),
        "point": (Kind.POINTWISE, 1),
    }
    assert_same_bits(layers["grouped"].weight.read(), grouped)
    # Two groups of two inputs and three outputs: output 3 g + o reads inputs 2 g and 2 g + 1.
    up = layers["up"].weight.read()
    assert up.shape == layers["up"].weight.shape == (6, 2, 2, 2)
    np.testing.assert_array_equal(up[4], transposed[2:, 1])
    np.testing.assert_array_equal(layers["gemm"].weight.read(), gemm)
    np.testing.assert_array_equal(layers["turned"].weight.read(), 2 * gemm_turned.T)
    np.testing.assert_array_equal(layers["matmul"].weight.read(), matmul.T)


@pytest.mark.parametrize(
    ("nodes", "bias", "read_as"),
    [
        pytest.param(
            [conv("image", "answer", "l.weight", "b")], [1, 2, 3, 4], [1, 2, 3, 4], id="conv"
        ),
        pytest.param(
            [conv("image", "x", "l.weight"), helper.make_node("Add", ["x", "b"], ["answer"])],
            [[[1]], [[2]], [[3]], [[4]]],
            [1, 2, 3, 4],
            id="conv-then-add",
        ),
        pytest.param(
            [conv("image", "x", "l.weight"), helper.make_node("Add", ["x", "b"], ["answer"])],
            [1, 2, 3, 4],  # spread over the width of the image, not over the filters
            None,
            id="conv-then-add-along-width",
        ),
        pytest.param(
            [
                helper.make_node("MatMul", ["image", "m"], ["x"]),
                helper.make_node("Add", ["b", "x"], ["answer"]),
            ],
            [1, 2],
            [1, 2],
            id="matmul-then-add",
        ),
        pytest.param(
            [helper.make_node("Gemm", ["image", "m", "b"], ["answer"], beta=0.5)],
            [[2, 4]],
            [1, 2],
            id="gemm-with-beta",
        ),
        pytest.param(
            [helper.make_node("Gemm", ["image", "m", "b"], ["answer"])], [0], [0, 0], id="gemm-one"
        ),
    ],
)
def test_bias_of_one_layer(read, nodes, bias, read_as):
    weights = {"l.weight": draw(4, 3, 3, 3), "m": draw(3, 2), "b": np.array(bias, np.float32)}
    (layer,) = read(model(nodes, weights)).values()
    assert (layer.bias and layer.bias.read().tolist()) == read_as


@pytest.mark.parametrize(
    ("initialiser", "node", "name"),
    [
        ("features.0.weight", "/features/features.0/Conv", "features.0"),
        ("onnx::Conv_193", "/features/features.0/Conv", "features.0"),
        ("onnx::Conv_193", "/layer1/layer1.0/conv1/Conv", "layer1.0.conv1"),
        ("onnx::Conv_193", "/features/features.1/conv/conv.0/conv.0.0/Conv", "features.1.conv.0.0"),
        ("const_fold_opt__65", "model/block1_conv1/Conv2D", "model.block1_conv1"),
        ("conv1_1_w_0", "", "answer"),
        ("193", "Conv_0", "Conv_0"),
    ],
)
def test_a_layer_has_the_name_of_its_module_where_the_file_tells(read, initialiser, node, name):
    nodes = [conv("image", "answer", initialiser, name=node)]
    assert list(read(model(nodes, {initialiser: draw(4, 3, 3, 3)}))) == [name]


def test_layers_of_one_name_are_told_apart(read):
    nodes = [conv("image", "x", "w", name="a/Conv"), conv("x", "answer", "v", name="a/Conv")]
    assert list(read(model(nodes, {"w": draw(3, 3, 3, 3), "v": draw(3, 3, 3, 3)}))) == ["a", "a_2"]


def test_a_layer_that_is_used_twice_counts_once(read):
    nodes = [
        helper.make_node("Identity", ["l.weight"], ["same"]),
        conv("image", "x", "l.weight"),
        conv("x", "answer", "same"),
    ]
    layers = read(model(nodes, {"l.weight": draw(3, 3, 3, 3)}))
    # Once it reads the image, once its own output.
    assert {name: layer.input for name, layer in layers.items()} == {"l": Input.OTHER}


def left_out(proto: onnx.ModelProto, path: Path) -> dict[str, str]:
    """What a model leaves out, by name, with the reason."""
    path.write_bytes(proto.SerializeToString())
    return {skipped.name: skipped.reason for skipped in reader.read(path).skipped}


def test_layers_whose_weights_cannot_be_had_are_left_out_by_name(tmp_path, read):
    proto = model(
        [
            helper.make_node("Relu", ["image"], ["r"]),
            conv("image", "x", "r", name="dynamic"),
            helper.make_node("Erf", ["kept.weight"], ["made"]),
            conv("x", "y", "made", name="made"),
            conv("y", "v", "integers", name="whole"),
            conv("v", "u", "nowhere", name="lost"),
            helper.make_node("MatMul", ["u", "stack"], ["z"], name="stacked"),
            helper.make_node("MatMul", ["z", "u"], ["q"], name="of-two-values"),
            helper.make_node("LSTM", ["q", "stack", "stack"], ["h"], name="/rnn/LSTM"),
            conv("h", "answer", "kept.weight"),
        ],
        {
            "kept.weight": draw(2, 2, 3, 3),
            "stack": draw(4, 3, 3),
            "integers": np.ones((2, 2, 3, 3), np.int8),
        },
    )
    assert list(read(proto)) == ["kept"]
    assert left_out(proto, tmp_path / "net.onnx") == {
        "dynamic": "its weight is computed while the network runs",
        "made": "its weight is made by Erf, in a way that is not followed",
        "whole": "its weights are stored as int8; save the model dequantised",
        "lost": "its weight, 'nowhere', is not in the file",
        "stacked": "a stack of matrices of shape (4, 3, 3), each for inputs of its own",
        "rnn": "a recurrent layer: its weights act on its own output too",
    }


def test_weights_of_which_the_file_lists_those_that_are_not_0(read):
    proto = model([conv("image", "answer", "sparse")])
    values, places = stored("sparse", np.float32([2, 3])), stored("i", np.int64([1, 107]))
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [4, 3, 3, 3]))
    dense = np.zeros(108, np.float32)
    dense[[1, 107]] = 2, 3
    np.testing.assert_array_equal(read(proto)["answer"].weight.read(), dense.reshape(4, 3, 3, 3))


def test_tensors_of_old_models_are_no_images_though_they_are_listed_as_inputs(read):
    proto = model([conv("image", "answer", "l.weight")], {"l.weight": draw(2, 3, 3, 3)})
    proto.ir_version = 3
    proto.graph.input.append(helper.make_tensor_value_info("l.weight", 1, [2, 3, 3, 3]))
    assert read(proto)["l"].input is Input.IMAGE


# Weights that the graph makes of constants.


def folded(nodes: list[onnx.NodeProto], constants: list[TensorProto]) -> onnx.ModelProto:
    """A convolution whose weights `w` the nodes make."""
    return model([*nodes, conv("image", "answer", "w")], constants)


def reference(proto: onnx.ModelProto) -> np.ndarray:
    """The weights `w` as the reference evaluator of ONNX computes them."""
    alone = onnx.ModelProto()
    alone.CopyFrom(proto)
    del alone.graph.node[-1], alone.graph.input[:], alone.graph.output[:]
    alone.graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, None))
    return onnx.reference.ReferenceEvaluator(alone).run(None, {})[0]


def node(op: str, *inputs: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), ["w"], **attributes)


STEPS = (np.arange(108) % 251).reshape(4, 3, 3, 3)
SCALES = np.array([0.1, 0.25, 3.0, 0.007], np.float32)


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        pytest.param(
            [node("DequantizeLinear", "q", "s")],
            [stored("q", STEPS.astype(np.int8)), stored("s", np.float32(0.1))],
            id="int8-whole",
        ),
        pytest.param(
            [node("DequantizeLinear", "q", "s", "z", axis=0)],
            [
                stored("q", STEPS.astype(np.uint8)),
                stored("s", SCALES),
                stored("z", np.array([0, 128, 255, 7], np.uint8)),
            ],
            id="uint8-by-filter",
        ),
        pytest.param(
            [node("DequantizeLinear", "q", "s", "z", axis=-3)],
            [
                stored("q", STEPS.astype(np.int8)),
                stored("s", SCALES[:3]),
                stored("z", np.array([-128, 3, 127], np.int8)),
            ],
            id="int8-by-channel",
        ),
        pytest.param(
            [node("DequantizeLinear", "q", "s", axis=0, block_size=3)],  # 4 filters: 3 and 1
            [stored("q", STEPS.astype(np.int8)), stored("s", np.abs(draw(2, 3, 3, 3)))],
            id="int8-by-block",
        ),
        pytest.param(
            [node("DequantizeLinear", "q", "s", axis=0)],
            [
                helper.make_tensor("q", TensorProto.INT4, [4, 3, 3, 3], STEPS.flatten() % 16 - 8),
                stored("s", SCALES),
            ],
            id="int4",
        ),
        pytest.param(
            [node("DequantizeLinear", "q", "s")],
            [stored("q", STEPS.astype(np.int8)), stored("s", np.float16(0.1))],
            id="to-float16",
        ),
        pytest.param(
            [node("DequantizeLinear", "q", "s")],
            [
                stored("q", draw(4, 3, 3, 3).astype(ml_dtypes.float8_e4m3fn)),
                stored("s", np.float32(0.1)),
            ],
            id="float8",
        ),
        pytest.param(
            [
                helper.make_node("QuantizeLinear", ["f", "s", "z"], ["q"], axis=0),
                node("DequantizeLinear", "q", "s", "z", axis=0),
            ],
            [
                stored("f", draw(4, 3, 3, 3)),
                stored("s", SCALES / 10),
                stored("z", np.zeros(4, np.int8)),
            ],
            id="quantised-and-back",
        ),
        pytest.param(
            [node("Cast", "f", to=TensorProto.FLOAT16)], [stored("f", draw(4, 3, 3, 3))], id="cast"
        ),
        pytest.param(
            [
                helper.make_node("Cast", ["f"], ["c"], to=TensorProto.BFLOAT16),
                node("Cast", "c", to=TensorProto.FLOAT),
            ],
            [stored("f", draw(4, 3, 3, 3))],
            id="cast-to-bfloat16-and-back",
        ),
        pytest.param(
            [node("Transpose", "f", perm=[3, 2, 0, 1])],  # as TensorFlow has them
            [stored("f", draw(3, 3, 3, 4))],
            id="transpose",
        ),
        pytest.param([node("Transpose", "f")], [stored("f", draw(5, 4, 3))], id="transpose-all"),
        pytest.param(
            [
                helper.make_node("Constant", [], ["shape"], value_ints=[0, -1, 3]),
                node("Reshape", "f", "shape"),
            ],
            [stored("f", draw(4, 9))],
            id="reshape",
        ),
        pytest.param(
            [node("Unsqueeze", "f", "axes")],
            [stored("f", draw(4, 3)), stored("axes", np.array([-1, 1]))],
            id="unsqueeze",
        ),
        pytest.param(
            [node("Squeeze", "f", "axes")],
            [stored("f", draw(1, 4, 1, 3, 3)), stored("axes", np.array([0, -3]))],
            id="squeeze",
        ),
        pytest.param([node("Squeeze", "f")], [stored("f", draw(1, 4, 1, 3, 3))], id="squeeze-all"),
        pytest.param(
            [helper.make_node("Flatten", ["f"], ["g"], axis=2), node("Reshape", "g", "shape")],
            [stored("f", draw(2, 2, 3, 3)), stored("shape", np.array([4, 3, 3]))],
            id="flatten",
        ),
        pytest.param(
            [
                helper.make_node("Constant", [], ["f"], value=stored("", draw(4, 3, 3))),
                node("Identity", "f"),
            ],
            [],
            id="constant-node",
        ),
        pytest.param(
            [
                helper.make_node("Constant", [], ["f"], value_floats=[0.1, 2.5, -3.0]),
                node("Unsqueeze", "f", "axes"),
            ],
            [stored("axes", np.array([1, 2]))],
            id="constant-floats",
        ),
    ],
)
def test_folded_weights_are_those_of_the_reference_evaluator(read, nodes, constants):
    proto = folded(nodes, constants)
    (layer,) = read(proto).values()
    expected = reference(proto)
    assert layer.weight.dtype == expected.dtype.name
    assert layer.weight.shape == expected.shape
    assert_same_bits(np.ascontiguousarray(layer.weight.read()), expected)


@pytest.mark.parametrize("name", ["a.weight_quantized", "a.weight_Transposed_quantized"])
def test_quantised_weights_keep_the_name_of_their_module(read, name):
    nodes = [helper.make_node("DequantizeLinear", [name, "s"], ["w"])]
    constants = [stored(name, STEPS.astype(np.int8)), stored("s", np.float32(1))]
    assert list(read(folded(nodes, constants))) == ["a"]


# What the graph tells.


def relu(source: str, out: str) -> onnx.NodeProto:
    return helper.make_node("Relu", [source], [out])


def pool(source: str, out: str, kind: str = "MaxPool", stride: int = 2) -> onnx.NodeProto:
    strides = [stride, stride]
    return helper.make_node(kind, [source], [out], kernel_shape=[2, 2], strides=strides)


def norm(source: str, out: str, name: str, **attributes: float) -> onnx.NodeProto:
    parts = [f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
    return helper.make_node("BatchNormalization", [source, *parts], [out], **attributes)


def norm_weights(name: str, width: int, seed: int = 0) -> dict[str, np.ndarray]:
    parts = ("weight", "bias", "running_mean", "running_var")
    values = np.abs(draw(4, width, seed=seed))
    return {f"{name}.{part}": row for part, row in zip(parts, values, strict=True)}


def test_a_network_like_vgg(read):
    weights = {f"{i}.weight": draw(3, 3, 3, 3, seed=i) for i in range(4)}
    layers = read(
        model(
            [
                helper.make_node("Sub", ["image", "mean"], ["centred"]),
                helper.make_node("Div", ["centred", "std"], ["scaled"]),
                conv("scaled", "c0", "0.weight"),
                relu("c0", "r0"),
                conv("r0", "c1", "1.weight"),
                norm("c1", "n1", "bn", epsilon=0.001),
                relu("n1", "r1"),
                pool("r1", "p1"),
                conv("p1", "c2", "2.weight"),
                relu("c2", "r2"),
                pool("r2", "p2", "AveragePool"),
                pool("p2", "p3", stride=1),
                conv("p3", "c3", "3.weight", strides=[1, 2]),
                helper.make_node("GlobalAveragePool", ["c3"], ["g"]),
                helper.make_node("Flatten", ["g"], ["f"]),
                helper.make_node("Gemm", ["f", "head.weight"], ["answer"]),
            ],
            {
                **weights,
                **norm_weights("bn", 3),
                "head.weight": draw(3, 10),
                "mean": np.full((3, 1, 1), 0.5, np.float32),
                "std": np.full((3, 1, 1), 0.2, np.float32),
            },
        )
    )
    assert {name: (layer.stage, layer.input) for name, layer in layers.items()} == {
        "0": (0, Input.IMAGE),
        "1": (0, Input.RELU),
        "2": (1, Input.RELU),
        "3": (3, Input.RELU),  # its own stride opens the stage
        "head": (3, Input.OTHER),
    }
    assert {name for name, layer in layers.items() if layer.norm} == {"1"}
    found = layers["1"].norm
    assert (found.name, layers["1"].norm_assumed) == ("bn", False)
    assert found.eps == pytest.approx(0.001)
    parts = (found.gamma, found.beta, found.mean, found.variance)
    for ours, theirs in zip(parts, norm_weights("bn", 3).values(), strict=True):
        np.testing.assert_array_equal(ours.read(), theirs)


@pytest.mark.parametrize(
    ("nodes", "fed"),
    [
        pytest.param([relu("image", "x")], Input.RELU, id="relu"),
        pytest.param([node("Clip", "image", "zero", "six")], Input.RELU, id="relu6"),
        pytest.param(
            [
                helper.make_node("Squeeze", ["zero", "axis"], ["least"]),
                node("Clip", "image", "least"),
            ],
            Input.RELU,
            id="axes-of-a-scalar-are-none",
        ),
        pytest.param([node("Clip", "image", "", "six")], Input.OTHER, id="clip-above"),
        pytest.param([node("Clip", "image", "minus")], Input.OTHER, id="clip-below-zero"),
        pytest.param([node("LeakyRelu", "image")], Input.OTHER, id="leaky-relu"),
        pytest.param([node("PRelu", "image", "zero")], Input.OTHER, id="prelu"),
        pytest.param([node("Sigmoid", "image")], Input.OTHER, id="sigmoid"),
        pytest.param([node("Transpose", "image", perm=[0, 1, 3, 2])], Input.IMAGE, id="turned"),
        pytest.param([node("Mul", "image", "minus")], Input.IMAGE, id="scaled-image"),
        pytest.param([relu("image", "r"), node("Mul", "r", "six")], Input.RELU, id="scaled"),
        pytest.param([relu("image", "r"), node("Mul", "r", "minus")], Input.OTHER, id="negated"),
        pytest.param([relu("image", "r"), node("Sub", "r", "six")], Input.OTHER, id="shifted"),
        pytest.param(
            [relu("image", "r"), node("Concat", "r", "image", axis=1)], Input.OTHER, id="mixed"
        ),
        pytest.param(
            [relu("image", "r"), pool("image", "p"), relu("p", "s"), node("Concat", "r", "s")],
            Input.RELU,
            id="concat-of-relus",
        ),
        pytest.param([relu("image", "r"), node("Add", "r", "r")], Input.RELU, id="sum-of-relus"),
        pytest.param(
            [
                relu("image", "r"),
                helper.make_node("Sigmoid", ["image"], ["gate"]),
                node("Mul", "gate", "r"),
            ],
            Input.RELU,
            id="gated-relu",
        ),
        pytest.param(
            [helper.make_node("Sigmoid", ["image"], ["gate"]), node("Mul", "image", "gate")],
            Input.OTHER,
            id="silu",
        ),
        pytest.param([relu("image", "r"), norm("r", "w", "bn")], Input.OTHER, id="relu-then-norm"),
        pytest.param([norm("image", "w", "bn")], Input.IMAGE, id="norm-of-the-image"),
        pytest.param(
            [relu("image", "r"), node("LRN", "r", size=5)], Input.RELU, id="response-norm"
        ),
        pytest.param([node("Gelu", "image")], Input.OTHER, id="unknown-operator"),
        pytest.param([node("Gather", "bn.weight", "image")], Input.OTHER, id="looked-up"),
    ],
)
def test_what_feeds_a_layer(read, nodes, fed):
    nodes[-1].output[0] = "fed"
    constants = {"zero": 0, "six": 6, "minus": -1}
    weights = {name: np.float32(value) for name, value in constants.items()}
    weights |= norm_weights("bn", 3) | {"l.weight": draw(4, 3, 3, 3), "axis": np.int64([0])}
    assert read(model([*nodes, conv("fed", "answer", "l.weight")], weights))["l"].input is fed


def test_residual_network(read):
    layers = read(
        model(
            [
                conv("image", "c0", "stem.weight", strides=[2, 2]),
                relu("c0", "r0"),
                conv("r0", "c1", "a.weight"),
                norm("c1", "n1", "bn_a"),
                relu("n1", "r1"),
                conv("r1", "c2", "b.weight", strides=[2, 2]),
                norm("c2", "n2", "bn_b"),
                conv("r0", "s", "short.weight", strides=[2, 2]),
                helper.make_node("Add", ["n2", "s"], ["sum"]),
                conv("sum", "c3", "linear.weight"),
                relu("sum", "r3"),
                conv("r3", "answer", "next.weight"),
            ],
            {
                **{f"{name}.weight": draw(3, 3, 3, 3) for name in ("stem", "a", "b", "next")},
                "linear.weight": draw(3, 3, 3, 3),
                "short.weight": draw(3, 3, 1, 1),
                **norm_weights("bn_a", 3),
                **norm_weights("bn_b", 3),
            },
        )
    )
    assert {name: (layer.stage, layer.input) for name, layer in layers.items()} == {
        "stem": (0, Input.IMAGE),  # a step on the image itself opens no stage
        "a": (0, Input.RELU),
        "b": (1, Input.RELU),  # the sum comes between
        "short": (1, Input.RELU),
        "linear": (1, Input.OTHER),
        "next": (1, Input.RELU),
    }
    assert [layer.norm and layer.norm.name for layer in layers.values()] == [
        None, "bn_a", "bn_b", None, None, None,
    ]  # fmt: skip


@pytest.mark.parametrize("hard", [False, True], ids=["sigmoid", "decomposed-hard-sigmoid"])
def test_squeeze_and_excitation_keeps_what_a_relu_gave(read, hard):
    gate = [helper.make_node("Sigmoid", ["c2"], ["gate"])]
    if hard:
        gate = [
            helper.make_node("Add", ["c2", "three"], ["moved"]),
            helper.make_node("Clip", ["moved", "zero", "six"], ["cut"]),
            helper.make_node("Div", ["cut", "six"], ["gate"]),
        ]
    layers = read(
        model(
            [
                conv("image", "c0", "in.weight"),
                relu("c0", "r0"),
                helper.make_node("GlobalAveragePool", ["r0"], ["g"]),
                conv("g", "c1", "down.weight"),
                relu("c1", "r1"),
                conv("r1", "c2", "up.weight"),
                *gate,
                helper.make_node("Mul", ["r0", "gate"], ["scaled"]),
                conv("scaled", "answer", "out.weight"),
            ],
            {
                **{f"{name}.weight": draw(3, 3, 1, 1) for name in ("in", "down", "up", "out")},
                "zero": np.float32(0),
                "three": np.float32(3),
                "six": np.float32(6),
            },
        )
    )
    assert [layers[name].input for name in ("in", "down", "up", "out")] == [
        Input.IMAGE, Input.RELU, Input.RELU, Input.RELU,
    ]  # fmt: skip
    assert {layer.stage for layer in layers.values()} == {0}


def test_a_norm_that_is_not_alone_behind_a_layer_is_not_its_own(read):
    nodes = [
        conv("image", "x", "l.weight"),
        norm("x", "n", "bn"),
        helper.make_node("Add", ["x", "n"], ["answer"]),
    ]
    assert (
        read(model(nodes, {"l.weight": draw(4, 3, 3, 3), **norm_weights("bn", 4)}))["l"].norm
        is None
    )


def test_the_scale_layer_of_caffe_is_part_of_the_norm(read):
    nodes = [
        conv("image", "x", "l.weight"),
        norm("x", "n", "bn"),
        helper.make_node("Unsqueeze", ["scale", "axes"], ["s"]),
        helper.make_node("Mul", ["n", "s"], ["m"]),
        helper.make_node("Add", ["m", "shift"], ["a"]),
        relu("a", "answer"),
    ]
    scale, shift = draw(4, seed=1), draw(4, 1, 1, seed=2)
    weights = {
        "l.weight": draw(4, 3, 3, 3),
        "scale": scale,
        "shift": shift,
        "axes": np.array([1, 2]),
    }
    layer = read(model(nodes, weights | norm_weights("bn", 4)))["l"]
    gamma, beta, *_ = norm_weights("bn", 4).values()
    np.testing.assert_array_equal(layer.norm.gamma.read(), gamma * scale)
    np.testing.assert_array_equal(layer.norm.beta.read(), beta * scale + shift.reshape(4))


def test_branches_see_the_values_around_them(read):
    def branch(name: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info("r", TensorProto.FLOAT, None)
        nodes = [conv("p", "c", "w", name=f"{name}/Conv"), relu("c", "r")]
        # Both branches use the same names within.
        return helper.make_graph(nodes, name, [], [out], [stored("w", WEIGHTS[name])])

    WEIGHTS = {"yes": draw(3, 3, 3, 3), "no": draw(3, 3, 3, 3, seed=1)}
    nodes = [
        pool("image", "p"),
        helper.make_node("Constant", [], ["condition"], value=stored("", np.array(True))),
        helper.make_node(
            "If", ["condition"], ["i"], then_branch=branch("yes"), else_branch=branch("no")
        ),
        conv("i", "answer", "after.weight"),
    ]
    layers = read(model(nodes, {"after.weight": draw(3, 3, 3, 3)}))
    assert {name: (layer.stage, layer.input) for name, layer in layers.items()} == {
        "yes": (0, Input.IMAGE),
        "no": (0, Input.IMAGE),
        "after": (0, Input.RELU),
    }
    for name, values in WEIGHTS.items():
        np.testing.assert_array_equal(layers[name].weight.read(), values)


def test_what_a_loop_carries_is_unknown(read):
    out = [
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
    ]
    fed = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
    ]
    weights = [stored("l.weight", draw(3, 3, 3, 3))]
    body = helper.make_graph([conv("x", "y", "l.weight")], "body", fed, out, weights)
    layer = read(model([helper.make_node("Loop", ["", "", "image"], ["answer"], body=body)]))["l"]
    assert (layer.stage, layer.input) == (None, Input.UNKNOWN)


# Networks as others have written them.

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def weightless(name: str, folder: Path) -> Path:
    """A network of the ONNX model zoo, its weights in a file beside it that takes no room."""
    proto = onnx.load(LIGHT / f"light_{name}.onnx")
    sizes = {i.name: numpy_helper.to_array(i) for i in proto.graph.initializer}
    filled = [n for n in proto.graph.node if n.op_type == "ConstantOfShape"]
    for made in filled:
        tensor = proto.graph.initializer.add(name=made.output[0], data_type=TensorProto.FLOAT)
        tensor.dims.extend(sizes[made.input[0]])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="zeros")
        proto.graph.node.remove(made)
    largest = max(math.prod(sizes[made.input[0]]) for made in filled)
    with (folder / "zeros").open("wb") as file:
        file.truncate(4 * largest)
    for tensor in proto.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.external_data.add(key="length", value=str(4 * math.prod(tensor.dims)))
    onnx.save(proto, folder / "net.onnx")
    return folder / "net.onnx"


@pytest.mark.parametrize(
    ("name", "kinds", "stages", "norms"),
    [
        # Counted in the papers: VGG19 has 16 convolutions, by stage 2, 2, 4, 4, 4.
        pytest.param("vgg19", (16, 0, 3), [2, 2, 4, 4, 4, 3], 0, id="vgg19"),
        # Stem (stride 2, then pool), 3, 4, 6 and 3 blocks of three, and four shortcuts. The second
        # convolution of a block has the stride, so the first is of the stage before still; that of
        # the stem is a step on the image itself, which opens none: the stem alone, then
        # 3 * 3 + 1 + 1, then 4 * 3 + 1 - 1 + 1, ... and the head.
        pytest.param("resnet50", (17, 36, 1), [1, 11, 13, 19, 10], 53, id="resnet50"),
        # Norm and ReLU stand before each convolution: only the 1x1 ones of the 58 dense layers have
        # their own behind, and the stem.
        pytest.param("densenet121", (59, 62, 0), [1, 13, 25, 49, 33], 59, id="densenet121"),
    ],
)
def test_networks_of_the_model_zoo(tmp_path, name, kinds, stages, norms):
    layers = reader.read(weightless(name, tmp_path)).layers
    found = [layer.kind for layer in layers]
    assert tuple(map(found.count, (Kind.CONV, Kind.POINTWISE, Kind.LINEAR))) == kinds
    assert np.bincount([layer.stage for layer in layers]).tolist() == stages
    assert sum(layer.norm is not None for layer in layers) == norms
    assert [layer.input for layer in layers] == [
        Input.IMAGE if i == 0 else Input.RELU for i in range(len(layers))
    ]
    assert not layers[-1].weight.read().any()


def test_a_network_that_torch_exported(tmp_path):
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2),
        torch.nn.ReLU6(),
        torch.nn.Sequential(
            torch.nn.Conv2d(8, 8, 3, groups=8, bias=False), torch.nn.BatchNorm2d(8, eps=1e-3)
        ),
        torch.nn.ConvTranspose2d(8, 4, 2),
        torch.nn.Flatten(),
        torch.nn.Linear(4 * 14 * 14, 5),
    )
    path = tmp_path / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the older exporter, which needs no other package
        torch.onnx.export(
            net.train(),
            (torch.zeros(2, 3, 32, 32),),
            path,
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,  # keeps the norm apart
            do_constant_folding=False,
        )
    layers = {layer.name: layer for layer in reader.read(path).layers}
    assert list(layers) == ["0", "2.0", "3", "5"]
    state = {name: values.numpy() for name, values in net.state_dict().items()}
    for name, layer in layers.items():
        expected = state[f"{name}.weight"]
        if layer.kind is Kind.TRANSPOSED:
            expected = expected.swapaxes(0, 1)
        np.testing.assert_array_equal(layer.weight.read(), expected)
    assert layers["2.0"].norm.name == "2.1"
    assert layers["2.0"].norm.eps == pytest.approx(1e-3)
    assert [layers[name].input for name in layers] == [
        Input.IMAGE, Input.RELU, Input.OTHER, Input.OTHER,
    ]  # fmt: skip


# Damage and lies.


def external(location: str, **entries: object) -> TensorProto:
    tensor = TensorProto(name="l.weight", data_type=TensorProto.FLOAT, dims=[2, 3, 3, 3])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def lying(**changes: object) -> TensorProto:
    """A tensor of 54 floats that claims something else."""
    tensor = stored("l.weight", draw(2, 3, 3, 3))
    for name, value in changes.items():
        if name == "dims":
            tensor.dims[:] = value
        else:
            setattr(tensor, name, value)
    return tensor


def short(**fields: list[float]) -> TensorProto:
    return TensorProto(name="l.weight", data_type=1, dims=[2, 3, 3, 3], **fields)


@pytest.mark.parametrize(
    ("tensor", "sentence"),
    [
        pytest.param(external("/etc/passwd"), "is not a path inside", id="absolute"),
        pytest.param(external("../secret"), "is not a path inside", id="parent"),
        pytest.param(external("a/../../secret"), "is not a path inside", id="detour"),
        pytest.param(external("..\\secret"), "is not a path inside", id="backslash"),
        pytest.param(external("C:secret"), "is not a path inside", id="drive"),
        pytest.param(external("way-out"), "is not a path inside", id="link"),
        pytest.param(external("loop"), "is not a path inside|cannot be read", id="loop"),
        pytest.param(external(""), "is not a path inside", id="nowhere"),
        pytest.param(external("a\0b"), "is not a path inside", id="nul"),
        pytest.param(external("missing"), "cannot be read", id="missing"),
        pytest.param(external("folder"), "is a folder, not a file", id="folder"),
        pytest.param(external("data", offset=100), "is that download complete", id="short"),
        pytest.param(external("data", offset=-4), "is that download complete", id="before"),
        pytest.param(external("data", length=212), "takes 216", id="length"),
        pytest.param(external("data", offset="1e3"), "no number", id="no-number"),
        pytest.param(lying(dims=[2, 3, 3, 4]), "has 216 bytes where .* takes 288", id="more"),
        pytest.param(lying(dims=[2, 3, 3]), "has 216 bytes where .* takes 72", id="less"),
        pytest.param(lying(dims=[2, -3, 3, -3]), "impossible shape", id="negative"),
        pytest.param(lying(dims=[1 << 62] * 4), "has 216 bytes", id="overflow"),
        pytest.param(lying(dims=[1] * 70), "impossible shape", id="dimensions"),
        pytest.param(lying(dims=[54]), "cannot have an operand of shape", id="rank"),
        pytest.param(lying(data_type=8), "element type 8", id="text"),
        pytest.param(lying(data_type=99), "element type 99", id="unknown-type"),
        pytest.param(lying(data_type=11), "takes 432", id="wider-type"),
        pytest.param(short(float_data=[1.0] * 53), "has 212 bytes", id="one-float-less"),
        pytest.param(short(int32_data=[1] * 54), "at most 0 elements", id="other-field"),
        pytest.param(short(), "at most 0 elements", id="no-data"),
    ],
)
def test_a_tensor_that_lies_is_refused(read, tmp_path, tensor, sentence):
    (tmp_path / "data").write_bytes(bytes(216))
    (tmp_path / "way-out").symlink_to("/etc/passwd")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match=sentence) as caught:
        read(model([conv("image", "answer", "l.weight")], [tensor]))
    assert str(tmp_path) in str(caught.value)


def test_packed_integers_that_are_too_few_are_refused_when_read(read):
    # As many bytes as elements, so that nothing shows before they are counted.
    tensor = TensorProto(name="l.weight", data_type=TensorProto.FLOAT16, dims=[2, 3, 3, 3])
    tensor.int32_data[:] = [300] * 27
    layer = read(model([conv("image", "answer", "l.weight")], [tensor]))["l"]
    with pytest.raises(CheckpointError, match=r"has 27 elements where .* takes 54"):
        layer.weight.read()


@pytest.mark.parametrize(
    ("nodes", "sentence"),
    [
        pytest.param([conv("image", "answer", "w", group=4)], "operand of shape", id="groups"),
        pytest.param([conv("image", "answer", "w", group=0)], "operand of shape", id="no-group"),
        pytest.param([conv("image", "answer", "w", "b")], "operand of shape", id="bias"),
        pytest.param([node("Reshape", "w6", "b")], "cannot become", id="reshape"),
        pytest.param([node("Transpose", "w6", perm=[0, 0, 1, 2])], "no order", id="transpose"),
        pytest.param([node("DequantizeLinear", "w6", "b")], "does not fit", id="scale"),
        pytest.param([node("DequantizeLinear", "w6", "b", axis=9)], "axis 9", id="axis"),
        pytest.param(
            [node("DequantizeLinear", "w6", "b", "w6")], "not of one shape", id="zero-point"
        ),
    ],
)
def test_operands_that_do_not_fit_are_refused(read, nodes, sentence):
    if nodes[-1].op_type != "Conv":
        nodes[-1].output[0] = "made"
        nodes.append(conv("image", "answer", "made"))
    weights = {"w": draw(6, 3, 3, 3), "w6": STEPS.astype(np.int8), "b": np.arange(5)}
    with pytest.raises(CheckpointError, match=sentence):
        read(model(nodes, weights))


SMALL = model(
    [
        conv("image", "c0", "0.weight", "0.bias"),
        norm("c0", "n0", "bn"),
        helper.make_node("Clip", ["n0", "zero"], ["r0"]),
        helper.make_node("DequantizeLinear", ["q", "s"], ["1.weight"], axis=0),
        conv("r0", "c1", "1.weight", strides=[2, 2]),
        helper.make_node("Flatten", ["c1"], ["f"]),
        helper.make_node("Gemm", ["f", "t"], ["answer"], alpha=0.5),
    ],
    [
        stored("0.weight", draw(2, 3, 3, 3)),
        helper.make_tensor("0.bias", TensorProto.FLOAT16, [2], [1.0, -2.0]),
        *(stored(name, values) for name, values in norm_weights("bn", 2).items()),
        stored("zero", np.float32(0)),
        stored("q", STEPS[:2, :2].astype(np.int8)),
        stored("s", SCALES[:2]),
        stored("t", draw(2, 3)),
    ],
).SerializeToString()


def read_all(path: Path) -> list[Layer]:
    """Read the layers of a file, if it is a model, and all of their values."""
    if not reader.recognises(probe(path)):
        return []
    layers = list(reader.read(path).layers)
    for layer in layers:
        parts = [layer.weight, layer.bias]
        if layer.norm:
            parts += [layer.norm.gamma, layer.norm.beta, layer.norm.mean, layer.norm.variance]
        for part in filter(None, parts):
            assert part.read().shape == part.shape
    return layers


def test_a_file_cut_at_any_byte_is_refused(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(SMALL)
    assert [layer.name for layer in read_all(path)] == ["0", "1", "answer"]
    # What stands behind the graph, the version of the operators, is not missed.
    graph_end = (
        len(SMALL) - len(onnx.ModelProto.FromString(SMALL).opset_import[0].SerializeToString()) - 2
    )
    for length in range(len(SMALL)):
        path.write_bytes(SMALL[:length])
        if length == graph_end:
            assert read_all(path)
        elif length <= 2:  # empty, half a field, or a version and nothing else
            assert not reader.recognises(probe(path)) or length == 1
        else:
            assert reader.recognises(probe(path))
            with pytest.raises(CheckpointError, match=r"is the download complete|does not end"):
                reader.read(path)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    changes=st.lists(
        st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255), st.booleans()),
        min_size=1,
        max_size=4,
    )
)
def test_a_damaged_file_gives_layers_or_our_error(tmp_path, changes):
    damaged = bytearray(SMALL)
    for at, byte, inserted in changes:
        damaged[at : at if inserted else at + 1] = bytes([byte])
    path = tmp_path / "net.onnx"
    path.write_bytes(damaged)
    with contextlib.suppress(CheckpointError):
        read_all(path)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(bytes(5000), id="zeros"),
        pytest.param(b"a text file, not a model" * 50, id="text"),
        pytest.param(b"\x08\x01\x12\x04\x0a\x02ab", id="saved-model"),  # fields 1 and 2, no graph
        pytest.param(b"\x0a\x03abc\x12\x02\x10\x01", id="field-1-is-a-message"),
        pytest.param(b"\x3a\x02\x10\x01\x08\x01\x15abcd", id="field-2-is-a-number"),
        pytest.param(b"PK\x03\x04" + bytes(100), id="zip"),
        pytest.param(b"\x89HDF\r\n\x1a\n" + bytes(100), id="hdf5"),
    ],
)
def test_other_files_are_not_recognised(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    assert not reader.recognises(probe(tmp_path / "file"))


def test_fields_in_another_order_are_a_model_too(read):
    graph = onnx.ModelProto.FromString(SMALL).graph.SerializeToString()
    assert read(b"\x3a" + varint(len(graph)) + graph + b"\x08\x09")


def test_of_a_field_that_is_written_twice_the_last_one_holds(read):
    def field(number: int, content: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(content)) + content

    graph = onnx.ModelProto.FromString(SMALL).graph
    nodes = list(graph.node)
    graph.ClearField("node")
    # Each node stands behind another operator and domain of its own.
    before = field(4, b"Relu") + field(7, b"old.domain")
    written = [field(1, before + node.SerializeToString() + field(7, b"")) for node in nodes]
    content = b"".join(written) + graph.SerializeToString()
    assert read(field(7, content) + b"\x08\x09").keys() == read(SMALL).keys()


def test_bodies_within_bodies_are_followed_to_a_limit(read):
    out = helper.make_tensor_value_info("i", TensorProto.FLOAT, None)
    inner = helper.make_graph([helper.make_node("Identity", ["image"], ["i"])], "g", [], [out])
    for _ in range(20):
        branch = helper.make_node(
            "If", ["c"], ["i"], then_branch=inner, else_branch=onnx.GraphProto()
        )
        inner = helper.make_graph([branch], "g", [], [out])
    with pytest.raises(CheckpointError, match="16 deep"):
        read(model(list(inner.node)))


def test_long_chains_of_operators_on_constants_end(read):
    nodes = [helper.make_node("Transpose", [f"w{i}"], [f"w{i + 1}"]) for i in range(3000)]
    nodes += [conv("image", "x", "w3000"), conv("x", "answer", "w4")]
    assert len(read(model(nodes, {"w0": draw(3, 3, 3, 3)}))) == 1


def test_nodes_that_feed_themselves_end(read):
    nodes = [
        helper.make_node("Identity", ["loop"], ["loop"]),
        helper.make_node("Reshape", ["self", "self"], ["self"]),
        conv("image", "loop", "l.weight"),
        conv("self", "answer", "self"),
    ]
    assert list(read(model(nodes, {"l.weight": draw(3, 3, 3, 3)}))) == ["l"]


def test_a_file_of_nothing_but_fields_is_refused(tmp_path):
    fields = b"\x10\x01" * MAX_FIELDS
    path = tmp_path / "net.onnx"
    path.write_bytes(b"\x08\x09\x3a" + varint(len(fields)) + fields)
    with pytest.raises(CheckpointError, match="beyond any real model"):
        reader.read(path)


# What is not asked for is not read.


def huge(folder: Path) -> Path:
    """A model of 8 GB that takes no room: a small layer, a large tensor, and a small layer."""
    gigabytes = 8 << 30
    weight = draw(2, 3, 3, 3)
    graph = model([conv("image", "x", "a.weight"), conv("x", "answer", "b.weight")]).graph
    first, last = ((b"\x2a", stored(name, weight)) for name in ("a.weight", "b.weight"))
    whole = bytearray(graph.SerializeToString())
    whole += first[0] + varint(first[1].ByteSize()) + first[1].SerializeToString()
    head = TensorProto(name="huge", data_type=1, dims=[gigabytes // 4]).SerializeToString()
    head += b"\x4a" + varint(gigabytes)
    whole += b"\x2a" + varint(len(head) + gigabytes) + head
    end = last[0] + varint(last[1].ByteSize()) + last[1].SerializeToString()
    begin = b"\x08\x09\x3a" + varint(len(whole) + gigabytes + len(end))
    path = folder / "huge.onnx"
    with path.open("wb") as file:
        file.write(begin + whole)
        file.seek(gigabytes, os.SEEK_CUR)
        file.write(end)
    return path


def test_weights_that_are_not_asked_for_are_not_read(tmp_path):
    path = huge(tmp_path)
    # A process of its own, which cannot have imported the onnx package, and may take little memory.
    script = """
import sys
from pathlib import Path
from planescope.checkpoints.onnx import model
from planescope.checkpoints.probe import probe
path = Path(sys.argv[1])
assert model.recognises(probe(path))
print([layer.weight.read().shape for layer in model.read(path).layers])
assert not {"onnx", "torch", "google.protobuf", "ml_dtypes"} & set(sys.modules)
try:
    import resource
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert sys.platform != "linux" or megabytes < 120, megabytes
except ImportError:  # Windows
    pass
"""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "[(2, 3, 3, 3), (2, 3, 3, 3)]\n", done.stderr
    assert time.perf_counter() - start < 10
