"""Every operator that has weights is measured or left out by name, wherever it stands."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.reference
import pytest
from onnx import TensorProto, helper, numpy_helper

from planescope.checkpoints.onnx import model as reader
from planescope.hyperplanes.layer import Described, Input, Kind

RNG = np.random.default_rng(0)
W4 = RNG.standard_normal((4, 3, 3, 3)).astype(np.float32)
W2 = RNG.standard_normal((6, 5)).astype(np.float32)  # (in, out)
B4 = RNG.standard_normal(4).astype(np.float32)
B5 = RNG.standard_normal(5).astype(np.float32)
Q4 = RNG.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8)
Q2 = RNG.integers(-127, 128, (6, 5)).astype(np.int8)
STEPS4 = RNG.integers(-1000, 1000, 4).astype(np.int32)
STEPS5 = RNG.integers(-1000, 1000, 5).astype(np.int32)
S4, S5 = (RNG.uniform(0.01, 0.1, n).astype(np.float32) for n in (4, 5))
Z5 = RNG.integers(-9, 9, 5).astype(np.int8)

CONSTANTS = {
    "w4": W4, "w2": W2, "b4": B4, "b5": B5, "q4": Q4, "q2": Q2, "i4": STEPS4, "i5": STEPS5,
    "s4": S4, "s5": S5, "z4": np.zeros(4, np.int8), "z5": Z5, "z": np.int8(3),
    "xs": np.float32(0.5), "xz": np.uint8(128), "low": np.uint8(0), "s": np.float32(0.25),
    "last": np.moveaxis(W4, 1, -1), "w2t": W2.T.copy(), "w6": W4.reshape(2, 2, 27),
    "w16": RNG.standard_normal((16, 3, 3, 3)).astype(np.float32),
    "row": np.zeros(15, np.uint8), "qkv": np.arange(15, dtype=np.float32), "b41": B5.reshape(5, 1),
}  # fmt: skip
MS, ML = {"domain": "com.microsoft"}, {"domain": "ai.onnx.ml"}

node = helper.make_node


def inputs_of(nodes):
    """Yield the names that nodes and the bodies in them read."""
    for each in nodes:
        yield from each.input
        for attribute in each.attribute:
            yield from inputs_of(attribute.g.node)


def model(nodes, constants=None, functions=()):
    read = set(inputs_of(nodes))
    held = {n: v for n, v in CONSTANTS.items() if n in read} | (constants or {})
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in held.items()]
    graph = helper.make_graph(nodes, "net", [image], [answer], tensors)
    imports = [helper.make_opsetid(d, v) for d, v in (("", 21), ("com.microsoft", 1), ("own", 1))]
    return helper.make_model(graph, functions=list(functions), opset_imports=imports)


def read(tmp_path, proto) -> Described:
    path = tmp_path / "net.onnx"
    path.write_bytes(proto.SerializeToString())
    return reader.read(path)


def dequantised(steps, scale, zero=0):
    shape = (-1, *(1,) * (steps.ndim - 1))
    offsets = np.asarray(zero, np.float32).reshape(shape)
    return (steps.astype(np.float32) - offsets) * np.asarray(scale).reshape(shape)


QUANTISED = dequantised(Q4, S4)
QUANTISED_2 = dequantised(Q2.T, S5, Z5)


@pytest.mark.parametrize(
    ("nodes", "weight", "bias", "kind"),
    [
        pytest.param(
            [node("FusedConv", ["x", "w4", "b4"], ["y"], activation="Relu", **MS)],
            *(W4, B4, Kind.CONV),
            id="FusedConv",
        ),
        pytest.param(
            [node("NhwcConv", ["x", "last", "b4"], ["y"], kernel_shape=[3, 3], **MS)],
            *(W4, B4, Kind.CONV),
            id="NhwcConv-with-its-weights-turned",
        ),
        pytest.param(
            [
                node("Transpose", ["w4"], ["t"], perm=[0, 2, 3, 1]),
                node("NhwcConv", ["x", "t", "b4"], ["y"], **MS),
            ],
            *(W4, B4, Kind.CONV),
            id="NhwcConv-behind-a-transpose",
        ),
        pytest.param(
            [node("NhwcFusedConv", ["x", "w4"], ["y"], activation="Relu", **MS)],
            *(W4, None, Kind.CONV),
            id="NhwcFusedConv",
        ),
        pytest.param(
            [node("DeformConv", ["x", "w4", "x", "b4"], ["y"])],
            *(W4, B4, Kind.CONV),
            id="DeformConv",
        ),
        pytest.param(
            [node("QLinearConv", ["x", "xs", "xz", "q4", "s4", "z4", "s", "xz", "i4"], ["y"])],
            *(QUANTISED, STEPS4 * S4 * np.float32(0.5), Kind.CONV),
            id="QLinearConv",
        ),
        pytest.param(
            [
                node(
                    "QLinearConv",
                    ["x", "xs", "xz", "q4", "s4", "z4", "s", "xz"],
                    ["y"],
                    channels_last=1,
                    **MS,
                )
            ],
            *(QUANTISED, None, Kind.CONV),
            id="QLinearConv-of-onnxruntime",
        ),
        pytest.param(
            [
                node("DynamicQuantizeLinear", ["x"], ["xq", "xs1", "xz1"]),
                node("ConvInteger", ["xq", "q4", "xz1", "z"], ["c"]),
                node("Cast", ["c"], ["f"], to=1),
                node("Mul", ["xs1", "s"], ["both"]),
                node("Mul", ["f", "both"], ["m"]),
                node("Reshape", ["b4", "column"], ["b"]),
                node("Add", ["m", "b"], ["y"]),
            ],
            *(dequantised(Q4, 0.25, 3), B4, Kind.CONV),
            id="ConvInteger",
        ),
        pytest.param(
            [
                node("DynamicQuantizeLinear", ["x"], ["xq", "xs1", "xz1"]),
                node("MatMulInteger", ["xq", "q2", "xz1", "z5"], ["c"]),
                node("Cast", ["c"], ["f"], to=1),
                node("Mul", ["xs1", "s5"], ["both"]),
                node("Mul", ["f", "both"], ["m"]),
                node("Add", ["b5", "m"], ["y"]),
            ],
            *(QUANTISED_2, B5, Kind.LINEAR),
            id="MatMulInteger",
        ),
        pytest.param(
            [
                node("DynamicQuantizeLinear", ["x"], ["xq", "xs1", "xz1"]),
                node("ConvInteger", ["xq", "q4", "xz1"], ["c"]),
                node("Cast", ["c"], ["f"], to=1),
                node("Mul", ["f", "xs1"], ["m"]),
                node("Mul", ["m", "s"], ["y"]),
            ],
            *(dequantised(Q4, 0.25), None, Kind.CONV),
            id="ConvInteger-scaled-in-two-steps",
        ),
        pytest.param(
            [node("QLinearMatMul", ["x", "xs", "xz", "q2", "s5", "z5", "s", "xz"], ["y"])],
            *(QUANTISED_2, None, Kind.LINEAR),
            id="QLinearMatMul",
        ),
        pytest.param(
            [
                node("QLinearMatMul", ["x", "xs", "xz", "q2", "s5", "z5", "s", "xz"], ["q"]),
                node("QLinearAdd", ["q", "s", "xz", "z5", "s", "z", "s", "xz"], ["y"], **MS),
            ],
            *(QUANTISED_2, (Z5.astype(np.float32) - 3) * 0.25, Kind.LINEAR),
            id="QLinearAdd-holds-the-bias",
        ),
        pytest.param(
            [node("MatMulIntegerToFloat", ["x", "q2", "xs", "s5", "xz", "z5", "b5"], ["y"], **MS)],
            *(QUANTISED_2, B5, Kind.LINEAR),
            id="MatMulIntegerToFloat",
        ),
        pytest.param(
            [node("DynamicQuantizeMatMul", ["x", "q2", "s5", "z5", "b5"], ["y"], **MS)],
            *(QUANTISED_2, B5, Kind.LINEAR),
            id="DynamicQuantizeMatMul",
        ),
        pytest.param(
            [node("QGemm", ["x", "xs", "xz", "q2", "s5", "z5", "i5"], ["y"], alpha=2.0, **MS)],
            *(2 * QUANTISED_2, STEPS5 * S5, Kind.LINEAR),
            id="QGemm",
        ),
        pytest.param(
            [node("FusedGemm", ["x", "w2", "b5"], ["y"], activation="Relu", **MS)],
            *(W2.T, B5, Kind.LINEAR),
            id="FusedGemm",
        ),
        pytest.param(
            [node("FusedMatMul", ["x", "w2t"], ["y"], transB=1, alpha=0.5, **MS)],
            *(W2.T / 2, None, Kind.LINEAR),
            id="FusedMatMul",
        ),
        pytest.param(
            [node("GemmFastGelu", ["x", "w2", "b5"], ["y"], **MS)],
            *(W2.T, B5, Kind.LINEAR),
            id="GemmFastGelu",
        ),
        pytest.param(
            [node("MatMul", ["x", "w2"], ["m"]), node("BiasGelu", ["m", "b5"], ["y"], **MS)],
            *(W2.T, B5, Kind.LINEAR),
            id="BiasGelu-holds-the-bias",
        ),
        pytest.param(
            [
                node("MatMul", ["x", "w2"], ["m"]),
                node("SkipLayerNormalization", ["m", "x", "b5", "b5", "b5"], ["y"], **MS),
            ],
            *(W2.T, B5, Kind.LINEAR),
            id="SkipLayerNormalization-holds-the-bias",
        ),
        pytest.param(
            [
                node("MatMul", ["x", "w2"], ["k"]),
                node("MultiHeadAttention", ["x", "k", "x", "qkv"], ["y"], num_heads=1, **MS),
            ],
            *(W2.T, np.arange(5, 10, dtype=np.float32), Kind.LINEAR),
            id="MultiHeadAttention-holds-the-bias-of-the-key",
        ),
        pytest.param(
            [
                node("Einsum", ["x", "w2"], ["e"], equation="abi, io -> abo"),
                node("Add", ["e", "b5"], ["y"]),
            ],
            *(W2.T, B5, Kind.LINEAR),
            id="Einsum",
        ),
        pytest.param(
            [node("MatMul", ["w2t", "x"], ["m"]), node("Add", ["m", "b41"], ["y"])],
            *(W2.T, B5, Kind.LINEAR),
            id="MatMul-from-the-left",
        ),
        pytest.param(
            [
                node(
                    "LinearRegressor",
                    ["x"],
                    ["y"],
                    coefficients=W2.T.ravel().tolist(),
                    intercepts=B5.tolist(),
                    targets=5,
                    **ML,
                )
            ],
            *(W2.T, B5, Kind.LINEAR),
            id="LinearRegressor",
        ),
    ],
)
def test_weights_and_bias_of_every_operator(tmp_path, nodes, weight, bias, kind):
    column = {"column": np.array([1, 4, 1, 1])}
    found = read(tmp_path, model(nodes, column))
    (layer,) = found.layers
    assert found.skipped == ()
    assert layer.kind is kind
    assert layer.weight.shape == weight.shape
    np.testing.assert_allclose(layer.weight.read(), weight, rtol=1e-6)
    assert (layer.bias is None) == (bias is None)
    if bias is not None:
        np.testing.assert_allclose(layer.bias.read(), bias, rtol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zeros", [False, True], ids=["middle", "zero-points"])
def test_numbers_packed_to_a_few_bits_are_unpacked(tmp_path, bits, zeros):
    rows, columns, size = 3, 40, 16  # the last of three blocks is cut short
    steps = RNG.integers(0, 1 << bits, (rows, 3, size))
    scales = RNG.uniform(0.1, 1, (rows, 3)).astype(np.float32)
    points = RNG.integers(0, 1 << bits, (rows, 3)) if zeros else np.full((rows, 3), 1 << bits - 1)

    def packed(values):
        """The lowest bits of a byte first, each row a whole number of bytes."""
        each = 8 // bits
        flat = np.pad(values, [(0, 0), (0, -values.shape[1] % each)])
        parts = flat.reshape(rows, -1, each)
        return sum(parts[..., i].astype(np.uint8) << (bits * i) for i in range(each))

    held = {
        "p": packed(steps.reshape(rows, -1)).reshape(rows, 3, -1).astype(np.uint8),
        "ps": scales.ravel(),
        "pz": packed(points).astype(np.uint8).ravel(),
    }
    inputs = ["x", "p", "ps", *(["pz"] if zeros else [])]
    options = {"K": columns, "N": rows, "bits": bits, "block_size": size}
    found = read(tmp_path, model([node("MatMulNBits", inputs, ["y"], **options, **MS)], held))
    expected = (steps - points[..., None]) * scales[..., None]
    weight = found.layers[0].weight.read()
    np.testing.assert_allclose(weight, expected.reshape(rows, -1)[:, :columns], rtol=1e-6)


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        pytest.param([node("LSTM", ["x", "w4", "w4"], ["y"])], "recurrent", id="LSTM"),
        pytest.param([node("GRU", ["x", "w4", "w4"], ["y"])], "recurrent", id="GRU"),
        pytest.param([node("RNN", ["x", "w4", "w4"], ["y"])], "recurrent", id="RNN"),
        pytest.param(
            [node("DynamicQuantizeLSTM", ["x", "q4", "q4"], ["y"], **MS)], "recurrent", id="DynLSTM"
        ),
        pytest.param(
            [node("Attention", ["x", "w2", "b5"], ["y"], num_heads=1, **MS)],
            "queries, keys and values",
            id="Attention",
        ),
        pytest.param(
            [node("MoE", ["x", "x", "w4"], ["y"], k=1, **MS)], "com.microsoft.MoE", id="MoE"
        ),
        pytest.param(
            [node("Conv", ["x", "w16"], ["y"], domain="com.microsoft.nchwc")],
            "whether in blocks of 8 or 16",
            id="blocked-for-a-processor",
        ),
        pytest.param(
            [node("MatMulBnb4", ["x", "row", "s5"], ["y"], K=6, N=5, **MS)],
            "packed in a few bits",
            id="bitsandbytes",
        ),
        pytest.param([node("Mine", ["x", "w2"], ["y"], domain="a.b")], "a.b.Mine", id="own"),
        pytest.param([node("MatMul", ["x", "w6"], ["y"])], "a stack of matrices", id="stack"),
        pytest.param(
            [node("MatMulInteger", ["x", "q2"], ["y"])], "nothing tells their scale", id="no-scale"
        ),
        pytest.param(
            [node("Conv", ["x", "x"], ["y"])], "computed while the network runs", id="dynamic"
        ),
        pytest.param(
            [node("SVMRegressor", ["x"], ["y"], support_vectors=[1.0], **ML)],
            "support vector",
            id="SVM",
        ),
    ],
)
def test_what_is_not_measured_is_left_out_by_name(tmp_path, nodes, reason):
    found = read(tmp_path, model(nodes))
    assert found.layers == ()
    (skipped,) = found.skipped
    assert skipped.name == "y"
    assert reason in skipped.reason


def test_products_of_two_values_and_tables_are_no_layers(tmp_path):
    nodes = [
        node("Gather", ["w2", "x"], ["e"]),
        node("RotaryEmbedding", ["e", "x", "w2", "w2"], ["r"], **MS),
        node("MatMul", ["e", "r"], ["y"]),
    ]
    skipped = read(tmp_path, model(nodes)).skipped
    assert [(one.name, one.reason.partition(":")[0]) for one in skipped] == [("e", "an embedding")]


# --- where it stands


def test_layers_within_functions_are_found_and_named_by_their_calls(tmp_path):
    opset = [helper.make_opsetid("", 21)]
    strided = node("Conv", ["v", "w"], ["c"], name="Conv")
    stride = strided.attribute.add(name="strides", ref_attr_name="steps")
    stride.type = onnx.AttributeProto.INTS
    inner = helper.make_function(
        "own", "inner", ["v", "w"], ["r"], [strided, node("Relu", ["c"], ["r"])], opset, ["steps"]
    )
    outer = helper.make_function(
        "own",
        "outer",
        ["a", "k"],
        ["b"],
        [node("inner", ["a", "k"], ["b"], name="inner", domain="own", steps=[2, 2])],
        [helper.make_opsetid("own", 1)],
    )
    nodes = [
        node("outer", ["x", "w4"], ["h"], name="first", domain="own"),
        node("outer", ["h", "v4"], ["h2"], name="second", domain="own"),
        node("outer", ["h2", "v4"], ["y"], name="third", domain="own"),
    ]
    v4 = RNG.standard_normal((4, 4, 3, 3)).astype(np.float32)
    found = read(tmp_path, model(nodes, {"v4": v4}, [inner, outer]))
    places = {layer.name: (layer.stage, layer.input) for layer in found.layers}
    assert places == {"first.inner": (0, Input.IMAGE), "second.inner": (1, Input.RELU)}
    np.testing.assert_array_equal(found.layers[1].weight.read(), v4)
    assert [(skipped.name, skipped.reason) for skipped in found.skipped] == [
        (
            "third.inner",
            "the weights of second.inner under another name; measured once, there",
        )
    ]


@pytest.mark.parametrize(
    ("op", "attribute", "domain"),
    [("BeamSearch", "decoder", "com.microsoft"), ("SequenceMap", "body", ""), ("Own", "b", "own")],
)
def test_layers_within_the_body_of_a_search_are_found(tmp_path, op, attribute, domain):
    fed, given = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "io")
    body = helper.make_graph([node("MatMul", ["i", "w2"], ["o"])], "body", [fed], [given])
    search = node(op, ["x"], ["y"], domain=domain, **{attribute: body})
    (layer,) = read(tmp_path, model([search])).layers
    np.testing.assert_array_equal(layer.weight.read(), W2.T)
    assert layer.stage is None


def test_what_no_operator_reads_and_what_reaches_no_output_is_told(tmp_path):
    nodes = [node("Conv", ["x", "a.weight"], ["y"]), node("Conv", ["y", "b.weight"], ["idle"])]
    held = {"a.weight": W4, "b.weight": W4[:, :, :1], "gone.weight": W4, "gone.bias": B4}
    found = read(tmp_path, model(nodes, held))
    assert [layer.name for layer in found.layers] == ["a", "b"]
    assert [(one.name, one.reason) for one in found.skipped] == [
        ("gone", "a stored tensor that no operator of the graph reads")
    ]
    assert found.notes == ("what b gives reaches no output of the network",)


def test_a_constant_that_scales_filters_behind_their_layer_is_told(tmp_path):
    nodes = [node("Conv", ["x", "w4"], ["c"]), node("Mul", ["c", "f"], ["y"])]
    (note,) = read(tmp_path, model(nodes, {"f": -B4.reshape(4, 1, 1)})).notes
    assert note.startswith("behind c a constant scales each filter")


# What makes a constant `c` of values `v`, in any way that graphs have.
FORMS = {
    "stored": lambda v: ([], {"c": v}),
    "constant": lambda v: (
        [node("Constant", [], ["c"], value=numpy_helper.from_array(v))],
        {},
    ),
    "cast": lambda v: ([node("Cast", ["c0"], ["c"], to=TensorProto.FLOAT)], {"c0": v.astype("f8")}),
    "reshaped": lambda v: (
        [node("Reshape", ["c0", "to"], ["c"])],
        {"c0": v.reshape(-1), "to": np.array(v.shape, np.int64)},
    ),
    "same": lambda v: ([node("Identity", ["c0"], ["c"])], {"c0": v}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1, 1), (4, 1, 1), (1, 4, 1, 1)])
@pytest.mark.parametrize(
    ("op", "order"), [("Add", ["c", "z"]), ("Add", ["z", "c"]), ("Sub", ["z", "c"])]
)
def test_what_a_constant_adds_behind_a_layer_is_its_bias(tmp_path, op, order, shape, form):
    made, held = FORMS[form](RNG.standard_normal(shape).astype(np.float32))
    nodes = [*made, node("Conv", ["x", "w4"], ["z"]), node(op, order, ["y"])]
    proto = model(nodes, held)
    found = read(tmp_path, proto)
    # The bias is what comes out where nothing goes in.
    nothing = {"x": np.zeros((1, 3, 3, 3), np.float32)}
    (answer,) = onnx.reference.ReferenceEvaluator(proto).run(None, nothing)
    np.testing.assert_allclose(found.layers[0].bias.read(), answer.reshape(4), rtol=1e-6)
    assert found.notes == ()


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([node("Transpose", ["z"], ["t"], perm=[0, 2, 3, 1])], id="channels-last"),
        pytest.param(
            [
                node("Squeeze", ["z", "third"], ["q"]),
                node("Transpose", ["q"], ["t"], perm=[0, 2, 1]),
            ],
            id="of-one-dimension",
        ),
    ],
)
def test_a_bias_is_found_behind_axes_that_are_turned(tmp_path, steps):
    nodes = [node("Conv", ["x", "w4"], ["z"]), *steps, node("Add", ["t", "b4"], ["y"])]
    found = read(tmp_path, model(nodes, {"third": np.array([2])}))
    np.testing.assert_array_equal(found.layers[0].bias.read(), B4)
    assert found.notes == ()


@pytest.mark.parametrize(
    ("steps", "bias", "said"),
    [
        pytest.param([("Add", "s"), ("Sub", "b41")], 0.25, "a constant is added", id="misfit"),
        pytest.param([("Add", "s"), ("Add", "b4c")], "sum", None, id="two"),
        pytest.param([("Mul", "s")], None, None, id="scaled-alike"),
        pytest.param([("Mul", "less")], None, "one negative constant scales all", id="turned"),
        pytest.param([("Div", "b4c")], None, "a constant scales each filter", id="divided"),
        pytest.param(
            [("Mul", "s"), ("Add", "b4c")], None, "a constant is added", id="behind-scale"
        ),
        pytest.param([("Neg",)], None, "what comes out is turned round", id="negative"),
        pytest.param([("Sub", "-", "b4c")], None, "what comes out is turned round", id="from"),
    ],
)
def test_what_constants_do_behind_a_layer_is_in_the_table_or_told(tmp_path, steps, bias, said):
    nodes, value = [node("Conv", ["x", "w4"], ["v0"])], "v0"
    for number, (op, *operands) in enumerate(steps, 1):
        order = [operands[-1], value] if "-" in operands else [value, *operands]
        nodes.append(node(op, order, [f"v{number}"]))
        value = f"v{number}"
    nodes.append(node("Relu", [value], ["y"]))
    held = {"less": np.float32(-2), "b4c": B4.reshape(4, 1, 1), "b41": B5[:3]}
    found = read(tmp_path, model(nodes, held))
    (layer,) = found.layers
    expected = {"sum": np.float32(0.25) + B4, 0.25: [0.25] * 4}.get(bias)
    assert (layer.bias is None) == (expected is None)
    if expected is not None:
        np.testing.assert_array_equal(layer.bias.read(), expected)
    assert [note.partition("v0 ")[2][: len(said or "")] for note in found.notes] == [said][
        : said is not None
    ]


def test_a_bias_that_takes_the_type_of_a_value_is_a_constant(tmp_path):
    """As torch's newer exporter writes a layer without a bias, unless it optimises."""
    nodes = [
        node("CastLike", ["b4", "x"], ["b"]),
        node("Conv", ["x", "w4", "b"], ["c"]),
        node("CastLike", ["zero", "c"], ["floor"]),
        node("Max", ["c", "floor"], ["r"]),
        node("Conv", ["r", "w43"], ["y"]),
    ]
    held = {"zero": np.float32(0), "w43": W4.reshape(3, 4, 3, 3)}
    first, second = read(tmp_path, model(nodes, held)).layers
    np.testing.assert_array_equal(first.bias.read(), B4)
    assert second.input is Input.RELU


