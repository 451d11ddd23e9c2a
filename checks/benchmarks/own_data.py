"""Resets through a user's DataLoader beside planescope's own data, and what label-free columns add.

The same images, prepared alike: once as a data set by name, once as what a DataLoader over tensors
gives. Loading aside: what it takes to go through either alone is subtracted. Label-free columns
(disagreement, expected drop and loss, divergence, change of outputs) are held against resets that
count right answers alone. Processor seconds with one thread, medians of rounds in turn.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.utils.data import DataLoader, TensorDataset

from checks.benchmarks.processes import machine
from checks.benchmarks.resets import MEAN, STD, write_cifar
from planescope.criticality.resets import ResetOptions, reset
from planescope.criticality.resets.engine.answers import Judge
from planescope.criticality.resets.engine.progress import Tally
from planescope.criticality.resets.record import Resets
from planescope.criticality.resets.tell import Table
from planescope.data.batches import batches
from planescope.data.load import Images, load
from planescope.networks.build import build

SNAPSHOTS = 5
BATCH = 256
ROUNDS = 5
EXAMPLES = {"lenet": 2_500, "resnet20": 500}
# A cell through the user's loader, by one on the own path; and what label-free columns add.
LOADER_BOUND, COLUMNS_BOUND = 1.3, 1.05


def processor_seconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def right_answers_alone(
    judge: Judge,
    tally: Tally,
    output: torch.Tensor,
    _reference: torch.Tensor,
    labels: torch.Tensor,
    _sizes: Sequence[int],
) -> None:
    """Count what the labels tell, as `Judge` does, and nothing else."""
    logits = judge.logits(output)
    is_number = ~logits.isnan().any(1)
    tally.add("right", ((logits.argmax(1) == labels) & is_number).numpy())
    five = logits.topk(min(5, judge.classes), dim=1).indices
    sums = {
        "top5": (five == labels.unsqueeze(1)).any(1) & is_number,
        "loss": torch.nn.functional.cross_entropy(logits, labels, reduction="none"),
        "none": ~is_number,
        "changed": torch.zeros(()),
        "square": torch.zeros(()),
    }
    for name, values in sums.items():
        tally.sums[name] = tally.sums.get(name, 0.0) + float(values.double().sum())


def without_columns(call: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        nothing: Callable[..., Any] = lambda _, tallies: [None] * len(tallies)  # noqa: E731
        with (
            patch.object(Judge, "_count", right_answers_alone),
            patch.object(Table, "_expected", nothing),
        ):
            return call()

    return run


def go_through(data: Images) -> None:
    for _ in batches(data, batch_size=BATCH, device=torch.device("cpu")):
        pass


def measure(name: str, folder: Path) -> None:
    write_cifar(folder, EXAMPLES[name])
    network = build(name, seed=0).eval()
    starts = {
        f"start {seed}": build(name, seed=seed).state_dict() for seed in range(1, SNAPSHOTS + 1)
    }
    data = load("cifar10", split="val", path=folder)
    assert isinstance(data, Images)
    images, labels = (torch.cat(parts) for parts in zip(
        *batches(data, batch_size=BATCH, device=torch.device("cpu")), strict=True
    ))  # fmt: skip
    assert images.shape[1:] == (3, 32, 32), (MEAN, STD)
    loader = DataLoader(TensorDataset(images, labels), batch_size=BATCH)
    options = ResetOptions(kinds="all", devices=("cpu",))
    found: dict[str, Resets] = {}

    def through(which: str, given: Any) -> Callable[[], object]:
        def run() -> None:
            found[which] = reset(network, to=starts, data=given, options=options)

        return run

    calls: dict[str, Callable[[], object]] = {
        "own": through("own", data),
        "loader": through("loader", loader),
        "right": without_columns(through("right", loader)),
        "through own": lambda: go_through(data),
        "through loader": lambda: list(loader),
    }
    seconds: dict[str, list[float]] = {which: [] for which in calls}
    for count in range(ROUNDS + 1):  # the first is not counted
        for which, call in calls.items():
            taken = processor_seconds(call)
            seconds[which] += [taken] if count else []
    for mine, own in zip(found["loader"].cells, found["own"].cells, strict=True):
        assert (mine.top1, mine.disagreement) == (own.top1, own.disagreement), (mine, own)
    for mine, bare in zip(found["loader"].cells, found["right"].cells, strict=True):
        assert mine.top1 == bare.top1, (mine, bare)
    cells = len(found["own"].cells)
    middle = {which: statistics.median(taken) / cells for which, taken in seconds.items()}
    own = middle["own"] - middle["through own"]
    mine = middle["loader"] - middle["through loader"]
    added = statistics.median(
        with_them / without - 1
        for with_them, without in zip(seconds["loader"], seconds["right"], strict=True)
    )
    print(
        f"{name:9} {cells:>5} {own:11.5f}s {mine:10.5f}s {mine / own:6.2f} {LOADER_BOUND:5.2f} "
        f"{middle['right']:10.5f}s {100 * added:6.1f} {100 * (COLUMNS_BOUND - 1):5.1f}",
        flush=True,
    )


def main() -> None:
    print(f"resets on a user's data: processor seconds a cell, loading aside ({machine()})")
    print(
        f"{'':9} {'cells':>5} {'planescope':>12} {'DataLoader':>11} {'ratio':>6} {'bound':>5} "
        f"{'right only':>11} {'more %':>6} {'bound':>5}"
    )
    most = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name in EXAMPLES:
            with tempfile.TemporaryDirectory() as folder:
                measure(name, Path(folder))
    finally:
        torch.set_num_threads(most)
