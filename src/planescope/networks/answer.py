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
        if reason := _of_another_type(module, args, kwargs or {}):
            raise UsageError(f"{name} does not take {given}: {reason}") from exc
        if place := own_place(exc):
            raise UsageError(
                f"{name} fails in code of its own, {place}: {type(exc).__name__}: {one_line(exc)}; "
                f"it was given {given}"
            ) from exc
        raise UsageError(
            f"{name} does not take {given} ({one_line(exc)}); give inputs as it takes them"
        ) from exc


def _of_another_type(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> str | None:
    """Say what to do where a network takes the inputs, but not in the type that they have.

    torch names two types and not the inputs, and integers say nothing of how they are scaled.
    """
    own = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
    given = [one for one in (*args, *kwargs.values()) if isinstance(one, torch.Tensor)]
    odd = next((one.dtype for one in given if one.dtype is not own), None)
    if own is None or odd is None or odd.is_complex:
        return None

    def cast(value: Any) -> Any:
        return value.to(own) if isinstance(value, torch.Tensor) else value

    try:
        with torch.no_grad():
            module(*map(cast, args), **{key: cast(value) for key, value in kwargs.items()})
    except Exception:  # it is not, or not only, their type
        return None
    kind, wanted = (str(one).removeprefix("torch.") for one in (odd, own))
    if odd.is_floating_point:
        return f"they are {kind}, and it computes in {wanted}; give them in {wanted}"
    return f"they are {kind}, not floats; scale them first, as they were for its training"


def ran_out(exc: Exception, /) -> bool:
    """Tell whether memory did; torch has no class for the host's."""
    of_memory = isinstance(exc, MemoryError | torch.OutOfMemoryError)
    return of_memory or "can't allocate memory" in str(exc)
