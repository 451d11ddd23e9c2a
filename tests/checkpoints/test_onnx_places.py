"""What acts before a layer of an ONNX graph, and what differs where its weights act again."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from planescope.measurement.source import find


def found(path, nodes, *, bias=("b",), **weights):
    """Read a model of convolutions `w` (8 of 8) from `x` to what the last node gives."""
    rng = np.random.default_rng(0)
    arrays = {"w.weight": rng.standard_normal((8, 8, 3, 3))}
    arrays |= {name: rng.standard_normal(8) for name in bias} | weights
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [1, 8, 9, 9]), (nodes[-1].output[0], None))
    ]
    stored = [numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items()]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], stored)
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return find(path)


def twice(first, second, *behind):
    """Run the convolution twice, with these biases."""
    calls = [
        helper.make_node("Conv", ["x", "w.weight", bias], [out], name=f"/{out}/Conv")
        for bias, out in ((first, "one"), (second, "two"))
    ]
    return [*calls, *behind, helper.make_node("Add", ["one", "two"], ["y"])]


@pytest.mark.parametrize(("second", "is_told"), [("b", False), ("same", False), ("c", True)])
def test_another_bias_where_the_weights_act_again_is_told(tmp_path, second, is_told):
    weights = {"b": np.arange(8), "same": np.arange(8), "c": np.ones(8)}
    result = found(tmp_path / "net.onnx", twice("b", second), bias=(), **weights)
    assert [layer.name for layer in result.layers] == ["w"]
    np.testing.assert_array_equal(result.layers[0].bias.read(), np.arange(8))
    assert any("another bias" in note for note in result.notes) is is_told


def test_norms_of_their_own_where_the_weights_act_again_are_told(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w.weight"], ["one"]),
        helper.make_node("BatchNormalization", ["one", *"gbmv"], ["n"]),
        helper.make_node("Conv", ["n", "w.weight"], ["two"]),
        helper.make_node("BatchNormalization", ["two", *"hbmv"], ["y"]),
    ]
    result = found(tmp_path / "net.onnx", nodes, bias=("g", "h", "b", "m"), v=np.ones(8))
    assert [layer.norm for layer in result.layers] == [None]
    assert any("norms of their own" in note for note in result.notes)


BEFORE = {
    "relu": ([helper.make_node("Relu", ["x"], ["r"])], True),
    "product": ([helper.make_node("Sigmoid", ["x"], ["s"]),
                 helper.make_node("Mul", ["x", "s"], ["r"])], True),
    "image": ([helper.make_node("Identity", ["x"], ["r"])], False),
    "norm": ([helper.make_node("InstanceNormalization", ["x", "b", "b"], ["r"])], False),
    "root": ([helper.make_node("ReduceL2", ["x"], ["l"], axes=[1]),
              helper.make_node("Reciprocal", ["l"], ["s"]),
              helper.make_node("Mul", ["x", "s"], ["r"])], False),
}  # fmt: skip


@pytest.mark.parametrize("kind", BEFORE)
def test_a_constant_that_scales_the_inputs_of_a_layer_is_told(tmp_path, kind):
    nodes, is_told = BEFORE[kind]
    nodes = [
        *nodes,
        helper.make_node("Mul", ["r", "scale"], ["m"]),
        helper.make_node("Conv", ["m", "w.weight", "b"], ["y"]),
    ]
    result = found(tmp_path / "net.onnx", nodes, scale=np.arange(1, 9).reshape(1, 8, 1, 1))
    assert any("before w a constant scales" in note for note in result.notes) is is_told


@pytest.mark.parametrize("way", ["oft_R", "boft_R", "novel"])
def test_an_adapter_of_peft_is_known_by_the_modules_of_nodes(tmp_path, way):
    turn = helper.make_node("Einsum", ["x", "turn"], ["t"], equation="bchw,cd->bdhw")
    for key, listed in {
        "name_scopes": ["", "fc", f"fc.{way}.default", "einsum"],
        "class_hierarchy": ["Net", "peft.tuners.oft.layer.Conv2d", "peft.tuners.x.Y", "einsum"],
    }.items():
        turn.metadata_props.add(key=f"pkg.torch.onnx.{key}", value=str(listed))
    nodes = [turn, helper.make_node("Conv", ["t", "fc.base_layer.weight"], ["y"])]
    weights = {"turn": np.eye(8), "fc.base_layer.weight": np.ones((8, 8, 3, 3))}
    result = found(tmp_path / "net.onnx", nodes, bias=(), **weights)
    assert "fc.base_layer" not in [layer.name for layer in result.layers]
    assert "not merged" in {one.name: one.reason for one in result.skipped}["fc.base_layer"]


def test_the_norm_behind_what_is_rounded_is_the_layers(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w.weight"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "step", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["d"]),
        helper.make_node("BatchNormalization", ["d", *"gbmv"], ["y"]),
    ]
    weights = {"step": np.float32(0.1), "zero": np.float32(3), "v": np.ones(8)}
    result = found(tmp_path / "net.onnx", nodes, bias=("g", "b", "m"), **weights)
    assert [layer.norm is None for layer in result.layers] == [False]


CHOICES = {
    "threshold": ("x", "t", ["v", "x"], True),
    "the rest": ("x", "t", ["x", "v"], False),
    "below 0": ("x", "n", ["v", "x"], False),
    "filled below 0": ("x", "t", ["n", "x"], False),
    "of another": ("z", "t", ["v", "x"], False),
}


@pytest.mark.parametrize("name", CHOICES)
def test_a_threshold_as_dynamo_exports_it_is_a_relu(tmp_path, name):
    value, bound, chosen, is_relu = CHOICES[name]
    nodes = [
        helper.make_node("Neg", ["x"], ["z"]),
        helper.make_node("LessOrEqual", [value, bound], ["c"]),
        helper.make_node("Where", ["c", *chosen], ["r"]),
        helper.make_node("Conv", ["r", "w.weight"], ["y"]),
    ]
    weights = {"t": np.float32(0.1), "v": np.float32(0.2), "n": np.float32(-1)}
    result = found(tmp_path / "net.onnx", nodes, bias=(), **weights)
    assert (result.layers[0].input.value == "relu") is is_relu


def test_a_norm_behind_a_convolution_with_its_channels_last_is_the_convolutions(tmp_path):
    """As onnxruntime writes what it quantised: channels last, and put back in front of the norm."""
    rng = np.random.default_rng(0)
    held = {
        "q": rng.integers(-99, 99, (4, 3, 3, 3)).astype(np.int8), "s": np.float32(0.5),
        "z": np.uint8(3), "zw": np.int8(0),
        **{part: rng.uniform(1, 2, 4).astype(np.float32) for part in ("g", "b", "m", "v")},
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q0"]),
        helper.make_node("Transpose", ["q0"], ["t0"], perm=[0, 2, 3, 1]),
        helper.make_node(
            "QLinearConv", ["t0", "s", "z", "q", "s", "zw", "s", "z"], ["c"],
            domain="com.microsoft", channels_last=1, kernel_shape=[3, 3],
        ),
        helper.make_node("Transpose", ["c"], ["t1"], perm=[0, 3, 1, 2]),
        helper.make_node("DequantizeLinear", ["t1", "s", "z"], ["d"]),
        helper.make_node("BatchNormalization", ["d", "g", "b", "m", "v"], ["y"]),
    ]  # fmt: skip
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in held.items()]
    graph = helper.make_graph(nodes, "net", [image], [answer], tensors)
    path = tmp_path / "net.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    (layer,) = find(path).layers
    np.testing.assert_array_equal(layer.norm.gamma.read(), held["g"])
    np.testing.assert_array_equal(layer.weight.read(), held["q"] * np.float32(0.5))
