"""Resets against the plain way - load, evaluate, restore - and what is kept of them."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear
from torch.utils.data import DataLoader, TensorDataset

import planescope as ps
from planescope import figures
from planescope.criticality.definition import Critical
from planescope.criticality.resets.engine import tensors as cell_tensors
from planescope.criticality.resets.engine.devices import BATCHES
from planescope.criticality.resets.engine.progress import Progress
from planescope.criticality.resets.engine.tensors import Cell
from planescope.criticality.resets.parts.inputs import Inputs
from planescope.criticality.resets.parts.prefix import split, survey, trace
from planescope.criticality.resets.parts.traced import Traced
from planescope.criticality.resets.record import ResetCell
from planescope.data.load import Images
from planescope.networks.build import build

PARITY = Path("tests/parity")
SNAPSHOTS = [PARITY / f"lenet-epoch-{epoch}.pt" for epoch in (0, 1, 3, 9)]
ALL = ps.ResetOptions(kinds="all", devices=("cpu",))


def images(
    count: int = 300,
    size: int | tuple[int, int] = 16,
    classes: int = 10,
    channels: int = 3,
    seed: int = 0,
) -> Images:
    rng = torch.Generator().manual_seed(seed)
    extent = size if isinstance(size, tuple) else (size, size)
    return Images(
        images=torch.randint(0, 256, (count, channels, *extent), generator=rng).byte(),
        labels=torch.randint(0, classes, (count,), generator=rng),
        classes=tuple(map(str, range(classes))),
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
        name="noise",
        split="val",
    )


def plain_counts(
    network: nn.Module,
    names: list[str],
    snapshot: dict,
    data: Images,
    dtype: torch.dtype = torch.float32,
) -> tuple[int, int, float]:
    """Top-1 and top-5 counts and mean loss of the network with some tensors loaded."""
    network = copy.deepcopy(network).eval()
    network.load_state_dict({**network.state_dict(), **{name: snapshot[name] for name in names}})
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (data.mean, data.std))
    inputs = (data.images.float() / 255 - mean) / std
    right = top5 = 0
    loss = 0.0
    loader = DataLoader(TensorDataset(inputs, data.labels), batch_size=BATCHES["cpu"][0])
    half = dtype is not torch.float32
    with torch.no_grad():
        for batch, labels in loader:
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                logits = network(batch).float()
            is_number = ~logits.isnan().any(1)  # else argmax gives a class, by its place
            best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
            best &= is_number[:, None]
            right += int(((logits.argmax(1) == labels) & is_number).sum())
            top5 += int(best.sum())
            loss += float(cross_entropy(logits, labels, reduction="sum"))
    return right, top5, loss / len(data.labels)


def counts(found: ps.Accuracy) -> tuple[int, int]:
    return round(found.top1 * found.examples), round(found.top5 * found.examples)


class WithDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.drop, self.flat = nn.Dropout2d(0.5), nn.Dropout(0.5, inplace=True)
        self.out = nn.Linear(8, 10)

    def forward(self, x):
        x = self.drop(torch.relu(self.first(x)))
        x = nn.functional.dropout(torch.relu_(self.second(x)), 0.5, self.training)
        return self.out(self.flat(x.mean((2, 3))))


class UsedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.shared = nn.Conv2d(8, 8, 3, padding=1)
        self.between = nn.Conv2d(8, 8, 3, padding=1)
        self.out = nn.Linear(8 * 16, 10)

    def forward(self, x):
        x = torch.relu(self.shared(torch.relu(self.first(x))))
        x = x + torch.relu(self.shared(self.between(x)))
        return self.out(nn.functional.adaptive_avg_pool2d(x, 4).reshape(x.shape[0], -1))


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.out = nn.Linear(8, 10)

    def forward(self, x):
        x = self.first(x)
        if float(x.sum()) > 0:  # a graph has no such question
            x = -x
        return self.out(torch.relu(x).mean((2, 3)))


class ChangesWhatItShares(nn.Module):
    """Behind the second layer, what lies before it is changed in place, and a view of it read."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.out = nn.Linear(8, 10)

    def forward(self, x):
        x = self.first(x)
        rows = x.flatten(2)
        y = self.second(x)
        x.relu_()
        x.add_(y)
        return self.out(rows.mean(2))


class AddsInPlace(nn.Module):
    """A graph makes ``x += y`` a sum of its own, and what shares memory with x is not changed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 10)

    def forward(self, x):
        x = self.first(x)
        rows = x.flatten(2)
        x += torch.relu(x)
        return self.out(rows.mean(2))


class Tied(nn.Module):
    """Two layers with one weight; and one whose weight is given to a function."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second, self.third = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
        self.third.weight = self.second.weight
        self.out = nn.Linear(8, 10)

    def forward(self, x, scale: float = 0.5):
        x = torch.relu(self.third(torch.relu(self.second(torch.relu(self.first(x))))))
        return linear(x.mean((2, 3)), self.out.weight, self.out.bias) * scale


