"""A layer that the network has and that does not act when it runs is told, and none else is."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import planescope as ps
from planescope.networks.live.module import read_module
from planescope.networks.state.layers import find_layers


def measured(net):
    found = ps.measure(net, kinds="all")
    names = [layer.name for layer in found.layers]
    return names, {one.name: one.reason for one in found.skipped}, " ".join(found.notes)


class Body(nn.Module):
    """Its head is called as the options say."""

    def __init__(self, width=4):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.head = nn.Sequential(nn.Flatten(), nn.LazyLinear(2), nn.ReLU())
        self.head[1] = nn.Linear(width, 2)
        self.named = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])

    def forward(self, x, whole=False):
        x = F.relu(self.conv(x)).mean((2, 3))
        return self.head(x) if whole else x


class Trunk(nn.Module):
    """It takes one layer of another network."""

    def __init__(self):
        super().__init__()
        self.body = Body()
        self.old = nn.Conv2d(3, 3, 3)
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        return self.last(F.relu(self.body.conv(x)).mean((2, 3)))


def test_what_nothing_calls_is_left_out_by_name():
    names, left, notes = measured(Trunk())
    assert names == ["body.conv", "last"]
    assert left.keys() == {"old", "body.head.1", "body.named.0", "body.named.1", "body.named.2"}
    assert all("forward never calls it" in reason for reason in left.values())
    assert notes == ""


def test_what_an_option_or_another_method_calls_is_measured_and_told():
    class More(Body):
        def step(self, x):
            return self.named[0](self(x))

    names, left, notes = measured(More())
    assert names == ["conv", "head.1", *(f"named.{i}" for i in range(3))]
    assert left == {}
    assert "does not call head and named: measured" in notes
    _, left, notes = measured(Body())
    assert left.keys() == {"named.0", "named.1", "named.2"}
    assert "does not call head: measured" in notes


def test_what_acts_in_training_alone_is_told_so():
    class Aided(Trunk):
        def forward(self, x):
            return self.old(x) if self.training else super().forward(x)

    net = Aided().eval()
    net.count = torch.zeros(())
    names, _, notes = measured(net)
    assert "old" in names
    assert "forward calls old in training alone" in notes
    assert not any(module.training for module in net.modules())


def test_what_a_draw_decides_is_not_said_to_be_of_training():
    class Drawn(Trunk):
        def forward(self, x):
            is_drawn = torch.rand(()).item() < self.share
            return super().forward(self.old(x) if is_drawn else x)

    net = Drawn()
    net.share, state = 0.0, torch.get_rng_state()
    _, left, notes = measured(net)
    assert torch.equal(torch.get_rng_state(), state)
    assert "old" not in left
    assert "forward, in evaluation and with its options left out, does not call" in notes
    assert "training alone" not in notes


class Held(nn.Module):
    """Layers whose weights act, though none is called."""

    def __init__(self):
        super().__init__()
        self.plain, self.copied, self.looked = (nn.Linear(4, 4) for _ in range(3))
        self.attention = nn.MultiheadAttention(4, 2)
        self.tied = nn.Linear(4, 4)
        self.embedding = nn.Embedding(4, 4)
        self.tied.weight = self.embedding.weight
        self.called = nn.Linear(4, 4)

    def forward(self, x):
        x = F.linear(self.called(x), self.plain.weight, self.plain.bias)
        x = x + F.linear(x, self.copied._parameters["weight"].data * 2)
        x = F.linear(x, self.looked._parameters["weight"]) @ self.tied.weight
        return self.attention(x, x, x)[0]


def test_weights_that_are_read_are_not_said_to_be_idle():
    names, left, notes = measured(Held())
    assert {"plain", "looked", "attention.out_proj", "called"} <= set(names)
    assert not any("never" in reason for reason in left.values())
    assert left["tied"] == "not called itself; what acts is tied.weight@matmul"
    assert notes == ""


def test_a_network_without_a_graph_and_one_of_lists_claim_nothing():
    class Branching(Trunk):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    for net in (Branching(), nn.ModuleDict({"a": nn.Linear(2, 2)}), nn.Linear(2, 2)):
        _, left, notes = measured(net)
        assert not left
        assert "perhaps" not in notes


def test_a_shared_weight_is_measured_with_the_module_that_is_called():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)
            self.two.weight = self.one.weight
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(self.two(x))

    net = Shared()
    found = ps.measure(net)
    (layer,) = found.layers
    assert (layer.name, layer.input, layer.norm) == ("two", "image", "norm")
    assert layer.values.bias == pytest.approx(net.two.bias.detach().numpy())
    told = [(one.name, one.reason) for one in found.skipped]
    assert told == [("one", "not called itself; its weight acts in two")]


def test_of_a_sequential_that_is_cut_the_rest_is_told():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
            self.body.append(nn.Conv2d(4, 2, 3))

        def forward(self, x):
            return self.body[:-1](x)

    found = ps.measure(Cut())
    inputs = [(layer.name, layer.input) for layer in found.layers]
    assert inputs == [("body.0", "image"), ("body.2", "relu"), ("body.3", "unknown")]
    assert any("does not call body.3: measured" in note for note in found.notes)


def test_a_graph_that_was_misled_by_a_question_for_tensors_is_not_followed():
    class Asking(Trunk):
        def forward(self, x):
            return super().forward(self.old(x) if isinstance(x, torch.Tensor) else x)

    found = ps.measure(Asking())
    assert {layer.input for layer in found.layers} == {"unknown"}
    assert "old" in [layer.name for layer in found.layers]
    assert "forward asks what is a tensor, and symbols are none" in " ".join(found.notes)


def test_copies_for_several_devices_are_looked_into():
    net = nn.Sequential(nn.DataParallel(nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.Conv2d(4, 2, 3))
    assert [layer.input for layer in ps.measure(net).layers] == ["image", "relu"]


def test_who_profiles_is_left_alone():
    import cProfile

    profile = cProfile.Profile()
    profile.enable()
    names, _, notes = measured(Trunk())
    profile.disable()
    assert "old" in names
    assert "does not call body.head, body.named and old: measured" in notes


# --- layers that are called as functions


class Back(nn.Module):
    """A convolution's weight, used the other way round."""

    def __init__(self, first):
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, groups=2)
        self.first = first

    def forward(self, x):
        x = self.conv(x) if self.first else x
        return F.conv_transpose2d(F.relu(x), self.conv.weight, groups=2)


