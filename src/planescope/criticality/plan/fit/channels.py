"""Mean and deviation of the channels of a module, over inputs and positions.

To import this is to import torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from planescope.criticality.plan.fit.observation import NORMS, watch
from planescope.criticality.plan.fit.patches import rows_of, values_at
from planescope.data.roles import Batch


def channel_moments(
    module: nn.Module, place: str, calls: int, batches: Sequence[Batch], /
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and deviation of each channel of what a module gives."""
    target = module.get_submodule(place)
    sums: list[torch.Tensor] = []

    def values(output: torch.Tensor) -> torch.Tensor:
        axis = NORMS.get(type(target))
        if axis is None:
            rows = torch.arange(rows_of(target, output), device=output.device)
            return values_at(target, output, rows)
        return output.movedim(axis, -1).flatten(0, -2)

    # About the first example's mean, so that squares of large means do not drown deviations.
    centre: list[torch.Tensor] = []

    def take(_call: int, _given: torch.Tensor, output: torch.Tensor) -> None:
        own = values(output).double().cpu()
        if not centre:
            centre.append(own.mean(0))
        off = own - centre[0]
        sums.append(
            torch.stack([torch.full_like(centre[0], len(own)), off.sum(0), (off * off).sum(0)])
        )

    for batch in batches:
        watch(module, batch, {place: (calls, take)})
    count, first, second = torch.stack(sums).sum(0)
    mean = first / count
    return mean + centre[0], (second / count - mean * mean).clamp(min=0).sqrt()
