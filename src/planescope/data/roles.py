"""The parts of a batch that a user hands over, and their roles: inputs, labels, mask."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from planescope.files.errors import UsageError

# Names under which dictionaries hold labels.
LABELS = ("labels", "label")
# From a batch to what the network takes and the labels, which may be None.
Unpack = Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """A batch, and what in it is what.

    Attributes
    ----------
    args, kwargs
        What `forward` is called with.
    labels : object or None
        As they came.
    raw : object
        The whole batch.
    size : int
        Examples.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    labels: Any
    raw: Any
    size: int


class Reader:
    """The roles of the parts of a batch, for a network.

    Attributes
    ----------
    left : set of str
        Parts of dictionaries that `forward` does not take.
    """

    def __init__(self, module: nn.Module, unpack: Unpack | None) -> None:
        self._module, self._unpack = module, unpack
        self._taken: tuple[set[str], bool] | None = None
        self.left: set[str] = set()

    def read(self, raw: Any) -> Batch:
        """Take a batch apart.

        Raises
        ------
        UsageError
            If it is not plain what in it is what.
        """
        inputs, labels = self._parts(raw)
        args, kwargs = _arguments(inputs)
        size = _size((*args, *kwargs.values()), labels)
        return Batch(args=args, kwargs=kwargs, labels=labels, raw=raw, size=size)

    def inputs_of(self, raw: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return what `forward` is called with, where labels play no part.

        A sequence begins with the inputs, however long it is.

        Raises
        ------
        UsageError
            As `read`.
        """
        is_sequence = isinstance(raw, Sequence) and not isinstance(raw, str | bytes)
        if self._unpack is None and is_sequence and raw:
            return _arguments(self._inputs(raw[0]))
        return _arguments(self._parts(raw)[0])

    def _parts(self, raw: Any) -> tuple[Any, Any]:
        if self._unpack is not None:
            found = self._unpack(raw)
            if not isinstance(found, tuple) or len(found) != 2:
                raise UsageError(
                    "unpack must give two things for a batch, inputs and labels (or None), but "
                    f"gave {described(found, most=6)}"
                )
            return found
        if isinstance(raw, torch.Tensor):
            return raw, None
        if isinstance(raw, Mapping):
            return self._named(raw)
        if isinstance(raw, Sequence) and not isinstance(raw, str | bytes):
            if len(raw) == 1:
                return self._inputs(raw[0]), None
            if len(raw) == 2:
                return self._inputs(raw[0]), raw[1]
        raise UsageError(
            f"a batch is {described(raw, most=6)}, of which it is not plain what the network "
            "takes; give unpack=, a function from a batch to inputs and labels"
        )

    def _inputs(self, part: Any) -> Any:
        return self._named(part)[0] if isinstance(part, Mapping) else (part,)

    def _named(self, raw: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
        labels = [name for name in LABELS if name in raw]
        rest = {name: part for name, part in raw.items() if name not in LABELS}
        names, takes_all = self._forward()
        given = rest if takes_all else {n: part for n, part in rest.items() if n in names}
        if len(labels) > 1 or not given:
            raise UsageError(
                f"a batch is {described(raw, most=6)}, but forward takes "
                f"{', '.join(sorted(names)) or 'none'};"
                " give unpack=, a function from a batch to inputs and labels"
            )
        self.left |= rest.keys() - given.keys()
        return given, raw[labels[0]] if labels else None

    def _forward(self) -> tuple[set[str], bool]:
        if self._taken is None:
            parameters = inspect.signature(self._module.forward).parameters.values()
            by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
            names = {p.name for p in parameters if p.kind in by_name}
            self._taken = names, any(p.kind is p.VAR_KEYWORD for p in parameters)
        return self._taken


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return inputs if isinstance(inputs, tuple) else (inputs,), {}


def left_note(left: set[str]) -> str:
    """Say which parts of the batches play no part."""
    return f"of a batch's dictionary, forward does not take {', '.join(sorted(map(str, left)))}"


def _size(inputs: Sequence[Any], labels: Any) -> int:
    for part in (*inputs, labels):
        if isinstance(part, torch.Tensor) and part.ndim:
            return len(part)
    raise UsageError("a batch holds no tensor with a row an example; give unpack=")


def described(value: Any, /, *, most: int | None = None) -> str:
    """Describe a batch or an output in few words, with `most` names of a dictionary."""
    if isinstance(value, Mapping):
        return f"a dictionary of {', '.join(map(str, list(value)[:most]))}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def moved(value: Any, device: torch.device, dtype: torch.dtype | None = None, /) -> Any:
    """Put all tensors of a batch on a device; arrays become tensors of the same type.

    With a `dtype`, what is floating is cast to it.
    """
    if isinstance(value, torch.Tensor):
        cast = dtype if value.is_floating_point() else None
        return value.to(device, cast, non_blocking=True)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return moved(torch.from_numpy(np.ascontiguousarray(value)), device, dtype)
    if isinstance(value, Mapping):  # transformers' BatchEncoding too, whose `to` changes it
        return {name: moved(part, device, dtype) for name, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(moved(part, device, dtype) for part in value))
    if isinstance(value, list | tuple):
        return type(value)(moved(part, device, dtype) for part in value)
    return value.to(device) if callable(getattr(value, "to", None)) else value
