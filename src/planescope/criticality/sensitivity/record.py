"""Records of sensitivity: the cost when other weights stand in for a layer's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

from planescope.criticality.replacements import Way, WayKind
from planescope.files.errors import UsageError, counted
from planescope.files.results.result import Table
from planescope.hyperplanes.layer import Kind, Skipped


class Method(StrEnum):
    """The kind of inputs that a cost was found on."""

    SYNTHETIC = "synthetic"  # chosen from synthetic pictures by the network itself
    UNLABELLED = "unlabelled"
    MEASURED = "measured"  # with labels, or a metric of the user's


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The cost of one replacement (METHOD, section 7).

    Attributes
    ----------
    score : float
        Higher costs more, by `Method`: the loss; the expected share of the answers' probability
        that is gone; the mean disagreement over the sets of synthetic inputs. Of outputs that are
        no classes the relative change of the output.
    loss : float or None
        Share of what the network knows beyond chance that is gone: measured, or expected. None for
        synthetic inputs, which rank only, and where there is none.
    lower, upper : float or None
        95 % interval of the loss, by a bootstrap over the inputs.
        An expected loss takes the network's own probabilities for right, and its interval holds
        the true one less often.
    drop, relative_drop : float or None
        Of the metric, measured: ``a - a_r``, and the same over a.
    scope : {"branch"} or None
        Of ways that take filters away: that branch alone went, never a coupled group.
    """

    score: float
    loss: float | None = None
    lower: float | None = None
    upper: float | None = None
    drop: float | None = None
    relative_drop: float | None = None
    scope: str | None = None


@dataclass(frozen=True, kw_only=True)
class LayerSensitivity:
    """The sensitivity of one layer.

    Attributes
    ----------
    name : str
    kind : {"conv", "pointwise", "transposed", "linear"}
    parameters : int
        Weights and biases of the layer.
    multiply_adds : int or None
        For one input; None where the layer was not reached by itself.
    ways : mapping of str to Estimate or None
        By the ways as they were typed; None where a way does not apply to the layer.
    """

    name: str
    kind: Kind
    parameters: int
    multiply_adds: int | None
    ways: dict[str, Estimate | None]


@dataclass(frozen=True, kw_only=True)
class Sensitivity(Table):
    """The cost to a network of changing its layers, one at a time.

    Attributes
    ----------
    source, network : str
        Where it comes from, and what it is called.
    method : {"synthetic", "unlabelled", "measured"}
    data : str
        What the inputs are.
    inputs : int
        How many.
    input_shape : tuple of int or None
        Of one input; None where inputs are not one array each.
    assumed : bool
        Whether nobody told the size of the inputs.
    metric : str or None
        What was measured; None where nothing was.
    trained : float or None
        The whole network's metric.
    expected : float or None
        Accuracy that the whole network expects of itself, on inputs of the user's without labels.
    chance : float or None
        What the metric is by chance.
    of_classes : bool
        Whether the network's answer is the largest of its outputs.
    layers : tuple of LayerSensitivity
        In the order of the network.
    skipped : tuple of Skipped
        Layers that were left out, and why.
    notes : tuple of str
        What a reader should know.
    """

    SCHEMA: ClassVar[str] = "planescope.sensitivity/1"
    WHAT: ClassVar[str] = "sensitivity"
    REMEDY: ClassVar[str] = "compute it again"
    INDEX: ClassVar[str | None] = None

    source: str
    network: str
    method: Method
    data: str
    inputs: int
    layers: tuple[LayerSensitivity, ...]
    input_shape: tuple[int, ...] | None = None
    assumed: bool = False
    metric: str | None = None
    trained: float | None = None
    expected: float | None = None
    chance: float | None = None
    of_classes: bool = True
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def ways(self) -> tuple[str, ...]:
        """Return the ways in the order in which they were asked for."""
        return tuple(dict.fromkeys(key for layer in self.layers for key in layer.ways))

    @property
    def ladders(self) -> dict[str, list[tuple[str, float]]]:
        """Return the ways and their amounts by kind, what takes least first; none of one's own."""
        found: dict[str, list[tuple[str, float]]] = {}
        for key in self.ways:
            try:
                way = Way.parse(key)
            except UsageError:
                continue  # a name of the user's
            found.setdefault(way.kind.value, []).append((key, float(way.amount)))
        for kind, steps in found.items():
            steps.sort(key=lambda step: step[1], reverse=kind in (WayKind.RANK, WayKind.BITS))
        return found

    @property
    def is_share(self) -> bool:
        """Return whether costs are shares, of which 1 is all; a change of outputs may exceed it."""
        if self.has_loss:
            return True
        if self.method is Method.MEASURED:
            return self.metric == "accuracy"
        return self.of_classes

    def value(self, layer: LayerSensitivity, key: str, /) -> float | None:
        """Return what a table shows of a layer and a way: the loss, or the score where none is."""
        one = layer.ways.get(key)
        if one is None:
            return None
        return one.loss if self.has_loss else one.score

    def columns(self) -> dict[str, list[Any]]:
        """Return a row for each layer and way that applies to it."""
        rows = [
            (layer, key, one)
            for layer in self.layers
            for key, one in layer.ways.items()
            if one is not None
        ]
        return {
            "path": [self.source] * len(rows),
            "method": [self.method.value] * len(rows),
            "layer": [layer.name for layer, _, _ in rows],
            "kind": [layer.kind.value for layer, _, _ in rows],
            "parameters": [layer.parameters for layer, _, _ in rows],
            "multiply_adds": [layer.multiply_adds for layer, _, _ in rows],
            "way": [key for _, key, _ in rows],
            **{
                key: [getattr(one, key) for _, _, one in rows]
                for key in (
                    "score", "loss", "lower", "upper", "drop", "relative_drop", "scope",
                )
            },
        }  # fmt: skip

    def _summary(self) -> tuple[str, Mapping[str, Sequence[Any]]]:
        """Return what a notebook shows: scores, layers by ways."""
        columns: dict[str, Sequence[Any]] = {"layer": [layer.name for layer in self.layers]}
        for key in self.ways:
            found = [layer.ways.get(key) for layer in self.layers]
            columns[key] = ["" if one is None else one.score for one in found]
        return f"{self.source}: {self.network}; {self.sentence}", columns

    @property
    def sentence(self) -> str:
        """Return what the numbers are, in a sentence."""
        of = counted(self.inputs, "input")
        match self.method:
            case Method.SYNTHETIC if not self.of_classes:
                return (
                    f"no data: relative change of the output on {of}, synthetic; it ranks layers "
                    "and ways, and is no loss"
                )
            case Method.SYNTHETIC:
                return (
                    f"no data: disagreement on {of}, synthetic; it ranks layers and ways, and is "
                    "no loss of accuracy"
                )
            case Method.UNLABELLED if not self.of_classes:
                return f"no labels: relative change of the output on {of}; there is no loss"
            case Method.UNLABELLED if not self.has_loss:
                return f"no labels: change of the answers' probability on {of}; there is no loss"
            case Method.UNLABELLED:
                return f"no labels: loss that the network itself expects on {of}"
            case _:
                what = "loss" if self.has_loss else "drop"
                return f"measured: {what} of {self.metric} on {of}"

    @property
    def has_loss(self) -> bool:
        """Return whether there is a loss: without one, costs are told by the score alone."""
        found = (one for layer in self.layers for one in layer.ways.values())
        return any(one is not None and one.loss is not None for one in found)
