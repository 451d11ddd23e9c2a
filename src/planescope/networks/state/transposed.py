"""Transposed convolutions, found by name, norm and the layers beside where no bias tells."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from planescope.hyperplanes.layer import Kind
from planescope.networks.state.axes import FIRST, Axes, Wanted, Weight

_TRANSPOSED = re.compile(r"deconv|transpos|up_?conv|conv_?up|conv\w*tr(?![a-z])", re.IGNORECASE)
_UP = re.compile(r"(^|[._/])up(?![a-z])|upsampl", re.IGNORECASE)
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