class HalvesOddly(nn.Module):
    """Max-pooling of every sort: sizes that are odd, with and without remainder and padding."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 2)
        self.pools = nn.ModuleList(
            [nn.MaxPool2d(2), nn.MaxPool2d(2, 2, padding=1), nn.MaxPool2d(2, ceil_mode=True)]
        )
        self.out = nn.Linear(8, 10)

    def forward(self, x):
        x = self.second(torch.relu(self.first(x)))
        for pool in self.pools:
            x = pool(x)
        return self.out(x.mean((2, 3)))


class PoolsInRuns(nn.Module):
    """Runs of layers whose images may lie otherwise in memory, and layers that end them."""

    def __init__(self) -> None:
        super().__init__()
        self.run = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 16, 3), nn.BatchNorm2d(16),
            nn.ReLU(inplace=True), nn.Dropout2d(), nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(16, 16, 3, groups=4), nn.AvgPool2d(2), nn.Conv2d(16, 24, 1), nn.ReLU(),
            nn.MaxPool2d(2), nn.AdaptiveAvgPool2d((2, 3)),
        )  # fmt: skip
        self.out = nn.Linear(24 * 6, 10)

    def forward(self, x):
        return self.out(self.run(x).view(x.shape[0], -1))


class MixesExamples(nn.Module):
    """What it says of an example depends on the others of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Linear(8, 8)
        self.out = nn.Linear(8, 10)

    def forward(self, x):
        x = torch.relu(self.first(x)).mean((2, 3))
        return self.out(torch.relu(self.second(x - x.mean(0))))


