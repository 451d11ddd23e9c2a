"""Several state dicts in one file: which is measured, and how another is asked for."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from planescope.files.errors import UsageError
from planescope.hyperplanes.layer import Described, StateDict, Tensor

T = TypeVar("T")

# What people call a copy of a network that follows it: an average, or the teacher of a student.
_FOLLOWERS = "ema|averaged?|avg|swa|shadow|teacher|target|momentum"
_COPY = re.compile(rf"(^|_)({_FOLLOWERS}|emas|slow|polyak)(_|$)|^encoder_k$")
# As some write it, in front of the names of a network's own tensors.
_FLAT_COPY = re.compile(rf"({_FOLLOWERS})_")


def read_entry(form: ModuleType, path: Path, entry: str | None, /) -> StateDict | Described:
    """Read a file of a format, or one entry of it.

    Raises
    ------
    CheckpointError
        If the file is damaged.
    UsageError
        If it has no such entry.
    """
    if entry is None:
        contents = form.read(path)
        return without_copies(contents) if isinstance(contents, StateDict) else contents
    knows = "entry" in inspect.signature(form.read).parameters
    contents = form.read(path, entry=entry) if knows else form.read(path)
    if not isinstance(contents, StateDict):
        raise UsageError(f"{path}: a {form.NAME} file holds one network; leave out --entry")
    is_found = contents.entry == entry or contents.entry.endswith(f".{entry}")
    return contents if is_found else _only(contents, entry, path)


def _only(state: StateDict, entry: str, path: Path) -> StateDict:
    """Keep what stands under a prefix of the names."""
    prefixes = [entry] if _FLAT_COPY.fullmatch(entry) else [entry + end for end in "./"]
    tensors = {
        name.removeprefix(prefix): tensor
        for prefix in prefixes
        for name, tensor in state.tensors.items()
        if name.startswith(prefix)
    }
    if not tensors:
        known = dict.fromkeys(re.split(r"[./]", name)[0] for name in state.tensors)
        near = difflib.get_close_matches(entry, known, n=3, cutoff=0.0)
        raise UsageError(f"{path}: has no entry {entry!r}; near it are {', '.join(near) or 'none'}")

    def inside(names: Mapping[str, T]) -> dict[str, T]:
        return {
            name.removeprefix(prefix): value
            for prefix in prefixes
            for name, value in names.items()
            if name.startswith(prefix)
        }

    return dataclasses.replace(
        state,
        tensors=tensors,
        places=inside(state.places),
        reasons=inside(state.reasons),
        norm_eps=inside(state.norm_eps),
        skipped=tuple(s for s in state.skipped if s.name.startswith(tuple(prefixes))),
        entry=".".join(part for part in (state.entry, entry) if part),
    )


def without_copies(state: StateDict) -> StateDict:
    """Leave out the averages of a network that stand beside it, tensor by tensor the same."""
    state = _without_flat_copies(state)
    groups: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in state.tensors.items():
        first, _, rest = name.partition("/" if "/" in name and "." not in name else ".")
        if rest:
            groups[first][rest] = tensor
    copies = [
        copy
        for copy in groups
        if _COPY.search(copy.lower())
        and any(
            other != copy
            and not _COPY.search(other.lower())
            and _is_copy(groups[copy], groups[other])
            for other in groups
        )
    ]
    if not copies:
        return state
    prefixes = tuple(copy + separator for copy in copies for separator in "./")
    tensors = {n: t for n, t in state.tensors.items() if not n.startswith(prefixes)}
    return _without(state, tensors, ", ".join(copies), copies[0])


def _without_flat_copies(state: StateDict) -> StateDict:
    """Leave out averages whose names are those of the weights behind ``ema_`` or its like."""
    found = ((name, _FLAT_COPY.match(name)) for name in state.tensors)
    starts: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, match in found:
        if match is not None:
            starts[match[0]][name[match.end() :]] = state.tensors[name]
    for start, copy in starts.items():
        if len({name.partition(".")[0] for name in copy}) < 2:
            continue  # a network under one name, as `ema_model`
        own = {n: t for n, t in state.tensors.items() if not n.startswith(start)}
        flat = {name.replace(".", "_"): tensor for name, tensor in own.items()}
        if not (_is_copy(copy, own) or _is_copy(copy, flat)):
            continue
        state = _without(state, own, f"{start}...", start)
    return state


def _without(state: StateDict, tensors: dict[str, Tensor], copies: str, entry: str) -> StateDict:
    """Keep some tensors, and say what was left out and how to have it measured."""
    note = f"{copies} holds another copy of the weights, which was not measured (--entry {entry})"
    return dataclasses.replace(state, tensors=tensors, notes=(*state.notes, note))


def _is_copy(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    weights = {name: tensor.shape for name, tensor in one.items() if len(tensor.shape) > 1}
    return bool(weights) and all(
        name in other and other[name].shape == shape for name, shape in weights.items()
    )
