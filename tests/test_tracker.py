"""The statistics live through training: what is measured, where it goes, and what stays as it was."""

from __future__ import annotations

import copy
import csv
import json
import random
import warnings

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.data import DataLoader, TensorDataset

import planescope as ps
from planescope.measurement import LAYER_KEYS


def network(seed=0):
    """Two convolutions, the first behind the image and with a batch norm."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Conv2d(8, 16, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )


def examples(count=24):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, 8, 8, generator=generator)
    return images, torch.arange(count) % 4


def train(model, tracker=None, steps=6, *, learning_rate=0.1):
    """Train in a loop of one's own."""
    images, labels = (part.split(4) for part in examples())
    device = next(model.parameters()).device
    weights = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(weights, lr=learning_rate)
    torch.manual_seed(1)
    if tracker is not None:
        tracker.update(model, 0)
    for step in range(1, steps + 1):
        optimiser.zero_grad()
        inputs = images[step % 6].to(device, next(model.parameters()).dtype)
        loss = nn.functional.cross_entropy(model(inputs), labels[step % 6].to(device))
        loss.backward()
        optimiser.step()
        if tracker is not None:
            tracker.update(model, step)
    return model


def same_statistics(tracked, measured, *, but=("l2", "linf")):
    """All statistics of two measurements are equal, to the last bit."""
    rows = [measurement.to_dict()["layers"] for measurement in (tracked, measured)]
    for ours, theirs in zip(*rows, strict=True):
        assert {k: v for k, v in ours.items() if k not in but} == {
            k: v for k, v in theirs.items() if k not in but
        }
    assert tracked.network == measured.network
    assert tracked.stages == measured.stages
    assert tracked.skipped == measured.skipped


# --- a loop of one's own


@pytest.mark.parametrize("view", ["raw", "effective"])
@pytest.mark.parametrize("kinds", [("conv",), ("conv", "linear")], ids="+".join)
def test_each_update_gives_what_measure_gives_at_that_moment(view, kinds):
    tracker, model, measured = ps.Tracker(every=1, view=view, kinds=kinds), network(), []
    began = copy.deepcopy(model)
    for step in range(3):
        tracker.update(model, step)
        measured.append(ps.measure(model, view=view, kinds=kinds, init=began))
        train(model, steps=1)
    assert [step for step, _ in tracker.measurements] == [0, 1, 2]
    for (_, ours), theirs in zip(tracker.measurements, measured, strict=True):
        same_statistics(ours, theirs)
        for one, other in zip(ours.layers, theirs.layers, strict=True):
            assert (one.l2, one.linf) == pytest.approx((other.l2, other.linf), rel=1e-12)
    assert measured[2].layers[0].l2 > 0


@pytest.mark.parametrize(
    ("every", "steps"),
    [(1, [0, 1, 2, 3, 4, 5, 6]), (3, [0, 3, 6]), (10, [0]), ("epoch", [0, 1, 2, 3, 4, 5, 6])],
)
def test_every_so_many_steps(every, steps):
    tracker = ps.Tracker(every=every)
    train(network(), tracker)
    assert [step for step, _ in tracker.measurements] == steps


def test_the_first_update_measures_whatever_its_step_and_no_step_is_measured_twice():
    tracker, model = ps.Tracker(every=10), network()
    for step in (7, 10, 10, 13):
        tracker.update(model, step)
    tracker.record(model, 13)
    assert [step for step, _ in tracker.measurements] == [7, 10, 13]


def test_the_table_has_a_row_an_update_and_layer():
    tracker, model = ps.Tracker(every=1), network()
    for epoch in range(2):
        tracker.update(model, 5 * epoch, epoch=epoch)
    table = tracker.to_pandas()
    assert list(table) == ["step", "epoch", "layer", *LAYER_KEYS[1:]]
    assert table[["step", "epoch", "layer"]].values.tolist() == [
        [0, 0, "0"], [0, 0, "4"], [5, 1, "0"], [5, 1, "4"]
    ]  # fmt: skip
    expected = ps.measure(model).to_pandas()["negative_mass"].tolist()
    assert table["negative_mass"].tolist() == expected * 2


