"""Snapshots of a run: weights, and what their files say of the network besides."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planescope.checkpoints.safetensors import read_metadata
from planescope.files.errors import CheckpointError
from planescope.files.reading import open_binary
from planescope.files.writing import is_utf8

if TYPE_CHECKING:
    import torch

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


def write_weights(
    path: Path, weights: Mapping[str, torch.Tensor], about: Mapping[str, Any]
) -> None:
    """Write weights, with what they are as the file's metadata.

    Raises
    ------
    OSError
        If the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # Copied: safetensors refuses tensors that share memory, as shared layers do.
    tensors = {
        name: weight.detach().to("cpu", copy=True).contiguous() for name, weight in weights.items()
    }
    try:
        # One entry: safetensors writes several in any order, and equal snapshots are equal files.
        save_file(tensors, path, {"planescope": json.dumps(about)})
    except SafetensorError as exc:
        raise OSError(str(exc)) from exc


def read_weights(path: Path, /) -> dict[str, torch.Tensor]:
    """Read the weights of a snapshot.

    Raises
    ------
    CheckpointError
        If it is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load, load_file

    try:
        with open_binary(path) as file:  # safetensors would wait for a pipe
            # It takes no path whose bytes are no text; a whole file costs twice the memory.
            weights: dict[str, torch.Tensor] = (
                load_file(path) if is_utf8(str(path)) else dict(sorted(load(file.read()).items()))
            )
    except (OSError, SafetensorError) as exc:
        raise CheckpointError(f"{path}: cannot be read ({exc})") from exc
    return weights
