"""Each layer of a live module has the weight that acts when the network runs in evaluation."""

import copy
import functools

import numpy as np
import pytest
import timm.layers
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.ao import quantization
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune
from transformers.pytorch_utils import Conv1D

import planescope as ps
from planescope.files.errors import UsageError
from planescope.networks.live.module import read_module
from planescope.networks.state.layers import find_layers

pytestmark = pytest.mark.filterwarnings("ignore")  # quantisation and old hooks move out of torch


def layers(net):
    found, left_out = find_layers(read_module(net))
    return {layer.name: layer for layer in found}, {one.name: one.reason for one in left_out}


def jacobian(module, x):
    """Weight and bias of an affine map at one output in the middle, from impulses, tap by tap."""
    module, x = module.double().eval(), x.double()
    with torch.no_grad():
        rest = module(torch.zeros_like(x))
        if x.ndim == 2:
            return (module(torch.eye(x.shape[1], dtype=x.dtype)) - rest).T, rest[0]
        middle = tuple(size // 2 for size in rest.shape[2:])
        impulses = torch.eye(x[0].numel(), dtype=x.dtype).reshape(-1, *x.shape[1:])
        out = (module(impulses) - rest)[(slice(None), slice(None), *middle)]
    return out.T.reshape(-1, *x.shape[1:]), rest[(0, slice(None), *middle)]


def window(weight, kernel):
    """Cut the taps out of a map from all inputs to one output: all that is not 0."""
    touched = weight.abs().amax((0, 1))
    cut = []
    for axis, extent in enumerate(kernel):
        others = [a for a in range(len(kernel)) if a != axis]
        where = (touched.amax(others) if others else touched).nonzero().flatten()
        assert int(where[-1]) - int(where[0]) + 1 == extent
        cut.append(slice(int(where[0]), int(where[-1]) + 1))
    return weight[(..., *cut)]


class ScaledLinear(nn.Linear):
    """Equalised learning rate: the weight is scaled as it is used."""

    def forward(self, x):
        return F.linear(x, self.weight / self.in_features**0.5, self.bias) * 2**0.5


class ScaledConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 4, 3, 3))
        self.shift = nn.Parameter(torch.randn(6))

    def forward(self, x):
        return -1.5 * F.conv2d(x, self.kernel * 0.3, self.shift * 2, padding=1)


class Inputs(nn.Module):
    """Weights (inputs, outputs)."""

    def __init__(self, inputs=5, outputs=5):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return x @ self.weight + self.bias


class Factors(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.ParameterList([torch.randn(5, 2), torch.randn(2, 7)])

    def forward(self, x):
        return x @ self.parts[0] @ self.parts[1]


class Int8(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.randint(-127, 127, (8, 5), dtype=torch.int8))
        self.register_buffer("scales", torch.rand(8))

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype)) * self.scales


class Bounded(nn.Conv2d):
    """As EEGNet's: the forward itself shortens the weight that it holds."""

    def forward(self, x):
        self.weight.data = torch.renorm(self.weight.data, 2, 0, 0.5)
        return super().forward(x)


class Circular(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), self.weight.flip(0), self.bias)


class LowRank(nn.Module):
    """As peft's: a layer, and beside it a part of low rank that is not merged."""

    def __init__(self, base, down, up):
        super().__init__()
        self.base_layer, self.lora_A, self.lora_B = base, down, up

    def forward(self, x):
        return self.base_layer(x) + 0.5 * self.lora_B(self.lora_A(x))


def low_rank_linear():
    return LowRank(nn.Linear(5, 6), nn.Linear(5, 2, bias=False), nn.Linear(2, 6, bias=False))


def low_rank_conv():
    return LowRank(nn.Conv2d(4, 6, 3, 2, 1, groups=2), nn.Conv2d(4, 2, 3, 2, 1), nn.Conv2d(2, 6, 1))


