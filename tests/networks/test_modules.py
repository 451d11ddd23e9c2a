import functools
import subprocess
import sys
from collections import Counter

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import planescope as ps
from planescope.files.errors import UsageError
from planescope.hyperplanes.layer import Input, Kind, Place
from planescope.networks.graph.trace import trace_places
from planescope.networks.live.mapping import read_state_dict
from planescope.networks.live.module import read_module


def places(module):
    read = read_module(module)
    assert read.note == ""
    return read.places


class Net(nn.Module):
    """A network of the given layers whose forward is the given function of (layers, image)."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.body = forward
        self.layers = nn.ModuleDict(layers)

    def forward(self, x):
        return self.body(self.layers, x)


def conv(channels=2, filters=2, kernel=3, **options):
    return nn.Conv2d(channels, filters, kernel, **options)


def place_behind(operation, **layers):
    """Place of a convolution that reads what `operation` makes of another's output."""
    net = Net(lambda m, x: m["b"](operation(m, m["a"](x))), a=conv(), b=conv(), **layers)
    return places(net)["layers.b"]


# --- known networks


@functools.cache
def places_in(name):
    """Places in a network of torchvision whose weights are never made."""
    with torch.device("meta"):
        return trace_places(torchvision.models.get_model(name))


def test_vgg16_bn_of_torchvision():
    found = places_in("vgg16_bn")
    assert len(found) == 13 + 3
    assert found["features.0"] == Place(
        kind=Kind.CONV,
        stage=0,
        input=Input.IMAGE,
        groups=1,
        norm="features.1",
        eps=1e-5,
    )
    assert [found[f"features.{i}"].stage for i in (3, 7, 14, 24, 34, 40)] == [0, 1, 2, 3, 4, 4]


@pytest.mark.parametrize(
    ("network", "layer", "place"),
    # kind, stage, input, groups, norm
    [
        ("resnet18", "conv1", ("conv", 0, "image", 1, "bn1")),
        ("resnet18", "layer1.0.conv1", ("conv", 1, "relu", 1, "layer1.0.bn1")),
        ("resnet18", "layer1.0.conv2", ("conv", 1, "relu", 1, "layer1.0.bn2")),
        ("resnet18", "layer2.0.conv1", ("conv", 2, "relu", 1, "layer2.0.bn1")),
        (
            "resnet18",
            "layer2.0.downsample.0",
            ("pointwise", 2, "relu", 1, "layer2.0.downsample.1"),
        ),
        ("resnet18", "layer4.1.conv2", ("conv", 4, "relu", 1, "layer4.1.bn2")),
        ("resnet18", "fc", ("linear", 4, "relu", 1, None)),
        ("mobilenet_v2", "features.0.0", ("conv", 0, "image", 1, "features.0.1")),
        (
            "mobilenet_v2",
            "features.2.conv.1.0",
            ("conv", 1, "relu", 96, "features.2.conv.1.1"),
        ),
        # The linear bottleneck, and what reads it.
        (
            "mobilenet_v2",
            "features.2.conv.2",
            ("pointwise", 1, "relu", 1, "features.2.conv.3"),
        ),
        (
            "mobilenet_v2",
            "features.3.conv.0.0",
            ("pointwise", 1, "other", 1, "features.3.conv.0.1"),
        ),
        ("densenet121", "features.conv0", ("conv", 0, "image", 1, "features.norm0")),
        # Norm and ReLU come before each convolution; conv1 alone has a norm right behind it.
        (
            "densenet121",
            "features.denseblock1.denselayer2.conv1",
            ("pointwise", 1, "relu", 1, "features.denseblock1.denselayer2.norm2"),
        ),
        (
            "densenet121",
            "features.denseblock1.denselayer2.conv2",
            ("conv", 1, "relu", 1, None),
        ),
        ("densenet121", "features.transition3.conv", ("pointwise", 3, "relu", 1, None)),
        (
            "densenet121",
            "features.denseblock4.denselayer1.conv2",
            ("conv", 4, "relu", 1, None),
        ),
        # Squeeze and excitation: a ReLU's output times a gate.
        (
            "mobilenet_v3_small",
            "features.1.block.2.0",
            ("pointwise", 1, "relu", 1, "features.1.block.2.1"),
        ),
    ],
)
def test_layers_of_well_known_networks(network, layer, place):
    found = places_in(network)[layer]
    kind, stage, read, groups, norm = place
    assert (found.kind, found.stage, found.input) == (kind, stage, read)
    assert (found.groups, found.norm) == (groups, norm)


