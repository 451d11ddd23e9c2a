"""The fallback from weights alone: it tells next to nothing of critical layers, and says so."""

from __future__ import annotations

from typing import Any

from planescope.criticality.prediction.record import LayerPrediction, Method, Prediction
from planescope.files.errors import CheckpointError, NoLayersError
from planescope.hyperplanes.layer import Kind, Skipped
from planescope.measurement.measure import measure
from planescope.measurement.record import Measurement

NOTE = (
    "without the initialisation nothing is said of critical layers: agreement has an area under "
    "the ROC curve of 0.60 on 63 networks, and the best model of the weights reached 0.70 on "
    "architectures that it had not seen, short of the 0.80 that was asked of it"
)


def of_weights(model: Any, /, *, network: Any, kinds: Any, layers: str | None) -> Prediction:
    """Score layers by the agreement of their hyperplanes; `planescope.measure` says what raises."""
    if isinstance(model, Measurement):
        return _of(model)
    named = network if isinstance(network, str) else None
    if kinds:
        return _of(measure(model, network=named, kinds=kinds, layers=layers), named)
    try:
        return _of(measure(model, network=named, layers=layers), named)
    except NoLayersError as of_convolutions:
        try:
            found = measure(model, network=named, kinds=(Kind.LINEAR,), layers=layers)
        except NoLayersError:
            raise of_convolutions from None
        return _of(found, named)


def _of(measured: Measurement, named: str | None = None) -> Prediction:
    path = measured.source.path
    odd = next((layer.name for layer in measured.layers if layer.non_finite), None)
    if odd is not None:
        raise CheckpointError(
            f"{path}: {odd} holds values that are not finite: nothing can be said of such a network"
        )
    scored, skipped = [], list(measured.skipped)
    for layer in measured.layers:
        if layer.agreement is None:
            reason = "no filter of it faces a side: it has no agreement"
            skipped.append(Skipped(name=layer.name, reason=reason))
        else:
            scored.append(LayerPrediction(name=layer.name, kind=layer.kind, score=layer.agreement))
    return Prediction(
        source=path, network=named or measured.source.format, method=Method.WEIGHTS,
        layers=tuple(scored), skipped=tuple(skipped), notes=(NOTE,),
    )  # fmt: skip
