"""Adapters by whole words; wrappers and networks that share a name; norms without numbers."""

import numpy as np
import pytest
import torch
from torch import nn

import planescope as ps
from planescope.files.errors import NoLayersError


def ones(*shape):
    return np.ones(shape, np.float32)


@pytest.mark.parametrize("module", ["flora", "explora_1"])
def test_a_name_that_ends_like_an_adapter_is_a_layer(module):
    found = ps.measure({f"{module}.weight": ones(8, 4)}, kinds="all")
    assert [layer.name for layer in found.layers] == [module]


@pytest.mark.parametrize("below", ["0.lora_A", "0.lora.A"])
def test_a_layer_within_a_wrapper_of_ones_own_is_left_out(below):
    arrays = {"0.linear.weight": ones(8, 4), below: ones(2, 4), "1.weight": ones(3, 8)}
    found = ps.measure(arrays, kinds="all")
    assert [layer.name for layer in found.layers] == ["1"]
    assert "0.linear" in [one.name for one in found.skipped]


@pytest.mark.parametrize("part", ["hra_u", "bone_block", "shira_weight", "vera_A"])
def test_whatever_stands_in_the_wrapper_of_peft_changes_its_layer(part):
    arrays = {"m.fc.base_layer.weight": ones(8, 4), f"m.fc.{part}.default": ones(2, 4)}
    found = ps.measure(arrays | {"1.weight": ones(3, 8)}, kinds="all")
    assert [layer.name for layer in found.layers] == ["1"]
    assert [one.name for one in found.skipped] == ["m.fc.base_layer"]


@pytest.mark.parametrize("copies", [["default"], ["one", "two"]])
def test_of_whole_copies_beside_a_module_one_is_measured(copies):
    arrays = {"m.fc.original_module.weight": ones(8, 4), "1.weight": ones(3, 8)}
    arrays |= {f"m.fc.modules_to_save.{name}.weight": ones(8, 4) for name in copies}
    found = ps.measure(arrays, kinds="all")
    assert {layer.name for layer in found.layers} == {f"m.fc.modules_to_save.{copies[0]}", "1"}
    names = ["m.fc.original_module", *(f"m.fc.modules_to_save.{name}" for name in copies[1:])]
    assert sorted(one.name for one in found.skipped) == sorted(names)


ALONE = {
    "kohya": {
        "lora_unet_mid_attn1_to_q.lora_down.weight": ones(2, 4),
        "lora_unet_mid_attn1_to_q.lora_up.weight": ones(4, 2),
        "lora_unet_mid_attn1_to_q.alpha": ones(),
    },
    "lycoris, all of the change": {"lycoris_a_proj.diff": ones(8, 4), "lycoris_a.alpha": ones()},
    "lycoris, glora": {f"lycoris_a.{part}.weight": ones(4, 4) for part in ("a1", "a2", "b1")},
    "numbered": {"double.0.processor.qkv_lora1.down.weight": ones(2, 4)},
    "peft": {
        "base_model.model.q.hra_u": ones(4, 8),
        "base_model.model.k.lily_A.weight": ones(2, 8),
    },
    "controlnet": {"lora_controlnet": ones(), "in.2.up": ones(8, 2, 1, 1), "in.2.down": ones(2, 8)},
}


@pytest.mark.parametrize("arrays", ALONE.values(), ids=ALONE)
def test_an_adapter_alone_is_no_network(arrays):
    with pytest.raises(NoLayersError, match="without the weight that it changes; merge it first"):
        ps.measure(arrays, kinds="all")


class Wrapped(nn.Module):
    """A linear layer in peft's wrapper, as it runs where it is not merged."""

    def __init__(self, way):
        super().__init__()
        self.base_layer = nn.Linear(8, 6)
        self.way = way
        if way in ("inputs", "outputs"):
            size = 8 if way == "inputs" else 6
            self.ia3_l = nn.ParameterDict({"default": torch.rand(1, size) + 0.5})
        elif way == "turn":
            self.oft_R = nn.ParameterDict({"default": torch.randn(2, 4, 4)})
        elif way == "low rank":
            self.lora_A = nn.ModuleDict({"default": nn.Linear(8, 2, bias=False)})
            self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 6, bias=False)})
        else:
            self.hada_w1_a = nn.ParameterDict({"default": torch.randn(6, 2)})
            self.hada_w1_b = nn.ParameterDict({"default": torch.randn(2, 8)})

    def forward(self, x):
        if self.way == "inputs":
            return self.base_layer(x * self.ia3_l["default"].flatten())
        if self.way == "outputs":
            return self.base_layer(x * 2.0) * self.ia3_l["default"].flatten()
        if self.way == "turn":
            blocks = x.reshape(2, 7, 2, 4)
            turned = torch.einsum("blnk,nkc->blnc", blocks, self.oft_R["default"].neg())
            return self.base_layer(turned.reshape(2, 7, 8))
        if self.way == "low rank":
            added = self.lora_B["default"](self.lora_A["default"](x))
        else:
            added = nn.functional.linear(x, self.hada_w1_a["default"] @ self.hada_w1_b["default"])
        return self.base_layer(x) + 0.5 * added


