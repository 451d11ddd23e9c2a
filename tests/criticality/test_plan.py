"""What a plan takes, what it is held against, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import planescope as ps
from planescope.criticality.plan.allocation import (
    global_filters,
    global_magnitude,
    in_order,
    lamp,
    lamp_filters,
    uniform_bits,
    uniform_filters,
    uniform_pruning,
    uniform_rank,
)

WEIGHTS = {"a": np.array([[1.0, 2.0, 3.0, 4.0]]), "b": np.array([[0.5, 6.0], [7.0, 8.0]])}


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made = nn.Sequential(
            nn.Conv2d(2, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5),
        ).train()  # fmt: skip
        with torch.no_grad():
            made[6].weight.mul_(20)
            made(draws(100, 2, 8, 8))
    return made.eval()


@pytest.mark.parametrize(
    ("allocate", "settings"),
    [
        pytest.param(uniform_pruning, {"a": "1/2", "b": "1/2"}, id="uniform"),
        # 0.5, 1, 2 and 3 are the least of all
        pytest.param(global_magnitude, {"a": "3/4", "b": "1/4"}, id="global"),
        # a: 1/30, 4/29, 9/25, 1; b: 0.25/149.25, 36/149, 49/113, 1
        pytest.param(lamp, {"a": "1/2", "b": "1/2"}, id="lamp"),
    ],
)
def test_allocations_by_hand(allocate, settings) -> None:
    assert allocate(WEIGHTS, 0.5) == {name: Fraction(s) for name, s in settings.items()}


def test_a_rank_keeps_its_share_in_two_factors() -> None:
    # 10 of 20 · 30 weights a factor pair of 20 + 30: rank 6 holds 300 of 600
    assert uniform_rank({"a": np.zeros((20, 30))}, 0.5) == {"a": 6}


def test_probabilities_are_planned_as_what_they_are_the_softmax_of() -> None:
    whole, inputs = network(), draws(120, 2, 8, 8, seed=3)
    made = ps.plan(whole, size=0.3, data=inputs, examples=60)
    soft = ps.plan(nn.Sequential(*whole, nn.Softmax(1)), size=0.3, data=inputs, examples=60)
    assert soft.measure == "divergence"
    for one, other in zip(made.rivals, soft.rivals, strict=True):
        assert one.divergence == pytest.approx(other.divergence, rel=1e-3)
        assert one.loss == pytest.approx(other.loss, rel=1e-3)
    assert "the network gives probabilities, which were taken as such" in soft.notes


def test_labels_that_are_values_make_outputs_no_classes() -> None:
    inputs = draws(60, 2, 8, 8, seed=3)
    values = draws(60, 5, seed=4)
    made = ps.plan(network(), size=0.3, data=(inputs, values), examples=30, repair=False)
    assert made.measure == "relative change"
    assert made.chosen.loss is None
    with pytest.raises(ps.UsageError, match="no classes: there is no loss to hold a budget"):
        ps.plan(network(), budget=0.3, data=(inputs, values), examples=30)


def test_layers_of_bfloat16_are_put_back_too() -> None:
    whole, start = network().bfloat16(), network().bfloat16()
    with torch.no_grad():
        for tensor in start.parameters():
            tensor.mul_(0.5)
    inputs = draws(40, 2, 8, 8).bfloat16()
    made = ps.plan(whole, way="reset", size=0.5, to=start, data=inputs, examples=20)
    for name in made.put_back:
        assert torch.equal(made.module[int(name)].weight, start[int(name)].weight)


def test_a_mean_of_bits_that_whole_layers_do_not_reach_is_told() -> None:
    made = ps.plan(network(), way="bits", bits=3.5, data=draws(20, 2, 8, 8), repair=False)
    # 640 of 1,360 weights have room for a fourth bit: the linear layer's, or the convolutions'
    mean = sum(one.setting * one.parameters for one in made.layers) / 1360
    assert f"a mean of {mean:.2f} bits is reached: each layer has one number of bits" in made.notes


def test_the_smallest_layers_have_the_bits_that_are_over() -> None:
    weights = {"big": np.zeros((6, 1)), "small": np.zeros((2, 1))}
    assert uniform_bits(weights, 2.25) == {"big": 2, "small": 3}


@pytest.mark.parametrize(
    ("allocate", "settings"),
    [
        # two filters of 1 and 2 weights stay in "b", 4 of 6 in all
        pytest.param(uniform_filters, {"a": "1/2", "b": "1/2"}, id="uniform"),
        # root mean squares: a 1 and 9; b 0.5 (of two) and 2: those of 0.5 and of 1 go
        pytest.param(global_filters, {"a": "1/2", "b": "1/2"}, id="global"),
        # a 1/82; b 0.5/8.5: that of a, and then that of b, as more is to go
        pytest.param(lamp_filters, {"a": "1/2", "b": "1/2"}, id="lamp"),
    ],
)
def test_filters_go_until_no_more_than_the_size_stays(allocate, settings) -> None:
    weights = {"a": np.array([[1.0], [9.0]]), "b": np.array([[0.5, 0.5], [2.0, 2.0]])}
    assert allocate(weights, 0.5) == {name: Fraction(s) for name, s in settings.items()}


def test_whole_layers_are_put_back_in_order() -> None:
    # 4 of 8 weights are "a": once it is back, no more than half stays
    assert in_order(WEIGHTS, ["a", "b"], 0.5) == {"a": 1, "b": 0}


@pytest.mark.parametrize("size", [0.1, 0.37, 0.9])
def test_exactly_the_size_that_was_asked_for_stays(size: float) -> None:
    rng = np.random.default_rng(0)
    weights = {str(n): rng.normal(size=(n, 7)) for n in (3, 5, 11)}
    total = sum(w.size for w in weights.values())
    for allocate in (uniform_pruning, global_magnitude, lamp):
        pruned = sum(s * weights[n].size for n, s in allocate(weights, size).items())
        assert total - pruned == round(Fraction(str(size)) * total)


def test_a_plan_is_the_nearest_of_its_rivals_and_is_what_it_says() -> None:
    whole = network()
    held = {name: t.clone() for name, t in whole.state_dict().items()}
    inputs = draws(300, 2, 8, 8, seed=3)
    with torch.no_grad():
        labels = whole(inputs).argmax(1)
    made = ps.plan(whole, size=0.3, data=(inputs, labels), examples=150, keep=["6"])
    assert all(torch.equal(t, held[n]) for n, t in whole.state_dict().items())
    assert made.method == "measured"
    assert made.accuracy == 1
    assert torch.equal(made.module[6].weight == 0, whole[6].weight == 0)
    kept = sum(int((made.module[i].weight != 0).sum()) for i in (0, 3))
    total = sum(whole[i].weight.numel() for i in (0, 3))
    assert kept == round(0.3 * total)
    assert made.chosen.size == kept / total
    assert {(r.name, r.repaired) for r in made.rivals} == {
        (name, repaired)
        for name in ("uniform", "global magnitude", "LAMP")
        for repaired in (False, True)
    }
    assert made.chosen.repaired
    assert made.recommended == (not any(r.better for r in made.rivals))
    assert all(r.divergence < made.chosen.divergence for r in made.rivals if r.better)
    assert ps.Plan.from_dict(json.loads(made.to_json())) == made
    again = ps.plan(whole, size=0.3, data=(inputs, labels), examples=150, keep=["6"])
    assert again == made
    pairs = zip(made.module.parameters(), again.module.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    for name, mask in made.masks().items():
        assert torch.equal(mask, made.module.get_submodule(name).weight != 0)


def test_a_plan_that_is_behind_is_not_recommended_in_words() -> None:
    rival = {"name": "uniform", "repaired": True, "size": 0.2, "divergence": 0.2, "loss": 0.1}
    behind = ps.Plan(
        source="x", way="prune", asked=0.2, method="unlabelled", inputs="i", fitted=3, checked=1,
        examples=4, measure="divergence", accuracy=None, chosen=ps.Rival(**rival),
        rivals=(
            ps.Rival(**rival),
            ps.Rival(**rival | {"name": "LAMP", "divergence": 0.1, "better": True}),
        ),
        layers=(),
    )  # fmt: skip
    assert not behind.recommended
    assert behind.verdict.startswith("not recommended: LAMP, repaired has a lower divergence")
    near = ps.Rival(**rival | {"name": "LAMP", "divergence": 0.19})
    close = replace(behind, rivals=(behind.rivals[0], near))
    assert close.recommended
    assert close.verdict.endswith("no rival has a lower divergence, beyond chance")
    alone = replace(behind, rivals=behind.rivals[:1])
    assert alone.verdict.endswith("no other was tried")


def a_try(name: str, *roots: float, repaired: bool = True):
    """Make a try by the roots of half its divergences, as which they are compared."""
    from planescope.criticality.plan.bench import Try

    rival = ps.Rival(name=name, repaired=repaired, size=0.2, divergence=0.1)
    checked = 2 * torch.tensor(roots, dtype=torch.float64) ** 2
    return Try(
        asked=0.2, settings={}, module=nn.Identity(), checked=checked, told=checked, rival=rival
    )


def test_global_magnitude_gives_way_only_to_what_is_nearer_beyond_chance() -> None:
    from planescope.criticality.plan.choice import choose

    usual = a_try("global magnitude", 0.1, 0.2, 0.3, 0.4)

    def taken(other, way: str = "prune"):
        return choose([other, usual], way, of_classes=True)

    # Its mean is lower by 0.05, and the standard error of the pairs is 0.083; 0.1 and 0.05; 0.
    assert taken(a_try("LAMP", 0.3, 0.0, 0.1, 0.4)) is usual
    assert taken(beyond := a_try("LAMP", 0.0, 0.2, 0.1, 0.4)) is beyond
    assert taken(nearer := a_try("LAMP", 0.05, 0.15, 0.25, 0.35)) is nearer
    assert taken(a_try("uniform", 0.01, 0.01, 0.01, 0.01, repaired=False)) is not usual
    assert taken(within := a_try("LAMP", 0.3, 0.0, 0.1, 0.4), "filters") is within


def test_no_answer_can_go_over_by_more_than_all_however_large_its_divergence() -> None:
    from planescope.criticality.plan.choice import choose

    often, once = a_try("LAMP", 0.5, 0.5, 0.5, 0.5), a_try("uniform", 0.2, 0.2, 0.2, 9.0)
    assert once.checked.mean() > often.checked.mean()
    assert choose([often, once], "filters", of_classes=True) is once
    assert choose([often, once], "filters", of_classes=False) is often  # of values, their change


def test_a_budget_takes_the_smallest_size_within_it() -> None:
    whole, inputs = network(), draws(200, 2, 8, 8, seed=3)
    made = ps.plan(whole, way="bits", budget=0.2, data=inputs, examples=100)
    assert made.method == "unlabelled"
    assert made.chosen.loss <= 0.2
    if made.asked > 2:
        less = ps.plan(whole, way="bits", bits=made.asked - 1, data=inputs, examples=100)
        assert less.chosen.loss > 0.2


def test_a_plan_that_is_stopped_keeps_the_best_so_far(monkeypatch) -> None:
    from planescope.criticality.plan.bench import Bench

    tried = Bench._try

    def stopping(self, asked, name, settings, **options):
        if name == "LAMP":
            raise KeyboardInterrupt
        return tried(self, asked, name, settings, **options)

    monkeypatch.setattr(Bench, "_try", stopping)
    made = ps.plan(network(), size=0.3, data=draws(60, 2, 8, 8))
    assert len(made.rivals) == 4
    assert any("stopped after 4 of 6 tries" in note for note in made.notes)
    # Of sizes that were not tried nothing is said.
    with pytest.raises(KeyboardInterrupt):
        ps.plan(network(), budget=1e-9, data=draws(60, 2, 8, 8))


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_signal_to_the_command_is_told_beside_the_best_so_far(
    tmp_path, monkeypatch, capsys
) -> None:
    from planescope.cli import main
    from planescope.criticality.plan.bench import Bench
    from planescope.files import signals
    from planescope.networks.build import build

    tried = Bench._try

    def ending(self, asked, name, settings, **options):
        if name == "LAMP":
            os.kill(os.getpid(), signal.SIGTERM)
        return tried(self, asked, name, settings, **options)

    monkeypatch.setattr(Bench, "_try", ending)
    monkeypatch.setattr(signals, "_raised", -signals.PATIENCE_S)
    save_file(build("lenet", in_channels=1, width=0.25).state_dict(), tmp_path / "w.safetensors")
    np.save(tmp_path / "x.npy", draws(16, 1, 28, 28).numpy())
    table = str(tmp_path / "plan.json")
    command = ["planescope", "plan", str(tmp_path / "w.safetensors"), "--network", "lenet"]
    command += ["--inputs", str(tmp_path / "x.npy"), "--examples", "8"]
    how = ["--size", "0.5", "--no-repair", "--table", table]
    monkeypatch.setattr(sys, "argv", [*command, *how])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 143
    told = "planescope: interrupted; the plan is the best of the tries that were made\n"
    assert capsys.readouterr().err == told
    assert len(json.loads(Path(table).read_text())["rivals"]) == 2


def test_nothing_but_the_network_is_enough() -> None:
    made = ps.plan(network(), way="rank", size=0.5, input_shape=(2, 8, 8), examples=60)
    assert made.method == "synthetic"
    assert made.chosen.size <= 0.5


def test_removed_filters_give_nothing_and_others_stay_whole() -> None:
    whole, inputs = network(), draws(120, 2, 8, 8, seed=3)
    made = ps.plan(whole, way="filters", size=0.6, data=inputs, examples=60)
    assert made.method == "unlabelled"
    assert [one.name for one in made.skipped] == ["6"]
    with torch.no_grad():
        hidden = made.module[:3](inputs)
    for layer in made.layers:
        gone = made.module.get_submodule(layer.name).weight.flatten(1).abs().sum(1) == 0
        assert int(gone.sum()) == round(layer.setting * 8)
        if layer.name == "0":
            assert not hidden[:, gone].any()
        else:
            assert not made.module[3].bias[gone].any()
    assert set(made.pruning_ratios()) == {made.module[0], made.module[3]}


def test_removed_filters_are_taken_out_and_the_network_answers_the_same() -> None:
    pytest.importorskip("torch_pruning")
    inputs = draws(60, 2, 8, 8, seed=3)
    made = ps.plan(network(), way="filters", size=0.6, data=inputs, examples=30)
    smaller = made.thinned(inputs[:2])
    left = {layer.name: round((1 - layer.setting) * 8) for layer in made.layers}
    assert {name: smaller.get_submodule(name).out_channels for name in left} == left
    assert [layer.filters for layer in ps.measure(smaller).layers] == list(left.values())
    with torch.no_grad():
        assert torch.allclose(smaller(inputs), made.module(inputs), atol=1e-4)
    assert made.module[0].out_channels == 8
    pruned = ps.plan(network(), size=0.5, data=inputs, examples=30, repair=False)
    with pytest.raises(ps.UsageError, match="a plan by prune removes no filters"):
        pruned.thinned(inputs[:2])


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param({"size": 0.5, "curve": [0.7]}, id="prune"),
        pytest.param({"size": 0.5, "repair": False}, id="as-it-is"),
        pytest.param({"way": "rank", "size": 0.6}, id="rank"),
    ],
)
def test_a_dry_run_counts_every_pass(asked, monkeypatch) -> None:
    passes = 0

    def counted(_module, given):
        nonlocal passes
        # Not symbols; and the examples of the table are in two batches, of 22 and 7.
        passes += isinstance(given, torch.Tensor) and len(given) != 7
        return given

    monkeypatch.setattr(nn.Identity, "forward", counted)
    whole = nn.Sequential(nn.Identity(), *network())
    given = {"data": draws(60, 2, 8, 8), "examples": 30, **asked}
    cost = ps.plan(whole, **given, dry_run=True)
    passes = 0
    ps.plan(whole, **given)
    assert passes == cost.passes


def test_layers_are_put_back_step_by_step_and_the_others_make_up_for_it() -> None:
    whole, inputs, start = network(), draws(120, 2, 8, 8, seed=3), network()
    with torch.no_grad():
        for layer in (start[0], start[3], start[6]):
            layer.weight.copy_(draws(*layer.weight.shape, seed=9) * layer.weight.std())
    made = ps.plan(whole, way="freeze", to=start, size=0.8, data=inputs, examples=60)
    assert {r.name for r in made.rivals} == {"joint cost, step by step", "cost alone", "distance"}
    assert made.put_back
    kept = sum(x.parameters for x in made.layers if x.name not in made.put_back)
    assert made.chosen.size == kept / sum(x.parameters for x in made.layers) <= 0.8
    for name in made.put_back:
        assert torch.equal(made.module.get_submodule(name).weight, start.get_submodule(name).weight)


def test_a_plan_is_counted_drawn_and_shown(tmp_path) -> None:
    from importlib.resources import files

    import jsonschema

    from planescope import figures

    whole, inputs = network(), draws(60, 2, 8, 8)
    asked = {"size": 0.5, "curve": [0.7], "data": inputs, "examples": 30, "repair": False}
    cost = ps.plan(whole, **asked, dry_run=True)
    # 2 sizes of 3 allocations, each on what chooses and on the table; 3 layers alone and jointly;
    # the inputs, the network's layers, and the whole network on what chooses and on the table
    assert (cost.layers, cost.tries, cost.passes) == (3, 6, 2 * 6 + 2 * 3 + 4)
    made = ps.plan(whole, **asked)
    assert len(made.curve) == 3
    schema = json.loads((files("planescope.files") / "schemas" / "plan-1.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(made.to_json()), schema)
    made.save(tmp_path / "plan.json")
    written = figures.write_all([tmp_path / "plan.json"], tmp_path / "drawn", form="svg")
    assert [path.name for path in written.files] == ["plan.svg", "plan.csv"]
    assert (tmp_path / "drawn" / "plan.csv").read_text().count("LAMP") == 2
    html = ps.report(whole, tmp_path / "plan.json").html
    assert '<section id="plan"' in html
    assert "data:image/svg+xml;base64," in html
    assert html.count("global magnitude</th>") == 2


def test_labels_are_not_looked_at_unless_they_may_be() -> None:
    whole, inputs = network(), draws(40, 2, 8, 8)
    made = ps.plan(
        whole, size=0.5, data=(inputs, torch.zeros(40, dtype=torch.int64)), examples=20,
        labelled=False, repair=False,
    )  # fmt: skip
    assert made.method == "unlabelled"
    assert made.accuracy is None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        pytest.param({"size": 0.0}, "cannot be reached.*the nearest 0.000", id="too-small"),
        pytest.param({"way": "bits", "bits": 1}, "the nearest is 2", id="one-bit"),
        pytest.param({"size": float("nan")}, "a size of nan: give a number", id="nan"),
        pytest.param({"size": 0.5, "budget": 0.1}, "give one of size, bits and budget", id="two"),
        pytest.param({"size": 0.5, "keep": ["conv9"]}, "there is no layer conv9", id="name"),
        pytest.param(
            {"way": "rank", "budget": 1e-9, "repair": False},
            "the nearest is a loss of 0.*, at size 0.95",
            id="budget",
        ),
        pytest.param({"way": "filters", "size": 0.01}, "nearest 0.125", id="filters"),
        pytest.param({"way": "reset", "size": 0.5}, "says to which state", id="no-state"),
        pytest.param(
            {"way": "reset", "size": 0.5, "to": network()}, "already what it would be", id="same"
        ),
        pytest.param(
            {"way": "reset", "size": 0.5, "to": nn.Linear(2, 2)},
            "the state to put back to has weight, which the network has not",
            id="other-network",
        ),
        pytest.param({"way": "reset", "size": 0.5, "to": 3}, "epochs are those of a run", id="run"),
        pytest.param({"size": 0.5, "examples": 1}, "give two or more", id="one-example"),
        pytest.param({"way": "merge", "size": 0.5}, "way 'merge' is not planned", id="way"),
    ],
)
def test_bad_input_is_one_sentence(options, sentence: str) -> None:
    with pytest.raises(ps.UsageError, match=sentence):
        ps.plan(network(), data=draws(20, 2, 8, 8), **options)


def test_a_file_of_inputs_is_named_and_cast(tmp_path) -> None:
    np.save(tmp_path / "wide.npy", draws(20, 2, 8, 8).double().numpy())
    np.save(tmp_path / "alike.npy", np.ones((20, 2, 8, 8)))
    options = {"size": 0.5, "labelled": False, "repair": False}
    made = ps.plan(network(), data=tmp_path / "wide.npy", **options)
    assert "inputs are float64, cast to the network's float32" in made.notes
    with pytest.raises(ps.UsageError, match=r"alike\.npy: all inputs are alike"):
        ps.plan(network(), data=tmp_path / "alike.npy", **options)


def test_the_command_writes_the_planned_file(tmp_path) -> None:
    from planescope.networks.build import build

    whole = build("lenet", in_channels=1, width=0.5, seed=0)
    save_file(dict(whole.state_dict()), tmp_path / "whole.safetensors")
    command = [
        *(sys.executable, "-m", "planescope", "plan", "whole.safetensors", "--network", "lenet"),
        *("--data", "planescope.data.small:sklearn_digits", "--size", "0.25", "--examples", "40"),
        *("--json", "--out", "planned.safetensors"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["schema"] == "planescope.plan/1"
    made = load_file(tmp_path / "planned.safetensors")
    assert made.keys() == whole.state_dict().keys()
    weights = [t for t in made.values() if t.ndim > 1]
    kept = sum(int((w != 0).sum()) for w in weights)
    assert kept == round(0.25 * sum(w.numel() for w in weights))


def test_moves_of_a_search_are_refused_and_why_is_said(monkeypatch, capsys) -> None:
    from planescope.cli import main

    monkeypatch.setattr(
        sys, "argv", ["planescope", "plan", "no.pt", "--size", "0.5", "--moves", "9"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "--moves: a plan has no search" in capsys.readouterr().err


class OfSequences(nn.Module):
    """A network most of whose weights are in no layer that is planned."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.lstm = nn.LSTM(8, 6, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(12, 6, batch_first=True)
        self.rnn, self.cell = nn.RNN(6, 6, batch_first=True), nn.LSTMCell(6, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.apart = nn.MultiheadAttention(6, 2, batch_first=True, kdim=6, vdim=5)
        self.form, self.table = nn.Bilinear(6, 6, 6), nn.Embedding(7, 6)
        self.place = nn.Parameter(torch.ones(7, 6))
        self.several = nn.ParameterList([torch.eye(6)])
        self.norm, self.head = nn.LayerNorm((7, 6)), nn.Linear(6, 5)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        x = self.conv(given.transpose(1, 2)).transpose(1, 2)
        x = self.rnn(self.gru(self.lstm(x)[0])[0])[0] + self.place + self.table.weight
        x = x + self.attention(x, x, x)[0] + self.apart(x, x, x[..., :5])[0]
        x = self.norm(self.form(x, x) @ self.several[0])
        return self.head(x.mean(1) + self.cell(x[:, 0])[0])


def test_all_weights_that_are_not_planned_are_listed_with_their_reason(tmp_path) -> None:
    torch.manual_seed(0)
    whole, inputs = OfSequences().eval(), draws(40, 7, 8)
    torch.save(whole.state_dict(), tmp_path / "whole.pt")
    made = ps.plan(whole, size=0.5, data=inputs, examples=20, repair=False)
    of_file = ps.plan(
        tmp_path / "whole.pt", network=whole, size=0.5, data=inputs, examples=20, repair=False
    )
    repaired = ps.repair(made.module, whole, data=inputs, examples=20)
    planned = {one.name for one in made.layers}
    left = {one.name: one.reason for one in made.skipped}
    assert planned == {"conv", "head"}
    assert "acts on its own output" in left["lstm"]
    assert "queries, keys and values" in left["attention.in_proj_weight"]
    assert "of reads its weight, and does not call it" in left["attention.out_proj"]
    for name, tensor in whole.named_parameters():
        if tensor.ndim > 1 and not name.startswith("norm."):
            owner = name.rpartition(".")[0]
            assert {name, owner} & {*planned, *left}, name
    assert {one["name"]: one["reason"] for one in json.loads(of_file.to_json())["skipped"]} == left
    assert {one.name: one.reason for one in repaired.layers if one.name in left} == left


def test_a_network_that_knows_no_more_than_chance_has_no_losses_and_that_is_said() -> None:
    data = draws(60, 2, 8, 8), torch.arange(60) % 5
    made = ps.plan(network(), size=0.3, data=data, examples=30, repair=False)
    assert made.chosen.loss is None
    assert sum("cannot be told from chance" in remark for remark in made.remarks) == 1


def test_a_folder_is_taken_as_it_is_by_sensitivity(tmp_path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    (tmp_path / "pictures" / "all").mkdir(parents=True)
    for number in range(8):
        pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / "all" / f"{number}.png")
    own = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        nn.Linear(4, 3))  # fmt: skip
    options = {"data": str(tmp_path / "pictures"), "labelled": False, "examples": 4}
    made = ps.plan(own, size=0.5, repair=False, **options)
    assert ps.sensitivity(own, ways="prune:0.5", **options).inputs == made.fitted + made.checked


