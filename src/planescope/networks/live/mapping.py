"""State dicts of whatever arrays there are: torch's of all kinds, NumPy's, and others'."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from planescope.files.errors import UsageError
from planescope.hyperplanes.layer import StateDict, Tensor

if TYPE_CHECKING:
    from planescope.hyperplanes.layer import Array


def read_state_dict(mapping: Mapping[str, Any], /) -> StateDict:
    """Find what a state dict holds.

    Parameters
    ----------
    mapping : mapping of str to array
        Arrays of torch, NumPy, JAX or CuPy by their full names (``features.0.weight``).

    Raises
    ------
    UsageError
        If a name is no string, or a value is no array or holds no numbers to measure.
    """
    tensors = {}
    for name, value in mapping.items():
        if not isinstance(name, str):
            raise UsageError(f"a state dict has names for keys, not {name!r}")
        # torch keeps whatever a module likes under this name.
        if not name.endswith("_extra_state"):
            tensors[name] = live_tensor(name, value)
    return StateDict(tensors=tensors)


def live_tensor(name: str, value: Any, /) -> Tensor:
    """Describe an array by its name; one that shares its memory is known as the same.

    Raises
    ------
    UsageError
        If it is no array, or has no values.
    """
    tensor = named_tensor(name, functools.partial(array_of, name, value))
    # What NumPy itself cannot compute with is widened, and keeps its type: that says how it rounds.
    dtype = value.dtype.name if isinstance(value, np.ndarray) else tensor.dtype
    return dataclasses.replace(tensor, identity=_memory(value), dtype=dtype)


def _memory(value: Any) -> Hashable:
    """Return a key that two arrays of one size share if they have the same memory."""
    if hasattr(value, "data_ptr"):
        from planescope.networks.live.plain import is_plain

        # Of sparse tensors and others' classes torch gives no place in memory, or 0 for all.
        if is_plain(value) and value.data_ptr():
            order = "C" if value.is_contiguous() else value.stride()
            return value.data_ptr(), order, str(value.device)
        return id(value)
    if (interface := getattr(value, "__array_interface__", None)) is not None:
        is_plain_order = getattr(value, "flags", {"C_CONTIGUOUS": False})["C_CONTIGUOUS"]
        return interface["data"][0], "C" if is_plain_order else value.strides
    return id(value)


def array_of(name: str, value: Any) -> Array:
    """Return the value stored under a name as an array that can be computed with."""
    if isinstance(value, Mapping):
        raise UsageError(f"{name!r} holds a mapping of its own; give that one, mapping[{name!r}]")
    if getattr(value, "is_nested", False):
        raise UsageError(f"{name} is a nested tensor, of parts that are no one array; leave it out")
    if not (hasattr(value, "shape") and hasattr(value, "dtype")):
        raise UsageError(f"{name!r} is a {type(value).__name__}, not an array; leave it out")
    if hasattr(value, "detach"):
        return value.detach()
    if not hasattr(value, "transpose") and hasattr(value, "__array__"):
        return np.asarray(value)  # of a class that NumPy alone can read
    # NumPy itself cannot compute with bfloat16 and float8; float32 holds all of their values.
    if isinstance(value, np.ndarray) and not np.issubdtype(value.dtype, np.floating):
        return value.astype(np.float32) if "float" in value.dtype.name else value
    return value


def named_tensor(name: str, read: Callable[[], Array], /) -> Tensor:
    """Describe an array that can be read again, whatever of torch's kinds it is.

    Raises
    ------
    UsageError
        If it has no values, or its kind cannot be made a plain array.
    """
    array = read()
    if not hasattr(array, "detach"):
        return Tensor(tuple(array.shape), getattr(array.dtype, "name", str(array.dtype)), read)
    from planescope.networks.live.plain import dtype_name, is_plain, plain

    # What is shared out among processes has the type of its parts, for which none is asked.
    part = array.to_local() if hasattr(array, "to_local") else array
    dtype = dtype_name(part if is_plain(part) else plain(name, array))
    # Looked at anew: a training may share a weight out, or pack it, on its way.
    return Tensor(tuple(array.shape), dtype, lambda: plain(name, read()))
