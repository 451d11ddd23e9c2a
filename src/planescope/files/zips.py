"""Zip archives as checkpoints use them (torch, npz, Keras): where a member lies, how large it is.

Members that hold weights are read in place when they are stored uncompressed; sizes are checked
against the file before anything is read, and a member that would inflate beyond reason is refused.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

from planescope.files.errors import CheckpointError
from planescope.files.reading import open_binary, read_exactly

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")

# DEFLATE cannot exceed 1032:1, and arrays of zeros come near it, so a ratio alone proves nothing: a
# member is a bomb where it is both large and almost empty.
BOMB_BYTES = 1 << 27
BOMB_RATIO = 200


class _Stretch(io.RawIOBase):
    """A stretch of a file as a file of its own, open for reading."""

    def __init__(self, file: BinaryIO, begin: int, size: int) -> None:
        self._file, self._begin, self._size, self._at = file, begin, size, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError("a place before the archive")
        self._at = base + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(self._size - self._at, 0)
        self._file.seek(self._begin + self._at)
        found = self._file.read(left if size is None or size < 0 else min(size, left))
        self._at += len(found)
        return found


class Archive:
    """The directory of a zip file, or of one within a file: `size` bytes from `begin` on.

    Attributes
    ----------
    members : dict of str to zipfile.ZipInfo
        By name, in the order of the directory.

    Raises
    ------
    CheckpointError
        If the archive is damaged or encrypted, two members share a name, a member lies outside the
        file, or one would inflate beyond reason.
    """

    def __init__(self, path: Path, *, begin: int = 0, size: int | None = None) -> None:
        self.path, self.begin = path, begin
        with open_binary(path) as file:
            self.size = os.fstat(file.fileno()).st_size if size is None else size
            try:
                with zipfile.ZipFile(_Stretch(file, begin, self.size)) as archive:
                    infos = archive.infolist()
            # zipfile lets struct errors and bad text through on damaged directories.
            except (zipfile.BadZipFile, ValueError, struct.error, NotImplementedError) as exc:
                raise CheckpointError(
                    f"{path}: the zip archive is damaged ({exc}); is the download complete?"
                ) from exc
        self.members: dict[str, zipfile.ZipInfo] = {}
        for info in infos:
            self._check(info)
            if self.members.setdefault(info.filename, info) is not info:
                raise CheckpointError(f"{path}: two members are named {info.filename!r}")

    def _check(self, info: zipfile.ZipInfo) -> None:
        where = f"{self.path}: member {info.filename!r}"
        if info.flag_bits & 1:
            raise CheckpointError(f"{where} is encrypted; decrypt the file first")
        if info.header_offset + info.compress_size > self.size:
            raise CheckpointError(f"{where} lies outside the file; is the download complete?")
        if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
            raise CheckpointError(f"{where} is stored, yet claims two sizes")
        if info.file_size > max(BOMB_BYTES, BOMB_RATIO * info.compress_size):
            raise CheckpointError(
                f"{where} would inflate from {info.compress_size} to {info.file_size} bytes; "
                "refused as a zip bomb"
            )

    def is_stored(self, name: str) -> bool:
        """Return whether a member lies in the file as it is, uncompressed."""
        return self.members[name].compress_type == zipfile.ZIP_STORED

    def offset(self, name: str) -> int:
        """Return where in the file the bytes of a member begin.

        Raises
        ------
        CheckpointError
            If the member's own header is not where the directory says, or its bytes do not fit.
        """
        info = self.members[name]
        at = self.begin + info.header_offset
        header = read_exactly(self.path, at, _LOCAL_HEADER.size)
        fields = _LOCAL_HEADER.unpack(header)
        begin: int = at + _LOCAL_HEADER.size + fields[-2] + fields[-1]
        if fields[0] != b"PK\x03\x04" or begin + info.compress_size > self.begin + self.size:
            raise CheckpointError(f"{self.path}: member {name!r} is not where the directory says")
        return begin

    def read(self, name: str, *, limit: int | None = None) -> bytes:
        """Return the bytes of a member, inflated where needed.

        Raises
        ------
        CheckpointError
            If the member is longer than `limit` bytes or damaged.
        """
        info = self.members[name]
        if limit is not None and info.file_size > limit:
            raise CheckpointError(
                f"{self.path}: member {name!r} has {info.file_size} bytes, more than the {limit} "
                "that such a member can need"
            )
        raw = read_exactly(self.path, self.offset(name), info.compress_size)
        if info.compress_type == zipfile.ZIP_STORED:
            return raw
        if info.compress_type != zipfile.ZIP_DEFLATED:
            raise CheckpointError(
                f"{self.path}: member {name!r} is compressed by method {info.compress_type}; "
                "only stored and deflated members are read"
            )
        # `max_length` holds the inflater to what the directory claims, whatever the stream says.
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = inflater.decompress(raw, info.file_size) if info.file_size else b""
        except zlib.error as exc:
            raise CheckpointError(f"{self.path}: member {name!r} is damaged: {exc}") from exc
        if len(data) != info.file_size:
            raise CheckpointError(f"{self.path}: member {name!r} inflates to another size")
        return data
