"""PyTorch files before torch 1.6: five pickles in a row, and then the storages."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

from planescope.checkpoints.arrays.raw import ITEM_SIZES
from planescope.checkpoints.torch.objects import (
    Storage,
    StorageId,
    Storages,
    state_dict,
    storage_id,
)
from planescope.files.errors import CheckpointError
from planescope.files.pickles import Persistent, Pickled, read_pickle
from planescope.files.reading import open_binary

if TYPE_CHECKING:
    from pathlib import Path

    from planescope.checkpoints.probe import Probe
    from planescope.hyperplanes.layer import StateDict

NAME = "torch-stream"

_MAGIC = 0x1950A86A20F9469CFC6C
_MAGIC_BYTES = _MAGIC.to_bytes(10, "little")
_MAGIC_WITHIN = 32
_PROTOCOL = 1001
_COUNT_BYTES = 8


def recognises(probe: Probe) -> bool:
    """Tell a pickle of torch's magic number, whatever its protocol."""
    return probe.head[:1] == b"\x80" and _MAGIC_BYTES in probe.head[:_MAGIC_WITHIN]


def read(path: Path, entry: str | None = None) -> StateDict:
    """Describe the state dict in a torch file; no storage is read.

    Raises
    ------
    CheckpointError
        If it is another pickle, a pickle in it is damaged, its storages are not those that the
        pickles tell of, or there is no state dict.
    """
    with open_binary(path) as file:
        try:
            # The pickles have no length of their own, and the weights behind them are not read.
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (ValueError, OSError) as exc:
            raise CheckpointError(f"{path}: cannot be read: {exc}") from exc
        with data:
            saved, keys = _pickles(path, data)
            extents = _extents(path, data, saved, keys)

    def find(storage: StorageId) -> Storage:
        begin, size = extents.get(storage.key, (0, -1))
        if size < storage.nbytes:
            raise CheckpointError(
                f"{path}: storage {storage.key[:100]!r} is missing or shorter than its tensors need"
            )
        first, count = storage.view or (0, storage.count)
        width = ITEM_SIZES[storage.dtype]
        return Storage(lambda: begin + first * width, count * width)

    # Storages are little-endian whatever machine wrote them.
    return state_dict(saved.value, Storages(path, find), entry)


def embedded_storage(path: Path, data: mmap.mmap, begin: int) -> tuple[Persistent, int, int]:
    """Find the storage that a plain pickle holds as a torch file of its own, from `begin` on.

    Returns
    -------
    tuple
        What the file within tells of it, its first byte, and how many it has.
    """
    saved, keys = _pickles(path, data, begin)
    extents = _extents(path, data, saved, keys)
    if type(saved.value) is not Persistent or len(extents) != 1:
        raise CheckpointError(f"{path}: a storage is not described as torch describes it")
    return saved.value, *next(iter(extents.values()))


def _pickles(path: Path, data: mmap.mmap, begin: int = 0) -> tuple[Pickled, Pickled]:
    """Read the pickles of the saved object and of the keys of its storages."""
    magic = read_pickle(data, begin, where=f"{path}: magic number")
    if magic.value != _MAGIC:
        raise CheckpointError(f"{path}: its magic number is not torch's; is the download complete?")
    protocol = read_pickle(data, magic.end, where=f"{path}: protocol")
    if protocol.value != _PROTOCOL:
        raise CheckpointError(f"{path}: is a torch file of an unknown version; save it again")
    system = read_pickle(data, protocol.end, where=f"{path}: system")
    saved = read_pickle(data, system.end, where=f"{path}: saved object")
    return saved, read_pickle(data, saved.end, where=f"{path}: keys of the storages")


def _extents(
    path: Path, data: mmap.mmap, saved: Pickled, keys: Pickled
) -> dict[str, tuple[int, int]]:
    """Return the first byte and size of each storage.

    One behind the other, in the order of their keys.
    """
    # A storage is written with the type under which it was met first.
    known: dict[str, StorageId] = {}
    for persistent in saved.persistent:
        match persistent.id:
            case ("storage", *_):
                storage = storage_id(persistent, str(path))
                known.setdefault(storage.key, storage)
    extents = {}
    at = keys.end
    for key in keys.value if type(keys.value) is list else ():
        if type(key) is not str or key not in known:
            raise CheckpointError(f"{path}: holds a storage that no tensor tells the type of")
        nbytes = known[key].nbytes
        count = int.from_bytes(data[at : at + _COUNT_BYTES], "little")
        at += _COUNT_BYTES
        if at + nbytes > len(data):
            raise CheckpointError(
                f"{path}: ends inside storage {key[:100]!r}; is the download complete?"
            )
        if count != known[key].count:
            raise CheckpointError(
                f"{path}: storage {key[:100]!r} has {count} elements where its tensors need "
                f"{known[key].count}"
            )
        extents[key] = (at, nbytes)
        at += nbytes
    return extents