def parametrised():
    layer = parametrizations.weight_norm(nn.Conv2d(4, 6, 3, padding=1))
    parametrize.register_parametrization(layer, "bias", nn.Softplus())
    return layer


def pruned_twice():
    layer = prune.random_unstructured(nn.Conv2d(4, 6, 3, padding=1), "weight", 0.4)
    layer = prune.ln_structured(layer, "weight", 0.3, 2, 0)
    return prune.l1_unstructured(layer, "bias", 0.5)


IMAGE, VECTOR = (1, 4, 9, 9), (1, 5)
OWN = {
    "std-conv": (lambda: timm.layers.StdConv2d(4, 8, 3), IMAGE),
    "scaled-std-conv": (lambda: timm.layers.ScaledStdConv2d(4, 8, 3, groups=2), IMAGE),
    "std-conv-same": (lambda: timm.layers.StdConv2dSame(4, 8, 3), IMAGE),
    "equalised": (lambda: ScaledLinear(5, 6), VECTOR),
    "scaled-conv": (ScaledConv, IMAGE),
    "transposed-square": (Inputs, VECTOR),
    "gpt2": (lambda: Conv1D(7, 5), VECTOR),
    "factors": (Factors, VECTOR),
    "int8": (Int8, VECTOR),
    "bounded": (lambda: Bounded(4, 6, 3, padding=1), IMAGE),
    "circular": (lambda: Circular(4, 6, 3), IMAGE),
    "low-rank": (low_rank_linear, VECTOR),
    "weight-norm-and-bias": (parametrised, IMAGE),
    "pruned": (pruned_twice, IMAGE),
}


@pytest.mark.parametrize(("make", "shape"), OWN.values(), ids=OWN)
def test_the_weight_is_that_which_impulses_give(make, shape):
    torch.manual_seed(0)
    module = make()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    random = torch.get_rng_state()
    (layer,) = layers(nn.Sequential(module))[0].values()
    weight, bias = layer.weight.read(), layer.bias and layer.bias.read()
    assert layer.name == "0"
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(before[name], now) for name, now in module.state_dict().items())
    whole, rest = jacobian(module, torch.zeros(shape))
    taps = window(whole, layer.kernel) if layer.kernel else whole
    groups = layer.groups
    blocks = taps.reshape(groups, -1, groups, layer.weight.shape[1], *layer.kernel)
    wanted = torch.cat([blocks[g, :, g] for g in range(groups)])
    torch.testing.assert_close(weight.double(), wanted, rtol=1e-5, atol=1e-6)
    found = torch.zeros(layer.filters) if bias is None else bias
    torch.testing.assert_close(found.double(), rest, rtol=1e-5, atol=1e-6)


def test_a_strided_grouped_convolution_with_a_part_of_low_rank_is_one_layer():
    torch.manual_seed(0)
    module = low_rank_conv().eval()
    found, _ = layers(nn.Sequential(module, nn.ReLU(), nn.Conv2d(6, 3, 1)))
    assert list(found) == ["0", "2"]
    weight, bias = found["0"].weight.read(), found["0"].bias.read()
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(
        F.conv2d(x, weight.double(), bias.double(), 2, 1), module.double()(x)
    )


@pytest.mark.parametrize("options", [{}, {"groups": 2, "output_padding": 1, "dilation": 2}])
def test_a_transposed_convolution_of_ones_own_class(options):
    class Halved(nn.ConvTranspose2d):
        def forward(self, x):
            return 0.5 * super().forward(x)

    torch.manual_seed(0)
    module = Halved(4, 6, 3, stride=2, padding=1, **options)
    (layer,) = layers(nn.Sequential(module))[0].values()
    twin = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, **options)
    twin.load_state_dict({name: 0.5 * tensor for name, tensor in module.state_dict().items()})
    (wanted,) = layers(nn.Sequential(twin))[0].values()
    torch.testing.assert_close(layer.weight.read().float(), wanted.weight.read())
    torch.testing.assert_close(layer.bias.read().float(), wanted.bias.read())


