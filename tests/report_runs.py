"""Runs for the tests of the page: made by hand in their true formats, so that all is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

import planescope as ps
from planescope.criticality.resets.record import Accuracy, ResetCell, ResetLayer, Resets
from planescope.hyperplanes.layer import Kind
from planescope.training.config import RunConfig
from planescope.training.folder.metrics import EpochMetrics
from planescope.training.folder.status import State, Status
from planescope.training.run import Run

# Names come from files that anybody may have written.
HOSTILE = "</script><script>alert(1)</script>"
MARKUP = "<b>a</b> & %{x} \N{RIGHT-TO-LEFT OVERRIDE}.1"
NAMES = ("features.0", "features.2", HOSTILE, MARKUP, "features.10")
EPOCHS = (0, 1, 2, 5)


def weights(epoch: int, names: Sequence[str] = NAMES, seed: int = 0) -> dict[str, np.ndarray]:
    """Layers of 16 to 48 filters; every second turns away from the orthant as training goes on."""
    rng = np.random.default_rng(seed)
    state = {}
    for i, name in enumerate(names):
        shift = -0.12 * epoch * (i % 2)
        state[f"{name}.weight"] = rng.normal(shift, 1.0, (16 + 8 * i, 4, 3, 3))
        state[f"{name}.bias"] = rng.normal(0.0, 0.3, 16 + 8 * i)
    return state


def make_run(
    path: Path, *, names: Sequence[str] = NAMES, seed: int = 0, resets: bool = True
) -> Run:
    """A finished run of five epochs with four snapshots."""
    run = Run.create(path, RunConfig(epochs=EPOCHS[-1], seed=seed))
    initial = weights(0, names, seed)
    for epoch in EPOCHS:
        run.add_measurement(epoch, ps.measure(weights(epoch, names, seed), init=initial))
    run.save_metrics([metrics(epoch) for epoch in range(EPOCHS[-1] + 1)])
    run.save_environment({"planescope": ps.__version__, "packages": {"numpy": np.__version__}})
    run.save_status(Status(state=State.FINISHED))
    if resets:
        resets_of(run, names).save(run.resets)
    return run


def metrics(epoch: int) -> EpochMetrics:
    loss = 2.0 / (1 + epoch)
    return EpochMetrics(
        epoch=epoch, train_loss=None if epoch == 0 else loss, train_accuracy=None, val_loss=loss,
        val_accuracy=epoch / (1 + epoch), learning_rate=0.02, seconds=1.0,
    )  # fmt: skip


def resets_of(run: Run, names: Sequence[str] = NAMES) -> Resets:
    """Layer i loses i tenths at epoch 0, half as much at epoch 1; one draw anew loses all."""
    layers = run.measured_layers[EPOCHS[-1]]

    def cell(i: int, snapshot: int | str) -> ResetCell:
        drop = {0: i / 10, 1: i / 20, "rand": 0.9}[snapshot]
        top1 = 0.8 * (1 - drop)
        return ResetCell(
            value=top1, top1=top1, top5=1.0, cross_entropy=0.5, examples=1000,
            low=top1 - 0.02, high=top1 + 0.02,
            layer=names[i], snapshot=snapshot, draw=0 if snapshot == "rand" else None,
            relative_drop=drop, p_value=0.5 if drop < 0.06 else 0.001, significant=drop >= 0.06,
        )  # fmt: skip

    return Resets(
        source=str(run.path), network="lenet", data="digits", split="val",
        trained=Accuracy(value=0.8, top1=0.8, top5=1.0, cross_entropy=0.5,
            examples=1000, low=0.77, high=0.82),
        layers=tuple(
            ResetLayer(
                name=each.name, kind=Kind.CONV, stage=None, negative_mass=each.negative_mass,
                agreement=each.agreement, biased=each.biased,
            )
            for each in layers
        ),
        cells=tuple(cell(i, s) for i in range(len(names)) for s in (0, 1, "rand")),
    )  # fmt: skip
