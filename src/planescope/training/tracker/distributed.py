"""Weights that several processes share, and what a process must leave as it was."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from planescope.files.errors import UsageError
from planescope.hyperplanes.layer import Layer, Tensor, with_tensors

if TYPE_CHECKING:
    import torch
    from torch import nn


def is_first() -> bool:
    """Return whether this process is the only one, or that of rank 0."""
    import torch.distributed as dist

    return not _are_several() or dist.get_rank() == 0


def _are_several() -> bool:
    import torch.distributed as dist

    return bool(dist.is_available() and dist.is_initialized())


def is_sharded(model: nn.Module, /) -> bool:
    """Return whether all processes are needed to see the weights whole."""
    if not _are_several():
        return False
    return _is_flattened(model) or any(hasattr(p, "full_tensor") for p in model.parameters())


@contextlib.contextmanager
def whole_weights(model: nn.Module, /) -> Iterator[None]:
    """Put weights together that `FullyShardedDataParallel` has flattened and shared out."""
    if not _is_flattened(model):
        yield
        return
    from torch.distributed.fsdp import FullyShardedDataParallel

    with FullyShardedDataParallel.summon_full_params(model, writeback=False):
        yield


def _is_flattened(model: nn.Module) -> bool:
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")  # who uses it has imported it
    return fsdp is not None and any(
        isinstance(module, fsdp.FullyShardedDataParallel) for module in model.modules()
    )


def held(layer: Layer, /) -> Layer:
    """Return the layer with what it holds now.

    What is shared out is put together, by all processes.
    """

    def kept(tensor: Tensor) -> Tensor:
        values = tensor.read()
        return replace(tensor, read=lambda: values)

    return with_tensors(layer, kept)


def agree(failure: Exception | None, /) -> Exception | None:
    """Tell all processes of a failure on any; the own one, or that of another."""
    import torch.distributed as dist

    told: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(told, None if failure is None else f"{failure}")
    if failure is not None:
        return failure
    rank = next((rank for rank, text in enumerate(told) if text is not None), None)
    return None if rank is None else UsageError(f"on the process of rank {rank}: {told[rank]}")


@contextlib.contextmanager
def unchanged_random_state(device: torch.device, /) -> Iterator[None]:
    """Leave all generators that data may draw from as they were."""
    import random

    import torch

    pythons, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(pythons)
        np.random.set_state(numpys)  # noqa: NPY002
