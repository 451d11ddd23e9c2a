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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from planescope.files.errors import CheckpointError
from planescope.hyperplanes.layer import Array, Kind, Layout, Tensor, kind_of_convolution

FIRST, LAST = Layout.FIRST, Layout.LAST

Shape = tuple[int, ...]

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
_TRANSPOSED = re.compile(r"deconv|transpos|up_?conv|conv_?up|conv\w*tr(?![a-z])", re.IGNORECASE)
_UP = re.compile(r"(^|[._/])up(?![a-z])|upsampl", re.IGNORECASE)
_FLAX_TRANSPOSED = re.compile(r"ConvTranspose")

# By so much must a reading as transposed fit better, where no bias tells.
_MARGIN = 2

_LONG = 15  # extent of a kernel of one dimension that is long

_NAMED = 3  # names in a note, before the rest is counted


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
    axes = {
        w.module: found
        for w in weights
        if (found := _axes(w, layouts[w.module], wanted)) is not None
    }
    axes |= _turned(weights, axes, wanted, told)
    told[_OF_THREE] += [
        w.module for w in weights if w.module in axes and _is_odd(w, axes[w.module], weights)
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
    proof: str  # "biases", "names", "shapes"
    divided: bool = False  # biases of some say the other


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
        return _Usual(ahead, "biases", divided=len(votes) > 1)
    first, last = _links(members)
    forms = Counter(form for w in members if (form := _by_form(w.shape)) is not None)
    # Without one bias, the chain of layers may still say that the names mislead.
    if by_name is FIRST and last >= 2 and not first and forms[LAST] >= forms[FIRST]:
        return _Usual(LAST, "shapes")
    if by_name is LAST and first >= 2 and not last and forms[FIRST] >= forms[LAST]:
        return _Usual(FIRST, "shapes")
    if by_name is not None:
        return _Usual(by_name, "names")
    first, last = first + 2 * forms[FIRST], last + 2 * forms[LAST]
    if first != last:
        return _Usual(FIRST if first > last else LAST, "shapes")
    ending, is_linear = members[0].family
    others = families.get((ending, not is_linear)) if is_linear else None
    if others:  # linear layers lie as the convolutions beside them
        return _usual(others, {})
    return _Usual(FIRST, "nothing")


def _links(members: Sequence[Weight]) -> tuple[int, int]:
    """Count how often one layer's outputs are the next one's inputs, filters first and last."""
    pairs = [
        (a.shape, b.shape) for a, b in itertools.pairwise(members) if len(a.shape) == len(b.shape)
    ]
    first = sum(a[0] == b[1] for a, b in pairs)
    last = sum(a[-1] == b[-2] for a, b in pairs)
    return first, last


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


_Told = defaultdict[str, list[str]]


def _layout(weight: Weight, usual: _Usual, wanted: Wanted, told: _Told) -> Layout:
    if (given := wanted.layout(weight.module)) is not None:
        return given
    fits, by_name = _fits(weight), _BY_NAME.get(weight.ending)
    if len(fits) == 1:
        (layout,) = fits
        if by_name is not None and layout is not by_name:
            told[_AGAINST_NAME[layout]].append(weight.module)
        return layout
    is_told_apart = weight.shape[0] != weight.shape[-1] or len(weight.shape) > 2
    if is_told_apart and usual.proof == "shapes":
        told[_BY_SHAPE[usual.layout]].append(weight.module)
    elif usual.divided and fits:
        told[_DIVIDED[usual.layout]].append(weight.module)
    elif usual.proof == "nothing":
        told[_UNTOLD].append(weight.module)
    elif usual.proof == "names" and _by_form(weight.shape) not in (None, usual.layout):
        told[_AGAINST_FORM[usual.layout]].append(weight.module)
    elif usual.proof == "names" and weight.ending == "w" and _by_form(weight.shape) is None:
        told[_NAME_ALONE].append(weight.module)  # Haiku's name for it, and Caffe2's too
    return usual.layout


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
_NAME_ALONE = "the names alone say that the filters of {} lie on the last axis (--layout)"
_UNTOLD = "nothing tells where the filters of {} lie; the first axis is assumed (--layout)"
_OF_THREE = (
    "{} read as a convolution of one dimension, for its weight has three axes; a bilinear map, or "
    "several linear ones in one, would look the same"
)
_AS_TRANSPOSED = (
    "{} read as transposed by name and by the layers beside (--transposed and --layout settle it)"
)
_MAYBE_TRANSPOSED = (
    "whether {} is a transposed convolution cannot be told from its shape; it is read as an "
    "ordinary one (--transposed)"
)


def _is_odd(weight: Weight, axes: Axes, weights: Sequence[Weight]) -> bool:
    """Tell whether three axes are rather not those of a convolution of one dimension."""
    if len(weight.shape) != 3 or axes.kind is Kind.TRANSPOSED:
        return False
    taps = weight.shape[-1 if axes.layout is FIRST else 0]
    is_even = taps % 2 == 0 and taps > 2
    return any(len(w.shape) > 3 for w in weights) or taps > _LONG or is_even


def _axes(weight: Weight, layout: Layout, wanted: Wanted) -> Axes | None:
    """Find the reading under a layout that the bias fits; None where it fits none."""
    shape, outputs = weight.shape, weight.outputs
    if len(shape) == 2:
        fits = outputs in (None, shape[0] if layout is FIRST else shape[-1])
        return Axes(Kind.LINEAR, layout) if fits or _is_given(weight, wanted) else None
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


def _turned(
    weights: Sequence[Weight], axes: Mapping[str, Axes], wanted: Wanted, told: _Told
) -> dict[str, Axes]:
    """Find transposed convolutions among those of PyTorch's layout whose bias does not tell."""
    row = [
        w
        for w in weights
        if w.module in axes and len(w.shape) > 2 and axes[w.module].layout is FIRST
    ]
    kinds = {w.module: axes[w.module].kind for w in row}
    free = {w.module for w in row if _is_free(w, wanted)}
    found: dict[str, Axes] = {}
    for at, weight in enumerate(row):
        if weight.module not in free or weight.shape[0] == weight.shape[1]:
            continue
        before, behind = row[at - 1] if at else None, row[at + 1] if at + 1 < len(row) else None
        margin = _score(weight, before, behind, kinds, free, turned=True) - _score(
            weight, before, behind, kinds, free, turned=False
        )
        if margin >= _MARGIN:
            found[weight.module] = Axes(Kind.TRANSPOSED, FIRST, 1)
            told[_AS_TRANSPOSED].append(weight.module)
        elif margin > 0:
            told[_MAYBE_TRANSPOSED].append(weight.module)
    sure = kinds | dict.fromkeys(found, Kind.TRANSPOSED)
    alike = defaultdict(set)
    for w in row:
        if w.shape[0] != w.shape[1]:
            alike[_pattern(w.module)].add(sure[w.module])
    for weight in row:
        if weight.module not in free or weight.shape[0] != weight.shape[1]:
            continue
        if alike[_pattern(weight.module)] == {Kind.TRANSPOSED} or _hint(weight) > 1:
            found[weight.module] = Axes(Kind.TRANSPOSED, FIRST, 1)
            told[_AS_TRANSPOSED].append(weight.module)
        elif _hint(weight) and kinds[weight.module] is Kind.CONV:
            told[_MAYBE_TRANSPOSED].append(weight.module)
    return found


def _is_free(weight: Weight, wanted: Wanted) -> bool:
    """Return whether the bias leaves open which of the first two axes has the filters."""
    if wanted.transposed is not None:  # the user has told
        return False
    is_square = weight.shape[0] == weight.shape[1]
    is_open = weight.outputs is None or (is_square and weight.outputs == weight.shape[0])
    return is_open and math.prod(weight.shape[2:]) > 1


def _pattern(module: str) -> str:
    return re.sub(r"\d+", "#", module)


def _hint(weight: Weight) -> int:
    """Score how far the name and a kernel of even extents speak for a transposed convolution."""
    if _TRANSPOSED.search(weight.module):
        return 2
    if not _UP.search(weight.module):
        return 0
    return 2 if all(extent in (2, 4) for extent in weight.shape[2:]) else 1


def _score(
    weight: Weight,
    before: Weight | None,
    behind: Weight | None,
    kinds: Mapping[str, Kind],
    free: Iterable[str],
    *,
    turned: bool,
) -> int:
    """Count what fits if a weight is transposed or not, open neighbours being taken alike."""

    def sides(of: Weight) -> tuple[int, int]:
        is_turned = turned if of.module in free else kinds[of.module] is Kind.TRANSPOSED
        return (of.shape[0], of.shape[1]) if is_turned else (of.shape[1], of.shape[0])

    inputs, outputs = sides(weight)
    score = int(weight.norm == outputs)
    score += int(before is not None and sides(before)[1] == inputs)
    score += int(behind is not None and sides(behind)[0] == outputs)
    even = all(extent in (2, 4) for extent in weight.shape[2:])
    return score + (_hint(weight) + int(even) if turned else 0)


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