def test_norms_with_an_activation_inside_as_timm_has_them():
    import timm

    found = places(timm.create_model("efficientnet_lite0"))
    stem, project = found["conv_stem"], found["blocks.1.0.conv_pwl"]
    assert (stem.norm, stem.eps) == ("bn1", 1e-5)
    assert project.norm == "blocks.1.0.bn3"


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "mobilenet_v3_small", "squeezenet1_1"])
def test_exactly_those_layers_read_negative_values_that_are_not_said_to_read_a_relu(name):
    torch.manual_seed(0)
    net = torchvision.models.get_model(name).eval()
    found, negative = places(net), {}

    def look(layer):
        def hook(_, inputs):
            negative[layer] = bool((inputs[0] < 0).any())

        return hook

    for layer in found:
        net.get_submodule(layer).register_forward_pre_hook(look(layer))
    net(torch.randn(2, 3, 64, 64))
    assert negative == {layer: place.input is not Input.RELU for layer, place in found.items()}


# --- what feeds a layer


@pytest.mark.parametrize(
    ("operation", "read"),
    [
        pytest.param(lambda m, x: x, "other", id="nothing"),
        pytest.param(lambda m, x: F.relu(x), "relu", id="functional"),
        pytest.param(lambda m, x: F.relu(x, inplace=True), "relu", id="functional-in-place"),
        pytest.param(lambda m, x: x.relu(), "relu", id="method"),
        pytest.param(lambda m, x: torch.relu_(x), "relu", id="torch-in-place"),
        pytest.param(lambda m, x: nn.functional.relu6(x), "relu", id="relu6"),
        pytest.param(lambda m, x: x.clamp(min=0), "relu", id="clamp"),
        pytest.param(lambda m, x: torch.clamp(x, 0, 6), "relu", id="clamp-positional"),
        pytest.param(lambda m, x: x.clamp(min=-1), "other", id="clamp-below-zero"),
        pytest.param(lambda m, x: F.hardtanh(x, 0.0, 6.0), "relu", id="hardtanh-from-zero"),
        pytest.param(lambda m, x: F.hardtanh(x), "other", id="hardtanh"),
        pytest.param(lambda m, x: F.leaky_relu(x), "other", id="leaky"),
        pytest.param(lambda m, x: F.gelu(x), "other", id="gelu"),
        pytest.param(lambda m, x: torch.sigmoid(x), "other", id="sigmoid"),
        pytest.param(lambda m, x: F.max_pool2d(F.relu(x), 2), "relu", id="max-pool"),
        pytest.param(lambda m, x: F.avg_pool2d(F.relu(x), 2), "relu", id="average-pool"),
        pytest.param(lambda m, x: F.adaptive_avg_pool2d(F.relu(x), 1), "relu", id="global-pool"),
        pytest.param(lambda m, x: F.relu(x).mean((2, 3), keepdim=True), "relu", id="mean"),
        pytest.param(lambda m, x: F.dropout(F.relu(x), 0.5, m.training), "relu", id="dropout"),
        pytest.param(
            lambda m, x: F.relu(x).flatten(1).view(x.size(0), 2, 4, -1), "relu", id="view"
        ),
        pytest.param(lambda m, x: F.pad(F.relu(x), (1, 1)), "relu", id="zero-pad"),
        pytest.param(
            lambda m, x: F.pad(F.relu(x), (1, 1), value=-1.0), "other", id="pad-below-zero"
        ),
        pytest.param(lambda m, x: F.interpolate(F.relu(x), scale_factor=2), "relu", id="nearest"),
        pytest.param(
            lambda m, x: F.interpolate(F.relu(x), scale_factor=2, mode="bicubic"),
            "other",
            id="bicubic-overshoots",
        ),
        pytest.param(lambda m, x: torch.cat([F.relu(x), F.relu6(x)], 1), "relu", id="cat"),
        pytest.param(lambda m, x: torch.cat([F.relu(x), x], 1), "other", id="cat-with-other"),
        pytest.param(lambda m, x: F.relu(x) + F.relu(-x), "relu", id="sum"),
        pytest.param(lambda m, x: F.relu(x) + x, "other", id="sum-with-other"),
        pytest.param(lambda m, x: F.relu(x) - F.relu(-x), "other", id="difference"),
        pytest.param(lambda m, x: F.relu(x) * 0.5 / 3, "relu", id="scaled"),
        pytest.param(lambda m, x: F.relu(x) * -1, "other", id="turned"),
        pytest.param(lambda m, x: F.relu(x) * torch.sigmoid(x), "relu", id="gated"),
        pytest.param(lambda m, x: x * torch.sigmoid(x), "other", id="swish"),
        pytest.param(lambda m, x: F.relu(x).chunk(2, 1)[0], "relu", id="half-the-channels"),
        pytest.param(lambda m, x: F.batch_norm(F.relu(x), None, None), "other", id="norm-of-relu"),
    ],
)
def test_what_feeds_a_layer(operation, read):
    assert place_behind(operation).input == read


