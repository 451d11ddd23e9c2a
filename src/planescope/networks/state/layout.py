"""The axes of a stored weight, read from names, biases, norms and the chain of layers.

Frameworks keep the filters of a convolution on the first axis, (out, in / groups, *kernel), or on
the last, (*kernel, in / groups, out); transposed convolutions keep them second from there. What a
file shows decides, the surest first: the length of the bias, that of other biases in the file, the
name, and then how the shapes follow from layer to layer.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from planescope.hyperplanes.layer import Kind, Layout, kind_of_convolution
from planescope.networks.state.axes import FIRST, LAST, Axes, Shape, Wanted, Weight
from planescope.networks.state.three_axes import LONG, is_odd
from planescope.networks.state.transposed import Told, find_transposed, is_called_transposed

# How each framework calls its weights tells how it stores them; of `W` and bare arrays both occur.
_BY_NAME = {
    "weight": FIRST,
    "kernel": LAST,
    "weights": LAST,
    "w": LAST,
    **dict.fromkeys(
        ("depthwise_kernel", "pointwise_kernel", "depthwise_weights", "pointwise_weights"), LAST
    ),
}

_DEPTHWISE = re.compile(r"depthwise|(^|[._/])dw")
_FLAX_TRANSPOSED = re.compile(r"ConvTranspose")

_MANY = 8  # channels; as the extent of a kernel it would be rare

_OTHER = {FIRST: LAST, LAST: FIRST}

_NAMED = 3  # names in a note, before the rest is counted


@dataclass(frozen=True, kw_only=True)
class Laid:
    """The layout of the weights of a file.

    Attributes
    ----------
    axes : mapping of str to Axes
        By module. A module whose bias fits no axis is missing.
    notes : tuple of str
        What had to be assumed.
    """

    axes: Mapping[str, Axes]
    notes: tuple[str, ...]


def lay_out(weights: Sequence[Weight], wanted: Wanted | None = None, /) -> Laid:
    """Decide how the axes of all weights of a file lie.

    Parameters
    ----------
    weights : sequence of Weight
        In the order of the network, as far as it is known.
    """
    wanted = Wanted() if wanted is None else wanted
    told: defaultdict[str, list[str]] = defaultdict(list)
    families: defaultdict[tuple[str, bool], list[Weight]] = defaultdict(list)
    for weight in weights:
        families[weight.family].append(weight)
    usual = {family: _usual(members, families) for family, members in families.items()}
    layouts = {w.module: _layout(w, usual[w.family], wanted, told) for w in weights}
    layouts |= _around(weights, layouts, wanted, told)
    axes = {
        w.module: found
        for w in weights
        if (found := _axes(w, layouts[w.module], wanted)) is not None
    }
    axes |= find_transposed(weights, axes, wanted, told)
    told[_OF_THREE] += [
        w.module for w in weights if w.module in axes and is_odd(w, axes[w.module], weights)
    ]
    notes = (reason.format(named(names)) for reason, names in told.items() if names)
    return Laid(axes=axes, notes=tuple(notes))


def named(names: Sequence[str], /) -> str:
    """Name the first few, and count the rest."""
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + rest


@dataclass(frozen=True, slots=True)
class _Usual:
    """The usual side of the filters of a family, and the evidence for it."""

    layout: Layout
    proof: str  # "biases", "norms", "names", "shapes"
    doubtful: bool = False  # outputs are inputs the other way alone
    divided: bool = False  # biases of some say the other
    widths: frozenset[int] = frozenset()  # extents of those that have a bias


def _fits(weight: Weight) -> set[Layout]:
    """Return the layouts under which some reading gives as many filters as there are biases."""
    outputs, shape = weight.outputs, weight.shape
    if outputs is None:
        return {FIRST, LAST}
    fits = set()
    if outputs == shape[0] or (len(shape) > 2 and _groups(shape, outputs) is not None):
        fits.add(FIRST)
    behind = {shape[-1]} if len(shape) == 2 else {shape[-1], shape[-2], shape[-1] * shape[-2]}
    if outputs in behind:
        fits.add(LAST)
    return fits


def _groups(shape: Shape, outputs: int) -> int | None:
    """Return the groups under which a weight (in, out / groups, *kernel) has so many outputs."""
    groups, rest = divmod(outputs, shape[1]) if shape[1] else (0, 1)
    return groups if groups and not rest and shape[0] % groups == 0 else None


def _usual(
    members: Sequence[Weight], families: Mapping[tuple[str, bool], Sequence[Weight]]
) -> _Usual:
    votes = Counter(next(iter(fit)) for w in members if len(fit := _fits(w)) == 1)
    by_name = _BY_NAME.get(members[0].ending)
    if votes:
        ahead = by_name if len(votes) > 1 and by_name else votes.most_common(1)[0][0]
        widths = frozenset(n for w in members if w.outputs for n in (w.shape[0], w.shape[-1]))
        return _Usual(ahead, "biases", divided=len(votes) > 1, widths=widths)
    beside = {side for w in members if (side := _by_norm(w)) is not None}
    if len(beside) == 1:
        return _Usual(beside.pop(), "norms")
    if by_name is not None:
        if _is_misleading(members, by_name):
            return _Usual(_OTHER[by_name], "shapes")
        links = dict(zip((FIRST, LAST), _links(members), strict=True))
        is_doubtful = links[_OTHER[by_name]] > links[by_name] == _forms(members)[by_name] == 0
        return _Usual(by_name, "names", doubtful=is_doubtful)
    first, last = _links(members)
    forms = _forms(members)
    first, last = first + 2 * forms[FIRST], last + 2 * forms[LAST]
    if first != last:
        return _Usual(FIRST if first > last else LAST, "shapes")
    ending, is_linear = members[0].family
    others = families.get((ending, not is_linear)) if is_linear else None
    if others:  # linear layers lie as the convolutions beside them
        return _usual(others, {})
    return _Usual(FIRST, "nothing")


def _by_norm(weight: Weight) -> Layout | None:
    """Tell the side of the filters of a convolution by the width of the norm beside it.

    A norm in front of it has as many values as there are inputs, which lie on the same side.
    """
    if weight.norm is None or len(weight.shape) == 2:
        return None
    fits = {FIRST: weight.norm in weight.shape[:2], LAST: weight.norm in weight.shape[-2:]}
    sides = [side for side, is_fitting in fits.items() if is_fitting]
    return sides[0] if len(sides) == 1 else None


def _is_misleading(members: Sequence[Weight], by_name: Layout) -> bool:
    """Tell whether shapes contradict a name where no bias and no norm tells."""
    other, forms = _OTHER[by_name], _forms(members)
    links = dict(zip((FIRST, LAST), _links(members), strict=True))
    if links[by_name] or forms[by_name]:
        return False
    if links[other] >= (1 if forms[other] else 2):
        return True
    # Only Keras and Flax say kernel; weight and w are anybody's.
    is_open = "kernel" not in members[0].ending
    return is_open and any(_is_plain(w.shape, other) for w in members)


def _is_plain(shape: Shape, side: Layout) -> bool:
    """Tell whether only this side of the filters makes a convolution as people write them."""
    if len(shape) < 4:
        return False
    kernel, rest = (shape[2:], shape[:2]) if side is FIRST else (shape[:-2], shape[-2:])
    is_square = len(set(kernel)) == 1 and 1 < kernel[0] <= LONG
    return is_square and len(set(rest)) > 1 and min(rest) >= kernel[0] and max(rest) >= _MANY


def _forms(members: Sequence[Weight]) -> Counter[Layout]:
    return Counter(form for w in members if (form := _by_form(w.shape)) is not None)


def _links(members: Sequence[Weight]) -> tuple[int, int]:
    """Count how often one layer's outputs are the next one's inputs, filters first and last.

    Axes that are all alike, as those of two kernels of 3 by 3, link everything and tell nothing.
    """
    pairs = [
        (a.shape, b.shape) for a, b in itertools.pairwise(members) if len(a.shape) == len(b.shape)
    ]
    first = sum(a[0] == b[1] and len({*a[:2], *b[:2]}) > 1 for a, b in pairs)
    last = sum(a[-1] == b[-2] and len({*a[-2:], *b[-2:]}) > 1 for a, b in pairs)
    return first, last


def _around(
    weights: Sequence[Weight], layouts: Mapping[str, Layout], wanted: Wanted, told: Told
) -> dict[str, Layout]:
    """Find weights that keep their filters on the first axis and their channels on the last.

    (out, *kernel, in), as MLX and TensorFlow Lite have them; which of the axes are the kernel, and
    so whether it is of 1 by 1, is told by the form of all kernels and by how outputs are inputs.
    """
    row = [
        w
        for w in weights
        if len(w.shape) > 2 and layouts[w.module] is FIRST and wanted.layout(w.module) is None
    ]
    pairs = [(a.shape, b.shape) for a, b in itertools.pairwise(row) if len(a.shape) == len(b.shape)]
    behind = sum(1 + (a[0] >= _MANY) for a, b in pairs if a[0] == b[-1] != b[1])
    before = sum(a[0] == b[1] != b[-1] for a, b in pairs)
    for w in row:
        kernels = w.shape[1:-1], w.shape[2:]
        squares = [len(set(kernel)) == 1 for kernel in kernels]
        if len(w.shape) > 3 and squares[0] != squares[1]:
            behind += squares[0] and 1 < w.shape[1] <= LONG
            before += squares[1]
    if before or not behind:
        return {}
    if behind == 1:
        told[_MAYBE_AROUND] += [w.module for w in row]
        return {}
    told[_AROUND] += [w.module for w in row]
    return {w.module: Layout.AROUND for w in row}


@functools.lru_cache(maxsize=256)
def _by_form(shape: Shape) -> Layout | None:
    """Tell the side of the filters by the other axes being a kernel: small, and as wide as high."""
    if len(shape) < 3:
        return None
    front, behind = shape[:-2], shape[2:]
    squares = len(set(front)) == 1, len(set(behind)) == 1
    if squares[0] != squares[1]:
        return LAST if squares[0] else FIRST
    sizes = math.prod(front), math.prod(behind)
    return None if sizes[0] == sizes[1] else LAST if sizes[0] < sizes[1] else FIRST


def _layout(weight: Weight, usual: _Usual, wanted: Wanted, told: Told) -> Layout:
    if (given := wanted.layout(weight.module)) is not None:
        return given
    fits, by_name = _fits(weight), _BY_NAME.get(weight.ending)
    if len(fits) == 1:
        (layout,) = fits
        if by_name is not None and layout is not by_name:
            told[_AGAINST_NAME[layout]].append(weight.module)
        return layout
    if _is_apart(weight, usual):
        return _OTHER[usual.layout]
    is_told_apart = weight.shape[0] != weight.shape[-1] or len(weight.shape) > 2
    if usual.proof == "norms" and by_name not in (None, usual.layout):
        told[_BY_NORM[usual.layout]].append(weight.module)
    elif is_told_apart and usual.proof == "shapes":
        told[_BY_SHAPE[usual.layout]].append(weight.module)
    elif usual.divided and fits:
        told[_DIVIDED[usual.layout]].append(weight.module)
    elif usual.proof == "nothing":
        told[_UNTOLD].append(weight.module)
    elif usual.proof == "names" and _by_form(weight.shape) not in (None, usual.layout):
        told[_AGAINST_FORM[usual.layout]].append(weight.module)
    elif usual.doubtful and is_told_apart:
        told[_AGAINST_LINKS[usual.layout]].append(weight.module)
    elif usual.proof == "names" and weight.ending == "w" and _by_form(weight.shape) is None:
        told[_NAME_ALONE].append(weight.module)  # Haiku's name for it, and Caffe2's too
    return usual.layout


def _is_apart(weight: Weight, usual: _Usual) -> bool:
    """Tell a matrix without a bias that lies by its name, though biases of others say the other.

    As the last layer behind those of GPT-2: its inputs are as many as others have, and would be no
    others' if it lay as they do.
    """
    if usual.proof != "biases" or weight.outputs is not None or len(weight.shape) != 2:
        return False
    if _BY_NAME.get(weight.ending) in (None, usual.layout):
        return False
    outputs, inputs = weight.shape if usual.layout is FIRST else weight.shape[::-1]
    return inputs not in usual.widths and outputs in usual.widths


_SIDES = {FIRST: "first", LAST: "last"}
_AGAINST_NAME = {
    at: f"the length of the bias says that the filters of {{}} lie on the {side} axis, which "
    "its name does not; --layout settles it"
    for at, side in _SIDES.items()
}
_BY_SHAPE = {
    at: f"that the filters of {{}} lie on the {side} axis is assumed from the shapes; "
    "--layout settles it"
    for at, side in _SIDES.items()
}
_BY_NORM = {
    at: f"the width of the norm says that the filters of {{}} lie on the {side} axis, which its "
    "name does not; --layout settles it"
    for at, side in _SIDES.items()
}
_DIVIDED = {
    at: "biases say that some layers have their filters on the first axis and some on the last; "
    f"of {{}} the {side} is assumed; --layout settles it"
    for at, side in _SIDES.items()
}
_AGAINST_FORM = {
    at: f"by its name the filters of {{}} lie on the {side} axis, though its shape looks "
    "otherwise; --layout settles it"
    for at, side in _SIDES.items()
}
_AGAINST_LINKS = {
    at: f"by its name the filters of {{}} lie on the {side} axis, though as many outputs as the "
    "next has inputs would lie on the other; --layout settles it"
    for at, side in _SIDES.items()
}
_NAME_ALONE = "the names alone say that the filters of {} lie on the last axis (--layout)"
_UNTOLD = "nothing tells where the filters of {} lie; the first axis is assumed (--layout)"
_AROUND = (
    "by the shapes the filters of {} lie on the first axis and their channels on the last, as MLX "
    "has them (--layout)"
)
_MAYBE_AROUND = (
    "whether the channels of {} lie on the second axis or, as MLX has them, on the last, cannot be "
    "told; the second is assumed (--layout channels-last)"
)
_OF_THREE = (
    "{} read as a convolution of one dimension, for its weight has three axes; a bilinear map, or "
    "several linear ones in one, would look the same"
)


def _axes(weight: Weight, layout: Layout, wanted: Wanted) -> Axes | None:
    """Find the reading under a layout that the bias fits; None where it fits none."""
    shape, outputs = weight.shape, weight.outputs
    if len(shape) == 2:
        fits = outputs in (None, shape[0] if layout is FIRST else shape[-1])
        return Axes(Kind.LINEAR, layout) if fits or _is_given(weight, wanted) else None
    if layout is Layout.AROUND:
        is_turned = wanted.is_transposed(weight.module) or is_called_transposed(weight.module)
        kind = Kind.TRANSPOSED if is_turned else kind_of_convolution(shape[1:-1])
        fits = outputs in (None, shape[0]) or _is_given(weight, wanted)
        return Axes(kind, layout) if fits else None
    if layout is FIRST:
        plain = Axes(kind_of_convolution(shape[2:]), FIRST)
        groups = 1 if outputs is None else _groups(shape, outputs)
        if wanted.is_transposed(weight.module):
            return Axes(Kind.TRANSPOSED, FIRST, 1 if groups is None else groups)
        if outputs in (None, shape[0]):
            return plain
        if groups is not None:
            return Axes(Kind.TRANSPOSED, FIRST, groups)
        return plain if _is_given(weight, wanted) else None
    return _axes_last(weight, wanted)


def _axes_last(weight: Weight, wanted: Wanted) -> Axes | None:
    shape, outputs = weight.shape, weight.outputs
    plain = Axes(kind_of_convolution(shape[:-2]), LAST)
    # Keras' (*kernel, out, in); Flax has the filters on the last axis there too.
    turned = Axes(Kind.TRANSPOSED, LAST)
    is_flax = bool(_FLAX_TRANSPOSED.search(weight.module))
    if wanted.is_transposed(weight.module) or is_flax:
        by_flax = is_flax if outputs is None or shape[-1] == shape[-2] else outputs == shape[-1]
        return Axes(Kind.TRANSPOSED, LAST, 1) if by_flax else turned
    is_depthwise = weight.ending.startswith("depthwise") or bool(_DEPTHWISE.search(weight.module))
    # (*kernel, in, multiplier) is Keras'; Flax and Haiku keep (*kernel, 1, out).
    if outputs in (None, shape[-1] * shape[-2]) and (
        weight.ending.startswith("depthwise")
        or (is_depthwise and shape[-2] > 1)
        or (outputs is not None and outputs != shape[-1])
    ):
        return Axes(kind_of_convolution(shape[:-2]), LAST, shape[-2], depthwise=True)
    if outputs in (None, shape[-1]):
        name = weight.module.lower()
        return turned if outputs is None and "transpose" in name else plain
    if outputs == shape[-2]:
        return turned
    return plain if _is_given(weight, wanted) else None


def _is_given(weight: Weight, wanted: Wanted) -> bool:
    return wanted.layout(weight.module) is not None