def test_a_standardised_network_is_measured_as_the_weights_that_it_hands_over():
    torch.manual_seed(0)
    std = timm.layers.StdConv2d(3, 8, 3)
    with torch.no_grad():
        std.weight += 1.0  # all filters far to one side, which the standardisation takes back
    mass = ps.measure(nn.Sequential(std)).layers[0]
    assert abs(mass.mean_cosine) < 1e-6
    assert ps.measure(nn.Sequential(nn.Conv2d(3, 8, 3))).layers[0].mean_cosine is not None


@pytest.mark.parametrize("container", ["net.pt", "net.safetensors"])
def test_a_bare_state_dict_that_may_be_standardised_says_so(tmp_path, container):
    def notes(convolution, norm):
        parts = [convolution(3, 8, 3), norm(8), nn.ReLU(), convolution(8, 8, 3), norm(8)]
        state = nn.Sequential(*parts).state_dict()
        (torch.save if container == "net.pt" else save_file)(state, tmp_path / container)
        return " ".join(ps.measure(tmp_path / container).notes)

    plain = functools.partial(nn.Conv2d, bias=False)
    std, group = timm.layers.StdConv2d, functools.partial(nn.GroupNorm, 2)
    assert "2 convolutions without a bias" in notes(std, group)
    assert "standardise their weights when they run" in notes(plain, group)  # it cannot be told
    assert "standardise" not in notes(plain, nn.BatchNorm2d)
    assert "standardise" not in notes(nn.Conv2d, group)
    # A module and a pickled one tell their class.
    net = nn.Sequential(std(3, 8, 3), nn.GroupNorm(2, 8))
    assert "standardise" not in " ".join(ps.measure(net).notes)


class Counting(nn.Conv2d):
    """A layer that keeps something beside its tensors in the state dict."""

    calls = 3

    def get_extra_state(self):
        return {"calls": self.calls}

    def set_extra_state(self, state):
        self.calls = state["calls"]