class TakesOneBatch(nn.Module):
    """Cannot be given the batches of several snapshots as one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Conv2d(3, 8, 3), nn.Linear(8, 10)

    def forward(self, x):
        size = x.shape[0]
        x = torch.relu(self.first(x)).amax((2, 3))
        return self.out(x.reshape(8, size).reshape(size, 8))


def seeded(make):
    def made(seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return make()

    return made


def with_statistics(name: str, **options):
    """A network that answers in many ways: norms as after training, and large linear weights."""

    def made(seed: int) -> nn.Module:
        network = build(name, seed=seed, **options)
        rng = torch.Generator().manual_seed(seed)
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d):
                for tensor in (part.weight.data, part.bias.data, part.running_mean):
                    tensor.add_(torch.randn(tensor.shape, generator=rng), alpha=0.3)
                part.running_var.mul_(2)
            if isinstance(part, nn.Linear):
                part.weight.data.mul_(10)
        return network

    return made


NETWORKS = [
    pytest.param(lambda seed: build("lenet", seed=seed), 32, "", id="lenet"),
    pytest.param(with_statistics("vgg11_bn", width=0.125), 32, "", id="vgg-with-batch-norm"),
    pytest.param(with_statistics("torchvision:resnet18"), 16, "", id="residual"),
    pytest.param(seeded(WithDropout), 16, "", id="dropout"),
    pytest.param(seeded(UsedTwice), 16, "", id="layer-used-twice"),
    pytest.param(seeded(ChangesWhatItShares), 16, "", id="changes-in-place"),
    pytest.param(seeded(Tied), 16, "", id="tied-weights"),
    pytest.param(seeded(HalvesOddly), 16, "", id="max-pooling-of-every-sort"),
    pytest.param(seeded(PoolsInRuns), (26, 31), "", id="pools-in-runs"),
    pytest.param(seeded(MixesExamples), 16, "", id="mixes-examples"),
    pytest.param(seeded(TakesOneBatch), 16, "", id="one-batch-at-a-time"),
    pytest.param(seeded(AddsInPlace), 16, "(it gives another output)", id="graph-is-another"),
    pytest.param(seeded(Untraceable), 16, "cannot be run by parts", id="no-graph"),
]


@pytest.mark.parametrize(("make", "size", "note"), NETWORKS)
def test_the_counts_are_those_of_the_plain_way(make, size, note):
    network, data = make(0), images(size=size)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    snapshots = {seed: make(seed).state_dict() for seed in (1, 2)}
    found = ps.reset(network, to=snapshots, data=data, options=ALL)
    assert note in " ".join(found.notes)
    assert bool(note) == ("run by parts" in " ".join(found.notes))
    assert counts(found.trained) == plain_counts(network, [], {}, data)[:2]
    weighted = nn.Conv2d | nn.Linear
    modules = [(name, m) for name, m in network.named_modules() if isinstance(m, weighted)]
    # Of layers that share a weight the first stands for all.
    layers = list({id(m.weight): name for name, m in reversed(modules)}.values())[::-1]
    assert list(found.rows) == layers
    for layer in layers if len(layers) < 12 else layers[::4]:
        for seed, snapshot in snapshots.items():
            (cell,) = found.at(layer, seed)
            names = [f"{layer}.{part}" for part in ("weight", "bias")]
            right, top5, loss = plain_counts(
                network, [n for n in names if n in snapshot], snapshot, data
            )
            assert (layer, seed, *counts(cell)) == (layer, seed, right, top5)
            assert cell.cross_entropy == pytest.approx(loss, rel=1e-6)
    assert network.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize(
    ("make", "size"),
    [
        pytest.param(lambda seed: build("lenet", seed=seed), 32, id="lenet"),
        pytest.param(
            with_statistics("vgg11_bn", width=0.125),
            32,
            id="vgg-with-batch-norm",
            marks=pytest.mark.long,
        ),
        pytest.param(
            with_statistics("torchvision:resnet18"), 16, id="residual", marks=pytest.mark.long
        ),
        pytest.param(seeded(UsedTwice), 16, id="layer-used-twice", marks=pytest.mark.long),
        pytest.param(seeded(Untraceable), 16, id="no-graph", marks=pytest.mark.long),
    ],
)
def test_the_counts_in_bfloat16_are_those_of_the_plain_way_in_bfloat16(make, size):
    network, data = make(0), images(size=size)
    snapshots = {seed: make(seed).state_dict() for seed in (1, 2, 3)}
    options = dataclasses.replace(ALL, precision="bf16-mixed")
    found = ps.reset(network, to=snapshots, data=data, options=options)
    assert found.precision == "bf16-mixed"
    assert "computed in bf16-mixed" in " ".join(found.notes)
    in_float32 = ps.reset(network, to=snapshots, data=data, options=ALL)
    assert in_float32.precision == "32-true"
    assert found.trained.cross_entropy != in_float32.trained.cross_entropy
    plain = plain_counts(network, [], {}, data, torch.bfloat16)[:2]
    assert counts(found.trained) == pytest.approx(plain, abs=1)
    for layer in found.rows[:: max(1, len(found.rows) // 3)]:
        for seed, snapshot in snapshots.items():
            names = [n for n in (f"{layer}.weight", f"{layer}.bias") if n in snapshot]
            right, top5, loss = plain_counts(network, names, snapshot, data, torch.bfloat16)
            (cell,) = found.at(layer, seed)
            # Kernels that add in another order flip an answer on the edge at most.
            assert counts(cell) == pytest.approx((right, top5), abs=1), (layer, seed)
            assert cell.cross_entropy == pytest.approx(loss, rel=5e-3)
            (wide,) = in_float32.at(layer, seed)
            assert cell.cross_entropy == pytest.approx(wide.cross_entropy, rel=2e-2)


@pytest.mark.parametrize("fitting", ["32-true", "bf16-mixed"])
def test_what_auto_stands_for_is_told(fitting, monkeypatch):
    monkeypatch.setattr(
        "planescope.criticality.resets.engine.devices.fitting_precision", lambda kind: fitting
    )
    network, data = seeded(UsedTwice)(0), images(count=40)
    options = dataclasses.replace(ALL, precision="auto")
    found = ps.reset(network, to={1: seeded(UsedTwice)(1)}, data=data, options=options)
    assert found.precision == fitting
    assert ps.Resets.from_dict(json.loads(found.to_json())).precision == fitting


def test_what_lies_before_a_layer_is_left_once_and_copied_only_where_it_is_changed():
    example = Inputs.of(torch.randn(1, 3, 16, 16))
    module = ChangesWhatItShares().eval()
    network, note = split(module, trace(module), example)
    starts = [network.uses([f"{name}.weight"])[0] for name in ("first", "second", "out")]
    found = survey(network, example, starts)
    assert (note, [found.changes[start] for start in starts]) == ("", [False, True, False])
    # The image; the first layer's output, of which `rows` is a view; the mean over pixels.
    assert [found.live_bytes[s] for s in starts] == [4 * 3 * 256, 4 * 8 * 256, 4 * 8]


def test_the_ways_of_a_gpu_give_the_same_but_for_rounding():
    network = build("vgg11", width=0.25, seed=0).eval()
    batch = Inputs.of(torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    other = build("vgg11", width=0.25, seed=1).state_dict()
    quick, plain = (Traced(network, trace(network), batch) for _ in range(2))
    quick.hasten()
    for layer in ("features.3", "features.18", "classifier.0", "classifier.6"):
        names = (f"{layer}.weight", f"{layer}.bias")
        tensors = {name: other[name] for name in names}
        outputs = []
        for ways in (quick, plain):
            start = ways.uses(names)[0]
            with torch.inference_mode():
                values = ways.begin(batch)
                ways.advance(values, 0, start, {})
                outputs.append(ways.finish(values, start, tensors))
            if layer == "classifier.0":  # the pixel is read once in place of 49 times
                (value,) = values.values()
                assert value.shape == ((4, 128) if ways is quick else (4, 49 * 128))
        torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layer", ["features.0", "features.5", "features.12", "classifier.0"])
def test_in_bfloat16_channels_that_lie_together_give_the_same_but_for_rounding(layer):
    network = build("lenet", seed=0).eval()
    names = (f"{layer}.weight", f"{layer}.bias")
    other = {name: build("lenet", seed=1).state_dict()[name] for name in names}
    images = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        wanted = torch.func.functional_call(network, other, (images.clone(),))
        ways, note = split(network, trace(network), Inputs.of(images[:16]))
        assert not note
        start = ways.uses(names)[0]
        for size in (16, 48, 64):  # one batch, and several that were joined
            values = ways.begin(Inputs.of(images[:size]))
            ways.advance(values, 0, start, {})
            found = ways.finish(values, start, other)
            # A step of bfloat16 in each layer.
            torch.testing.assert_close(found, wanted[:size], rtol=2**-6, atol=2**-7)


def test_images_of_more_than_a_pixel_are_read_as_they_are():
    network = build("vgg11", width=0.25, seed=0).eval()
    batch = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    quick = Traced(network, trace(network), Inputs.of(batch))
    quick.hasten()
    with torch.inference_mode():
        torch.testing.assert_close(
            quick.finish(quick.begin(Inputs.of(batch)), 0, {}), network(batch)
        )


def test_the_weights_of_the_next_cells_are_read_while_one_is_evaluated(monkeypatch):
    read = []

    def cell(key: str) -> Cell:
        def tensors(_: torch.device) -> dict[str, torch.Tensor]:
            read.append(key)
            return {key: torch.zeros(1)}

        return Cell(key=key, layer=key, names=("weight",), read=tensors, bytes=4)

    monkeypatch.setattr(cell_tensors, "AHEAD_BYTES", 8)
    several = [cell(key) for key in "abcde"]
    for keep, again in ((True, ""), (False, "ae")):
        read.clear()
        with ThreadPoolExecutor(1) as pool:
            reader = cell_tensors.Reader(torch.device("cpu"), several, keep=keep, pool=pool)
            assert list(reader(several[0])) == ["a"]
        assert "".join(read) == "abc"
        with ThreadPoolExecutor(1) as pool:
            reader._pool = pool
            assert [next(iter(reader(one))) for one in several[1:]] == list("bcde")
            reader(several[0])
            reader(several[4])
        assert "".join(read) == "abcde" + again


def test_devices_share_the_work_and_the_result_is_the_same():
    # Traced by each thread for itself, 6 of 20 such runs ended in a NameError.
    make = seeded(UsedTwice)
    network, data = make(0), images(count=40)
    again = {"data": data, "options": dataclasses.replace(ALL, devices=("cpu", "cpu"))}
    snapshots = {seed: make(seed).state_dict() for seed in (1, 2)}
    once = ps.reset(network, to=snapshots, data=data, options=ALL)
    for _ in range(25):
        assert ps.reset(network, to=snapshots, **again) == once


def test_several_layers_at_once():
    network, data = build("lenet", seed=0), images(size=32)
    snapshot = build("lenet", seed=1).state_dict()
    options = dataclasses.replace(ALL, layers="features.5", together=["features.2, classifier.0"])
    found = ps.reset(network, to={1: snapshot}, data=data, options=options)
    assert found.rows == ("features.5", "features.2,classifier.0")
    names = [f"{n}.{p}" for n in ("features.2", "classifier.0") for p in ("weight", "bias")]
    expected = plain_counts(network, names, snapshot, data)[:2]
    assert counts(found.at("features.2,classifier.0", 1)[0]) == expected


def test_a_norm_goes_back_with_its_layer_where_that_is_asked_for():
    make = with_statistics("vgg11_bn", width=0.125)
    network, data, snapshot = make(0), images(size=32), make(1).state_dict()
    options = dataclasses.replace(ALL, layers="features.4", with_norm=True)
    found = ps.reset(network, to={1: snapshot}, data=data, options=options)
    names = [name for name in snapshot if name.startswith(("features.4.", "features.5."))]
    expected = plain_counts(network, names, snapshot, data)
    assert counts(found.cells[0]) == expected[:2]
    assert found.cells[0].cross_entropy == pytest.approx(expected[2], rel=1e-6)
    without = plain_counts(network, ["features.4.weight", "features.4.bias"], snapshot, data)
    assert abs(without[2] - expected[2]) > 1e-3


def test_weights_in_parts_are_put_back_part_by_part():
    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
        return nn.Sequential(
            conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
        )

    network, data, snapshot = make(0), images(), make(1).state_dict()
    found = ps.reset(network, to={1: snapshot}, data=data, options=ALL)
    names = [name for name in snapshot if name.startswith("0.")]
    assert counts(found.at("0", 1)[0]) == plain_counts(network, names, snapshot, data)[:2]


@pytest.fixture(scope="module")
def lenet() -> ps.Resets:
    return ps.reset(
        PARITY / "lenet-epoch-12.tar", to=SNAPSHOTS, network="lenet", data="mnist", data_path=PARITY
    )


def test_the_counts_are_those_of_an_independent_implementation(lenet):
    expected = json.loads((PARITY / "expected.json").read_text())
    assert (lenet.trained.top1, lenet.trained.top5) == (0.945, 0.996)
    found = {
        epoch: {row: lenet.at(row, f"lenet-epoch-{epoch}.pt")[0].top1 for row in lenet.rows}
        for epoch in expected["reset_top1"]
    }
    assert found == expected["reset_top1"]


def test_drops_are_relative_to_the_trained_accuracy(lenet):
    (cell,) = lenet.at("features.0", "lenet-epoch-0.pt")
    assert cell.relative_drop == pytest.approx((0.945 - 0.106) / 0.945)
    assert (cell.examples, cell.draw, cell.significant) == (1000, None, True)
    assert cell.low < cell.top1 < cell.high
    # 945 right before and after, on other examples: no drop.
    (cell,) = lenet.at("features.5", "lenet-epoch-3.pt")
    assert (cell.relative_drop, cell.p_value, cell.significant) == (0.0, 1.0, False)
    assert lenet.shown("features.5", "lenet-epoch-3.pt") == "(0.0)"
    assert lenet.shown("features.0", "lenet-epoch-0.pt") == "88.8"


def test_the_bias_of_each_layer_is_that_of_the_trained_checkpoint(lenet):
    measured = ps.measure(PARITY / "lenet-epoch-12.tar").layers
    assert [(one.name, one.negative_mass, one.biased) for one in lenet.layers] == [
        (one.name, pytest.approx(one.negative_mass), one.biased) for one in measured
    ]


def test_the_verdict_names_the_most_critical_layer(lenet):
    assert lenet.verdict == (
        "Holds in 6 of 6 layers, put back to lenet-epoch-0.pt: critical, loss above 10% with its "
        "whole 95 % interval; most of all features.0, with a loss of 101% (99% to 103%). 6 of 6 "
        "layers lower accuracy beyond noise, most of all features.0: 10.6% in place of 94.5%."
    )


def told(*verdicts: str | None) -> tuple[ResetCell, ...]:
    """Cells of layers a, b, ...: their verdicts, and what goes with these."""
    ends = {"yes": (0.2, 0.4), "no": (0.0, 0.05), "undecided": (0.05, 0.2), None: (0.1, 0.1)}
    lost = ("loss", "loss_low", "loss_high")
    return tuple(
        ResetCell(
            layer=name, snapshot=0, draw=None, value=0.9 - (found := ends[v])[1],
            low=0.0, high=1.0, examples=100, relative_drop=found[1], p_value=0.01,
            significant=v != "no", critical=None if v is None else Critical(v),
            **(dict(zip(lost, (found[1], *found), strict=True)) if v else {}),
        )
        for name, v in zip("abcdefg", verdicts, strict=False)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("verdicts", "words"),
    [
        (("yes", "no", "undecided"), "Holds in 1 of 3 layers, put back to epoch 0: critical, "),
        (("yes", "no", "undecided"), "Does not hold in b. Undecided in c."),
        (("no", "no"), "Does not hold: none of 2 layers, put back to epoch 0, is critical"),
        (("undecided", "no", "no"), "Undecided in 1 of 3 layers, put back to epoch 0: whether"),
        (("undecided",), "Undecided in 1 layer, put back to epoch 0: whether critical"),
        ((None, None), "Undecided: an earlier version reset these layers, without their loss;"),
    ],
)
def test_the_verdict_says_first_what_can_be_concluded(lenet, verdicts, words):
    chance = None if None in verdicts else 0.1
    found = dataclasses.replace(lenet, cells=told(*verdicts), chance=chance).verdict
    assert words in found
    assert found.startswith(("Holds in", "Does not hold:", "Undecided"))
    assert "1 of 3 layers are" not in found


def schema() -> dict:
    return json.loads((files("planescope.files") / "schemas" / "resets-2.json").read_text("utf-8"))


def test_the_json_follows_its_schema(lenet):
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(json.loads(lenet.to_json(), parse_constant=pytest.fail), schema())
    assert schema()["properties"]["cells"]["items"]["required"] == list(lenet.to_pandas().columns)


@pytest.mark.parametrize("form", ["json", "parquet"])
def test_saved_resets_are_loaded_again(lenet, tmp_path, form):
    lenet.save(tmp_path / f"resets.{form}")
    assert ps.Resets.load(tmp_path / f"resets.{form}") == lenet


def test_csv_has_a_row_a_cell(lenet, tmp_path):
    import pandas as pd

    lenet.save(tmp_path / "resets.csv")
    table = pd.read_csv(tmp_path / "resets.csv")
    # Pandas 2 reads numbers good to a unit in the last place.
    assert table["relative_drop"].tolist() == pytest.approx(
        lenet.to_pandas()["relative_drop"].tolist(), rel=1e-15
    )
    assert set(table["schema"]) == {"planescope.resets/2"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        pytest.param(None, "cannot be read", id="missing"),
        pytest.param("{", "holds no resets", id="no-json"),
        pytest.param("[]", "its schema is None", id="no-object"),
        pytest.param('{"schema": "planescope.resets/3"}', "this version .* reads", id="newer"),
        pytest.param('{"schema": "planescope.resets/2"}', "no whole resets", id="keys-missing"),
    ],
)
def test_what_is_no_resets_is_not_loaded(tmp_path, text, sentence):
    path = tmp_path / "resets.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ps.CheckpointError, match=sentence):
        ps.Resets.load(path)


def test_an_untrained_network_has_no_relative_drops():
    data = images()
    found = ps.reset(UsedTwice(), to={0: UsedTwice().state_dict()}, data=data, options=ALL)
    assert {cell.relative_drop for cell in found.cells} == {None}
    assert "is no better than chance" in found.notes[0]
    jsonschema.validate(json.loads(found.to_json(), parse_constant=pytest.fail), schema())
    assert found.shown("first", 0).endswith("%") or found.shown("first", 0).endswith("%)")


def test_outputs_that_are_no_numbers_give_no_loss_and_no_nan():
    network, data = build("lenet", seed=0), images(size=32)
    broken = {name: t * float("nan") for name, t in build("lenet", seed=1).state_dict().items()}
    found = ps.reset(network, to={"nan": broken}, data=data, options=ALL)
    assert {cell.cross_entropy for cell in found.cells} == {None}
    jsonschema.validate(json.loads(found.to_json(), parse_constant=pytest.fail), schema())


@pytest.mark.parametrize("factor", [1e3, 1e25])
def test_weights_that_overflow_give_what_they_give_the_plain_way(factor):
    # Infinity less infinity is no number, of which a library's fused activation would make 0.
    network, data = build("lenet", seed=0), images(size=32)
    large = {name: t * factor for name, t in build("lenet", seed=1).state_dict().items()}
    options = dataclasses.replace(ALL, layers="features.12", together=["features.7,features.10"])
    found = ps.reset(network, to={"large": large}, data=data, options=options)
    for row in found.rows:
        names = [f"{layer}.{part}" for layer in row.split(",") for part in ("weight", "bias")]
        right, top5, loss = plain_counts(network, names, large, data)
        (cell,) = found.at(row, "large")
        assert counts(cell) == (right, top5)
        assert cell.cross_entropy == (pytest.approx(loss, rel=1e-6) if np.isfinite(loss) else None)


class TakesMuch(nn.Module):
    """Asks for more memory than there is, where it gets more than one image."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(3 * 16 * 16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 1:
            torch.empty(1 << 50)
        return self.out(x.flatten(1))


