"""What a repair gives back, and what it leaves alone."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import prune

import planescope as ps
from planescope.criticality.plan.fit.holding import form_of
from planescope.criticality.plan.fit.patches import patches_at, rows_of, values_at
from planescope.criticality.plan.fit.solutions import RIDGE, Moments, least_squares, rounded
from planescope.criticality.replacements import of_bits


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(norm: type[nn.Module] | None = nn.BatchNorm2d, seed: int = 1) -> nn.Sequential:
    """Two convolutions, the second grouped and strided, and a linear layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Conv2d(2, 8, 3, padding=1, bias=norm is None)]
        layers += [norm(8)] if norm else []
        layers += [nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, groups=2, bias=norm is None)]
        layers += [norm(8)] if norm else []
        layers += [nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 5)]
        made = nn.Sequential(*layers)
        for part in made.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.normal_(part.bias)
        made.train()
        with torch.no_grad():
            made(draws(64, 2, 8, 8, seed=seed))  # running statistics
    return made.eval()


def pruned(whole: nn.Module, share: float = 0.6) -> nn.Module:
    changed = copy.deepcopy(whole)
    with torch.no_grad():
        for part in changed.modules():
            if isinstance(part, (nn.Conv2d, nn.Linear)):
                cut = (
                    part.weight.abs().flatten().kthvalue(round(share * part.weight.numel())).values
                )
                part.weight[part.weight.abs() <= cut] = 0
    return changed


@pytest.mark.parametrize(
    "layer",
    [
        pytest.param(nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2), id="1-d"),
        pytest.param(nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(2, 1)), id="2-d"),
        pytest.param(nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular"), id="circular"),
        pytest.param(nn.Conv2d(4, 8, 3, groups=4, padding_mode="reflect", padding=1), id="grouped"),
        pytest.param(nn.Conv3d(4, 6, (1, 3, 2), stride=(2, 1, 1), padding=1), id="3-d"),
        pytest.param(nn.Linear(4, 6), id="linear"),
    ],
)
def test_a_layer_is_its_weights_times_its_patches(layer: nn.Module) -> None:
    sizes = {nn.Conv1d: (9,), nn.Conv2d: (7, 6), nn.Conv3d: (5, 6, 4)}.get(type(layer))
    given = draws(3, 4, *sizes) if sizes else draws(3, 5, 4)
    with torch.no_grad():
        output = layer(given)
        rows = torch.randperm(rows_of(layer, output))[:20]
        patches, values = patches_at(layer, given, rows), values_at(layer, output, rows)
        groups = patches.shape[1]
        weights = layer.weight.flatten(1).unflatten(0, (groups, -1))
        products = torch.einsum("pgd,gfd->pgf", patches, weights).flatten(1) + layer.bias
    torch.testing.assert_close(products, values)


def test_least_squares_is_that_of_numpy() -> None:
    rng = np.random.default_rng(0)
    u, y, old = rng.normal(1, 1, (50, 6)), rng.normal(2, 1, (50, 2)), rng.normal(0, 1, (2, 6))
    stays = rng.random((2, 6)) < 0.6
    moments = Moments.empty(6, 2)
    moments.add(torch.from_numpy(u[:20]), torch.from_numpy(y[:20]))
    moments.add(torch.from_numpy(u[20:]), torch.from_numpy(y[20:]))
    c, b = moments.centred(about_mean=True)
    old_t, stays_t = torch.from_numpy(old), torch.from_numpy(stays)
    found = least_squares(c, b, old_t, stays_t).numpy()
    off_u, off_y = u - u.mean(0), y - y.mean(0)
    d = RIDGE * off_u.var(0).mean()
    for f in range(2):
        s = stays[f]
        # The ridge as rows: |U w - y|² / n + d |w - old|²
        rows = np.vstack([off_u[:, s] / 50**0.5, d**0.5 * np.eye(s.sum())])
        right = np.concatenate([off_y[:, f] / 50**0.5, d**0.5 * old[f, s]])
        np.testing.assert_allclose(found[f, s], np.linalg.lstsq(rows, right, rcond=None)[0])
        assert not found[f, ~s].any()
    shift = moments.shift(torch.from_numpy(found)).numpy()
    np.testing.assert_allclose(shift, y.mean(0) - found @ u.mean(0))


