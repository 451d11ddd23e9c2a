"""The cost of plans and repairs on published CIFAR-10 ResNets that were not developed on.

    python -m checks.planning resnet32 --weights FOLDER --cifar FOLDER --out FOLDER

FOLDER of weights holds ``resnet32-*.th`` and the like (Y. Idelbayev), that of CIFAR-10 the folder
``cifar-10-batches-py``. A line of ``RESNET.csv`` a rival and cell; broken off, the same command
goes on behind the last whole cell. resnet20 was for development; the others are the test.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from checks.resnets import MEAN, STD, CifarResNet
from planescope.criticality.plan.bench import Bench
from planescope.criticality.plan.cuts import Knife
from planescope.criticality.plan.examples import synthetic
from planescope.data.sets.files import read_cifar
from planescope.files.writing import replacing

# What is asked for, those of the goals first.
CELLS = (
    ("prune", 0.2), ("bits", 3), ("prune", 0.1), ("bits", 2), ("prune", 0.3), ("bits", 4),
    ("prune", 0.5),
)  # fmt: skip
# Unlabelled images; 0: nothing but the network.
IMAGES = (400, 0, 100, 10)
# Labelled test images that tell the truth.
TRUTH = 2000
SYNTHETIC = 600
FIELDS = (
    *("network", "way", "asked", "images", "seed", "rival", "repaired", "chosen", "whole"),
    *("accuracy", "seconds"),
)


def load(name: str, weights: Path) -> nn.Module:
    """Load a published network."""
    (path,) = weights.glob(f"{name}-*.th")
    state = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    made = CifarResNet((int(name.removeprefix("resnet")) - 2) // 6)
    made.load_state_dict({key.removeprefix("module."): t for key, t in state.items()})
    return made.eval()


def images(
    folder: Path, part: str, mean: Sequence[float] = MEAN, std: Sequence[float] = STD
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read a file of CIFAR-10, by default as these networks take it."""
    held, labels = read_cifar([folder / "cifar-10-batches-py" / part])
    pixels = torch.from_numpy(held).float() / 255
    less, by = (torch.tensor(moment)[:, None, None] for moment in (mean, std))
    return (pixels - less) / by, torch.from_numpy(labels)


def accuracy(module: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of right answers."""
    with torch.no_grad():
        answers = torch.cat([module(part).argmax(1) for part in x.split(250)])
    return float((answers == labels).float().mean())


def main(argv: list[str]) -> None:
    """Fill the table of one network, cell by cell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("network", choices=["resnet20", "resnet32", "resnet44", "resnet56"])
    for name in ("weights", "cifar", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    whole = load(given.network, given.weights)
    x, labels = images(given.cifar, "test_batch")
    x, labels = x[:TRUTH], labels[:TRUTH]
    pool, _ = images(given.cifar, "data_batch_5")
    path = given.out / f"{given.network}.csv"
    rows = list(csv.DictReader(path.open(encoding="utf-8"))) if path.exists() else []
    done = {tuple(row[k] for k in ("way", "asked", "images", "seed")) for row in rows}
    made, _ = synthetic(whole, (3, 32, 32), most=SYNTHETIC)
    base = accuracy(whole, x, labels)
    for seed, (way, asked), count in itertools.product(range(given.seeds), CELLS, IMAGES):
        key = (way, str(asked), str(count), str(seed))
        if key in done:
            continue
        order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
        data = pool[order[:count]] if count else made
        began = time.process_time()
        with torch.no_grad():
            bench = Bench.of(whole, data, Knife(way=way), examples=len(data), seed=seed)
            tries = bench.tries(asked, repair=True)
        spent = round(time.process_time() - began, 1)
        best = bench.best(tries)
        for one in tries:
            values = (
                given.network, *key, one.rival.name, one.rival.repaired, one is best, base,
                accuracy(one.module, x, labels), spent,
            )  # fmt: skip
            rows.append(dict(zip(FIELDS, values, strict=True)))
        write(path, rows)
        print(key, [(r["rival"], r["repaired"], r["accuracy"]) for r in rows[-len(tries) :]])


def write(path: Path, rows: list[dict[str, object]]) -> None:
    """Write the table, whole or not at all."""
    with replacing(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main(sys.argv[1:])