def test_a_constant_beside_a_bias_of_the_layers_own_is_told(tmp_path):
    nodes = [node("Conv", ["x", "w4", "b4"], ["c"]), node("Add", ["c", "s"], ["y"])]
    found = read(tmp_path, model(nodes))
    np.testing.assert_array_equal(found.layers[0].bias.read(), B4)
    assert found.notes == (
        "behind c one constant is added to all filters beside their bias or scale; it is not in "
        "the table",
    )


def test_what_is_added_behind_an_activation_within_a_layer_is_no_bias(tmp_path):
    nodes = [
        node("FusedConv", ["x", "w4"], ["c"], activation="Relu", **MS),
        node("Add", ["c", "b4c"], ["y"]),
    ]
    found = read(tmp_path, model(nodes, {"b4c": B4.reshape(4, 1, 1)}))
    assert found.layers[0].bias is None


def test_functions_that_call_one_another_without_end_are_refused(tmp_path):
    opset = [helper.make_opsetid("own", 1)]
    body = [node("f", ["v"], ["w"], domain="own"), node("f", ["w"], ["r"], domain="own")]
    function = helper.make_function("own", "f", ["v"], ["r"], body, opset)
    with pytest.raises(reader.CheckpointError, match="16 deep"):
        read(tmp_path, model([node("f", ["x"], ["y"], domain="own")], None, [function]))


