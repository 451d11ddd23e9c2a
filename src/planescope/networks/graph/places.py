"""The places of a network's layers: one walk over its operations, from whatever format.

A format translates each operation into a `Node` by a table of its own words; `follow` then tells of
every layer its stage, what feeds it, and the norm behind it. Nothing is computed: what flows from
one operation to the next is known by its `_Nature` alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import NamedTuple

from planescope.hyperplanes.layer import Input
from planescope.networks.graph.views import RANKS, View, leads_back


class Role(Enum):
    """The role of an operation."""

    IMAGE = auto()  # gives the network's own input
    CONSTANT = auto()  # gives a parameter, a buffer, a number
    UNKNOWN = auto()  # gives what the format does not tell, such as what a loop carries
    LAYER = auto()
    NORM = auto()  # a batch norm
    RELU = auto()  # cuts off what is negative
    SATURATION = auto()  # the same, by a quantisation whose least integer is 0: of an image too
    GATE = auto()  # gives nothing negative and is no ReLU: a sigmoid, a softmax, a square
    IDENTITY = auto()  # gives what it gets, once the network is trained: dropout, a cast
    # Gives values that it gets, their means, maxima or multiples with a sign kept: pooling, a view.
    VIEW = auto()
    JOIN = auto()  # a sum, a concatenation: negative only where an operand is
    PRODUCT = auto()  # a product or a quotient
    # Of the operands, element by element; an image that a constant cuts is none any more.
    MAXIMUM = auto()
    MINIMUM = auto()
    # A difference, a normalisation, a resampling that overshoots: an image stays one, anything else
    # may become negative.
    SHIFT = auto()
    OTHER = auto()


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Node:
    """One operation of a network.

    Attributes
    ----------
    reads : tuple of int
        Numbers of the nodes whose values it takes, all of them before it; what it acts on is first.
    name : str
        Of a layer; one that has none is followed but not reported. Of a batch norm: the same for
        each call of one.
    downsamples : bool
        Whether it is a pooling or a convolution with a stride.
    is_non_negative : callable
        Of a constant: whether no element is negative. It is asked for only where that matters.
    view : callable, optional
        Of a view: how it moves axes, where that is known.
    is_last : bool
        Of a layer: whether its filters lie along the last axis of what it gives, not the second.
    ranks : tuple of int
        Of a batch norm: how many axes the value that it takes may have.
    """

    role: Role
    reads: tuple[int, ...] = ()
    name: str = ""
    downsamples: bool = False
    is_non_negative: Callable[[], bool] = lambda: False
    view: View | None = None
    is_last: bool = False
    ranks: tuple[int, ...] = RANKS


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """The place of a layer.

    Attributes
    ----------
    stage : int or None
        Number of downsampling steps before the layer; None where what feeds it is unknown.
    input : Input
    norm : int or None
        Number of the node of the batch norm that alone reads what the layer gives.
    is_split : bool
        Whether its calls have batch norms of their own, or some of them none.
    is_apart : bool
        Whether a batch norm acts on what a pooling, or a view that is not followed, makes of it.
    beside : tuple of str
        Two linear layers, one behind the other, that read what it reads and whose outcome is added
        to its own: what acts is the sum, as of a part of low rank.
    """

    stage: int | None
    input: Input
    norm: int | None = None
    is_split: bool = False
    is_apart: bool = False
    beside: tuple[str, ...] = ()


class _Nature(Enum):
    """The facts that are known of a value."""

    IMAGE = auto()
    RELU = auto()
    GATE = auto()  # not negative, and no ReLU's output
    CONSTANT = auto()
    OTHER = auto()
    UNKNOWN = auto()


class _Value(NamedTuple):
    nature: _Nature
    stage: int = 0
    # Of a constant: those that are negative where it is; None where that cannot be told.
    signs: frozenset[Node] | None = None

    def is_non_negative(self) -> bool:
        return self.signs is not None and all(node.is_non_negative() for node in self.signs)


_INPUTS = {
    _Nature.IMAGE: Input.IMAGE,
    _Nature.RELU: Input.RELU,
    _Nature.UNKNOWN: Input.UNKNOWN,
}

_MAX_SIGNS = 64

_EXTREMES = (Role.MAXIMUM, Role.MINIMUM)

# A constant made of constants by one of these is negative only where one of them is.
_KEEPS_SIGN = (Role.IDENTITY, Role.VIEW, Role.JOIN, Role.PRODUCT, *_EXTREMES)


def clamped(least: float | None, most: float | None, /) -> tuple[Role, float | None]:
    """Return the role of a clamp between two numbers.

    Parameters
    ----------
    least, most : float or None
        None for a bound that there is not, NaN for one that is not known.

    Returns
    -------
    role : Role
    bound : float or None
        Of a maximum or a minimum, which a clamp on one side is, the number that it takes it with.
    """
    if least is not None and least >= 0:
        return Role.RELU, None
    bound = least if most is None else most
    if bound is None or math.isnan(bound) or (least is not None and most is not None):
        return Role.OTHER, None
    return (Role.MAXIMUM if most is None else Role.MINIMUM), bound


def is_even(power: float | None, /) -> bool:
    """Tell whether a power is even and above 0: it gives nothing negative, as a square."""
    return power is not None and power > 0 and power % 2 == 0


def follow(nodes: Sequence[Node], /) -> dict[str, Position]:
    """Tell where each layer stands, by name, in the order of the first calls.

    A layer that is called several times has the least stage of its calls, and of the rest what all
    calls agree on: formats keep their operations in orders of their own. The image, whatever is
    done to it, is in stage 0.
    """
    values: list[_Value] = []
    readers: defaultdict[int, list[int]] = defaultdict(list)
    for number, node in enumerate(nodes):
        values.append(_value(node, [values[read] for read in node.reads]))
        for read in set(node.reads):
            readers[read].append(number)
    found: dict[str, Position] = {}
    for number, node in enumerate(nodes):
        if node.role is Role.LAYER and node.name:
            fed = values[node.reads[0]].nature if node.reads else _Nature.UNKNOWN
            norm, is_apart = _norm_behind(number, nodes, readers)
            here = Position(
                stage=None if fed is _Nature.UNKNOWN else values[number].stage,
                input=_INPUTS.get(fed, Input.OTHER),
                norm=norm,
                is_apart=is_apart,
            )
            found[node.name] = _agreed(found.get(node.name, here), here, nodes)
    for name, parts in _sums(nodes, values):
        if name in found:
            found[name] = replace(found[name], beside=parts)
    return found


def _sums(nodes: Sequence[Node], values: Sequence[_Value]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the linear layers to which two others, in a row on the same input, are added."""

    def back(number: int) -> int:
        """Go back over what keeps a value, or scales it by a constant."""
        while nodes[number].role in (Role.IDENTITY, Role.PRODUCT):
            free = [n for n in nodes[number].reads if values[n].nature is not _Nature.CONSTANT]
            if len(free) != 1:
                break
            number = free[0]
        return number

    def linear(number: int) -> Node | None:
        node = nodes[back(number)]
        is_linear = node.role is Role.LAYER and node.is_last and bool(node.name and node.reads)
        return node if is_linear else None

    for node in nodes:
        if node.role is not Role.JOIN or len(node.reads) != 2:
            continue
        for one, other in (node.reads, node.reads[::-1]):
            whole, second = linear(one), linear(other)
            first = None if second is None else linear(second.reads[0])
            if whole is None or second is None or first is None or whole is first:
                continue
            if back(whole.reads[0]) == back(first.reads[0]):
                yield whole.name, (first.name, second.name)


