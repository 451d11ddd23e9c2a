"""The axis along which filters lie, followed through views from a norm back to a layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Axis(NamedTuple):
    """One axis of a value.

    Attributes
    ----------
    place : int
        From the front; -1 for the last of an unknown number.
    rank : int or None
        How many axes there are, where that is known.
    """

    place: int
    rank: int | None

    @property
    def is_last(self) -> bool:
        """Tell whether it is the last, for certain."""
        return self.place == -1 or self.place + 1 == self.rank


# Of an axis behind a view the one before it that has the same elements; None where there is none.
View = Callable[[Axis], Axis | None]

# A batch norm takes values of so many axes, and the second of them.
RANKS = (2, 3, 4, 5)


def leads_back(views: Sequence[View], ranks: Sequence[int], /, *, is_last: bool) -> bool:
    """Tell whether the axis of a norm is the one along which a layer before views has its filters.

    Parameters
    ----------
    views : sequence of callable
        From the norm to the layer.
    ranks : sequence of int
        How many axes the norm may take: where any number, all must tell the same.
    is_last : bool
        Whether the layer has its filters along the last axis; if not, along the second.
    """
    told = set()
    for rank in ranks:
        axis: Axis | None = Axis(1, rank)
        for view in views:
            axis = None if axis is None else view(axis)
        if axis is not None:
            told.add(axis.is_last if is_last else axis.place == 1)
    return True in told and (False not in told or len(ranks) < len(RANKS))


def permuted(order: Sequence[int], /) -> View:
    """Return the view that puts axes in another order."""
    count = len(order)

    def back(axis: Axis) -> Axis | None:
        if axis.rank not in (None, count) or axis.place >= count or not count:
            return None
        place = order[axis.place]
        return Axis(place % count, count) if -count <= place < count else None

    return back


def swapped(one: int, other: int, /) -> View:
    """Return the view that exchanges two axes."""

    def back(axis: Axis) -> Axis | None:
        rank = axis.rank
        if rank is None or not all(-rank <= place < rank for place in (one, other)):
            return None
        first, second = one % rank, other % rank
        return Axis({first: second, second: first}.get(axis.place, axis.place), rank)

    return back


def flattened(start: int, end: int, /) -> View:
    """Return the view that makes one axis of several that follow one another."""

    def back(axis: Axis) -> Axis | None:
        rank = axis.rank
        if start < 0 or rank is None:
            return None
        if axis.place < start:
            return Axis(axis.place, None)
        if axis.place == start:
            # Of what else is in it the width of the norm tells that there is nothing.
            return Axis(start, None)
        if end >= 0:
            return Axis(axis.place + end - start, rank + end - start) if end >= start else None
        behind = rank - 1 - start  # axes behind the one that they make
        return Axis(-1, None) if -1 - end == behind and axis.place + 1 == rank else None

    return back


def into_matrix(axis: Axis, /) -> Axis | None:
    """Go back through the view that makes two axes: of the first one, and of all others."""
    # Of what else is in the second the width of the norm tells that there is nothing.
    return Axis(1, None) if axis == (1, 2) else None


def _in_rows(axis: Axis, /) -> Axis | None:
    """Go back through the view that leaves the last axis, and makes one of all others."""
    return Axis(-1, None) if axis == (1, 2) else None


def _in_front(axis: Axis, /) -> Axis | None:
    """Go back through the view that leaves the first two axes."""
    return Axis(1, None) if axis.place == 1 else None


def with_axis(place: int, /) -> View:
    """Return the view that puts in an axis of one element."""

    def back(axis: Axis) -> Axis | None:
        rank = axis.rank
        if rank is None or not -rank <= place < rank or place % rank == axis.place:
            return None
        return Axis(axis.place - (place % rank < axis.place), rank - 1)

    return back


def without_axis(place: int, /) -> View:
    """Return the view that takes out an axis of one element."""

    def back(axis: Axis) -> Axis | None:
        rank = None if axis.rank is None else axis.rank + 1
        if rank is None or not -rank <= place < rank:
            return None
        return Axis(axis.place + (place % rank <= axis.place), rank)

    return back


def of_shape(shape: Sequence[object], /) -> View | None:
    """Return the view that a new shape is; None where it cannot be told.

    A norm is as wide as the layer before it. So of two extents the second, where it is not left
    open, is the last axis of what comes; and of more the second is the second.
    """
    if len(shape) < 2 or shape[1] == -1:
        return None
    return _in_rows if len(shape) == 2 else _in_front
