"""Snapshots of a run: what their files say of the network besides its weights."""

from __future__ import annotations

import json
import os
from pathlib import Path

from planescope.checkpoints.safetensors import read_metadata

SCHEMA = "planescope.snapshot/1"


def input_shape_of(path: str | os.PathLike[str], /) -> tuple[int, int, int] | None:
    """Return the channels, height and width that a snapshot's network was trained on.

    None where the file is no snapshot, or is one of a training that a Tracker followed.

    Raises
    ------
    CheckpointError
        If the file is a damaged safetensors file.
    """
    path = Path(path)  # a name of published weights is no file
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        said = json.loads(read_metadata(path).get("planescope", "null"))
    except (ValueError, RecursionError):
        return None
    match said:
        case {"schema": schema, "input": [channels, height, width]} if schema == SCHEMA:
            shape = (channels, height, width)
            if all(type(size) is int and size > 0 for size in shape):
                return shape
    return None
