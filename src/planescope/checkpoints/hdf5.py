"""HDF5 files from strangers: which datasets there are and where their bytes lie.

HDF5 can name other files (external links, external storage, virtual datasets) and load filters from
shared libraries. None of that happens here: links are looked at before they are followed, datasets
before they are read.
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
from typing import TYPE_CHECKING, Any, Self

from planescope.checkpoints.archive import BOMB_BYTES, BOMB_RATIO
from planescope.checkpoints.hdf5_bytes import MAGIC, Objects
from planescope.checkpoints.raw import ITEM_SIZES, decode, open_binary, stored_tensor
from planescope.errors import CheckpointError
from planescope.layer import Tensor

if TYPE_CHECKING:
    import numpy as np

BLOCKS = (0, 512, 1024, 2048)  # where it may stand, behind a block of the user's

# Keras nests two levels for each model within a model; far deeper, paths would outgrow the file.
MAX_DEPTH = 64

# What h5py raises on damaged files, and what reading beside it does.
_ERRORS = (
    *(OSError, RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError),
    *(SystemError, struct.error, zlib.error),
)


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

    def open(self) -> io.RawIOBase | io.BytesIO:
        """Open as a file of its own, beginning at 0."""
        return _Stretch(self) if self.inflated is None else io.BytesIO(self.inflated)


class _Stretch(io.RawIOBase):
    """A part of a file as a file, with as much of the protocol as h5py asks for."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._file = open_binary(window.path)
        self._at = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at}.get(whence, self._window.size)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        # h5py takes no notice of a short read and would go on with what was in its buffer.
        if not 0 <= self._at <= self._window.size - len(buffer):
            raise OSError("a read beyond the end of the file")
        self._file.seek(self._window.offset + self._at)
        got: int = self._file.readinto(buffer)  # type: ignore[attr-defined]
        self._at += got
        return got

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def _damage_refused(where: str) -> Iterator[None]:
    """Turn what a damaged file raises, which is nearly anything, into our own error."""
    try:
        yield
    except _ERRORS as exc:
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
        import h5py

        self.window = window
        self._stream = window.open()
        self._objects = Objects(self._bytes)
        self._base = 0
        try:
            with _damage_refused(str(window.path)):
                self._base = next((at for at in BLOCKS if self._bytes(at, 8) == MAGIC), 0)
                self._objects.check_root()
                self._file = h5py.File(self._stream, "r")
        except CheckpointError:
            self._stream.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._stream, _damage_refused(str(self.window.path)):
            self._file.close()

    def groups(self, *, without: str) -> dict[str, list[str]]:
        """Names of the datasets in each group, by the group's path; the root's is "".

        Groups at the root whose name begins with `without` are left out. A group that is linked
        from several places is listed at one of them, so that cycles end.
        """
        import h5py

        found: dict[str, list[str]] = {}
        seen: set[int] = set()
        pending = [("", "/")]
        while pending:
            path, key = pending.pop()
            with _damage_refused(f"{self.window.path}: group {key}"):
                group = h5py.h5g.open(self._file.id, key.encode())
                found[path] = []
                for name in self._links(group, path):
                    about = h5py.h5o.get_info(group, name.encode())
                    child = f"{path}/{name}" if path else name
                    if about.type == h5py.h5o.TYPE_DATASET:
                        found[path].append(name)
                    elif about.type == h5py.h5o.TYPE_GROUP and about.addr not in seen:
                        seen.add(about.addr)
                        if path or not name.startswith(without):
                            pending.append((child, child))
        return found

    def _links(self, group: Any, path: str) -> list[str]:
        """Names in a group, after a look at what each link is."""
        import h5py

        links: list[tuple[bytes, int, int]] = []
        group.links.iterate(lambda name, to: links.append((name, to.type, to.u)), info=True)
        for name, kind, address in links:
            where = f"{self.window.path}: link {path}/{name.decode(errors='replace')}"
            if kind != h5py.h5l.TYPE_HARD:
                raise CheckpointError(
                    f"{where} points elsewhere, perhaps to another file, and is not followed; "
                    "copy the weights themselves into the file"
                )
            # Such a name would be read as a path, past links that were not looked at.
            if b"/" in name or name == b".":
                raise CheckpointError(f"{where} has a name that is a path")
            self._objects.check(address)
        if links and path.count("/") + 1 >= MAX_DEPTH:
            raise CheckpointError(f"{self.window.path}: groups nest more than {MAX_DEPTH} deep")
        return [name.decode() for name, *_ in links]

    def texts(self, path: str, attribute: str) -> list[str] | None:
        """Texts of an attribute, a single one as a list of one; None where there is none."""
        import h5py

        with _damage_refused(f"{self.window.path}: attribute {attribute!r} of /{path}"):
            address = h5py.h5o.get_info(self._file.id, (path or "/").encode()).addr
            return self._objects.texts(address, attribute)

    def _bytes(self, address: int, length: int) -> bytes:
        begin = self._base + address
        if begin + length > self.window.size:
            raise ValueError("an address outside the file")
        self._stream.seek(begin)
        return self._stream.read(length) or b""

    def tensor(self, key: str) -> Tensor:
        """Describe a dataset that `groups` has listed; nothing of it is read yet."""
        import h5py

        where = f"{self.window.path}: {key}"
        with _damage_refused(where):
            dataset = self._file[key]
            _refuse_other_places(where, dataset.id)
            dtype, shape = self._dtype(key, dataset), dataset.shape
            _refuse_claims(where, dataset, ITEM_SIZES[dtype])
            offset = dataset.id.get_offset()
            plain = dtype == "bfloat16" or dataset.id.get_type() in (
                h5py.h5t.IEEE_F16LE,
                h5py.h5t.IEEE_F32LE,
                h5py.h5t.IEEE_F64LE,
            )
        if offset is None or not plain or self.window.inflated is not None:
            return Tensor(shape, dtype, lambda: _read(self.window, key, dtype))
        if offset + math.prod(shape) * ITEM_SIZES[dtype] > self.window.size:
            raise CheckpointError(f"{where} lies outside the file; is the download complete?")
        return stored_tensor(self.window.path, self.window.offset + offset, dtype, shape)

    def _dtype(self, key: str, dataset: Any) -> str:
        dtype = dataset.dtype
        # h5py knows no bfloat16, so Keras stores two opaque bytes and says so beside them.
        if dtype.str == "|V2" and self.texts(key, "dtype") == ["bfloat16"]:
            return "bfloat16"
        name = str(dtype.newbyteorder("=").name)
        if name not in ITEM_SIZES or dataset.shape is None:
            raise CheckpointError(
                f"{self.window.path}: {key} holds {name} values and is no tensor; "
                "save the weights as numbers"
            )
        return name

    def read(self, key: str) -> np.ndarray:
        """Read a dataset that `tensor` has described, as it is stored."""
        where = f"{self.window.path}: {key}"
        with _damage_refused(where):
            dataset = self._file[key]
            _refuse_bombs(where, dataset, self.window.size)
            array: np.ndarray = dataset[...]
        return array