def test_what_an_update_saw_stays_when_training_goes_on():
    tracker, model = ps.Tracker(every=1, filters=True), network()
    tracker.update(model, 0)
    expected = ps.measure(model)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    same_statistics(tracker.measurements[0][1], expected)


def test_metrics_are_named_after_layers_and_the_pool_has_no_layer():
    tracker, model = ps.Tracker(log=["negative_mass", "l2"]), network()
    assert tracker.metrics() == {}
    tracker.update(model, 0)
    measured = ps.measure(model)
    first, second = measured.layers
    assert tracker.metrics() == {
        "planescope/0/negative_mass": first.negative_mass,
        "planescope/0/l2": 0.0,
        "planescope/4/negative_mass": second.negative_mass,
        "planescope/4/l2": 0.0,
        "planescope/negative_mass": measured.network.negative_mass,
    }


def test_values_of_single_filters_are_kept_on_request():
    for filters in (False, True):
        tracker = ps.Tracker(filters=filters)
        tracker.update(network(), 0)
        ((_, measured),) = tracker.measurements
        assert all((layer.values is not None) is filters for layer in measured.layers)


def test_updates_that_nobody_reads_do_not_pile_up_on_the_device():
    tracker, model = ps.Tracker(every=1, reference=None), network()
    for step in range(70):
        tracker.update(model, step)
    unread = [record for record in tracker._records if callable(record.result)]
    assert len(unread) == 64
    assert len(tracker.to_pandas()) == 140


@pytest.mark.parametrize("suffix", [".json", ".csv", ".parquet"])
def test_the_table_is_saved(tmp_path, suffix):
    tracker = ps.Tracker(every=2)
    train(network(), tracker)
    target = tmp_path / f"track{suffix}"
    tracker.save(target)
    if suffix == ".json":
        saved = json.loads(target.read_text())
        assert saved["schema"] == "planescope.track/1"
        assert [update["step"] for update in saved["updates"]] == [0, 2, 4, 6]
        assert saved["updates"][3]["measurement"] == tracker.measurements[3][1].to_dict()
        return
    read = pd.read_csv(target) if suffix == ".csv" else pd.read_parquet(target)
    table = tracker.to_pandas()
    assert read["step"].tolist() == table["step"].tolist()
    np.testing.assert_array_equal(read["l2"], table["l2"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every=0 must be 'epoch', or the number of steps .* at least 1"),
        ({"every": "batch"}, "every='batch' must be 'epoch'"),
        ({"every": True}, "every=True must be 'epoch'"),
        ({"view": "cooked"}, "unknown view 'cooked'; there are raw, effective"),
        ({"kinds": ["conv3"]}, "unknown kind 'conv3'"),
        ({"layers": "("}, "broken regular expression"),
        ({"log": ["negative_mas"]}, "log='negative_mas' is no statistic; .* negative_mass"),
        ({"reference": "disk"}, "unknown reference 'disk'; there are device, cpu"),
    ],
)
def test_an_option_that_cannot_be_is_refused_at_once(options, message):
    with pytest.raises(ps.UsageError, match=message):
        ps.Tracker(**options)


def test_a_network_without_such_layers_is_refused_at_the_start():
    with pytest.raises(ps.NoLayersError, match="no layer to measure; it holds .* 1 linear"):
        ps.Tracker().update(nn.Sequential(nn.Linear(3, 2)), 0)


# --- what the network may be


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(parametrizations.weight_norm, id="weight-norm"),
        pytest.param(parametrizations.spectral_norm, id="spectral-norm"),
        pytest.param(lambda conv: nn.utils.weight_norm(conv), id="older-weight-norm"),
        pytest.param(lambda conv: prune.l1_unstructured(conv, "weight", 0.5), id="pruned"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_of_a_weight_in_parts_the_one_that_is_computed_is_measured(change):
    tracker, model = ps.Tracker(every=1), network()
    change(model[4])
    for step in range(2):
        tracker.update(model, step)
        train(model, steps=1)
    tracker.update(model, 2)
    _, tracked = tracker.measurements[-1]
    same_statistics(tracked, ps.measure(model))
    assert [layer.name for layer in tracked.layers] == ["0", "4"]
    assert tracked.layers[1].l2 > 0


def test_frozen_layers_stay_where_they_were():
    tracker, model = ps.Tracker(every=1), network()
    model[4].requires_grad_(False)
    train(model, tracker)
    table = tracker.to_pandas().set_index(["layer", "step"])
    assert (table.loc["4"]["l2"] == 0).all()
    assert table.loc["0", 6]["l2"] > 0


def test_a_shared_layer_is_measured_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 3, 3)
            self.again = self.first

        def forward(self, x):
            return self.again(self.first(x).relu()).mean((2, 3))

    tracker, model = ps.Tracker(), Twice()
    tracker.update(model, 0)
    assert [layer.name for layer in tracker.measurements[0][1].layers] == ["first"]


