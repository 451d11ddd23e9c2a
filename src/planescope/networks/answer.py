"""The answer of anybody's network to inputs that it sees first, or a sentence on why there is none.

To import this is to import torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from planescope.files.errors import RunError, UsageError, one_line, own_place

if TYPE_CHECKING:
    from torch import nn


def answer(
    module: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    /,
    *,
    name: str,
    given: str,
) -> Any:
    """Run a network on inputs as it is, and return what it gives.

    Parameters
    ----------
    name : str
        What a message calls the network.
    given : str
        What it calls the inputs: "images of 3×32×32".

    Raises
    ------
    UsageError
        If the network does not take them, or fails in code of its own.
    """
    try:
        with torch.no_grad():  # a network may keep what it makes, and be trained with it
            return module(*args, **(kwargs or {}))
    except UsageError as exc:  # of a network that looks at its inputs, as that of a file does
        raise UsageError(f"{name} does not take {given}: {exc}") from exc
    except Exception as exc:  # forward is anybody's code
        if ran_out(exc) or isinstance(exc, RunError):
            raise
        if place := own_place(exc):
            raise UsageError(
                f"{name} fails in code of its own, {place}: {type(exc).__name__}: {one_line(exc)}; "
                f"it was given {given}"
            ) from exc
        raise UsageError(
            f"{name} does not take {given} ({one_line(exc)}); give inputs as it takes them"
        ) from exc


def ran_out(exc: Exception, /) -> bool:
    """Tell whether memory did; torch has no class for the host's."""
    of_memory = isinstance(exc, MemoryError | torch.OutOfMemoryError)
    return of_memory or "can't allocate memory" in str(exc)
