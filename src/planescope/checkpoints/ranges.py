"""Files on a server, of which only the bytes travel that are read.

A path stands for the file here. What has been fetched is kept, for as long as the process lives,
in a temporary file that has no name and is as large as what was fetched.
"""

from __future__ import annotations

import http.client
import io
import os
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from urllib.parse import urlsplit

from planescope.files.errors import CheckpointError
from planescope.files.reading import read_elsewhere

if TYPE_CHECKING:
    from collections.abc import Iterator

# From here on a file of the hub is read in ranges; a smaller one is worth its place in the cache.
RANGED_BYTES = 1 << 25

# Fetched at once, so that tensors that lie side by side come together.
_BLOCK = 1 << 19

_TIMEOUT = 30  # seconds without a byte
_TRIES = 3

_LOOPBACK = ("127.0.0.1", "localhost", "::1")

# Files that are still open, the last one last: a process may measure one after the other.
_OPEN: list[Remote] = []
_MOST_OPEN = 4


def locate_url(url: str) -> Path:
    """Open a file on a server; the path that stands for it.

    Raises
    ------
    CheckpointError
        If the address is not one of https, or the server does not give the file.
    """
    remote = Remote(url, public_name(url), {})
    if remote.in_ranges and not can_be_read_in_ranges(remote):
        remote.fetch_all()
    return register(remote)