def test_modules_are_seen_as_their_functions_are():
    for module in (nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.Hardtanh(0, 6)):
        net = nn.Sequential(
            conv(), module, nn.Dropout(), nn.ZeroPad2d(1), nn.Upsample(None, 2), conv()
        )
        assert places(net)["5"].input is Input.RELU
    assert places(nn.Sequential(conv(), nn.Hardtanh(), conv()))["2"].input is Input.OTHER


def test_an_in_place_relu_whose_result_is_dropped_is_what_later_steps_read():
    def forward(m, x):
        y = m["a"](x)
        m["relu"](y)
        return m["b"](y)

    found = places(Net(forward, a=conv(), relu=nn.ReLU(inplace=True), b=conv()))
    assert found["layers.b"].input is Input.RELU


def test_a_relu_that_is_not_in_place_and_whose_result_is_dropped_does_nothing():
    def forward(m, x):
        y = m["a"](x)
        m["relu"](y)
        return m["b"](y)

    assert places(Net(forward, a=conv(), relu=nn.ReLU(), b=conv()))["layers.b"].input is Input.OTHER


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.5))
        self.conv = conv(stride=2)

    def forward(self, x):
        return self.conv(F.pad((x / 255 - self.mean) / 0.25, (1, 1)))


def test_a_normalised_image_is_an_image():
    assert places(Normalised())["conv"].input is Input.IMAGE
    assert places(nn.Sequential(nn.BatchNorm2d(2), conv()))["1"].input is Input.IMAGE


# --- stages


@pytest.mark.parametrize(
    ("operation", "steps"),
    [
        pytest.param(lambda m, x: F.max_pool2d(x, 2), 1, id="max-pool"),
        pytest.param(lambda m, x: F.max_pool2d(x, 3, stride=1), 0, id="stride-of-one"),
        pytest.param(lambda m, x: F.max_pool2d(x, kernel_size=3, stride=(1, 2)), 1, id="one-axis"),
        pytest.param(lambda m, x: F.avg_pool2d(F.avg_pool2d(x, 2), 2), 2, id="twice"),
        pytest.param(lambda m, x: F.adaptive_max_pool2d(x, 4), 0, id="adaptive"),
        pytest.param(lambda m, x: F.max_pool2d(x, 2).repeat(1, 1, 2, 2) + x, 1, id="longest-path"),
        pytest.param(lambda m, x: m["c"](x), 1, id="convolution"),
        pytest.param(lambda m, x: m["up"](x), 0, id="transposed"),
        pytest.param(lambda m, x: F.conv2d(x, torch.ones(2, 2, 3, 3), stride=2), 1, id="filter"),
    ],
)
def test_the_stage_counts_downsampling_steps(operation, steps):
    layers = {"c": conv(stride=2), "up": nn.ConvTranspose2d(2, 2, 2, stride=2)}
    assert place_behind(operation, **layers).stage == steps