def test_memory_that_runs_out_on_the_host_is_said():
    module = TakesMuch()
    with pytest.raises(ps.RunError, match="memory ran out; give a smaller --memory"):
        ps.reset(module, to={0: module.state_dict()}, data=images(), options=ALL)


def test_a_pixel_alone_is_its_own_average():
    pixels = torch.randn(5, 3, 1, 1)
    for module in (nn.AdaptiveAvgPool2d(7), nn.AdaptiveAvgPool2d((2, 3))):
        network = nn.Sequential(
            module, nn.Flatten(), nn.Linear(3 * module(pixels)[0, 0].numel(), 2)
        )
        with torch.inference_mode():
            cut, note = split(network, trace(network), Inputs.of(pixels))
            assert not note
            assert torch.equal(cut.finish(cut.begin(Inputs.of(pixels)), 0, {}), network(pixels))


class Stop(Exception):
    pass


def stopping_after(cells: int):
    names: list[str] = []

    def on_cell(done: int, total: int, name: str) -> None:
        if len(names) == cells:
            raise Stop
        names.append(name)

    return on_cell, names


@pytest.mark.parametrize("tolerance", [None, 0.05])
def test_broken_off_work_goes_on_where_it_was(tmp_path, tolerance):
    network, data = build("lenet", seed=0), images(600, size=32)
    snapshots = {seed: build("lenet", seed=seed).state_dict() for seed in (1, 2)}
    options = dataclasses.replace(ALL, tolerance=tolerance)
    on_cell, every = stopping_after(1000)
    whole = ps.reset(network, to=snapshots, data=data, options=options, on_cell=on_cell)
    keep = tmp_path / "kept"
    on_cell, names = stopping_after(7)
    again = {"data": data, "keep": keep, "options": options}
    with pytest.raises(Stop):
        ps.reset(network, to=snapshots, on_cell=on_cell, **again)
    assert len(names) == 7
    on_cell, names = stopping_after(1000)
    assert ps.reset(network, to=snapshots, on_cell=on_cell, **again) == whole
    assert names == every[7:]
    on_cell, names = stopping_after(0)
    assert ps.reset(network, to=snapshots, on_cell=on_cell, **again) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_kept_work_on_other_data_or_weights_is_not_taken(tmp_path):
    network, keep = build("lenet", seed=0), tmp_path / "kept"
    snapshot = build("lenet", seed=1).state_dict()

    def found(seed: int, weights: dict) -> ps.Resets:
        options = dataclasses.replace(ALL, layers="features.0")
        data = images(size=32, seed=seed)
        kept = ps.reset(network, to={1: weights}, data=data, keep=keep, options=options)
        assert kept == ps.reset(network, to={1: weights}, data=data, options=options)
        return kept

    others = {name: tensor * 2 for name, tensor in snapshot.items()}
    assert len({found(0, snapshot), found(1, snapshot), found(0, others)}) == 3
    assert len(json.loads(keep.read_text())["protocols"]) == 2


