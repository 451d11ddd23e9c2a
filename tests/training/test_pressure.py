"""The drift pressure: worked values, when there is none, and the forms in which it is kept."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import planescope as ps
from planescope.figures.columns import dynamics_numbers
from planescope.training.tracker.history import History


def convolutions(*, bias=False):
    return nn.Sequential(nn.Conv2d(1, 2, 2, bias=bias), nn.ReLU(), nn.Conv2d(2, 3, 1, bias=bias))


def fill(module, *filters):
    """Give each filter weights that are all the same."""
    with torch.no_grad():
        for own, value in zip(module.weight, filters, strict=True):
            own.fill_(value)


def tracked(**options):
    """Filters of four weights: their sums go from 4 and 8 to 2 and -4 in three steps, and stay."""
    tracker, model = ps.Tracker(every=1, drift=True, **options), convolutions()
    fill(model[0], 1.0, 2.0)
    tracker.update(model, 0, epoch=0)
    fill(model[0], 0.5, -1.0)
    tracker.update(model, 3, epoch=1)
    tracker.update(model, 4, epoch=2)
    return tracker, model


def test_it_is_the_change_of_the_mean_projection_a_step():
    # ((2 - 4) + (-4 - 8)) / 2 filters / 3 steps
    tracker, _ = tracked()
    assert tracker.to_pandas()["drift_pressure"].tolist()[1:] == [-14 / 2 / 3, 0.0]
    assert tracker.to_pandas()["drift_pressure"].isna().tolist() == [True, False, False]
    assert "drift_pressure" not in ps.Tracker().to_pandas()


def test_of_the_effective_view_it_is_of_what_the_batch_norm_makes_of_the_weights():
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2, eps=0.0), nn.ReLU())
    fill(model[0], 1.0, 1.0)
    tracker = ps.Tracker(every=1, drift=True, view="effective")
    tracker.update(model, 0)
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1.0, -2.0]))  # sums 4 and 4 become 4 and -8
    tracker.update(model, 2)
    assert tracker.to_pandas()["drift_pressure"].tolist()[1] == pytest.approx(-12 / 2 / 2)


def test_it_is_logged_for_each_layer_and_for_the_filters_of_all():
    tracker = ps.Tracker(every=1, drift=True, kinds="all", log=["l2"])
    model = convolutions()
    for step, (first, second) in enumerate([(1.0, 2.0), (2.0, 2.5)]):
        fill(model[0], first, first)
        fill(model[2], second, second, second)
        tracker.update(model, step)
        logged = {k: v for k, v in tracker.metrics().items() if k.endswith("drift_pressure")}
        assert len(logged) == (3 if step else 0)
    # 4 weights up by 1 in two filters, 2 weights up by 0.5 in three
    assert logged == {
        "planescope/0/drift_pressure": 4.0,
        "planescope/2/drift_pressure": 1.0,
        "planescope/drift_pressure": (2 * 4.0 + 3 * 1.0) / 5,
    }
    assert all("drift" not in key for key in tracked(log=())[0].metrics())


@pytest.mark.parametrize("change", ["replaced", "pruned", "earlier"])
def test_there_is_none_where_filters_or_steps_do_not_follow(change):
    tracker, model = tracked()
    step = 5
    if change == "replaced":
        model[0] = nn.Conv2d(1, 2, 2, bias=False)
    elif change == "pruned":
        fill(model[0], 0.0, -1.0)
    else:
        step = 2
    for later in range(2):
        tracker.update(model, step + later)
    assert tracker.to_pandas()["drift_pressure"].isna().tolist()[3:] == [True, False]


@pytest.mark.parametrize("suffix", [".json", ".csv", ".parquet"])
def test_it_is_saved(tmp_path, suffix):
    tracker, _ = tracked()
    target = tmp_path / f"track{suffix}"
    tracker.save(target)
    wanted = [np.nan, -14 / 2 / 3, 0.0]
    if suffix != ".json":
        read = pd.read_csv if suffix == ".csv" else pd.read_parquet
        np.testing.assert_allclose(read(target)["drift_pressure"], wanted, rtol=1e-15)
    if suffix != ".csv":
        np.testing.assert_array_equal(
            History.load(target).columns()["drift_pressure"], [None, *wanted[1:]]
        )


@pytest.mark.parametrize("values", [[], [1.0, 2.0], ["1"], [True], {"0": 1.0}])
def test_a_file_whose_pressures_are_no_numbers_is_refused(tmp_path, values):
    tracker, _ = tracked()
    tracker.save(tmp_path / "track.json")
    saved = json.loads((tmp_path / "track.json").read_text())
    saved["updates"][1]["drift_pressure"] = values
    (tmp_path / "track.json").write_text(json.dumps(saved))
    with pytest.raises(ps.CheckpointError, match="drift_pressure of an update is no"):
        History.load(tmp_path / "track.json")


def test_a_resumed_tracker_goes_on_with_it(tmp_path):
    first, model = tracked()
    torch.save(first.state_dict(), tmp_path / "state.pt")
    resumed = ps.Tracker(every=1, drift=True)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    fill(model[0], 1.5, -0.5)  # sums from 2 and -4 to 6 and -2
    resumed.update(model, 8)
    assert resumed.to_pandas()["drift_pressure"].tolist()[1:] == [-14 / 2 / 3, 0.0, 6 / 2 / 4]


def test_the_figure_of_a_training_shows_it():
    tracker, _ = tracked()
    titles = [axes.get_title(loc="left") for axes in ps.figures.dynamics(tracker).axes]
    assert "drift pressure a step" in titles
    numbers = dynamics_numbers(tracker.history, ["drift_pressure"])
    assert numbers["value"] == [None, -14 / 2 / 3, 0.0]
    (axes,) = ps.figures.dynamics(tracker, statistics=["drift_pressure"]).axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [np.nan, -14 / 2 / 3, 0.0])
