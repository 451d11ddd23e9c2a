"""Transposed convolutions, found by name, norm and the layers beside where no bias tells."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Container, Mapping, Sequence

from planescope.hyperplanes.layer import Kind
from planescope.networks.state.axes import FIRST, Axes, Wanted, Weight

_TRANSPOSED = re.compile(r"deconv|transpos|conv\w*tr(?![a-z])", re.IGNORECASE)
# Behind an upsampling stands an ordinary convolution as often, of 3 by 3 most of the time.
_UP = re.compile(r"(^|[._/])up(?![a-z])|upsampl|(?<!gro)up_?conv|conv_?up(?![dg])", re.IGNORECASE)
# By so much must a reading as transposed fit better, where no bias tells.
_MARGIN = 2
Told = defaultdict[str, list[str]]
_AS_TRANSPOSED = (
    "{} read as transposed by name and by the layers beside (--transposed and --layout settle it)"
)
_MAYBE_TRANSPOSED = (
    "whether {} is a transposed convolution cannot be told from its shape; it is read as an "
    "ordinary one (--transposed)"
)


def find_transposed(
    weights: Sequence[Weight], axes: Mapping[str, Axes], wanted: Wanted, told: Told
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
    margins = {
        w.module: margin
        for w, margin in zip(row, _margins(row, kinds, free), strict=True)
        if w.module in free and w.shape[0] != w.shape[1] and margin >= (w.shape[1] > 1)
    }
    # Branches side by side would link if every second one were transposed; they are alike.
    torn = {(_pattern(w.module), w.shape) for w in row if w.module not in margins}
    open_ones = {w.module: w for w in row if w.module in margins}
    surely = {
        _pattern(module)
        for module, margin in margins.items()
        if margin >= _MARGIN and (_pattern(module), open_ones[module].shape) not in torn
    }
    patterns = Counter(_pattern(w.module) for w in row)
    groups = _all_groups(row)
    for module in margins:
        if _pattern(module) in surely:
            found[module] = Axes(Kind.TRANSPOSED, FIRST, groups[module])
            told[_AS_TRANSPOSED].append(module)
        elif _is_like(open_ones[module], torn):
            continue
        # One filter for each channel seldom comes last, to one channel people do go back.
        elif margins[module] > 0 or (module == row[-1].module and patterns[_pattern(module)] == 1):
            told[_MAYBE_TRANSPOSED].append(module)
    sure = kinds | dict.fromkeys(found, Kind.TRANSPOSED)
    turned = {w.shape[2:] for w in row if sure[w.module] is Kind.TRANSPOSED}
    alike = defaultdict(set)
    for w in row:
        if w.shape[0] != w.shape[1]:
            alike[_pattern(w.module)].add(sure[w.module])
    for weight in row:
        if weight.module not in free or weight.shape[0] != weight.shape[1]:
            continue
        if alike[_pattern(weight.module)] == {Kind.TRANSPOSED} or _hint(weight) > 1:
            found[weight.module] = Axes(Kind.TRANSPOSED, FIRST, groups[weight.module])
            told[_AS_TRANSPOSED].append(weight.module)
            continue
        # Where none of its name is of another shape, nothing shows which way they go.
        is_open = weight.shape[2:] in turned or not alike[_pattern(weight.module)]
        if kinds[weight.module] is Kind.CONV and (_hint(weight) or _is_even(weight) or is_open):
            told[_MAYBE_TRANSPOSED].append(weight.module)
    return found


def is_called_transposed(module: str, /) -> bool:
    """Tell whether a name says that it is a transposed convolution."""
    return bool(_TRANSPOSED.search(module))


def _is_free(weight: Weight, wanted: Wanted) -> bool:
    """Return whether the bias leaves open which of the first two axes has the filters."""
    if wanted.transposed is not None:  # the user has told
        return False
    is_square = weight.shape[0] == weight.shape[1]
    is_open = weight.outputs is None or (is_square and weight.outputs == weight.shape[0])
    is_large = math.prod(weight.shape[2:]) > 1
    return is_open and (is_large or is_called_transposed(weight.module))


def _pattern(module: str) -> str:
    return re.sub(r"\d+", "#", module)


def _is_like(weight: Weight, ordinary: Container[tuple[str, tuple[int, ...]]]) -> bool:
    """Tell whether it is as others that are ordinary, and has nothing of a transposed one."""
    is_alike = (_pattern(weight.module), weight.shape) in ordinary
    return is_alike and not _hint(weight) and not _is_even(weight)


def _hint(weight: Weight) -> int:
    """Score how far the name and a kernel of even extents speak for a transposed convolution."""
    if _TRANSPOSED.search(weight.module):
        return 2
    if not _UP.search(weight.module):
        return 0
    return 2 if _is_even(weight) else 1


def _margins(row: Sequence[Weight], kinds: Mapping[str, Kind], free: Container[str]) -> list[int]:
    """Count for each weight by how much the best reading of all is better with it transposed.

    A reading takes each open weight as ordinary or transposed. What fits: its own norm, its name,
    an even kernel, and outputs of a layer that are the inputs of the next.
    """
    if not row:
        return []
    choices = [
        (False, True) if w.module in free else (kinds[w.module] is Kind.TRANSPOSED,) for w in row
    ]
    steps = range(1, len(row))
    ahead: list[dict[bool, int]] = [{turned: _own(row[0], turned) for turned in choices[0]}]
    for at in steps:  # the best of all before, with this one so
        ahead.append(
            {
                turned: _own(row[at], turned)
                + max(
                    best + _fits(row[at - 1], row[at], other, turned)
                    for other, best in ahead[at - 1].items()
                )
                for turned in choices[at]
            }
        )
    behind: list[dict[bool, int]] = [dict.fromkeys(each, 0) for each in choices]
    for at in reversed(steps):
        behind[at - 1] = {
            turned: max(
                _own(row[at], other)
                + _fits(row[at - 1], row[at], turned, other)
                + behind[at][other]
                for other in choices[at]
            )
            for turned in choices[at - 1]
        }
    totals = [
        {turned: ahead[at][turned] + behind[at][turned] for turned in choices[at]}
        for at in range(len(row))
    ]
    return [each[True] - each[False] if len(each) > 1 else 0 for each in totals]


def _sides(weight: Weight, turned: bool) -> tuple[int, int]:
    """Return the numbers of inputs and outputs."""
    first, second = weight.shape[:2]
    if turned:
        return first, second * _groups(weight)
    return (first if second == 1 else second), first  # one input a filter: most likely a group


def _groups(weight: Weight) -> int:
    """Return the groups of a transposed convolution, of which the norm behind it tells.

    A norm as wide as the first axis is that of an ordinary one's filters, and tells of none.
    """
    first, second = weight.shape[:2]
    if weight.norm == first:
        return 1
    groups, rest = divmod(weight.norm or 0, second) if second else (1, 1)
    return groups if groups and not rest and first % groups == 0 else 1


def _all_groups(row: Sequence[Weight]) -> dict[str, int]:
    groups = {weight.module: _groups(weight) for weight in row}
    for weight, behind in itertools.pairwise(row):
        # One filter for each channel, where the next takes as many: an upsampling that is learnt.
        if weight.shape[1] == 1 < weight.shape[0] == behind.shape[1]:
            groups[weight.module] = weight.shape[0]
    return groups


def _own(weight: Weight, turned: bool) -> int:
    fits = int(weight.norm == _sides(weight, turned)[1])
    return fits + (_hint(weight) + int(_is_even(weight)) if turned else 0)


def _is_even(weight: Weight) -> bool:
    return all(extent in (2, 4) for extent in weight.shape[2:])


def _fits(before: Weight, behind: Weight, *turned: bool) -> int:
    outputs, inputs = _sides(before, turned[0])[1], _sides(behind, turned[1])[0]
    # An ordinary one in groups mostly gives as many channels as it takes; in two there are few.
    is_even = outputs == behind.shape[0] and outputs % inputs == 0
    is_grouped = not turned[1] and is_even and outputs // inputs > 2
    return int(outputs == inputs or is_grouped)
