"""Programs of torch.export against the module that they were made of."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

import planescope as ps
from planescope.checkpoints import read_contents
from planescope.files.errors import CheckpointError
from planescope.measurement.source import find


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(6, eps=1e-3)

    def forward(self, x):
        return nn.functional.relu(self.bn(self.conv(x)) + x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.block = Block()
        self.pool = nn.MaxPool2d(2)
        self.down = nn.Conv2d(6, 8, 3, groups=2)
        self.up = nn.ConvTranspose2d(8, 5, 2)
        self.head = nn.Linear(5 * 7 * 7, 3)

    def forward(self, x):
        x = self.pool(self.block(nn.functional.relu(self.stem(x))))
        return self.head(self.up(nn.functional.hardswish(self.down(x))).flatten(1))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Net().eval()


def exported(net, *, decomposed=False):
    program = torch.export.export(net, (torch.zeros(1, 3, 32, 32),))
    return program.run_decompositions() if decomposed else program


# Up to 2.7 torch writes a torch file beside the program, later a file for each weight.
WRITES_NEWER = tuple(map(int, torch.__version__.split(".")[:2])) > (2, 7)
newer = pytest.mark.skipif(not WRITES_NEWER, reason="this torch writes the older layout itself")


@pytest.fixture(
    scope="module", params=["as-it-is", "decomposed", pytest.param("older", marks=newer)]
)
def path(request, net, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "net.pt2"
    torch.export.save(exported(net, decomposed=request.param == "decomposed"), path)
    if request.param == "older":
        older(path, net)
    return path


def older(path, net):
    """Write the program as torch did up to 2.7: the same text, and a torch file beside it."""
    with zipfile.ZipFile(path) as archive:
        program = archive.read("net/models/model.json")
    weights = io.BytesIO()
    torch.save(net.state_dict(), weights)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("serialized_exported_program.json", program)
        archive.writestr("serialized_state_dict.pt", weights.getvalue())
        archive.writestr("version", "8.8")


def table(x):
    measured = ps.measure(x, kinds="all", view="effective")
    return [
        (
            layer.name, layer.kind, layer.stage, layer.input, layer.filters, layer.fan_in,
            layer.negative_mass, layer.mean_cosine, layer.negative_centre, layer.groups,
        )
        for layer in measured.layers
    ]  # fmt: skip


def test_a_program_gives_what_its_module_gives(net, path):
    assert table(path) == table(net)
    assert ps.measure(path).source.format == "torch-export"


def test_arrays_come_bit_by_bit(net, path):
    _, contents = read_contents(path)
    state = net.state_dict()
    for layer in contents.layers:
        weight = state[f"{layer.name}.weight"].numpy()
        wanted = weight.swapaxes(0, 1) if layer.name == "up" else weight
        assert (layer.weight.read() == wanted).all()
        if layer.bias is not None:
            assert (layer.bias.read() == state[f"{layer.name}.bias"].numpy()).all()
    assert contents.skipped == ()


class Standardised(nn.Conv2d):
    """A convolution that centres and scales its weights, as timm's do."""

    def forward(self, x):
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6)
        return self._conv_forward(x, weight.reshape_as(self.weight), self.bias)


class Halved(nn.Module):
    def forward(self, x):
        return x * 0.5


def computing():
    """Return a network each of whose layers has parts that the program computes."""
    torch.manual_seed(0)
    parametrizations = nn.utils.parametrizations
    net = nn.Sequential(
        Standardised(1, 4, 3), parametrizations.weight_norm(nn.Conv2d(4, 4, 3)), nn.ReLU(),
        parametrizations.spectral_norm(nn.ConvTranspose2d(4, 4, 3)), nn.Conv2d(4, 2, 3),
        nn.Linear(4, 5), nn.Linear(5, 2),
    )  # fmt: skip
    prune.l1_unstructured(net[4], "weight", 0.5)
    prune.random_unstructured(net[4], "bias", 0.5)
    nn.utils.parametrize.register_parametrization(net[5], "bias", Halved())
    nn.utils.parametrize.register_parametrization(net[1], "weight", Halved())
    return net.eval()