def test_a_convolution_with_a_stride_opens_its_stage():
    found = places(nn.Sequential(conv(), conv(stride=2), conv(stride=2), conv()))
    assert [place.stage for place in found.values()] == [0, 1, 2, 2]


def test_the_first_stage_is_0_whatever_is_done_to_the_image():
    assert places(nn.Sequential(nn.AvgPool2d(2), conv(stride=2), conv()))["2"].stage == 0


# --- norms


def behind(*modules):
    place = places(nn.Sequential(conv(), *modules, conv()))["0"]
    return place.norm, place.eps


@pytest.mark.parametrize(
    ("modules", "norm"),
    [
        pytest.param([nn.BatchNorm2d(2, 1e-3), nn.ReLU()], ("1", 1e-3), id="norm-relu"),
        pytest.param([nn.ReLU(), nn.BatchNorm2d(2)], (None, None), id="relu-norm"),
        pytest.param([nn.BatchNorm2d(2)], ("1", 1e-5), id="norm"),
        pytest.param([nn.Dropout(), nn.BatchNorm2d(2)], ("2", 1e-5), id="dropout-norm"),
        pytest.param([nn.MaxPool2d(2), nn.BatchNorm2d(2)], (None, None), id="pool-norm"),
        pytest.param([nn.MaxPool2d(2), nn.ReLU()], (None, None), id="max-pool-relu"),
        pytest.param([nn.AvgPool2d(2), nn.ReLU()], (None, None), id="average-pool-relu"),
        pytest.param([nn.GroupNorm(1, 2), nn.ReLU()], (None, None), id="group-norm"),
        pytest.param(
            [nn.BatchNorm2d(2, track_running_stats=False)],
            (None, None),
            id="batch-statistics",
        ),
    ],
)
def test_norm_behind_a_layer(modules, norm):
    assert behind(*modules) == norm


def test_a_frozen_norm_is_a_norm():
    frozen = torchvision.ops.FrozenBatchNorm2d(2, eps=1e-3)
    assert behind(frozen, nn.ReLU()) == ("1", 1e-3)
    read = read_module(nn.Sequential(conv(), frozen, nn.ReLU(), conv()))
    assert read.places["3"].input is Input.RELU


class Scaled(nn.Module):
    """A ReLU's output times a buffer, or times a parameter that training may turn round."""

    def __init__(self, factor, trained):
        super().__init__()
        self.a, self.b = conv(), conv()
        if trained:
            self.factor = nn.Parameter(torch.full((1,), factor))
        else:
            self.register_buffer("factor", torch.full((1,), factor))

    def forward(self, x):
        return self.b(F.relu(self.a(x)) * self.factor)


@pytest.mark.parametrize(
    ("factor", "trained", "read"),
    [(2.0, False, "relu"), (-2.0, False, "other"), (2.0, True, "other")],
)
def test_a_buffer_has_a_sign_and_a_parameter_has_none(factor, trained, read):
    assert places(Scaled(factor, trained))["b"].input == read


