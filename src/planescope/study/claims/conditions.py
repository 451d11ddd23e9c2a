"""Conditions of a study's runs: what each was trained on, in words."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

from planescope.files.errors import UsageError
from planescope.files.results.result import by_layer

if TYPE_CHECKING:
    import pandas as pd

PLAIN = "true labels, whole images"
# Where nothing of the images, or nothing at all, can be learned.
WRONG, RANDOM, NOISE = "all labels wrong", "random labels", "Gaussian noise"
UNLEARNED = (WRONG, RANDOM, NOISE)
CENTRED = "centred filters"


def with_conditions(table: pd.DataFrame, /) -> pd.DataFrame:
    """Return the layers behind a ReLU of a study's table, each with the `condition` of its run.

    Raises
    ------
    UsageError
        If there are none.
    """
    table = by_layer(table)
    inner = table[(table["input"] == "relu") & table["agreement"].notna()].copy()
    if inner.empty:
        raise UsageError("the study has no layers behind a ReLU; its claims are about those")
    for name in ("run", "network", "layer"):
        if name in inner:
            inner[name] = inner[name].astype(str)
    inner["condition"] = condition_of(inner)
    return inner


def condition_of(table: pd.DataFrame, /) -> list[str]:
    """Return what the run of each row of a study's table was trained on, in words."""
    # All classes: as many as a run can have where that is known, else where none were chosen.
    most = math.inf if table["classes"].isna().any() else table["classes"].max()
    # Tables of before lack the last three.
    columns = (table.get(key, itertools.repeat(None, len(table))) for key in _CONDITIONS)
    return [_condition(*row, most=most) for row in zip(*columns, strict=True)]


# What a condition is made of, in the order of `_condition`.
_CONDITIONS = ("classes", "label_noise", "shuffle_pixels", "labels", "data", "centred")


def _condition(
    classes: float,
    noise: float,
    shuffled: bool,
    labels: str | float | None,
    data: str | float | None,
    centred: bool | float | None,
    *,
    most: float,
) -> str:
    parts = []
    if str(data).startswith("noise:"):
        parts.append(NOISE)
    if classes < most:  # NaN, all of them, is not
        parts.append(f"{classes:.0f} classes")
    if noise:
        parts.append(f"{noise:.0%} of the labels wrong" if noise < 1 else WRONG)
    if shuffled:
        parts.append("shuffled pixels")
    if labels == "random":
        parts.append(RANDOM)
    if centred is True or centred == 1:  # NaN where a table does not say
        parts.append(CENTRED)
    return ", ".join(parts) or PLAIN
