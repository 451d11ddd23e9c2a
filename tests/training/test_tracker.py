"""The statistics live through training: what is measured, where it goes, what stays as it was."""

from __future__ import annotations

import copy
import csv
import importlib.util
import json
import os
import random
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
import warm
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.data import DataLoader, TensorDataset

import planescope as ps
from planescope.measurement.record import LAYER_KEYS
from planescope.training.run import Run


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


class DataModule(pl.LightningDataModule):
    def val_dataloader(self):
        return DataLoader(TensorDataset(*examples()), batch_size=8)


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


def test_of_a_large_layer_signs_are_exact_and_sizes_agree_to_a_millionth():
    model = nn.Sequential(nn.Conv2d(256, 300, 3))
    began, tracker = copy.deepcopy(model), ps.Tracker(every=1)
    tracker.update(model, 0)
    with torch.no_grad():
        model[0].weight += 1e-4 * torch.randn(300, 256, 3, 3, generator=torch.manual_seed(0))
    tracker.update(model, 1)
    (ours,), (theirs,) = tracker.measurements[1][1].layers, ps.measure(model, init=began).layers
    for name in ("negative_mass", "agreement", "p_mass", "q_mass", "biased", "degenerate"):
        assert getattr(ours, name) == getattr(theirs, name)
    for name in ("mean_cosine", "std_cosine", "min_cosine", "median_cosine", "max_cosine"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), abs=1e-6)
    for name in ("l2", "linf"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-6)


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


def test_a_step_that_is_given_again_after_a_training_is_told_once(tmp_path):
    tracker, model = ps.Tracker(every=1, out=tmp_path / "run"), network()
    for step in (0, 1):
        tracker.update(model, step)
        tracker.update(model, step, metrics={"train_loss": step + 0.5})
        train(model, steps=1)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            tracker.update(model, step)
        assert [f"step {step} was measured" in str(one.message) for one in told] == [True][step:]
    losses = pd.read_csv(tmp_path / "run" / "metrics.csv")["train_loss"]
    assert losses.tolist() == [0.5, 1.5]
    strict = ps.Tracker(errors="raise")
    strict.update(model, 1)
    strict.update(train(model, steps=0), 1)
    with pytest.raises(ps.UsageError, match="step 1 was measured"):
        strict.update(train(model, steps=1), 1)


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
        "planescope/biased_share": measured.network.biased_layers / 2,
        "planescope/0/negative_mass": first.negative_mass,
        "planescope/0/l2": 0.0,
        "planescope/4/negative_mass": second.negative_mass,
        "planescope/4/l2": 0.0,
        "planescope/negative_mass": measured.network.negative_mass,
    }


