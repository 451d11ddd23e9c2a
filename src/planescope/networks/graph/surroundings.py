"""The surroundings of layers in any graph: what meets their channels before the next layer.

A graph is given as `Flow`, which each format of graphs fills; what is asked of it is answered here.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
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
    makers = (flow.layer(value) for value in _back(flow, outputs))
    return {layer for layer in makers if layer is not None}


def is_coupled(flow: Flow[V], layer: Hashable, values: Iterable[V], /) -> bool:
    """Tell whether a layer's channels meet others, or go on one by one, before the next layer.

    Parameters
    ----------
    values : iterable
        What the layer gives.
    """
    users: dict[V, Sequence[User[V]]] = {}

    def ahead(value: V) -> Iterator[V]:
        users[value] = flow.users(value)
        return (each for user in users[value] if user.layer is None for each in user.gives)

    return any(
        _couples(flow, user, layer) for value in _reached(values, ahead) for user in users[value]
    )


def _couples(flow: Flow[V], user: User[V], layer: Hashable) -> bool:
    if user.layer is not None:
        return user.is_depthwise
    return not all(_is_of(flow, one, layer) for one in user.joins)


def _is_of(flow: Flow[V], value: V, layer: Hashable) -> bool:
    """Tell whether a value follows from one layer's output alone, as the gate of a SiLU."""
    for one in _back(flow, [value]):
        maker = flow.layer(one)
        is_input = maker is None and flow.sources(one) is None
        if is_input or maker not in (None, layer):
            return False
    return True


def _back(flow: Flow[V], values: Iterable[V]) -> Iterator[V]:
    """Yield some values and what they are computed from, up to the layers before."""
    return _reached(
        values, lambda value: () if flow.layer(value) is not None else flow.sources(value) or ()
    )


def _reached(values: Iterable[V], onward: Callable[[V], Iterable[V]]) -> Iterator[V]:
    """Yield each value once that some lead to, these among them, in no order."""
    seen: set[V] = set()
    left = list(values)
    while left:
        value = left.pop()
        if value not in seen:
            seen.add(value)
            left += onward(value)
            yield value


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
