"""The probability that a layer of a checkpoint is critical, by a model fitted on trained runs.

The model that ships is a logistic regression over statistics that need no data; what it was fitted
on, and how well it did on runs it never saw, stands in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from planescope.files.results import Result, Table, columns_of
from planescope.hyperplanes.arrays import Floats
from planescope.hyperplanes.layer import Input, View
from planescope.measurement.record import Measurement

if TYPE_CHECKING:
    from numpy.typing import NDArray

# What the model sees of a layer, in order.
FEATURES = (
    "agreement",
    "abs_mean_cosine",  # |mean cosine|
    "log_abs_z",  # log(1 + |z|)
    "centre",  # minus the mean centre; 0 without a batch norm
    "normed",  # whether there is a centre
    "position",  # 0 for the first measured layer, 1 for the last
    "first",  # whether its input is an image
)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The agreement of probabilities with what resets then cost.

    Attributes
    ----------
    runs, layers, critical : int
        What it was tried on; how many of the layers are critical.
    brier, log_loss : float
        Mean squared error, and mean negative log-likelihood, of the probabilities.
    brier_of_rate, brier_of_position : float
        The squared error of the plain share of critical layers in the fitted runs, and of the same
        model with position and `first` alone: what the hyperplanes add.
    auc : float or None
        Area under the ROC curve; None where all layers are alike.
    calibration_slope, calibration_intercept : float or None
        Of a logistic regression of the outcome on the log-odds: 1 and 0 where calibrated, a slope
        below 1 where too sure; None where all layers are alike.
    """

    runs: int
    layers: int
    critical: int
    brier: float
    log_loss: float
    brier_of_rate: float
    brier_of_position: float
    auc: float | None
    calibration_slope: float | None
    calibration_intercept: float | None


@dataclass(frozen=True, kw_only=True)
class Reach:
    """The range of what the model was fitted on, to tell what is far from it.

    Attributes
    ----------
    precision : tuple of tuple of float
        Inverse covariance of the standardised features.
    limit : float
        Squared Mahalanobis distance that 99 % of the fitted layers stay below.
    fewest, most : int
        Layers of the fitted networks.
    """

    precision: tuple[tuple[float, ...], ...]
    limit: float
    fewest: int
    most: int


# Of a fitted number; beyond it products of some would be infinite.
_MOST = 1e12


@dataclass(frozen=True, kw_only=True)
class CriticalModel(Result):
    """A logistic regression of whether a layer is critical, on what needs no data.

    Attributes
    ----------
    critical : float
        Relative drop that makes a layer critical.
    features : tuple of str
        `FEATURES`, for which `centre`, `scale` and `coefficients` stand.
    intercept : float
    reach : Reach
    networks, data : tuple of str
        What it was fitted on.
    cross_validated, held_out : Evidence or None
        On the fitted runs, each left out in turn with its fold; and on runs that the fit never saw.
    """

    SCHEMA: ClassVar[str] = "planescope.critical-model/1"
    WHAT: ClassVar[str] = "model"
    REMEDY: ClassVar[str] = "fit it again"

    critical: float
    features: tuple[str, ...]
    centre: tuple[float, ...]
    scale: tuple[float, ...]
    coefficients: tuple[float, ...]
    intercept: float
    reach: Reach
    networks: tuple[str, ...]
    data: tuple[str, ...]
    cross_validated: Evidence
    held_out: Evidence | None = None

    @property
    def fitted_on(self) -> str:
        """Return what it was fitted on, in a sentence."""
        tried = self.cross_validated
        return (
            f"Fitted on {tried.runs} runs ({', '.join(self.networks)} on {', '.join(self.data)}; "
            f"{tried.layers} layers, {tried.critical} critical: a drop above {self.critical:.0%})."
        )

    def probabilities(self, features: Floats, /) -> Floats:
        """Return the probability of critical for rows of features; shape (layers,)."""
        standard = (features - np.array(self.centre)) / np.array(self.scale)
        odds = standard @ np.array(self.coefficients) + self.intercept
        return np.asarray(0.5 * (1 + np.tanh(odds / 2)))  # the logistic function, without overflow

    def far(self, features: Floats, /) -> NDArray[np.bool_]:
        """Tell the rows of features that lie beyond 99 % of those fitted on."""
        standard = (features - np.array(self.centre)) / np.array(self.scale)
        square = np.einsum("ij,jk,ik->i", standard, np.array(self.reach.precision), standard)
        return np.asarray(square > self.reach.limit)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], /) -> Self:
        """Make the model of what `to_dict` gave.

        Raises
        ------
        ValueError
            If a part is missing or of another type, or a number is out of range.
        """
        model = super().from_dict(data)
        if model.features != FEATURES:
            raise ValueError("its features are others")
        numbers = (model.centre, model.scale, model.coefficients, *model.reach.precision)
        if any(len(row) != len(FEATURES) for row in (*numbers, model.reach.precision)):
            raise ValueError("its numbers are not one a feature")
        if not all(scale > 1 / _MOST for scale in model.scale):
            raise ValueError("it has a scale that is 0 or too small")
        if any(abs(number) > _MOST for row in (*numbers, (model.intercept,)) for number in row):
            raise ValueError("it has a number beyond all measure")
        return model


@dataclass(frozen=True, kw_only=True)
class LayerPrediction:
    """The probability that a layer is critical.

    Attributes
    ----------
    name : str
    probability : float or None
        None where no filter of the layer can be measured.
    far : bool
        Whether the layer is unlike what the model was fitted on.
    """

    name: str
    probability: float | None
    far: bool