def _read(window: Window, key: str, dtype: str) -> np.ndarray:
    import numpy as np

    with Hdf5(window) as file:
        array = file.read(key)
    if dtype == "bfloat16":
        return decode(np.frombuffer(array.tobytes(), np.uint8), dtype).reshape(array.shape)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _refuse_other_places(where: str, dataset: Any) -> None:
    import h5py

    # Asked of the creation properties: even a virtual dataset's shape can depend on other files.
    created = dataset.get_create_plist()
    if created.get_layout() == h5py.h5d.VIRTUAL or created.get_external_count():
        raise CheckpointError(
            f"{where} keeps its values in another file, which is not opened; "
            "copy the weights themselves into the file"
        )
    # Other filters may be loaded as plugins, and none of them tells how far it expands.
    known = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
    filters = [created.get_filter(i)[0] for i in range(created.get_nfilters())]
    if not known.issuperset(filters) or len(set(filters)) < len(filters):
        raise CheckpointError(
            f"{where} is packed by HDF5 filters {filters}; save it uncompressed or with gzip"
        )


def _refuse_claims(where: str, dataset: Any, item_size: int) -> None:
    claimed = item_size * max(math.prod(dataset.shape), math.prod(dataset.chunks or (0,)))
    stored = dataset.id.get_storage_size()
    if claimed > max(BOMB_BYTES, BOMB_RATIO * stored):
        raise CheckpointError(
            f"{where} claims {claimed} bytes, but {stored} are stored; refused as a bomb"
        )


def _refuse_bombs(where: str, dataset: Any, size: int) -> None:
    """Inflate each chunk, no further than it may; HDF5 would go on to the end of the stream."""
    import h5py

    created = dataset.id.get_create_plist()
    filters = [created.get_filter(i)[0] for i in range(created.get_nfilters())]
    if h5py.h5z.FILTER_DEFLATE not in filters:
        return
    skipped = 1 << filters.index(h5py.h5z.FILTER_DEFLATE)
    # A checksum that was compressed with the values adds 4 bytes.
    limit = dataset.dtype.itemsize * math.prod(dataset.chunks) + 4
    chunks: list[Any] = []
    dataset.id.chunk_iter(chunks.append)
    for chunk in chunks:
        if chunk.size > size:
            raise CheckpointError(f"{where} claims more bytes than the file has")
        if chunk.filter_mask & skipped:
            continue
        _, packed = dataset.id.read_direct_chunk(chunk.chunk_offset)
        if len(zlib.decompressobj().decompress(packed, limit + 1)) > limit:
            raise CheckpointError(f"{where} inflates beyond its own shape; refused as a bomb")
