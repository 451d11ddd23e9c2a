"""From the disagreement on synthetic inputs to a verdict: what was fixed on development networks.

Frozen before any network of a test was reset: nothing here is to be changed in view of one.
docs/results/critical.md says what development found.
"""

from __future__ import annotations

from collections.abc import Sequence

from planescope.criticality.definition import Critical

# A score above the upper cut: critical; below the lower one: not. Of the layers that resets decide,
# in 39 networks of an exploration and in the 27 of the development study that are right in a
# quarter of the cases or more, 4 of 143 above the upper cut are not critical, and none of those
# below the lower one is.
LOWER, UPPER = 0.15, 0.45
# What development covered.
CLASSES = (10,)
SIDES = (28, 32)
CHANNELS = (1, 3)

# Of the 11 layers wrongly called critical in development, 9 are of two networks of 12 and 20 %
# accuracy.
LEARNED = (
    "verdicts of synthetic inputs are for networks that have learned: one that is little better "
    "than chance is unsure everywhere, and layers are called critical that are not"
)


def verdict(score: float, /) -> Critical:
    """Say on which side of the cuts a disagreement lies, or that it lies between."""
    if score > UPPER:
        return Critical.YES
    return Critical.NO if score < LOWER else Critical.UNDECIDED


def uncovered(classes: int, shape: Sequence[int] | None, /) -> str | None:
    """Name what of a network no cut was tried on; None where there is nothing."""
    odd = []
    if classes not in CLASSES:
        odd.append(f"{classes} classes")
    if shape is not None and len(shape) == 3:
        if shape[0] not in CHANNELS:
            odd.append(f"{shape[0]} channels")
        if not set(shape[1:]) <= set(SIDES):
            odd.append(f"pictures of {shape[1]}×{shape[2]}")
    if not odd:
        return None
    return (
        f"verdicts of synthetic inputs were tried on networks of 10 classes and pictures of 28 or "
        f"32 pixels a side, not on {' and '.join(odd)}: trust their order alone"
    )
