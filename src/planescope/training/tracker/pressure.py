"""The drift pressure: the rate at which the projections of a layer's filters change, on average.

Of means alone, which each update has: it costs a subtraction a layer.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from planescope.measurement.record import LayerMeasurement, Measurement

NAME = "drift_pressure"

# Where these differ, other filters count than before, and means of two sets have no rate.
_FILTERS = ("filters", "fan_in", "groups", "degenerate", "non_finite")

Pressures = tuple[float | None, ...]


def between(
    before: Measurement | None, now: Measurement, steps: int, anew: Collection[str], /
) -> Pressures:
    """Return the drift pressure of each layer of an update since the one before it.

    Parameters
    ----------
    before : Measurement or None
        None at the first update.
    steps : int
        From one to the other.
    anew : collection of str
        Layers whose module was replaced in between.
    """
    if before is None or steps <= 0:
        return (None,) * len(now.layers)
    known = {layer.name: layer for layer in before.layers if layer.name not in anew}
    return tuple(_rate(known.get(layer.name), layer, steps) for layer in now.layers)


def _rate(before: LayerMeasurement | None, now: LayerMeasurement, steps: int) -> float | None:
    if before is None or before.mean_projection is None or now.mean_projection is None:
        return None
    if any(getattr(before, name) != getattr(now, name) for name in _FILTERS):
        return None
    rate = (now.mean_projection - before.mean_projection) / steps
    return rate if math.isfinite(rate) else None


def of_all(layers: Sequence[LayerMeasurement], pressures: Pressures, /) -> float | None:
    """Return the mean over the filters of all layers; None where a layer has none."""
    parts = [
        (layer.filters - layer.degenerate - layer.non_finite, pressure)
        for layer, pressure in zip(layers, pressures, strict=True)
        if pressure is not None
    ]
    if len(parts) < len(layers) or not parts:
        return None
    return sum(count * pressure for count, pressure in parts) / sum(count for count, _ in parts)
