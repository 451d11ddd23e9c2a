"""States of random numbers, left as they were while somebody's data are gone through.

To import this is to import torch.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


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