@pytest.mark.parametrize("first", [True, False])
def test_a_weight_that_a_transposed_convolution_is_given_is_one_there(first):
    net = Back(first)
    names, left, _ = measured(net)
    back = "conv.weight@conv_transpose2d"
    assert names == (["conv", back] if first else [back])
    assert left == ({} if first else {"conv": f"not called itself; what acts is {back}"})
    found = {layer.name: layer for layer in ps.measure(net, kinds="all").layers}[back]
    assert (found.kind, found.filters, found.fan_in, found.groups) == ("transposed", 4, 27, 2)


def test_a_function_that_is_given_the_weight_alone_has_no_bias():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 6, 3)

        def forward(self, x):
            return F.conv2d(x, self.conv.weight)

    net = Half()
    (layer,) = ps.measure(net).layers
    assert layer.name == "conv"
    assert not layer.values.bias.any()


class Products(nn.Module):
    """Weights in the forms in which people write products with them."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(4, 6)
        self.W, self.b = nn.Parameter(torch.randn(6, 3)), nn.Parameter(torch.randn(3))
        self.last = nn.Parameter(torch.randn(3, 3))
        self.stack = nn.Parameter(torch.randn(2, 3, 3))
        self.register_buffer("fixed", torch.randn(4, 4))

    def forward(self, x):
        x = torch.relu(self.one(x @ self.fixed)).matmul(self.W) + self.b
        x = F.relu(x) @ self.last.T + x
        return x @ self.two.weight[:, :3].t(), x[None] @ self.stack, torch.bmm(x[None], x[None].mT)


def test_products_with_a_weight_are_layers_with_the_bias_that_is_added():
    net = Products()
    names, left, notes = measured(net)
    assert names == ["fixed", "one", "W", "last", "two.weight@matmul_3"]
    assert left.keys() == {"two", "stack"}
    assert "nothing trains the weights of fixed" in notes
    found, _ = find_layers(read_module(net))
    of = {layer.name: layer for layer in found}
    assert torch.equal(of["W"].weight.read(), net.W.t())
    assert torch.equal(of["W"].bias.read(), net.b)
    assert of["last"].bias is None
    assert torch.equal(of["last"].weight.read(), net.last)
    assert of["last"].input == "relu"
    assert torch.equal(of["two.weight@matmul_3"].weight.read(), net.two.weight[:, :3])


class Computed(nn.Module):
    """Weights that come from the input, from another layer, from a buffer, from parts."""

    def __init__(self):
        super().__init__()
        self.maker, self.start = nn.Linear(4, 54), nn.Parameter(torch.randn(1, 4))
        self.register_buffer("blur", torch.ones(3, 1, 3, 3))
        self.experts = nn.Parameter(torch.randn(2, 3, 3, 3, 3))
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))

    def forward(self, x):
        made = F.conv2d(x, self.maker(self.start).view(6, 1, 3, 3).repeat(1, 3, 1, 1))
        mixed = F.conv2d(x, (x.mean() * self.experts).sum(0))
        x = F.conv2d(F.conv2d(x, self.blur, groups=3), self.normed.weight, self.normed.bias)
        return x, made, mixed


def test_convolutions_whose_weights_cannot_be_had_are_left_out_by_name():
    names, left, _ = measured(Computed())
    assert names == ["maker", "normed"]
    assert left.keys() == {"conv2d", "experts", "blur"}
    assert "computes the weights of this conv2d" in left["conv2d"]
    assert "one fixed filter for every channel" in left["blur"]


class Banks(nn.Module):
    """Filters that are buffers: a bank, a basis, and a blur."""

    def __init__(self):
        super().__init__()
        self.register_buffer("bank", torch.randn(6, 3, 5, 5))
        self.register_buffer("blur", torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16)
        self.register_buffer("basis", torch.randn(6, 4))
        self.register_buffer("kernel", self.blur.repeat(6, 1, 1, 1))
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        x = F.relu(F.conv2d(x, self.bank))
        x = F.conv2d(x, self.kernel, stride=2, groups=6)
        return self.last(torch.matmul(x.mean((2, 3)), self.basis))


@pytest.mark.parametrize("container", ["live", "onnx", "pt2"])
def test_fixed_filters_are_layers_everywhere_and_one_blur_for_all_channels_is_none(
    tmp_path, container
):
    torch.manual_seed(0)
    net, path, image = Banks().eval(), tmp_path / f"net.{container}", torch.randn(1, 3, 16, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if container == "onnx":
            torch.onnx.export(net, (image,), path, dynamo=False)
        elif container == "pt2":
            torch.export.save(torch.export.export(net, (image,)), path)
    found = ps.measure(net if container == "live" else path, kinds="all")
    assert [(layer.filters, layer.fan_in) for layer in found.layers] == [(6, 75), (4, 6), (3, 4)]
    assert [layer.stage for layer in found.layers] == [0, 1, 1]
    bank = net.bank.reshape(6, 75).double()
    cosine = (bank.sum(1) / bank.norm(dim=1) / 75**0.5).mean().item()
    assert found.layers[0].mean_cosine == pytest.approx(cosine, abs=1e-6)
    assert [one.reason for one in found.skipped] == [
        "one fixed filter for every channel, as of a blur"
    ]


class LowRank(nn.Module):
    """A layer, and beside it a part of low rank, by names that nobody knows."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.whole = nn.Linear(inputs, outputs)
        self.A, self.B = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.randn(outputs, 2))

    def forward(self, x):
        return self.whole(x) + 0.5 * (x @ self.A.t() @ self.B.t())