def test_functions_that_double_are_refused(tmp_path):
    opset = [helper.make_opsetid("own", 1)]
    functions = []
    for depth in range(12):
        call = [node(f"f{depth + 1}", ["v"], ["r"], domain="own") for _ in range(8)]
        functions.append(helper.make_function("own", f"f{depth}", ["v"], ["r"], call, opset))
    with pytest.raises(reader.CheckpointError, match="beyond any real model"):
        read(tmp_path, model([node("f0", ["x"], ["y"], domain="own")], None, functions))


@pytest.mark.parametrize("turned", [False, True])
def test_the_same_weights_are_one_layer_only_where_the_same_axis_has_the_filters(tmp_path, turned):
    square = RNG.standard_normal((5, 5)).astype(np.float32)
    nodes = [
        node("MatMul", ["x", "sq"], ["h"], name="/a/MatMul"),
        node("Gemm", ["h", "sq"], ["y"], transB=int(turned), name="/b/Gemm"),
    ]
    found = read(tmp_path, model(nodes, {"sq": square}))
    assert [layer.name for layer in found.layers] == (["a", "b"] if turned else ["a"])
    assert [skipped.name for skipped in found.skipped] == ([] if turned else ["b"])


def test_parts_of_one_tensor_are_layers_of_their_own(tmp_path):
    nodes = [
        node("Split", ["w2"], ["left", "right"], axis=1, num_outputs=2),
        node("MatMul", ["x", "left"], ["h"]),
        node("MatMul", ["x", "right"], ["y"]),
    ]
    found = read(tmp_path, model(nodes)).layers
    np.testing.assert_array_equal(found[0].weight.read(), W2[:, :3].T)
    np.testing.assert_array_equal(found[1].weight.read(), W2[:, 3:].T)


