"""Values of single filters at the snapshots of a run, kept for pictures.

Single precision; a snapshot of a large network is a thousand times this.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from planescope.files.errors import CheckpointError
from planescope.files.reading import open_binary
from planescope.measurement.record import Measurement

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEMA = "planescope.run-filters/1"


def filters_of(measurement: Measurement, /) -> dict[str, NDArray[np.float32]]:
    """Return the cosine and offset of each filter, of shape (2, filters), by layer.

    A measurement that was loaded from a file has none.
    """
    # An offset beyond float32 becomes an infinity, which is no point of a picture.
    with np.errstate(over="ignore"):
        return {
            layer.name: np.stack([layer.values.cosine, layer.values.offset]).astype(np.float32)
            for layer in measurement.layers
            if layer.values
        }


def write_filters(path: Path, filters: Mapping[str, NDArray[np.float32]], epoch: int, /) -> None:
    """Write the values of filters at an epoch."""
    from safetensors.numpy import save_file

    about = json.dumps({"schema": SCHEMA, "epoch": epoch})
    save_file(dict(filters), path, {"planescope": about})


def read_filters(path: Path, /) -> dict[str, NDArray[np.float32]]:
    """Read the values of filters, by layer.

    Raises
    ------
    CheckpointError
        If they were not kept or the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        with open_binary(path) as file:
            # In any order; the file has them by name.
            filters: dict[str, NDArray[np.float32]] = dict(sorted(load(file.read()).items()))
    except (OSError, SafetensorError) as exc:
        raise CheckpointError(f"{path}: cannot be read ({exc})") from exc
    return filters
