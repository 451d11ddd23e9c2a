"""One tensor under several names is one layer: measured once, its other names told."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Hashable, Sequence

from planescope.hyperplanes.layer import Array, Layer, Tensor
from planescope.networks.layout import named


def shared(layers: Sequence[Layer], /) -> tuple[list[Layer], list[str]]:
    """Join layers of one weight into the first of them.

    Returns
    -------
    layers : list of Layer
        Each with its other names in `aliases`.
    notes : list of str
        Which names were joined.
    """
    groups: defaultdict[Hashable, list[Layer]] = defaultdict(list)
    for layer in layers:
        groups[_identity(layer)].append(layer)
    joined: dict[str, Layer] = {}
    gone: set[str] = set()
    notes = []
    for identity, group in groups.items():
        for same in _alike(group) if identity is not None and len(group) > 1 else []:
            first, others = same[0], same[1:]
            names = tuple(other.name for other in others)
            joined[first.name] = dataclasses.replace(first, aliases=names)
            gone |= set(names)
            notes.append(_note(first, others))
    return [joined.get(x.name, x) for x in layers if x.name not in gone], notes


def _identity(layer: Layer) -> Hashable:
    weight = layer.weight
    if weight.identity is not None:
        return (weight.shape, layer.kind, weight.identity)
    return (
        None if weight.digest is None else (weight.shape, weight.dtype, layer.kind, weight.digest())
    )


def _alike(group: Sequence[Layer]) -> list[list[Layer]]:
    """Part layers that may be the same into those that are."""
    if group[0].weight.identity is not None:
        return [list(group)]
    found: list[tuple[Array, list[Layer]]] = []
    for layer in group:
        values = layer.weight.read()
        if (values == values.reshape(-1)[0]).all():
            continue  # all zeros are no sign of sharing
        for other, members in found:
            if (values == other).all():
                members.append(layer)
                break
        else:
            found.append((values, [layer]))
    return [members for _, members in found if len(members) > 1]


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