# --- weights that come out of arithmetic


ARITHMETIC = {
    "weight-norm": [
        node("ReduceL2", ["w4", "axes"], ["n"]),
        node("Div", ["w4", "n"], ["d"]),
        node("Reshape", ["b4", "column"], ["g"]),
        node("Mul", ["d", "g"], ["w"]),
    ],
    "standardised": [
        node("ReduceMean", ["w4", "axes"], ["m"]),
        node("Sub", ["w4", "m"], ["c"]),
        node("Mul", ["c", "c"], ["c2"]),
        node("ReduceMean", ["c2", "axes"], ["v"]),
        node("Add", ["v", "s"], ["ve"]),
        node("Sqrt", ["ve"], ["sd"]),
        node("Div", ["c", "sd"], ["w"]),
    ],
    "low-rank-update": [
        node("Reshape", ["w4", "rows"], ["r"]),
        node("Slice", ["r", "zero", "two", "one"], ["a"]),
        node("Transpose", ["a"], ["at"]),
        node("MatMul", ["a", "at"], ["aat"]),
        node("MatMul", ["aat", "r"], ["u"]),
        node("Add", ["r", "u"], ["ru"]),
        node("Shape", ["w4"], ["shape"]),
        node("Reshape", ["ru", "shape"], ["w"]),
    ],
    "masked": [
        node("ConstantOfShape", ["extents"], ["zeros"]),
        node("Cast", ["mask"], ["mb"], to=TensorProto.BOOL),
        node("Where", ["mb", "w4", "zeros"], ["w"]),
    ],
    "put-together": [
        node("Split", ["w4"], ["p", "q"], axis=0, num_outputs=2),
        node("Gather", ["p", "order"], ["pg"], axis=2),
        node("Expand", ["s", "half"], ["e"]),
        node("Concat", ["pg", "e", "q"], ["w"], axis=0),
    ],
    "pieces": [
        node("Tile", ["b4", "four"], ["t"]),
        node("Reshape", ["t", "small"], ["tr"]),
        node("Pad", ["tr", "pads"], ["pd"]),
        node("Neg", ["pd"], ["n"]),
        node("Clip", ["n", "minus", "s"], ["w"]),
    ],
    # As LoRA merged by the graph, and masks that are made there.
    "low-rank": [
        node("Gemm", ["up", "down", "flat"], ["g"], alpha=0.5, beta=2.0, transA=1, transB=1),
        node("Shape", ["w4"], ["shape"]),
        node("Reshape", ["g", "shape"], ["w"]),
    ],
    "einstein-sum": [
        node("Einsum", ["w4", "square"], ["e"], equation="oihw,io->oih w"),
        node("Einsum", ["e"], ["w"], equation="oihw->oiwh"),
    ],
    "causal": [
        node("Trilu", ["w4", "below"], ["t"], upper=0),
        node("Greater", ["t", "s"], ["above"]),
        node("Less", ["t", "minus"], ["under"]),
        node("Or", ["above", "under"], ["far"]),
        node("Not", ["far"], ["near"]),
        node("Where", ["near", "t", "s"], ["w"]),
    ],
    # As timm's StdConv2d and weight standardisation are exported.
    "standardised-by-a-norm": [
        node("Reshape", ["w4", "one-four"], ["r"]),
        node(
            "BatchNormalization",
            ["r", "b4", "b4", "b4", "b4"],
            ["n", "m", "v"],
            epsilon=1e-6,
            training_mode=1,
        ),
        node("Shape", ["w4"], ["shape"]),
        node("Reshape", ["n", "shape"], ["w"]),
    ],
    "normalised": [
        node("BatchNormalization", ["w4", "three", "three", "three", "three"], ["n"]),
        node("InstanceNormalization", ["n", "three", "three"], ["i"]),
        node("LayerNormalization", ["i", "three", "three"], ["w"], axis=-1),
    ],
    "extents-multiplied": [
        node("Shape", ["w4"], ["shape"], start=1),
        node("ReduceProd", ["shape"], ["count"], keepdims=0),
        node("Cast", ["count"], ["counted"], to=TensorProto.FLOAT),
        node("Div", ["w4", "counted"], ["w"]),
    ],
    "padded-along": [
        node("Slice", ["w4", "zero", "two", "one"], ["p"]),
        node("Pad", ["p", "around", "s", "first"], ["pd"]),
        node("Floor", ["pd"], ["w"]),
    ],
}


