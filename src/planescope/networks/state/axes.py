"""The axes of a stored weight, brought into the order (filters, channels / groups, *kernel)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from planescope.files.errors import CheckpointError
from planescope.hyperplanes.layer import Array, Kind, Layout, Tensor

FIRST, LAST = Layout.FIRST, Layout.LAST
Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Weight:
    """A stored weight, and what stands beside it.

    Attributes
    ----------
    module : str
        What it is the weight of.
    ending : str
        The last part of its name (``weight``, ``kernel``); "" where it has none of its own.
    outputs : int or None
        Length of its bias.
    norm : int or None
        Width of the norm that by its name stands behind it.
    """

    module: str
    ending: str
    shape: Shape
    outputs: int | None
    norm: int | None = None

    @property
    def family(self) -> tuple[str, bool]:
        """Return the weights that one framework's one convention holds for."""
        return self.ending, len(self.shape) == 2


@dataclass(frozen=True, slots=True)
class Axes:
    """The axes of a weight: a kind, the side of the filters, and groups where known."""

    kind: Kind
    layout: Layout
    groups: int | None = None
    depthwise: bool = False  # (*kernel, in, multiplier)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The axes that a user gives.

    Attributes
    ----------
    layouts : sequence of (pattern or None, Layout)
        The first whose pattern is found in a name holds for it; None is for all.
    transposed : pattern or None
        Names of transposed convolutions.
    """

    layouts: Sequence[tuple[re.Pattern[str] | None, Layout]] = ()
    transposed: re.Pattern[str] | None = None

    def layout(self, module: str) -> Layout | None:
        """Return the layout that is given for a name."""
        return next((lay for p, lay in self.layouts if p is None or p.search(module)), None)

    def is_transposed(self, module: str) -> bool:
        """Return whether a name is given as that of a transposed convolution."""
        return self.transposed is not None and bool(self.transposed.search(module))


def filters_first(weight: Tensor, groups: int, /) -> Tensor:
    """Bring the filters of a transposed convolution to the front.

    (in, out / groups, *kernel) becomes (out, in / groups, *kernel).

    Raises
    ------
    CheckpointError
        If the inputs cannot be divided among the groups.
    """
    inputs, outputs, *kernel = weight.shape
    if inputs % groups:
        raise CheckpointError(f"{inputs} inputs cannot be divided among {groups} groups")
    shape = (outputs * groups, inputs // groups, *kernel)

    def reorder(stored: Array) -> Array:
        stored = stored.reshape(groups, inputs // groups, outputs, *kernel)
        return stored.swapaxes(1, 2).reshape(shape)

    return _reordered(weight, shape, reorder)


def reordered(weight: Tensor, axes: Axes, /) -> Tensor:
    """Bring a weight into the order (filters, channels / groups, *kernel).

    Raises
    ------
    CheckpointError
        As `filters_first`.
    """
    if axes.layout is Layout.AROUND:
        outputs, *kernel, inputs = weight.shape
        around = (0, len(weight.shape) - 1, *range(1, len(weight.shape) - 1))
        return _reordered(weight, (outputs, inputs, *kernel), lambda a: _permuted(a, around))
    if axes.layout is FIRST:
        return filters_first(weight, axes.groups or 1) if axes.kind is Kind.TRANSPOSED else weight
    *kernel, inputs, outputs = weight.shape
    rank = len(weight.shape)
    if axes.depthwise:
        shape = (inputs * outputs, 1, *kernel)
        order = (rank - 2, rank - 1, *range(rank - 2))
    elif axes.kind is Kind.TRANSPOSED and axes.groups is None:  # Keras': (*kernel, out, in)
        shape = (inputs, outputs, *kernel)
        order = (rank - 2, rank - 1, *range(rank - 2))
    else:
        shape = (outputs, inputs, *kernel)
        order = (rank - 1, rank - 2, *range(rank - 2))
    return _reordered(weight, shape, lambda a: _permuted(a, order).reshape(shape))


def _permuted(array: Array, order: tuple[int, ...]) -> Array:
    return array.permute(order) if hasattr(array, "permute") else array.transpose(order)


def _reordered(weight: Tensor, shape: Shape, reorder: Callable[[Array], Array]) -> Tensor:
    return Tensor(
        shape, weight.dtype, lambda: reorder(weight.read()), weight.identity, weight.digest
    )
