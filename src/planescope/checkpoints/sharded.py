"""Checkpoints cut into shards: a JSON index maps each tensor to the file that holds it.

`model.safetensors.index.json` and `pytorch_model.bin.index.json`, as Hugging Face writes them.
"""

from __future__ import annotations

import os
from pathlib import Path, PureWindowsPath

from planescope.checkpoints import read_contents
from planescope.checkpoints.probe import Probe, probe
from planescope.checkpoints.safetensors import parse_object
from planescope.files.errors import CheckpointError
from planescope.files.reading import open_binary, read_exactly
from planescope.hyperplanes.layer import StateDict, Tensor

NAME = "sharded"

MAX_INDEX_BYTES = 100_000_000


def recognises(probe: Probe) -> bool:
    """Return whether the file is a JSON object with a weight map."""
    if not probe.head.lstrip().startswith(b"{") or probe.size > MAX_INDEX_BYTES:
        return False
    return b'"weight_map"' in read_exactly(probe.path, 0, probe.size)


def read(path: Path) -> StateDict:
    """Describe the tensors of all shards; the header of each is read once.

    Raises
    ------
    CheckpointError
        If the index is damaged or points outside its folder, or a shard is missing, damaged or
        without a tensor that the index promises.
    """
    weight_map = _weight_map(path)
    tensors: dict[str, Tensor] = {}
    in_order = True
    for shard in sorted(set(weight_map.values())):
        contents = _read_shard(path, shard)
        in_order &= contents.in_order
        # In the shard's own order: whoever wrote the index sorted it by name.
        tensors |= {
            name: tensor
            for name, tensor in contents.tensors.items()
            if weight_map.get(name) == shard
        }
    for name, shard in weight_map.items():
        if name not in tensors:
            raise CheckpointError(
                f"{path}: tensor {name!r} is not in {shard}, where the index has it; "
                "get the index and its shards again, together"
            )
    return StateDict(tensors=tensors, in_order=in_order)


def shard_names(path: Path) -> list[str]:
    """Return the names of an index's shards, relative to its folder and never outside of it.

    Raises
    ------
    CheckpointError
        If the index is damaged or points outside its folder.
    """
    return sorted(set(_weight_map(path).values()))


def files(path: Path) -> list[Path]:
    """List the index and its shards: all files that make the checkpoint."""
    return [path, *(path.parent / name for name in shard_names(path))]


def _weight_map(path: Path) -> dict[str, str]:
    with open_binary(path) as file:
        size = os.fstat(file.fileno()).st_size
    if size > MAX_INDEX_BYTES:
        raise CheckpointError(f"{path}: {size} bytes are too long for an index; is it a model?")
    index = parse_object(read_exactly(path, 0, size), f"{path}: the index")
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{path}: the index has no weight_map; get it again")
    for shard in weight_map.values():
        if not isinstance(shard, str) or not stays_inside(shard):
            raise CheckpointError(
                f"{path}: the index names the shard {shard!r:.80}, which is no file of its own "
                "folder; do not trust it, get it again from its author"
            )
    return weight_map


def stays_inside(name: str) -> bool:
    """Return whether a relative name cannot leave its folder, on any system.

    Links are not followed: the hub's cache is made of links, and an index cannot make one.
    """
    # Windows takes both slashes and has drives: what is safe there is safe everywhere.
    pure = PureWindowsPath(name)
    inside = bool(pure.parts) and not pure.anchor and ".." not in pure.parts
    # One shard by many spellings, ./a and .//a, would be read as many times.
    return inside and name.isprintable() and pure.as_posix() == name


def _read_shard(index: Path, name: str) -> StateDict:
    path = index.parent / name
    if not os.path.exists(path):  # noqa: PTH110 - of a name that is too long pathlib raises
        raise CheckpointError(
            f"{index}: its shard {name[:200]} is missing; put it beside the index, or get the "
            "whole model"
        )
    # An index that names an index, perhaps itself, would never end.
    contents = None if recognises(probe(path)) else read_contents(path)[1]
    if not isinstance(contents, StateDict):
        raise CheckpointError(
            f"{index}: its shard {name[:200]} holds no named tensors; get it again"
        )
    return contents
