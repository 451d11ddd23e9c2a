"""Tensors of a network that are overwritten, and put back where that did not help.

To import this is to import torch.
"""

from __future__ import annotations

import torch
from torch import nn

from planescope.criticality.plan.fit.holding import hold

# Tensors before a layer was repaired, to be put back where that did not help.
Before = list[tuple[torch.Tensor, torch.Tensor]]


def put_back(before: Before, /) -> None:
    """Undo a repair."""
    with torch.no_grad():
        for tensor, values in reversed(before):
            tensor.copy_(values)


def swap(before: Before, /) -> Before:
    """Undo a repair, and give what brings it back."""
    repaired = [(tensor, tensor.detach().clone()) for tensor, _ in before]
    put_back(before)
    return repaired


def put(before: Before, tensor: torch.Tensor, values: torch.Tensor, /) -> None:
    """Put values in place, and what they replace on a list."""
    before.append((tensor, tensor.detach().clone()))
    with torch.no_grad():
        tensor.copy_(values)


def overwrite(before: Before, layer: nn.Module, weight: torch.Tensor, /) -> None:
    """Put a weight in place, and what it replaces on a list."""
    held = layer._parameters.get("weight_orig", layer._parameters.get("weight"))
    assert held is not None  # noqa: S101
    before.append((held, held.detach().clone()))
    hold(layer, weight.to(held))
