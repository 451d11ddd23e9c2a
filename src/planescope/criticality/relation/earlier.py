"""Plain data of relations that earlier versions wrote, in the words of this one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from planescope.criticality.definition import THRESHOLD
from planescope.hyperplanes.layer import Input

_FORMER = "planescope.relation/1"
# Of a layer there: what was about the relative drop, or has another name now.
_LEFT_OUT = ("first", "drop", "drop_low", "drop_high", "critical", "robust", "decision")
_NOTE = (
    "made by an earlier version, whose “critical” was about the relative drop: what rests on that "
    "word is left out; relate the runs again"
)


def renewed(data: Any, schema: str, /) -> Any:
    """Return the data under the present schema; what is of no earlier one stays as it is.

    Flags, shares, advice and curves of the first schema were about the relative drop. Nothing of
    them is guessed: `critical` is what the file itself says by the loss, else None.
    """
    if not isinstance(data, dict) or data.get("schema") != _FORMER:
        return data
    notes = data.get("notes", [])
    return {
        **data,
        "schema": schema,
        "critical": THRESHOLD,
        "layers": _each(data, "layers", _layer),
        "associations": _each(data, "associations", _association),
        "shares": [],
        "advice": [],
        "notes": [*notes, _NOTE] if isinstance(notes, list) else notes,
    }


def _each(data: dict[str, Any], key: str, renew: Callable[[dict[str, Any]], object]) -> Any:
    found = data.get(key)
    if not isinstance(found, list):
        return found
    return [renew(one) if isinstance(one, dict) else one for one in found]


def _layer(of: dict[str, Any]) -> object:
    kept = {key: value for key, value in of.items() if key not in _LEFT_OUT}
    drops = {f"relative_{key}": of[key] for key in _LEFT_OUT[1:4] if key in of}
    # A layer that is no first one may lie behind anything.
    feeds = Input.IMAGE if of.get("first") is True else Input.UNKNOWN
    return {**kept, **drops, "input": feeds.value, "critical": of.get("decision")}


def _association(of: dict[str, Any]) -> object:
    return {k: v for k, v in of.items() if not k.startswith(("auc", "average_precision"))}
