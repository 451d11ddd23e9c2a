"""The sizes that a plan is made for: one, those of a curve, or the least within a budget.

To import this is to import torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from planescope.criticality.plan.allocation import PUT_BACK, check_size, least_share
from planescope.criticality.plan.bench import OnTry
from planescope.criticality.plan.fit.passage import Passage
from planescope.criticality.plan.orders import MOST_PASSES
from planescope.criticality.plan.planned import PlanCost
from planescope.criticality.resets.engine.devices import seconds_of_a_pass
from planescope.files.errors import UsageError

if TYPE_CHECKING:
    from planescope.criticality.plan.bench import Bench, Try

# Sizes, and bits, that are looked at for a budget.
_SIZES = tuple(Fraction(n, 20) for n in range(1, 20))
_BITS = tuple(Fraction(n) for n in range(2, 9))


def at(
    bench: Bench, asked: float, curve: Sequence[float], *, repair: bool, on_try: OnTry | None
) -> tuple[list[Try], list[Try]]:
    """Try a size, then those of a curve."""
    sizes = [asked, *(one for one in dict.fromkeys(curve) if one != asked)]
    for one in sizes:
        check_size(bench.knife.way, one, bench.weights)
    count = len(bench.allocations) * (1 + repair)
    found: list[list[Try]] = []
    for number, one in enumerate(sizes):
        found.append(
            bench.tries(
                one, repair=repair, on_try=on_try, before=number * count, total=count * len(sizes)
            )
        )
        if bench.stopped:
            break
    return found[0], [each for tries in found[1:] for each in tries]


def within(
    bench: Bench, budget: float, *, repair: bool, on_try: OnTry | None
) -> tuple[list[Try], list[Try]]:
    """Find by halves the smallest size whose loss is within a budget; with it, what was tried."""
    if not bench.table.of_classes:
        raise UsageError("the network's outputs are no classes: there is no loss to hold a budget")
    sizes = _sizes(bench)
    low, high, best = 0, len(sizes), -1
    tried: dict[int, list[Try]] = {}
    losses: dict[int, float] = {}
    count = len(bench.allocations) * (1 + repair)
    total = count * len(sizes).bit_length()
    while low < high and not bench.stopped:
        middle = (low + high) // 2
        tries = bench.tries(
            float(sizes[middle]), repair=repair, on_try=on_try, before=count * len(tried),
            total=total,
        )  # fmt: skip
        if not tries:
            break
        tried[middle] = tries
        found = bench.best(tries).rival.loss
        losses[middle] = math.inf if found is None else found
        if losses[middle] <= budget:
            high = best = middle
        else:
            low = middle + 1
    if best < 0 and bench.stopped:
        raise KeyboardInterrupt  # sizes that were not tried may do
    if best < 0:
        nearest = min(losses, key=lambda at: losses[at])
        what = "bits" if bench.knife.way == "bits" else "size"
        told = (
            f"the nearest is a loss of {losses[nearest]:.4g}, at {what} {float(sizes[nearest]):g}"
            if math.isfinite(losses[nearest])
            else "the network knows no more than chance on these examples"
        )
        raise UsageError(f"no {what} keeps the loss within {budget:g}; {told}")
    bench.notes.append("the size was chosen by the loss on the examples of the table")
    return tried.pop(best), [one for tries in tried.values() for one in tries]


def _sizes(bench: Bench) -> tuple[Fraction, ...]:
    if bench.knife.way == "bits":
        return _BITS
    least = least_share(bench.knife.way, bench.weights)
    return tuple(one for one in _SIZES if one >= least)


def cost(
    bench: Bench, way: str, asked: float | None, curve: Sequence[float], *, repair: bool
) -> PlanCost:
    """Count the passes of all tries, and time one."""
    layers, every = len(bench.weights), len(bench.mending.anatomy.calls)
    checked, fitted = bench.taken.checked, bench.taken.fitted
    told = sum(batch.size for batch in bench.table.batches)
    sizes = len(_sizes(bench)).bit_length() if asked is None else 1 + len({*curve} - {asked})
    tries = sizes * len(bench.allocations) * (1 + repair)
    repaired = tries // 2 if repair else 0
    first = bench.taken.fit[0]
    goes_on = bool(repaired) and (
        Passage.of(bench.whole, bench.taken.fit, bench.mending.anatomy) is not None
    )
    # To look at inputs and network, and that a graph answers as the network does.
    looks = 2 + 2 * repaired * goes_on
    # A repair is judged as a whole, without each of its layers, and at the end.
    checks = 1 + tries + repaired * (every + 2) + 2 * layers
    if way in PUT_BACK:
        checks += min(MOST_PASSES, layers * (layers + 1) // 2)
    fits = bench.mending.reconstruction.passes(repaired, goes_on=goes_on)
    examples = looks * first.size + checks * checked + fits * fitted + (1 + tries) * told
    return PlanCost(
        layers=layers,
        tries=tries,
        passes=math.ceil(looks + checks + fits + 1 + tries),
        examples=fitted + checked + told,
        seconds=seconds_of_a_pass(bench.whole, first) / first.size * examples,
    )
