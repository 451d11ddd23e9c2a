"""One walk over every graph: one table in all formats, and no ReLU's output is below 0."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import planescope as ps
from planescope.hyperplanes.layer import Input
from planescope.networks.graph.places import Node, Role, follow
from planescope.networks.live.module import read_module


def network():
    """A normalised image, a norm, fused and separate ReLUs, pooling, a stride, linear layers."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.BatchNorm2d(2),
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4, eps=1e-3),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3),
        nn.ReLU6(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 6, 3, stride=2),
        nn.Sigmoid(),
        nn.Conv2d(6, 5, 1),
        nn.Flatten(),
        nn.Linear(20, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    )
    for norm in (net[0], net[2]):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return net.eval()


KERAS = """
import json, os, sys
import numpy as np
import keras
import planescope as ps
from keras import layers as L

folder = sys.argv[1]
state = np.load(os.path.join(folder, "net.npz"))
x = image = keras.Input((16, 16, 2))
x = L.BatchNormalization(name="0", epsilon=1e-5)(x)
x = L.Conv2D(4, 3, name="1")(x)
x = L.ReLU()(L.BatchNormalization(name="2", epsilon=1e-3)(x))
x = L.Conv2D(6, 3, activation="relu6", name="4")(x)
x = L.Conv2D(6, 3, strides=2, activation="sigmoid", name="7")(L.MaxPooling2D(2)(x))
x = L.Flatten()(L.Conv2D(5, 1, name="9")(x))
x = keras.ops.relu(L.Dense(8, name="11")(x))
net = keras.Model(image, L.Dense(3, name="13")(x), name="net")
for layer in net.layers:
    if layer.name in ("0", "2"):
        parts = ("weight", "bias", "running_mean", "running_var")
        layer.set_weights([state[f"{layer.name}.{part}"] for part in parts])
    elif layer.name.isdecimal():
        kernel = state[f"{layer.name}.weight"]
        kernel = kernel.T if kernel.ndim == 2 else kernel.transpose(2, 3, 1, 0)
        layer.set_weights([kernel, state[f"{layer.name}.bias"]])
net.save(os.path.join(folder, "net.keras"))
net.save(os.path.join(folder, "net.h5"))
live = ps.measure(net, kinds="all", view="effective")
print(json.dumps(live.to_dict()["layers"]))
"""


def table(measurement):
    """What is the same however a network is stored; sums of float32 differ in their last digits."""
    return [
        (
            *(layer.name, layer.kind, layer.stage, layer.input, layer.filters, layer.fan_in),
            *(round(v, 4) for v in (layer.negative_mass, layer.mean_cosine, layer.mean_projection)),
            layer.mean_centre if layer.mean_centre is None else round(layer.mean_centre, 3),
        )
        for layer in measurement.layers
    ]