def test_weights_that_the_program_computes_are_those_that_act(tmp_path):
    net = computing()
    program = torch.export.export(net, (torch.zeros(1, 1, 8, 8),))
    torch.export.save(program, tmp_path / "net.pt2")
    _, contents = read_contents(tmp_path / "net.pt2")
    wanted = find(net).layers
    assert not contents.skipped
    assert [layer.name for layer in contents.layers] == [layer.name for layer in wanted]
    for layer, live in zip(contents.layers, wanted, strict=True):
        assert layer.kind is live.kind
        np.testing.assert_allclose(layer.weight.read(), live.weight.read(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(layer.bias.read(), live.bias.read(), rtol=1e-6)


def test_weights_that_are_computed_in_a_way_not_followed_are_left_out(tmp_path):
    linear = nn.utils.parametrizations.orthogonal(nn.Linear(4, 4))
    program = torch.export.export(nn.Sequential(linear).eval(), (torch.zeros(1, 4),))
    torch.export.save(program, tmp_path / "net.pt2")
    _, contents = read_contents(tmp_path / "net.pt2")
    assert contents.layers == ()
    (left,) = contents.skipped  # the products that make the matrix are no layers either
    assert left.name == "0"
    assert "whose weights the program computes" in left.reason


def changed(path, out, name, change):
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(out, "w") as to:
        for info in archive.infolist():
            content = archive.read(info)
            to.writestr(info.filename, change(content) if name in info.filename else content)
    return out


def meta(change):
    def edit(raw):
        described = json.loads(raw)
        change(described["config"]["stem.weight"])
        return json.dumps(described).encode()

    return edit


_CONFIG = "weights_config.json"
DAMAGE = {
    "shape": (_CONFIG, meta(lambda m: m["tensor_meta"]["sizes"].pop()), "impossible shape"),
    "size": (_CONFIG, meta(lambda m: m["tensor_meta"]["sizes"][0].update(as_int=7)),
             "but has 648 bytes"),
    "type": (_CONFIG, meta(lambda m: m["tensor_meta"].update(dtype=99)), "unknown type"),
    "lost": (_CONFIG, meta(lambda m: m.update(path_name="weight_99")), "is missing"),
    "no-name": (_CONFIG, meta(lambda m: m.pop("path_name")), "as torch describes them"),
    "no-json": ("model.json", lambda raw: raw[:-9], "no valid JSON"),
    "no-graph": ("model.json", lambda raw: raw.replace(b'"nodes"', b'"node"'), "makes no sense"),
}  # fmt: skip


@newer
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_program_is_refused_with_the_reason(net, tmp_path, damage):
    name, change, match = DAMAGE[damage]
    torch.export.save(exported(net), tmp_path / "net.pt2")
    with pytest.raises(CheckpointError, match=match):
        read_contents(changed(tmp_path / "net.pt2", tmp_path / "bad.pt2", name, change))


class Shared(nn.Module):
    """One weight in three layers, one of them the same module."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.again, self.other = self.first, nn.Conv2d(4, 4, 3, padding=1)
        self.other.weight = self.first.weight

    def forward(self, x):
        return self.other(self.again(self.first(x).relu()).relu())


def test_a_shared_weight_is_one_layer_and_its_other_names_are_told(tmp_path):
    program = torch.export.export(Shared().eval(), (torch.zeros(1, 4, 6, 6),))
    torch.export.save(program, tmp_path / "net.pt2")
    found = ps.measure(tmp_path / "net.pt2")
    (layer,) = found.layers
    assert {layer.name, *layer.aliases} == {"first", "again", "other"}
    assert "one layer" in " ".join(found.notes)


COMPUTED = {
    "plain": lambda w: F.softplus(w),
    "steep": lambda w: F.softplus(w, beta=2),
    "early": lambda w: F.softplus(w, threshold=0.1),
    "rsub": lambda w: torch.rsub(w, torch.ones(5, 6), alpha=2),
    "rsub one": lambda w: torch.rsub(w, torch.ones(5, 6)),
    "sub": lambda w: torch.sub(w, w.mean(0, keepdim=True), alpha=3),
    "number": lambda w: 3 - w,
    "power": lambda w: 2**w,
    "variance": lambda w: w / w.var(1, keepdim=True),
    "deviation": lambda w: w / w.std(1, keepdim=True, correction=0),
    "length": lambda w: w / torch.linalg.vector_norm(w, dim=(0, 1), keepdim=True),
    "taxicab": lambda w: w / torch.linalg.vector_norm(w, ord=1, dim=1, keepdim=True),
    "clipped": lambda w: w.clamp(-0.5, 0.25),
    "floored": lambda w: torch.div(w, 0.3, rounding_mode="floor"),
    "wide": lambda w: w * w.sum(1, keepdim=True, dtype=torch.float64).float(),
    "spread": lambda w: w[:, :1].expand(5, 6) * w,
    "turned": lambda w: w.t().contiguous().view(5, 6),
    "swapped": lambda w: w.reshape(3, 10).transpose(0, 1).reshape(5, 6),
    "least": lambda w: torch.maximum(w, w.amin(0)),
    "product": lambda w: w @ w.t() @ w,
    "sigmoid": lambda w: w.sigmoid() * w.abs().log().tanh(),
    "half": lambda w: w.half().float(),
}  # fmt: skip

LEFT = ["early", "floored", "rsub", "rsub one", "spread", "steep", "taxicab", "wide"]


class Computed(nn.Linear):
    """A linear layer whose weight is computed by one of these operations."""

    def __init__(self, way):
        super().__init__(6, 5, bias=False)
        self.way = way

    def forward(self, x):
        return F.linear(x, COMPUTED[self.way](self.weight))


class Beside(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleList(Computed(way) for way in COMPUTED)

    def forward(self, x):
        return sum(part(x).relu() for part in self.parts)


def test_each_operation_on_weights_gives_what_torch_gives_or_is_left_out(tmp_path):
    net = Beside().eval()
    torch.export.save(torch.export.export(net, (torch.zeros(1, 6),)), tmp_path / "net.pt2")
    _, contents = read_contents(tmp_path / "net.pt2")
    found = {layer.name: layer.weight.read() for layer in contents.layers}
    left = {skipped.name for skipped in contents.skipped}
    for i, (way, function) in enumerate(COMPUTED.items()):
        name = f"parts.{i}"
        assert (name in found) is not (name in left), way
        if name in found:
            acting = function(net.parts[i].weight).detach().numpy()
            np.testing.assert_allclose(found[name], acting, rtol=1e-5, atol=1e-6, err_msg=way)
    # Operations with a way of their own are among those that are not followed.
    assert sorted(way for i, way in enumerate(COMPUTED) if f"parts.{i}" in left) == LEFT


class Tied(nn.Module):
    """An encoder whose weight decodes too, and two layers of one weight with two biases."""

    def __init__(self):
        super().__init__()
        self.encoder, self.one, self.other = nn.Linear(9, 5), nn.Linear(9, 9), nn.Linear(9, 9)
        self.other.weight = self.one.weight

    def forward(self, x):
        x = self.other(self.one(x).relu()).relu()
        return nn.functional.linear(self.encoder(x).relu(), self.encoder.weight.t())


def test_a_weight_that_two_layers_share_is_told_with_what_they_do_not_share(tmp_path):
    program = torch.export.export(Tied().eval(), (torch.zeros(2, 9),))
    torch.export.save(program, tmp_path / "net.pt2")
    found = ps.measure(tmp_path / "net.pt2", kinds="all")
    forms = [(x.name, x.filters, x.fan_in) for x in found.layers]
    assert forms[1:] == [("encoder", 5, 9), ("encoder_2", 9, 5)]
    assert [one.reason.partition(";")[0] for one in found.skipped] == [
        f"the weight of {forms[0][0]} with another bias"
    ]


class Frozen(nn.Module):
    """A body that is not trained, in parts of the program that have graphs of their own."""

    def __init__(self, way):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head, self.way = nn.Conv2d(4, 3, 3), way

    def forward(self, x):
        if self.way == "branch":
            ways = (self.body[0], lambda x: x.repeat(1, 2, 1, 1)[..., 2:, 2:] * 1)
            return self.head(torch.cond(x.sum() > 0, *ways, (x,)))
        with torch.no_grad(), torch.autocast("cpu", enabled=self.way == "autocast"):
            y = self.body(x)
        return self.head(y.float())


@pytest.mark.parametrize("way", ["no_grad", "autocast"])
def test_what_runs_in_another_mode_is_read_where_it_stands(tmp_path, way):
    net, path = Frozen(way).eval(), tmp_path / "net.pt2"
    torch.export.save(torch.export.export(net, (torch.randn(1, 2, 9, 9),)), path)
    assert rows(ps.measure(path)) == rows(ps.measure(net))


def test_a_layer_in_a_branch_is_left_out_by_name(tmp_path):
    net, path = Frozen("branch").eval(), tmp_path / "net.pt2"
    torch.export.save(torch.export.export(net, (torch.randn(1, 2, 9, 9),)), path)
    measured = ps.measure(path)
    assert [layer.name for layer in measured.layers] == ["head"]
    (left,) = measured.skipped
    assert (left.name, "in a branch or loop" in left.reason) == ("body.0", True)


def rows(measured):
    return [
        (x.name, x.input, x.stage, x.norm, x.mean_cosine, x.mean_centre) for x in measured.layers
    ]