def test_rounding_makes_up_for_what_was_rounded_before() -> None:
    u = draws(400, 12).double() @ draws(12, 12, seed=1).double()  # entries that go together
    target = draws(5, 12, seed=2).double()
    c = u.T @ u / 400
    steps = target.abs().amax(1) / 3
    found = rounded(c, target, 3, steps)
    plain = torch.from_numpy(of_bits(target.numpy(), 3))
    for row, step in zip(found, found.abs().amax(1), strict=True):
        levels = row / step * 3
        assert any(
            torch.allclose(row / step * k, (row / step * k).round(), atol=1e-9) for k in (1, 2, 3)
        ), levels
    cost = ((u @ (found - target).T) ** 2).sum()
    assert cost < ((u @ (plain - target).T) ** 2).sum()


@pytest.mark.parametrize("by", ["least squares", "moments"])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, None], ids=["norm", "plain"])
def test_a_pruned_network_comes_nearer_and_keeps_its_zeros(norm, by: str) -> None:
    whole = network(norm)
    changed = pruned(whole).train()
    seen = []
    changed[0].register_forward_hook(lambda *_: seen.append(1))
    held = {name: t.clone() for name, t in changed.state_dict().items()}
    state = torch.get_rng_state()
    result = ps.repair(changed, whole, data=draws(200, 2, 8, 8, seed=3), by=by)
    assert torch.equal(torch.get_rng_state(), state)
    assert changed.training
    assert not seen
    for name, tensor in changed.state_dict().items():
        assert torch.equal(tensor, held[name]), name
    made = result.module
    assert made.training
    assert {n: t.shape for n, t in made.state_dict().items()} == {
        n: t.shape for n, t in held.items()
    }
    for name, tensor in made.state_dict().items():
        if held[name].ndim > 1:
            assert not tensor[held[name] == 0].any(), name
    assert result.after < result.before
    new = draws(500, 2, 8, 8, seed=4)
    with torch.no_grad():
        p = whole(new).log_softmax(1)
        before, after = (
            float((p.exp() * (p - m.eval()(new).log_softmax(1))).sum(1).mean())
            for m in (changed, made)
        )
    assert after < 0.85 * before
    assert ps.Repair.from_dict(json.loads(result.to_json())) == result


def test_a_linear_network_of_full_rank_data_gets_all_back_that_its_weights_can_give() -> None:
    """y = W u: of uncorrelated inputs nothing can be made up for, of equal ones everything."""
    whole = nn.Linear(2, 3, bias=True)
    changed = copy.deepcopy(whole)
    with torch.no_grad():
        changed.weight[:, 1] = 0
    one = draws(400, 1)
    same = torch.cat([one, one], 1)  # the input that is left tells the other
    made = ps.repair(changed, whole, data=same).module
    # argmin (w + ...)² with a ridge of 1 %: w = (w1 + w2 + 0.01 w1) / 1.01
    wanted = (whole.weight.sum(1) + RIDGE * whole.weight[:, 0]) / (1 + RIDGE)
    torch.testing.assert_close(made.weight[:, 0], wanted, rtol=1e-4, atol=1e-5)
    assert not made.weight[:, 1].any()


def test_what_masks_hold_stays_in_masks() -> None:
    whole = network()
    changed = copy.deepcopy(whole)
    prune.l1_unstructured(changed[0], "weight", 0.5)
    prune.l1_unstructured(changed[3], "weight", 0.5)
    made = ps.repair(changed, whole, data=draws(100, 2, 8, 8)).module
    assert made.state_dict().keys() == changed.state_dict().keys()
    assert torch.equal(made[0].weight_mask, changed[0].weight_mask)
    out = made(draws(4, 2, 8, 8))
    assert not made[0].weight[changed[0].weight_mask == 0].any()
    assert not torch.equal(out, changed(draws(4, 2, 8, 8)))