def test_extra_state_beside_a_weight_is_no_tensor_and_hides_none(tmp_path):
    net = nn.Sequential(Counting(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    assert "0._extra_state" in net.state_dict()
    torch.save(net.state_dict(), tmp_path / "net.pt")
    live, saved = ps.measure(net), ps.measure(tmp_path / "net.pt")
    given = ps.measure(net.state_dict())
    masses = [layer.negative_mass for layer in live.layers]
    assert len(masses) == 2
    for measured in (saved, given):
        assert [layer.negative_mass for layer in measured.layers] == masses
        assert measured.skipped == ()


class Bent(nn.Linear):
    def forward(self, x):
        return torch.tanh(super().forward(x))


class Noisy(nn.Linear):
    def forward(self, x):
        return super().forward(x) + torch.randn(self.out_features)


LEFT_OUT = {
    "bent": (lambda: Bent(4, 4), "", "Bent has a forward of its own"),
    "noisy": (lambda: Noisy(4, 4), "", "Noisy has a forward of its own"),
    "bilinear": (lambda: nn.Bilinear(2, 3, 4), "", "linear in each of two inputs"),
    "embedding": (lambda: nn.Embedding(4, 3), "", "its rows are looked up"),
    "embedding-bag": (lambda: nn.EmbeddingBag(4, 3), "", "its rows are looked up"),
    "lstm": (lambda: nn.LSTM(3, 4), "", "acts on its own output"),
    "gru-cell": (lambda: nn.GRUCell(3, 4), "", "acts on its own output"),
    "attention": (lambda: nn.MultiheadAttention(4, 2), ".in_proj_weight", "queries, keys"),
    "attention-apart": (lambda: nn.MultiheadAttention(4, 2, kdim=3), ".k_proj_weight", "queries"),
    "deformable": (lambda: torchvision.ops.DeformConv2d(3, 4, 3), ".weight", "DeformConv2d"),
    "conditional": (lambda: timm.layers.CondConv2d(3, 4, 3), ".weight", "CondConv2d"),
    "blur": (lambda: timm.layers.BlurPool2d(4), "", "one fixed filter for every channel"),
    "product": (lambda: nn.ParameterDict({"w": torch.ones(3, 4)}), ".w", "not known"),
}


@pytest.mark.parametrize(("make", "part", "reason"), LEFT_OUT.values(), ids=LEFT_OUT)
def test_what_has_no_weight_of_its_own_is_left_out_by_name(make, part, reason):
    found, left_out = layers(nn.Sequential(make(), nn.Conv2d(2, 2, 3)))
    assert set(found) - {"0.out_proj"} == {"1"}
    assert reason in left_out[f"0{part}"]


@pytest.mark.parametrize(
    "norm",
    [
        torchvision.ops.FrozenBatchNorm2d,
        timm.layers.norm_act.FrozenBatchNormAct2d,
        lambda n: nn.InstanceNorm2d(n, affine=True, track_running_stats=True),
    ],
    ids=["torchvision", "timm", "instance"],
)
def test_norms_that_are_affine_in_evaluation_are_norms(norm):
    net = nn.Sequential(nn.Conv2d(2, 4, 3), norm(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    found, _ = layers(net)
    assert found["0"].norm is not None
    assert (found["0"].norm.name, found["0"].norm_assumed, found["3"].input) == ("1", False, "relu")


class Frozen(nn.Module):
    """As detectron2's: whether a gradient is wanted decides how it computes."""

    def __init__(self, channels, eps):
        super().__init__()
        self.eps = eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(channels) + 0.5)

    def forward(self, x):
        if x.requires_grad:
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            bias = self.bias - self.running_mean * scale
            return x * scale[:, None, None] + bias[:, None, None]
        parts = (self.running_mean, self.running_var, self.weight, self.bias)
        return F.batch_norm(x, *parts, training=False, eps=self.eps)


def test_a_frozen_norm_with_control_flow_keeps_the_graph_and_its_epsilon():
    net = nn.Sequential(nn.Conv2d(2, 4, 3), Frozen(4, 1e-3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    assert read_module(net).note == ""
    assert layers(net)[0]["0"].norm.eps == 1e-3


def test_what_scales_otherwise_than_its_running_statistics_say_is_no_norm():
    class Other(Frozen):
        def forward(self, x):
            return super().forward(x) * 2

    found, left_out = layers(nn.Sequential(nn.Conv2d(2, 4, 3), Other(4, 1e-5)))
    assert found["0"].norm is None
    assert "does not normalise by that alone" in left_out["1"]


# --- shared weights


def test_one_parameter_under_two_modules_is_one_layer_and_counts_once():
    net = nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3))
    net[2].weight = net[0].weight
    net[3].weight = nn.Parameter(net[0].weight.data)  # another parameter over the same memory
    measured = ps.measure(net)
    assert [layer.name for layer in measured.layers] == ["0"]
    assert measured.network.filters == 2
    told = {one.name: one.reason for one in measured.skipped}
    assert set(told) == {"2", "3"}
    assert all("has the weight of 0" in reason and "bias" in reason for reason in told.values())


def test_a_module_that_stands_twice_is_told_once_by_the_outermost_name():
    block = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3))
    found, left_out = layers(nn.Sequential(block, nn.ReLU(), block))
    assert list(found) == ["0.0", "0.1"]
    assert left_out == {"2": "the same module as 0, whose layers are measured once"}


def test_the_same_weight_the_other_way_round_is_another_layer():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.enc = nn.Linear(6, 3)
            self.bias = nn.Parameter(torch.randn(6))

        def forward(self, x):
            return F.linear(F.relu(self.enc(x)), self.enc.weight.t() * 2, self.bias)

    net = Tied()
    found, _ = layers(net)
    assert list(found) == ["enc", "enc.weight@linear"]
    back = found["enc.weight@linear"]
    assert torch.equal(back.weight.read(), net.enc.weight.detach().t() * 2)
    assert (back.input, torch.equal(back.bias.read(), net.bias)) == ("relu", True)


def test_weights_that_a_forward_computes_on_its_way_are_those_it_uses():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(4, 2, 3, 3))
            self.first = nn.Parameter(torch.randn(5, 4))
            self.last = nn.Parameter(torch.randn(5, 2))

        def forward(self, x):
            y = F.conv2d(x, self.kernel - self.kernel.mean((1, 2, 3), keepdim=True))
            return F.relu(F.linear(F.relu(y).mean((2, 3)), self.first)) @ self.last

    net = Own()
    found, left_out = layers(net)
    assert list(found) == ["kernel@conv2d", "first", "last"]
    assert found["kernel@conv2d"].weight.read().mean((1, 2, 3)).abs().max() < 1e-6
    assert torch.equal(found["last"].weight.read(), net.last.t())
    assert left_out == {}


