"""Scores of layers that need no data, to be held against what the layers cost.

To import this is cheap; norms of weights are computed where they are asked for.
"""

from __future__ import annotations

import numpy as np

from planescope.criticality.alpha import alpha
from planescope.hyperplanes.arrays import Floats
from planescope.hyperplanes.layer import Layer
from planescope.measurement.record import LayerMeasurement

# Every score by its name, in the order of tables; and what it is.
SCORES = {
    "agreement": "abs(2m - 1), how many normals face the same way",
    "abs_z": "|z|, the mean cosine in standard deviations of chance",
    "mean_cosine": "mean cosine; negative where normals face away from the orthant",
    "mean_centre": "mean centre; negative where data lie on the inactive side",
    "l2": "relative distance from initialisation, Frobenius norm",
    "linf": "relative distance from initialisation, largest entry",
    "frobenius": "Frobenius norm of the weights",
    "spectral": "largest singular value of the weights, a filter a row",
    "stable_rank": "squared Frobenius norm over squared spectral norm",
    "alpha": "exponent of the spectrum, WeightWatcher's; where it was asked for",
    "position": "place in the network, 0 for the first layer and 1 for the last",
    "random": "a number drawn at random, to compare with",
}


# The one that is there to compare with.
CONTROL = "random"


def layer_scores(
    measured: LayerMeasurement,
    layer: Layer | None,
    /,
    *,
    position: float,
    random: float,
    with_alpha: bool = False,
) -> dict[str, float | None]:
    """Return all scores of a layer by name; None where a score has no meaning (no norm, no filter).

    Parameters
    ----------
    measured : LayerMeasurement
        With distances from initialisation.
    layer : Layer or None
        Whose weights are read; without it, there are no norms of weights and no alpha.
    position, random : float
        As they are to be told.
    with_alpha : bool
        Whether to compute alpha, which takes a while for wide layers.
    """
    frobenius = spectral = exponent = None
    if layer is not None:
        weight = np.array(layer.weight.read(), dtype=np.float64)
        frobenius, spectral = _norms(weight.reshape(layer.filters, layer.fan_in))
        exponent = alpha(weight) if with_alpha else None
    return {
        "agreement": measured.agreement,
        "abs_z": None if measured.z is None else abs(measured.z),
        "mean_cosine": measured.mean_cosine,
        "mean_centre": measured.mean_centre,
        "l2": measured.l2,
        "linf": measured.linf,
        "frobenius": frobenius,
        "spectral": spectral,
        "stable_rank": (frobenius / spectral) ** 2 if frobenius and spectral else None,
        "alpha": exponent,
        "position": position,
        "random": random,
    }


def _norms(rows: Floats) -> tuple[float | None, float | None]:
    """Return the frobenius and spectral norm; None where an entry is not finite."""
    largest = float(np.abs(rows).max(initial=0.0))
    if not np.isfinite(largest):
        return None, None
    if not largest:
        return 0.0, 0.0
    rows = rows / largest  # so that squares neither overflow nor vanish
    return largest * float(np.linalg.norm(rows)), largest * spectral_norm(rows)


def spectral_norm(rows: Floats, /) -> float:
    """Return the largest singular value, from the smaller of a matrix's products with itself.

    Squaring costs accuracy at the small singular values, none at the largest.
    """
    from scipy.linalg import eigh

    square = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    size = len(square)
    largest = eigh(square, eigvals_only=True, subset_by_index=(size - 1, size - 1))
    return float(np.sqrt(max(float(largest[0]), 0.0)))
