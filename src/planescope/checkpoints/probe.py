"""The first look at a file, by which formats tell their own."""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path

from planescope.files.errors import CheckpointError
from planescope.files.reading import open_binary

HEAD_BYTES = 4096
ZIP_MAGIC = b"PK\x03\x04"


class AnotherFormatError(CheckpointError):
    """A file that is sound, but of a format that begins alike; the formats behind are tried."""


@dataclass(frozen=True)
class Probe:
    """The beginning of a file, read once, that all formats look at.

    Attributes
    ----------
    head : bytes
        The first `HEAD_BYTES` of the file.
    size : int
        Bytes of the whole file.
    """

    path: Path
    head: bytes
    size: int

    @functools.cached_property
    def zip_names(self) -> frozenset[str]:
        """Return the names of a zip archive's members; empty for other files."""
        if not self.head.startswith(ZIP_MAGIC):
            return frozenset()
        from planescope.files.zips import Archive

        return frozenset(Archive(self.path).members)


class Sign:
    """Tell what every file of a format has; a format without it is passed over, its module unread.

    Parameters
    ----------
    head : bytes
        Regular expression that the file begins with.
    member : str
        Regular expression of one name at least in a zip archive.
    """

    def __init__(self, head: bytes, member: str = "") -> None:
        self._head = re.compile(head, re.DOTALL)
        self._member = re.compile(member, re.DOTALL)

    def fits(self, probe: Probe) -> bool:
        """Tell whether the file may be of the format; its `recognises` decides."""
        if self._head.match(probe.head) is None:
            return False
        if not self._member.pattern or not probe.head.startswith(ZIP_MAGIC):
            return True
        return any(self._member.fullmatch(name) for name in probe.zip_names)


def probe(path: Path) -> Probe:
    """Read the head of a file."""
    with open_binary(path) as file:
        return Probe(path, file.read(HEAD_BYTES), os.fstat(file.fileno()).st_size)