@pytest.mark.parametrize(
    ("operation", "read"),
    [
        pytest.param(lambda m, x: torch.add(F.relu(x), F.relu(x), alpha=-1), "other", id="alpha"),
        pytest.param(lambda m, x: F.threshold(x, 0.0, 0.0), "relu", id="threshold"),
        pytest.param(lambda m, x: F.threshold(x, 0.0, -1.0), "other", id="threshold-below"),
        pytest.param(
            lambda m, x: torch.cat([F.relu(x), F.relu(x)], -1), "relu", id="cat-along-the-last"
        ),
        pytest.param(lambda m, x: F.relu(x) / x.shape[-1], "relu", id="over-a-size"),
        pytest.param(lambda m, x: F.relu(x).sum(1, keepdim=True), "relu", id="summed"),
        pytest.param(lambda m, x: F.softplus(x) * F.relu(x), "relu", id="softplus-gate"),
    ],
)
def test_more_of_what_feeds_a_layer(operation, read):
    assert place_behind(operation).input == read


def test_a_norm_is_not_the_layers_own_where_something_else_reads_the_layer():
    def forward(m, x):
        y = m["a"](x)
        return m["b"](F.relu(m["norm"](y)) + y)

    net = Net(forward, a=conv(), norm=nn.BatchNorm2d(2), b=conv())
    assert places(net)["layers.a"].norm is None


def test_asking_for_a_shape_is_not_reading():
    def forward(m, x):
        y = m["a"](x)
        return m["norm"](y).view(y.shape[0], y.size(1), -1)

    assert places(Net(forward, a=conv(), norm=nn.BatchNorm2d(2)))["layers.a"].norm == "layers.norm"


# --- kinds and names


def test_kinds():
    net = nn.Sequential(
        *(conv(), conv(kernel=1), conv(kernel=(1, 3)), conv(groups=2)),
        *(nn.ConvTranspose2d(2, 4, 3, groups=2), nn.Conv1d(2, 2, 3), nn.Conv3d(2, 2, 1)),
        nn.Linear(3, 3),
    )
    kinds = [(str(place.kind), place.groups) for place in places(net).values()]
    assert kinds == [
        *(("conv", 1), ("pointwise", 1), ("conv", 1), ("conv", 2)),
        *(("transposed", 2), ("conv", 1), ("pointwise", 1)),
        ("linear", 1),
    ]


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 2, 3, 3))

    def forward(self, x):
        return F.relu(F.conv2d(x, self.weight, None, 2))


def test_a_layer_of_ones_own_is_known_by_the_function_it_calls():
    found = places(nn.Sequential(conv(), Functional()))["1"]
    assert (found.kind, found.stage) == ("conv", 1)


class Subclass(nn.Conv2d):
    def forward(self, x):
        return super().forward(x - x.mean())


def test_a_subclass_of_a_layer_is_that_layer():
    assert list(places(nn.Sequential(Subclass(2, 2, 3), nn.ReLU()))) == ["0"]


def test_a_shared_layer_goes_by_its_first_name_and_what_its_calls_agree_on():
    shared = conv()
    net = Net(lambda m, x: m["b"](F.max_pool2d(F.relu(m["a"](x)), 2)), a=shared, b=shared)
    read = read_module(net)
    assert [name for name in read.tensors if name.endswith("weight")] == ["layers.a.weight"]
    place = read.places["layers.a"]
    assert (place.stage, place.input) == (0, Input.OTHER)


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(torch.compile, id="compile"),
        pytest.param(nn.DataParallel, id="DataParallel"),
        pytest.param(lambda net: nn.DataParallel(torch.compile(net)), id="both"),
        pytest.param(torch.optim.swa_utils.AveragedModel, id="averaged"),
        pytest.param(
            lambda net: nn.Sequential(torch.compile(net[0]), *net[1:]), id="a-compiled-part"
        ),
    ],
)
def test_a_wrapper_is_taken_off(wrap):
    net = nn.Sequential(conv(), nn.BatchNorm2d(2), nn.ReLU())
    assert places(wrap(net)) == places(net)


