import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from planescope.criticality.resets.weights import state_of
from planescope.files.errors import CheckpointError, UsageError
from planescope.hyperplanes.layer import Input, StateDict, Tensor
from planescope.networks import paper as networks
from planescope.networks.build import build, load_pretrained
from planescope.networks.live.module import read_module
from planescope.networks.load import load_network
from planescope.networks.paper import NETWORKS

PARITY = Path(__file__).parents[1] / "parity"


def stored(shapes):
    """State dict of those shapes, which nobody may read."""
    return StateDict(
        tensors={name: Tensor(tuple(s), "float32", None) for name, s in shapes.items()}
    )


def shapes_of(name, **options):
    module = build(name, image_size=64, **options)
    return {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}


# --- the table


@pytest.mark.parametrize("name", [*NETWORKS, "resnet20", "resnet56"])
def test_places_are_those_that_the_graph_of_the_built_network_shows(name):
    traced = read_module(build(name, width=0.05, image_size=64))
    assert traced.note == ""
    assert traced.places == networks.places(name)
    assert list(traced.places) == list(networks.places(name))


def test_lenet_has_the_stages_of_the_independent_implementation():
    expected = json.loads((PARITY / "expected.json").read_text())["layers"]
    stages = {layer["name"]: layer["stage"] for layer in expected}
    assert {name: place.stage for name, place in networks.places("lenet").items()} == stages


def test_the_stage_goes_up_at_each_max_pooling():
    places = networks.places("vgg16").values()
    # 2, 2, 3, 3, 3 convolutions, then three linear layers behind the fifth pooling
    assert [place.stage for place in places] == [0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5]


def test_alexnet_begins_in_stage_0_though_its_first_convolution_has_a_stride():
    assert [place.stage for place in networks.places("alexnet").values()] == [
        0,
        1,
        2,
        2,
        2,
        3,
        3,
        3,
    ]


def test_only_the_second_layer_of_an_mlp_block_does_not_read_a_relu():
    reads = {name: place.input for name, place in networks.places("mlp").items()}
    assert reads.pop("hidden1.fc") is Input.IMAGE
    others = [name for name, read in reads.items() if read is not Input.RELU]
    assert others == ["hidden2.fc2", "hidden3.fc2", "hidden4.fc2"]


def test_the_table_needs_no_torch():
    code = (
        "import sys, planescope.networks.paper as n; n.places('vgg19_bn'); "
        "print('torch' in sys.modules)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout == "False\n"


@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param("lenet", 8, id="three-halvings"),
        pytest.param("vgg11_bn", 32, id="five-halvings"),
        # 1 <- pool 3 <- 3 convolutions 3 <- pool 7 <- convolution 7 <- pool 15 <- (15-1)·4 + 11 - 4
        pytest.param("alexnet", 63, id="large-first-kernel"),
        pytest.param("mlp", 1, id="no-pooling"),
    ],
)
def test_the_smallest_image_goes_through_and_a_smaller_one_does_not(name, size):
    assert networks.smallest_image(name) == size
    network = build(name, width=0.05, image_size=size).eval()
    assert network(torch.zeros(1, 3, size, size)).shape == (1, 10)
    if size > 1:
        with pytest.raises(RuntimeError, match="small"):
            network(torch.zeros(1, 3, size - 1, size - 1))


# --- a state dict against the table


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_another_width_and_other_classes_matches(name):
    state = stored(shapes_of(name, width=0.05, classes=7, in_channels=1))
    assert networks.match(name, state).places == networks.places(name)


@pytest.mark.parametrize("prefix", ["model.", "net.", "module.model."])
def test_a_prefix_is_taken_away(prefix):
    state = stored({prefix + key: shape for key, shape in shapes_of("lenet").items()})
    matched = networks.match("lenet", state)
    assert list(matched.tensors) == list(shapes_of("lenet"))


def without(name, *, layer):
    return {k: s for k, s in shapes_of(name, width=0.05).items() if not k.startswith(f"{layer}.")}


