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

# What keeps a value for each weight under the weight's own name: an optimiser, or what tells of
# gradients. One letter, or a word that a network may have for a part, tells only beside those, or
# where it has all weights of the network.
_OF_TRAINING = re.compile(
    r"opt|optim(izer|iser)?s?|opt(im(izer|iser)?)?_states?|ada(m|max|grad|delta|factor|belief)w?|"
    r"sgd|rmsprop|lamb|lion|(max_)?exp_avg(_sq)?|moment(um)?s?(_?buffer)?_?[12]?|accum(ulator)?s?|"
    r"velocit(y|ies)|grads?|gradients?|fisher|hessian|slots?",
    re.IGNORECASE,
)
_OF_ALL = re.compile(r"[mv]|mu|nu|trace|masks?|init(ial)?|backup|old|prev(ious)?|best(_model)?")


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
        within = f" in {state.entry!r}" if state.entry else ""
        others = [note.partition(", which")[0] for note in state.notes if "also holds" in note]
        told = "; ".join([f"near it are {', '.join(near) or 'none'}{within}", *others])
        raise UsageError(f"{path}: has no entry {entry!r}; {told}")

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
    state = _without_values_of_training(_without_flat_copies(state))
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


def _without_values_of_training(state: StateDict) -> StateDict:
    """Leave out what has the names of the network's weights behind a word of its own."""
    weights = {n: t.shape for n, t in state.tensors.items() if len(t.shape) > 1}
    parts = {name: tuple(re.split(r"[./]", name)) for name in weights}
    marked = {
        name: end
        for name, words in parts.items()
        for end in [_last_mark(words)]
        if 0 < end < len(words)
    }
    if not marked:
        return state
    # A network may stand under a name of its own, or of two.
    known: defaultdict[tuple[str, ...], set[tuple[int, ...]]] = defaultdict(set)
    own = [name for name in weights if name not in marked]
    for name in own:
        for start in range(min(3, len(parts[name]))):
            known[parts[name][start:]].add(weights[name])
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name, end in marked.items():
        rest = parts[name][end:]
        groups[name[: len(name) - len(".".join(rest)) - 1]].append(name)
    copies = [
        group
        for group, names in groups.items()
        if all(weights[name] in known[parts[name][marked[name] :]] for name in names)
        and (len(names) == len(own) or any(map(_OF_TRAINING.fullmatch, re.split("[./]", group))))
    ]
    if not copies:
        return state
    prefixes = tuple(copy + separator for copy in copies for separator in "./")
    tensors = {n: t for n, t in state.tensors.items() if not n.startswith(prefixes)}
    told = ", ".join(copies)
    note = (
        f"what stands under {told} has the names and shapes of the network's weights, as an "
        f"optimiser's values or a copy do: not measured (--entry {copies[0]})"
    )
    return dataclasses.replace(state, tensors=tensors, notes=(*state.notes, note))


def _last_mark(words: tuple[str, ...]) -> int:
    """Return the place behind the last leading word that is of a training; 0 where none is."""
    found = 0
    for place, word in enumerate(words[:-1]):
        if _OF_TRAINING.fullmatch(word) or _OF_ALL.fullmatch(word):
            found = place + 1
        elif not word.isdecimal() and word not in ("state", "states"):
            break
    return found


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
