"""Weights of three axes: convolutions of one dimension, and what else has as many."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from planescope.hyperplanes.layer import Kind, Layout
from planescope.networks.state.axes import FIRST, LAST, Axes, Weight

LONG = 15  # extent of a kernel of one dimension that is long

_CONVOLUTION = re.compile(r"conv|cnn|tdnn|tcn|stem|wave", re.IGNORECASE)
_SHORT = 3  # taps that most convolutions of one dimension have
_WIDE = 7  # taps that few have more of


def is_odd(weight: Weight, axes: Axes, weights: Sequence[Weight], /) -> bool:
    """Tell whether three axes are rather not those of a convolution of one dimension."""
    if len(weight.shape) != 3 or axes.kind is Kind.TRANSPOSED:
        return False
    taps = weight.shape[{FIRST: -1, LAST: 0, Layout.AROUND: 1}[axes.layout]]
    is_even = taps % 2 == 0 and taps > 2
    if any(len(w.shape) > 3 for w in weights) or taps > LONG or is_even:
        return True
    # A member of a Sequential has one input, and a bilinear map has two.
    is_member = _is_member(weight) and not taps == weight.shape[1] > 5
    if taps == 1 or is_member or _CONVOLUTION.search(weight.module):
        return False
    if weight.ending in ("w", "W") and weight.outputs is None:
        return True  # of whatever a script calls so; frameworks name the layer too
    before = itertools.takewhile(lambda w: w is not weight, weights)
    is_width = taps == weight.shape[1] or any(w.shape[0] == taps for w in before)
    return is_width or (weight.shape[1] > 1 and taps > _SHORT and _is_unsigned(weights, taps))


def _is_unsigned(weights: Sequence[Weight], taps: int) -> bool:
    """Tell whether neither names nor a chain of channels with a usual kernel show convolutions."""
    others = [w for w in weights if len(w.shape) == 3]
    if any(_is_member(w) or _CONVOLUTION.search(w.module) for w in others):
        return False
    return taps > _WIDE or all(a.shape[0] != b.shape[1] for a, b in itertools.pairwise(others))


def _is_member(weight: Weight) -> bool:
    return re.split(r"[./]", weight.module)[-1].isdecimal()