@pytest.mark.parametrize(
    ("name", "shapes", "sentence"),
    [
        pytest.param(
            "lenet",
            without("lenet", layer="features.5"),
            r"this is no lenet: features\.5 should be a 3×3 convolution, but there is none",
            id="missing",
        ),
        pytest.param(
            "lenet",
            shapes_of("lenet") | {"features.2.weight": (6, 6, 5, 5)},
            r"features\.2 should be a 3×3 convolution, but has shape \(6, 6, 5, 5\)",
            id="another-kernel",
        ),
        pytest.param(
            "lenet",
            shapes_of("lenet") | {"classifier.0.weight": (120, 576, 1)},
            r"classifier\.0 should be a linear layer, but has shape \(120, 576, 1\)",
            id="another-rank",
        ),
        pytest.param(
            "lenet",
            shapes_of("lenet") | {"features.5.weight": (16, 7, 3, 3)},
            r"features\.5 takes 7 inputs, but 6 come to it",
            id="width-that-does-not-fit",
        ),
        pytest.param(
            "lenet",  # 64 filters on 3 × 3 positions are 576 inputs
            shapes_of("lenet") | {"classifier.0.weight": (120, 64)},
            r"classifier\.0 takes 64 inputs, but 576 come to it",
            id="width-behind-flatten-that-does-not-fit",
        ),
        pytest.param(
            "vgg11",
            shapes_of("vgg11", width=0.05) | {"features.30.weight": (3, 3, 3, 3)},
            r"it has a layer features\.30 of shape \(3, 3, 3, 3\), which vgg11 has not",
            id="extra",
        ),
        pytest.param(
            "vgg11_bn",
            shapes_of("vgg11", width=0.05),
            r"features\.1 should be a batch norm, but there is none",
            id="no-norms",
        ),
        pytest.param("vgg16", {}, r"this is no vgg16: features\.0", id="empty"),
    ],
)
def test_a_state_dict_of_another_network_is_refused_with_its_first_fault(name, shapes, sentence):
    with pytest.raises(CheckpointError, match=sentence):
        networks.match(name, stored(shapes))


def test_an_unknown_network_is_refused_with_the_nearest_names():
    with pytest.raises(UsageError, match=r"no network is called 'vgg-19'; the nearest are vgg19,"):
        networks.places("vgg-19")


# --- building


def test_lenet_reads_the_parity_snapshots():
    network = build("lenet", in_channels=1)
    network.load_state_dict(torch.load(PARITY / "lenet-epoch-0.pt", weights_only=True))
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


THEIRS = [name for name in NETWORKS if name in torchvision.models.list_models()]


@pytest.mark.parametrize("name", THEIRS)
def test_names_and_shapes_are_those_of_torchvision(name):
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name).state_dict()
    assert list(build(name, width=0.05, image_size=64).state_dict()) == list(theirs)
    networks.check(name, stored({key: tensor.shape for key, tensor in theirs.items()}))
    operations = NETWORKS[name].operations
    filters = {op.name: op.filters for op in operations if hasattr(op, "filters") and op.filters}
    assert filters.items() <= {k[:-7]: len(t) for k, t in theirs.items() if t.ndim > 1}.items()


@pytest.mark.parametrize(("name", "size"), [("vgg16_bn", 32), ("alexnet", 64)])
def test_state_dicts_and_outputs_are_interchangeable_with_torchvision(name, size):
    ours = build(name, classes=7, image_size=size, seed=0).eval()
    with torch.device("meta"):  # no memory and no initialisation until weights are assigned
        theirs = torchvision.models.get_model(name, num_classes=7).eval()
    theirs.load_state_dict(ours.state_dict(), assign=True)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours(images), theirs(images))
    theirs.classifier[-1].bias.data += 1
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours(images), theirs(images))


