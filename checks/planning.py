"""The cost of plans and repairs on networks that were not developed on.

    python -m checks.planning NETWORK --weights FOLDER --data FOLDER --out FOLDER
    python -m checks.planning resnet32 ... --cells rank:0.25,bits:3 --images 400,0 --seeds 1,2

NETWORK is one of `checks.subjects`: ``resnet32`` and the like, where FOLDER of weights holds
``resnet32-*.th`` (Y. Idelbayev) and that of data ``cifar-10-batches-py``; a run below the folder
of weights; or one of ``checks.imagenet``, with its pictures for data. A line of ``NETWORK.csv`` a
rival and cell; broken off, the same command goes on behind the last whole cell. resnet20 was for
development; the others are the test.
"""

from __future__ import annotations

import argparse
import copy
import csv
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from checks.subjects import Subject, subject
from planescope.criticality.plan.bench import Bench
from planescope.criticality.plan.cuts import PUT_BACK, Knife, knife_of
from planescope.criticality.plan.examples import synthetic
from planescope.criticality.plan.forms.opening import opened
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
# Pixels a side, from which on there are no more synthetic pictures than images.
LARGE = 64
FIELDS = (
    *("network", "way", "asked", "images", "seed", "rival", "repaired", "chosen", "whole"),
    *("accuracy", "seconds"),
)


def accuracy(module: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of right answers."""
    with torch.no_grad():
        answers = torch.cat([module(part).argmax(1) for part in x.split(250)])
    return float((answers == labels).float().mean())


def unlabelled(one: Subject) -> torch.Tensor:
    """Return the images that go without labels; of ImageNet's thousand all that tell no truth."""
    enough = len(one.pool) >= max(IMAGES)
    return one.pool if enough else torch.cat([one.pool, one.few[0]])


def drawn(pool: torch.Tensor, seed: int) -> torch.Tensor:
    """Return images in the order of a seed; that of 0 they have."""
    if not seed:
        return pool
    return pool[torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))]


def knife(way: str, whole: nn.Module) -> Knife:
    """Return how to take away; layers go back to a fresh draw, as published networks come alone."""
    to = fresh(whole) if way in PUT_BACK else None
    return knife_of(way, whole, to, opened(whole, None, "network"))


def fresh(whole: nn.Module) -> nn.Module:
    """Return the network with all that draws its parameters drawn anew, by seed 0."""
    other = copy.deepcopy(whole)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for module in other.modules():
            if callable(draw := getattr(module, "reset_parameters", None)):
                draw()
    return other


def main(argv: list[str]) -> None:
    """Fill the table of one network, cell by cell."""
    given = parsed(argv, __doc__)
    torch.set_num_threads(1)
    one = subject(given.network, given.weights, given.data)
    whole, (x, labels) = one.module, (part[:TRUTH] for part in one.truth)
    path = given.out / f"{Path(given.network).name}.csv"
    rows = read(path)
    done = {tuple(row[k] for k in ("way", "asked", "images", "seed")) for row in rows}
    pool = unlabelled(one)
    most = min(SYNTHETIC, len(pool)) if max(one.shape) > LARGE else SYNTHETIC
    made, _ = synthetic(whole, one.shape, most=most) if 0 in given.images else (None, None)
    base = accuracy(whole, x, labels)
    for seed, (way, asked), count in itertools.product(given.seeds, given.cells, given.images):
        key = (way, f"{asked:g}", str(count), str(seed))
        if key in done:
            continue
        data = drawn(pool, seed)[:count] if count else made
        began = time.process_time()
        with torch.no_grad():
            bench = Bench.of(whole, data, knife(way, whole), examples=len(data), seed=seed)
            tries = bench.tries(asked, repair=True)
        spent = round(time.process_time() - began, 1)
        best = bench.best(tries)
        for each in tries:
            values = (
                Path(given.network).name, *key, each.rival.name, each.rival.repaired, each is best,
                base, accuracy(each.module, x, labels), spent,
            )  # fmt: skip
            rows.append(dict(zip(FIELDS, values, strict=True)))
        write(path, rows)
        print(key, [(r["rival"], r["repaired"], r["accuracy"]) for r in rows[-len(tries) :]])


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser of what each test is given: a network, and where its files and tables lie."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("network")
    for name in ("weights", "data", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    return parser


def parsed(argv: list[str], doc: str | None) -> argparse.Namespace:
    """Return the arguments of a test that goes through cells."""
    parser = parser_of(doc)
    numbers = {"images": IMAGES, "seeds": (0,)}
    for name, usual in numbers.items():
        parser.add_argument(f"--{name}", type=lambda s: [*map(int, s.split(","))], default=usual)
    parser.add_argument("--cells", type=lambda s: [*map(_cell, s.split(","))], default=CELLS)
    return parser.parse_args(argv)


def _cell(text: str) -> tuple[str, float]:
    way, _, asked = text.partition(":")
    return way, float(asked)


def read(path: Path) -> list[dict[str, object]]:
    """Return the rows that are there already."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[dict[str, object]], fields: Sequence[str] = FIELDS) -> None:
    """Write the table, whole or not at all."""
    with replacing(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main(sys.argv[1:])
