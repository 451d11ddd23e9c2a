"""What runs on a GPU, against the same on the CPU: trainings, resets, studies."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import planescope as ps
from planescope.networks.build import build
from planescope.training.config import RunConfig
from planescope.training.loop import train
from tests.criticality.test_resets import ALL, PARITY, SNAPSHOTS, UsedTwice, images, seeded

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

# The digits come from a package; 260 are five batches an epoch, the last of 4.
SMALL = RunConfig(
    epochs=3, examples=260, threads=1, schedule="one-cycle", snapshots_until=0, accelerator="cuda"
)
ON_GPU = dataclasses.replace(ALL, devices=("cuda:0",))


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory) -> ps.Run:
    return train(SMALL.but({"accelerator": "cpu"}), tmp_path_factory.mktemp("cpu") / "run")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_run_is_that_of_the_cpu_but_for_rounding(on_cpu, precision, compiled, tmp_path):
    config = SMALL.but({"precision": precision, "compile": compiled})
    run = train(config, tmp_path / "run")
    assert "NVIDIA" in json.dumps(run.environments[-1])
    assert list(run.snapshots) == list(on_cpu.snapshots)
    # The start is drawn on the CPU, alike for all devices.
    assert run.snapshots[0].read_bytes() == on_cpu.snapshots[0].read_bytes()
    assert run.metrics[0].val_loss == pytest.approx(on_cpu.metrics[0].val_loss, rel=1e-2)
    # Where weights go, rounding decides in part; how far, and how well that is, it does not.
    ours, theirs = (load_file(list(r.snapshots.values())[-1]) for r in (run, on_cpu))
    start = load_file(on_cpu.snapshots[0])
    for name, weight in ours.items():
        went, goes = ((end - start[name]).norm() for end in (theirs[name], weight))
        assert went / 2 <= goes <= 2 * went, name
    assert run.metrics[-1].val_loss == pytest.approx(on_cpu.metrics[-1].val_loss, rel=0.2)
    figures = run.measurements.set_index(["epoch", "layer"])
    again = ps.measure(list(run.snapshots.values())[-1])
    for layer in again.layers:
        row = figures.loc[3, layer.name]
        assert row["negative_mass"] == pytest.approx(layer.negative_mass)
        assert row["mean_cosine"] == pytest.approx(layer.mean_cosine, abs=1e-9)


def test_a_run_goes_on_from_its_checkpoint(tmp_path):
    class KilledError(Exception):
        pass

    def progress(done: int, _total: int, _text: str) -> None:
        if done == 8:
            raise KilledError

    whole = train(SMALL, tmp_path / "whole")
    with pytest.raises(KilledError):
        train(SMALL, tmp_path / "run", progress=progress)
    run = train(SMALL, tmp_path / "run", resume=True)
    assert list(run.snapshots) == list(whole.snapshots)
    assert [row.epoch for row in run.metrics] == [row.epoch for row in whole.metrics]
    for ours, theirs in zip(run.metrics, whole.metrics, strict=True):
        assert ours.val_loss == pytest.approx(theirs.val_loss, rel=0.2)


@pytest.mark.parametrize("devices", [("cuda:0",), ("cuda:0", "cpu")])
@pytest.mark.parametrize(
    "make", [seeded(UsedTwice), lambda seed: build("vgg11_bn", width=0.25, seed=seed)]
)
def test_resets_are_those_of_the_cpu_but_for_close_answers(make, devices):
    network, data = make(0), images(count=600, size=32)
    snapshots = {seed: make(seed).state_dict() for seed in (1, 2, 3)}
    cpu = ps.reset(network, to=snapshots, data=data, options=ALL)
    options = dataclasses.replace(ALL, devices=devices)
    gpu = ps.reset(network.cuda(), to=snapshots, data=data, options=options)
    assert next(network.parameters()).is_cuda, "the network stays where it was"
    for ours, theirs in zip(gpu.cells, cpu.cells, strict=True):
        assert (ours.layer, ours.snapshot) == (theirs.layer, theirs.snapshot)
        assert abs(ours.top1 - theirs.top1) <= 6 / 600
        assert ours.cross_entropy == pytest.approx(theirs.cross_entropy, rel=1e-2)


def test_resets_are_those_of_an_independent_implementation_but_for_close_answers():
    found = ps.reset(
        PARITY / "lenet-epoch-12.tar", to=SNAPSHOTS, network="lenet", data="mnist",
        data_path=PARITY, options=ON_GPU,
    )  # fmt: skip
    for epoch, rows in json.loads((PARITY / "expected.json").read_text())["reset_top1"].items():
        for row, top1 in rows.items():
            (cell,) = found.at(row, f"lenet-epoch-{epoch}.pt")
            assert abs(cell.top1 - top1) <= 3 / 1000


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_resets_in_half_precision(precision):
    network, data = build("lenet", seed=0), images(size=32)
    snapshot = {1: build("lenet", seed=1).state_dict()}
    options = dataclasses.replace(ON_GPU, precision=precision)
    half = ps.reset(network, to=snapshot, data=data, options=options)
    full = ps.reset(network, to=snapshot, data=data, options=ON_GPU)
    for ours, theirs in zip(half.cells, full.cells, strict=True):
        assert ours.cross_entropy == pytest.approx(theirs.cross_entropy, rel=2e-2)


def test_workers_of_a_study_share_the_gpu(tmp_path):
    (tmp_path / "study.yaml").write_text(
        "base: {classes: 2, examples: 128, width: 0.5, snapshots_until: 1, epochs: 2}\n"
        "grid:\n- {learning_rate: [0.01, 0.02, 0.03]}\nreset: {snapshots: [0], subset: 100}\n"
    )
    command = ["-m", "planescope", "study", "study.yaml", "--out", "out", "--workers", "2"]
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    runs = ps.Study(tmp_path / "out").runs
    assert len(runs) == 3
    assert all("NVIDIA" in json.dumps(run.environments[-1]) for run in runs)