# A tally that claims 10^15 examples, of which it holds 8.
CLAIMING = {
    "p": {"a": {"examples": 10**15, "columns": {"right": {"bool": "ff"}}, "sums": {"loss": 0.0}}}
}
CLAIMING = {"schema": "planescope.resets-progress/2", "protocols": CLAIMING}


def test_a_tally_of_infinite_loss_is_refused(tmp_path):
    text = json.dumps(CLAIMING).replace("1000000000000000", "8")
    (tmp_path / "kept").write_text(text.replace("0.0", "1" + "0" * 400))
    with pytest.raises(ps.CheckpointError, match="cannot be read"):
        Progress(tmp_path / "kept", "p")


def test_a_tally_cannot_claim_more_examples_than_it_holds(tmp_path):
    (tmp_path / "kept").write_text(json.dumps(CLAIMING))
    with pytest.raises(ps.CheckpointError, match="a tally has more examples than it holds"):
        Progress(tmp_path / "kept", "p")


NOTED = '{"schema": "planescope.resets-progress/2", "protocols": {}, "notes": 3}'


@pytest.mark.parametrize("text", ["", "{}", '{"schema": "x"}', "[1]", "\0", NOTED])
def test_a_damaged_file_of_kept_work_is_named(tmp_path, text):
    keep = tmp_path / "kept"
    keep.write_text(text)
    with pytest.raises(ps.CheckpointError, match=r"kept: cannot be read .*; remove it"):
        ps.reset(UsedTwice(), to={0: UsedTwice().state_dict()}, data=images(), keep=keep)


