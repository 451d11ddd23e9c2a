"""NumPy's `.npz`: a zip archive of named arrays. Nothing in it is ever unpickled."""

from __future__ import annotations

import ast
import dataclasses
import functools
import itertools
import math
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from planescope.checkpoints.arrays.raw import ITEM_SIZES, MAX_DIMENSIONS, decode, stored_tensor
from planescope.checkpoints.probe import Probe, probe
from planescope.files.errors import CheckpointError
from planescope.files.reading import read_exactly
from planescope.files.zips import Archive
from planescope.hyperplanes.layer import StateDict, Tensor

NAME = "npz"

_MAGIC = b"\x93NUMPY"
_SUFFIX = ".npy"

# NumPy pads the header of an array of numbers to 128 bytes; 64 dimensions would take some 1400.
HEADER_BYTES = 4096

# What NumPy writes of a type that has no fields: byte order, kind and size, the unit of a time.
_DESCR = re.compile(r"[<>|=][biufcSUVmMO]\d*(\[\w+\])?")


def recognises(probe: Probe) -> bool:
    """Tell a zip archive of arrays alone; a single array too, which `read` then refuses."""
    names = probe.zip_names
    arrays = bool(names) and all(name.endswith(_SUFFIX) for name in names)
    return arrays or probe.head.startswith(_MAGIC)


def read(path: Path) -> StateDict:
    """Describe the arrays of an `.npz` file by their names; those of text or times are left out.

    Raises
    ------
    CheckpointError
        If the file is damaged, or an array holds Python objects.
    """
    if probe(path).head.startswith(_MAGIC):
        raise CheckpointError(
            f"{path}: a single array without a name; save the weights of all layers with "
            "numpy.savez(file, **{name: array, ...})"
        )
    archive = Archive(path)
    tensors = {name.removesuffix(_SUFFIX): _tensor(archive, name) for name in archive.members}
    held = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    # The same array under two names is written twice; the archive keeps a checksum of each.
    held = {
        name: dataclasses.replace(tensor, digest=functools.partial(_checksum, archive, name))
        for name, tensor in held.items()
    }
    return StateDict(tensors=held, in_order=False)


def _checksum(archive: Archive, name: str) -> int:
    return archive.members[name + _SUFFIX].CRC


def _tensor(archive: Archive, member: str) -> Tensor | None:
    where = f"{archive.path}: array {member.removesuffix(_SUFFIX)!r}"
    begin, header = read_header(where, _head(archive, member))
    dtype = _dtype(where, header.get("descr"))
    if dtype.kind in "SUMm":
        return None
    name = str(dtype.newbyteorder("=").name)
    if name not in ITEM_SIZES:
        raise CheckpointError(
            f"{where} holds {name} values, which are no plain numbers; leave it out"
        )
    shape = _shape(where, header.get("shape"))
    size = archive.members[member].file_size
    if begin + math.prod(shape) * ITEM_SIZES[name] != size:
        raise CheckpointError(
            f"{where} claims {name} values of shape {shape}, but has {size - begin} bytes; "
            "is the download complete?"
        )
    columns_first = header.get("fortran_order") is True
    big_endian = dtype.str.startswith(">")
    if archive.is_stored(member):
        strides = tuple(itertools.accumulate((1, *shape[:-1]), lambda a, b: a * b))
        return stored_tensor(
            archive.path,
            archive.offset(member) + begin,
            name,
            shape,
            strides=strides[: len(shape)] if columns_first else None,
            big_endian=big_endian,
        )

    def inflate() -> np.ndarray:
        raw = np.frombuffer(archive.read(member), np.uint8, offset=begin)
        flat = decode(raw, name, big_endian=big_endian)
        return flat.reshape(shape, order="F" if columns_first else "C")

    return Tensor(shape, name, inflate)


def _head(archive: Archive, member: str) -> bytes:
    """Return the first bytes of a member, with all of its header, without inflating the rest."""
    info = archive.members[member]
    head = read_exactly(archive.path, archive.offset(member), min(info.compress_size, HEADER_BYTES))
    if info.compress_type == zipfile.ZIP_STORED:
        return head
    if info.compress_type != zipfile.ZIP_DEFLATED:
        return archive.read(member)  # which says what is the matter
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(head, HEADER_BYTES)
    except zlib.error as exc:
        raise CheckpointError(f"{archive.path}: member {member!r} is damaged: {exc}") from exc


def read_header(where: str, head: bytes) -> tuple[int, Mapping[str, Any]]:
    """Read the header: where the values begin, their type and shape."""
    # Version 1 has a length of 2 bytes, 2 and 3 have one of 4.
    width = 2 if head[6:7] == b"\x01" else 4
    begin = 8 + width + int.from_bytes(head[8 : 8 + width], "little")
    damaged = CheckpointError(f"{where} has no valid .npy header; is the download complete?")
    if not head.startswith(_MAGIC) or head[6:7] not in (b"\x01", b"\x02", b"\x03"):
        raise damaged
    if begin > len(head):
        raise damaged
    try:
        header = ast.literal_eval(head[8 + width : begin].decode("utf-8").strip())
    # What literal_eval raises on text that is no literal, or one that nests without end.
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as exc:
        raise damaged from exc
    if not isinstance(header, dict):
        raise damaged
    return begin, header


def _dtype(where: str, descr: object) -> np.dtype[Any]:
    if not isinstance(descr, str) or not _DESCR.fullmatch(descr):
        raise CheckpointError(f"{where} has elements that are no plain numbers; leave it out")
    try:
        dtype = np.dtype(descr)
    except TypeError as exc:
        raise CheckpointError(f"{where} has elements of an unknown type, {descr!r}") from exc
    if dtype.hasobject:
        raise CheckpointError(
            f"{where} holds Python objects, which are not unpickled; save the file without it"
        )
    return dtype


def _shape(where: str, shape: object) -> tuple[int, ...]:
    if (
        not isinstance(shape, tuple)
        or len(shape) > MAX_DIMENSIONS
        or not all(type(extent) is int and extent >= 0 for extent in shape)
        # NumPy refuses this even where another extent is 0.
        or math.prod(extent or 1 for extent in shape) >= 1 << 59
    ):
        raise CheckpointError(f"{where} claims an impossible shape; is the download complete?")
    return shape