def public_name(url: str) -> str:
    """Return an address without what may be a password in it.

    Raises
    ------
    CheckpointError
        If it is not a supported one.
    """
    parts = _split(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def register(remote: Remote) -> Path:
    """Let a path stand for a file on a server; the oldest of several is closed."""
    path = Path(remote.name)
    for other in [each for each in _OPEN if Path(each.name) == path]:
        _OPEN.remove(other)
    _OPEN.append(remote)
    read_elsewhere(path, remote.open)
    if len(_OPEN) > _MOST_OPEN:
        read_elsewhere(Path(_OPEN.pop(0).name), None)
    return path


def can_be_read_in_ranges(remote: Remote) -> bool:
    """Tell by its first bytes whether a file is read in a few pieces: safetensors, torch's zip."""
    with remote.open() as file:
        head = file.read(9)
    return head.startswith(b"PK\x03\x04") or head[8:9] == b"{"


def _split(url: str) -> Any:
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError as exc:
        raise CheckpointError(f"{url}: is no address: {exc}; check it") from exc
    if not host or (parts.scheme != "https" and host not in _LOOPBACK):
        raise CheckpointError(
            f"{url}: only https:// is read from, where nobody on the way can change a file; give "
            "such an address, or download the file"
        )
    return parts


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow a server to another address, but never from https to something else."""

    def redirect_request(
        self, request: Any, file: Any, code: int, message: str, headers: Any, url: str
    ) -> urllib.request.Request | None:
        parts = _split(url)
        found = super().redirect_request(request, file, code, message, headers, url)
        # A password is for the server that asked for it.
        if found is not None and parts.netloc != urlsplit(request.full_url).netloc:
            found.remove_header("Authorization")
        return found


class Remote:
    """A file on a server.

    Attributes
    ----------
    name : str
        What messages call it.
    size : int
    in_ranges : bool
        Whether the server gives parts of it; else all of it has been fetched.

    Raises
    ------
    CheckpointError
        If the server does not give the file.
    """

    def __init__(self, url: str, name: str, headers: Mapping[str, str]) -> None:
        self.name = name
        self.in_ranges = True
        self._url = url
        self._headers = {"Accept-Encoding": "identity", **headers}
        self._lock = threading.Lock()
        self._tag: str | None = None
        # Without a name on disk: nothing is left of it, however the process ends.
        self._kept = tempfile.TemporaryFile(prefix="planescope-", buffering=0)  # noqa: SIM115
        self._fetched: set[int] = set()
        self.size = -1
        self._fetch(0, _BLOCK)

    def open(self) -> BinaryIO:
        """Open the file for reading."""
        return cast("BinaryIO", io.BufferedReader(_Reader(self)))

    def fileno(self) -> int:
        """Give a file of the same size, which has the bytes that were fetched."""
        return self._kept.fileno()

    def read(self, offset: int, into: memoryview) -> int:
        """Read bytes from `offset` on, as many as there are; fetch those that are not here."""
        end = min(offset + len(into), self.size)
        if end <= offset:
            return 0
        with self._lock:
            for begin, stop in list(self._missing(offset, end)):
                self._fetch(begin, stop)
            self._kept.seek(offset)
            return self._kept.readinto(into[: end - offset]) or 0

    def fetch_all(self) -> None:
        """Fetch what is not here yet."""
        with self._lock:
            for begin, stop in list(self._missing(0, self.size)):
                self._fetch(begin, stop)

    def _missing(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the runs of blocks that are not here yet."""
        first = None
        last = -(-end // _BLOCK)
        for block in range(begin // _BLOCK, last + 1):
            wanted = block < last and block not in self._fetched
            if wanted and first is None:
                first = block
            if not wanted and first is not None:
                yield first * _BLOCK, min(block * _BLOCK, self.size)
                first = None

    def _fetch(self, begin: int, end: int) -> None:
        for left in reversed(range(_TRIES)):
            try:
                return self._fetch_once(begin, end)
            except urllib.error.HTTPError as exc:
                if exc.code < 500 or not left:
                    raise CheckpointError(
                        f"{self.name}: the server answers {exc.code} ({exc.reason}); check the "
                        "address, or download the file and give that"
                    ) from exc
            except (OSError, http.client.HTTPException) as exc:
                if not left:
                    reason = getattr(exc, "reason", None) or exc or type(exc).__name__
                    raise CheckpointError(
                        f"{self.name}: the download failed ({reason}); check network and disk, "
                        "then try again"
                    ) from exc
        return None

    def _fetch_once(self, begin: int, end: int) -> None:
        headers = {**self._headers, "Range": f"bytes={begin}-{end - 1}"}
        # A server that was asked for parts of another file gives all of this one.
        if self._tag is not None:
            headers["If-Range"] = self._tag
        request = urllib.request.Request(self._url, headers=headers)  # noqa: S310 - checked
        opener = urllib.request.build_opener(_Redirects)
        with opener.open(request, timeout=_TIMEOUT) as answer:
            tag = answer.headers.get("ETag")
            if answer.status == 206:
                self._take_range(answer, begin, end)
            elif self.size < 0:
                self.in_ranges = False
                self._take_all(answer)
            else:
                raise CheckpointError(
                    f"{self.name}: changed on the server while it was read; try again"
                )
        # Weak tags do not hold bytes to be the same.
        if tag and not tag.startswith("W/"):
            self._tag = tag

    def _take_range(self, answer: Any, begin: int, end: int) -> None:
        unit, _, span = (answer.headers.get("Content-Range") or "").partition(" ")
        place, _, total = span.partition("/")
        first, _, last = place.partition("-")
        numbers = all(n.isdecimal() and len(n) < 19 for n in (first, last, total))
        if unit != "bytes" or not numbers or int(first) != begin:
            raise CheckpointError(f"{self.name}: the server gives other bytes than were asked for")
        if self.size < 0:
            self.size = int(total)
            try:
                self._kept.truncate(self.size)
            except (OSError, OverflowError) as exc:
                raise CheckpointError(
                    f"{self.name}: claims {self.size} bytes, for which there is no room here"
                ) from exc
        if int(total) != self.size or int(last) + 1 != min(end, self.size):
            raise CheckpointError(
                f"{self.name}: changed on the server while it was read; try again"
            )
        self._write(answer, begin, int(last) + 1 - begin)
        self._fetched.update(range(begin // _BLOCK, -(-(int(last) + 1) // _BLOCK)))

    def _take_all(self, answer: Any) -> None:
        length = self._write(answer, 0, None)
        claimed = answer.headers.get("Content-Length")
        if claimed is not None and claimed != str(length):
            raise http.client.IncompleteRead(b"", 0)
        self.size = length
        self._kept.truncate(length)
        self._fetched.update(range(-(-length // _BLOCK)))

    def _write(self, answer: Any, at: int, length: int | None) -> int:
        """Keep what the server sends; how many bytes that was."""
        done = 0
        while length is None or done < length:
            piece = answer.read(_BLOCK if length is None else min(_BLOCK, length - done))
            if not piece:
                break
            self._kept.seek(at + done)
            self._kept.write(piece)
            done += len(piece)
        if length is not None and done != length:
            raise http.client.IncompleteRead(b"", length - done)
        return done


class _Reader(io.RawIOBase):
    """A file on a server, at a place of its own."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._remote.fileno()

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._remote.size}[whence]
        if base + offset < 0:
            raise ValueError("a place before the file's first byte")
        self._at = base + offset
        return self._at

    def readinto(self, into: Any) -> int:
        read = self._remote.read(self._at, memoryview(into).cast("B"))
        self._at += read
        return read
