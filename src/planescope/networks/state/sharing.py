"""One tensor under several names is one layer: measured once, its other names told."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence

import numpy as np

from planescope.hyperplanes.layer import Array, Kind, Layer, Tensor
from planescope.networks.graph.places import Position, agreed_input, least_stage
from planescope.networks.state.layout import named

_SMALL = 1 << 20  # elements of matrices that are compared by their values


def shared(
    layers: Sequence[Layer], /, *, by_content: bool = False
) -> tuple[list[Layer], list[str]]:
    """Join layers of one weight into the first of them.

    Parameters
    ----------
    by_content : bool
        Whether tensors of the same contents are one where nothing else tells: in the file of a
        network's graph, a converter may have written the weights of a module anew for each call.

    Returns
    -------
    layers : list of Layer
        Each with its other names in `aliases`, and the place that all of them agree on.
    notes : list of str
        Which names were joined.
    """
    joined: dict[str, Layer] = {}
    gone: set[str] = set()
    notes = []
    for same in _groups(layers, by_content=by_content):
        joined[same[0].name] = _joined(same)
        gone |= {other.name for other in same[1:]}
        notes.append(_note(same[0], same[1:]))
    return [joined.get(x.name, x) for x in layers if x.name not in gone], notes


def notes_of_calls(
    positions: Mapping[str, Position], biases: Mapping[str, Sequence[Tensor | None]], /
) -> list[str]:
    """Note layers that act in several places, with a bias or a norm of its own in each.

    Parameters
    ----------
    positions : mapping of str to Position
    biases : mapping of str to sequence of Tensor or None
        The one of each call of a layer, by its name; the first is measured.
    """
    apart = [
        name
        for name, (first, *others) in biases.items()
        if not all(_same(first, other) for other in others)
    ]
    split = [name for name, position in positions.items() if position.is_split]
    notes = notes_of_biases(apart)
    if split:
        notes.append(
            f"behind {named(split)}, which acts in several places, stand norms of their own; none "
            "of them is in the table"
        )
    if lost := [name for name, position in positions.items() if position.is_apart]:
        notes.append(
            f"behind {named(lost)} a batch norm acts on what was pooled or rearranged before it, "
            "or along another axis; it is not in the table"
        )
    for name, position in positions.items():
        if position.beside:
            notes.append(
                f"what {' and '.join(position.beside)} give is added to what {name} gives of the "
                "same input, as by a part of low rank: their sum acts, and each is measured alone"
            )
    return notes


def notes_of_biases(names: Sequence[str], /) -> list[str]:
    """Note layers whose weights act again with another bias."""
    if not names:
        return []
    return [
        f"the weights of {named(names)} act in several places with another bias in each, or none; "
        "measured is the first alone"
    ]


def notes_of_widths(names: Sequence[str], /) -> list[str]:
    """Note layers behind which a batch norm stands that is not as wide as they are."""
    if not names:
        return []
    return [f"behind {named(names)} a batch norm of another width acts; it is not in the table"]


def _groups(layers: Sequence[Layer], *, by_content: bool) -> Iterator[list[Layer]]:
    """Yield the layers of each weight that has several."""
    alike: defaultdict[Hashable, list[Layer]] = defaultdict(list)
    for layer in layers:
        # A linear layer may have the weight of a convolution in another form.
        turned = layer.kind is Kind.TRANSPOSED and layer.weight.shape
        alike[layer.filters, layer.fan_in, layer.weight.dtype, turned].append(layer)
    for possible in alike.values():
        groups: defaultdict[Hashable, list[Layer]] = defaultdict(list)
        # A graph keeps the matrix of a linear layer turned, and a convolution's as it is.
        is_mixed = by_content and len({layer.kind is Kind.LINEAR for layer in possible}) > 1
        # So does an exporter with the one that is used turned, and stores it again.
        is_small = sum(layer.filters * layer.fan_in for layer in possible) <= _SMALL
        by_values = is_mixed or (by_content and is_small and possible[0].kind is Kind.LINEAR)
        for layer in possible if len(possible) > 1 else ():
            identity = _identity(layer.weight, by_content=by_content, by_values=by_values)
            groups[identity].append(layer)
        for identity, group in groups.items():
            yield from _same_layers(group) if identity is not None and len(group) > 1 else ()


def _identity(weight: Tensor, *, by_content: bool, by_values: bool) -> Hashable:
    if weight.identity is not None:
        return weight.identity
    if weight.digest is not None and not by_values:
        return weight.digest()
    if by_content:
        return hashlib.sha256(np.asarray(weight.read()).tobytes()).digest()
    return None


def _same_layers(group: Sequence[Layer]) -> list[list[Layer]]:
    """Part layers that may be the same into those that are."""
    group = sorted(group, key=lambda layer: layer.kind is Kind.LINEAR)
    if group[0].weight.identity is not None:
        return [group]
    found: list[tuple[Array, list[Layer]]] = []
    for layer in group:
        values = layer.weight.read().reshape(layer.filters, -1)
        if (values == values[0, 0]).all():
            continue  # all zeros are no sign of sharing
        for other, members in found:
            if (values == other).all():
                members.append(layer)
                break
        else:
            found.append((values, [layer]))
    return [members for _, members in found if len(members) > 1]


def _joined(same: Sequence[Layer]) -> Layer:
    """Put layers of one weight into one, as a layer that is called several times."""
    first, others = same[0], same[1:]
    # Which norm acts a graph tells of each place; names tell it of one alone.
    is_open = first.pairing is None and not all(_same_norm(first, other) for other in others)
    return dataclasses.replace(
        first,
        aliases=tuple(other.name for other in others),
        stage=functools.reduce(least_stage, (layer.stage for layer in same)),
        input=functools.reduce(agreed_input, (layer.input for layer in same)),
        norm=None if is_open else first.norm,
    )


def _note(first: Layer, others: Sequence[Layer]) -> str:
    apart = [
        other.name
        for other in others
        if not (_same(first.bias, other.bias) and _same_norm(first, other))
    ]
    more = (
        f"; {named(apart)} with a bias or norm of its own, which is not measured" if apart else ""
    )
    return f"{first.name} also stands under {named([o.name for o in others])}: one layer{more}"


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    if one.identity is not None:
        return one.identity == other.identity
    return one.shape == other.shape and bool((one.read() == other.read()).all())


def _same_norm(first: Layer, other: Layer) -> bool:
    one, two = first.norm, other.norm
    if one is None or two is None or one.name == two.name:
        return (one is None) == (two is None)
    return _same(one.beta, two.beta) and _same(one.mean, two.mean)
