"""Evidence of a network whose layers were reset: its scores, and what each layer costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from planescope.criticality.definition import decide, difference_bounds, is_robust
from planescope.criticality.relation.record import RelatedLayer
from planescope.criticality.resets.record import FRESH, RAND, Accuracy, ResetCell, Resets, mean_loss
from planescope.criticality.scores import layer_scores
from planescope.hyperplanes.layer import Input, Layer
from planescope.measurement.record import LayerMeasurement
from planescope.measurement.verdict import finding


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """A network whose layers were reset.

    Attributes
    ----------
    path, network : str
    layers : sequence of LayerMeasurement
        Those that were reset, in the order of the resets.
    resets : Resets
    snapshot : int or str
        What they were put back to.
    weights : mapping of str to Layer
        Those of a run; none of saved results, which hold no weights.
    inputs : mapping of str to Input
        What feeds some layers, where the measurement does not know.
    """

    path: str
    network: str
    layers: Sequence[LayerMeasurement]
    resets: Resets
    snapshot: int | str
    weights: Mapping[str, Layer] = field(default_factory=dict)
    inputs: Mapping[str, Input] = field(default_factory=dict)

    @property
    def is_fresh(self) -> bool:
        """Return whether layers were drawn anew, and not put back to where they started."""
        return self.snapshot in (FRESH, RAND)

    def cells(self, layer: str) -> tuple[ResetCell, ...]:
        """Return the cells of a layer: one, or one a draw."""
        return self.resets.at(layer, self.snapshot)

    @property
    def without_drops(self) -> str:
        """Say why nothing is known of what the layers cost; "" where it is."""
        cells = [cell for layer in self.layers for cell in self.cells(layer.name)]
        if cells and all(cell.relative_drop is not None for cell in cells):
            return ""
        if not cells:
            return "no layer of it was reset alone"
        if self.resets.metric is None:
            return "its layers were reset without labels; planescope predict --init tells then"
        return "its network is no better than chance"

    @property
    def without_loss(self) -> str:
        """Say why no layer can be called critical; "" where the resets have all it takes."""
        cells = [cell for layer in self.layers for cell in self.cells(layer.name)]
        if not any(cell.loss_low is None or cell.loss_high is None for cell in cells):
            return ""
        metric = self.resets.metric
        if self.resets.trained.low is None:
            return f"{metric} has no value an example, and so no interval; reset with one that has"
        if self.resets.chance is not None or metric == "accuracy":
            return "the resets are of an earlier version, without the loss; reset the layers again"
        return f"what {metric} is by chance is not known; reset the layers again with chance="

    def related(
        self, *, critical: float, robust: float, rng: np.random.Generator, with_alpha: bool
    ) -> Iterator[RelatedLayer]:
        """Yield the layers in order, each with its scores and what it costs."""
        last = max(1, len(self.layers) - 1)
        for i, layer in enumerate(self.layers):
            yield RelatedLayer(
                run=self.path,
                network=self.network,
                name=layer.name,
                kind=layer.kind,
                input=self.inputs.get(layer.name, layer.input),
                biased=layer.biased,
                tests=tuple(finding(layer).by),
                metric=self.resets.metric,
                trained=self.resets.trained.value,
                chance=self.resets.chance,
                **_cost(self.resets, self.cells(layer.name), critical=critical, robust=robust),
                scores=layer_scores(
                    layer,
                    self.weights.get(layer.name),
                    position=i / last,
                    random=float(rng.random()),
                    with_alpha=with_alpha,
                ),
            )


def _cost(
    resets: Resets, cells: Sequence[ResetCell], /, *, critical: float, robust: float
) -> dict[str, Any]:
    """Return what resetting a layer costs; of several draws the mean, and the widest interval."""
    drops = [_drop(resets, cell) for cell in cells]
    loss, low, high = mean_loss(cells)
    verdict = None if low is None or high is None else decide(low, high, bound=critical)
    is_beyond_noise = any(cell.significant for cell in cells)
    return {
        "relative_drop": _mean([drop for drop, _, _ in drops]),
        "relative_drop_low": _end([low for _, low, _ in drops], min),
        "relative_drop_high": _end([high for _, _, high in drops], max),
        "loss": loss,
        "loss_low": low,
        "loss_high": high,
        "critical": verdict,
        "robust": is_robust(verdict, loss, is_beyond_noise, bound=robust),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _end(values: Sequence[float | None], of: Callable[[list[float]], float]) -> float | None:
    known = [value for value in values if value is not None]
    return of(known) if len(known) == len(values) else None


def _drop(resets: Resets, cell: ResetCell) -> tuple[float | None, float | None, float | None]:
    """Return the relative drop and its 95 % interval, from those of both metrics.

    That both are of the same examples would make it narrower.
    """
    before, after = _ends(resets.trained), _ends(cell)
    if before is None or after is None or cell.relative_drop is None:
        return cell.relative_drop, None, None
    value = before[0]
    low, high = (end / value for end in difference_bounds(before, after))
    if resets.metric == "accuracy":
        low, high = max(low, (value - 1) / value), min(high, 1.0)
    return cell.relative_drop, low, high


def _ends(found: Accuracy) -> tuple[float, float, float] | None:
    if found.value is None or found.low is None or found.high is None:
        return None
    return found.value, found.low, found.high
