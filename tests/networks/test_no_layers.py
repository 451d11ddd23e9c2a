"""Recurrent layers, attentions and bilinear forms are left out by name in every container."""

from __future__ import annotations

import warnings

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import planescope as ps
from planescope.files.errors import NoLayersError
from planescope.measurement.source import find

RECURRENT = "a recurrent layer"
EXAMPLE = torch.zeros(2, 4, 5)  # sequences of 4


class Sequences(nn.Module):
    """Linear layers around a part that is none."""

    def __init__(self, part, width):
        super().__init__()
        self.inward, self.part, self.outward = nn.Linear(5, 8), part, nn.Linear(width, 3)

    def forward(self, x):
        x = self.inward(x).relu()
        if isinstance(self.part, nn.RNNBase):
            return self.outward(self.part(x)[0][:, -1])
        if isinstance(self.part, nn.MultiheadAttention):
            return self.outward(self.part(x, x, x)[0])
        if isinstance(self.part, nn.Bilinear):
            return self.outward(self.part(x, x))
        if isinstance(self.part, nn.Embedding):
            return self.outward(x + self.part(x.argmax(2)))
        state = None
        for time in range(4):
            state = self.part(x[:, time], state)
        return self.outward(state[0] if isinstance(state, tuple) else state)


PARTS = {
    "LSTM": (lambda: nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True), 12, RECURRENT),
    "GRU": (lambda: nn.GRU(8, 6, batch_first=True, bias=False), 6, RECURRENT),
    "RNN": (lambda: nn.RNN(8, 6, batch_first=True, nonlinearity="relu"), 6, RECURRENT),
    "LSTMCell": (lambda: nn.LSTMCell(8, 6), 6, RECURRENT),
    "GRUCell": (lambda: nn.GRUCell(8, 6), 6, RECURRENT),
    "RNNCell": (lambda: nn.RNNCell(8, 6), 6, RECURRENT),
    "attention": (lambda: nn.MultiheadAttention(8, 2, batch_first=True), 8, "queries, keys"),
    "attention-of-three": (
        lambda: nn.MultiheadAttention(8, 2, batch_first=True, kdim=8, vdim=8), 8, "queries, keys",
    ),
    "bilinear": (lambda: nn.Bilinear(8, 8, 4), 4, "a bilinear form"),
    "embedding": (lambda: nn.Embedding(8, 8), 8, "an embedding"),
}  # fmt: skip


