"""What a Tracker saw, in memory or saved: on a page and in figures, like a run."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import planescope as ps
from planescope.figures import write_all
from planescope.training.tracker.history import History


def followed(*, epochs: bool = True) -> ps.Tracker:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3))
    tracker = ps.Tracker(every=1)
    for step in range(3):
        tracker.update(network, 10 * step, epoch=step if epochs else None)
        with torch.no_grad():
            network[2].weight.sub_(0.02)
    return tracker


@pytest.mark.parametrize("form", [".json", ".parquet"])
def test_saved_updates_are_read_back_whole(tmp_path, form):
    tracker, path = followed(), tmp_path / f"followed{form}"
    tracker.save(path)
    read = History.load(path)
    assert read.to_dict() == tracker.history.to_dict()
    page = ps.report(path).contents.networks[0]
    assert (page.name, page.unit, page.epochs) == ("followed", "epoch", (0, 1, 2))
    masses = [one.layers[1].negative_mass for _, one in tracker.measurements]
    assert [row[1] for row in page.statistics["negative_mass"]] == pytest.approx(masses, abs=1e-5)


def test_a_tracker_itself_has_a_page_and_figures(tmp_path):
    tracker = followed(epochs=False)
    page = ps.report(tracker).contents.networks[0]
    assert (page.unit, page.epochs) == ("step", (0, 10, 20))
    written = write_all([tracker], tmp_path / "figures", form="png")
    names = {path.name for path in written.files}
    assert {"training.png", "training.csv", "layers.png"} <= names
    text = (tmp_path / "figures" / "training.csv").read_text()
    assert "negative_mass,2,20," in text
    with pytest.raises(ps.UsageError, match="no update yet"):
        ps.report(ps.Tracker())


@pytest.mark.parametrize(
    "updates", [{}, [1], [{"step": "0", "measurement": {}}], [{"step": 0, "measurement": {}}]]
)
def test_damaged_updates_are_refused(tmp_path, updates):
    path = tmp_path / "odd.json"
    path.write_text(json.dumps({"schema": "planescope.track/1", "updates": updates}))
    with pytest.raises(ps.CheckpointError, match="holds no whole updates of a Tracker"):
        ps.report(path)


def test_checkpoints_are_measured_as_the_options_say(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 1))
    start = {name: weight.clone() for name, weight in network.state_dict().items()}
    with torch.no_grad():
        network[0].weight.mul_(1.5)
    (page,) = ps.report(network, init=start, kinds="all").contents.networks
    assert [layer.name for layer in page.layers] == ["0", "2"]
    assert page.statistics["l2"][0] == pytest.approx([0.5, 0], abs=1e-5)
    measured = ps.measure(network)
    for given in ({"kinds": "all"}, {"init": start}, {"network": "lenet"}):
        with pytest.raises(ps.UsageError, match="nothing that was given is measured here"):
            ps.report(measured, **given)
