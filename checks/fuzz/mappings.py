"""Mappings of live arrays, as they come from Python, told by a JSON text that is changed.

An object is a mapping, a list a sequence. A leaf is a text: ``float32 4 3 3 3`` is an array of that
type and shape, the words behind it say what kind; ``@name`` is what was given by that name before.
"""

from __future__ import annotations

import collections
import copy
import json
import random
import types
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import planescope as ps
from planescope.files.errors import PlanescopeError, UsageError

INPUT = "input"
_MAX_ELEMENTS = 1 << 14  # of those that are made; larger ones repeat one element
_MOST = 1 << 20  # an array in memory is as large as whoever gives it has made it
_ENTRIES = (None,) * 9 + ("model", "ema.params", "0", "")

Seeds = Iterator[tuple[str, dict[str, bytes]]]


class _Boxed:
    """A box as Flax puts round arrays, of no class that anybody knows."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _Named(collections.abc.Mapping[str, Any]):
    """A mapping that is no dictionary, as Haiku and transformers have them."""

    def __init__(self, held: dict[str, Any]) -> None:
        self._held = held

    def __getitem__(self, key: str) -> Any:
        return self._held[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


def mappings(folder: Path, case: int, _: Collection[str]) -> None:
    """Measure what a text tells, whole or an entry of it, and several in turn."""
    data = (folder / INPUT).read_bytes()
    try:
        told = json.loads(data)
    except (ValueError, RecursionError):  # what bytes were changed to is a number to draw from
        told = _redrawn(random.Random(data))
    given = _made(told, {}, 0)
    if not isinstance(given, collections.abc.Mapping):
        raise UsageError("no mapping: that is another reader's")
    entry = _ENTRIES[case % len(_ENTRIES)]
    for view in ("raw", "effective"):
        table = ps.measure(given, kinds="all", view=view, entry=entry)
        table.to_json(indent=None)
    if case % 4 == 0:
        try:
            ps.diff(given, given, kinds="all").to_json(indent=None)
        except PlanescopeError as exc:
            if "differ" in str(exc):
                raise AssertionError("a mapping does not fit itself") from exc


def _made(told: Any, known: dict[str, Any], depth: int) -> Any:
    """Make what a part of the text tells."""
    if isinstance(told, dict):
        plain: dict[Any, Any] = {}
        kind = told.get("$kind", "")
        if kind == "loop":
            plain["itself"] = plain
        for key, part in told.items():
            if key != "$kind":
                known[key] = made = _made(part, known, depth + 1)
                is_number = kind == "numbers" and key.isdecimal() and len(key) < 20
                plain[int(key) if is_number else key] = made
        makers = {
            "named": _Named, "ordered": collections.OrderedDict, "boxed": _Boxed,
            "proxy": types.MappingProxyType, "default": lambda each: collections.ChainMap(each),
        }  # fmt: skip
        return makers[kind](plain) if isinstance(kind, str) and kind in makers else plain
    if isinstance(told, list):
        made = [_made(part, known, depth + 1) for part in told]
        return tuple(made) if depth % 2 else made
    if isinstance(told, str):
        return known.get(told[1:]) if told.startswith("@") else _array(told.split(), told)
    return told


def _array(words: list[str], told: str) -> Any:
    """Make the array that words tell; other text is itself."""
    extents = [int(word) for word in words[1:] if word.isdecimal() and len(word) < 20]
    dtype = _dtype(words[0]) if words else None
    if dtype is None or len(extents) > 40:
        return told
    count = int(np.prod(extents, dtype=object)) if extents else 1
    one = np.ones((), np.float32).astype(dtype)
    if count > _MOST or max(extents, default=0) > _MOST:
        return told
    if count > _MAX_ELEMENTS:
        return np.broadcast_to(one, tuple(extents))
    drawn = np.random.default_rng(count).normal(size=tuple(extents))
    if "nan" in words and count:
        drawn.reshape(-1)[0] = np.nan
    if "large" in words:
        drawn *= 1e30
    with np.errstate(all="ignore"):
        array = drawn.astype(dtype)
    if "turned" in words:
        array = array.T
    return _Boxed(array) if "boxed" in words else array


def _dtype(word: str) -> np.dtype[Any] | None:
    known = {
        "bfloat16": ml_dtypes.bfloat16, "float8": ml_dtypes.float8_e4m3fn, "int4": ml_dtypes.int4,
        "object": object, "complex": complex, "bool": bool, "big": ">f4",
    }  # fmt: skip
    plain = ("float16", "float32", "float64", "int8", "int32", "int64", "uint8")
    return np.dtype(known[word]) if word in known else np.dtype(word) if word in plain else None


_NET = {
    "conv1.weight": "float32 4 3 3 3", "conv1.bias": "float32 4", "bn1.weight": "float32 4",
    "bn1.bias": "float32 4", "bn1.running_mean": "float32 4", "bn1.running_var": "float32 4",
    "bn1.num_batches_tracked": "int64", "conv2.weight": "float32 4 4 3 3",
    "up.weight": "float32 4 2 2 2", "up.bias": "float32 2", "fc.weight": "float32 5 8",
    "fc.bias": "float32 5",
}  # fmt: skip
_FLAX = {
    "params": {
        "Conv_0": {"kernel": "float32 3 3 3 4", "bias": "float32 4"},
        "BatchNorm_0": {"scale": "float32 4", "bias": "float32 4"},
        "Dense_0": {"kernel": "float32 16 5 boxed", "bias": "float32 5 boxed"},
    },
    "batch_stats": {"BatchNorm_0": {"mean": "float32 4", "var": "float32 4"}},
}
_SEEDS: dict[str, Any] = {
    "flat": _NET,
    "flax": _FLAX,
    "checkpoint": {
        "epoch": 3, "model": _NET, "ema": {"$kind": "ordered", "params": _NET, "decay": 0.9},
        "optimizer": {"state": {"0": {"exp_avg": "float32 4 3 3 3"}}, "param_groups": [{"lr": 1}]},
        "args": {"name": "a", "sizes": [3, 4]},
    },
    "haiku": {
        "$kind": "named", "net/~/conv": {"w": "float32 3 3 1 4", "b": "float32 4"},
        "net/~/norm": {"scale": "float32 1 1 1 4", "offset": "float32 1 1 1 4"},
        "net/~/norm/~/mean_ema": {"average": "float32 1 1 1 4", "hidden": "float32 1 1 1 4"},
        "net/~/norm/~/var_ema": {"average": "float32 1 1 1 4", "hidden": "float32 1 1 1 4"},
    },
    "lists": {
        "layers": [["float32 8 4", "float32 4"], ["float32 4 2", "float32 2"]], "b": "float32 1",
    },
    "kinds": {
        "$kind": "numbers", "0": {"weight": "bfloat16 2 2 3 3"}, "1": {"weight": "float8 2 2 3 3"},
        "2": {"$kind": "loop", "weight": "float16 3 4 turned"}, "3": "@0", "4": {"w": "big 3 2 2"},
        "5": {"$kind": "boxed", "weight": "int8 4 4"}, "6": "float32 2 2 3 3 nan",
        "7": {"$kind": "proxy", "weight": "float32 2 1 2 2 2 large"}, "8": "object 2 3",
        "9": {"$kind": "default", "weight": "complex 2 3"},
    },
    "adapters": {
        "conv.weight": "float32 4 3 3 3", "lin.weight": "float32 6 4", "lin.lora_A.weight":
        "float32 2 4", "lin.lora_B.weight": "float32 6 2", "g.weight_g": "float32 4 1 1 1",
        "g.weight_v": "float32 4 3 3 3", "s.weight_orig": "float32 4 4", "s.weight_mask":
        "float32 4 4", "r.weight_ih_l0": "float32 12 3", "r.weight_hh_l0": "float32 12 3",
    },
}  # fmt: skip


def _redrawn(rng: random.Random) -> Any:
    """Change some parts of a seed: names, extents, types, places; or share and nest them."""
    told = copy.deepcopy(rng.choice(list(_SEEDS.values())))
    for _ in range(rng.choice((1, 1, 2, 3, 5, 9))):
        held = list(_dictionaries(told))
        one = rng.choice(held)
        keys = list(one)
        if not keys:
            continue
        key, other = rng.choice(keys), rng.choice(_NAMES)
        part = one[key]
        match rng.randrange(7):
            case 0:
                one[other] = one.pop(key)
            case 1 if isinstance(part, str) and part.split():
                words = part.split()
                words.insert(rng.randrange(1, len(words) + 1), str(rng.choice(_EXTENTS)))
                one[key] = " ".join(words)
            case 2 if isinstance(part, str) and part.split():
                words = part.split()
                words[rng.randrange(len(words))] = rng.choice((*_TYPES, *map(str, _EXTENTS)))
                one[key] = " ".join(words)
            case 3:
                one[other] = f"@{rng.choice(keys)}"
            case 4:
                one[key] = {other: part}
            case 5:
                rng.choice(held)[other] = copy.deepcopy(part)
            case _:
                one["$kind"] = rng.choice(_KINDS)
    return told


def _dictionaries(told: Any) -> Iterator[dict[str, Any]]:
    if isinstance(told, dict):
        yield told
        for part in told.values():
            yield from _dictionaries(part)


_EXTENTS = (0, 1, 1, 2, 3, 4, 4, 5, 7, 64, 1000, 1 << 18)
_TYPES = (
    "float16", "float32", "float64", "bfloat16", "float8", "int4", "int8", "uint8", "int64", "bool",
    "object", "complex", "big", "nan", "large", "turned", "boxed",
)  # fmt: skip
_KINDS = ("named", "ordered", "boxed", "proxy", "default", "loop", "numbers", "")
_NAMES = (
    "weight", "bias", "kernel", "w", "b", "weight_g", "weight_v", "weight_orig", "weight_mask",
    "lora_A.weight", "lora_B.weight", "lora_down.weight", "running_mean", "running_var", "scale",
    "model", "params", "ema", "state_dict", "batch_stats", "optimizer", "0", "1", "conv1.weight",
    "conv1.kernel", "bn1.weight", "up.weight", "qweight", "scales", "qzeros", "absmax",
    "_extra_state",
    "parametrizations.weight.original0", "parametrizations.weight.original1", "", "é.weight", "a/b",
    "weight_ih_l0", "weight_hh_l0", "in_proj_weight", "weight_scale", "depthwise_kernel", "\ud800",
)  # fmt: skip


def seeds() -> Seeds:
    """Yield networks and checkpoints as Python holds them."""
    for name, told in _SEEDS.items():
        yield name, {INPUT: json.dumps(told).encode()}
