"""The choice among allocations of one size, by answers to examples that nothing was fitted to.

To import this is to import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from planescope.criticality.plan.divergence import is_less

if TYPE_CHECKING:
    import torch

    from planescope.criticality.plan.bench import Try

# Of several allocations as good as the nearest, within chance, the one that is taken.
USUAL = {"prune": "global magnitude"}
# Standard errors by which another is to be nearer.
ERRORS = 1.0


def choose(tries: Sequence[Try], way: str, /, *, of_classes: bool) -> Try:
    """Find the one nearest to the whole network on the examples that choose.

    Where an allocation is usual, another takes its place only if it is nearer beyond chance.

    Notes
    -----
    Of classes what is compared is a bound on the change of an answer (Pinsker): half the sum of
    absolute changes of the probabilities is at most the root of half the divergence, and at most 1.
    A mean of divergences turns on the few examples whose answers are worst, however many go over.
    """

    def moved(one: Try) -> torch.Tensor:
        if not of_classes:
            return one.checked
        return (one.checked.clamp(min=0) / 2).sqrt().clamp(max=1)

    near = min(tries, key=lambda one: float(moved(one).mean()))
    for one in tries:
        is_like = one.rival.repaired == near.rival.repaired
        if is_like and one.rival.name == USUAL.get(way):
            return near if is_less(moved(near), moved(one), errors=ERRORS) else one
    return near
