"""Records of predictions: which layers are critical, told without labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Self

from planescope.criticality.definition import Critical
from planescope.files.errors import counted
from planescope.files.results.result import Table, columns_of
from planescope.hyperplanes.layer import Kind, Skipped


class Method(StrEnum):
    """The basis of a prediction."""

    SYNTHETIC = "synthetic"  # the initialisation, and pictures that the network itself chose
    UNLABELLED = "unlabelled"  # the initialisation, and inputs of the user's
    WEIGHTS = "weights"  # the trained weights alone


@dataclass(frozen=True, kw_only=True)
class LayerPrediction:
    """A prediction for one layer.

    Attributes
    ----------
    name : str
    kind : {"conv", "pointwise", "transposed", "linear"}
    score : float
        Higher is likelier to be critical, by `Method`: the mean disagreement over the sets of
        synthetic inputs; the share of its answers' probability that the network expects to lose;
        the agreement of the hyperplanes. Of outputs that are no classes, the relative change of
        the output.
    loss : float or None
        Share of what the network knows beyond chance that it loses when the layer is put back:
        expected on inputs without labels. None for the other methods, and where the network cannot
        be told from chance.
    lower, upper : float or None
        95 % interval of the loss, by a bootstrap over the inputs.
        An expected loss takes the network's own probabilities for right, and its interval holds
        the true one less often.
    critical : {"yes", "no", "undecided"} or None
        By the definition where there is an interval (METHOD, section 7); for synthetic inputs by
        the frozen cuts of the score, undecided between them. None where nothing can be told.
    """

    name: str
    kind: Kind
    score: float
    loss: float | None = None
    lower: float | None = None
    upper: float | None = None
    critical: Critical | None = None


@dataclass(frozen=True, kw_only=True)
class Prediction(Table):
    """The predicted criticality of each layer, as far as it can be told without labels.

    Attributes
    ----------
    source, network : str
        Where the network comes from, and what it is called.
    method : {"synthetic", "unlabelled", "weights"}
    layers : tuple of LayerPrediction
        In the order of the network.
    init : str or None
        What the layers were put back to.
    data : str or None
        What the inputs are.
    inputs : int
        How many.
    input_shape : tuple of int or None
        Of one input; None where inputs are not one array each.
    assumed : bool
        Whether nobody told the size of the inputs.
    expected : float or None
        Accuracy that the whole network expects of itself, on inputs of the user's.
    chance : float or None
        What it is by chance.
    skipped : tuple of Skipped
        Layers of which nothing is said, and why.
    notes : tuple of str
        What a reader should know.
    """

    SCHEMA: ClassVar[str] = "planescope.prediction/1"
    WHAT: ClassVar[str] = "prediction"
    REMEDY: ClassVar[str] = "predict again"
    INDEX: ClassVar[str | None] = "layer"

    source: str
    network: str
    method: Method
    layers: tuple[LayerPrediction, ...]
    init: str | None = None
    data: str | None = None
    inputs: int = 0
    input_shape: tuple[int, ...] | None = None
    assumed: bool = False
    expected: float | None = None
    chance: float | None = None
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()

    def columns(self) -> dict[str, list[Any]]:
        """Return the table's columns: a row a layer."""
        return columns_of(self.layers, LayerPrediction)

    @classmethod
    def file_columns(cls, results: Sequence[Self], /) -> dict[str, list[Any]]:
        """Return the columns of one or several predictions, with the path and method of each."""
        columns = super().file_columns(results)
        rows = [one for one in results for _ in one.layers]
        return {
            "schema": columns.pop("schema"),
            "path": [one.source for one in rows],
            "method": [one.method.value for one in rows],
            **columns,
        }

    def _summary(self) -> tuple[str, Mapping[str, Sequence[Any]]]:
        """Return what a notebook shows: what the scores are, and all layers."""
        return f"{self.source}: {self.sentence}", self.columns()

    @property
    def has_loss(self) -> bool:
        """Return whether there is a loss: without one, layers have a score alone."""
        return any(layer.loss is not None for layer in self.layers)

    @property
    def sentence(self) -> str:
        """Return what the scores are, in a sentence."""
        of, made = (counted(self.inputs, what) for what in ("input", "synthetic input"))
        match self.method:
            case Method.WEIGHTS:
                return (
                    "weights alone: agreement of the hyperplanes, no verdict; give --init (init=) "
                    "for one"
                )
            case Method.SYNTHETIC:
                return (
                    f"no data: disagreement on {made} when a layer is put back; "
                    "it ranks, and is no loss of accuracy"
                )
            case _ if self.has_loss:
                return f"no labels: loss that the network itself expects on {of}"
            case _:
                return f"no labels: change of what the network gives, on {of}"