def write(net, container, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if container == "onnx":
            torch.onnx.export(net, (EXAMPLE,), path, dynamo=False)
        elif container.startswith("dynamo"):
            pytest.importorskip("onnxscript")
            torch.onnx.export(
                net, (EXAMPLE,), path, dynamo=True, optimize="optimised" in container,
                external_data=False, verbose=False,
            )  # fmt: skip
        else:
            program = torch.export.export(net, (EXAMPLE,))
            if container == "core.pt2":
                program = program.run_decompositions()
            torch.export.save(program, path)


@pytest.mark.parametrize("container", ["onnx", "pt2", "core.pt2", "dynamo", "dynamo-optimised"])
@pytest.mark.parametrize("part", PARTS)
def test_graphs_measure_the_linear_layers_alone(tmp_path, part, container):
    if (part, container) == ("bilinear", "onnx"):
        pytest.skip("torch's older exporter writes none")
    torch.manual_seed(0)
    make, width, reason = PARTS[part]
    net = Sequences(make(), width).eval()
    with torch.no_grad():  # a bias of zeros may be left away
        for tensor in net.parameters():
            tensor.uniform_(-1, 1)
    path = tmp_path / f"net.{container.partition('.')[2] or container}"
    write(net, container, path)
    live, stored = find(net), find(path)
    assert [one.name for one in stored.layers] == [one.name for one in live.layers]
    for one, other in zip(stored.layers, live.layers, strict=True):
        assert np.array_equal(one.weight.read(), other.weight.read())
        assert np.array_equal(one.bias.read(), other.bias.read())
    told = {one.name: one.reason for one in stored.skipped}
    assert told.keys() == {"part"}
    assert reason in told["part"] or "shape that depends" in told["part"]


def test_a_layer_used_again_on_what_it_gave_is_one_layer(tmp_path):
    torch.manual_seed(0)

    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.inward, self.again = nn.Linear(5, 7), nn.Linear(7, 7)

        def forward(self, x):
            x = self.inward(x).relu()
            for _ in range(3):
                x = self.again(x).tanh()
            return x

    net = Again().eval()
    for container in ("onnx", "pt2", "core.pt2"):
        path = tmp_path / f"net.{container}"
        write(net, container, path)
        assert [one.name for one in ps.measure(path, kinds="all").layers] == ["inward", "again"]


@pytest.mark.parametrize(
    ("classes", "kept"),
    [
        pytest.param(["net.Net", "torch.nn.modules.rnn.RNN"], False, id="a-recurrent-layer"),
        pytest.param(["net.Net", "torch.nn.modules.linear.Bilinear"], False, id="a-bilinear-form"),
        pytest.param(["net.Net", "torch.nn.modules.linear.Linear"], True, id="a-linear-layer"),
        pytest.param(["net.Net", "net.MyRNN"], True, id="a-class-of-the-users-own"),
    ],
)
def test_annotations_tell_of_modules_where_names_are_lost(tmp_path, classes, kept):
    # As torch's newer exporter writes a product once its weight is turned and renamed.
    product = helper.make_node("MatMul", ["x", "val_0"], ["y"], name="node_MatMul_1")
    for key, listed in (
        ("class_hierarchy", [*classes, "aten.linear.default"]),
        ("name_scopes", ["", "body.part", "linear"]),
    ):
        product.metadata_props.add(key=f"pkg.torch.onnx.{key}", value=str(listed))
    weight = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    graph = helper.make_graph(
        [product], "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])],
        [numpy_helper.from_array(weight, "val_0")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph), tmp_path / "net.onnx")
    found = ps.measure(tmp_path / "net.onnx", kinds="all") if kept else None
    if found is not None:
        (layer,) = found.layers
        assert (layer.name, layer.filters, layer.fan_in) == ("body.part", 4, 5)
        assert layer.mean_projection == pytest.approx(weight.sum(0).mean(), abs=1e-6)
        return
    with pytest.raises(NoLayersError, match=r"left out: body\.part"):
        ps.measure(tmp_path / "net.onnx", kinds="all")


F8 = ml_dtypes.float8_e4m3fn
PACKED = {
    "l.q.B": ("int32", {}),  # Marlin
    "l.q.Qidxs": ("int16", {}),  # QuIP#
    "l.q.codes": ("int16", {}),  # AQLM
    "l.q._weight_qdata": ("int8", {"l.q._weight_scale": (8, 1)}),  # torchao
    "l.gate_up_proj_blocks": ("uint8", {"l.gate_up_proj_bias": (8,)}),  # of MXFP4
    "l.q.weight": (F8, {"l.q.scale": (2, 2)}),  # DeepSeek
    "l.v.weight": (F8, {"l.v.scale": (1,)}),
}


@pytest.mark.parametrize("name", PACKED)
def test_numbers_that_a_quantiser_made_of_weights_are_left_out_by_name(name):
    dtype, beside = PACKED[name]
    arrays = {name: np.ones((8, 4)).astype(dtype), "other.weight": np.ones((3, 8), np.float32)}
    arrays |= {part: np.ones(shape, np.float32) for part, shape in beside.items()}
    found = find(arrays)
    assert [layer.name for layer in found.layers] == ["other"]
    assert [one.name for one in found.skipped] == [name.removesuffix(".weight")]


def test_whole_numbers_that_are_places_are_not_taken_for_weights():
    arrays = {"a.position_index": np.ones((4, 4), np.int32), "a.mask": np.ones((4, 4), np.uint8)}
    found = find(arrays | {"fc.weight": np.ones((3, 8), np.float32)})
    assert not found.skipped


@pytest.mark.parametrize(
    "name", ["conv_in", "normals.conv", "normal", "conv_scale", "upscale", "0.multiscale"]
)
def test_a_convolution_is_no_norm_for_its_name(name):
    found = find({f"{name}.weight": np.ones((4, 3, 3, 3), np.float32)})
    assert [layer.name for layer in found.layers] == [name]


@pytest.mark.parametrize("name", ["proj_in", "normal_head", "upscale", "patch_embed.input_proj"])
def test_a_linear_layer_is_no_norm_or_table_for_its_name(name):
    found = find({f"{name}.weight": np.ones((4, 3), np.float32)})
    assert [layer.name for layer in found.layers] == [name]


@pytest.mark.parametrize("name", ["block/a/standardized_conv2d", "StdConv_0"])
def test_a_convolution_that_by_its_name_standardises_its_weights_is_left_out(name):
    found = find({f"{name}/kernel": np.ones((3, 3, 4, 8), np.float32)})
    assert not found.layers
    assert "standardises its weights" in found.skipped[0].reason


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("pos_embed.weight", (1, 8, 4, 4), "an embedding"),
        ("heads.weight", (31, 8, 300), "three axes with 300 last"),
        ("digit.W", (1, 12, 10, 16, 8), "five axes"),
        ("conv.rho_weight", (4, 3, 3, 3), "the spread of weights"),
        ("gauss.B", (8, 2), "a parameter that is no layer's"),
    ],
)
def test_tables_capsules_spreads_and_features_are_no_layers(name, shape, reason):
    base = "conv.mu_weight" if "rho" in name else "conv.weight"
    found = find({base: np.ones((4, 3, 3, 3)), name: np.ones(shape)})
    assert [layer.name for layer in found.layers] == [base[:-7]]
    assert found.skipped[0].reason.startswith(reason)


@pytest.mark.parametrize("is_quantised", [False, True])
def test_one_scale_beside_a_weight_is_harmless_where_a_zero_point_is_too(is_quantised):
    arrays = {"c.weight": np.ones((4, 3, 3, 3), np.float32), "c.scale": np.float32(2)}
    if is_quantised:
        arrays["c.zero_point"] = np.int64(0)
    assert len(find(arrays).layers) == is_quantised
