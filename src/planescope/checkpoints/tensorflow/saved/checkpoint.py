"""Checkpoints of TensorFlow, version 2: an index of names, and files of their data.

`model.ckpt-1000.index` beside `model.ckpt-1000.data-00000-of-00001`, and the `variables` of a
SavedModel. Names are those that the variables had when they were made; where the checkpoint tells
how the objects hang together, the order is that of the model's layers.
https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/protobuf/tensor_bundle.proto
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from planescope.checkpoints.arrays.raw import ITEM_SIZES, decode
from planescope.checkpoints.protobuf import BYTES, Field, Span, WireBytes, WireFile
from planescope.checkpoints.tensorflow.saved.table import crc32c, is_table, read_table, unmasked
from planescope.checkpoints.tensorflow.saved.variables import as_state_dict
from planescope.checkpoints.tensorflow.tensors import DTYPES, shape_at
from planescope.files.errors import CheckpointError
from planescope.files.reading import open_binary, read_exactly
from planescope.hyperplanes.layer import Skipped, StateDict, Tensor

if TYPE_CHECKING:
    from planescope.checkpoints.probe import Probe

NAME = "tensorflow-checkpoint"

_OBJECTS = "_CHECKPOINTABLE_OBJECT_GRAPH"
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_NO_VARIABLE = ("/.OPTIMIZER_SLOT/", "/.ATTRIBUTES/OBJECT_CONFIG_JSON")
_STRING = 7
# A description of more objects than this is no model's.
_MAX_OBJECT_BYTES = 1 << 27

_DATA = re.compile(r"(.*)\.data-\d{5}-of-\d{5}")


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor, as its BundleEntryProto describes it."""

    data_type: int
    shape: tuple[int, ...] | None
    shard: int
    offset: int
    size: int
    checksum: int
    in_slices: bool


@dataclass(frozen=True)
class Variables:
    """The variables of a checkpoint.

    Attributes
    ----------
    tensors : dict of str to Tensor
        By key, sorted.
    names : dict of str to str
        What each was called when it was made, by key, where the checkpoint tells and no other was
        called so.
    objects : dict of int to str
        Keys by the numbers of the objects that have them as their value.
    skipped : tuple of Skipped
        What cannot be read.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    objects: dict[int, str] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()


def recognises(probe: Probe) -> bool:
    """Tell an index by how it ends, and a data file by its name: its content tells nothing."""
    return _DATA.fullmatch(probe.path.name) is not None or is_table(probe.path)


def read(path: Path) -> StateDict:
    """Describe the variables of a checkpoint.

    Raises
    ------
    CheckpointError
        If a file is missing or damaged.
    """
    index = _index_beside(path)
    if index is None and _DATA.fullmatch(path.name):
        raise CheckpointError(
            f"{path}: holds the data of a TensorFlow checkpoint; put the .index file beside it, "
            "which says what they are"
        )
    found = variables_at(index or path)
    return as_state_dict(found.tensors, found.names, found.skipped)


def files(path: Path) -> list[Path]:
    """List the index and the files of data: all that make the checkpoint."""
    index = _index_beside(path) or path
    entries, count = _entries(index)
    shards = {entry.shard for entry in entries.values()}
    named = (_data_file(index, shard, count) for shard in sorted(shards))
    # One that is missing is told where it is wanted.
    return [index, *(path for path in named if path.is_file())]


def variables_at(index: Path) -> Variables:
    """Describe what a checkpoint holds.

    Raises
    ------
    CheckpointError
        If a file is missing or damaged.
    """
    entries, shards = _entries(index)
    objects = entries.pop(_OBJECTS, None)
    told = [] if objects is None else list(_objects(index, objects, shards))
    counts = Counter(name for name in {key: name for _, key, name in told}.values())
    tensors: dict[str, Tensor] = {}
    skipped: list[Skipped] = []
    sizes: dict[int, int] = {}
    for key, entry in entries.items():
        if any(part in key for part in _NO_VARIABLE) or entry.data_type not in DTYPES:
            continue
        name = key.removesuffix(_VALUE)
        if entry.in_slices:
            reason = "it is stored in slices; save it whole"
            skipped.append(Skipped(name=name, reason=reason))
            continue
        tensors[name] = _tensor(index, key, entry, shards, sizes)
    return Variables(
        tensors=tensors,
        names={key: name for _, key, name in told if name and counts[name] == 1},
        objects={number: key for number, key, _ in told},
        skipped=tuple(skipped),
    )


def _index_beside(path: Path) -> Path | None:
    match = _DATA.fullmatch(path.name)
    index = path.with_name(f"{match[1]}.index") if match else None
    return index if index is not None and index.is_file() else None


def _entries(index: Path) -> tuple[dict[str, _Entry], int]:
    """Read what the index tells of each tensor, and the number of files that hold them."""
    table = read_table(index)
    header = table.pop(b"", None)
    if header is None:
        raise CheckpointError(f"{index}: an index without a header; is it a checkpoint's?")
    shards = 1
    with WireBytes(index, header) as wire:
        for part in wire.fields(wire.span):
            if part.number == 1 and part.wire == BYTES:
                raise CheckpointError(
                    f"{index}: is a TensorFlow checkpoint of version 1; load it in TensorFlow and "
                    "save it again by tf.compat.v1.train.Saver, which writes version 2"
                )
            if part.number == 1:
                shards = part.value
            if part.number == 2 and part.value:
                raise CheckpointError(
                    f"{index}: was written on a big-endian machine; save it again on another"
                )
    values = b"".join(table.values())
    entries: dict[str, _Entry] = {}
    with WireBytes(index, values) as wire:
        begin = 0
        for key, value in table.items():
            span = (begin, begin + len(value))
            begin = span[1]
            # The keys of slices are packed numbers; what they make up has a key of its own.
            if not key.startswith(b"\0"):
                entries[key.decode(errors="replace")] = _entry_at(wire, span)
    return entries, shards


def _entry_at(wire: WireFile, span: Span) -> _Entry:
    fields: dict[int, Field] = {}
    for part in wire.fields(span):
        fields[part.number] = part
    numbers = {n: part.value for n, part in fields.items() if part.wire != BYTES}
    shape = fields.get(2)
    return _Entry(
        data_type=numbers.get(1, 0),
        shape=shape_at(wire, shape) if shape and shape.wire == BYTES else (),
        shard=numbers.get(3, 0),
        offset=numbers.get(4, 0),
        size=numbers.get(5, 0),
        checksum=numbers.get(6, 0),
        in_slices=7 in fields,
    )


def _data_file(index: Path, shard: int, shards: int) -> Path:
    return index.with_name(f"{index.name.removesuffix('.index')}.data-{shard:05d}-of-{shards:05d}")


def _place(
    index: Path, key: str, entry: _Entry, shards: int, sizes: dict[int, int]
) -> tuple[Path, int, int]:
    """Tell where an entry's bytes lie: file, first byte, and first byte behind them."""
    if not 0 <= entry.shard < shards < 100_000:
        raise CheckpointError(
            f"{index}: {key!r} is in file {entry.shard} of {shards}; the index is damaged, get it "
            "again"
        )
    path = _data_file(index, entry.shard, shards)
    if entry.shard not in sizes:
        if not path.is_file():
            raise CheckpointError(
                f"{index}: {path.name} is missing, which holds its data; put it beside the index"
            )
        with open_binary(path) as file:
            sizes[entry.shard] = os.fstat(file.fileno()).st_size
    end = entry.offset + entry.size
    if end > sizes[entry.shard]:
        raise CheckpointError(
            f"{index}: {key!r} lies in bytes {entry.offset} to {end} of {path.name}, which has "
            f"{sizes[entry.shard]}; is that download complete?"
        )
    return path, entry.offset, end