def test_the_networks_of_the_paper_and_their_variants_are_listed():
    assert len(THEIRS) == 9  # all but lenet, vgg19_orig and the two fully connected ones
    variants = {
        "_".join(filter(None, (name, norm, activation)))
        for name in ("lenet", "vgg11")
        for norm in ("", "bn", "gn")
        for activation in ("", "leaky", "gelu", "tanh")
    }
    assert len(variants) == 24
    # lenet, vgg11 and vgg11_bn are the paper's own.
    assert len(NETWORKS) == 13 + 24 - 3
    assert variants <= NETWORKS.keys()


@pytest.mark.parametrize(
    ("name", "norm", "activation"),
    [
        ("lenet_bn", nn.BatchNorm2d, nn.ReLU),
        ("lenet_gn_tanh", nn.GroupNorm, nn.Tanh),
        ("vgg11_gelu", None, nn.GELU),
        ("vgg11_bn_leaky", nn.BatchNorm2d, nn.LeakyReLU),
    ],
)
def test_a_variant_has_its_norm_behind_each_convolution_and_its_activation(name, norm, activation):
    plain, varied = (
        [type(m) for m in build(n, width=0.05, image_size=32).modules()]
        for n in (name.split("_")[0], name)
    )
    convolutions = plain.count(nn.Conv2d)
    assert varied.count(nn.Conv2d) == convolutions
    assert varied.count(activation) == plain.count(nn.ReLU)
    if activation is not nn.ReLU:
        assert nn.ReLU not in varied
    if norm is not None:
        assert varied.count(norm) == convolutions


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("name", ["lenet", "vgg11_bn", "mlp_bn"])
def test_any_number_of_channels_and_classes(name, channels):
    network = build(name, in_channels=channels, classes=3, width=0.05, image_size=32)
    assert network(torch.zeros(2, channels, 32, 32)).shape == (2, 3)


def test_mlp_takes_the_pixels_of_cifar():
    first = build("mlp", width=0.05).get_submodule("hidden1.fc")
    assert first.in_features == 3072
    assert [m.p for m in build("mlp", width=0.05).modules() if isinstance(m, nn.Dropout)] == [
        0.2
    ] * 4


def test_width_multiplies_filters_but_not_classes():
    layers = [m for m in build("lenet", width=0.25).modules() if hasattr(m, "weight")]
    # 6/4 rounds to even, 16/4, 64/4, then 120/4, 84/4, and the ten classes
    assert [len(layer.weight) for layer in layers] == [2, 2, 4, 4, 16, 16, 30, 21, 10]
    narrow = [m for m in build("lenet", width=1e-6).modules() if hasattr(m, "weight")]
    assert [len(layer.weight) for layer in narrow] == [1] * 8 + [10]


# --- initialisation


def layers(name, **options):
    return {
        path: module
        for path, module in build(name, seed=0, **options).named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }


@pytest.mark.parametrize(
    ("name", "layer", "std"),
    [
        # uniform in ±√2·√(6/(fan in + fan out)), whose deviation is the bound over √3
        pytest.param("lenet", "features.12", (2 * 6 / (576 + 576) / 3) ** 0.5, id="xavier-conv"),
        pytest.param("lenet", "classifier.0", (2 * 6 / (576 + 120) / 3) ** 0.5, id="xavier-linear"),
        pytest.param("vgg11_bn", "features.4", (2 / (9 * 64)) ** 0.5, id="kaiming-fan-out"),
        pytest.param("vgg11", "classifier.3", 0.01, id="vgg-linear"),
        pytest.param("vgg19_orig", "features.7", 0.01, id="original-conv"),
        pytest.param("mlp", "hidden2.fc2", (2 / 2048) ** 0.5, id="mlp"),
        # uniform in ±1/√(fan in)
        pytest.param("alexnet", "features.6", (1 / (96 * 9) / 3) ** 0.5, id="torch-default"),
    ],
)
def test_weights_are_drawn_as_the_paper_draws_them(name, layer, std):
    width = 1.0 if name == "lenet" else 0.5
    module = layers(name, width=width, image_size=64)[layer]
    assert module.weight.mean().item() == pytest.approx(0, abs=0.02 * std + 1e-4)
    assert module.weight.std().item() == pytest.approx(std, rel=0.02)
    assert torch.count_nonzero(module.bias) == (len(module.bias) if name == "alexnet" else 0)