def test_a_layer_that_changes_its_shape_starts_anew():
    tracker, model = ps.Tracker(every=1), network()
    train(model, tracker, steps=2)
    model[4], model[8] = nn.Conv2d(8, 20, 3), nn.Linear(20, 4)
    tracker.update(model, 3)
    _, tracked = tracker.measurements[-1]
    assert [layer.filters for layer in tracked.layers] == [8, 20]
    assert tracked.layers[0].l2 > 0
    assert tracked.layers[1].l2 == 0
    assert "4 changed its shape: its distances are from the weights it had then" in tracked.notes


def test_a_layer_that_is_replaced_is_measured_in_place_of_the_old_one():
    tracker, model = ps.Tracker(every=1), network()
    tracker.update(model, 0)
    model[4] = nn.Conv2d(8, 16, 3)
    tracker.update(model, 1)
    same_statistics(tracker.measurements[1][1], ps.measure(model))
    assert tracker.measurements[1][1].layers[1].l2 > 0.5  # from the weights of the first update


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_other_types(dtype):
    tracker, model = ps.Tracker(every=1), network().to(dtype)
    began = copy.deepcopy(model)
    tracker.update(model, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    tracker.update(model, 1)
    _, tracked = tracker.measurements[-1]
    same_statistics(tracked, ps.measure(model))
    for now, before in zip((model[0], model[4]), (began[0], began[4]), strict=True):
        path = (now.weight.double() - before.weight.double()).norm() / before.weight.double().norm()
        layer = tracked.layers[0 if now is model[0] else 1]
        assert layer.l2 == pytest.approx(path.item(), rel=1e-6)


def test_a_layer_whose_weights_are_not_finite_is_measured_without_its_filters():
    tracker, model = ps.Tracker(every=1), network()
    tracker.update(model, 0)
    with torch.no_grad():
        model[4].weight[3] = float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tracker.update(model, 1)
        layer = tracker.measurements[1][1].layers[1]
    assert (layer.non_finite, layer.l2, layer.linf) == (1, None, None)
    assert "planescope/4/l2" not in tracker.metrics()


def test_of_a_compiled_or_wrapped_module_the_module_itself_is_measured():
    model = network()
    wrapped = nn.DataParallel(torch.compile(model, backend="eager"))
    tracker = ps.Tracker()
    tracker.update(wrapped, 0)
    same_statistics(tracker.measurements[0][1], ps.measure(model))


@pytest.mark.slow
def test_a_compiled_module_trains_to_the_same_bits():
    tracked, plain = (torch.compile(network(), backend="aot_eager") for _ in range(2))
    tracker = ps.Tracker(every=1)
    train(tracked, tracker)
    train(plain)
    for ours, theirs in zip(tracked.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert len(tracker.measurements) == 7


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("reference", ["device", "cpu"])
def test_on_a_gpu_the_statistics_are_those_of_the_cpu(reference):
    tracker, model = ps.Tracker(every=1, reference=reference), network().cuda()
    train(model, tracker)
    table = tracker.to_pandas().set_index(["layer", "step"])
    for layer in ps.measure(model.cpu()).layers:
        row = table.loc[layer.name, 6]
        assert row["negative_mass"] == layer.negative_mass
        assert row["mean_cosine"] == pytest.approx(layer.mean_cosine, abs=1e-12)
        assert row["l2"] > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_an_update_on_a_gpu_waits_for_nothing():
    tracker, model = ps.Tracker(every=1), network().cuda()
    tracker.update(model, 0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        tracker.update(model, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(tracker.to_pandas()) == 4


# --- what must stay as it was


@pytest.mark.parametrize("data", [False, True], ids=["weights", "data"])
def test_training_with_a_tracker_ends_in_the_same_bits(data):
    class Augmented(TensorDataset):
        def __getitem__(self, index):
            noise = random.random() + np.random.rand() + torch.rand(())  # noqa: NPY002
            image, label = super().__getitem__(index)
            return image + noise, label

    loader = DataLoader(Augmented(*examples()), batch_size=8, shuffle=True)
    tracker = ps.Tracker(every=1, data=loader if data else None)
    ends = []
    for watched in (None, tracker):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        model = train(network(), watched)
        drawn = (random.random(), np.random.rand(), torch.rand(()).item())  # noqa: NPY002
        ends.append((*(p.tolist() for p in (*model.parameters(), *model.buffers())), drawn))
    assert ends[0] == ends[1]
    assert len(tracker.measurements) == 7


def test_an_update_leaves_modes_hooks_and_gradients_alone():
    model = network()
    model[1].eval()
    model[4].requires_grad_(False)
    calls = []
    model[4].register_forward_hook(lambda *_: calls.append(1))
    model(examples()[0]).sum().backward()
    calls.clear()

    def state():
        return (
            [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
            [(p.requires_grad, None if p.grad is None else p.grad.tolist()) for p in model.parameters()],
            [tensor.tolist() for tensor in model.state_dict().values()],
        )  # fmt: skip

    before = state()
    ps.Tracker(data=examples()[0]).update(model, 0)
    ps.Tracker().update(model, 0)
    assert state() == before


# --- data


def images():
    return examples()[0]


@pytest.mark.parametrize(
    ("data", "used"),
    [
        pytest.param(lambda: images(), [slice(0, 24)], id="tensor"),
        pytest.param(lambda: examples(), [slice(0, 24)], id="inputs-and-labels"),
        pytest.param(lambda: list(images().split(8)), [slice(0, 24)], id="all-of-a-list"),
        pytest.param(
            lambda: DataLoader(TensorDataset(*examples()), batch_size=8), [slice(0, 8)], id="loader"
        ),
    ],
)
def test_data_give_centre_and_activation_rate_of_any_layer(data, used):
    tracker, model = ps.Tracker(data=data(), filters=True), network()
    tracker.update(model, 0)
    train(model, steps=1)
    tracker.update(model, 1)
    wanted = ps.measure(model, data=[images()[part] for part in used])
    _, tracked = tracker.measurements[-1]
    for ours, theirs in zip(tracked.layers, wanted.layers, strict=True):
        np.testing.assert_allclose(ours.values.centre, theirs.values.centre, rtol=1e-9)
        assert ours.activation_rate == pytest.approx(theirs.activation_rate, rel=1e-9)
    assert tracker.metrics()["planescope/4/activation_rate"] == tracked.layers[1].activation_rate


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "data= has no batch"),
        (iter([]), "data= has no batch"),
        ([{"pixels": 1}], "data= has a batch of type dict; give tensors, or tuples"),
    ],
)
def test_data_that_are_none_are_refused_at_the_start(data, message):
    with pytest.raises(ps.UsageError, match=message):
        ps.Tracker(data=data).update(network(), 0)


# --- states


@pytest.mark.parametrize("reference", ["device", "cpu", None])
def test_a_resumed_tracker_goes_on_as_if_nothing_had_been(tmp_path, reference):
    whole = ps.Tracker(every=1, reference=reference)
    model = network()
    train(model, whole, steps=4)

    first, again = ps.Tracker(every=1, reference=reference), network()
    torch.manual_seed(1)
    train(again, first, steps=2)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    resumed = ps.Tracker(every=1, reference=reference)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    resumed.update(again, 2)  # measured before
    assert len(resumed.measurements) == 3
    resumed.update(model, 4)
    table, expected = resumed.to_pandas(), whole.to_pandas()
    rows = expected[expected["step"] != 3].reset_index(drop=True)
    pd.testing.assert_frame_equal(table, rows, check_exact=True)


def test_a_state_of_another_version_is_refused():
    with pytest.raises(
        ps.CheckpointError, match="is 'planescope.track/0', and this version .* reads"
    ):
        ps.Tracker().load_state_dict({"schema": "planescope.track/0"})
