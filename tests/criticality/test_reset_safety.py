"""Resets of a guest's network: kept work is of one computation, and nothing else is touched."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import planescope as ps
from planescope.criticality.resets.engine.identity import code_digest, value_digest
from planescope.data.load import Images
from planescope.networks.graph.trace import trace_graph


class Own(nn.Module):
    """A network whose answer depends on what is no weight."""

    def __init__(self, activation: Any = torch.relu, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.last = nn.Conv2d(1, 6, 3), nn.Linear(6, 4)
        self.activation, self.scale = activation, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.activation(self.conv(x)) * self.scale
        return self.last(x.mean((2, 3)))


@pytest.fixture(scope="module")
def data() -> Images:
    rng = np.random.default_rng(0)
    return Images(
        images=torch.from_numpy(rng.integers(0, 256, (64, 1, 8, 8), dtype=np.uint8)),
        labels=torch.from_numpy(rng.integers(0, 4, 64)),
        classes=tuple("abcd"), mean=(0.5,), std=(0.2,), name="noise", split="val",
    )  # fmt: skip


def initial(module: nn.Module) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {name: torch.randn_like(tensor) for name, tensor in module.state_dict().items()}


def reset(module: nn.Module, data: Images, **options: Any) -> ps.Resets:
    state = dict(initial(module))
    return ps.reset(module, to={0: state}, data=data, **options)


@pytest.mark.parametrize(
    "other",
    [
        lambda: Own(torch.sigmoid),
        lambda: Own(scale=-1.0),
        lambda: Own(lambda x: x.clamp(max=0.1)),
    ],
    ids=["activation", "attribute", "lambda"],
)
def test_kept_work_is_not_taken_for_that_of_another_computation(
    data: Images, tmp_path: Path, other: Any
) -> None:
    keep = tmp_path / "kept"
    reset(Own(), data, keep=keep)
    assert reset(other(), data, keep=keep) == reset(other(), data)
    assert reset(Own(), data, keep=keep) == reset(Own(), data)


def test_kept_work_of_the_same_network_goes_on(data: Images, tmp_path: Path) -> None:
    keep = tmp_path / "kept"
    first = reset(Own(), data, keep=keep)
    written = keep.read_text()
    assert reset(Own(), data, keep=keep) == first
    assert keep.read_text() == written  # no other protocol was added


AROUND = """
import torch
from torch import nn
{imported}
GAIN = 1.0
class Branching(nn.Module):
    scale = 1.0
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.last = nn.Conv2d(1, 6, 3), nn.Linear(6, 4)
    def forward(self, x):
        if x.sum() > 0:  # no graph: what is below stands nowhere but in the code
            x = x + 0
        return self.last({act}(self.conv(x)).mean((2, 3)) * self.scale * GAIN)
