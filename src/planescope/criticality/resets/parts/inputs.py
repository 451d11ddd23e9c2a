"""The arguments that a network is called with for one batch, and the tensors that values hold."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx.node import map_aggregate

Tensors = Mapping[str, torch.Tensor]
# Values that are still needed, by what computes them.
Values = dict[Any, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """The arguments that a network is called with for one batch.

    Attributes
    ----------
    args, kwargs
        Of forward.
    size : int
        Examples.
    device : torch.device
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    size: int
    device: torch.device

    @classmethod
    def of(cls, images: torch.Tensor) -> Inputs:
        """Return the inputs of a network that takes one tensor."""
        return cls(args=(images,), kwargs={}, size=len(images), device=images.device)

    @property
    def images(self) -> torch.Tensor | None:
        """Return the only input, where it is a tensor with a row an example."""
        (*parts,) = (*self.args, *self.kwargs.values())
        is_one = len(parts) == 1 and isinstance(parts[0], torch.Tensor)
        return parts[0] if is_one and len(parts[0]) == self.size else None

    @property
    def example(self) -> Inputs:
        """Return the first example; the whole batch where it cannot be told from the others."""
        images = self.images
        if images is None:
            return self
        one = images[:1]
        kwargs = dict.fromkeys(self.kwargs, one)
        return replace(self, args=(one,) if self.args else (), kwargs=kwargs, size=1)

    def copied(self) -> Inputs:
        """Return the same in memory of their own."""
        args, kwargs = copy.deepcopy((self.args, dict(self.kwargs)))
        return replace(self, args=args, kwargs=kwargs)


def tensors_in(values: Values, /) -> list[torch.Tensor]:
    """Return all tensors that values hold, also within tuples, lists and dicts."""
    found: list[torch.Tensor] = []

    def look(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            found.append(value)
        return value

    map_aggregate(tuple(values.values()), look)
    return found


def copied(values: Values, /) -> Values:
    """Return the same values in memory of their own; what shared memory still does."""
    return dict(zip(values, copy.deepcopy([*values.values()]), strict=True))


def stacked(several: Sequence[Values], size: int, /) -> Values:
    """Return the values of several batches of a size as if they were one.

    Whether a network treats that as several is another question, to be tried.
    """
    joined: Values = {}
    for key, value in several[0].items():
        is_batch = isinstance(value, torch.Tensor) and value.shape[:1] == (size,)
        joined[key] = torch.cat([values[key] for values in several]) if is_batch else value
    return joined