@pytest.mark.parametrize("name", ARITHMETIC)
def test_weights_made_by_arithmetic_are_those_of_the_reference_evaluator(tmp_path, name):
    held = {
        "axes": np.array([1, 2, 3]), "column": np.array([-1, 1, 1, 1]), "rows": np.array([4, -1]),
        "zero": np.array([0]), "two": np.array([2]), "one": np.array([1]),
        "extents": np.array([4, 3, 3, 3]), "mask": (W4 > 0).astype(np.int64),
        "order": np.array([2, 0, 1]), "half": np.array([1, 3, 3, 3]), "four": np.array([4]),
        "small": np.array([4, 2, 2, 1]), "pads": np.array([0, 0, 0, 1, 0, 0, 1, 0]),
        "minus": np.float32(-0.5), "up": W2[:2, :4], "down": W4.reshape(27, 4)[:, :2],
        "flat": W4.reshape(4, 27), "square": W4.reshape(3, 36)[:, :4], "below": np.int64(-1),
        "one-four": np.array([1, 4, 27]), "three": np.array([0.5, 1.5, 2.0], np.float32),
        "around": np.array([0, 2]), "first": np.array([0]),
    }  # fmt: skip
    proto = model([*ARITHMETIC[name], node("Conv", ["x", "w"], ["y"])], held)
    (layer,) = read(tmp_path, proto).layers
    alone = onnx.ModelProto()
    alone.CopyFrom(proto)
    del alone.graph.node[-1], alone.graph.input[:], alone.graph.output[:]
    alone.graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, None))
    (expected,) = onnx.reference.ReferenceEvaluator(alone).run(None, {})
    assert layer.weight.shape == expected.shape
    np.testing.assert_allclose(layer.weight.read(), expected, rtol=1e-5, atol=1e-6)