def _value(node: Node, given: Sequence[_Value]) -> _Value:
    nature = _nature(node, given)
    stage = max((value.stage for value in given), default=0)
    if given and given[0].nature is not _Nature.IMAGE:
        stage += node.downsamples
    if nature is not _Nature.CONSTANT:
        return _Value(nature, stage)
    return _Value(nature, 0, _signs(node, given))


def _signs(node: Node, given: Sequence[_Value]) -> frozenset[Node] | None:
    """Find the constants that are negative where the one that a node gives is."""
    if node.role is Role.CONSTANT:
        return frozenset((node,))
    if node.role in (Role.RELU, Role.GATE):
        return frozenset()
    if node.role not in _KEEPS_SIGN or any(value.signs is None for value in given):
        return None
    found = frozenset(sign for value in given for sign in value.signs or ())
    return found if len(found) <= _MAX_SIGNS else None


def _nature(node: Node, given: Sequence[_Value]) -> _Nature:
    match node.role:
        case Role.IMAGE:
            return _Nature.IMAGE
        case Role.CONSTANT:
            return _Nature.CONSTANT
        case Role.UNKNOWN:
            return _Nature.UNKNOWN
    if not given:
        return _Nature.OTHER
    if all(value.nature is _Nature.CONSTANT for value in given):
        return _Nature.CONSTANT
    match node.role:
        case Role.RELU:
            return _Nature.RELU
        case Role.PRODUCT if len(node.reads) == 2 and len(set(node.reads)) == 1:
            return _Nature.GATE if given[0].nature is not _Nature.RELU else _Nature.RELU
        case Role.GATE:
            return _Nature.GATE
        case Role.SATURATION:
            first = given[0].nature
            return _Nature.RELU if first is _Nature.OTHER else first
        case Role.IDENTITY:
            return given[0].nature
        case Role.VIEW:
            # A table of which the input chooses rows is as little a constant as the input.
            first = given[0].nature
            return _Nature.OTHER if first is _Nature.CONSTANT else first
        case Role.NORM:
            # Over the image it normalises it: that has not been through a layer yet.
            return _Nature.IMAGE if given[0].nature is _Nature.IMAGE else _Nature.OTHER
        case Role.JOIN | Role.PRODUCT | Role.MAXIMUM | Role.MINIMUM | Role.SHIFT:
            return _combined(node.role, given)
    return _Nature.OTHER


