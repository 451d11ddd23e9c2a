"""Checkpoints whose names have the attribute of a wrapper before them, as Lightning writes them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import planescope as ps
from planescope.files.errors import CheckpointError

CODE = """
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
                         nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 12 * 12, 3))
"""


@pytest.fixture
def states(tmp_path, monkeypatch):
    """Return two states of a network that `wrapped_network:make` names, imported from a folder."""
    (tmp_path / "wrapped_network.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wrapped_network", raising=False)
    import wrapped_network

    return [wrapped_network.make().state_dict() for _ in range(2)]


def save(path, state, prefix, **more):
    named = {f"{prefix}{name}": weight for name, weight in state.items()}
    torch.save({"state_dict": named | more, "pytorch-lightning_version": "2.5.0"}, path)
    return path


@pytest.mark.parametrize("prefix", ["net.", "model.", "model.module."])
def test_the_prefix_is_taken_off_where_the_network_is_named(tmp_path, states, prefix):
    beside = {"loss.weight": torch.ones(3), "accuracy.total": torch.tensor(7)}
    plain = save(tmp_path / "plain.ckpt", states[0], "")
    trained = save(tmp_path / "trained.ckpt", states[0], prefix, **beside)
    init = save(tmp_path / "init.ckpt", states[1], prefix, **beside)
    network = "wrapped_network:make"
    found, wanted = (ps.measure(path, network=network) for path in (trained, plain))
    assert [layer.name for layer in found.layers] == ["0", "3"]
    assert found.layers == wanted.layers
    images = torch.randn(8, 1, 16, 16)
    resets = ps.reset(trained, to=init, data=images, network=network)
    by_plain = ps.reset(plain, to=init, data=images, network=network)
    assert resets.cells == by_plain.cells
    assert max(cell.relative_l2 for cell in resets.cells) > 0


def test_a_second_network_beside_it_is_no_part_that_may_be_left_out(tmp_path, states):
    second = {f"other.{name}": weight for name, weight in states[1].items()}
    path = save(tmp_path / "two.ckpt", states[0], "net.", **second)
    with pytest.raises(CheckpointError, match=r"beyond it other\."):
        ps.measure(path, network="wrapped_network:make")
    average = {f"ema.{name}": weight for name, weight in states[1].items()}
    path = save(tmp_path / "ema.ckpt", states[0], "net.", **average)
    found = ps.measure(path, network="wrapped_network:make")
    assert any("ema holds another copy" in note for note in found.notes)


def test_the_command_line_takes_it_off_too(tmp_path, states):
    paths = [save(tmp_path / f"{n}.ckpt", state, "net.") for n, state in enumerate(states)]
    done = subprocess.run(
        [sys.executable, "-m", "planescope", "diff", *map(str, paths), "--network",
         "wrapped_network:make"],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "left out of the second: 6 (a linear layer" in done.stdout