def test_a_seed_repeats_the_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again, other = (build("lenet", seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    name = "features.0.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])


def test_norms_begin_as_the_identity():
    norms = [m for m in build("mlp_bn", width=0.05).modules() if isinstance(m, nn.BatchNorm1d)]
    assert len(norms) == 4
    for norm in norms:
        assert torch.all(norm.weight == 1)
        assert torch.all(norm.running_var == 1)
        assert not norm.bias.any()
        assert not norm.running_mean.any()


# --- other libraries, and one's own


@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1", "timm:test_resnet"])
def test_networks_of_other_libraries_take_channels_and_classes(name):
    network = build(name, in_channels=1, classes=5, seed=0).eval()
    assert network(torch.zeros(2, 1, 64, 64)).shape == (2, 5)
    again = build(name, in_channels=1, classes=5, seed=0).state_dict()
    assert all(torch.equal(tensor, again[key]) for key, tensor in network.state_dict().items())


MINE = """
from torch import nn

def small(classes, in_channels):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))

def any_options(**options):
    return nn.Linear(len(options), 1)

def broken():
    return "a network"
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("mine", None)


@pytest.mark.usefixtures("mine")
def test_a_callable_gets_the_options_that_it_has_parameters_for():
    assert build("mine:small", classes=4)(torch.zeros(2, 3, 5, 5)).shape == (2, 4)
    assert build("mine:any_options").in_features == 3


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("vgg20", {}, r"no network is called 'vgg20'; the nearest are vgg19, vgg16, vgg13"),
        ("torchvision:resnet19", {}, r"torchvision has no network 'resnet19'; .* resnet18"),
        ("timm:resnet19", {}, r"timm has no network 'resnet19'; .* resnet18"),
        ("torchvison:resnet18", {}, r"no module 'torchvison' can be imported; .*torchvision:NAME"),
        (":resnet18", {}, r"no module '' can be imported"),
        ("mine.py:small", {}, r"can be imported; .*; a module is named as for import, mine:small"),
        (
            "microsoft/resnet-50",
            {},
            r"of a model on the Hugging Face hub give package",
        ),
        (
            "hf:microsoft/resnet-50",
            {},
            r"of a model on the Hugging Face hub give package",
        ),
        ("mine:smal", {}, r"mine has no callable 'smal'; the nearest are small"),
        ("mine:nn", {}, r"mine has no callable 'nn'"),
        ("mine:broken", {}, r"mine:broken gave a str; it must give a torch\.nn\.Module"),
        ("mine:small", {"width": 0.5}, r"mine:small has one width"),
        ("lenet", {"width": 0}, r"width 0 is not above 0"),
        ("lenet", {"width": float("nan")}, r"width nan is not above 0"),
        ("lenet", {"classes": 0}, r"1 class or more, not 3 and 0"),
        ("alexnet", {}, r"alexnet takes images of at least 63×63 pixels, not 32×32"),
        ("vgg11", {"image_size": 28}, r"vgg11 takes images of at least 32×32 pixels, not 28×28"),
    ],
)
def test_what_cannot_be_built_is_refused_in_a_sentence(name, options, sentence):
    with pytest.raises(UsageError, match=sentence):
        build(name, **options)


def test_an_error_in_ones_own_package_is_shown_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "needy.py").write_text("import package_that_is_nowhere")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="package_that_is_nowhere"):
        build("needy:network")


# --- published weights

SQUEEZENET = "squeezenet1_1-b8a52dc0.pth"  # the smallest of torchvision


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch hub's folder of checkpoints, with nothing to download from."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_torchvision_weights_are_read_from_the_folder_of_torch_hub(hub, capsys):
    state = build("torchvision:squeezenet1_1", classes=1000, seed=0).state_dict()
    torch.save(state, hub / SQUEEZENET)
    loaded = load_pretrained("torchvision:squeezenet1_1").state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in state.items())
    assert capsys.readouterr().out == ""


def test_torchvision_weights_that_cannot_be_fetched_are_named_with_their_folder(hub, capsys):
    with pytest.raises(CheckpointError, match=rf"{SQUEEZENET} could not be .*; put .* into {hub}"):
        load_pretrained("torchvision:squeezenet1_1")
    assert capsys.readouterr().out == ""


class Payload:
    def __reduce__(self):
        return exec, ("raise SystemExit('the payload ran')",)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"not a checkpoint", id="text"),
        pytest.param(pickle.dumps(Payload(), protocol=2), id="payload"),
        pytest.param({"classifier.1.weight": torch.zeros(1)}, id="another-network"),
    ],
)
def test_a_file_that_does_not_hold_the_weights_is_named(hub, content):
    if isinstance(content, bytes):
        (hub / SQUEEZENET).write_bytes(content)
    else:
        torch.save(content, hub / SQUEEZENET)
    with pytest.raises(
        CheckpointError, match=rf"{SQUEEZENET} does not hold its weights .*; delete"
    ):
        load_pretrained("torchvision:squeezenet1_1")


@pytest.fixture
def hf_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_timm_weights_are_read_from_the_cache_of_the_hub(hf_cache):
    from safetensors.torch import save_file

    state = build("timm:test_resnet", classes=1000, seed=0).state_dict()
    repository = hf_cache / "models--timm--test_resnet.r160_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(state, repository / "snapshots" / ("0" * 40) / "model.safetensors")
    loaded = load_pretrained("timm:test_resnet").state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in state.items())


def test_timm_weights_that_cannot_be_fetched_are_named_with_the_cache(hf_cache):
    sentence = rf"hf:timm/test_resnet\.r160_in1k .*; put them into {hf_cache}"
    with pytest.raises(CheckpointError, match=sentence):
        load_pretrained("timm:test_resnet")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("vgg16", r"vgg16 has no published weights; give torchvision:NAME or timm:NAME"),
        ("torchvision:resnet19", r"torchvision has no network 'resnet19'"),
        ("timm:resnet19", r"timm has no network 'resnet19'"),
    ],
)
def test_only_networks_of_the_libraries_have_published_weights(name, sentence):
    with pytest.raises(UsageError, match=sentence):
        load_pretrained(name)


def test_a_callable_in_the_working_folder_is_found_and_hides_no_library(tmp_path, monkeypatch):
    (tmp_path / "homemade.py").write_text(
        "import torch\ndef net(): return torch.nn.Conv2d(3, 4, 3)\n"
    )
    (tmp_path / "math.py").write_text("raise RuntimeError\n")
    monkeypatch.chdir(tmp_path)
    assert build("homemade:net").out_channels == 4
    assert str(tmp_path) not in sys.path


def test_resnets_of_cifar_load_again_from_any_order_and_no_other():
    module = build("resnet20", classes=7, width=0.2, seed=0).eval()
    shapes = {f"module.{name}": t.shape for name, t in module.state_dict().items()}
    backwards = stored({name: shapes[name] for name in sorted(shapes, reverse=True)})
    assert networks.match("resnet20", backwards).places == networks.places("resnet20")
    with pytest.raises(CheckpointError, match=r"no resnet32: layer1.3.conv1 should have shape"):
        networks.match("resnet32", backwards)
    with pytest.raises(CheckpointError, match=r"has a layer extra of shape .*, which resnet20 has"):
        networks.match("resnet20", stored({**shapes, "module.extra.weight": (2, 2)}))
    with pytest.raises(UsageError, match="nearest are resnet"):
        networks.network("resnet2")


def test_a_published_resnet_gives_the_same_outputs_under_its_name(tmp_path):
    module = build("resnet20", width=0.25, seed=1).eval()
    torch.save({"state_dict": nn.DataParallel(module).state_dict()}, tmp_path / "net.th")
    again = load_network("resnet20", state_of(tmp_path / "net.th"))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(images), module(images))