def test_a_module_compiled_in_place_is_followed():
    net = nn.Sequential(conv(), nn.ReLU(), conv())
    net[2].compile()
    net.compile()
    assert places(net)["2"].input is Input.RELU


def test_a_layer_by_itself():
    read = read_module(conv())
    assert list(read.tensors) == ["weight", "bias"]
    assert read.places["weight"].input is Input.IMAGE


def test_embeddings_and_norms_are_not_among_the_weights():
    net = nn.Sequential(
        nn.Embedding(4, 5), nn.LayerNorm((4, 5)), nn.Bilinear(2, 2, 2), nn.Linear(5, 2)
    )
    assert list(read_module(net).tensors) == ["3.weight", "3.bias"]


def test_attention_and_recurrence_are_no_layers():
    net = nn.ModuleList([nn.MultiheadAttention(4, 2), nn.LSTM(4, 4)])
    assert list(read_module(net).places) == ["0.out_proj"]  # a linear layer


# --- values


def test_tensors_are_live_and_not_copied():
    net = nn.Sequential(conv(), nn.BatchNorm2d(2))
    read = read_module(net)
    weight = read.tensors["0.weight"].read()
    assert weight.data_ptr() == net[0].weight.data_ptr()
    assert not weight.requires_grad
    with torch.no_grad():
        net[0].weight.fill_(7)
    assert (read.tensors["0.weight"].read() == 7).all()
    net[0].weight = nn.Parameter(torch.zeros(2, 2, 3, 3))
    assert not read.tensors["0.weight"].read().any()


def test_tensors_tell_shape_and_type_as_numpy_names_it():
    tensors = read_module(nn.Sequential(conv().bfloat16(), nn.BatchNorm2d(2))).tensors
    assert tensors["0.weight"].shape == (2, 2, 3, 3)
    assert tensors["0.weight"].dtype == "bfloat16"
    assert tensors["1.running_mean"].dtype == "float32"
    assert tensors["1.num_batches_tracked"].dtype == "int64"


@pytest.mark.filterwarnings("ignore:.*(weight_norm|spectral_norm).*:FutureWarning")
@pytest.mark.parametrize(
    "parametrise",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
        torch.nn.utils.weight_norm,
        torch.nn.utils.spectral_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    ],
    ids=["weight-norm", "spectral-norm", "orthogonal", "old-weight-norm", "old-spectral", "pruned"],
)
def test_a_computed_weight_is_what_forward_would_use_now(parametrise):
    torch.manual_seed(0)
    net = nn.Sequential(parametrise(conv()))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += torch.randn(parameter.shape)  # as an optimizer's step would
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    tensor = read_module(net).tensors["0.weight"]
    found = tensor.read()
    assert tensor.shape == (2, 2, 3, 3)
    assert not found.requires_grad
    assert all(torch.equal(before[name], now) for name, now in net.state_dict().items())
    net.eval()(torch.zeros(1, 2, 3, 3))  # the older forms compute the weight in a hook
    assert torch.equal(found, net[0].weight.detach())
    assert list(read_module(net).tensors) == ["0.weight", "0.bias"]


# --- the module stays as it was


class Untidy(nn.Module):
    """Whose forward leaves traces everywhere, and fails at the end if told to."""

    def __init__(self, fails):
        super().__init__()
        self.conv, self.norm, self.fails = conv(), nn.BatchNorm2d(2), fails
        self.register_buffer("calls", torch.zeros(()))
        self.seen, self.by_name, self.count = [], {}, 0

    def forward(self, x):
        self.calls.add_(1)
        self.count += 1
        self.last = self.norm(self.conv(x))
        self.seen.append(self.last)
        self.by_name["last"] = self.last
        self.training = not self.training
        if self.fails and self.last.sum() > 0:
            return x
        return self.last


