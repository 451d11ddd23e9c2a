"""Resets of anybody's network on anybody's batches: as the plain loop has them."""

from __future__ import annotations

import copy
import functools
import math
import random
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import prune
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import planescope as ps
from planescope.criticality.definition import Critical, loss_of_examples
from planescope.criticality.resets import forecast
from planescope.networks.build import build
from planescope.networks.graph.symbols import _Tracer


class Net(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.c1, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.c2, self.fc = nn.Conv2d(8, 16, 3, stride=2), nn.Linear(16, classes)

    def forward(self, x):
        x = torch.relu(self.bn(self.c1(x)))
        return self.fc(torch.relu(self.c2(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def case():
    """A network that was just trained, gradients and all; its beginning; inputs and labels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Net()
        start = copy.deepcopy(network.state_dict())
        y = torch.randint(0, 10, (300,))
        x = torch.randn(300, 3, 12, 12) + 0.7 * torch.randn(10, 3, 1, 1)[y]
        optimiser = torch.optim.Adam(network.parameters(), 1e-2)
        for _ in range(20):
            optimiser.zero_grad()
            cross_entropy(network(x), y).backward()
            optimiser.step()
    return network, start, x, y


def answers(network: nn.Module, start: dict, layer: str, x: torch.Tensor) -> torch.Tensor:
    own = copy.deepcopy(network).eval()
    state = own.state_dict() | {n: t for n, t in start.items() if n.startswith(f"{layer}.")}
    own.load_state_dict(state)
    with torch.no_grad():
        return torch.cat([own(part) for part in x.split(64)])


def test_cells_are_those_of_the_plain_loop_with_and_without_labels(case):
    network, start, x, y = case
    found = ps.reset(network, to={"init": start}, data=(x, y), kinds="all")
    blind = ps.reset(network, to={"init": start}, data=x, kinds="all")
    whole = answers(network, start, "none", x)
    p, chance = whole.softmax(1).double(), y.bincount().max().item() / len(y)
    assert found.trained.value == float((whole.argmax(1) == y).sum()) / len(y)
    assert (blind.trained.value, blind.metric, blind.chance) == (None, None, 0.1)
    for cell, other in zip(found.cells, blind.cells, strict=True):
        changed = answers(network, start, cell.layer, x)
        best = changed.argmax(1)
        assert cell.value == float((best == y).sum()) / len(y)
        a = found.trained.value
        assert cell.loss == pytest.approx((a - cell.value) / (a - chance))
        for one in (cell, other):
            dropped = 1 - p.gather(1, best[:, None]).sum() / p.amax(1).sum()
            assert one.disagreement == pytest.approx(
                float((best != whole.argmax(1)).float().mean())
            )
            assert one.expected_drop == pytest.approx(float(dropped), rel=1e-5)
            divergence = (p * (p.log() - changed.double().log_softmax(1))).sum(1).mean()
            assert one.divergence == pytest.approx(float(divergence), rel=1e-4)
            moved = (changed - whole).norm() / whole.norm()
            assert one.relative_l2 == pytest.approx(float(moved), rel=1e-5)
        sure = float(p.amax(1).mean())
        assert other.expected_loss == pytest.approx(float(dropped) / (1 - 0.1 / sure), rel=1e-5)
        assert other.critical is None


class Stream(IterableDataset):
    def __init__(self, x, y):
        self.parts = list(zip(x, y, strict=True))

    def __iter__(self):
        return iter(self.parts)


class Module:
    """What a LightningDataModule has."""

    def __init__(self, x, y):
        self.pair, self.stage = (x, y), None

    def setup(self, stage):
        self.stage = stage

    def val_dataloader(self):
        assert self.stage == "fit"
        return DataLoader(TensorDataset(*self.pair), 50)


FORMS = {
    "loader": lambda x, y: DataLoader(TensorDataset(x, y), 64, shuffle=True),
    "dataset": lambda x, y: TensorDataset(x, y),
    "tensors": lambda x, y: (x, y),
    "arrays": lambda x, y: (x.numpy(), y.numpy()),
    "named-tensors": lambda x, y: {"x": x, "labels": y},
    "once": lambda x, y: iter([(x[:100], y[:100]), [x[100:], y[100:]]]),
    "empty-batch": lambda x, y: [(x, y), (x[:0], y[:0])],
    "dictionaries": lambda x, y: [{"x": x, "label": y, "id": list(range(300))}],
    "stream": Stream,
    "lightning": Module,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_all_forms_of_the_same_examples_give_the_same(case, form):
    network, start, x, y = case
    expected = ps.reset(network, to={"init": start}, data=[(x, y)])
    found = ps.reset(network, to={"init": start}, data=form(x, y))
    assert [c.value for c in found.cells] == [c.value for c in expected.cells]
    assert found.trained.examples == 300


def test_nothing_of_the_network_or_of_random_states_is_changed(case):
    network, start, x, y = case
    network.train()
    network.bn.eval()
    handle = network.c1.register_forward_hook(lambda *_: None)
    before = {n: t.clone() for n, t in network.state_dict().items()}
    grads = {n: p.grad.clone() for n, p in network.named_parameters()}
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(x, y), 64, shuffle=True, generator=generator)
    states = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002
    own = generator.get_state()
    ps.reset(network, to="fresh", data=loader)
    with pytest.raises(ZeroDivisionError):
        ps.reset(network, to={"init": start}, data=loader, metric=lambda *_: 1 / 0)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002
    assert torch.equal(own, generator.get_state())
    assert (network.training, network.bn.training) == (True, False)
    assert list(network.c1._forward_hooks) == [handle.id]
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())
    assert all(torch.equal(p.grad, grads[n]) for n, p in network.named_parameters())
    handle.remove()


def just_pruned(network):
    prune.l1_unstructured(network.c2, "weight", 0.5)


def with_older_norm(network):
    nn.utils.weight_norm(network.c2)


def parametrised(network):
    nn.utils.parametrizations.weight_norm(network.c2)


@pytest.mark.parametrize("make", [just_pruned, with_older_norm, parametrised])
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_networks_that_compute_their_weights_are_reset_right_after_a_step(case, make):
    _, _, x, y = case
    torch.manual_seed(1)
    network, other = Net(), Net()
    for one in (network, other):
        make(one)
    cross_entropy(network(x), y).backward()
    found = ps.reset(network, to={"other": other.state_dict()}, data=(x, y))
    changed = copy.deepcopy(other).eval() if make is parametrised else None
    for cell in found.cells:
        own = Net()
        make(own)
        state = network.state_dict() | {
            n: t for n, t in other.state_dict().items() if n.startswith(f"{cell.layer}.")
        }
        own.load_state_dict(state)
        with torch.no_grad():
            right = own.eval()(x).argmax(1) == y
        assert cell.value == float(right.sum()) / len(y)
    assert changed is None or not changed.training


def test_a_path_goes_from_the_start_to_the_trained_weights(case):
    network, start, x, y = case
    found = ps.reset(network, to={"init": start}, path=4, data=(x, y))
    ends = ps.reset(network, to={"init": start}, data=(x, y))
    assert found.snapshots == tuple(f"path:{k}/4" for k in range(5))
    for row in found.rows:
        values = [found.at(row, name)[0].value for name in found.snapshots]
        assert (values[0], values[-1]) == (ends.at(row, "init")[0].value, found.trained.value)
        least = next(k / 4 for k, value in enumerate(values) if value >= found.trained.low)
        assert found.needed_steps[row] == least


def test_fresh_weights_are_drawn_by_the_module_and_by_the_seed(case):
    network, _, x, y = case
    found = [ps.reset(network, to="fresh", draws=2, data=(x, y), seed=s) for s in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert [cell.draw for cell in found[0].at("c1", "fresh")] == [0, 1]

    class Odd(nn.Conv2d):
        reset_parameters = None

    odd = Net()
    odd.c2 = nn.Conv2d(8, 16, 3, stride=2)
    odd.c2.__class__ = Odd
    (note,) = (n for n in ps.reset(odd, to="fresh", data=(x, y)).notes if "left out" in n)
    assert note == "fresh: left out c2, which is not drawn by a reset_parameters"


def test_layers_of_another_shape_are_left_out_by_name(case):
    network, _, x, y = case
    found = ps.reset(network, to={"pretrained": Net(classes=20)}, data=(x, y), kinds="all")
    assert found.rows == ("c1", "c2")
    assert "pretrained: left out fc, which is missing or of another shape there" in found.notes


def test_a_metric_of_examples_has_an_interval_and_one_of_batches_has_none(case):
    network, start, x, y = case

    def right(outputs, batch):
        return (outputs.argmax(1) == batch[1]).float()

    chance = y.bincount().max().item() / len(y)
    by_example = ps.reset(network, to={"i": start}, data=(x, y), metric=right, chance=chance)
    plain = ps.reset(network, to={"i": start}, data=(x, y))
    for one, other in zip(by_example.cells, plain.cells, strict=True):
        assert (one.value, one.critical) == (pytest.approx(other.value), other.critical)
        assert one.loss_low == pytest.approx(other.loss_low)
    of_batch = ps.reset(
        network, to={"i": start}, data=(x, y), metric=lambda o, b: right(o, b).mean(), chance=chance
    )
    for one, other in zip(of_batch.cells, plain.cells, strict=True):
        assert one.value == pytest.approx(other.value)
        assert (one.low, one.critical, one.significant) == (None, None, None)


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 3, padding=1)

    def forward(self, pixel_values, scale=None):
        out = self.b(torch.relu(self.a(pixel_values)))
        return {"out": out * (1 if scale is None else scale), "features": pixel_values}


def test_dense_outputs_in_dictionaries_and_options_of_forward():
    torch.manual_seed(0)
    network, other = Dense(), Dense()
    x, y = torch.randn(20, 3, 6, 6), torch.randint(0, 5, (20, 6, 6))
    scale = torch.full((20, 1, 1, 1), -1.0)
    batches = [{"pixel_values": x, "labels": y, "scale": scale}]
    found = ps.reset(network, to={"other": other}, data=batches)
    with torch.no_grad():
        right = network(x, scale)["out"].argmax(1) == y
        assert found.trained.value == pytest.approx(float(right.double().mean()))
        network.a.load_state_dict(other.a.state_dict())
        right = network(x, scale)["out"].argmax(1) == y
        assert found.cells[0].value == pytest.approx(float(right.double().mean()))
    assert found.chance == pytest.approx(y.flatten().bincount().max().item() / y.numel())
    assert found.positions == y.numel()
    share = f"{found.trained.value:.1%} of positions right, 720 in 20 examples (mean over examples"
    assert f"trained: {share}" in str(found)
    assert any(note.startswith("outputs of 5×6×6 are taken for 5 classes") for note in found.notes)
    blind = ps.reset(network, to={"other": other}, data=x)
    assert "trained: 20 examples of 720 positions without labels" in str(blind)


def pictures_of_two_sizes():
    """Batches whose examples have 16 and 4 positions, and a network for them."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 3, 1))
    large, small = torch.randn(12, 3, 4, 4), torch.randn(20, 3, 2, 2)
    with torch.no_grad():
        labels = [network(x).argmax(1) for x in (large, small)]
    for y in labels:  # some answers are wrong, and labels of small pictures are of other classes
        y[:, 0, 0] = 0
    labels[1][:, 1] = 2
    return network, [(large, labels[0]), (small, labels[1])]


def test_an_example_counts_once_however_many_positions_it_has():
    network, batches = pictures_of_two_sizes()
    found = ps.reset(network, to="fresh", data=batches, kinds="all")
    with torch.no_grad():
        shares = [
            share
            for x, y in batches
            for share in (network(x).argmax(1) == y).double().flatten(1).mean(1).tolist()
        ]
    assert found.trained.value == pytest.approx(sum(shares) / 32)
    constant = [sum(float((y == c).double().mean()) * len(y) for _, y in batches) for c in range(3)]
    assert found.chance == pytest.approx(max(constant) / 32)
    assert found.positions == 12 * 16 + 20 * 4
    cost = ps.sensitivity(network, data=batches, ways=["bits:3"], kinds="all")
    assert (cost.trained, cost.chance) == (found.trained.value, pytest.approx(found.chance))
    assert any("shares are means over the positions" in note for note in cost.notes)
    plan = ps.plan(network, data=batches, size=0.9, examples=32)
    assert "shares are means over the positions" in " ".join(plan.notes)


def test_regression_wants_a_metric_and_tells_how_far_outputs_move():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    x, y = torch.randn(50, 4), torch.randn(50, 1)
    with pytest.raises(ps.UsageError, match="give metric="):
        ps.reset(network, to="fresh", data=(x, y))
    found = ps.reset(
        network, to="fresh", data=(x, y), metric=lambda o, b: -(o - b[1]).square().mean(1)
    )
    cell = found.cells[0]
    assert cell.value < 0 < cell.relative_l2
    assert (cell.disagreement, cell.expected_drop, cell.critical) == (None, None, None)


SENTENCES = [
    pytest.param({"data": None, "metric": len}, "a metric", id="none"),
    pytest.param({}, "give data=", id="nothing"),
    pytest.param({"data": [(1, 2, 3)]}, "give unpack=", id="three-parts"),
    pytest.param({"data": [{"image": 1}]}, "forward takes x; give unpack=", id="names"),
    pytest.param({"data": []}, "gives no batch", id="empty"),
    pytest.param({"data": [torch.zeros(0, 3, 9, 9)]}, "gives no batch", id="no-example"),
    pytest.param({"data": 3}, "cannot take batches from a int", id="no-data"),
    pytest.param({"data": torch.zeros(2, 3, 9, 9).double()}, "as they come", id="dtype"),
    pytest.param({"data": torch.zeros(2, 1, 9, 9)}, "as they come", id="channels"),
    pytest.param({"to": None, "data": torch.zeros(2, 3, 9, 9)}, "nothing to put", id="no-to"),
    pytest.param({"data": torch.zeros(2, 3, 9, 9), "path": 0}, "path of 1 step", id="path"),
    pytest.param({"data": torch.zeros(2, 3, 9, 9), "keep": "kept"}, "by name", id="keep"),
    pytest.param({"data": torch.zeros(2, 3, 9, 9), "tolerance": 0.1}, "by name", id="tolerance"),
    pytest.param({"data": torch.zeros(2, 3, 9, 9), "output": "logits"}, "output=", id="output"),
    pytest.param(
        {"data": (torch.zeros(2, 3, 9, 9), torch.tensor([0, 12]))},
        "labels from 0 to 12",
        id="label",
    ),
]


@pytest.mark.parametrize(("given", "sentence"), SENTENCES)
def test_what_cannot_be_is_said_in_a_sentence(given, sentence):
    network = Net()
    with pytest.raises(ps.UsageError, match=sentence):
        ps.reset(network, **{"to": {"init": network.state_dict()}, **given})


def test_an_answer_that_is_no_number_is_wrong_and_disagrees(case):
    network, start, x, y = case
    broken = {n: t * math.nan if t.is_floating_point() else t for n, t in start.items()}
    cell = ps.reset(network, to={"nan": broken}, data=(x, y)).cells[0]
    assert (cell.value, cell.disagreement, cell.expected_drop, cell.divergence) == (0, 1, 1, None)


def test_critical_is_where_the_whole_interval_lies():
    trained = np.repeat([1.0, 0.0], [90, 10])  # a = 0.9; chance 0.1
    for kept, verdict in ((30, "yes"), (82, "undecided"), (90, "undecided")):
        changed = np.repeat([1.0, 0.0], [kept, 100 - kept])
        found = loss_of_examples(trained, changed, 0.1)
        assert found.value == pytest.approx((90 - kept) / 80)
        assert found.low <= found.value <= found.high
        if kept < 90:
            assert found.critical == Critical(verdict)
    same = loss_of_examples(np.tile(trained, 10), np.tile(trained, 10), 0.1)
    assert same.value == same.low == 0 < same.high < 0.01  # a loss that none had may be there
    assert same.critical == Critical.NO
    few = loss_of_examples(trained[:12], trained[:12], 0.1)
    assert few.critical == Critical.UNDECIDED


OWN = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

def network(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))

def parts():
    rng = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(90, 3, 8, 8, generator=rng) * 7 + 3, torch.arange(90) % 3)

def loader(): return DataLoader(parts(), batch_size=32)
def needs(x): return x
"""


def test_the_command_takes_a_callable_that_returns_a_loader(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    made: dict = {}
    exec(OWN, made)  # noqa: S102
    for name in ("a", "b"):
        torch.save(made["network"]().state_dict(), tmp_path / f"{name}.pt")
    network = made["network"]()
    network.load_state_dict(torch.load(tmp_path / "a.pt", weights_only=True))
    x, y = made["parts"]().tensors
    right = int((network.eval()(x).argmax(1) == y).sum())

    def run(data: str) -> subprocess.CompletedProcess:
        args = ("--trained", "a.pt", "--snapshot", "b.pt", "--network", "own:network")
        command = [sys.executable, "-m", "planescope", "reset", *args, "--data", data]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    for data in ("own:loader", "own:parts"):
        done = run(data)
        assert done.returncode == 0, done.stderr
        assert f"trained: {right / 90:.1%} of 90 examples right" in done.stdout
        assert "was it trained with other preprocessing?" in " ".join(done.stdout.split())
    done = run("own:needs")
    assert done.returncode == 2
    assert "is called without arguments, but wants some" in done.stderr


def test_a_start_of_before_the_network_was_pruned_or_normed_puts_whole_weights_back(case):
    network, start, x, y = case
    plain = ps.reset(network, to={"init": start}, data=(x, y))
    for make in (just_pruned, parametrised):
        other = copy.deepcopy(network)
        make(other)
        found = ps.reset(other, to={"init": start}, data=(x, y))
        assert "c2" in found.rows
        if make is parametrised:  # the same network but for rounding
            assert [c.value for c in found.cells] == [c.value for c in plain.cells]
        fresh = ps.reset(other, to="fresh", data=(x, y))
        assert "c2" in fresh.rows


def test_a_start_without_the_names_of_a_wrapper_or_with_another_head_fits(case):
    network, start, x, y = case

    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network

        def forward(self, x):
            return self.net(x)

    found = ps.reset(Wrapper(), to={"init": start}, data=(x, y), kinds="all")
    whole = ps.reset(network, to={"init": start}, data=(x, y), kinds="all")
    assert [c.value for c in found.cells] == [c.value for c in whole.cells]
    headless = {n: t for n, t in start.items() if not n.startswith("fc.")}
    headless["head.weight"] = start["fc.weight"]
    found = ps.reset(network, to={"init": headless}, data=(x, y), kinds="all")
    assert "fc" not in found.rows
    assert "init: left out fc, which is missing or of another shape there" in found.notes


def test_a_forecast_tells_cells_and_evaluates_none(case):
    network, start, x, y = case
    arguments = {"to": {"init": start}, "data": (x, y), "groups": "c1,c2"}
    told = forecast(network, **arguments)
    done = ps.reset(network, **arguments)
    assert (told.cells, told.examples) == (len(done.cells), len(y))
    assert told.layers == len(done.rows) == 3
    assert 0 < told.pass_seconds < told.at_most_seconds


def test_groups_are_names_blocks_or_patterns_and_their_layers_are_told(case):
    network, start, x, y = case
    whole = nn.Sequential(network)
    init = {f"0.{name}": tensor for name, tensor in start.items()}
    found = ps.reset(whole, to={"init": init}, data=(x, y), groups=["0", r"0\.c.", "0.c1, 0.c2"])
    assert found.rows[2:] == ("0", r"0\.c.", "0.c1,0.c2")
    block, pattern, names = (found.at(row, "init")[0].value for row in found.rows[2:])
    assert pattern == names == answers_of(network, start, ("c1.", "c2."), x, y)
    assert block == answers_of(network, start, ("c1.", "c2.", "fc."), x, y)
    assert "0 is 0.c1, 0.c2, 0.fc, put back together" in found.notes
    assert "of 5 rows" in found.verdict
    for wrong, sentence in (("0.c1", "give two layers or more"), ("c", "no layer is called 'c'")):
        with pytest.raises(ps.UsageError, match=sentence):
            ps.reset(whole, to={"init": init}, data=(x, y), groups=[wrong])


def answers_of(network, start, beginnings, x, y):
    own = copy.deepcopy(network).eval()
    own.load_state_dict(
        own.state_dict() | {n: t for n, t in start.items() if n.startswith(beginnings)}
    )
    with torch.no_grad():
        return float((own(x).argmax(1) == y).sum()) / len(y)


def test_a_result_prints_what_it_is_and_names_layers_that_change_nothing(case):
    network, start, x, y = case
    whole = copy.deepcopy(network)
    whole.aux = nn.Conv2d(3, 4, 3)
    other = Net()
    other.aux = nn.Conv2d(3, 4, 3)
    other.load_state_dict({**other.state_dict(), **start})
    found = ps.reset(whole, to={"init": other}, data=(x, y))
    text = str(found)
    assert text.splitlines()[0].split() == ["layer", "critical", "init"]
    assert f"trained: {found.trained.value:.1%} of 300 examples right" in text
    assert "Table: relative drop in %, in parentheses within noise. " in text
    assert "not reset, for forward never calls it, nor reads its weight: aux" in text
    assert "no output changes" not in str(ps.reset(network, to={"init": start}, data=(x, y)))


def test_a_layer_that_training_alone_calls_is_named_as_one_that_changes_nothing(case):
    class Aided(Net):
        def forward(self, x):
            return super().forward(x) + (self.aux(x).mean() if self.training else 0)

    _, start, x, y = case
    networks = Aided(), Aided()
    for network in networks:
        network.aux = nn.Conv2d(3, 4, 3)
        network.load_state_dict(start, strict=False)
    text = str(ps.reset(networks[0], to={"init": networks[1]}, data=(x, y)))
    assert "aux: evaluation does not reach" in text


def test_a_break_in_the_midst_leaves_everything_as_it_was(case):
    network, start, x, y = case
    network.train()
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()

    def broken():
        torch.rand(3)
        yield x[:100], y[:100]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ps.reset(network, to={"init": start}, data=broken())
    assert network.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())


def test_a_callable_that_fails_or_gives_nothing_is_told_in_a_sentence(case, tmp_path, monkeypatch):
    network, start, _, _ = case
    (tmp_path / "failing.py").write_text("def disk(): raise OSError('gone')\ndef nothing(): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    sentences = (
        ("disk", "'failing:disk' fails in code of its own, .*failing.py, line 1: OSError: gone"),
        ("nothing", "'failing:nothing' returns nothing; it must return a DataLoader"),
    )
    for name, sentence in sentences:
        with pytest.raises(ps.UsageError, match=sentence):
            ps.reset(network, to={"init": start}, data=f"failing:{name}")
    with pytest.raises(ps.UsageError, match="network 'failing:disk' fails in code of its own"):
        build("failing:disk")


def in_shards(network):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    return fully_shard(network, mesh=mesh)


def with_a_compiled_part(network):
    network.c2 = torch.compile(network.c2, backend="eager")
    return network


def with_a_hook_that_nobody_copies(network):
    lock = threading.Lock()
    network.c2.register_forward_hook(lambda *_: lock.locked() and None)
    network.register_forward_pre_hook(functools.partial(print, lock))
    return network


def with_checkpoints_of_activations(network):
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    network.c1 = checkpoint_wrapper(network.c1)
    return network


def averaged(network):
    return torch.optim.swa_utils.AveragedModel(network)


CHANGES = [
    in_shards,
    with_a_compiled_part,
    with_a_hook_that_nobody_copies,
    with_checkpoints_of_activations,
    averaged,
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_training_does_to_a_network_changes_no_cell(case, change, tmp_path):
    network, start, x, y = case
    plain = ps.reset(network, to={"init": start}, data=(x, y))
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/m", rank=0, world_size=1
    )
    try:
        changed = change(copy.deepcopy(network))
        kind = type(changed)
        found = ps.reset(changed, to={"init": start}, data=(x, y))
        assert type(changed) is kind
    finally:
        torch.distributed.destroy_process_group()
    assert [(c.layer, c.value) for c in found.cells] == [(c.layer, c.value) for c in plain.cells]


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_training_does_to_a_network_changes_neither_plan_nor_repair(case, change, tmp_path):
    network, _, x, y = case
    less = copy.deepcopy(network)
    with torch.no_grad():
        less.c2.weight *= less.c2.weight.abs() > less.c2.weight.abs().median()
    plain = ps.plan(network, data=(x, y), size=0.5, examples=100)
    mended = ps.repair(less, network, data=x, examples=100)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/m", rank=0, world_size=1
    )
    try:
        changed = change(copy.deepcopy(network))
        found = ps.plan(changed, data=(x, y), size=0.5, examples=100)
        again = ps.repair(change(less), changed, data=x, examples=100)
        with torch.no_grad():
            given = found.module.eval()(x), again.module.eval()(x)
    finally:
        torch.distributed.destroy_process_group()
    assert (found.rivals, found.layers) == (plain.rivals, plain.layers)
    assert (again.after, again.layers) == (mended.after, mended.layers)
    with torch.no_grad():
        assert torch.equal(given[0], plain.module.eval()(x))
        assert torch.equal(given[1], mended.module.eval()(x))
    whole = change not in (in_shards, with_a_hook_that_nobody_copies)
    assert any("copy.deepcopy does not take" in note for note in found.notes) is not whole


def test_a_start_with_the_names_of_a_compiled_part_fits(case):
    network, start, x, y = case
    other = Net()
    other.load_state_dict(start)
    other.c1 = torch.compile(other.c1)
    expected = ps.reset(network, to={"init": start}, data=(x, y))
    for given in (other, other.state_dict()):
        assert ps.reset(network, to={"init": given}, data=(x, y)) == expected


CALLS = {
    "reset": lambda m, x, y: ps.reset(m, to="fresh", data=(x, y)),
    "sensitivity": lambda m, x, y: ps.sensitivity(m, data=(x, y), ways=["bits:3"]),
    "plan": lambda m, x, y: ps.plan(m, data=x, size=0.5, examples=60),
    "plan-filters": lambda m, x, y: ps.plan(m, data=x, size=0.9, examples=60, way="filters"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_graph_is_traced_once_a_call(case, call, monkeypatch):
    network, _, x, y = case
    plain, traced = _Tracer.trace, []

    def counted(tracer, root, *args, **options):
        traced.append(type(root))
        return plain(tracer, root, *args, **options)

    monkeypatch.setattr(_Tracer, "trace", counted)
    call(network, x, y)
    assert traced == [Net]


class Shifted(Net):
    """A network whose forward makes a tensor of its own."""

    def forward(self, x):
        return super().forward(x + torch.linspace(-1, 1, 12))


def test_what_forward_makes_is_remembered_with_the_graph(case):
    _, _, x, y = case
    torch.manual_seed(0)
    network, other = Shifted(), Shifted()
    found = ps.reset(network, to={"other": other}, data=(x, y), kinds="all")
    for cell in found.cells:
        assert cell.value == answers_of(network, other.state_dict(), (f"{cell.layer}.",), x, y)
    assert not any("cannot be run by parts" in note for note in found.notes)


class Keeping(nn.Conv2d):
    """A layer with more in its state dict than tensors."""

    def get_extra_state(self):
        return {"calls": 3}

    def set_extra_state(self, state):
        assert state == {"calls": 3}


def test_extra_state_of_a_module_is_left_where_it_is(case):
    _, _, x, y = case
    network = nn.Sequential(Keeping(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 10))
    start = copy.deepcopy(network.state_dict())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += torch.randn_like(parameter)
    found = ps.reset(network, data=(x, y), to={"init": start}, kinds="all")
    assert [cell.layer for cell in found.cells] == ["0", "3"]
    for cell in found.cells:
        own = copy.deepcopy(network)
        own.load_state_dict(
            own.state_dict() | {n: t for n, t in start.items() if n.startswith(cell.layer)}
        )
        with torch.no_grad():
            assert cell.value == pytest.approx((own(x).argmax(1) == y).double().mean().item())


def test_a_quantised_network_is_refused_in_a_sentence(case):
    _, _, x, y = case
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 10))
    start = network.state_dict()
    packed = torch.ao.quantization.quantize_dynamic(network, {nn.Linear})
    sentence = "3 is quantised .*: its weights are packed, .*; give the network before"
    with pytest.raises(ps.UsageError, match=sentence):
        ps.reset(packed, data=(x, y), to={"init": start})


def test_layers_that_only_the_start_has_are_told(case):
    network, start, x, y = case
    deeper = start | {"c3.weight": torch.zeros(16, 16, 3, 3), "c3.bias": torch.zeros(16)}
    deeper |= {"c1.scale": torch.ones(8), "temperature": torch.ones(())}
    plain = ps.reset(network, to={"deeper": start}, data=(x, y), kinds="all")
    told = "deeper: left out c3, c1.scale, temperature, which the trained network has not; is it"
    for given, rows in ((deeper, ("c1", "c2", "fc")), (deeper | other_head(), ("c1", "c2"))):
        found = ps.reset(network, to={"deeper": given}, data=(x, y), kinds="all")
        assert any(note.startswith(told) for note in found.notes)
        assert found.rows == rows
        assert [c.value for c in found.cells] == [c.value for c in plain.cells][: len(rows)]


def other_head():
    return {"fc.weight": torch.zeros(20, 16), "fc.bias": torch.zeros(20)}


def test_a_checkpoint_of_a_larger_network_is_refused(case, tmp_path):
    network, start, x, y = case
    torch.save(network.state_dict() | {"c3.weight": torch.zeros(2, 3)}, tmp_path / "larger.pt")
    with pytest.raises(ps.CheckpointError, match="it has c3 of shape 2×3, which the trained one"):
        ps.reset(tmp_path / "larger.pt", to={"init": start}, data=(x, y), network=network)