def test_without_a_request_nothing_is_logged_of_single_layers():
    tracker, model = ps.Tracker(), network()
    tracker.update(model, 0)
    measured = ps.measure(model).network
    assert tracker.metrics() == {
        "planescope/biased_share": measured.biased_layers / 2,
        "planescope/negative_mass": measured.negative_mass,
        "planescope/mean_cosine": measured.mean_cosine,
        "planescope/agreement": measured.agreement,
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
    unread = [record for record in tracker._recorder.history.records if callable(record.result)]
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
    exact = {"float_precision": "round_trip"}
    read = pd.read_csv(target, **exact) if suffix == ".csv" else pd.read_parquet(target)
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
    with pytest.raises(ps.NoLayersError, match=r"no layer to measure; it holds .* 1 linear"):
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
    model[4].weight = nn.Parameter(torch.randn(20, 8, 3, 3))
    model[4].bias = nn.Parameter(torch.zeros(20))
    tracker.update(model, 3)
    _, tracked = tracker.measurements[-1]
    assert [layer.filters for layer in tracked.layers] == [8, 20]
    assert tracked.layers[0].l2 > 0
    assert tracked.layers[1].l2 == 0
    tracker.update(model, 4)
    told = tracker.measurements[-1][1].notes
    assert told == ("4 changed its shape: its distances are from the weights it had then",)


def test_a_layer_that_is_replaced_is_measured_in_place_of_the_old_one():
    tracker, model = ps.Tracker(every=1), network()
    tracker.update(model, 0)
    model[4] = nn.Conv2d(8, 16, 3)
    tracker.update(model, 1)
    same_statistics(tracker.measurements[1][1], ps.measure(model))
    assert tracker.measurements[1][1].layers[1].l2 == 0  # from the first weights of the new one
    assert tracker.measurements[1][1].notes == (
        "4 was replaced: its distances are from the first weights of its new module",
    )


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
    tracker, model = ps.Tracker(every=1, log="l2"), network()
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


class Nested(nn.Module):
    """Parts within parts, one with a name of the user's own that ends like torch.compile's."""

    def __init__(self, wrap):
        super().__init__()
        body = network()
        body[0], body[4] = wrap(body[0]), nn.Sequential(wrap(body[4]))
        self.body = wrap(body)
        torch.manual_seed(1)
        self.own_orig_mod = nn.Sequential(nn.Linear(4, 5), nn.ReLU())

    def forward(self, images):
        return self.own_orig_mod(self.body(images))


def test_parts_compiled_within_compiled_ones_keep_name_activations_and_distance():
    found = []
    for wrap in (lambda part: part, lambda part: torch.compile(part, backend="eager")):
        model, tracker = Nested(wrap), ps.Tracker(every=1, kinds="all", data=examples()[0])
        tracker.update(wrap(model), 0)
        model.own_orig_mod[0] = nn.Linear(4, 5)
        tracker.update(wrap(model), 1)
        (_, first), (_, second) = tracker.measurements
        found.append([(layer.name, layer.activation_rate, layer.l2) for layer in first.layers])
        names, rates, _ = zip(*found[-1], strict=True)
        assert names == ("body.0", "body.4.0", "body.8", "own_orig_mod.0")
        assert None not in rates
        assert second.notes == (
            "own_orig_mod.0 was replaced: its distances are from the first weights of its new "
            "module",
        )
    plain, compiled = found
    assert compiled == plain


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
            noise = random.random() + np.random.rand() + torch.rand(())  # noqa: NPY002, S311
            image, label = super().__getitem__(index)
            return image + noise, label

    loader = DataLoader(Augmented(*examples()), batch_size=8, shuffle=True)
    tracker = ps.Tracker(every=1, data=loader if data else None)
    ends = []
    for watched in (None, tracker):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        model = train(network(), watched)
        drawn = (random.random(), np.random.rand(), torch.rand(()).item())  # noqa: NPY002, S311
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
            [(m.training, len(m._forward_hooks)) for m in model.modules()],
            [(p.requires_grad, p.grad if p.grad is None else p.grad.tolist()) for p in weights],
            [tensor.tolist() for tensor in model.state_dict().values()],
        )  # fmt: skip

    weights = list(model.parameters())
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
        pytest.param(lambda: TensorDataset(*examples()), [slice(0, 24)], id="dataset"),
        pytest.param(
            lambda: dict(zip(("input", "labels"), examples(), strict=True)),
            [slice(0, 24)],
            id="dictionary",
        ),
        pytest.param(lambda: [examples()[0].numpy()], [slice(0, 24)], id="arrays"),
        pytest.param(lambda: DataModule(), [slice(0, 8)], id="lightning"),
    ],
)
def test_data_give_centre_and_activation_rate_of_any_layer(data, used):
    tracker = ps.Tracker(data=data(), filters=True, log="activation_rate")
    model = network()
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
        (iter([]), "data= is a list_iterator, which can be read only once; give tensors"),
        ([{"pixels": 1}], "data= has a batch of type dict without tensors; give tensors"),
    ],
)
def test_data_that_are_none_are_refused_at_the_start(data, message):
    with pytest.raises(ps.UsageError, match=message):
        ps.Tracker(data=data)


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
        ps.CheckpointError, match=r"is 'planescope.track/0', and this version .* reads"
    ):
        ps.Tracker().load_state_dict({"schema": "planescope.track/0"})


# --- Lightning


class Task(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = network()

    def forward(self, images):
        return self.network(images)

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return DataLoader(TensorDataset(*examples()), batch_size=4, shuffle=True)


def fit(task, *callbacks, logger=False, ckpt=None, **options):
    torch.manual_seed(1)
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(task, ckpt_path=ckpt)
    return trainer


quiet = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*is smaller than the logging interval",
    "ignore:.*litlogger", "ignore:.*isinstance.treespec", "ignore:.*weights_only",
)  # fmt: skip


@quiet
def test_lightning_measures_at_the_start_and_after_each_epoch():
    tracker, task = ps.Tracker(), Task()
    fit(task, tracker, max_epochs=2)
    table = tracker.to_pandas()
    assert table[["step", "epoch", "layer"]].values.tolist() == [
        [step, epoch, layer]
        for step, epoch in ((0, 0), (6, 1), (12, 2))
        for layer in ("network.0", "network.4")
    ]
    same_statistics(tracker.measurements[-1][1], ps.measure(task))


@quiet
def test_lightning_measures_every_so_many_steps_and_at_the_end():
    tracker = ps.Tracker(every=4)
    fit(Task(), tracker, max_steps=10, log_every_n_steps=4)
    assert [step for step, _ in tracker.measurements] == [0, 4, 8, 10]