def everything(net):
    def frozen(value):
        return tuple(value.items()) if isinstance(value, dict) else value

    return [
        {name: frozen(list(v) if isinstance(v, list) else v) for name, v in vars(module).items()}
        for module in net.modules()
    ]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_module_is_left_as_it_was(training, fails):
    net = nn.Sequential(Untidy(fails), nn.Dropout()).train(training)
    net[0].conv.weight.requires_grad_(False)
    net[0].conv.bias.grad = torch.ones(2)
    net[1].training = True
    called = []
    net[0].register_forward_hook(lambda *_: called.append("hook"))
    net[0].norm.register_forward_pre_hook(lambda *_: called.append("pre-hook"))
    before, state = everything(net), {k: v.clone() for k, v in net.state_dict().items()}
    read = read_module(net)
    assert bool(read.note) is fails
    assert everything(net) == before
    assert all(torch.equal(state[name], tensor) for name, tensor in net.state_dict().items())
    assert called == []
    net(torch.randn(2, 2, 5, 5)) if not fails else None
    assert called == ([] if fails else ["pre-hook", "hook"])


# --- what cannot be followed


class ControlFlow(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.up = (
            conv(groups=2),
            nn.BatchNorm2d(2),
            nn.ConvTranspose2d(2, 2, 3),
        )

    def forward(self, x):
        return self.up(self.norm(self.conv(x))) if x.sum() > 0 else x


def test_without_a_graph_the_kinds_are_known_and_the_note_says_why():
    read = read_module(ControlFlow())
    assert read.places == {
        "conv": Place(kind=Kind.CONV, groups=2),
        "up": Place(kind=Kind.TRANSPOSED, groups=1),
    }
    assert read.in_order
    assert read.note.startswith("the graph of ControlFlow could not be followed (TraceError: ")
    assert "\n" not in read.note


def test_options_of_forward_are_as_they_are_when_left_out():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv()

        def forward(self, x, mask=None, *, scale=1.0):
            x = x if mask is None else x * mask
            return self.conv(x) * scale if scale > 0 else x

    assert places(Optional())["conv"].input is Input.IMAGE


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "compiled",
    [torch.jit.script, lambda net: torch.jit.trace(net.eval(), torch.zeros(1, 2, 8, 8))],
    ids=["script", "trace"],
)
def test_torchscript_tells_kinds(compiled):
    net = nn.Sequential(conv(), nn.BatchNorm2d(2), nn.ConvTranspose2d(2, 2, 3), conv(kernel=1))
    read = read_module(compiled(net))
    kinds = {name: str(place.kind) for name, place in read.places.items()}
    assert kinds == {"0": "conv", "2": "transposed", "3": "pointwise"}
    assert torch.equal(read.tensors["0.weight"].read(), net[0].weight)
    assert "TorchScript" in read.note


class Absolute(nn.Module):
    """A parametrisation without tensors of its own."""

    def forward(self, weight):
        return weight.abs()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore::DeprecationWarning")
def test_torchscript_tells_of_a_step_that_leaves_no_tensor(tmp_path):
    """Read as weight norm alone, half of its filters would face the other way."""
    both = parametrizations.weight_norm(conv())
    torch.nn.utils.parametrize.register_parametrization(both, "weight", Absolute())
    turned = parametrizations.spectral_norm(nn.ConvTranspose2d(2, 2, 3))
    net = nn.Sequential(both, nn.ReLU(), turned, nn.ReLU(), parametrizations.weight_norm(conv()))
    script = torch.jit.trace(net.eval(), torch.zeros(1, 2, 9, 9))
    torch.jit.save(script, tmp_path / "net.pt")
    wanted = {layer.name: layer.negative_mass for layer in ps.measure(net, kinds="all").layers}
    assert wanted.pop("0") == 0.0
    for source in (tmp_path / "net.pt", script, nn.Sequential(script)):
        found = ps.measure(source, kinds="all")
        prefix = "0." if isinstance(source, nn.Sequential) else ""
        masses = {layer.name.removeprefix(prefix): layer.negative_mass for layer in found.layers}
        assert masses == wanted
        (left,) = found.skipped
        assert left.name == f"{prefix}0"
        assert "computed from parts by a formula" in left.reason


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        pytest.param(
            lambda: nn.Sequential(nn.LazyConv2d(4, 3)),
            r"0\.weight is not there yet; run a batch through the network first",
            id="lazy",
        ),
        pytest.param(
            lambda: nn.Sequential(conv(device="meta")),
            r"0\.weight is on the meta device and has no values",
            id="meta",
        ),
    ],
)
def test_layers_without_values_are_refused_in_a_sentence(make, sentence):
    with pytest.raises(UsageError, match=sentence):
        read_module(make())