@pytest.fixture(scope="module")
def formats(tmp_path_factory):
    """The network in a folder, in every format, and what a live Keras model gave."""
    folder = tmp_path_factory.mktemp("formats")
    net = network()
    np.savez(folder / "net.npz", **{k: v.numpy() for k, v in net.state_dict().items()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the older exporter, which needs no other package
        torch.onnx.export(
            net,
            (torch.zeros(1, 2, 16, 16),),
            folder / "net.onnx",
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,  # keeps the norms apart
            do_constant_folding=False,
        )
    (folder / "make.py").write_text(KERAS)
    done = subprocess.run(
        [sys.executable, folder / "make.py", folder],
        env={
            **os.environ,
            "KERAS_BACKEND": "jax",
        },  # torch's is that of test_tracker and test_guest
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


PLACES = [
    ("1", "conv", 0, "image"),  # the norm over the image leaves it an image
    ("4", "conv", 0, "relu"),
    ("7", "conv", 2, "relu"),  # behind pooling, and its stride opens another stage
    ("9", "pointwise", 2, "other"),
    ("11", "linear", 2, "other"),
    ("13", "linear", 2, "relu"),
]


@pytest.mark.parametrize("name", ["net.onnx", "net.keras", "net.h5"])
def test_one_network_gives_one_table_in_every_format(formats, name):
    folder, _ = formats
    expected = table(ps.measure(network(), kinds="all", view="effective"))
    assert [row[:4] for row in expected] == PLACES
    assert table(ps.measure(folder / name, kinds="all", view="effective")) == expected


@pytest.mark.parametrize(
    "container", ["state-dict", "safetensors", "npz", "module", "scripted", "traced"]
)
def test_a_file_without_a_graph_gives_the_table_but_for_the_places(tmp_path, container):
    """Epsilons too: modules and TorchScript hold them, and of a bare state dict they are given."""
    net, path = network(), tmp_path / "net.pt"
    state = net.state_dict()
    if container == "state-dict":
        torch.save(state, path)
    elif container == "safetensors":
        save_file(state, path)
    elif container == "npz":
        np.savez(path.open("wb"), **{name: tensor.numpy() for name, tensor in state.items()})
    elif container == "module":
        torch.save(net, path)
    else:
        image = torch.zeros(1, 2, 16, 16)
        torch.jit.save(
            torch.jit.script(net) if container == "scripted" else torch.jit.trace(net, image), path
        )
    # The norm of the image stands before the first layer, which such a file does not tell.
    bare = container in ("state-dict", "safetensors", "npz")
    options = {"eps": 1e-3, "norms": {"1": "2"}} if bare else {}
    measured = ps.measure(path, kinds="all", view="effective", **options)
    assert all((layer.stage, layer.input) == (None, "unknown") for layer in measured.layers)
    wanted = table(ps.measure(network(), kinds="all", view="effective"))
    told = [(*row[:2], None, "unknown", *row[4:]) for row in wanted]
    assert table(measured) == told


def test_a_live_keras_model_gives_what_its_file_gives(formats):
    folder, live = formats
    of_file = ps.measure(folder / "net.keras", kinds="all", view="effective")
    # Written and read once, as the other process did.
    assert live == json.loads(json.dumps(of_file.to_dict()["layers"]))


@pytest.mark.parametrize("name", ["net.onnx", "net.keras", "net.h5"])
def test_what_is_predicted_does_not_depend_on_the_format(formats, name):
    folder, _ = formats

    def predicted(source):
        return {layer.name: layer.score for layer in ps.predict_critical(source).layers}

    assert predicted(folder / name) == pytest.approx(predicted(network()), abs=1e-4)


# --- the rule, against what real networks compute


NETWORKS = [
    *("torchvision:googlenet", "torchvision:mnasnet0_5", "torchvision:regnet_y_400mf"),
    *("timm:ghostnet_050", "timm:hardcorenas_a", "timm:skresnet18", "timm:res2net50_26w_4s"),
    *("timm:repvgg_a0", "timm:rexnet_100", "timm:ese_vovnet19b_dw", "timm:lcnet_050"),
    *("timm:resnetv2_50", "timm:dpn48b", "timm:starnet_s1", "timm:botnet26t_256"),
]


def made(name):
    library, _, name = name.partition(":")
    torch.manual_seed(0)
    if library == "timm":
        import timm

        return timm.create_model(name)
    import torchvision

    return torchvision.models.get_model(name)


@pytest.mark.filterwarnings("ignore")  # of torchvision, of weights that are drawn
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_called_a_relus_output_is_never_negative(name):
    net = made(name).eval()
    read, least = read_module(net), {}

    def look(layer):
        def hook(_, inputs):
            least[layer] = min(least.get(layer, 0.0), float(inputs[0].min()))

        return hook

    modules = dict(net.named_modules())
    for layer in read.places.keys() & modules.keys():
        modules[layer].register_forward_pre_hook(look(layer))
    fixed = getattr(net, "default_cfg", {}).get("fixed_input_size", False)
    with torch.no_grad():
        net(torch.randn(2, 3, *([256, 256] if fixed else [64, 64])))
    assert read.note == ""
    called = [layer for layer, place in read.places.items() if place.input is Input.RELU]
    assert called
    assert {layer: least[layer] for layer in called if least.get(layer, 0.0) < 0} == {}


# --- the walk itself


def node(role, *reads, **options):
    return Node(role=role, reads=reads, **options)


def fed(*nodes):
    """What feeds a layer behind the last of the nodes."""
    last = Node(role=Role.LAYER, reads=(len(nodes) - 1,), name="last")
    return follow([*nodes, last])["last"].input


def constant(value):
    return Node(role=Role.CONSTANT, is_non_negative=lambda: value >= 0)


IMAGE, RELU = node(Role.IMAGE), node(Role.RELU, 0)


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        pytest.param([IMAGE, constant(-1), node(Role.JOIN, 0, 1)], "image", id="image-moved"),
        pytest.param([IMAGE, RELU, constant(1), node(Role.JOIN, 1, 2)], "relu", id="relu-plus-1"),
        pytest.param([IMAGE, RELU, constant(-1), node(Role.JOIN, 1, 2)], "other", id="relu-less-1"),
        pytest.param([IMAGE, RELU, node(Role.JOIN, 0, 1)], "other", id="relu-and-image"),
        pytest.param(
            [IMAGE, RELU, node(Role.GATE, 0), node(Role.PRODUCT, 1, 2)], "relu", id="gated"
        ),
        pytest.param(
            [IMAGE, RELU, node(Role.GATE, 0), node(Role.JOIN, 1, 2)], "other", id="beside-a-gate"
        ),
        pytest.param([IMAGE, constant(0), node(Role.MAXIMUM, 0, 1)], "relu", id="image-at-least-0"),
        pytest.param([IMAGE, constant(-1), node(Role.MAXIMUM, 0, 1)], "other", id="image-above--1"),
        pytest.param([IMAGE, constant(1), node(Role.MINIMUM, 0, 1)], "other", id="image-below-1"),
        pytest.param([IMAGE, RELU, constant(6), node(Role.MINIMUM, 1, 2)], "relu", id="relu-to-6"),
        pytest.param(
            [IMAGE, RELU, constant(-1), node(Role.MINIMUM, 1, 2)], "other", id="relu-below--1"
        ),
        pytest.param([IMAGE, node(Role.PRODUCT, 0, 0)], "other", id="image-times-itself"),
        pytest.param(
            [IMAGE, node(Role.OTHER, 0), constant(0), node(Role.MAXIMUM, 1, 2)], "relu", id="max-0"
        ),
        pytest.param([IMAGE, RELU, node(Role.SHIFT, 1)], "other", id="relu-shifted"),
        pytest.param([IMAGE, node(Role.SHIFT, 0)], "image", id="image-shifted"),
        pytest.param([IMAGE, node(Role.SATURATION, 0)], "image", id="image-quantised"),
        pytest.param(
            [IMAGE, node(Role.OTHER, 0), node(Role.SATURATION, 1)], "relu", id="quantised-from-0"
        ),
        pytest.param([IMAGE, constant(1), node(Role.VIEW, 1, 0)], "other", id="looked-up"),
        pytest.param([node(Role.UNKNOWN), node(Role.VIEW, 0)], "unknown", id="unknown"),
        pytest.param([constant(1), node(Role.VIEW, 0)], "other", id="constant"),
    ],
)
def test_what_feeds_a_layer(nodes, expected):
    assert fed(*nodes) == expected


def test_signs_of_constants_are_asked_for_only_where_they_matter():
    asked = []
    unread = Node(role=Role.CONSTANT, is_non_negative=lambda: bool(asked.append(1)))
    assert fed(IMAGE, node(Role.OTHER, 0), unread, node(Role.JOIN, 1, 2)) == "other"
    assert asked == []
    assert fed(IMAGE, RELU, unread, node(Role.JOIN, 1, 2)) == "other"
    assert asked == [1]


def test_constants_made_of_constants_double_without_end_in_no_time():
    nodes = [IMAGE, RELU, constant(1)]
    for _ in range(3000):
        nodes.append(node(Role.JOIN, len(nodes) - 1, len(nodes) - 1))
    nodes.append(node(Role.PRODUCT, 1, len(nodes) - 1))
    assert fed(*nodes) == "relu"


class Siamese(nn.Module):
    """A branch that runs twice, or one convolution with a norm of its own in each run."""

    def __init__(self, norms):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(norms))
        self.fc = nn.Linear(12, 2)

    def forward(self, x):
        one = self.norms[0](self.conv(x)).relu().mean((2, 3))
        other = self.norms[-1](self.conv(x.flip(3))).relu().mean((2, 3))
        return self.fc(torch.cat([one, other], 1))


@pytest.mark.parametrize(("norms", "expected"), [(1, "norms.0"), (2, None)])
@pytest.mark.parametrize("container", ["module", "pt2", "onnx"])
@pytest.mark.filterwarnings("ignore")
def test_a_layer_that_runs_twice_keeps_the_norm_that_runs_with_it(
    tmp_path, container, norms, expected
):
    source = net = Siamese(norms).eval()
    net.norms[-1].running_mean += 1  # or the exporter makes two norms that are equal one
    x, source = torch.zeros(1, 3, 9, 9), tmp_path / f"net.{container}"
    if container == "pt2":
        torch.export.save(torch.export.export(net, (x,)), source)
    elif container == "onnx":
        torch.onnx.export(
            net, (x,), source, dynamo=False, training=torch.onnx.TrainingMode.PRESERVE
        )
    found = ps.measure(net if container == "module" else source)
    assert found.layers[0].norm == expected
    told = "behind conv, which acts in several places, stand norms of their own"
    assert any(told in note for note in found.notes) == (expected is None)