def test_a_few_bytes_that_claim_to_be_repeated_without_end_are_left_out(tmp_path):
    held = {"many": np.array([1 << 20, 3, 1 << 10, 1 << 10])}
    nodes = [node("Expand", ["s", "many"], ["w"]), node("Conv", ["x", "w"], ["y"])]
    found = read(tmp_path, model(nodes, held))
    assert [skipped.reason for skipped in found.skipped] == [
        "its weight is made by Expand, in a way that is not followed"
    ]


# --- what feeds the next layer


@pytest.mark.parametrize(
    ("nodes", "fed"),
    [
        pytest.param(
            [node("FusedConv", ["x", "w4"], ["h"], activation="Relu", **MS)],
            "relu",
            id="fused-relu",
        ),
        pytest.param(
            [
                node(
                    "FusedConv",
                    ["x", "w4"],
                    ["h"],
                    activation="Clip",
                    activation_params=[0.0, 6.0],
                    **MS,
                )
            ],
            "relu",
            id="fused-relu6",
        ),
        pytest.param(
            [node("FusedConv", ["x", "w4"], ["h"], activation="LeakyRelu", **MS)],
            "other",
            id="fused-leaky-relu",
        ),
        pytest.param(
            [node("QLinearConv", ["x", "xs", "xz", "q4", "s4", "z4", "s", "low"], ["h"])],
            "relu",
            id="quantised-from-zero",
        ),
        pytest.param(
            [node("QLinearConv", ["x", "xs", "xz", "q4", "s4", "z4", "s", "xz"], ["h"])],
            "other",
            id="quantised-with-sign",
        ),
        pytest.param(
            [node("Relu", ["x"], ["r"]), node("Resize", ["r", "", "s4"], ["h"], mode="cubic")],
            "other",
            id="cubic-overshoots",
        ),
        pytest.param(
            [node("Relu", ["x"], ["r"]), node("Resize", ["r", "", "s4"], ["h"], mode="linear")],
            "relu",
            id="linear-does-not",
        ),
        pytest.param(
            [node("Relu", ["x"], ["r"]), node("Pad", ["r", "i4", "minus"], ["h"])],
            "other",
            id="padded-below-zero",
        ),
        pytest.param(
            [node("Conv", ["x", "w4"], ["c"]), node("Max", ["c", "nought"], ["h"])],
            "relu",
            id="maximum-with-zero",
        ),
        pytest.param(
            [
                node("Relu", ["x"], ["r"]),
                node("QLinearAdd", ["r", "s", "low", "r", "s", "low", "s", "low"], ["h"], **MS),
            ],
            "relu",
            id="quantised-sum",
        ),
    ],
)
def test_what_operators_of_onnxruntime_feed(tmp_path, nodes, fed):
    held = {"minus": np.float32(-1), "nought": np.float32(0)}
    held["v4"] = RNG.standard_normal((4, 4, 3, 3)).astype(np.float32)
    found = read(tmp_path, model([*nodes, node("Conv", ["h", "v4"], ["y"])], held)).layers
    assert found[-1].input == fed