def test_small_memory_gives_the_same_in_more_groups():
    network, data = build("lenet", seed=0), images(700, size=32)
    snapshots = {1: build("lenet", seed=1).state_dict()}
    names: list[str] = []
    # A quarter of it holds a batch of 256: no smaller batches, but one batch a group.
    options = dataclasses.replace(ALL, memory=4 * 256 * 4 * 6 * 32 * 32 * 4)
    assert ps.reset(
        network, to=snapshots, data=data, options=options, on_cell=lambda d, t, n: names.append(n)
    ) == ps.reset(network, to=snapshots, data=data, options=ALL)
    assert names.count("features.0") in (1, 2, 3)


def test_a_tolerance_ends_cells_early_with_bounds_that_hold():
    options = ps.ResetOptions(tolerance=0.04, devices=("cpu",), memory=40_000_000, seed=1)
    found = ps.reset(
        PARITY / "lenet-epoch-12.tar",
        to=SNAPSHOTS,
        network="lenet",
        data="mnist",
        data_path=PARITY,
        options=options,
    )
    expected = json.loads((PARITY / "expected.json").read_text())["reset_top1"]
    assert found.trained.examples == 1000
    assert min(cell.examples for cell in found.cells) < 600
    for cell in found.cells:
        true = expected[str(cell.snapshot).removeprefix("lenet-epoch-").removesuffix(".pt")]
        assert cell.high - cell.low <= 0.08
        assert cell.low <= true[cell.layer] <= cell.high
    assert "known to ±0.04" in found.notes[0]


