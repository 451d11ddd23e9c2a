"""A user's network while its layers are reset: a copy, and nothing else that is left changed.

To import this is to import torch.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from planescope.networks.copies import deep_copy

# What a LightningModule holds of its trainer, data and loops among it.
_OF_A_TRAINER = ("_trainer", "_fabric")


@contextlib.contextmanager
def borrowed(module: nn.Module, /) -> Iterator[nn.Module]:
    """Give a copy in evaluation mode; the network itself where it cannot be copied.

    That one is put back as it was: its modes, its buffers, and what its modules hold.
    """
    copied = _copied(module)
    if copied is not None:
        yield copied.eval()
        return
    kept = [(vars(part), dict(vars(part))) for part in module.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    held = [(part._buffers, dict(part._buffers)) for part in module.modules()]
    try:
        yield module.eval()
    finally:
        for values, before in (*kept, *held):
            values.clear()
            values.update(before)
        with torch.no_grad():
            for buffer, before_ in buffers:
                buffer.copy_(before_)


def _copied(module: nn.Module) -> nn.Module | None:
    """Copy of a network without its trainer; None where it cannot be copied."""
    held = [
        (part, name) for part in module.modules() for name in _OF_A_TRAINER if name in vars(part)
    ]
    kept = [vars(part)[name] for part, name in held]
    try:
        for part, name in held:
            vars(part)[name] = None
        return deep_copy(module)
    except Exception:  # a network may hold anything: locks, open files, what is spread over GPUs
        return None
    finally:
        for (part, name), value in zip(held, kept, strict=True):
            vars(part)[name] = value


@contextlib.contextmanager
def same_random_states(*generators: torch.Generator) -> Iterator[None]:
    """Leave all generators of random numbers as they were, torch's, NumPy's and Python's."""
    own = [(one, one.get_state()) for one in generators]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  the user's, kept
    host = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(host)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        for generator, state in own:
            generator.set_state(state)


def generators_of(data: Any, /) -> list[torch.Generator]:
    """Find the generators of a DataLoader and its samplers."""
    holders = [data, *(getattr(data, name, None) for name in ("sampler", "batch_sampler"))]
    holders.append(getattr(holders[-1], "sampler", None))
    found = [getattr(one, "generator", None) for one in holders]
    return list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())
