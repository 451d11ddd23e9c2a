"""The orders in which the layers of a network are put back to an earlier state.

To import this is to import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from planescope.criticality.plan.cuts import Knife
from planescope.criticality.plan.divergence import Yardstick
from planescope.criticality.plan.fit.changes import put_back
from planescope.networks.live.copies import deep_copy

if TYPE_CHECKING:
    from torch import nn

# Passes of the joint network that choose which layers are put back.
MOST_PASSES = 300


@dataclass(eq=False)
class Orders:
    """A whole network, and what its layers cost that are put back.

    Attributes
    ----------
    whole : torch.nn.Module
    knife : Knife
    yardstick : Yardstick
    weights : dict of str to array
        Of the layers that may be put back.
    """

    whole: nn.Module
    knife: Knife
    yardstick: Yardstick
    weights: Mapping[str, np.ndarray[Any, Any]]
    _alone: dict[str, float] = field(default_factory=dict, repr=False)
    _path: list[str] = field(default_factory=list, repr=False)

    def by_cost_alone(self) -> list[str]:
        """Order layers by what each costs alone, a weight, from the least."""
        if not self._alone:
            changed = deep_copy(self.whole)
            for name in self.weights:
                _, before = self.knife.cut(changed, name, Fraction(1))
                self._alone[name] = self.yardstick.value(changed)
                put_back(before)
        return self._by_cost(self._alone)

    def _by_cost(self, costs: Mapping[str, float]) -> list[str]:
        return sorted(costs, key=lambda name: costs[name] / self.weights[name].size)

    def step_by_step(self, size: float) -> list[str]:
        """Order layers as they are put back one by one, each the cheapest beside those before it.

        What a layer costs is the measure of the joint network, a weight of the layer. Of many
        layers those are tried that were cheapest in the step before, so that passes stay bounded.
        """
        order = self.by_cost_alone()
        total = sum(w.size for w in self.weights.values())
        left = total - sum(self.weights[name].size for name in self._path)
        width = max(1, (MOST_PASSES - len(order)) // max(1, len(order) - 1))
        changed = deep_copy(self.whole)
        for name in self._path:
            self.knife.cut(changed, name, Fraction(1))
            order.remove(name)
        start = self.yardstick.value(changed) if self._path else 0.0
        while order and left > size * total:
            values: dict[str, float] = {}
            for name in order[:width]:
                _, before = self.knife.cut(changed, name, Fraction(1))
                values[name] = self.yardstick.value(changed)
                put_back(before)
            best, *rest = self._by_cost({name: value - start for name, value in values.items()})
            start = values[best]
            self.knife.cut(changed, best, Fraction(1))
            self._path.append(best)
            left -= self.weights[best].size
            order = rest + order[width:]
        return [*self._path, *order]

    def by_distance(self) -> list[str]:
        """Order layers by the relative distance of their weights from what they are put back to."""
        distances = {}
        for name, weight in self.weights.items():
            held = self.knife.starts[f"{name}.weight"]
            start = held.double().cpu().numpy()  # NumPy has no bfloat16
            whole = float(np.linalg.norm(start)) or 1.0
            distances[name] = float(np.linalg.norm(weight - start)) / whole
        return sorted(distances, key=lambda name: distances[name])
