"""A Tracker is a guest: it ends no training, changes none, and says what it could not measure."""

import copy
import importlib.util
import os
import pickle
import subprocess
import sys
import warnings

import pytest
import pytorch_lightning as pl
import torch
from test_tracker import START, Task, examples, fit, network, quiet
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import planescope as ps


def rows(tracker):
    return [(step, m.layers[0].negative_mass is None) for step, m in tracker.measurements]


def updated(tracker, model, step):
    tracker.update(model, step)
    return tracker


# --- failures


def replaced(model):
    for index in (0, 4):
        model[index] = nn.Identity()


FAILURES = {
    "no-layer-left": (replaced, "no layer to measure"),
    "moved-to-meta": (lambda model: model.to("meta"), "meta"),
    "not-there": (lambda model: setattr(model, "4", None) or delattr(model[0], "weight"), ""),
}


@pytest.mark.parametrize(("break_it", "reason"), FAILURES.values(), ids=FAILURES)
def test_after_the_first_update_a_failure_is_one_warning_and_rows_of_nulls(break_it, reason):
    tracker, model = ps.Tracker(every=1), network()
    tracker.update(model, 0)
    break_it(model)
    with pytest.warns(UserWarning, match=f"could not measure at step 1, and goes on: .*{reason}"):
        assert rows(updated(tracker, model, 1)) == [(0, False), (1, True)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is told once
        tracker.update(model, 2)
        assert rows(tracker) == [(0, False), (1, True), (2, True)]
    failed = tracker.measurements[1][1]
    assert [layer.name for layer in failed.layers] == ["0", "4"]
    assert failed.network.negative_mass is None
    assert "could not be measured: " in failed.notes[0]
    table = tracker.to_pandas()
    assert table["negative_mass"].isna().tolist() == [False, False, True, True, True, True]
    tracker.update(network(), 3)
    assert rows(tracker)[-1] == (3, False)


def test_with_errors_raise_each_failure_raises():
    tracker, model = ps.Tracker(every=1, errors="raise"), network()
    tracker.update(model, 0)
    replaced(model)
    with pytest.raises(ps.NoLayersError, match="no layer to measure"):
        tracker.update(model, 1)


def test_before_the_first_success_a_failure_is_one_of_our_errors():
    odd = torch.randn(4, 5, 8, 8)
    with pytest.raises(ps.UsageError, match="data= do not fit the network: RuntimeError"):
        ps.Tracker(data=odd).update(network(), 0)
    with pytest.raises(ps.UsageError, match="on the meta device"):
        ps.Tracker().update(network().to("meta"), 0)
    with pytest.raises(ps.UsageError, match="unknown errors 'ignore'; there are warn, raise"):
        ps.Tracker(errors="ignore")


def test_nulls_are_saved_resumed_and_logged(tmp_path):
    tracker, model = ps.Tracker(every=1), network()
    tracker.update(model, 0)
    with pytest.warns(UserWarning, match="could not measure at step 1"):
        assert rows(updated(tracker, model.to("meta"), 1)) == [(0, False), (1, True)]
    for suffix in ("json", "csv", "parquet"):
        tracker.save(tmp_path / f"track.{suffix}")
    again = ps.Tracker(every=1)
    again.load_state_dict(tracker.state_dict())
    assert rows(again) == rows(tracker)
    assert [step for step, _ in tracker.unlogged()] == [0, 1]


def test_weights_that_are_buffers_are_measured():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    for name in ("weight", "bias"):
        held = model[0]._parameters.pop(name).detach()
        model[0].register_buffer(name, held)
    tracker = ps.Tracker(data=torch.randn(4, 3, 8, 8))
    tracker.update(model, 0)
    assert tracker.measurements[0][1].layers[0].activation_rate is not None


@pytest.mark.parametrize("where", ["weights", "inputs"])
def test_what_is_no_number_is_on_no_side_and_said_of_that_update_alone(where):
    images = torch.randn(8, 3, 8, 8)
    if where == "inputs":
        images[0, 0, 0, 0] = float("nan")
    tracker, model = ps.Tracker(every=1, data=images), network()
    tracker.update(model, 0)
    with torch.no_grad():
        if where == "weights":
            model[0].weight[2] = float("nan")
    tracker.update(model, 1)
    (_, first), (_, second) = tracker.measurements
    lost = [
        f"{count} of {count} filters of {name} gave a NaN or an infinity on the data: they have no "
        "activation rate, and no centre of the data"
        for name, count in (("0", 8), ("4", 16))
    ]
    rates = [layer.activation_rate for layer in second.layers]
    if where == "inputs":
        assert (rates, list(first.notes), list(second.notes)) == ([None, None], lost, lost)
        assert {layer.mean_centre for layer in second.layers} == {None}
        return
    # Filter 2 is left out of its own layer for its weights, and takes part in each of the next.
    assert (first.notes, second.notes[0][:8]) == ((), "1 of 8 f")
    assert (rates[0] > 0.1, rates[1], second.notes[1]) == (True, None, lost[1])
    with torch.no_grad():
        model[0].weight[2] = 0.1
    tracker.update(model, 2)
    assert tracker.measurements[2][1].notes == ()
    assert None not in [layer.activation_rate for layer in tracker.measurements[2][1].layers]


def test_a_layer_that_is_not_drawn_yet_is_told_in_our_words():
    tracker, model = ps.Tracker(every=1), network()
    tracker.update(model, 0)
    model[4] = nn.LazyConv2d(16, 3)
    with pytest.warns(UserWarning, match="goes on: 4.weight is not there yet; run a batch through"):
        tracker.update(model, 1)
    model(examples()[0])
    tracker.update(model, 2)
    assert "4 was replaced" in tracker.measurements[2][1].notes[0]


def test_a_model_that_holds_its_tracker_is_pickled_and_goes_on():
    model = network()
    model.tracker = ps.Tracker(every=1, data=examples()[0], drift=True)
    model.tracker.update(model, 0)
    again, copied = pickle.loads(pickle.dumps(model)), copy.deepcopy(model)
    for one in (model, again, copied):
        with torch.no_grad():
            one[4].weight += 0.1
        one.tracker.update(one, 1)
    table, *others = (one.tracker.to_pandas() for one in (model, again, copied))
    assert others[0].equals(table)
    assert (table["l2"][2:] > 0).tolist() == [False, True]
    # A copy in memory is another network, and known for one.
    assert others[1]["l2"][2:].tolist() == [0.0, 0.0]
    assert "0 was replaced" in copied.tracker.measurements[1][1].notes[0]


# --- data


class Draws(TensorDataset):
    """Examples with noise of a generator of their own, and of the global one."""

    def __init__(self):
        super().__init__(*examples())
        self.transform = [torch.Generator().manual_seed(3)]

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image + torch.randn((), generator=self.transform[0]) + torch.randn(()), label


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_with_generators_of_its_own_trains_to_the_same_bits(workers):
    def ends(track):
        torch.manual_seed(2)
        generator = torch.Generator().manual_seed(1)
        options = {"num_workers": 1, "persistent_workers": True} if workers else {}
        loader = DataLoader(Draws(), 4, shuffle=True, generator=generator, **options)
        model, tracker = network(), ps.Tracker(every=1, data=loader) if track else None
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        for epoch in range(2):
            for step, (images, labels) in enumerate(loader):
                optimiser.zero_grad()
                nn.functional.cross_entropy(model(images), labels).backward()
                optimiser.step()
                if track:
                    tracker.update(model, 6 * epoch + step)
        return [p.tolist() for p in model.parameters()], torch.rand(()).item()

    assert ends(track=True) == ends(track=False)


def test_a_loader_is_not_iterated():
    class Theirs(DataLoader):
        def __iter__(self):
            raise AssertionError("these are the user's examples")

    tracker = ps.Tracker(data=Theirs(TensorDataset(*examples()), batch_size=8))
    tracker.update(network(), 0)
    assert tracker.measurements[0][1].layers[1].activation_rate is not None


class Stream(IterableDataset):
    def __init__(self, source):
        self.source = source

    def __iter__(self):
        yield from self.source


def test_what_can_be_read_only_once_is_refused():
    once = iter(examples()[0])
    for data in (once, (x for x in ()), DataLoader(Stream(x for x in examples()[0]))):
        with pytest.raises(ps.UsageError, match=r"can be read only once; give tensors"):
            ps.Tracker(data=data)
    assert next(once).shape == (3, 8, 8)
    again = DataLoader(Stream(list(examples()[0])), batch_size=6)
    ps.Tracker(data=again).update(network(), 0)


# --- which layer is which


def test_a_module_goes_on_whatever_its_parameter():
    tracker, model = ps.Tracker(every=1), network()
    tracker.update(model, 0)
    state = {name: tensor + 0.1 for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    tracker.update(model, 1)
    nn.utils.parametrizations.weight_norm(model[4])
    tracker.update(model, 2)
    assert tracker.measurements[2][1].layers[1].l2 > 0.1
    assert tracker.measurements[2][1].notes == ()


def test_a_second_network_at_one_step_is_told_and_not_measured():
    tracker, model, average = ps.Tracker(every=1), network(), network()
    tracker.update(model, 0)
    with pytest.warns(UserWarning, match="was given a second one; give that a Tracker of its own"):
        tracker.update(average, 0)
    tracker.update(model, 1)
    assert rows(tracker) == [(0, False), (1, False)]
    strict = ps.Tracker(every=1, errors="raise")
    strict.update(model, 0)
    with pytest.raises(ps.UsageError, match="follows one network"):
        strict.update(average, 0)


def test_a_layer_that_comes_later_says_from_where_its_distance_is():
    tracker, model = ps.Tracker(every=1), network()
    tracker.update(model, 0)
    model.append(nn.Conv2d(4, 4, 3))
    tracker.update(model, 1)
    assert tracker.measurements[1][1].notes == (
        "9 came later: its distances are from the weights it had then",
    )


def test_a_first_update_behind_the_first_step_is_noted():
    tracker = ps.Tracker()
    tracker.update(network(), 3)
    note = "the first update was at step 3: distances are from the weights of then"
    assert tracker.measurements[0][1].notes == (note,)
    without = ps.Tracker(reference=None)
    without.update(network(), 3)
    assert without.measurements[0][1].notes == ()


# --- steps and epochs


def test_every_n_steps_means_at_least_once_in_n_steps():
    tracker, model = ps.Tracker(every=3), network()
    for step in (0, 2, 4, 6, 8, 10, 17, 18, 19):
        tracker.update(model, step)
    assert [step for step, _ in tracker.measurements] == [0, 4, 6, 10, 17, 18]


def test_a_second_fit_loses_no_row():
    tracker = ps.Tracker(every=2)
    for seed, steps in ((0, 0), (1, 6)):
        model = network(seed)
        tracker.begin(model, 0)
        for step in range(1, steps + 1):
            tracker.update(model, step)
    assert [step for step, _ in tracker.measurements] == [0, 0, 2, 4, 6]
    assert tracker.measurements[1][1].layers[0].l2 == 0
    assert "0 was replaced" in tracker.measurements[1][1].notes[0]


def test_a_second_fit_of_one_network_says_that_its_distances_go_on():
    tracker, model = ps.Tracker(every=2), network()
    for _ in range(2):
        for step in (0, 2):
            tracker.begin(model, step)
    assert [step for step, _ in tracker.measurements] == [0, 2, 0, 2]
    assert tracker.measurements[-1][1].notes == (
        "step 0 came after step 2: distances go on from the first weights of all",
    )


@quiet
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
def test_a_fit_resumed_within_an_epoch_counts_on_in_steps_and_epochs(tmp_path):
    class Saves(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    def counted(ckpt=None):
        tracker = ps.Tracker(every=1)
        fit(Task(), tracker, Saves(), ckpt=ckpt, max_epochs=2)
        return [(record.step, record.epoch) for record in tracker._recorder.history.records]

    whole = counted()
    assert whole == [(n, n // 6) for n in range(13)]
    assert counted(tmp_path / "3.ckpt") == whole
    assert counted(tmp_path / "6.ckpt") == whole


@quiet
def test_with_two_optimisers_steps_are_those_at_which_losses_are_logged(tmp_path):
    class Two(Task):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, index):
            loss = super().training_step(batch, index)
            for optimiser in self.optimizers():
                optimiser.zero_grad()
            self.manual_backward(loss)
            for optimiser in self.optimizers():
                optimiser.step()
            self.log("loss", loss)

        def configure_optimizers(self):
            halves = list(self.network.parameters())
            return [torch.optim.SGD(part, lr=0.1) for part in (halves[:2], halves[2:])]

    tracker, task = ps.Tracker(every=2), Two()
    logger = pl.loggers.CSVLogger(tmp_path)
    trainer = fit(task, tracker, logger=logger, max_epochs=1, log_every_n_steps=2)
    assert trainer.global_step == 12
    assert [step for step, _ in tracker.measurements] == [0, 2, 4, 6]


HUGGING = """
import sys, torch, transformers, planescope as ps
from torch import nn

class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 4)
    def forward(self, pixels, labels):
        logits = self.head(self.conv(pixels).relu().mean((2, 3)))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

torch.manual_seed(1)
data = [{"pixels": torch.randn(3, 8, 8), "labels": torch.tensor(i % 4)} for i in range(24)]
folder, mode = sys.argv[1:3]

def trained(steps, tracker, resume=None):
    args = transformers.TrainingArguments(
        output_dir=folder, max_steps=steps, per_device_train_batch_size=4, save_steps=4,
        logging_steps=100, report_to=[], use_cpu=True, disable_tqdm=True, learning_rate=0.05,
    )
    trainer = transformers.Trainer(model=Classifier(), args=args, train_dataset=data)
    trainer.add_callback(tracker.for_transformers(trainer))
    trainer.train(resume_from_checkpoint=resume)
    return tracker

whole = trained(9, ps.Tracker(every=2))
print([step for step, _ in whole.measurements], whole.to_pandas()["epoch"].tolist())
resumed = trained(9, ps.Tracker(every=2), resume=f"{folder}/checkpoint-4")
print([step for step, _ in resumed.measurements], resumed.to_pandas()["epoch"].tolist())
a, b = (t.to_pandas()["l2"].tolist() for t in (whole, resumed))
print(max(abs(x - y) for x, y in zip(a, b)) < 1e-3, b[-1] > 0, resumed.measurements[-1][1].notes)
(other,) = (ps.Tracker(every=3),)
trained(9, other, resume=f"{folder}/checkpoint-4")
print(other.measurements[0][0], other.measurements[-1][1].notes)
"""


@pytest.mark.slow
def test_hugging_faces_trainer_resumes_with_rows_and_distances(tmp_path):
    pytest.importorskip("transformers")
    done = subprocess.run(
        [sys.executable, "-c", HUGGING, str(tmp_path), "-"],
        env={**os.environ, "KERAS_BACKEND": "torch"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if not line.startswith("{")]
    assert lines == [
        "[0, 2, 4, 6, 8, 9] [0, 0, 0, 1, 1, 1]",
        "[0, 2, 4, 6, 8, 9] [0, 0, 0, 1, 1, 1]",
        "True True ()",
        "4 ('the first update was at step 4: distances are from the weights of then',)",
    ]


KERAS = """
import sys, numpy as np, keras, planescope as ps
keras.utils.set_random_seed(0)
def made():
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3, name="stem"),
        keras.layers.ReLU(), keras.layers.Flatten(), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    return model
x, y = np.random.rand(24, 8, 8, 3), np.random.rand(24, 2)
tracker, model = ps.Tracker(), made()
def fit(model, **options):
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[tracker.for_keras()], **options)
fit(model, epochs=2)
fit(model, epochs=4, initial_epoch=2)
fit(model, epochs=1)
print([s for s, _ in tracker.measurements], tracker.to_pandas()["epoch"].tolist())
if keras.backend.backend() != "torch":
    tracker, model = ps.Tracker(every=2), made()
    model.compile("sgd", "mse", steps_per_execution=2)
    fit(model, epochs=2)
    print([s for s, _ in tracker.measurements], tracker.to_pandas()["epoch"].tolist())
    tracker, model = ps.Tracker(every=2), made()
    model.compile(keras.optimizers.SGD(gradient_accumulation_steps=2), "mse")
    fit(model, epochs=2)
    fit(model, epochs=4, initial_epoch=2)
    print([s for s, _ in tracker.measurements], tracker.to_pandas()["epoch"].tolist(),
        tracker.to_pandas()["l2"].is_unique)
    sys.exit()
fit(made(), epochs=1)
last = [m for _, m in tracker.measurements][-2:]
print([s for s, _ in tracker.measurements], [m.layers[0].l2 > 0 for m in last], last[-1].notes)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend", [pytest.param("torch", marks=pytest.mark.long), "jax"], ids=["torch", "jax"]
)
def test_epochs_of_keras_are_counted_on_by_a_second_fit(backend):
    if importlib.util.find_spec("keras") is None:  # to import it here would choose its backend
        pytest.skip("keras is not installed")
    done = subprocess.run(
        [sys.executable, "-c", KERAS],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    first, second, *rest = done.stdout.splitlines()
    assert first == "[0, 3, 6, 9, 12, 15] [0, 1, 2, 3, 4, 5]"
    if backend == "jax":  # two batches are executed at once, and the last of an epoch alone
        assert second == "[0, 2, 5, 6] [0, 0, 1, 2]"
        # Gradients of two batches make a step, and three batches an epoch.
        assert rest == ["[0, 2, 3, 4, 6] [0, 1, 2, 2, 4] True"]
        return
    assert second == (
        "[0, 3, 6, 9, 12, 15, 0, 3] [False, True] ('stem was replaced: its distances are from the "
        "first weights of its new module',)"
    )


# --- several processes


def _one_fails(rank, folder):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2
    )
    model = fully_shard(network(), mesh=init_device_mesh("cpu", (2,)))
    tracker = ps.Tracker(every=1)
    tracker.update(model, 0)
    if rank == 1:  # as if memory had ended on one
        tracker._recorder._found, found = _failing, tracker._recorder._found
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        tracker.update(model, 1)
    if rank == 1:
        tracker._recorder._found = found
    tracker.update(model, 2)
    if rank == 0:
        text = f"{rows(tracker)} {[str(w.message) for w in told if 'planescope' in str(w.message)]}"
        (folder / "rows.txt").write_text(text, encoding="utf-8")
    torch.distributed.destroy_process_group()


def _failing(_):
    raise MemoryError("no room")


@pytest.mark.slow
def test_a_failure_on_one_process_is_a_row_of_nulls_and_none_waits(tmp_path):
    torch.multiprocessing.start_processes(_one_fails, (tmp_path,), nprocs=2, start_method=START)
    text = (tmp_path / "rows.txt").read_text(encoding="utf-8")
    assert text.startswith("[(0, False), (1, True), (2, False)]")
    assert "on the process of rank 1: MemoryError: no room" in text
