"""Weights of a layer as they act, wherever the layer holds them, and what of them has to stay.

To import this is to import torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from planescope.criticality.plan.fit.observation import is_pruned

if TYPE_CHECKING:
    import numpy as np

# A weight is a whole multiple of a step if it is nearer to one than this, in steps.
_NEAR = 1e-3
# Multiples of the step that the largest weight of a filter may be: eight bits, signed or not.
_MOST = 255
# Weights beyond one a filter, a filter, that all have to be multiples: fewer are so by chance.
_EVIDENCE = 2


def weight_of(layer: nn.Module, /) -> torch.Tensor:
    """Give the weight that acts, detached."""
    if is_pruned(layer):
        return (layer.weight_orig * layer.weight_mask).detach()
    weight: torch.Tensor = layer.weight
    return weight.detach()


def array_of(layer: nn.Module, /) -> np.ndarray[Any, Any]:
    """Give the weight that acts as an array; in float32 where NumPy has no such type."""
    weight = weight_of(layer).cpu()
    found: np.ndarray[Any, Any] = (
        weight.float() if weight.dtype is torch.bfloat16 else weight
    ).numpy()
    return found


def hold(layer: nn.Module, weight: torch.Tensor, /) -> None:
    """Put a weight in place; what a mask leaves out stays as it is held."""
    with torch.no_grad():
        if is_pruned(layer):
            held = layer.weight_orig
            held.copy_(torch.where(layer.weight_mask.bool(), weight.to(held), held))
            layer.weight = held * layer.weight_mask  # what its hook makes at each call
        else:
            layer.weight.copy_(weight)


@dataclass(frozen=True, kw_only=True, eq=False)
class Form:
    """The part of a weight, as a matrix of a filter a row, that stays when it is repaired.

    Attributes
    ----------
    stays : tensor of bool, shape (filters, fan_in)
        Where it may be anything but 0.
    most : int or None
        Weights are whole multiples, from -most to most, of a step a filter.
    steps : tensor or None
        From a filter's largest weight; shape (filters,).
    rank : int or None
        Not to be exceeded.
    removed : tensor of int or None
        Filters that give nothing, and are to give nothing.
    """

    stays: torch.Tensor
    most: int | None = None
    steps: torch.Tensor | None = None
    rank: int | None = None
    removed: torch.Tensor | None = None


def form_of(changed: torch.Tensor, whole: torch.Tensor, /) -> Form:
    """Find what somebody did to a weight, from the weight before and after.

    Zeros stay where they are; a filter of few values keeps its number of bits; a matrix of lower
    rank keeps its rank.
    """
    new, old = changed.flatten(1).double().cpu(), whole.flatten(1).double().cpu()
    stays = new != 0
    if torch.equal(new, old):
        return Form(stays=stays)
    steps, levels = _grid(new)
    if steps is not None:
        bits = 2
        while 2 ** (bits - 1) - 1 < int(levels.max()):
            bits += 1
        most = 2 ** (bits - 1) - 1
        # A zero that no rounding made was pruned, and so were the others for all that is known.
        pruned = (~stays) & (old.abs() > 0.51 * steps.unsqueeze(1))
        every = stays if bool(pruned.any()) else torch.ones_like(stays)
        return Form(stays=every, most=most, steps=steps)
    rank = int(torch.linalg.matrix_rank(new, rtol=1e-5))
    if bool(stays.all()) and rank < int(torch.linalg.matrix_rank(old, rtol=1e-5)):
        return Form(stays=stays, rank=max(1, rank))
    return Form(stays=stays)


def _grid(rows: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Find the step that all weights of each row are multiples of; None where one has none.

    With it, how many steps the largest weight of each row is.
    """
    largest = rows.abs().amax(1)
    levels = torch.zeros(len(rows), dtype=torch.int64)
    filled = largest > 0
    if int((rows != 0).sum()) < (1 + _EVIDENCE) * int(filled.sum()) or not bool(filled.any()):
        return None, levels
    first = filled.nonzero()[:2, 0]  # two tell of nearly all others that they have none
    for at in (first, filled.nonzero()[:, 0]):
        left = at
        for count in range(1, _MOST + 1):
            multiples = rows[left] / largest[left].unsqueeze(1) * count
            fits = ((multiples - multiples.round()).abs() < _NEAR).all(1)
            levels[left[fits]] = count
            left = left[~fits]
            if not len(left):
                break
        if len(left):
            return None, levels
    return torch.where(filled, largest / levels.clamp(min=1), 0.0), levels