@quiet
def test_accumulated_batches_are_one_step():
    tracker = ps.Tracker(every=1)
    fit(Task(), tracker, max_epochs=1, accumulate_grad_batches=2)
    assert [step for step, _ in tracker.measurements] == [0, 1, 2, 3]


@quiet
def test_lightning_trains_to_the_same_bits_with_a_tracker():
    ends = []
    for callbacks in ((), (ps.Tracker(every=1), ps.Tracker(kinds="all", data=examples()))):
        task = Task()
        fit(task, *callbacks, max_epochs=2)
        ends.append([tensor.tolist() for tensor in task.state_dict().values()])
    assert ends[0] == ends[1]


@quiet
def test_the_csv_logger_gets_each_update_at_its_step(tmp_path):
    logged = ("negative_mass", "mean_cosine", "agreement", "l2", "linf")
    tracker = ps.Tracker(every=2, log=logged)
    logger = pl.loggers.CSVLogger(tmp_path)
    fit(Task(), tracker, logger=logger, max_epochs=1, log_every_n_steps=4)
    with (tmp_path / "lightning_logs/version_0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [0, 2, 4, 6]
    for row, (_, measured) in zip(rows, tracker.measurements, strict=True):
        layer = measured.layers[1]
        for name in logged:
            assert float(row[f"planescope/network.4/{name}"]) == getattr(layer, name)
        assert float(row["planescope/agreement"]) == measured.network.agreement


@quiet
def test_tensorboard_gets_the_statistics(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = ps.Tracker(log="mean_cosine")
    fit(Task(), tracker, logger=pl.loggers.TensorBoardLogger(tmp_path), max_epochs=2)
    events = EventAccumulator(str(tmp_path / "lightning_logs/version_0")).Reload()
    shown = events.Scalars("planescope/network.0/mean_cosine")
    assert [event.step for event in shown] == [0, 6, 12]
    found = [measured.layers[0].mean_cosine for _, measured in tracker.measurements]
    assert [event.value for event in shown] == pytest.approx(found, rel=1e-6)


@quiet
def test_nothing_is_logged_that_was_not_chosen(tmp_path):
    tracker = ps.Tracker(log=())
    fit(Task(), tracker, logger=pl.loggers.CSVLogger(tmp_path), max_epochs=1)
    assert not (tmp_path / "lightning_logs/version_0/metrics.csv").exists()
    assert len(tracker.measurements) == 2


@quiet
def test_a_resumed_fit_continues_the_table_and_its_distances(tmp_path):
    whole = ps.Tracker()
    fit(Task(), whole, max_epochs=3)
    trainer = fit(Task(), ps.Tracker(), max_epochs=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    resumed = ps.Tracker()
    torch.manual_seed(5)
    fit(Task(), resumed, max_epochs=3, ckpt=tmp_path / "last.ckpt")
    table, expected = resumed.to_pandas(), whole.to_pandas()
    assert table["step"].tolist() == expected["step"].tolist()
    pd.testing.assert_frame_equal(table[:6], expected[:6], check_exact=True)
    distance = table["l2"].to_numpy()[-1]
    assert distance == pytest.approx(expected["l2"].to_numpy()[-1], rel=0.2)
    assert distance > table["l2"].to_numpy()[3]


@quiet
def test_lightning_stops_before_the_first_batch_where_nothing_can_be_measured():
    task = Task()
    with pytest.raises(ps.NoLayersError, match="no layer to measure"):
        fit(task, ps.Tracker(layers="nowhere"), max_epochs=1)
    assert task.trainer.global_step == 0


@pytest.mark.slow
def test_without_lightning_the_tracker_serves_other_loops():
    code = """
import sys
sys.modules.update({"pytorch_lightning": None, "lightning": None})
import torch, planescope as ps
tracker = ps.Tracker()
tracker.update(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3)), 0)
print([base.__name__ for base in ps.Tracker.__mro__], len(tracker.to_pandas()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['Tracker', 'Callback', 'object'] 1\n"


# --- several processes

START = warm.CONTEXT.get_start_method()


@pytest.mark.slow
@quiet
def test_in_lightning_the_process_of_rank_0_logs(tmp_path):
    logger = pl.loggers.CSVLogger(tmp_path)
    strategy = pl.strategies.DDPStrategy(start_method=START)
    fit(
        Task(), ps.Tracker(log="l2"), logger=logger, max_epochs=2, strategy=strategy, devices=2
    )  # each process sees half of the 6 batches
    with (tmp_path / "lightning_logs/version_0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [0, 3, 6]
    assert (
        float(rows[0]["planescope/network.4/l2"]) == 0 < float(rows[2]["planescope/network.4/l2"])
    )


# FSDP2 asks the CPU for streams, which torch has from 2.7 on.
SHARDS = ("fully_shard",) if hasattr(torch.cpu.Stream, "record_event") else ()
KINDS = ("ddp", *SHARDS, "flat")


@pytest.fixture(scope="module")
def shared_out(tmp_path_factory):
    """What two processes tracked, in each way to share a network: by kind the path of a table.

    One start for all: to start two processes takes longer than to train.
    """
    folder = tmp_path_factory.mktemp("shared")
    torch.multiprocessing.start_processes(_joined, (folder,), nprocs=2, start_method=START)
    return {kind: folder / f"{kind}.csv" for kind in KINDS}


def _joined(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2
    )
    for kind in KINDS:
        _track(rank, folder / f"{kind}.csv", kind)
    torch.distributed.destroy_process_group()


def _track(rank, path, kind):
    model = network()
    if kind == "ddp":
        wrapped = nn.parallel.DistributedDataParallel(model)
    elif kind == "fully_shard":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        wrapped = fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    else:
        from torch.distributed.fsdp import FullyShardedDataParallel

        wrapped = FullyShardedDataParallel(
            model, device_id=torch.device("cpu"), use_orig_params=True
        )
    tracker = ps.Tracker(every=2, kinds="all")
    train(wrapped, tracker)
    tracker.record(wrapped, 6)  # measured before: no process may wait for another
    if rank == 0:
        tracker.save(path)
    assert len(tracker.measurements) == (4 if rank == 0 else 0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_of_several_processes_keeps_the_statistics(shared_out, kind):
    table = pd.read_csv(shared_out[kind])
    alone = ps.Tracker(every=2, kinds="all")
    train(network(), alone)  # both processes see the same batches, so that one alone ends alike
    expected = alone.to_pandas()
    assert table["layer"].astype(str).tolist() == expected["layer"].tolist()
    for name in ("negative_mass", "mean_cosine", "l2", "linf", "mean_centre"):
        np.testing.assert_allclose(
            table[name].to_numpy(float), expected[name].to_numpy(float), rtol=1e-4, atol=1e-6
        )


# --- other trainers


@pytest.mark.slow
@pytest.mark.parametrize("every", ["epoch", 2])
def test_the_trainer_of_hugging_face(tmp_path, every, monkeypatch):
    transformers = pytest.importorskip("transformers")

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network()

        def forward(self, pixels, labels):
            logits = self.network(pixels)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    images, labels = examples()
    data = [{"pixels": x, "labels": y} for x, y in zip(images, labels, strict=True)]
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    trainer = transformers.Trainer(
        model=Classifier(),
        args=transformers.TrainingArguments(
            output_dir=str(tmp_path),
            num_train_epochs=2,
            per_device_train_batch_size=8,
            logging_steps=2,
            report_to=["tensorboard"],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=data,
    )
    tracker = ps.Tracker(every=every, out=tmp_path / "run")
    trainer.add_callback(tracker.for_transformers(trainer))
    trainer.train()
    steps = [step for step, _ in tracker.measurements]
    assert steps == ([0, 3, 6] if every == "epoch" else [0, 2, 4, 6])
    same_statistics(tracker.measurements[-1][1], ps.measure(trainer.model))
    logged = [row for row in trainer.state.log_history if "planescope/agreement" in row]
    assert logged[-1]["planescope/agreement"] == tracker.metrics()["planescope/agreement"]
    losses = {row["step"]: row["loss"] for row in trainer.state.log_history if "loss" in row}
    assert list(losses) == [2, 4, 6]
    told = {row.epoch: row.train_loss for row in Run(tmp_path / "run").metrics}
    wanted = {0: None, 1: losses[2], 2: losses[6]} if every == "epoch" else {0: None, **losses}
    assert told == wanted
    assert pictures(tmp_path / "logs") == [6]


KERAS = """
import numpy as np, keras
import planescope as ps
keras.utils.set_random_seed(0)
inner = keras.Sequential(
    [keras.layers.SeparableConv2D(6, 3, name="sep"), keras.layers.DepthwiseConv2D(3, name="deep")],
    name="inner",
)
model = keras.Sequential([
    keras.Input((12, 12, 3)),
    keras.layers.Conv2D(8, 3, use_bias=False, name="stem"),
    keras.layers.BatchNormalization(epsilon=0.01, name="norm"),
    keras.layers.ReLU(),
    inner,
    keras.layers.Conv2DTranspose(5, 2, name="up"),
    keras.layers.Flatten(),
    keras.layers.Dense(2, name="head"),
])
model.compile("sgd", "mse")
tracker = ps.Tracker(
    every={every!r}, kinds="all", view="effective", log="negative_mass", out={logs!r} + "-run"
)
x, y = np.random.rand(24, 12, 12, 3), np.random.rand(24, 2)
history = model.fit(
    x, y, epochs=2, batch_size=8, verbose=0, shuffle=False,
    callbacks=[tracker.for_keras(keras.callbacks.TensorBoard({logs!r}))],
)
model.save({path!r})
measurements = tracker.measurements
print([step for step, _ in measurements], [m.layers[0].l2 > 0 for _, m in measurements])
last, wanted = tracker.measurements[-1][1], ps.measure({path!r}, kinds="all", view="effective")
for ours, theirs in zip(last.layers, wanted.layers, strict=True):
    a, b = vars(ours), vars(theirs)
    print(all(a[k] == b[k] for k in a if k not in ("l2", "linf", "values")), ours.name)
print(len(history.history["planescope/stem/negative_mass"]))
for run in (ps.reset, ps.sensitivity):
    for what in (model, {logs!r} + "-run"):
        try:
            run(what, data=(x, y))
        except ps.UsageError as exc:
            print(exc)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "every", "steps"),
    [
        pytest.param("torch", "epoch", [0, 3, 6], id="torch", marks=pytest.mark.long),
        pytest.param("jax", 2, [0, 2, 4, 6], id="jax"),
    ],
)
def test_a_keras_model_is_measured_as_its_file_will_be(tmp_path, backend, every, steps):
    for package in ("keras", backend):  # to import keras here would choose its backend
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    logs = str(tmp_path / "logs")
    code = KERAS.format(every=every, path=str(tmp_path / "model.keras"), logs=logs)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    no_run = (
        f"{logs}-run: the run has no snapshots: only Keras itself lays out the weights of its "
        "networks; export the model to ONNX, and planescope sensitivity runs it"
    )
    names = ["stem", "inner.sep.depthwise", "inner.sep.pointwise", "inner.deep", "up", "head"]
    assert done.stdout.splitlines() == [
        f"{steps} {[False, *(True for _ in steps[1:])]}",
        *(f"True {name}" for name in names),
        "2",
        "a Keras network cannot be reset here; export it to ONNX and use planescope sensitivity, "
        "or give its torch version",
        no_run,
        "a Keras network cannot be run here; export it to ONNX, or give its torch version",
        no_run,
    ]
    assert pictures(logs) == steps[-1:]


def test_data_do_not_go_through_keras():
    with pytest.raises(ps.UsageError, match="data= needs a torch module"):
        ps.Tracker(data=images()).for_keras()


class Courteous(pl.LightningModule):
    """A network that Lightning trains."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def train_dataloader(self):
        return DataLoader(TensorDataset(*examples()), batch_size=8)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit_with(tracker, folder, *loggers):
    trainer = pl.Trainer(
        max_epochs=2, callbacks=[tracker], logger=list(loggers), accelerator="cpu",
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(Courteous())


def pictures(folder):
    """Return the steps of the pictures of all layers that TensorBoard finds in a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload().Images("planescope/negative_mass_by_layer")
    assert all(image.width > 500 for image in found)
    return [image.step for image in found]


def test_any_loop_gives_the_picture_to_a_logger_of_its_own(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    tracker, model = ps.Tracker(every=2), network()
    tracker.update(model, 0)
    with SummaryWriter(tmp_path) as writer:
        with pytest.raises(ps.UsageError, match="two updates or more"):
            tracker.log_picture(writer)
        tracker.update(model, 2)
        tracker.log_picture(writer)
    assert pictures(tmp_path) == [2]
    with pytest.raises(ps.UsageError, match=r"a \w*Path takes no picture; give a SummaryWriter"):
        tracker.log_picture(tmp_path)


def test_a_logger_that_takes_pictures_gets_one_of_all_layers(tmp_path):
    logger = pl.loggers.TensorBoardLogger(tmp_path)
    fit_with(ps.Tracker(), tmp_path, logger, pl.loggers.CSVLogger(tmp_path))
    assert pictures(logger.log_dir) == [6]


def test_a_callback_of_another_trainer_says_which_to_give(tmp_path):
    with pytest.raises(ps.UsageError, match="give Lightning's trainer the Tracker itself"):
        fit_with(ps.Tracker().for_transformers(), tmp_path)
    with pytest.raises(ps.UsageError, match=r"give Keras tracker.for_keras\(\)"):
        ps.Tracker().for_transformers().set_params({})
