"""PyTorch files since torch 1.6, and TorchScript archives: a zip of a pickle and its storages."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from planescope.checkpoints.arrays.pickled import of_arrays
from planescope.checkpoints.torch import script
from planescope.checkpoints.torch.objects import (
    Storage,
    StorageId,
    Storages,
    holds_tensors,
    state_dict,
)
from planescope.files import pickles
from planescope.files.errors import CheckpointError
from planescope.files.zips import Archive

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from planescope.checkpoints.probe import Probe
    from planescope.hyperplanes.layer import StateDict

NAME = "torch-zip"


def recognises(probe: Probe) -> bool:
    """Recognise a zip archive of torch by the place of its pickle."""
    return bool(_roots(probe.zip_names))


def read(path: Path, entry: str | None = None) -> StateDict:
    """Describe the state dict in a torch file; no storage is read.

    Raises
    ------
    CheckpointError
        If the archive or its pickle is damaged, a storage is missing, compressed or too short, or
        there is no state dict.
    """
    return state_dict_of(Archive(path), entry)


def state_dict_of(archive: Archive, entry: str | None = None) -> StateDict:
    """Describe the state dict in an archive of torch's."""
    path = archive.path
    roots = _roots(archive.members)
    if len(roots) != 1:
        raise CheckpointError(f"{path}: holds {len(roots)} files data.pkl where torch writes one")
    root = roots[0]
    member = f"{root}/data.pkl"
    # Packed, a few kilobytes could hold instructions by the million.
    if not archive.is_stored(member):
        raise CheckpointError(
            f"{path}: {member} is compressed, which torch never does; save the model again"
        )
    pickle = archive.read(member, limit=pickles.MAX_BYTES)
    saved = pickles.read_pickle(pickle, where=f"{path}: {member}")
    big_endian = (
        f"{root}/byteorder" in archive.members
        and archive.read(f"{root}/byteorder", limit=16) == b"big"
    )
    find = functools.partial(_find, archive, root)
    constants = functools.partial(script.constants, archive, root)
    is_script = any(name.startswith(f"{root}/code/") for name in archive.members)
    storages = Storages(path, find, big_endian, functools.cache(constants) if is_script else None)
    if not is_script and not holds_tensors(saved.value, path):
        arrays = of_arrays(saved.value, path, path.stat().st_size, entry)
        if arrays is not None:
            return arrays
    return state_dict(saved.value, storages, entry)


def _roots(names: Iterable[str]) -> list[str]:
    """Return the top folders of an archive that hold a data.pkl; torch writes exactly one."""
    return [
        root
        for name in names
        if (root := name.removesuffix("/data.pkl")) != name and "/" not in root
    ]


def _find(archive: Archive, root: str, storage: StorageId) -> Storage:
    member = f"{root}/data/{storage.key}"
    where = f"{archive.path}: storage {member[:200]!r}"
    if member not in archive.members:
        raise CheckpointError(f"{where} is missing from the archive; is the file complete?")
    if not archive.is_stored(member):
        raise CheckpointError(
            f"{where} is compressed, which torch never does; save the model again"
        )
    size = archive.members[member].file_size
    if size < storage.nbytes:
        raise CheckpointError(
            f"{where} has {size} bytes where its tensors need {storage.nbytes}; "
            "is the file complete?"
        )
    return Storage(functools.partial(archive.offset, member), storage.nbytes)