def test_a_layer_with_a_part_of_low_rank_is_one():
    net = nn.Sequential(LowRank(6, 5), nn.ReLU(), LowRank(5, 3))
    found, left = find_layers(read_module(net))
    assert [layer.name for layer in found] == ["0", "2"]
    assert left == []
    wanted = net[0].whole.weight + 0.5 * net[0].B @ net[0].A
    torch.testing.assert_close(found[0].weight.read().float(), wanted)


class Beside(nn.Module):
    """Two linear layers in a row beside a third, by names that nobody knows."""

    def __init__(self):
        super().__init__()
        self.plain, self.p, self.q = nn.Linear(6, 5), nn.Linear(6, 2, bias=False), nn.Linear(2, 5)

    def forward(self, x):
        x = x.relu()
        return self.plain(x) + 0.5 * self.q(self.p(x))


@pytest.mark.parametrize("container", ["onnx", "pt2"])
def test_a_part_of_low_rank_under_unknown_names_is_told(tmp_path, container):
    net = nn.Sequential(nn.Linear(4, 6), Beside(), nn.ReLU(), nn.Linear(5, 3)).eval()
    path, image = tmp_path / f"net.{container}", torch.randn(1, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if container == "onnx":
            torch.onnx.export(net, (image,), path, dynamo=False)
        else:
            torch.export.save(torch.export.export(net, (image,)), path)
    found = ps.measure(path, kinds="all")
    assert [layer.name for layer in found.layers] == ["0", "1.plain", "1.p", "1.q", "3"]
    (note,) = [note for note in found.notes if "low rank" in note]
    assert "what 1.p and 1.q give is added to what 1.plain gives" in note


def test_an_attention_that_is_one_function_reads_linear_layers_as_such():
    from torchvision.models.swin_transformer import SwinTransformerBlock

    net = nn.Sequential(SwinTransformerBlock(8, 2, [2, 2], [0, 0]), nn.Linear(8, 3))
    assert [layer for layer in measured(net)[0] if "attn" in layer] == ["0.attn.qkv", "0.attn.proj"]


# --- graphs that torch has made of a network


def small():
    torch.manual_seed(0)
    parts = (nn.Conv2d(2, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU())
    up = (nn.ConvTranspose2d(4, 4, 3, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = nn.Sequential(*parts, nn.Conv2d(4, 4, 1), nn.ReLU(), *up, nn.Linear(4, 3))
    net[1].eps = 0.1
    net[1].running_mean += 0.5
    return net.eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["program", "module", "decomposed"])
def test_an_exported_network_is_measured_as_it_was(form):
    net = small()
    program = torch.export.export(net, (torch.randn(2, 2, 9, 9),))
    if form != "program":
        whole = program if form == "module" else program.run_decompositions()
        program = whole.module()
    wanted, found = (ps.measure(x, kinds="all", view="effective") for x in (net, program))
    rows = [[{**row, "stage": None} for row in x.to_dict()["layers"]] for x in (wanted, found)]
    assert rows[0] == rows[1]
    assert (found.skipped, found.notes) == (wanted.skipped, wanted.notes)


@pytest.mark.filterwarnings("ignore")
def test_observers_change_no_input():
    from torch.ao.quantization import get_default_qconfig_mapping, quantize_fx

    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()).eval()
    x = torch.randn(2, 2, 9, 9)
    prepared = quantize_fx.prepare_fx(net, get_default_qconfig_mapping(), (x,))
    prepared(x)
    for each in (prepared, quantize_fx.convert_fx(prepared)):
        assert [layer.input for layer in ps.measure(each).layers] == ["image", "relu"]
