"""The surroundings of layers in any graph: what meets their channels before the next layer.

A graph is given as `Flow`, which each format of graphs fills; what is asked of it is answered here.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

V = TypeVar("V", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class User(Generic[V]):
    """A step of a graph that takes a value.

    Attributes
    ----------
    layer : hashable or None
        The layer that it is, if it is one.
    is_depthwise : bool
        Whether that layer has one input channel a group: channels go on one by one.
    joins : tuple
        The values whose channels it takes one by one, beside others or constants.
    is_norm : bool
        Whether it scales and shifts channels by parameters of its own.
    gives : tuple
        The values that it gives.
    """

    layer: Hashable | None = None
    is_depthwise: bool = False
    joins: tuple[V, ...] = ()
    is_norm: bool = False
    gives: tuple[V, ...] = ()


class Flow(Protocol[V]):
    """A graph by its values, constants left out."""

    def layer(self, value: V, /) -> Hashable | None:
        """Return the layer that gives a value; None where another step does."""

    def sources(self, value: V, /) -> Iterable[V] | None:
        """Return what a value is computed from; None of an input of the network."""

    def users(self, value: V, /) -> Sequence[User[V]]:
        """Return the steps that take a value."""


def last_layers(flow: Flow[V], outputs: Iterable[V], /) -> set[Hashable]:
    """Find the layers between which and some values nothing has weights."""
    found: set[Hashable] = set()
    seen: set[V] = set()
    left = list(outputs)
    while left:
        value = left.pop()
        if value in seen:
            continue
        seen.add(value)
        if (layer := flow.layer(value)) is not None:
            found.add(layer)
        else:
            left += flow.sources(value) or ()
    return found


def is_coupled(flow: Flow[V], layer: Hashable, values: Iterable[V], /) -> bool:
    """Tell whether a layer's channels meet others, or go on one by one, before the next layer.

    Parameters
    ----------
    values : iterable
        What the layer gives.
    """
    seen: set[V] = set()
    left = list(values)
    while left:
        value = left.pop()
        if value in seen:
            continue
        seen.add(value)
        for user in flow.users(value):
            if user.layer is not None:
                if user.is_depthwise:
                    return True
                continue
            if not all(_is_of(flow, one, layer) for one in user.joins):
                return True
            left += user.gives
    return False


def _is_of(flow: Flow[V], value: V, layer: Hashable) -> bool:
    """Tell whether a value follows from one layer's output alone, as the gate of a SiLU."""
    seen: set[V] = set()
    left = [value]
    while left:
        one = left.pop()
        if one in seen:
            continue
        seen.add(one)
        if (maker := flow.layer(one)) is not None:
            if maker != layer:
                return False
            continue
        sources = flow.sources(one)
        if sources is None:
            return False
        left += sources
    return True


def has_norm_behind(flow: Flow[V], value: V, /) -> bool:
    """Tell whether one step after another, a norm follows before a join or the next layer."""
    seen: set[V] = set()
    while value not in seen and len(users := flow.users(value)) == 1:
        seen.add(value)
        (user,) = users
        if user.layer is not None:
            return False
        if user.is_norm:
            return True
        if len(user.joins) > 1 or not user.gives:
            return False
        value = user.gives[0]
    return False