# --- tensors of other kinds


def test_quantised_modules_are_measured_as_they_were_rounded():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    packed = quantization.quantize_dynamic(net, {nn.Linear})
    found, _ = layers(packed)
    assert list(found) == ["0", "2"]
    assert torch.equal(found["0"].weight.read(), packed[0].weight().dequantize())
    step = packed[0].weight().q_scale()
    assert (found["0"].weight.read() - net[0].weight).abs().max() <= 0.51 * step


def test_networks_in_training_for_quantisation_have_the_weight_that_is_rounded_and_folded():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.relu = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()

        def forward(self, x):
            return self.relu(self.bn(self.conv(x)))

    torch.manual_seed(0)
    net = Net().train()
    net.qconfig = quantization.get_default_qat_qconfig("x86")
    net = quantization.prepare_qat(
        quantization.fuse_modules_qat(net, [["conv", "bn", "relu"]]), inplace=False
    )
    net(torch.randn(4, 3, 8, 8))
    found, _ = layers(net)
    weight, bias = (part.read() for part in (found["conv"].weight, found["conv"].bias))
    x = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(
        F.relu(F.conv2d(x, weight, bias)),
        copy.deepcopy(net.conv).eval().forward(x),
        rtol=1e-3,
        atol=1e-4,
    )


def sparse(layout):
    net = nn.Sequential(nn.Linear(6, 4))
    net[0].weight = nn.Parameter(
        prune.l1_unstructured(nn.Linear(6, 4), "weight", 0.5).weight.detach()
    )
    dense = net[0].weight.detach().clone()
    net[0].weight = nn.Parameter(dense.to_sparse(layout=layout), requires_grad=False)
    return net, dense


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
def test_sparse_weights_are_measured(layout):
    net, dense = sparse(layout)
    (layer,) = layers(net)[0].values()
    assert torch.equal(layer.weight.read(), dense)


class Packed(torch.Tensor):
    """A tensor class of others': one byte a weight, and a scale."""

    @staticmethod
    def __new__(cls, codes, scale):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes, scale):
        self.codes, self.scale = codes, scale

    def dequantize(self, *_, **__):
        return self.codes * self.scale

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].codes, args[0].scale)
        plain = [a.dequantize() if isinstance(a, cls) else a for a in args]
        return func(*plain, **(kwargs or {}))


def test_a_tensor_class_of_others_is_measured_by_the_values_it_gives():
    net = nn.Sequential(nn.Linear(6, 4))
    codes = torch.randint(-8, 8, (4, 6)).float()
    net[0].weight = nn.Parameter(Packed(codes, 0.25), requires_grad=False)
    (layer,) = layers(net)[0].values()
    assert torch.equal(layer.weight.read(), codes * 0.25)