"""
HELPER = "import torch\nSLOPE = 0.1\ndef act(x):\n    return torch.where(x > 0, x, SLOPE * x)\n"


def _otherwise(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    if x.sum() > 0:
        x = -x
    return self.last(self.conv(x).mean((2, 3)))  # type: ignore[operator]


@pytest.mark.parametrize("named", [False, True], ids=["module", "name"])
@pytest.mark.parametrize(
    ("place", "attribute", "value"),
    [
        ("helper", "SLOPE", -0.9),
        ("helper", "act", torch.tanh),
        ("own", "GAIN", -1.0),
        ("class", "scale", -1.0),
        ("class", "forward", _otherwise),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_without_a_graph_kept_work_is_bound_to_all_that_the_code_takes(
    data: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    named: bool, place: str, attribute: str, value: Any,
) -> None:  # fmt: skip
    names = f"around_{tmp_path.name}", f"helper_{tmp_path.name}"
    way = (f"from {names[1]} import act", "act") if named else (f"import {names[1]} as h", "h.act")
    (tmp_path / f"{names[0]}.py").write_text(AROUND.format(imported=way[0], act=way[1]))
    (tmp_path / f"{names[1]}.py").write_text(HELPER)
    monkeypatch.syspath_prepend(tmp_path)
    own, helper = map(importlib.import_module, names)
    keep = tmp_path / "kept"
    first = reset(own.Branching(), data, keep=keep)
    written = keep.read_text()
    assert any("cannot be run by parts" in note for note in first.notes)
    assert reset(own.Branching(), data, keep=keep) == first
    assert keep.read_text() == written  # it was taken
    where = {"helper": helper, "own": own, "class": own.Branching}[place]
    if named and attribute == "act":
        where = own
    monkeypatch.setattr(where, attribute, value)
    changed = reset(own.Branching(), data, keep=keep)
    assert changed == reset(own.Branching(), data)
    assert changed.cells != first.cells


BOUND = 1


def _beyond(outputs: torch.Tensor, _: Any) -> torch.Tensor:
    return (outputs > BOUND).sum()


def test_a_metric_of_another_constant_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    before = value_digest(_beyond)
    assert value_digest(_beyond) == before
    monkeypatch.setattr(sys.modules[__name__], "BOUND", 2)
    assert value_digest(_beyond) != before


def test_a_doubt_computes_anew() -> None:
    class Odd(Own):
        def __init__(self) -> None:
            super().__init__()
            self.thing = object()

    module = Odd()
    assert code_digest(module, None) != code_digest(module, None)
    plain = Own()
    graph, _ = trace_graph(plain)
    assert code_digest(plain, graph) == code_digest(Own(), trace_graph(Own())[0])


def test_outputs_that_are_not_numbers_are_wrong_and_told(data: Images) -> None:
    module = Own()
    state = {name: torch.full_like(t, torch.nan) for name, t in module.state_dict().items()}
    resets = ps.reset(module, to={0: state}, data=data)
    assert {(cell.top1, cell.top5) for cell in resets.cells} == {(0.0, 0.0)}
    (note,) = (n for n in resets.notes if "not numbers" in n)
    assert "conv at 0" in note


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_refused_for_what_they_are(data: Images, dtype: torch.dtype) -> None:
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(ps.UsageError, match=f"conv.weight as {kind}.*module.float"):
        reset(Own().to(dtype), data)


class Faulty(Own):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise KeyError("mine")


def test_a_fault_of_the_network_is_shown_as_its_own(data: Images) -> None:
    with pytest.raises(
        ps.UsageError, match=r"code of its own, .*test_reset_safety.*KeyError: 'mine'"
    ):
        reset(Faulty(), data)


def test_the_old_weight_norm_after_a_step(data: Images) -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        conv = nn.utils.weight_norm(nn.Conv2d(1, 6, 3))
    module = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    module(torch.zeros(2, 1, 8, 8)).sum().backward()
    assert reset(module, data).cells


def test_nothing_of_the_users_is_called_or_moved(data: Images) -> None:
    called: list[int] = []

    class Drawing(Own):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + torch.rand(1) + float(np.random.rand())  # noqa: NPY002

    module = Drawing().train()
    module.conv.register_forward_hook(lambda *_: called.append(1))
    module.register_forward_pre_hook(lambda *_: called.append(1))
    module.register_state_dict_post_hook(lambda *_: called.append(1))
    state = initial(Own())
    before, legacy = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    called.clear()
    ps.reset(module, to={0: state}, data=data)
    assert not called
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == legacy  # noqa: NPY002
    assert module.training
    assert len(module.conv._forward_hooks) == 1


def test_hooks_that_are_not_run_are_told_and_those_that_make_a_weight_refused(data: Images) -> None:
    module = Own()
    module.conv.register_forward_pre_hook(lambda _, inputs: (-inputs[0],))
    state = initial(module)
    told = "hooks on conv are not run: what they change is in no number here"
    assert told in ps.reset(module, to={0: state}, data=data).notes
    given = torch.randn(16, 1, 8, 8), torch.arange(16) % 4
    assert told in ps.sensitivity(module, ways="prune:0.5", data=given).notes

    loose = Own()
    loose.conv.v = loose.conv.weight
    del loose.conv.weight
    loose.conv.weight = loose.conv.v.detach()
    loose.conv.register_forward_pre_hook(lambda m, _: setattr(m, "weight", -m.v))
    wanted = "conv has a weight that a hook of its own computes before each call"
    with pytest.raises(ps.UsageError, match=wanted):
        ps.reset(loose, to={0: initial(loose)}, data=data)
    with pytest.raises(ps.UsageError, match=wanted):
        ps.sensitivity(loose, ways="prune:0.5", data=given)


def test_the_callers_autocast_changes_nothing(data: Images) -> None:
    plain = reset(Own(), data)
    with torch.autocast("cpu", torch.bfloat16):
        assert reset(Own(), data) == plain


def test_a_network_that_cannot_be_copied_is_refused(data: Images) -> None:
    import threading

    module = Own()
    module.lock = threading.Lock()
    with pytest.raises(ps.UsageError, match="Own cannot be copied"):
        reset(module, data)


@pytest.mark.skipif(sys.platform == "win32", reason="no shell")
def test_results_without_a_way_out_are_a_failure(tmp_path: Path) -> None:
    file = tmp_path / "net.npz"
    np.savez(file, **{"conv.weight": np.random.default_rng(0).normal(size=(8, 3, 3, 3))})
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" -m planescope measure "$1" >&-', sys.executable, str(file)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("planescope: standard output: ")
    assert done.stderr.count("\n") == 1
