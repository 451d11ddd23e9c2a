"""HDF5 files from strangers: which datasets there are, and their values.

HDF5 can name other files (external links, external storage, virtual datasets) and load filters from
shared libraries. None of that happens here. Of the ways in which it keeps things, those are read
that Keras and h5py choose unless told otherwise, and those of newer versions that are alike.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self

from planescope.checkpoints.arrays.raw import ITEM_SIZES, decode, stored_tensor
from planescope.checkpoints.hdf5_bytes import MAGIC, Objects
from planescope.checkpoints.hdf5_datasets import Chunk, Dataset, read_dataset, unpacked
from planescope.files.errors import CheckpointError
from planescope.files.reading import open_binary, size_of
from planescope.files.zips import BOMB_BYTES, BOMB_RATIO
from planescope.hyperplanes.layer import Tensor

if TYPE_CHECKING:
    import numpy as np

BLOCKS = (0, 512, 1024, 2048)  # where it may stand, behind a block of the user's

# Keras nests two levels for each model within a model; far deeper, paths would outgrow the file.
MAX_DEPTH = 64


@dataclass(frozen=True)
class Window:
    """The stretch of a file that is an HDF5 file.

    Attributes
    ----------
    inflated : bytes or None
        The HDF5 file itself where it had to be inflated out of `path`.
    """

    path: Path
    offset: int
    size: int
    inflated: bytes | None = None

    def open(self) -> BinaryIO:
        """Open what the window is in; it begins at `offset`."""
        return open_binary(self.path) if self.inflated is None else io.BytesIO(self.inflated)


@contextmanager
def _damage_refused(where: str) -> Iterator[None]:
    """Turn what damaged bytes raise into our own error."""
    try:
        yield
    except NotImplementedError as exc:
        raise CheckpointError(
            f"{where}: the file has {exc}, which is not read; rewrite it with h5repack --low=0 "
            "--high=0, or save the model with Keras"
        ) from exc
    except (ValueError, LookupError, OverflowError, struct.error, zlib.error) as exc:
        raise CheckpointError(
            f"{where}: the HDF5 file is damaged ({exc}); is the download complete?"
        ) from exc


class Hdf5:
    """An HDF5 file opened for reading; a context manager.

    Raises
    ------
    CheckpointError
        From every method, if the file is damaged or wants another file opened.
    """

    def __init__(self, window: Window) -> None:
        self.window = window
        self.path = window.path
        self._stream = window.open()
        self._base = 0
        self._objects = Objects(self._bytes, window.size)
        self._addresses: dict[str, int] = {}
        self._file_bytes = size_of(window.path)
        try:
            with _damage_refused(str(window.path)):
                self._base = next((at for at in BLOCKS if self._bytes(at, 8) == MAGIC), 0)
                self._addresses[""] = self._objects.root()
        except CheckpointError:
            self._stream.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def groups(self, *, without: str) -> dict[str, list[str]]:
        """Return the names of the datasets in each group, by the group's path; the root's is "".

        Groups at the root whose name begins with `without` are left out. A group that is linked
        from several places is listed at one of them, so that cycles end.
        """
        found: dict[str, list[str]] = {}
        seen = {self._addresses[""]}
        pending = [""]
        while pending:
            path = pending.pop()
            with _damage_refused(f"{self.window.path}: group /{path}"):
                found[path] = []
                below = []
                for name, address in self._links(path):
                    child = f"{path}/{name}" if path else name
                    if address in seen:
                        continue
                    if self._objects.is_dataset(address):
                        found[path].append(name)
                        self._addresses[child] = address
                    elif path or not name.startswith(without):
                        seen.add(address)
                        self._addresses[child] = address
                        below.append(child)
                pending += reversed(below)  # so that groups are taken in the order of the file
        return found

    def _links(self, path: str) -> list[tuple[str, int]]:
        """Return the names in a group, after a look at what each link is."""
        links = self._objects.links(self._addresses[path]) or []
        found = []
        for name, address in links:
            where = f"{self.window.path}: link {path}/{name.decode(errors='replace')}"
            if address is None:
                raise CheckpointError(
                    f"{where} points elsewhere, perhaps to another file, and is not followed; "
                    "copy the weights themselves into the file"
                )
            # Such a name would be taken for a path.
            if b"/" in name or name in (b".", b""):
                raise CheckpointError(f"{where} has a name that is a path")
            found.append((name.decode(), address))
        if found and path.count("/") + 1 >= MAX_DEPTH:
            raise CheckpointError(f"{self.window.path}: groups nest more than {MAX_DEPTH} deep")
        return found

    def texts(self, path: str, attribute: str) -> list[str] | None:
        """Return the texts of an attribute, a single one as a list of one; None without it."""
        with _damage_refused(f"{self.window.path}: attribute {attribute!r} of /{path}"):
            return self._objects.texts(self._addresses[path], attribute)

    def _bytes(self, address: int, length: int) -> bytes:
        begin = self._base + address
        if begin + length > self.window.size:
            raise ValueError("an address outside the file")
        self._stream.seek(self.window.offset + begin)
        return self._stream.read(length)

    def tensor(self, key: str) -> Tensor:
        """Describe a dataset that `groups` has listed; nothing of it is read yet."""
        where = f"{self.window.path}: {key}"
        dataset, dtype = self._dataset(key, where)
        if dtype not in ITEM_SIZES or dataset.shape is None:
            raise CheckpointError(
                f"{where} holds {dtype} values and is no tensor; save the weights as numbers"
            )
        return self._tensor(where, dataset, dtype, dataset.shape)

    def tensor_of_numbers(self, key: str) -> Tensor | None:
        """Describe a dataset; None for one of texts, records or nothing."""
        where = f"{self.window.path}: {key}"
        dataset, dtype = self._dataset(key, where)
        if dtype not in ITEM_SIZES or dataset.shape is None:
            return None
        return self._tensor(where, dataset, dtype, dataset.shape)

    def _dataset(self, key: str, where: str) -> tuple[Dataset, str]:
        """Return the dataset and the type of its values."""
        with _damage_refused(where):
            dataset = read_dataset(self._objects, self._addresses[key], where)
            # Keras stores two opaque bytes, as HDF5 had no bfloat16, and says so beside them.
            if dataset.dtype == "void16" and self.texts(key, "dtype") == ["bfloat16"]:
                return dataset, "bfloat16"
        return dataset, dataset.dtype

    def _tensor(self, where: str, dataset: Dataset, dtype: str, shape: tuple[int, ...]) -> Tensor:
        width = ITEM_SIZES[dtype]
        claimed = width * max(math.prod(shape), math.prod(dataset.chunk_shape or (0,)))
        # Of a file that is packed as a whole, no more than that.
        stored = min(sum(chunk.size for chunk in dataset.chunks), self._file_bytes)
        if claimed > max(BOMB_BYTES, BOMB_RATIO * stored):
            raise CheckpointError(
                f"{where} claims {claimed} bytes, but {stored} are stored; refused as a bomb"
            )
        if any(
            self._base + chunk.begin + chunk.size > self.window.size for chunk in dataset.chunks
        ):
            raise CheckpointError(f"{where} lies outside the file; is the download complete?")
        if dataset.chunk_shape is None and self.window.inflated is None and dataset.chunks:
            [whole] = dataset.chunks
            return stored_tensor(
                self.window.path,
                self.window.offset + self._base + whole.begin,
                dtype,
                shape,
                big_endian=dataset.big_endian,
            )
        window, base = self.window, self._base

        def read() -> np.ndarray:
            with window.open() as stream:

                def raw(chunk: Chunk) -> bytes:
                    stream.seek(window.offset + base + chunk.begin)
                    return stream.read(chunk.size)

                with _damage_refused(where):
                    values = unpacked(where, dataset, raw, width)
            return decode(values, dtype, big_endian=dataset.big_endian).reshape(shape)

        return Tensor(shape, dtype, read)
