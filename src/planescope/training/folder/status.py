"""The state of a run: new, running, finished, stopped or failed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

STATE_SCHEMA = "planescope.run-state/1"


class State(StrEnum):
    """The state of a run."""

    NEW = "new"
    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"  # interrupted or killed; resuming goes on
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Status:
    """A run's state; `message` says what happened and what to do, "" where nothing did."""

    state: State
    message: str = ""