def test_fake_tensors_are_refused_in_a_sentence():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        net = nn.Sequential(nn.Conv2d(2, 2, 3))
    with pytest.raises(UsageError, match=r"0\.weight is on the meta device and has no values"):
        read_module(net)


def test_under_autocast_a_computed_weight_has_its_own_type():
    torch.manual_seed(0)
    net = nn.Sequential(parametrizations.orthogonal(nn.Linear(8, 8)), ScaledLinear(8, 8))
    plain = {name: layer.weight.read() for name, layer in layers(net)[0].items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = layers(net)
        inside = {name: layer.weight.read() for name, layer in found.items()}
    assert all(torch.equal(inside[name], plain[name]) for name in plain)


def test_a_hook_of_others_that_computes_the_weight_is_heeded():
    def scale(module, _inputs):
        module.weight = module.weight_orig * 0.1

    net = nn.Sequential(nn.Conv2d(2, 3, 3))
    weight = net[0]._parameters.pop("weight")
    net[0].register_parameter("weight_orig", nn.Parameter(weight.detach()))
    net[0].weight = weight.detach() * 0  # of a time before the last step
    net[0].register_forward_pre_hook(scale)
    (layer,) = layers(net)[0].values()
    assert torch.equal(layer.weight.read(), weight.detach() * 0.1)
    assert not net[0].weight.any()


def test_hooks_that_may_change_a_layer_are_told():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.utils.weight_norm(nn.Conv2d(8, 8, 3)))
    assert ps.measure(net).notes == (), "the older weight norm computes the weight"
    net[0].register_forward_hook(lambda _, __, output: -output)
    (note,) = ps.measure(net).notes
    assert note == "hooks on 0 are not run: what they change is in no number here"


@pytest.mark.parametrize(
    "computed",
    [nn.utils.weight_norm, lambda layer: prune.l1_unstructured(layer, "weight", 0.5)],
    ids=["weight-norm", "pruned"],
)
def test_a_hook_beside_one_of_torch_is_told_and_not_called(computed):
    called = []
    net = nn.Sequential(computed(nn.Conv2d(3, 8, 3)))
    net[0].register_forward_pre_hook(lambda _, inputs: called.append(inputs) or (-inputs[0],))
    found = ps.measure(net)
    assert found.notes == ("hooks on 0 are not run: what they change is in no number here",)
    assert found.layers[0].negative_mass == ps.measure({"w": net[0].weight}).layers[0].negative_mass
    assert called == []


def test_of_a_weight_put_together_the_parts_are_told_once():
    class Magnitude(nn.Module):
        """As DoRA: a length beside a direction that parts of low rank change."""

        def __init__(self):
            super().__init__()
            self.base = nn.Linear(6, 8)
            self.a, self.b = (nn.Parameter(torch.randn(*s)) for s in ((2, 6), (8, 2)))
            self.length = nn.Parameter(torch.rand(8) + 0.5)

        def weight(self):
            whole = self.base.weight + self.b @ self.a
            return self.length[:, None] * whole / whole.norm(dim=1, keepdim=True)

        def forward(self, x):
            return F.linear(x, self.weight(), self.base.bias)

    net = nn.Sequential(Magnitude(), nn.ReLU(), nn.Linear(8, 3))
    found, left_out = layers(net)
    torch.testing.assert_close(found["0"].weight.read().float(), net[0].weight())
    assert left_out == {}


def test_hooks_of_others_are_not_called_and_nothing_moves():
    called = []
    net = nn.Sequential(timm.layers.StdConv2d(3, 8, 3), nn.Conv2d(8, 2, 3))
    for part in net:
        part.register_forward_hook(lambda *_: called.append("after"))
        part.register_forward_pre_hook(lambda *_: called.append("before"))
    for layer in layers(net)[0].values():
        layer.weight.read()
    assert called == []
    assert np.all([part.training for part in net.modules()])