class Adapted(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.first, self.fc, self.last = nn.Linear(5, 8), Wrapped(way), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(self.fc(self.first(x).relu()).relu())


@pytest.mark.parametrize("way", ["low rank", "product", "inputs", "outputs", "turn"])
@pytest.mark.parametrize("container", ["onnx", "pt2"])
def test_a_layer_that_an_adapter_changes_is_left_out_of_graphs_too(tmp_path, container, way):
    net, path = Adapted(way).eval(), tmp_path / f"net.{container}"
    x = torch.zeros(2, 7, 5)
    if container == "onnx":
        torch.onnx.export(net, x, path, dynamo=False)
    else:
        torch.export.save(torch.export.export(net, (x,)), path)
    found = ps.measure(path, kinds="all")
    assert [layer.name for layer in found.layers] == ["first", "last"]
    reasons = {one.name: one.reason for one in found.skipped}
    assert "not merged" in reasons["fc.base_layer"]


class Backbone(nn.Module):
    """A network that calls its first layer as peft calls what it wraps."""

    def __init__(self):
        super().__init__()
        self.base_layer = nn.Conv2d(3, 8, 3, bias=False)
        self.level0 = nn.Conv2d(8, 8, 3, bias=False)

    def forward(self, x):
        return self.level0(self.base_layer(x).relu())


@pytest.mark.parametrize("container", ["onnx", "pt2", "pt"])
def test_a_layer_called_base_layer_in_a_network_is_measured(tmp_path, container):
    net, path = nn.Sequential(Backbone()).eval(), tmp_path / f"net.{container}"
    x = torch.zeros(1, 3, 9, 9)
    if container == "onnx":
        torch.onnx.export(net, x, path, dynamo=False)
    elif container == "pt2":
        torch.export.save(torch.export.export(net, (x,)), path)
    else:
        torch.save(net.state_dict(), path)
    found = ps.measure(path)
    assert [layer.name for layer in found.layers] == ["0.base_layer", "0.level0"]
    assert not found.skipped


@pytest.mark.parametrize(
    ("module", "part"),
    [
        ("base_model.model.fc", "novel_A.mine.weight"),
        ("fc", "novel_A.default.weight"),
        ("fc", "peanut_A.mine.weight"),
        ("fc", "osf_svd_params.mine.U_low"),
    ],
)
def test_a_module_in_the_wrapper_of_peft_is_a_part_of_the_adapter(module, part):
    arrays = {f"{module}.base_layer.weight": ones(8, 4), f"{module}.{part}": ones(2, 4)}
    found = ps.measure(arrays | {"1.weight": ones(3, 8)}, kinds="all")
    assert [layer.name for layer in found.layers] == ["1"]
    assert [one.name for one in found.skipped] == [f"{module}.base_layer"]


def test_modules_beside_a_base_layer_of_a_network_are_layers():
    arrays = {"net.base_layer.weight": ones(8, 4), "net.one_a.fc.weight": ones(8, 8)}
    arrays |= {"net.one_b.fc.weight": ones(8, 8), "net.one_c.0.weight": ones(8, 8)}
    assert len(ps.measure(arrays, kinds="all").layers) == 4


PACKED = {
    "gptq": {"qweight": np.zeros((8, 32), np.int32), "qzeros": np.zeros((4, 4), np.int32)},
    "hqq": {"W_q": np.zeros((32, 32), np.uint8), "zero": ones(64, 1)},
    "quanto": {"weight._data": np.zeros((32, 32), np.int8), "weight._scale": ones(32, 1)},
}


@pytest.mark.parametrize("beside", [{}, {"0.weight": ones(3, 8)}], ids=["alone", "beside"])
@pytest.mark.parametrize("way", PACKED)
def test_weights_in_few_bits_are_left_out_by_name_and_their_scales_are_no_layers(way, beside):
    arrays = {f"fc.{part}": array for part, array in PACKED[way].items()} | beside
    arrays["fc.scales"] = ones(4, 32)
    if not beside:
        with pytest.raises(NoLayersError, match="left out: fc"):
            ps.measure(arrays, kinds="all")
        return
    found = ps.measure(arrays, kinds="all")
    assert [layer.name for layer in found.layers] == ["0"]
    assert found.skipped[0].name.startswith("fc.")


def test_a_network_with_a_part_called_base_layer_is_looked_into():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.base_layer = nn.Conv2d(3, 8, 3)
            self.head = nn.Conv2d(8, 4, 3)

        def forward(self, x):
            return self.head(torch.relu(self.base_layer(x)))

    assert [layer.name for layer in ps.measure(Net()).layers] == ["base_layer", "head"]


def test_a_norm_without_a_number_behind_numbered_layers_is_no_fault():
    arrays = {"conv1.weight": ones(8, 3, 3, 3)}
    arrays |= {f"bn.running_{part}": ones(8) for part in ("mean", "var")}
    assert ps.measure(arrays).layers[0].norm == "bn"


def test_sparse_weights_of_one_shape_are_not_one_layer():
    arrays = {name: torch.randn(8, 8).to_sparse_csr() for name in ("a.weight", "b.weight")}
    assert len(ps.measure(arrays, kinds="all").layers) == 2


def test_what_was_left_out_is_named_where_no_layer_is_left():
    with pytest.raises(NoLayersError, match=r"left out: a \(its bias of length 7 fits no axis"):
        ps.measure({"a.weight": ones(8, 4), "a.bias": ones(7)}, kinds="all")


def test_both_halves_of_a_separable_convolution_are_layers():
    arrays = {"s.depthwise_kernel": ones(3, 3, 4, 1), "s.pointwise_kernel": ones(1, 1, 4, 6)}
    found = ps.measure(arrays | {"s.bias": ones(6)}, kinds="all")
    assert [(x.name, x.filters, x.fan_in) for x in found.layers] == [
        ("s.depthwise", 4, 9),
        ("s.pointwise", 6, 4),
    ]
