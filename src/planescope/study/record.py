"""The record of a run in a study: what was made of it, and what is still to be made."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from planescope.study.config import ResetSettings

if TYPE_CHECKING:
    from planescope.study.spec import Spec

RECORD_SCHEMA = "planescope.study-run/1"


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The record of what a study made of a run.

    Attributes
    ----------
    name : str
    made : dict
        Seconds that each step took that is done.
    reset : dict or None
        How layers were put back, once they were.
    error : str
        Why a step failed; "" where none did.
    """

    name: str
    made: dict[str, float] = field(default_factory=dict)
    reset: dict[str, Any] | None = None
    error: str = ""

    @property
    def is_measured(self) -> bool:
        """Return whether its rows of the table were made, though they may be lost."""
        return "measure" in self.made and not self.error

    def missing(self, spec: Spec, *, in_table: bool) -> list[str]:
        """Return the steps that are still to be made of a run, in order."""
        wanted = [step for step in ("train", "reset", "measure") if step in spec.make]
        # An option that came later has been at its default.
        had = {**_plain(ResetSettings().model_dump()), **(self.reset or {})}
        reset_is_old = "reset" in self.made and had != _plain(dict(spec.reset))
        undone = {
            "train": "train" not in self.made,
            "reset": "reset" not in self.made or reset_is_old,
        }
        # Rows of the table hold the resets too, so that they are written last.
        stale = (undone["reset"] and "reset" in wanted) or undone["train"] or not in_table
        undone["measure"] = "measure" not in self.made or stale
        return [step for step in wanted if undone[step]]


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    """Return fields as JSON gives them back."""
    plain: dict[str, Any] = json.loads(json.dumps(fields))
    return plain