@dataclass(frozen=True, kw_only=True)
class Prediction(Table):
    """The probabilities that the layers of a network are critical.

    Attributes
    ----------
    source : str
        What was measured.
    critical : float
        Relative drop that makes a layer critical.
    layers : tuple of LayerPrediction
        In the order of the measurement.
    fitted_on : str
        What the model was fitted on, in a sentence.
    notes : tuple of str
        Warnings: what is far from that.
    """

    SCHEMA: ClassVar[str] = "planescope.critical/1"
    WHAT: ClassVar[str] = "prediction"
    REMEDY: ClassVar[str] = "predict again"
    INDEX: ClassVar[str] = "name"

    source: str
    critical: float
    layers: tuple[LayerPrediction, ...]
    fitted_on: str
    notes: tuple[str, ...] = ()

    def columns(self) -> dict[str, list[Any]]:
        """Return the table's columns: a row a layer."""
        return columns_of(self.layers, LayerPrediction)

    @classmethod
    def file_columns(cls, results: Sequence[Self], /) -> dict[str, list[Any]]:
        """Return the columns of one or several predictions, with the path of each."""
        columns = super().file_columns(results)
        paths = [one.source for one in results for _ in one.layers]
        return {"schema": columns.pop("schema"), "path": paths, **columns}

    def _summary(self) -> tuple[str, Mapping[str, Sequence[Any]]]:
        """Return what a notebook shows: what the model was fitted on, and the probabilities."""
        return f"{self.source}: {self.fitted_on}", self.columns()


def shipped_model() -> CriticalModel:
    """Return the model that comes with the package."""
    with (
        files("planescope.criticality")
        .joinpath("critical-model.json")
        .open(encoding="utf-8") as file
    ):
        return CriticalModel.from_dict(json.load(file))


def predict_critical(
    measurement: Measurement, /, *, model: CriticalModel | None = None
) -> Prediction:
    """Predict for each layer whether the network loses much if it is reset to its initialisation.

    Parameters
    ----------
    measurement : Measurement
        Of the raw view; `planescope.measure` gives it.
    model : CriticalModel, optional
        By default the one that ships; `planescope.fit_critical` fits one to runs of your own.

    Returns
    -------
    Prediction
        It says on what the model was fitted, and warns where the network is far from that.
    """
    fitted = shipped_model() if model is None else model
    rows = features_of(measurement)
    told = np.isfinite(rows).all(axis=1)
    probabilities = np.full(len(rows), np.nan)
    far = np.zeros(len(rows), dtype=bool)
    probabilities[told] = fitted.probabilities(rows[told])
    far[told] = fitted.far(rows[told])
    layers = tuple(
        LayerPrediction(
            name=layer.name,
            probability=float(p) if math.isfinite(p) else None,
            far=bool(is_far),
        )
        for layer, p, is_far in zip(measurement.layers, probabilities, far, strict=True)
    )
    return Prediction(
        source=measurement.source.path,
        critical=fitted.critical,
        layers=layers,
        fitted_on=fitted.fitted_on,
        notes=tuple(_warnings(measurement, layers, fitted.reach)),
    )


def _warnings(
    measurement: Measurement, layers: Sequence[LayerPrediction], reach: Reach
) -> list[str]:
    notes = []
    far = sum(layer.far for layer in layers)
    if far:
        notes.append(
            f"{far} of {len(layers)} layers are unlike those that the model was fitted on; their "
            "probabilities are guesses"
        )
    if not reach.fewest <= len(layers) <= reach.most:
        notes.append(
            f"{len(layers)} layers were measured, and the model was fitted on networks of "
            f"{reach.fewest} to {reach.most}; take its probabilities as a ranking at most"
        )
    if measurement.view is View.EFFECTIVE:
        notes.append("the model was fitted on the raw view; measure that")
    return notes


def features_of(measurement: Measurement, /) -> Floats:
    """Return the features of each layer; shape (layers, features), NaN where nothing is known."""
    last = max(1, len(measurement.layers) - 1)
    unknown = all(layer.input is Input.UNKNOWN for layer in measurement.layers)
    rows = [
        features_of_scores(
            {
                "agreement": layer.agreement,
                "mean_cosine": layer.mean_cosine,
                "abs_z": None if layer.z is None else abs(layer.z),
                "mean_centre": layer.mean_centre,
                "position": i / last,
            },
            # Where no graph tells, the first layer is taken to be the one that sees the image.
            first=layer.input is Input.IMAGE or (unknown and i == 0),
        )
        for i, layer in enumerate(measurement.layers)
    ]
    return np.array(rows)


def features_of_scores(scores: Mapping[str, float | None], /, *, first: bool) -> tuple[float, ...]:
    """Return the values of `FEATURES` from a layer's scores; NaN where it has no usable filter."""
    told = [scores[name] for name in ("agreement", "mean_cosine", "abs_z", "position")]
    agreement, cosine, z, position = (math.nan if x is None else x for x in told)
    if any(map(math.isnan, (agreement, cosine, z, position))):
        return (math.nan,) * len(FEATURES)
    centre = scores["mean_centre"]
    return (
        agreement,
        abs(cosine),
        math.log1p(z),
        0.0 if centre is None else -centre,
        float(centre is not None),
        position,
        float(first),
    )