def test_a_subset_is_drawn_by_its_seed():
    network, snapshot, data = (
        build("lenet", seed=0),
        build("lenet", seed=1).state_dict(),
        images(size=32),
    )

    def found(seed: int) -> ps.Resets:
        options = dataclasses.replace(ALL, subset=100, seed=seed, layers="features.0")
        return ps.reset(network, to={1: snapshot}, data=data, options=options)

    assert found(0) == found(0)
    assert found(0).trained.examples == 100
    assert found(0).trained.cross_entropy != found(1).trained.cross_entropy


def test_fresh_draws_have_their_spread_and_are_not_the_initialisation():
    options = ps.ResetOptions(draws=3, layers="features.0", devices=("cpu",))

    def found() -> ps.Resets:
        return ps.reset(
            PARITY / "lenet-epoch-12.tar",
            to=SNAPSHOTS[:1],
            network="lenet",
            data="mnist",
            data_path=PARITY,
            options=options,
        )

    resets = found()
    draws = resets.at("features.0", "rand")
    assert [cell.draw for cell in draws] == [0, 1, 2]
    assert len({cell.cross_entropy for cell in resets.cells}) == 4
    drops = [cell.relative_drop for cell in draws]
    assert resets.drop("features.0", "rand") == pytest.approx(
        (np.mean(drops), np.std(drops, ddof=1))
    )
    assert " ± " in resets.shown("features.0", "rand")
    assert resets == found()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        pytest.param({"layers": "feature.0"}, "'feature.0'.*features.0", id="layer"),
        pytest.param({"layers": "("}, "broken regular expression", id="expression"),
        pytest.param({"together": ["features.0"]}, "two layers or more", id="one-together"),
        pytest.param({"together": ["features.0,f"]}, "no layer is called 'f'", id="together"),
        pytest.param({"subset": 301}, "noise has 300 examples", id="subset"),
        pytest.param({"devices": ("gpu",)}, "device 'gpu' cannot be used", id="device"),
        pytest.param({"draws": 1}, "nobody knows the initialiser", id="draws"),
        pytest.param({"kinds": "konv"}, "unknown kind 'konv'", id="kind"),
    ],
)
def test_options_that_cannot_be_are_refused(options, sentence):
    network = build("lenet", seed=0)
    with pytest.raises(ps.UsageError, match=sentence):
        ps.reset(
            network,
            to={0: network.state_dict()},
            data=images(size=32),
            options=ps.ResetOptions(**options),
        )


