"""Bytes of a file to arrays: exact lengths, one table of element types."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from planescope.files.errors import CheckpointError
from planescope.files.reading import open_binary, read_exactly
from planescope.hyperplanes.layer import Tensor

# Bytes an element, by the name NumPy or ml_dtypes gives the type. One table for every format; the
# formats keep only their own spelling of these names.
ITEM_SIZES = {
    "bool": 1,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "uint16": 2,
    "int32": 4,
    "uint32": 4,
    "int64": 8,
    "uint64": 8,
    "float8_e4m3fn": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "complex64": 8,
    "complex128": 16,
}

# Enough of a tensor to tell it from another, nearly always.
DIGEST_BYTES = 256

# NumPy refuses arrays beyond this many dimensions; a header that claims more is a lie.
MAX_DIMENSIONS = 64


def stored_tensor(
    path: Path,
    offset: int,
    dtype: str,
    shape: tuple[int, ...],
    *,
    strides: tuple[int, ...] | None = None,
    big_endian: bool = False,
    finish: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Tensor:
    """Return the tensor whose elements lie in `path` from byte `offset` on; nothing is read yet.

    Parameters
    ----------
    strides : tuple of int, optional
        In elements, non-negative, of a layout other than C order; `offset` is then that of the
        first element. The caller has checked that all of it lies inside the file.
    finish : callable, optional
        Applied to what was read, to bring the filters to the first axis for example.
        The tensor's `shape` then is the caller's to set.
    """

    def read() -> np.ndarray:
        array = read_array(path, offset, dtype, shape, strides=strides, big_endian=big_endian)
        return array if finish is None else finish(array)

    def digest() -> bytes:
        length = math.prod(shape) * ITEM_SIZES[dtype]
        return read_exactly(path, offset, min(length, DIGEST_BYTES))

    return Tensor(shape, dtype, read, None, None if strides else digest)


def read_array(
    path: Path,
    offset: int,
    dtype: str,
    shape: tuple[int, ...],
    *,
    strides: tuple[int, ...] | None = None,
    big_endian: bool = False,
) -> np.ndarray:
    """Read one array from a file; bfloat16 and float8 come widened to float32."""
    if strides is None or math.prod(shape) == 0:
        count = math.prod(shape)
    else:
        count = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    length = count * ITEM_SIZES[dtype]
    with open_binary(path) as file:
        missing = offset + length - os.fstat(file.fileno()).st_size
        if missing <= 0:
            # Straight into its own array: `read` and then `frombuffer` would hold the bytes twice.
            raw = np.empty(length, dtype=np.uint8)
            file.seek(offset)
            missing = length - file.readinto(raw.data)  # type: ignore[attr-defined]
    if missing > 0:
        raise CheckpointError(
            f"{path}: ends {missing} bytes early, inside a tensor; is the download complete?"
        )
    flat = decode(raw, dtype, big_endian=big_endian)
    if strides is None or count == 0:
        return flat.reshape(shape)
    array = np.lib.stride_tricks.as_strided(
        flat, shape, tuple(s * flat.itemsize for s in strides), writeable=False
    )
    # Elements that lie one behind the other share no memory, so that whoever reads may have them.
    return flat.reshape(shape) if array.flags.c_contiguous else array


def decode(raw: np.ndarray, dtype: str, *, big_endian: bool = False) -> np.ndarray:
    """Return the elements of type `dtype` from an array of bytes, in native byte order.

    bfloat16 and float8 are widened to float32, which holds each of their values exactly.
    """
    if dtype == "bfloat16":
        # The upper half of a float32; a shift spares the import of ml_dtypes.
        half = raw.view(">u2" if big_endian else "<u2")
        widened = half.astype(np.uint32)
        widened <<= 16
        return widened.view(np.float32)
    if dtype.startswith("float8"):
        import ml_dtypes

        floats: np.ndarray = raw.view(getattr(ml_dtypes, dtype)).astype(np.float32)
        return floats
    stored = np.dtype(dtype).newbyteorder(">" if big_endian else "<")
    return raw.view(stored).astype(stored.newbyteorder("="), copy=False)
