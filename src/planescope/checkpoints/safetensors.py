"""safetensors: the length of a JSON header, the header, then the bytes of all tensors.

As strict as the official library, so that no file means one thing there and another here.
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections import Counter
from typing import TYPE_CHECKING, Any

from planescope.checkpoints.arrays.raw import ITEM_SIZES, MAX_DIMENSIONS, stored_tensor
from planescope.files.errors import CheckpointError
from planescope.files.reading import open_binary, read_exactly
from planescope.hyperplanes.layer import StateDict, Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from planescope.checkpoints.probe import Probe

NAME = "safetensors"

# The official library's own limit.
MAX_HEADER_BYTES = 100_000_000

DTYPES = {
    "BOOL": "bool",
    "I8": "int8",
    "U8": "uint8",
    "I16": "int16",
    "U16": "uint16",
    "I32": "int32",
    "U32": "uint32",
    "I64": "int64",
    "U64": "uint64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
}

_DAMAGED = "the file is damaged, get it again"


def recognises(probe: Probe) -> bool:
    """Return whether the file begins as safetensors does: a credible length, then an object.

    A download cut inside the header is recognised by the quote that opens its first key, so that
    it can be called truncated rather than unknown.
    """
    length = int.from_bytes(probe.head[:8], "little")
    if not 2 <= length <= MAX_HEADER_BYTES or probe.head[8:9] != b"{":
        return False
    return length <= probe.size - 8 or probe.head[8:].startswith(b'{"')


def read(path: Path) -> StateDict:
    """Describe the tensors of a file, in the order of its header.

    Raises
    ------
    CheckpointError
        If the header is damaged, claims more than the file holds, or names an unknown dtype.
    """
    header, metadata, begin = _header(path)
    spans: list[tuple[int, int, str]] = []
    tensors = {}
    for name, entry in header.items():
        tensors[name], span = _tensor(path, name, entry, begin)
        spans.append((*span, name))
    _check_cover(path, spans, begin)
    return StateDict(tensors=_with_aliases(path, tensors, metadata), in_order=False)


def read_metadata(path: Path, /) -> dict[str, str]:
    """Return the texts that a file's writer put beside its tensors, by name.

    Raises
    ------
    CheckpointError
        If the header is damaged, or claims more than the file holds.
    """
    return _header(path)[1]


def _header(path: Path) -> tuple[dict[str, Any], dict[str, str], int]:
    """Return the entries of the tensors, the metadata, and where the data begin."""
    length = int.from_bytes(read_exactly(path, 0, 8), "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"{path}: claims a header of {length} bytes; {_DAMAGED}")
    header = parse_object(read_exactly(path, 8, length), f"{path}: the header")
    metadata = header.pop("__metadata__", None)
    _check_metadata(path, metadata)
    return header, metadata or {}, 8 + length


def _with_aliases(
    path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str]
) -> dict[str, Tensor]:
    """Add the names that were left out since their tensor has another; `save_model` notes them."""
    for name, kept in metadata.items():
        if name not in tensors and kept in tensors:
            one = dataclasses.replace(tensors[kept], identity=(str(path), kept))
            tensors[kept] = tensors[name] = one
    return tensors


def parse_object(raw: bytes, what: str) -> dict[str, Any]:
    """Parse a JSON object that nobody vouches for.

    Parameters
    ----------
    what : str
        Subject of the error's sentence.

    Raises
    ------
    CheckpointError
        If it is not UTF-8, not JSON, not an object, nested without end, or names a key twice.
    """
    try:
        parsed = json.loads(raw.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as exc:
        raise CheckpointError(f"{what} is not valid JSON ({exc}); {_DAMAGED}") from exc
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{what} is not a JSON object; {_DAMAGED}")
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"it names {twice!r:.60} twice")
    # An escaped lone surrogate is valid JSON, yet no text: nothing could print it.
    "".join(keys).encode()
    return keys


def _check_metadata(path: Path, metadata: Any) -> None:
    texts = metadata.values() if isinstance(metadata, dict) else [None]
    if metadata is not None and not all(isinstance(text, str) for text in texts):
        raise CheckpointError(f"{path}: __metadata__ does not map text to text; {_DAMAGED}")


def _tensor(path: Path, name: str, entry: Any, begin: int) -> tuple[Tensor, tuple[int, int]]:
    """Make a tensor of its entry in the header; with it, its span of the data."""
    where = f"{path}: tensor {name!r}"
    match entry:
        case {"dtype": str(spelling), "shape": [*shape], "data_offsets": [start, end]}:
            pass
        case _:
            raise CheckpointError(f"{where} lacks a dtype, a shape or two data_offsets; {_DAMAGED}")
    # `type`, because True is an int too.
    if not all(type(n) is int and 0 <= n < 1 << 63 for n in (*shape, start, end)):
        raise CheckpointError(f"{where} has a shape or offset that is no count; {_DAMAGED}")
    dtype = DTYPES.get(spelling)
    if dtype is None:
        raise CheckpointError(
            f"{where} is of the unknown dtype {spelling!r:.40}; convert it to one of "
            f"{', '.join(DTYPES)}"
        )
    # NumPy refuses the shape of an empty array too where the other extents overflow.
    extent = math.prod(filter(None, shape[:MAX_DIMENSIONS])) * ITEM_SIZES[dtype]
    if len(shape) > MAX_DIMENSIONS or extent >= 1 << 63:
        raise CheckpointError(f"{where} has an impossible shape; {_DAMAGED}")
    size = math.prod(shape) * ITEM_SIZES[dtype]
    if size != end - start:
        raise CheckpointError(
            f"{where} of shape {shape} and dtype {spelling} takes {size} bytes, but its offsets "
            f"hold {end - start}; {_DAMAGED}"
        )
    return stored_tensor(path, begin + start, dtype, tuple(shape)), (start, end)


def _check_cover(path: Path, spans: list[tuple[int, int, str]], begin: int) -> None:
    """Refuse overlaps, holes, and data that end elsewhere than the file."""
    due = 0
    for start, end, name in sorted(spans):
        if start != due:
            fault = "overlaps the tensor before it" if start < due else "leaves a hole before it"
            raise CheckpointError(
                f"{path}: tensor {name!r} {fault}: it starts at byte {start} of the data, not at "
                f"{due}; {_DAMAGED}"
            )
        due = end
    with open_binary(path) as file:
        size = os.fstat(file.fileno()).st_size - begin
    if size != due:
        raise CheckpointError(
            f"{path}: the header describes {due} bytes of data, but the file has {size}; "
            "is the download complete?"
        )
