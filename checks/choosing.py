"""The rules by which a plan could choose among its allocations, on networks of development.

    python -m checks.choosing resnet20 --weights FOLDER --data FOLDER --out FOLDER
    python -m checks.choosing RUN --weights FOLDER --data FOLDER --out FOLDER

Arguments are those of `checks.planning`. A line of ``NETWORK-choice.csv`` a cell: what the best
allocation leaves, and what that leaves which each rule chooses. Runs must be trained beforehand.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from checks.planning import (
    LARGE,
    SYNTHETIC,
    accuracy,
    drawn,
    knife,
    parsed,
    read,
    unlabelled,
    write,
)
from checks.subjects import subject
from planescope.criticality.plan.bench import Bench, Try
from planescope.criticality.plan.choice import choose
from planescope.criticality.plan.divergence import is_less
from planescope.criticality.plan.examples import synthetic

TRUTH = 2000
Rule = Callable[[Sequence[Try], str], Try]


def before(tries: Sequence[Try], way: str) -> Try:
    """Take the least mean divergence; of pruned ones global magnitude within two errors of it."""
    nearest = least(tries, way)
    for one in tries:
        is_like = one.rival.repaired == nearest.rival.repaired
        if way == "prune" and is_like and one.rival.name == "global magnitude":
            return nearest if is_less(nearest.checked, one.checked) else one
    return nearest


def least(tries: Sequence[Try], _way: str) -> Try:
    """Take the least mean divergence."""
    return min(tries, key=lambda one: float(one.checked.mean()))


RULES: dict[str, Rule] = {
    "least": least, "before": before, "now": functools.partial(choose, of_classes=True),
}  # fmt: skip
FIELDS = ("network", "way", "asked", "images", "whole", "best", *RULES)


def main(argv: list[str]) -> None:
    """Fill the table of one network, cell by cell."""
    given = parsed(argv, __doc__)
    torch.set_num_threads(1)
    one = subject(given.network, given.weights, given.data)
    whole, (x, labels) = one.module, (part[:TRUTH] for part in one.truth)
    name = Path(given.network).name
    path = given.out / f"{name}-choice.csv"
    rows = read(path)
    pool = unlabelled(one)
    most = min(SYNTHETIC, len(pool)) if max(one.shape) > LARGE else SYNTHETIC
    made, _ = synthetic(whole, one.shape, most=most) if 0 in given.images else (None, None)
    for (way, asked), count in itertools.product(given.cells, given.images):
        data = drawn(pool, 0)[:count] if count else made
        with torch.no_grad():
            bench = Bench.of(whole, data, knife(way, whole), examples=len(data), seed=0)
            tries = bench.tries(asked, repair=True)
        right = {id(each): accuracy(each.module, x, labels) for each in tries}
        values = (name, way, asked, count, accuracy(whole, x, labels), max(right.values()))
        chosen = (right[id(rule(tries, way))] for rule in RULES.values())
        rows.append(dict(zip(FIELDS, (*values, *chosen), strict=True)))
        write(path, rows, FIELDS)


if __name__ == "__main__":
    main(sys.argv[1:])