def _combined(role: Role, given: Sequence[_Value]) -> _Nature:
    """Tell what operands give together."""
    constants = [value for value in given if value.nature is _Nature.CONSTANT]
    natures = {value.nature for value in given if value.nature is not _Nature.CONSTANT}
    if role is Role.MAXIMUM and any(value.is_non_negative() for value in constants):
        return _Nature.RELU  # by another name, whatever it cuts
    if natures == {_Nature.IMAGE}:
        return _Nature.OTHER if constants and role in _EXTREMES else _Nature.IMAGE
    if _Nature.UNKNOWN in natures:
        return _Nature.OTHER if _Nature.OTHER in natures else _Nature.UNKNOWN
    positive = natures <= {_Nature.RELU, _Nature.GATE} and role is not Role.SHIFT
    if not positive or not all(value.is_non_negative() for value in constants):
        return _Nature.OTHER
    if natures == {_Nature.RELU, _Nature.GATE}:
        # A ReLU's output that is scaled is one still; beside something else it is not.
        return _Nature.RELU if role is Role.PRODUCT else _Nature.OTHER
    return natures.pop()


def _norm_behind(
    number: int, nodes: Sequence[Node], readers: defaultdict[int, list[int]]
) -> tuple[int | None, bool]:
    """Find the batch norm that alone reads what a layer gives.

    Second comes whether there is one that acts on something else than its filters.
    """
    is_last, views, is_lost = nodes[number].is_last, list[View](), False
    while len(behind := readers[number]) == 1:
        (reader,) = behind
        node = nodes[reader]
        if node.role is Role.NORM and node.reads[0] == number:
            found = not is_lost and (
                (not views and len(node.ranks) > 1)
                or leads_back(views[::-1], node.ranks, is_last=is_last)
            )
            return (reader, False) if found else (None, True)
        if node.role is Role.VIEW:
            is_lost |= node.view is None
            views += [node.view] if node.view is not None else []
        elif node.role is not Role.IDENTITY:
            break
        number = reader
    return None, False


def _agreed(first: Position, again: Position, nodes: Sequence[Node]) -> Position:
    """Put the places of a layer that is called several times into one."""
    is_split = first.is_split or not _is_one_norm(first.norm, again.norm, nodes)
    return replace(
        first,
        stage=least_stage(first.stage, again.stage),
        input=agreed_input(first.input, again.input),
        norm=None if is_split else first.norm,
        is_split=is_split,
        is_apart=first.is_apart or again.is_apart,
    )


def _is_one_norm(one: int | None, other: int | None, nodes: Sequence[Node]) -> bool:
    """Tell whether two nodes are calls of one batch norm, as behind a branch that runs twice."""
    if one is None or other is None:
        return one is other
    return one == other or nodes[one].name == nodes[other].name != ""


def least_stage(one: int | None, other: int | None, /) -> int | None:
    """Return the stage of a layer that stands in two places."""
    return one if other is None else other if one is None else min(one, other)


def agreed_input(one: Input, other: Input, /) -> Input:
    """Return the input of a layer that two values feed."""
    if Input.UNKNOWN in (one, other):
        return Input.UNKNOWN
    return one if one is other else Input.OTHER