def test_few_bits_stay_few() -> None:
    whole = network(None)
    changed = copy.deepcopy(whole)
    with torch.no_grad():
        for name in (0, 2):
            changed[name].weight.copy_(torch.from_numpy(of_bits(whole[name].weight.numpy(), 3)))
    result = ps.repair(changed, whole, data=draws(200, 2, 8, 8))
    assert result.after < result.before
    for name in (0, 2):
        form = form_of(result.module[name].weight, whole[name].weight)
        assert form.most is not None
        assert form.most <= 3


def test_a_lower_rank_stays_low() -> None:
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4))
    changed = copy.deepcopy(whole)
    with torch.no_grad():
        left, values, right = torch.linalg.svd(whole[0].weight, full_matrices=False)
        changed[0].weight.copy_((left[:, :3] * values[:3]) @ right[:3])
    result = ps.repair(changed, whole, data=draws(300, 12) @ draws(12, 12, seed=1))
    assert result.after <= result.before
    assert torch.linalg.matrix_rank(result.module[0].weight, rtol=1e-4) <= 3


class Twice(nn.Module):
    """A layer that is called twice, a shortcut, and an activation in place."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm, self.act, self.out = nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Linear(6, 3)

    def forward(self, x):
        x = self.act(self.one(x))
        x = self.act(self.norm(self.two(x)) + x)
        return self.out(self.act(self.two(x)).mean((2, 3)))


class Branching(nn.Module):
    """Control flow by values, which has no graph."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x):
        return self.net(x if bool(x.isfinite().all()) else x * 0)


@pytest.mark.parametrize(
    "whole", [pytest.param(network, id="plain"), pytest.param(Twice, id="twice"),
              pytest.param(Branching, id="no-graph")],
)  # fmt: skip
def test_a_pass_that_goes_on_gives_the_bits_of_whole_passes(whole, monkeypatch) -> None:
    from planescope.criticality.plan.fit.passage import Passage

    torch.manual_seed(0)
    own = whole().eval()
    changed, inputs = pruned(own), draws(250, 2, 8, 8)
    # One batch has to start again, as where memory is short.
    monkeypatch.setattr("planescope.criticality.plan.fit.passage._HELD_BYTES", 100 * 6 * 64 * 4)
    result = ps.repair(changed, own, data=inputs)
    monkeypatch.setattr(Passage, "of", classmethod(lambda *_: None))
    plain = ps.repair(changed, own, data=inputs)
    assert result == plain
    assert result.after < result.before
    pairs = zip(
        result.module.state_dict().values(), plain.module.state_dict().values(), strict=True
    )
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_pass_goes_on_where_there_is_a_graph() -> None:
    from planescope.criticality.plan.fit.observation import look_at
    from planescope.criticality.plan.fit.passage import Passage
    from planescope.data.roles import Batch

    x = draws(4, 2, 8, 8)
    batch = Batch(args=(x,), kwargs={}, labels=None, raw=x, size=4)
    with torch.no_grad():
        for own, layer in ((network(), "3"), (Twice().eval(), "one")):
            passage = Passage.of(own, [batch], look_at(own, batch))
            assert passage is not None
            given, output = passage.before(layer, 0)
            assert torch.equal(own.get_submodule(layer)(given), output)
        twice = Twice().eval()
        assert Passage.of(twice, [batch], look_at(twice, batch)).before("two", 0) is None
        branching = Branching().eval()
        assert Passage.of(branching, [batch], look_at(branching, batch)) is None


def test_layers_before_the_first_change_are_left_to_the_bit() -> None:
    whole = network()
    changed = copy.deepcopy(whole)
    with torch.no_grad():
        changed[3].weight[changed[3].weight.abs() < 0.1] = 0
    result = ps.repair(changed, whole, data=draws(100, 2, 8, 8))
    assert result.layers[0].reason == "it gives what it gives in the reference"
    assert torch.equal(result.module[0].weight, whole[0].weight)