def test_the_epsilon_of_a_norm_is_the_one_in_the_file(tmp_path):
    nodes = [
        node("Conv", ["x", "w4"], ["c"]),
        node("BatchNormalization", ["c", "b4", "b4", "b4", "s4"], ["y"], epsilon=0.125),
    ]
    (layer,) = read(tmp_path, model(nodes)).layers
    assert layer.norm.eps == 0.125


def in_blocks(weight, width, whole=False):
    """Write a weight as onnxruntime does for a processor: with zeros, in blocks of filters."""
    filters, fed, *kernel = weight.shape
    inner = 1 if whole else width
    padded = np.zeros((-(-filters // width) * width, -(-fed // inner) * inner, *kernel), np.float32)
    padded[:filters, :fed] = weight
    blocks = padded.reshape(len(padded) // width, width, -1, inner, *kernel)
    return blocks.transpose(0, 2, 4, 5, 3, 1).reshape(padded.shape)


@pytest.mark.parametrize("width", [8, 16])
@pytest.mark.parametrize("filters", [12, 20, 28, 31])
def test_weights_in_the_order_of_a_processor_are_put_back(tmp_path, width, filters):
    stem, body, deep = (
        RNG.standard_normal(shape).astype(np.float32)
        for shape in ((filters, 3, 3, 3), (filters, filters, 3, 3), (filters, 1, 3, 3))
    )
    bias = RNG.standard_normal(filters).astype(np.float32)
    stored = in_blocks(stem, width, whole=True)
    filled = np.zeros(len(stored), np.float32)
    filled[:filters] = bias
    held = {
        "reorder": stored, "reorder_token_1": filled, "reorder_token_2": in_blocks(body, width),
        "reorder_token_3": in_blocks(deep, width, whole=True),
    }  # fmt: skip
    own = {"domain": "com.microsoft.nchwc"}
    nodes = [
        node("Conv", ["x", "reorder", "reorder_token_1"], ["a"], activation="Relu", **own),
        node("MaxPool", ["a"], ["b"], strides=[2, 2], **own),
        node("Conv", ["b", "reorder_token_2"], ["c"], name="/body/Conv_output_0_nchwc", **own),
        node("Conv", ["c", "reorder_token_3"], ["y"], group=len(stored), **own),
    ]
    first, second, third = read(tmp_path, model(nodes, held)).layers
    assert second.name == "body"
    assert [each.input for each in (first, second, third)] == [Input.IMAGE, Input.RELU, Input.OTHER]
    assert second.stage == 1
    for layer, weight in ((first, stem), (second, body), (third, deep)):
        np.testing.assert_array_equal(layer.weight.read(), weight)
        assert layer.weight.shape == weight.shape
    np.testing.assert_array_equal(first.bias.read(), bias)
    assert third.groups == filters


def test_a_model_optimised_for_this_processor_has_the_weights_it_was_made_of(tmp_path):
    ort = pytest.importorskip("onnxruntime")
    shapes = {"a": (24, 3, 3, 3), "b": (40, 24, 3, 3), "c": (40, 1, 3, 3), "d": (32, 40, 3, 3)}
    held = {n: RNG.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}
    nodes, value = [], "x"
    for name in held:
        groups = 40 if name == "c" else 1
        nodes.append(node("Conv", [value, name], [f"{name}0"], group=groups, name=f"/{name}/Conv"))
        nodes.append(node("Relu", [f"{name}0"], [f"{name}1"]))
        value = f"{name}1"
    nodes[-1].output[0] = "y"
    proto = model(nodes, held)
    proto.graph.input[0].CopyFrom(
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])
    )
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "all.onnx")
    options.log_severity_level = 3
    proto.ir_version = 10
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = reader.read(tmp_path / "all.onnx")
    assert not found.skipped
    assert [layer.input for layer in found.layers] == [Input.IMAGE, *[Input.RELU] * 3]
    for layer, weight in zip(found.layers, held.values(), strict=True):
        np.testing.assert_array_equal(layer.weight.read(), weight)
