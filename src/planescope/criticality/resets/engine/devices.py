"""The device that a network is run on, and the memory and the batches that it allows there."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from planescope.files.errors import UsageError
from planescope.networks.graph.file_graph import FileGraph
from planescope.training.precision import fitting_precision

if TYPE_CHECKING:
    from planescope.criticality.options import AskedPrecision
    from planescope.data.roles import Batch
    from planescope.training.precision import Precision


# Memory by default: half of what is free, but no more than this; groups of batches gain little
# beyond. And what is taken where the system does not tell.
MOST_BYTES, UNKNOWN_BYTES = 2 << 30, 1 << 30
# Examples of a batch, at most, and the bytes that it may fill: by the kind of device.
BATCHES = {"cpu": (256, 512 << 20), "cuda": (2048, 4 << 30)}
# A step holds what it reads, what it gives, and what it works with.
COPIES_OF_LARGEST = 4
PRECISIONS = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
SIGNIFICANT_BITS = {"bf16-mixed": 8, "16-mixed": 11}


def chosen_precision(asked: AskedPrecision, devices: Sequence[torch.device], /) -> Precision:
    """Return the precision that is computed in: of ``"auto"`` the one that all devices share."""
    if asked != "auto":
        return asked
    fitting: set[Precision] = {
        fitting_precision(kind) if kind in BATCHES else "32-true"
        for kind in {device.type for device in devices}
    }
    return fitting.pop() if len(fitting) == 1 else "32-true"


@contextlib.contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """Compute in a precision, whatever the caller computes in."""
    dtype = PRECISIONS.get(precision)
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        yield


def default_memory(device: torch.device, /) -> int:
    """Return the bytes to use where nobody says: half of what is free, within reason."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] // 2)
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on every system
        free = 2 * UNKNOWN_BYTES
    return min(free // 2, MOST_BYTES)


def chosen_device(name: str, module: nn.Module, /, *, stays: bool) -> torch.device:
    """Return the device that a network is run on.

    Parameters
    ----------
    name : str
        As torch calls it, or ``"auto"``: a GPU where there is one.
    stays : bool
        Whether ``"auto"`` is where the module is.

    Raises
    ------
    UsageError
        If there is no such device.
    """
    held = next(module.parameters(), None)
    if name == "auto" and stays and held is not None:
        return held.device
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as exc:
        reason = str(exc).partition("\n")[0]
        raise UsageError(f"device {name!r} cannot be used ({reason}); cpu always can") from exc
    return device


def seconds_of_a_pass(module: nn.Module, batch: Batch, /) -> float:
    """Measure what it takes to send a batch, on the device of a network, through all of it."""
    where = next((p.device for p in module.parameters()), torch.device("cpu"))
    began = 0.0
    for _ in range(2):  # the first call of a network makes ready what others find there
        began = time.perf_counter()
        with torch.inference_mode():
            held = module(*batch.args, **batch.kwargs)
        del held
        if where.type == "cuda":
            torch.cuda.synchronize(where)
    return time.perf_counter() - began


def batch_size(module: nn.Module, example: torch.Tensor, memory: int | None, kind: str, /) -> int:
    """Return the examples a batch: a power of 2, from the network and what the user allows alone.

    What happens to be free plays no part: work that goes on must have the same batches.

    Parameters
    ----------
    module : torch.nn.Module
        In evaluation mode.
    example : torch.Tensor, shape (1, channels, height, width)
    memory : int or None
        Bytes that the user allows.
    kind : str
        Of the device that batches will be on: ``"cpu"``, ``"cuda"``.
    """
    largest = example.nbytes

    def look(_module: nn.Module, _args: Any, output: Any) -> None:
        nonlocal largest
        largest = max(largest, getattr(output, "nbytes", 0))

    hooks = [part.register_forward_hook(look) for part in module.modules()]
    try:
        with torch.inference_mode():
            module(example.clone())
    finally:
        for hook in hooks:
            hook.remove()
    if isinstance(module, FileGraph):  # its layers are no modules
        largest = max(largest, module.largest_bytes)
    size, allowed = BATCHES.get(kind, BATCHES["cpu"])
    if memory is not None:
        allowed = min(allowed, memory // 4)
    while size > 1 and size * largest * COPIES_OF_LARGEST > allowed:
        size //= 2
    return size