def test_renewed_norm_statistics_are_allowed_for() -> None:
    whole = network()
    changed = pruned(whole, 0.3)
    with torch.no_grad():
        changed[1].running_var.mul_(1.7)
        changed[1].running_mean.add_(0.3)
    result = ps.repair(changed, whole, data=draws(200, 2, 8, 8))
    assert result.after < 0.2 * result.before


def test_what_cannot_be_repaired_is_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(2, 4, 2)
            self.one = nn.Conv2d(4, 4, 3)
            self.twin = nn.Conv2d(4, 4, 3)
            self.twin.weight = self.one.weight
            self.idle = nn.Linear(3, 3)
            self.out = nn.Linear(4, 3)

        def forward(self, x):
            return self.out(self.twin(self.one(self.up(x))).mean((2, 3)))

    whole = Odd()
    changed = copy.deepcopy(whole)
    with torch.no_grad():
        changed.out.weight[:, ::2] = 0
    result = ps.repair(changed, whole, data=draws(60, 2, 6, 6))
    reasons = {layer.name: layer.reason for layer in result.layers if layer.by is None}
    assert reasons["one"] == reasons["twin"] == "it shares its weight with another layer"
    assert reasons["idle"] == "the network does not call it"
    assert "ConvTranspose2d" in reasons["up"]


@pytest.mark.parametrize(
    ("change", "data", "sentence"),
    [
        pytest.param(lambda m: m, draws(20, 2, 8, 8), "the network is its reference", id="equal"),
        pytest.param(
            lambda m: network(None), draws(20, 2, 8, 8), "which the network has not", id="another"
        ),
        pytest.param(
            lambda m: pruned(m), draws(20, 3, 8, 8), "does not take its batches", id="channels"
        ),
        pytest.param(lambda m: pruned(m), draws(20, 2, 8, 8) / 0, "an input holds NaN", id="nan"),
        pytest.param(lambda m: pruned(m), draws(1, 2, 8, 8), "give two or more", id="one"),
    ],
)
def test_bad_input_is_one_sentence(change, data, sentence: str) -> None:
    whole = network()
    with pytest.raises(ps.UsageError, match=sentence):
        ps.repair(change(copy.deepcopy(whole)), whole, data=data)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_networks_of_other_types_are_repaired_and_planned_in_their_own(dtype) -> None:
    whole, x = network().to(dtype), draws(60, 2, 8, 8).to(dtype)
    mended = ps.repair(pruned(whole), whole, data=x)
    planned = ps.plan(whole, data=x, size=0.5, examples=30)
    assert mended.after < mended.before
    for made in (mended.module, planned.module):
        assert {p.dtype for p in made.parameters()} == {dtype}
    if dtype is not torch.float64:
        with pytest.raises(ps.UsageError, match=r"holds 0\.weight as float32, its reference as"):
            ps.repair(pruned(network()), whole, data=x)


def test_a_weight_that_is_computed_is_left_and_says_so() -> None:
    whole = network()
    nn.utils.weight_norm(whole[3])
    found = ps.plan(whole, data=draws(60, 2, 8, 8), size=0.5, examples=30)
    assert ("3", "its weight is computed from other tensors") in [
        (one.name, one.reason) for one in found.skipped
    ]


def test_weights_that_are_no_numbers_are_refused() -> None:
    whole = network()
    changed = pruned(whole)
    with torch.no_grad():
        changed[0].weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(ps.UsageError, match=r"the network holds NaN or an infinity in 0\.weight"):
        ps.repair(changed, whole, data=draws(20, 2, 8, 8))


