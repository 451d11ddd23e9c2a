"""The words and marks of a prediction that a figure and the page share."""

from __future__ import annotations

from planescope.criticality.definition import THRESHOLD, Critical
from planescope.criticality.prediction.cuts import LOWER, UPPER
from planescope.criticality.prediction.record import LayerPrediction, Method, Prediction

VERDICTS = {
    Critical.YES: "critical",
    Critical.NO: "not critical",
    Critical.UNDECIDED: "undecided",
}


def is_share(found: Prediction, /) -> bool:
    """Tell whether its values are shares: losses, or answers that change."""
    return found.has_loss or found.method is Method.SYNTHETIC


def value_of(found: Prediction, layer: LayerPrediction, /) -> float | None:
    """Return the loss of a layer, or its score where no layer has a loss."""
    return layer.loss if found.has_loss else layer.score


def quantity(found: Prediction, /) -> str:
    """Return in few words what its values are."""
    if found.has_loss:
        return "expected loss"
    return {
        Method.SYNTHETIC: "disagreement",
        Method.UNLABELLED: "relative change of the output",
        Method.WEIGHTS: "agreement",
    }[found.method]


def cuts(found: Prediction, /) -> tuple[float, ...]:
    """Return the values that its verdicts are cut by: the definition's one, the two frozen ones."""
    if found.has_loss:
        return (THRESHOLD,)
    if found.method is Method.SYNTHETIC and any(layer.critical for layer in found.layers):
        return (LOWER, UPPER)
    return ()
