"""Real trainings, small ones: what they keep, and that they end with the same bits."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import planescope as ps
from planescope.data.batches import batches
from planescope.data.load import load
from planescope.data.options import DataOptions
from planescope.files.errors import (
    CheckpointError,
    NoLayersError,
    RunError,
    StoppedError,
    UsageError,
)
from planescope.networks.build import build
from planescope.training import loop
from planescope.training.config import RunConfig
from planescope.training.folder.metrics import EpochMetrics
from planescope.training.folder.status import State
from planescope.training.loop import train
from planescope.training.run import Run
from planescope.training.stopping import is_last, is_snapshot

# 260 examples: five batches an epoch, the last of 4. Threads fixed: the bits depend on them.
SMALL = RunConfig(
    epochs=3, examples=260, threads=1, schedule="one-cycle", snapshots_until=0, snapshots_every=2
)
BATCHES = 15


class KilledError(Exception):
    """Stands for whatever ends a process between two batches."""


def killed_after(batch: int):
    def progress(done: int, total: int, text: str) -> None:
        assert total == BATCHES
        if done == batch:
            raise KilledError

    return progress


def same_results(run: Run, other: Run) -> None:
    """All that is kept is equal to the bit, but for the time it took."""
    assert list(run.snapshots) == list(other.snapshots)
    for mine, its in zip(run.snapshots.values(), other.snapshots.values(), strict=True):
        assert mine.read_bytes() == its.read_bytes()
    assert [timeless(row) for row in run.metrics] == [timeless(row) for row in other.metrics]
    assert run.measurements.equals(other.measurements)


def timeless(row: EpochMetrics) -> dict[str, float | None]:
    return {key: value for key, value in vars(row).items() if key != "seconds"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Run:
    return train(SMALL, tmp_path_factory.mktemp("undisturbed") / "run")


def test_a_run_keeps_what_the_policy_says(undisturbed):
    assert undisturbed.status.state is State.FINISHED
    assert undisturbed.config == SMALL
    assert list(undisturbed.snapshots) == [0, 2, 3]
    assert undisturbed.filter_epochs == (0, 2, 3)
    assert sorted(undisturbed.measurements.epoch.unique()) == [0, 2, 3]
    assert sorted(p.name for p in undisturbed.path.iterdir() if p.name[0] != ".") == [
        "config.yaml", "environment.json", "filters", "last.ckpt", "measurements.parquet",
        "metrics.csv", "network.json", "snapshots", "state.json",
    ]  # fmt: skip


def test_the_first_snapshot_is_the_initialisation(undisturbed):
    fresh = build("lenet", in_channels=1, classes=10, image_size=28, seed=SMALL.seed)
    kept = undisturbed.load_snapshot(0)
    assert all(torch.equal(kept[name], value) for name, value in fresh.state_dict().items())


def test_metrics_are_those_of_the_snapshots(undisturbed):
    network = build("lenet", in_channels=1, classes=10, image_size=28)
    network.eval()
    data = load("digits", split="val")
    for epoch in undisturbed.snapshots:
        network.load_state_dict(undisturbed.load_snapshot(epoch))
        with torch.no_grad():
            parts = [(network(x), y) for x, y in batches(data, batch_size=1000)]
        logits, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        row = undisturbed.metrics[epoch]
        assert row.val_accuracy == (logits.argmax(1) == labels).double().mean().item()
        loss = torch.nn.functional.cross_entropy(logits, labels).item()
        assert row.val_loss == pytest.approx(loss, rel=1e-4)
    assert [row.epoch for row in undisturbed.metrics] == [0, 1, 2, 3]
    assert undisturbed.metrics[0].train_loss is None
    assert undisturbed.metrics[1].learning_rate == pytest.approx(0.02 / 25)  # as one-cycle begins


def test_measurements_are_those_of_the_snapshots(undisturbed):
    first, *_, last = undisturbed.snapshots.values()
    expected = ps.measure(last, init=first, network="lenet")
    table = undisturbed.measurements.query("epoch == 3").set_index("layer")
    assert list(table.index) == [layer.name for layer in expected.layers]
    for layer in expected.layers:
        for key in ("negative_mass", "mean_cosine", "p_mass", "q_mass", "stage", "l2", "linf"):
            assert table[key][layer.name] == pytest.approx(getattr(layer, key), rel=1e-6)


def test_the_same_config_gives_the_same_bits(undisturbed, tmp_path):
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    same_results(train(SMALL, tmp_path / "run"), undisturbed)


def test_another_seed_gives_another_run(undisturbed, tmp_path):
    other = train(SMALL.but({"seed": 1, "epochs": 1}), tmp_path / "run")
    assert other.metrics[0].val_loss != undisturbed.metrics[0].val_loss


@pytest.mark.parametrize("batch", [1, 5, 6, 10, 13, 15])
def test_a_run_that_was_killed_and_resumed_ends_with_the_same_bits(batch, undisturbed, tmp_path):
    with pytest.raises(KilledError):
        train(SMALL, tmp_path / "run", progress=killed_after(batch))
    assert Run(tmp_path / "run").status.state is State.FAILED
    resumed = train(SMALL, tmp_path / "run", resume=True)
    same_results(resumed, undisturbed)
    assert resumed.status.state is State.FINISHED


def test_what_a_killed_process_wrote_of_an_unfinished_epoch_is_cut(undisturbed, tmp_path):
    with pytest.raises(KilledError):
        train(SMALL, tmp_path / "run", progress=killed_after(11))
    run = Run(tmp_path / "run")
    # Killed after the files of epoch 3 were written, before its checkpoint was.
    shutil.copy(undisturbed.snapshots[3], run.path / "snapshots")
    shutil.copy(undisturbed.path / "metrics.csv", run.path)
    shutil.copy(undisturbed.path / "measurements.parquet", run.path)
    same_results(train(SMALL, run.path, resume=True), undisturbed)


def test_a_finished_run_is_left_as_it_is(undisturbed):
    before = {path: path.read_bytes() for path in undisturbed.snapshots.values()}
    train(SMALL, undisturbed.path, resume=True)
    assert {path: path.read_bytes() for path in undisturbed.snapshots.values()} == before


@pytest.mark.parametrize(
    ("holds", "sentence"),
    [
        pytest.param(True, "another process is training this run", id="and-trains-it"),
        pytest.param(False, "exists; go on with --resume, or give another --out", id="and-ended"),
    ],
)
def test_a_run_begun_by_another_process_meanwhile_is_left_as_it_is(
    tmp_path, monkeypatch, holds, sentence
):
    path, prepare = tmp_path / "run", loop._prepare
    with contextlib.ExitStack() as other:

        def begun_meanwhile(*args):
            prepared = prepare(*args)  # takes seconds
            if holds:
                other.enter_context(Run(path).lock())
            Run.create(path, SMALL.but({"epochs": 7}))
            return prepared

        monkeypatch.setattr(loop, "_prepare", begun_meanwhile)
        with pytest.raises(UsageError, match=sentence):
            train(SMALL, path)
    assert Run(path).config.epochs == 7
    assert Run(path).status.state is State.NEW
    assert Run(path).snapshots == {}


def test_a_caller_keeps_its_random_numbers_threads_and_way_of_convolving(tmp_path):
    torch.manual_seed(7)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    train(SMALL.but({"epochs": 1, "examples": 64, "threads": 2}), tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert not torch.backends.cudnn.deterministic


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_what_was_saved(tmp_path):
    with pytest.raises(RunError, match=r"run: the loss is no longer finite in epoch 1; .*kept"):
        train(SMALL.but({"learning_rate": 1e6}), tmp_path / "run")
    run = Run(tmp_path / "run")
    assert (run.status.state, list(run.snapshots)) == (State.FAILED, [0])
    assert len(run.metrics) == 1


def test_train_accuracy_is_that_of_the_whole_network_on_plain_examples(tmp_path):
    config = SMALL.but({"epochs": 1, "train_accuracy": True, "label_noise": 0.5})
    run = train(config, tmp_path / "run")
    network = build("lenet", in_channels=1, classes=10, image_size=28).eval()
    network.load_state_dict(run.load_snapshot(1))
    data = load("digits", options=DataOptions(examples=260, label_noise=0.5))
    ((inputs, labels),) = batches(data, batch_size=260)
    with torch.no_grad():
        accuracy = (network(inputs).argmax(1) == labels).float().mean().item()
    assert run.metrics[1].train_accuracy == pytest.approx(accuracy, abs=1e-6)


def test_a_run_on_a_plateau_stops_early_and_keeps_its_last_epoch(tmp_path):
    config = SMALL.but({"epochs": 9, "patience": 1, "min_delta": 10, "snapshots_every": 5})
    run = train(config, tmp_path / "run")
    assert run.status.message == "on a plateau after epoch 2"
    assert list(run.snapshots) == [0, 2]
    assert train(config, tmp_path / "run", resume=True).metrics == run.metrics


def history(*losses: float | None) -> list[EpochMetrics]:
    rest = {"train_accuracy": None, "val_loss": 1.0, "val_accuracy": 0.5, "learning_rate": 0.1}
    return [
        EpochMetrics(epoch=epoch, train_loss=loss, seconds=1.0, **rest)
        for epoch, loss in enumerate([None, *losses])
    ]


@pytest.mark.parametrize(
    ("until", "every", "kept"),
    [
        (0, 1, [0, 1, 2, 3, 4, 5, 6, 7]),
        (0, 3, [0, 3, 6, 7]),
        (2, 3, [0, 1, 2, 5, 7]),
        (9, 1, [0, 1, 2, 3, 4, 5, 6, 7]),
        (0, 9, [0, 7]),
    ],
)
def test_snapshots_are_the_first_all_until_one_then_some_and_the_last(until, every, kept):
    config = RunConfig(epochs=7, snapshots_until=until, snapshots_every=every)
    losses = [1.0] * 7
    assert [e for e in range(8) if is_snapshot(history(*losses[:e]), config)] == kept


@pytest.mark.parametrize(
    ("losses", "stops"),
    [
        pytest.param([2.3, 2.3], False, id="patience-not-over"),
        pytest.param([2.3, 2.3, 2.3], True, id="no-fall-for-two-epochs"),
        pytest.param([2.3, 2.3, 1.9], False, id="a-fall-just-in-time"),
        pytest.param([2.3, 2.25, 2.21], True, id="each-fall-below-the-least"),
        pytest.param([2.0, 2.5, 2.2], True, id="no-new-best"),
    ],
)
def test_a_plateau_is_judged_by_the_best_training_loss(losses, stops):
    config = RunConfig(patience=2, min_delta=0.1)
    assert is_last(history(*losses), config) is stops


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"network": "lenett"}, UsageError, "no network is called 'lenett'; the nearest are lenet"),
        ({"data": "digit"}, UsageError, r"unknown data 'digit'.*nearest .*digits"),
        ({"classes": 11}, UsageError, "digits has 10 classes, fewer than the 11 asked for"),
        ({"resize": "native", "network": "vgg11"}, UsageError, "at least 32×32 pixels, not 28×28"),
        ({"network": "alexnet"}, UsageError, "at least 63×63 pixels, not 28×28"),
        ({"kinds": ("transposed",)}, NoLayersError, r"no layer of kind transposed \(there are: co"),
        (
            {"network": "torch.nn:Identity"},
            UsageError,
            r"gives an output of shape \(1, 1, 28, 28\).*digits has 10 classes",
        ),
        ({"data": "cifar10", "data_path": "nowhere"}, CheckpointError, "nowhere: cifar10 is not"),
    ],
)
def test_what_cannot_be_trained_is_refused_and_leaves_nothing(changes, error, sentence, tmp_path):
    with pytest.raises(error, match=sentence):
        train(SMALL.but(changes), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"1 × cuda .*does not work here"):
        train(SMALL.but({"accelerator": "cuda"}), tmp_path / "run")


def test_a_path_that_does_not_fit_is_refused(undisturbed, tmp_path):
    with pytest.raises(UsageError, match="exists; go on with --resume, or give another --out"):
        train(SMALL, undisturbed.path)
    with pytest.raises(UsageError, match="was started with epochs 3, not 4"):
        train(SMALL.but({"epochs": 4}), undisturbed.path, resume=True)
    with pytest.raises(CheckpointError, match="there is no run to resume; leave out --resume"):
        train(SMALL, tmp_path / "none", resume=True)


def test_a_damaged_checkpoint_is_said_on_resuming(tmp_path):
    with pytest.raises(KilledError):
        train(SMALL, tmp_path / "run", progress=killed_after(6))
    (tmp_path / "run" / "last.ckpt").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=r"last\.ckpt: is damaged; remove it to resume from"):
        train(SMALL, tmp_path / "run", resume=True)


@pytest.mark.parametrize("to", ["last.ckpt", "nowhere"], ids=["loop", "nothing"])
def test_a_checkpoint_that_is_a_link_to_nothing_costs_no_snapshots(undisturbed, tmp_path, to):
    run = Run(shutil.copytree(undisturbed.path, tmp_path / "run"))
    run.last_checkpoint.unlink()
    run.last_checkpoint.symlink_to(to)
    with pytest.raises(
        CheckpointError, match=r"last\.ckpt: is a link, and what is read or written here"
    ):
        train(SMALL, run.path, resume=True)
    assert list(run.snapshots) == list(undisturbed.snapshots)


TINY = SMALL.but({"epochs": 1, "examples": 65, "batch_size": 32})


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"network": "mlp_bn", "width": 0.01}, id="linear-layers-and-a-batch-of-one"),
        pytest.param({"network": "vgg11_bn", "width": 0.05}, id="padded-to-32"),
        pytest.param({"precision": "bf16-mixed"}, id="bf16"),
        pytest.param({"optimiser": "adamw", "schedule": "step", "milestones": (1,)}, id="adamw"),
        pytest.param({"optimiser": "adam", "schedule": "constant"}, id="adam"),
        pytest.param({"loggers": ("csv", "tensorboard")}, id="loggers"),
        pytest.param({"kinds": ("all",), "view": "effective"}, id="all-kinds"),
        pytest.param({"validation": "stratified", "classes": 3}, id="held-out"),
    ],
)
def test_what_may_be_chosen_trains(changes, tmp_path, capfd):
    run = train(TINY.but(changes), tmp_path / "run")
    assert run.status.state is State.FINISHED
    assert all(torch.isfinite(value).all() for value in run.load_snapshot(1).values())
    assert capfd.readouterr() == ("", "")  # neither Lightning nor torch talks
    if "loggers" in changes:
        logged = (run.logs / "csv" / "version_0" / "metrics.csv").read_text()
        assert "val_accuracy" in logged
        for statistic in ("negative_mass", "mean_cosine", "agreement", "l2", "linf"):
            assert f"planescope/features.0/{statistic}" in logged.splitlines()[0]
        assert list((run.logs / "tensorboard").rglob("events*"))


def test_centred_filters_have_no_side_at_any_epoch(tmp_path):
    run = train(TINY.but({"network": "lenet_bn", "centred": True}), tmp_path / "run")
    for epoch in (0, 1):
        kernels = [w for w in run.load_snapshot(epoch).values() if w.ndim == 4]
        assert len(kernels) == 6
        for kernel in kernels:
            rows = kernel.flatten(1).double()
            assert (rows.sum(1).abs() < 1e-6 * rows.norm(dim=1) * rows.shape[1] ** 0.5).all()
            assert (rows.norm(dim=1) > 0.01).all()


def test_mlflow_gets_the_metrics_and_the_statistics_of_each_epoch(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    run = train(TINY.but({"loggers": ("mlflow",)}), tmp_path / "run")
    client = mlflow.MlflowClient(f"sqlite:///{run.logs / 'mlflow' / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'planescope'")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.data.params["network"] == "lenet"
    history = client.get_metric_history(found.info.run_id, "planescope/features.12/negative_mass")
    table = run.measurements
    expected = table[table["layer"] == "features.12"].set_index("epoch")["negative_mass"]
    assert {point.step: point.value for point in history} == expected.to_dict()


def test_wandb_gets_the_statistics_of_each_run_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("one", "two"):
        run = train(TINY.but({"loggers": ("wandb",)}), tmp_path / name)
        assert wandb.run is None, "it ended with ours"
        (log,) = run.logs.glob("wandb/offline-run-*/run-*.wandb")
        until = time.monotonic() + 20  # it is another process that writes it
        while b"planescope/features.12/negative_mass" not in log.read_bytes():
            assert time.monotonic() < until
            time.sleep(0.1)


@pytest.mark.parametrize("logger", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_is_refused_and_leaves_nothing(
    logger, tmp_path, monkeypatch
):
    monkeypatch.setattr("planescope.training.loop.find_spec", lambda name: None)
    with pytest.raises(ps.MissingDependencyError, match=f"pip install {logger}"):
        train(TINY.but({"loggers": (logger,)}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_steps_of_the_schedule_follow_the_milestones(tmp_path):
    config = TINY.but({"epochs": 4, "schedule": "step", "milestones": (1, 3), "decay": 0.5})
    rates = [row.learning_rate for row in train(config, tmp_path / "run").metrics[1:]]
    assert rates == pytest.approx([0.02, 0.01, 0.01, 0.005])


def test_a_broken_image_ends_the_run_and_is_named(tmp_path, images):
    (images / "train" / "dog" / "1.png").write_bytes(b"no image")
    config = TINY.but({"data": f"folder:{images}", "examples": None, "workers": 0})
    with pytest.raises(CheckpointError, match=r"dog/1\.png: cannot be read as an image"):
        train(config, tmp_path / "run")
    assert Run(tmp_path / "run").status.state is State.FAILED


@pytest.fixture
def images(tmp_path) -> Path:
    from PIL import Image

    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for index in range(3):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "images"


@pytest.mark.skipif(sys.platform != "linux", reason="sends the signal to this process itself")
def test_an_interrupt_stops_after_the_batch_and_resuming_ends_alike(undisturbed, tmp_path):
    done_last = 0

    def progress(done: int, total: int, text: str) -> None:
        nonlocal done_last
        done_last = done
        if done == 8:
            os.kill(os.getpid(), signal.SIGINT)

    usual = signal.getsignal(signal.SIGINT)
    with pytest.raises(
        StoppedError, match=r"interrupted; go on with: planescope train --out .*run"
    ):
        train(SMALL, tmp_path / "run", progress=progress)
    assert signal.getsignal(signal.SIGINT) is usual
    assert done_last == 8
    assert Run(tmp_path / "run").status.state is State.STOPPED
    same_results(train(SMALL, tmp_path / "run", resume=True), undisturbed)


def one_convolution(in_channels: int, classes: int) -> torch.nn.Module:
    """Few operations, as each costs seconds of a compiler."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(in_channels, 4, 3, stride=2),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(4 * 13 * 13, classes),
    )


@pytest.mark.slow
def test_compiled_steps_train_alike(tmp_path):
    # Whole batches: those of another size are compiled anew.
    config = TINY.but({"network": f"{__name__}:one_convolution", "examples": 64})
    plain = train(config, tmp_path / "plain")
    compiled = train(config.but({"compile": True}), tmp_path / "compiled")
    assert set(load_file(compiled.snapshots[1])) == set(load_file(compiled.snapshots[0]))
    began, ended = (compiled.load_snapshot(epoch) for epoch in (0, 1))
    for name, tensor in plain.load_snapshot(1).items():
        torch.testing.assert_close(ended[name], tensor)
        assert not torch.equal(ended[name], began[name])