def test_the_command_writes_the_file_with_its_names(tmp_path) -> None:
    from planescope.networks.build import build

    whole = build("lenet", in_channels=1, width=0.5, seed=0)
    state = {f"net.{name}": t.half() for name, t in whole.state_dict().items()}
    save_file(state, tmp_path / "whole.safetensors")
    key = "net.fc1.weight" if "net.fc1.weight" in state else list(state)[-6]
    state[key] = state[key].clone()
    state[key][state[key].abs() < state[key].abs().median()] = 0
    save_file(state, tmp_path / "changed.safetensors")
    command = [
        *(sys.executable, "-m", "planescope", "repair", "changed.safetensors", "--reference"),
        *(
            "whole.safetensors",
            "--network",
            "lenet",
            "--data",
            "planescope.data.small:sklearn_digits",
        ),
        *("--examples", "60", "--json", "--out", "repaired.safetensors"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["schema"] == "planescope.repair/1"
    made = load_file(tmp_path / "repaired.safetensors")
    assert {n: (t.shape, t.dtype) for n, t in made.items()} == {
        n: (t.shape, t.dtype) for n, t in state.items()
    }
    command[4] = "whole.safetensors"
    failed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert "the network is its reference" in failed.stderr
    assert "Traceback" not in failed.stderr


class Routed(nn.Module):
    """Examples go to one of two layers, as they are; in a loop, or all at once."""

    def __init__(self, *, one_by_one: bool) -> None:
        super().__init__()
        self.first, self.one_by_one = nn.Linear(6, 8), one_by_one
        self.low, self.high, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        inner = self.first(given).relu()
        is_high = inner.mean(1) > 0.3
        if self.one_by_one:
            rows = zip(inner.split(1), is_high, strict=True)
            return self.last(torch.cat([(self.high if h else self.low)(x) for x, h in rows]))
        routed = torch.zeros_like(inner)
        routed[is_high] = self.high(inner[is_high])
        routed[~is_high] = self.low(inner[~is_high])
        return self.last(routed)


@pytest.mark.parametrize("by", ["least squares", "moments"])
@pytest.mark.parametrize("one_by_one", [True, False])
def test_layers_that_the_data_call_are_left_where_calls_differ(by: str, one_by_one: bool) -> None:
    torch.manual_seed(3)
    whole = Routed(one_by_one=one_by_one)
    result = ps.repair(pruned(whole), whole, data=draws(230, 6), by=by)
    done = {layer.name: layer for layer in result.layers}
    why = "how often it is called, or on how much, depends on the data"
    if one_by_one or by == "least squares":
        assert {done["low"].reason, done["high"].reason} == {why}
    if by == "least squares":
        assert done["first"].kept
        assert result.after < result.before


def test_a_weight_that_is_a_buffer_is_left_by_that_name() -> None:
    whole = network()
    weight = whole[0].weight.detach()
    del whole[0].weight
    whole[0].register_buffer("weight", weight)
    changed = copy.deepcopy(whole)
    with torch.no_grad():
        changed[-1].weight[:, ::2] = 0
    result = ps.repair(changed, whole, data=draws(40, 2, 8, 8))
    (left,) = [layer for layer in result.layers if layer.name == "0"]
    assert left.reason == "its weight is a buffer, which no training changes"


def test_a_relative_change_does_not_depend_on_batches() -> None:
    whole = nn.Sequential(nn.Linear(4, 1))
    changed, inputs = pruned(whole), draws(400, 4)
    several = [inputs[:30], inputs[30:300], inputs[300:]]
    found = [ps.repair(changed, whole, data=data, examples=400) for data in (inputs, several)]
    assert found[0].measure == "relative change"
    assert found[0].before == pytest.approx(found[1].before, rel=1e-6)
    with torch.no_grad():
        at = inputs[3::4]
        change = (changed(at) - whole(at)).square().sum() / whole(at).square().sum()
    assert found[0].before == pytest.approx(float(change), rel=1e-5)


def test_hooks_that_are_not_run_are_told_of_both_networks() -> None:
    whole = network()
    changed = pruned(whole)
    changed[0].register_forward_hook(lambda _, __, out: -out)
    told = "hooks on {} are not run: what they change is in no number here"
    found = ps.repair(changed, whole, data=draws(40, 2, 8, 8))
    assert found.notes[0] == told.format("0")
    whole[3].register_forward_pre_hook(lambda _, inputs: (-inputs[0],))
    found = ps.repair(changed, whole, data=draws(40, 2, 8, 8))
    assert found.notes[:2] == (told.format("0"), told.format("3 of the reference"))