@pytest.mark.parametrize("command", ["plan", "repair"])
def test_the_network_that_is_read_is_not_written_over(
    command, tmp_path, monkeypatch, capsys
) -> None:
    from planescope.cli import main
    from planescope.networks.build import build

    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        save_file(build("lenet", in_channels=1, width=0.25, seed=seed).state_dict(),
                  f"{seed}.safetensors")  # fmt: skip
    before = Path("0.safetensors").read_bytes()
    how = ["--size", "0.5"] if command == "plan" else ["--reference", "1.safetensors"]
    for out in ("0.safetensors", "./0.safetensors", *(["1.safetensors"] * (command == "repair"))):
        monkeypatch.setattr(sys, "argv", [
            "planescope", command, "0.safetensors", "--network", "lenet", *how, "--out", out,
        ])  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        told = "is the network that is read; name another file\n"
        assert capsys.readouterr().err == f"planescope: {out}: {told}"
    assert Path("0.safetensors").read_bytes() == before


def test_seeds_and_files_that_are_none_are_refused_in_a_sentence(tmp_path) -> None:
    inputs, whole = draws(20, 2, 8, 8), network()
    with pytest.raises(ps.UsageError, match="seed must be 0 or more, not -1"):
        ps.plan(whole, size=0.5, data=inputs, seed=-1)
    with pytest.raises(ps.UsageError, match="seed must be 0 or more, not -1"):
        ps.repair(whole, whole, data=inputs, seed=-1)
    (tmp_path / "text.npy").write_text("hello")
    for call in (ps.sensitivity, lambda *a, **k: ps.plan(*a, size=0.5, **k)):
        with pytest.raises(ps.PlanescopeError, match=r"NumPy file \(it does not begin as one\)"):
            call(whole, data=tmp_path / "text.npy")
