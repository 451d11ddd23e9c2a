"""Inputs in a NumPy file, one a row.

To import this is to import torch.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from planescope.files.errors import CheckpointError, UsageError, one_line
from planescope.files.reading import size_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The largest array of inputs that is looked at.
_MOST_DIMENSIONS = 8


def read_rows(path: str | os.PathLike[str], module: nn.Module, /) -> tuple[torch.Tensor, list[str]]:
    """Read a NumPy file of inputs for a network, and say where that computes in another dtype.

    Raises
    ------
    CheckpointError, UsageError
        As `read_array`.
    """
    array, (_, dtype) = read_array(path), home_of(module)
    own = str(dtype).removeprefix("torch.")
    is_own = str(array.dtype) == own
    notes = [] if is_own else [f"inputs are {array.dtype}, cast to the network's {own}"]
    return torch.from_numpy(array).to(dtype), notes


def read_array(path: str | os.PathLike[str], /) -> NDArray[Any]:
    """Read a NumPy file of inputs, N × one input, floats of any width; nothing is unpickled.

    Raises
    ------
    CheckpointError
        If it is missing or damaged.
    UsageError
        If it holds no floats, or no inputs.
    """
    size_of(Path(path))
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as exc:
        reason = one_line(exc)
        if "pickle" in reason:  # NumPy takes whatever it does not know for one, and says to run it
            reason = "it does not begin as one"
        raise CheckpointError(f"{path}: cannot be read as a NumPy file ({reason})") from exc
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        kind = getattr(array, "dtype", type(array).__name__)
        raise UsageError(f"{path}: holds {kind}, not floats; scale them first")
    if not 2 <= array.ndim <= _MOST_DIMENSIONS or 0 in array.shape:
        raise UsageError(
            f"{path}: has shape {'×'.join(map(str, array.shape)) or 'of a number'}; give N × one "
            "input"
        )
    if array.dtype.itemsize > 8 or not array.dtype.isnative:
        array = array.astype(np.float64)
    return np.array(array)


def home_of(module: nn.Module, /) -> tuple[torch.device, torch.dtype]:
    """Return the device of a network and the dtype that it computes in."""
    held = next((p for p in module.parameters() if p.is_floating_point()), None)
    if held is None:
        return torch.device("cpu"), torch.float32
    return held.device, held.dtype
