"""Programs of `torch.export`, ``.pt2``: a graph of ATen operations, and its weights.

Up to torch 2.7 the weights are a torch file within the archive; since then each is a member.
Schema: torch/_export/serde/schema.py and torch/export/pt2_archive/constants.py.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from planescope.checkpoints.arrays.raw import ITEM_SIZES, MAX_DIMENSIONS, stored_tensor
from planescope.checkpoints.probe import Probe
from planescope.checkpoints.torch import export_graph
from planescope.checkpoints.torch.aten import DTYPES
from planescope.checkpoints.torch.zip import state_dict_of
from planescope.files.errors import CheckpointError
from planescope.files.zips import Archive
from planescope.hyperplanes.layer import Described, Layer, Tensor
from planescope.networks.state.layout import named

NAME = "torch-export"

# Where the program is told, since torch 2.8 below a folder of the archive's own name.
_OLD_PROGRAM, _OLD_WEIGHTS = "serialized_exported_program.json", "serialized_state_dict.pt"
_PROGRAMS, _WEIGHTS = "models/", "data/weights/"

# A graph has about a kilobyte for each operation, most of it stack traces.
JSON_BYTES = 1 << 25


def recognises(probe: Probe) -> bool:
    """Tell an archive by the names of its members."""
    return bool(_programs(probe.zip_names))


def read(path: Path) -> Described:
    """Describe the layers of a program, in the order of its graph, and what was left out.

    Raises
    ------
    CheckpointError
        If the archive is damaged, or holds several programs.
    """
    archive = Archive(path)
    programs = _programs(archive.members)
    if len(programs) != 1:
        raise CheckpointError(
            f"{path}: holds {len(programs)} programs; export the one to be measured alone"
        )
    program = _json(archive, programs[0])
    tensors, notes = _tensors(archive, programs[0])
    try:
        layers, skipped, of_calls = export_graph.described(program, tensors)
    except (
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        ValueError,
        RecursionError,
    ) as exc:
        raise CheckpointError(
            f"{path}: the program makes no sense ({type(exc).__name__}: {exc}); "
            "is the download complete?"
        ) from exc
    layers, told = _with_other_names(layers, tensors)
    return Described(layers=tuple(layers), skipped=tuple(skipped), notes=(*notes, *told, *of_calls))


def _with_other_names(
    layers: Sequence[Layer], tensors: Mapping[str, Tensor]
) -> tuple[list[Layer], list[str]]:
    """Add the other names of weights: the graph calls all that share one by one of them."""
    same: defaultdict[Hashable, list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        if tensor.identity is not None and name.endswith(".weight"):
            same[tensor.identity].append(name.removesuffix(".weight"))
    others = {
        name: tuple(each for each in names if each != name)
        for names in same.values()
        for name in names
    }
    listed = {layer.name for layer in layers}
    found, notes = [], []
    for layer in layers:
        aliases = tuple(each for each in others.get(layer.name, ()) if each not in listed)
        found.append(dataclasses.replace(layer, aliases=aliases) if aliases else layer)
        if aliases:
            notes.append(f"{layer.name} also stands under {named(aliases)}: one layer")
    return found, notes


def _programs(names: Iterable[str]) -> list[str]:
    """Return the members that are programs."""
    return [
        name
        for name in names
        if name == _OLD_PROGRAM
        or (name.partition("/")[2].startswith(_PROGRAMS) and name.endswith(".json"))
    ]


def _json(archive: Archive, name: str) -> Any:
    """Read a member of JSON text."""
    where = f"{archive.path}: member {name[:200]!r}"
    if name not in archive.members:
        raise CheckpointError(f"{where} is missing from the archive; is the file complete?")
    # Packed, a few kilobytes could hold lists by the million.
    if not archive.is_stored(name):
        raise CheckpointError(f"{where} is compressed, which torch never does; export it again")
    try:
        return json.loads(archive.read(name, limit=JSON_BYTES))
    except (ValueError, RecursionError) as exc:
        raise CheckpointError(f"{where} is no valid JSON; is the download complete?") from exc


def _tensors(archive: Archive, program: str) -> tuple[Mapping[str, Tensor], list[str]]:
    """Return the parameters and buffers by name, and notes on what could not be read."""
    if program == _OLD_PROGRAM:
        if _OLD_WEIGHTS not in archive.members or not archive.is_stored(_OLD_WEIGHTS):
            raise CheckpointError(
                f"{archive.path}: holds no {_OLD_WEIGHTS} as torch writes it; is the file complete?"
            )
        size = archive.members[_OLD_WEIGHTS].file_size
        within = Archive(archive.path, begin=archive.offset(_OLD_WEIGHTS), size=size)
        return state_dict_of(within).tensors, []
    root = program.partition("/")[0]
    name = program.rpartition("/")[2].removesuffix(".json")
    described = _json(archive, f"{root}/{_WEIGHTS}{name}_weights_config.json")
    big_endian = (
        f"{root}/byteorder" in archive.members
        and archive.read(f"{root}/byteorder", limit=16) == b"big"
    )
    tensors, unread = {}, []
    try:
        for key, value in described["config"].items():
            member = f"{root}/{_WEIGHTS}{value['path_name']}"
            if value["use_pickle"]:
                unread.append(key)
            else:
                meta = value["tensor_meta"]
                tensors[key] = _tensor(archive, member, key, meta, big_endian=big_endian)
    except (KeyError, TypeError, AttributeError) as exc:
        raise CheckpointError(
            f"{archive.path}: the weights are not described as torch describes them; "
            "is the download complete?"
        ) from exc
    pickled = [f"{len(unread)} weights of classes of their own could not be read"] if unread else []
    return tensors, pickled


def _tensor(
    archive: Archive, member: str, name: str, meta: Mapping[str, Any], *, big_endian: bool
) -> Tensor:
    where = f"{archive.path}: tensor {name[:200]!r}"
    if member not in archive.members or not archive.is_stored(member):
        raise CheckpointError(f"{where} is missing from the archive; is the file complete?")
    dtype = DTYPES.get(meta["dtype"], "")
    if dtype not in ITEM_SIZES:
        raise CheckpointError(f"{where} has an unknown type; export the model in float32")
    shape, strides = (tuple(each["as_int"] for each in meta[key]) for key in ("sizes", "strides"))
    offset = meta["storage_offset"]["as_int"]
    if (
        len(shape) != len(strides)
        or len(shape) > MAX_DIMENSIONS
        or not all(type(n) is int and 0 <= n < 1 << 59 for n in (offset, *shape, *strides))
        or math.prod(n or 1 for n in shape) >= 1 << 59
    ):
        raise CheckpointError(f"{where} claims an impossible shape; is the download complete?")
    width, size = ITEM_SIZES[dtype], archive.members[member].file_size
    last = sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + 1
    if math.prod(shape) * width > size or (offset + (last if all(shape) else 0)) * width > size:
        raise CheckpointError(
            f"{where} claims {dtype} values of shape {shape}, but has {size} bytes; "
            "is the file complete?"
        )
    plain = strides == _c_order(shape)
    stored = stored_tensor(
        archive.path,
        archive.offset(member) + offset * width,
        dtype,
        shape,
        strides=None if plain else strides,
        big_endian=big_endian,
    )
    order = "C" if plain else strides
    return dataclasses.replace(stored, identity=(member, offset, math.prod(shape), order))


def _c_order(shape: tuple[int, ...]) -> tuple[int, ...]:
    behind = itertools.accumulate(reversed(shape[1:]), lambda a, b: a * b, initial=1)
    return tuple(reversed(list(behind))) if shape else ()
