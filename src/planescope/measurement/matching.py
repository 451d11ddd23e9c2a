"""The matching of the layers of two checkpoints."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from planescope.hyperplanes.layer import Layer
from planescope.hyperplanes.statistics import Filters

# Filters that lie this near to those of another layer, relative to their size, and at most half as
# far as the next layer's, tell that the two layers are one.
NEAR, CLEAR = 0.5, 0.5

_Keys = Callable[[Layer], Iterable[str]]
_Two = tuple[Layer, Layer]


class Matched(StrEnum):
    """The evidence that two layers are one."""

    NAME = "name"
    ENDING = "ending"  # of the name: one has a prefix, as "module."
    SHAPE = "shape"  # the only layers left of their shape
    FILTERS = "filters"  # of several of one shape, those whose filters are alike
    ORDER = "order"  # of several of one shape whose filters do not tell


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A layer of one checkpoint, the same in another, and what told."""

    before: Layer
    after: Layer
    by: Matched


def by_names(
    before: Sequence[Layer], after: Sequence[Layer], /
) -> tuple[list[Pair], list[Layer], list[Layer]]:
    """Pair layers of one shape by their names, then by the ends of names; the rest is given back.

    Returns
    -------
    pairs : list of Pair
    before, after : lists of Layer
        Those that no name pairs.
    """
    pairs: list[Pair] = []
    for told, *keys in (
        (Matched.NAME, _names, _names),
        (Matched.ENDING, _names, _endings),
        (Matched.ENDING, _endings, _names),
    ):
        found = list(_unique(before, after, *keys))
        pairs += [Pair(before=a, after=b, by=told) for a, b in found]
        used = {id(layer) for pair in found for layer in pair}
        before = [layer for layer in before if id(layer) not in used]
        after = [layer for layer in after if id(layer) not in used]
    return pairs, list(before), list(after)


def by_filters(
    before: Sequence[Layer],
    after: Sequence[Layer],
    filters: Mapping[int, Filters],
    /,
) -> list[Pair]:
    """Pair layers by their shapes, and among several of one shape by their filters.

    Parameters
    ----------
    filters : mapping of int to Filters
        What was measured of each layer, by its ``id``.

    Notes
    -----
    Two layers are one if each is the other's nearest, in projection and norm of all filters, with
    a distance below `NEAR` of their size and below `CLEAR` of the next one's. What that leaves is
    paired in order where as many are left on both sides, else it has no partner.
    """
    pairs: list[Pair] = []
    groups: dict[tuple[int, ...], tuple[list[Layer], list[Layer]]] = defaultdict(lambda: ([], []))
    for side, layers in enumerate((before, after)):
        for layer in layers:
            groups[layer.weight.shape][side].append(layer)
    for one, other in groups.values():
        if len(one) == len(other) == 1:
            pairs.append(Pair(before=one[0], after=other[0], by=Matched.SHAPE))
        elif one and other:
            pairs += _alike(one, other, filters)
    return pairs


def _alike(
    before: list[Layer], after: list[Layer], filters: Mapping[int, Filters]
) -> Iterator[Pair]:
    far = np.array([[_distance(filters[id(a)], filters[id(b)]) for b in after] for a in before])
    left_before, left_after = list(before), list(after)
    for i, row in enumerate(far):
        j = int(row.argmin())
        others = np.concatenate([np.delete(row, j), np.delete(far[:, j], i)])
        if row[j] < NEAR and row[j] <= CLEAR * others.min(initial=np.inf):
            yield Pair(before=before[i], after=after[j], by=Matched.FILTERS)
            left_before.remove(before[i])
            left_after.remove(after[j])
    if len(left_before) == len(left_after):
        for a, b in zip(left_before, left_after, strict=True):
            yield Pair(before=a, after=b, by=Matched.ORDER)


def _distance(one: Filters, other: Filters) -> float:
    """Return the distance of two layers' projections and norms, relative to the larger.

    1 tells nothing.
    """
    pairs = [(one.projection, other.projection), (one.norm, other.norm)]
    gap = sum(float(np.nansum((a - b) ** 2)) for a, b in pairs)
    size = max(sum(float(np.nansum(pair[k] ** 2)) for pair in pairs) for k in (0, 1))
    return float(np.sqrt(gap / size)) if size > 0 else 1.0


def _names(layer: Layer) -> Iterable[str]:
    return (layer.name, *layer.aliases)


def _endings(layer: Layer) -> Iterable[str]:
    for name in _names(layer):
        parts = name.replace("/", ".").split(".")
        yield from (".".join(parts[i:]) for i in range(len(parts)))


def _unique(
    before: Sequence[Layer], after: Sequence[Layer], of_before: _Keys, of_after: _Keys
) -> Iterator[_Two]:
    """Yield layers of one shape that share a key which no other layer has, longest keys first."""
    sides = (_by_key(before, of_before), _by_key(after, of_after))
    used: set[int] = set()
    for key in sorted(sides[0].keys() & sides[1].keys(), key=lambda key: -len(key[0])):
        (a, *more), (b, *others) = sides[0][key], sides[1][key]
        if not more and not others and id(a) not in used and id(b) not in used:
            used |= {id(a), id(b)}
            yield a, b


def _by_key(layers: Sequence[Layer], keys: _Keys) -> dict[tuple[str, tuple[int, ...]], list[Layer]]:
    found: dict[tuple[str, tuple[int, ...]], list[Layer]] = defaultdict(list)
    for layer in layers:
        for key in dict.fromkeys(keys(layer)):
            found[key, layer.weight.shape].append(layer)
    return found