def _tensor(index: Path, key: str, entry: _Entry, shards: int, sizes: dict[int, int]) -> Tensor:
    path, begin, end = _place(index, key, entry, shards, sizes)
    shape, dtype = entry.shape, DTYPES[entry.data_type]
    if shape is None or any(extent < 0 for extent in shape):
        raise CheckpointError(f"{index}: {key!r} has an impossible shape; get the index again")
    wanted = math.prod(shape) * ITEM_SIZES[dtype]
    if end - begin != wanted:
        raise CheckpointError(
            f"{index}: {key!r} has {end - begin} bytes where shape {shape} of {dtype} takes "
            f"{wanted}; get the checkpoint again"
        )

    def read() -> np.ndarray:
        data = read_exactly(path, begin, end - begin)
        if crc32c(data) != unmasked(entry.checksum):
            raise CheckpointError(
                f"{path}: the checksum of {key!r} is wrong: its bytes are damaged; get the "
                "checkpoint again"
            )
        return decode(np.frombuffer(bytearray(data), dtype=np.uint8), dtype).reshape(shape)

    return Tensor(shape, dtype, read, digest=lambda: entry.checksum)


def _objects(index: Path, entry: _Entry, shards: int) -> Iterator[tuple[int, str, str]]:
    """Read the graph of objects: number of each variable, its key, what it was called when made."""
    if entry.data_type != _STRING or entry.shape != () or entry.size > _MAX_OBJECT_BYTES:
        return
    path, begin, end = _place(index, _OBJECTS, entry, shards, {})
    with WireFile(path) as wire:
        # A length, a checksum of it, and the text.
        length = _length_at(wire, (begin, end))
        nodes = wire.fields((end - length, end)) if length is not None else iter(())
        for number, node in enumerate(part for part in nodes if part.number == 1):
            for part in wire.fields(node.span) if node.wire == BYTES else ():
                if part.number == 2 and part.wire == BYTES:
                    called = {
                        each.number: wire.text(each)
                        for each in wire.fields(part.span)
                        if each.wire == BYTES
                    }
                    if key := called.get(3):
                        yield number, key.removesuffix(_VALUE), called.get(2, "")


def _length_at(wire: WireFile, span: Span) -> int | None:
    begin, end = span
    value = 0
    for count, byte in enumerate(wire.payload((begin, min(begin + 10, end)))):
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            return value if begin + count + 1 + 4 + value == end else None
    return None
