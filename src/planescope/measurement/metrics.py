"""Metrics of a measurement that are logged while a network is trained, by key."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields

from planescope.hyperplanes.statistics import Statistics
from planescope.measurement.record import Measurement

# What is logged of each layer, and of the network's pool as far as that has it.
LOGGED = (
    *("negative_mass", "mean_cosine", "agreement"),
    *("negative_centre", "mean_centre", "activation_rate", "l2", "linf"),
)
LOGGABLE = tuple(
    sorted(
        {f.name for f in fields(Statistics)}
        | {"q_mass", "q_cosine", "q_centre", "activation_rate", "l2", "linf"}
    )
)


def by_key(
    measurement: Measurement, names: Iterable[str] = LOGGED, /, *, by_layer: bool = True
) -> dict[str, float]:
    """Return the statistics by key.

    ``planescope/LAYER/NAME``, and ``planescope/NAME`` of all filters.

    What a layer does not have is left out, and without `by_layer` all that is of one layer.
    ``planescope/biased_share``, the share of layers that are biased, sums them up where anything is
    named.
    """
    names = tuple(names)
    layers = measurement.layers if by_layer else ()
    parts = [(f"planescope/{layer.name}", vars(layer)) for layer in layers]
    tested = [layer.biased for layer in measurement.layers if layer.biased is not None]
    summary = {"planescope/biased_share": sum(tested) / len(tested)} if names and tested else {}
    return summary | {
        f"{prefix}/{name}": float(values[name])
        for prefix, values in [*parts, ("planescope", vars(measurement.network))]
        for name in names
        if values.get(name) is not None
    }
