"""Dictionaries of live arrays, one within another, to a state dict, as a file of the same is read.

Flax keeps a network's variables so, and `torch.load` gives such ones of most checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planescope.checkpoints.arrays import nested
from planescope.checkpoints.arrays.nested import MAX_DEPTH, Tree
from planescope.files.errors import UsageError
from planescope.hyperplanes.layer import StateDict
from planescope.networks.live.mapping import live_tensor

# What Flax puts round an array holds it under this name.
_BOXED = "value"


def is_nested(mapping: Mapping[Any, Any], /) -> bool:
    """Tell whether a mapping holds others, or lists."""
    return any(isinstance(value, Mapping | list | tuple) for value in mapping.values())


def read_nested(mapping: Mapping[Any, Any], /, *, entry: str | None = None) -> StateDict:
    """Find the network in nested mappings of arrays; what is no array is passed over.

    Raises
    ------
    CheckpointError
        If there is no array.
    UsageError
        If mappings lie too deep, there is no such entry, or an array has no values.
    """
    tree = _tree(mapping, (), {})
    held = tree if isinstance(tree, dict) else {}
    return nested.state_dict(held, Path(type(mapping).__name__), entry=entry)


def _tree(value: Any, path: tuple[str, ...], known: dict[int, Tree | None]) -> Tree | None:
    """Make the tree of a value; None where there is no array in it."""
    if len(path) > MAX_DEPTH:
        raise UsageError(f"a mapping nests more than {MAX_DEPTH} deep; give the network's part")
    if id(value) in known:
        return known[id(value)]
    known[id(value)] = None  # what holds itself ends here
    known[id(value)] = found = _made(value, path, known)
    return found


def _made(value: Any, path: tuple[str, ...], known: dict[int, Tree | None]) -> Tree | None:
    if isinstance(value, Mapping):
        if "param_groups" in value:  # an optimiser's state of torch's
            return None
        # torch keeps whatever a module likes under this name.
        named = {str(k): each for k, each in value.items() if not str(k).endswith("_extra_state")}
        parts = {key: _tree(each, (*path, key), known) for key, each in named.items()}
        return {key: part for key, part in parts.items() if part}
    if hasattr(value, "named_parameters"):
        raise UsageError(f"{'.'.join(path)!r} holds a module; give that one")
    if isinstance(value, list | tuple):
        parts_of = [_tree(each, (*path, str(i)), known) for i, each in enumerate(value)]
        return nested.of_sequence(parts_of)
    if not _is_array(value) and _is_array(getattr(value, _BOXED, None)):
        value = getattr(value, _BOXED)
    return live_tensor(".".join(path), value) if _is_array(value) else None


def _is_array(value: Any) -> bool:
    if getattr(value, "is_nested", False):  # torch's, of parts of several shapes: it has none
        return False
    return hasattr(value, "shape") and hasattr(value, "dtype")