def test_time_is_linear_in_the_number_of_layers():
    def calls(layers):
        net = nn.Sequential(*[nn.Sequential(Functional(), nn.Identity()) for _ in range(layers)])
        events = Counter()
        sys.setprofile(lambda frame, event, arg: events.update([event]))
        try:
            assert len(places(net)) == layers
        finally:
            sys.setprofile(None)
        return events["call"] + events["c_call"]

    calls(50)  # imports
    assert calls(200) < 1.1 * 4 * calls(50)


# --- mappings of arrays


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        pytest.param(torch.ones(2, 3, requires_grad=True), "float32", id="torch"),
        pytest.param(
            torch.ones(2, 3, dtype=torch.float8_e4m3fn), "float8_e4m3fn", id="torch-float8"
        ),
        pytest.param(np.ones((2, 3), np.float64), "float64", id="numpy"),
        pytest.param(np.ones((2, 3), ">f4"), "float32", id="numpy-big-endian"),
        pytest.param(np.ones((2, 3), ml_dtypes.bfloat16), "bfloat16", id="numpy-bfloat16-widened"),
        pytest.param(jnp.ones((2, 3), jnp.bfloat16), "bfloat16", id="jax"),
    ],
)
def test_a_mapping_of_arrays(array, dtype):
    tensor = read_state_dict({"fc.weight": array, "fc._extra_state": None}).tensors["fc.weight"]
    assert (tensor.shape, tensor.dtype) == ((2, 3), dtype)
    assert type(tensor.read()) is type(array)
    assert float(tensor.read()[1, 2]) == 1.0


@pytest.mark.parametrize(
    ("mapping", "sentence"),
    [
        ({"epoch": 3}, r"'epoch' is a int, not an array; leave it out"),
        ({"state_dict": {"a": 1}}, r"give that one, mapping\['state_dict'\]"),
        ({0: np.ones(2)}, r"a state dict has names for keys, not 0"),
        ({"a": torch.ones(2, 2, device="meta")}, r"a is on the meta device"),
        (
            {"a": torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(3, 3)])},
            r"a is a nested tensor",
        ),
    ],
)
def test_a_mapping_of_something_else_is_refused_in_a_sentence(mapping, sentence):
    with pytest.raises(UsageError, match=sentence):
        read_state_dict(mapping)


class ByProtocol:
    """An array of a class that nobody knows."""

    shape, dtype = (2, 3), np.dtype("float32")

    def __array__(self, dtype=None, copy=None):
        return np.ones((2, 3), np.float32)


def test_an_array_of_a_class_that_numpy_alone_can_read():
    tensor = read_state_dict({"fc.weight": ByProtocol()}).tensors["fc.weight"]
    np.testing.assert_array_equal(tensor.read(), np.ones((2, 3)))


def test_a_frozen_script_is_refused_for_what_it_is():
    frozen = torch.jit.freeze(torch.jit.script(nn.Sequential(nn.Conv2d(1, 2, 3)).eval()))
    with pytest.raises(UsageError, match="before it is frozen"):
        read_module(frozen)


def test_numpy_arrays_need_no_torch():
    code = (
        "import sys, numpy; from planescope.networks.live.mapping import read_state_dict;"
        "read_state_dict({'a.weight': numpy.ones((2, 2))}); print('torch' in sys.modules)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout == "False\n"
