"""The structure of a run's network as its folder records it: where layers stand, and why."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from planescope.files.errors import CheckpointError
from planescope.files.reading import read_text
from planescope.files.results.records import record
from planescope.hyperplanes.layer import Structure

SCHEMA = "planescope.run-network/1"


def read_structure(path: Path, /) -> Structure | None:
    """Read a structure; None where there is no file.

    Raises
    ------
    CheckpointError
        If it is damaged.
    """
    if not path.is_file():
        return None
    try:
        data = json.loads(read_text(path))
        if data.pop("schema") != SCHEMA:
            raise ValueError("its schema is another")
        return record(Structure, data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise CheckpointError(
            f"{path}: cannot be read ({exc}); remove it, and give --network to have the "
            "network built instead"
        ) from exc


def structure_text(structure: Structure, /) -> str:
    """Return the text of a structure's file."""
    return json.dumps({"schema": SCHEMA, **dataclasses.asdict(structure)}, indent=1) + "\n"
