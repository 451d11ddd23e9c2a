"""Single filters as a page has them: distributions of the cosine, and portraits of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planescope.figures.layers import bins, law_curve
from planescope.figures.portrait import FARTHEST, seen_height, seen_range
from planescope.figures.report.rounding import rounded_all
from planescope.files.errors import CheckpointError
from planescope.measurement.record import LayerMeasurement

Floats = NDArray[np.floating]


# (cosine, offset) of each filter, by the name of the layer.
Arrays = Mapping[str, "tuple[Floats, Floats] | Floats"]

# The most filters of a layer in a portrait. And of all layers of all networks together, at the
# last epoch and at all others, which bounds the size of the page.
MOST_OF_A_LAYER, MOST_AT_LAST, MOST_BEFORE = 1024, 60_000, 60_000
# Height of a portrait over its width on the page.
ASPECT = 0.5
# Of what is only drawn.
DIGITS = 4


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts of cosines at each epoch, in the same bins; None where no filters are known."""

    low: float
    width: float
    counts: list[list[int] | None]


@dataclass(frozen=True, kw_only=True)
class Portrait:
    """Some filters of a layer at each epoch.

    Attributes
    ----------
    range : tuple of float
        Low and high of x, high of y, and by how much heights are stretched.
    cosine, offset : list of list, or None
        By epoch; None where none are known. An epoch has each k-th filter, None for one without a
        hyperplane.
    """

    range: tuple[float | None, ...]
    cosine: list[list[float | None] | None]
    offset: list[list[float | None] | None]


@dataclass(frozen=True, kw_only=True)
class FiltersShown:
    """Distributions and portraits of all layers, in their order; None where no filters are known.

    `laws` has the density of chance by fan-in: cosines, and densities there.
    """

    histograms: tuple[Histogram | None, ...]
    portraits: tuple[Portrait | None, ...]
    laws: Mapping[int, tuple[list[float | None], list[float | None]]]


def filters_shown(
    layers: Sequence[LayerMeasurement], epochs: Sequence[Arrays], /, *, networks: int = 1
) -> FiltersShown:
    """Gather what a page shows of single filters.

    Parameters
    ----------
    layers : sequence of LayerMeasurement
    epochs : sequence of mapping
        Cosine and offset of each filter by layer; empty where they are not known.
    networks : int
        How many share the page.

    Raises
    ------
    CheckpointError
        If a layer has another number of filters than it should.
    """
    known = sum(bool(arrays) for arrays in epochs)
    counts = [layer.filters for layer in layers]
    last = _most_of_each(counts, MOST_AT_LAST // networks)
    before = _most_of_each(counts, MOST_BEFORE // networks // max(1, known - 1))
    histograms, portraits = [], []
    for layer in layers:
        through = [_of_layer(layer, arrays) for arrays in epochs]
        some = any(values is not None for values in through)
        histograms.append(_histogram(layer, through) if some else None)
        portraits.append(_portrait(layer, through, before, last) if some else None)
    return FiltersShown(
        histograms=tuple(histograms),
        portraits=tuple(portraits),
        laws={fan_in: _law(fan_in) for fan_in in sorted({layer.fan_in for layer in layers})},
    )


def _most_of_each(filters: Sequence[int], room: int) -> int:
    """Return the most filters of a layer, so that those of all layers have room."""
    most = MOST_OF_A_LAYER
    while most > 8 and sum(min(most, count) for count in filters) > room:
        most = 7 * most // 8
    return most


def _of_layer(layer: LayerMeasurement, arrays: Arrays) -> Floats | None:
    """Return rows of cosine and offset in double precision, NaN in both for what is not usable."""
    if layer.name not in arrays:
        return None
    values = np.array(arrays[layer.name], dtype=np.float64)
    if values.shape != (2, layer.filters):
        raise CheckpointError(
            f"the kept filters of {layer.name} have the shape {values.shape}, and "
            f"{(2, layer.filters)} was expected; train the run again"
        )
    values[:, ~np.isfinite(values).all(axis=0)] = np.nan
    return values


def _histogram(layer: LayerMeasurement, through: Sequence[Floats | None]) -> Histogram | None:
    """Return the counts in bins that hold the cosines of all epochs."""
    cosines = [None if values is None else values[0][~np.isnan(values[0])] for values in through]
    there = [cosine for cosine in cosines if cosine is not None]
    edges = bins(np.concatenate(there), layer.fan_in, max(map(len, there)))
    if len(edges) < 2:
        return None
    low, width = float(edges[0]), float(edges[1] - edges[0])
    counts = [
        None if cosine is None else np.histogram(cosine, edges)[0].tolist() for cosine in cosines
    ]
    return Histogram(low=low, width=width, counts=counts)


def _portrait(
    layer: LayerMeasurement, through: Sequence[Floats | None], before: int, last: int
) -> Portrait:
    there = np.concatenate([values for values in through if values is not None], axis=1)
    cosine: list[list[float | None] | None] = []
    offset: list[list[float | None] | None] = []
    for i, values in enumerate(through):
        if values is None:
            cosine.append(None)
            offset.append(None)
            continue
        count = min(layer.filters, last if i == len(through) - 1 else before)
        some = np.arange(count) * layer.filters // count
        cosine.append(rounded_all(values[0, some], DIGITS))
        offset.append(rounded_all(values[1, some], DIGITS))
    return Portrait(range=_range(there), cosine=cosine, offset=offset)


def _range(values: Floats) -> tuple[float | None, ...]:
    """Return the visible part of the half-plane: the same at all epochs, so that motion is seen."""
    cosine, offset = values
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        crossing = -offset / cosine
    drawn = np.abs(crossing) < FARTHEST  # neither NaN nor parallel to the line
    low, high = seen_range(crossing[drawn])
    top, stretch = seen_height(cosine[drawn], offset[drawn], low, high, ASPECT)
    return tuple(rounded_all((low, high, top, stretch), DIGITS))


def _law(fan_in: int) -> tuple[list[float | None], list[float | None]]:
    """Return each second point of the density of chance; none for d = 1."""
    curve = law_curve(fan_in)[::2]
    return rounded_all(curve[:, 0], DIGITS), rounded_all(curve[:, 1], DIGITS)