class Adapted(nn.Module):
    """As peft keeps a whole copy of a module beside it; one of the two acts."""

    def __init__(self, disabled):
        super().__init__()
        self.original_module, self.disable_adapters = nn.Linear(4, 4), disabled
        self.modules_to_save = nn.ModuleDict({"default": nn.Linear(4, 4)})
        self.active_adapter = "default"

    def forward(self, x):
        if self.disable_adapters:
            return self.original_module(x)
        return self.modules_to_save["default"](x)


@pytest.mark.parametrize("disabled", [False, True])
def test_of_a_module_and_its_copy_the_one_that_acts_is_measured(disabled):
    found, left_out = layers(nn.Sequential(Adapted(disabled)))
    names = ["0.original_module", "0.modules_to_save.default"]
    assert list(found) == [names[not disabled]]
    assert list(left_out.values()) == ["it does not act: another copy of it does"]


class Gated(nn.Linear):
    """As IA3 and LLM.int8's outliers: the inputs are scaled before the stored weight acts."""

    def __init__(self):
        super().__init__(5, 6)
        self.gate = nn.Parameter(torch.randn(5))

    def forward(self, x):
        return super().forward(x * self.gate)


class Signs(nn.Conv2d):
    """As binarised networks: the weight acts on the signs of the input."""

    def forward(self, x):
        return F.conv2d(x.sign(), self.weight.sign(), self.bias)


def test_a_scale_of_the_inputs_is_the_weights_and_a_rounding_of_them_is_not():
    torch.manual_seed(0)
    gated, signs = Gated(), Signs(2, 3, 3)
    scaled = layers(nn.Sequential(gated))[0]["0"].weight.read()
    torch.testing.assert_close(scaled.float(), (gated.weight * gated.gate).detach())
    assert torch.equal(layers(nn.Sequential(signs))[0]["0"].weight.read(), signs.weight.sign())


def test_packed_weights_of_several_layers_are_not_one():
    net = nn.Sequential(nn.Linear(6, 4), nn.Linear(6, 4))
    for part in net:
        codes = torch.randint(-8, 8, part.weight.shape).float()
        part.weight = nn.Parameter(Packed(codes, 0.25), requires_grad=False)
    assert list(layers(net)[0]) == ["0", "1"]


def test_parts_that_are_packed_for_one_processor_or_scripted_are_measured():
    from torch.utils import mkldnn

    plain = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6, 2)).eval()
    weight = plain[0].weight.detach().clone()
    scripted, _ = layers(nn.Sequential(torch.jit.script(plain[0]), nn.ReLU(), plain[3]))
    packed, _ = layers(mkldnn.to_mkldnn(plain))
    for found, names in ((packed, ["0", "3"]), (scripted, ["0", "2"])):
        assert list(found) == names
        assert torch.equal(found["0"].weight.read(), weight)


def test_a_scripted_layer_of_another_class_is_left_out_by_name():
    script = torch.jit.trace(
        nn.Sequential(timm.layers.StdConv2d(3, 4, 3), nn.Conv2d(4, 2, 3)).eval(),
        torch.zeros(1, 3, 8, 8),
    )
    found, left_out = layers(script)
    assert list(found) == ["1"]
    assert "its class was StdConv2d" in left_out["0"]


def test_weights_that_a_mesh_shares_out_are_put_together(tmp_path):
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), timm.layers.StdConv2d(4, 4, 3))
    wanted = {name: layer.weight.read().clone() for name, layer in layers(net)[0].items()}
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/m", rank=0, world_size=1)
    try:
        fully_shard(net, mesh=init_device_mesh("cpu", (1,)))
        found, _ = layers(net)
        assert list(found) == ["0", "2"]
        for name, layer in found.items():
            assert type(layer.weight.read()) is torch.Tensor
            assert torch.equal(layer.weight.read(), wanted[name])
    finally:
        distributed.destroy_process_group()