@pytest.mark.parametrize(
    "options",
    [
        {"subset": 0}, {"draws": -1}, {"tolerance": 0.0}, {"tolerance": 1.0}, {"memory": 0},
        {"split": "test"}, {"precision": "64"}, {"seed": -1}, {"devices": ()},
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(options):
    with pytest.raises(ps.UsageError, match=r"must|unknown|give"):
        ps.ResetOptions(**options)


@pytest.mark.parametrize(
    ("snapshot", "sentence"),
    [
        pytest.param(
            build("lenet", width=2, seed=1).state_dict(),
            "snapshot 0: is of another network: features.0 has shape 12×3×3×3 there, 6×3×3×3",
            id="wider",
        ),
        pytest.param({"features.0.weight": torch.zeros(6, 3, 3, 3)}, "it has no", id="too-few"),
    ],
)
def test_snapshots_of_another_network_are_refused(snapshot, sentence):
    with pytest.raises(ps.CheckpointError, match=sentence):
        ps.reset(build("lenet", seed=0), to={0: snapshot}, data=images(size=32))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        pytest.param(
            images(size=32, channels=1), "does not take the images of .*, 1×32×32 ", id="channels"
        ),
        pytest.param(images(size=32, classes=7), "has 7 classes, but .*10", id="classes"),
    ],
)
def test_data_of_another_network_are_refused(data, sentence):
    network = build("lenet", seed=0)
    with pytest.raises(ps.UsageError, match=sentence):
        ps.reset(network, to={0: network.state_dict()}, data=data)


def test_the_map_has_a_number_a_cell_and_marks_noise(lenet):
    axes, strip, _ = figures.heatmap(lenet).axes
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert len(texts) == 24
    assert (texts[0, 0], texts[2, 2]) == ("89", "(0)")
    assert [text.get_text() for text in strip.texts] == [
        "1.00",
        "1.00",
        "0.88",
        "0.81",
        "0.92",
        "1.00",
    ]
    assert axes.get_images()[0].get_array()[0, 0] == pytest.approx(88.78, abs=0.01)


def test_a_map_of_very_many_snapshots_has_dots_for_numbers(lenet):
    cells = tuple(
        dataclasses.replace(cell, snapshot=epoch)
        for cell in lenet.cells[::4]
        for epoch in range(80)
    )
    many = dataclasses.replace(
        lenet, cells=tuple(dataclasses.replace(c, significant=c.snapshot < 40) for c in cells)
    )
    axes = figures.heatmap(many, width="column").axes[0]
    assert (len(axes.texts), len(axes.lines)) == (0, 6 * 40)


def test_a_map_of_an_untrained_network_has_accuracies():
    found = ps.reset(UsedTwice(), to={0: UsedTwice().state_dict()}, data=images(), options=ALL)
    axes, _, scale = figures.heatmap(found, width="column").axes
    assert scale.get_ylabel() == "accuracy, %"
    assert axes.get_images()[0].get_array()[0, 0] == pytest.approx(100 * found.cells[0].top1)


def named(lenet, rows: list[str], snapshots: list, width: str) -> tuple[list[str], list[str]]:
    """Names of rows and columns as a map shows them."""
    cells = tuple(
        dataclasses.replace(lenet.cells[0], layer=row, snapshot=snapshot)
        for row in rows
        for snapshot in snapshots
    )
    figure = figures.heatmap(dataclasses.replace(lenet, cells=cells), width=width)
    axes = figure.axes[0]
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert axes.get_xticklabels()[0].get_rotation() or all(
        left.x1 < right.x0 for left, right in itertools.pairwise(boxes)
    )
    return tuple(
        [x.get_text() for x in t] for t in (axes.get_yticklabels(), axes.get_xticklabels())
    )


def test_names_of_a_map_are_told_apart_and_do_not_overlap(lenet):
    rows = [f"backbone.encoder.layer{i}.0.convolution.parametrised" for i in (1, 2)]
    epochs = [*range(10), *range(10, 200, 10), "rand"]
    shown, columns = named(lenet, rows, epochs, "column")
    assert shown == ["….layer1.…", "….layer2.…"]
    assert (columns[0], columns[-1]) == ("0", "rand")
    assert 2 < len(columns) < len(epochs)
    assert named(lenet, ["a", "b"], epochs[:10], "page")[1] == list("0123456789")


class Scaled(nn.Module):
    """Layers of two kinds of their own: one of factors, one that a forward computes."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 3, 3, 3))
        self.factors = Factors()

    def forward(self, x):
        return self.factors(nn.functional.conv2d(x, self.kernel * 2).relu().mean((2, 3)))


class Factors(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = (nn.Parameter(torch.randn(*s)) for s in ((6, 3), (3, 10)))

    def forward(self, x):
        return x @ self.down @ self.up


def test_layers_of_ones_own_classes_are_put_back_with_all_that_they_are_made_of():
    network, snapshot, data = Scaled(), Scaled().state_dict(), images()
    options = ps.ResetOptions(kinds="all")
    found = ps.reset(network, to={0: snapshot}, data=data, options=options)
    parts = {"kernel@conv2d": ["kernel"], "factors": ["factors.down", "factors.up"]}
    assert list(found.rows) == list(parts)
    for layer, names in parts.items():
        (cell,) = found.at(layer, 0)
        assert counts(cell) == plain_counts(network, names, snapshot, data)[:2]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_network_with_the_older_weight_norm_is_copied_after_a_step():
    network = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 10, 3)), nn.ReLU(), nn.Flatten())
    network = nn.Sequential(network, nn.Linear(1960, 10))
    snapshot = {name: tensor.clone() + 1 for name, tensor in network.state_dict().items()}
    network(torch.randn(2, 3, 16, 16)).sum().backward()
    found = ps.reset(network, to={0: snapshot}, data=images())
    assert list(found.rows) == ["0.0"]
