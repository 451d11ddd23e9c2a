"""The record of a training that was somebody else's and that a Tracker followed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from planescope.files.errors import UsageError, one_line
from planescope.files.yaml import read_document

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from typing import Any

SCHEMA = "planescope.tracked/1"


class TrackedConfig(BaseModel):
    """A Tracker's knowledge of the training that it follows, as ``config.yaml`` of its run has it.

    Attributes
    ----------
    network : str
        Class of the module, or what was given in its place.
    data : str
        What was given; nobody else knows.
    view, kinds, layers, every
        As the Tracker was told.
    unit : {"epoch", "step"}
        What snapshots are numbered by.
    framework : str
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: str
    data: str = "data of its own"
    view: Literal["raw", "effective"] = "raw"
    kinds: tuple[str, ...] = ()
    layers: str | None = None
    every: int | Literal["epoch"] = "epoch"
    unit: Literal["epoch", "step"] = "epoch"
    framework: str = "torch"

    def but(self, changes: Mapping[str, Any], /) -> TrackedConfig:
        """Make the same record with some fields replaced."""
        return TrackedConfig(**{**self.model_dump(), **changes})


def load_tracked(path: str | os.PathLike[str], /) -> TrackedConfig | None:
    """Read the record of a run; None where planescope trained it itself.

    Raises
    ------
    UsageError
        If it is damaged.
    CheckpointError
        If the file cannot be read.
    """
    values = dict(read_document(path).values)
    if values.pop("schema", None) != SCHEMA:
        return None
    try:
        return TrackedConfig(**values)
    except ValidationError as exc:
        raise UsageError(f"{path}: is damaged ({one_line(exc)})") from None


def dump_tracked(config: TrackedConfig, /) -> str:
    """Return YAML that `load_tracked` reads back to an equal record."""
    import yaml

    fields = {"schema": SCHEMA, **config.model_dump(mode="json")}
    return str(yaml.safe_dump(fields, sort_keys=False, allow_unicode=True))
