"""Mutations of the files of a case; all of them follow from a random generator."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from checks.fuzz import structures

# A case stays below what the limit on memory speaks of.
MAX_BYTES = (1 << 20) - 1

# How many changes a case has: mostly one, so that a reader comes far before it meets it.
_COUNTS = (1, 1, 1, 1, 1, 2, 2, 2, 3, 4, 8, 16)

# A format that can be taken apart is mostly changed within.
_STRUCTURED = 0.65

Files = Mapping[str, bytes]


def mutated(rng: random.Random, seed: Files, donors: Sequence[bytes]) -> dict[str, bytes]:
    """Change the files of a seed; `donors` are other files, of which pieces are taken."""
    files = dict(seed)
    for _ in range(rng.choice(_COUNTS)):
        name = rng.choice(list(files))
        files[name] = change(rng, files[name], donors)
    return files


def change(rng: random.Random, data: bytes, donors: Sequence[bytes]) -> bytes:
    """Change one thing of a file: in a part of its format, or bytes wherever they are."""
    if rng.random() < _STRUCTURED:
        within = structures.changed(rng, data, lambda part: change(rng, part, donors))
        if within is not None and within != data:
            return within[:MAX_BYTES]
    return rng.choice(_CHANGES)(rng, data, donors)[:MAX_BYTES]


def _span(rng: random.Random, data: bytes) -> tuple[int, int]:
    """A stretch of the file, mostly a short one."""
    if not data:
        return 0, 0
    begin = rng.randrange(len(data))
    length = rng.choice((1, 2, 4, 8, 16, 64, rng.randrange(len(data)) + 1))
    return begin, min(begin + length, len(data))


def _flip(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    if not data:
        return b"\0"
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def _byte(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]


def _integer(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    """A number of 1 to 8 bytes, of either order, to one at a boundary or near what it was."""
    width = rng.choice((1, 2, 4, 4, 8, 8))
    if len(data) < width:
        return data
    at = rng.randrange(len(data) - width + 1)
    if rng.random() < 0.5:
        at -= at % width  # most formats align their numbers
    order = rng.choice(("little", "little", "big"))
    was = int.from_bytes(data[at : at + width], order)
    to = structures.boundary(rng, 8 * width, was, len(data))
    return data[:at] + to.to_bytes(width, order) + data[at + width :]


def _pointer(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    """Let one thing that may be an address point where another does."""
    pointers = structures.pointers(data)
    if not pointers:
        return _integer(rng, data, ())
    to, at = rng.choice(pointers), rng.choice(pointers)
    return data[:at] + data[to : to + 8] + data[at + 8 :]


def _cut(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _without(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    begin, end = _span(rng, data)
    return data[:begin] + data[end:]


def _repeated(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    begin, end = _span(rng, data)
    times = rng.choice((2, 2, 3, 10, 100, 10_000))
    # Seldom to a file that takes long.
    longest = 1 << (17 if rng.random() < 0.05 else 13)
    times = max(2, min(times, longest // max(end - begin, 1)))
    return data[:begin] + data[begin:end] * times + data[end:]


def _moved(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    begin, end = _span(rng, data)
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[begin:end] + data[at + rng.choice((0, end - begin)) :]


def _spliced(rng: random.Random, data: bytes, donors: Sequence[bytes]) -> bytes:
    """A stretch of another file: over one here, or in place of all that follows."""
    donor = rng.choice(donors) if donors else data
    begin, end = _span(rng, donor)
    at = rng.randrange(len(data) + 1)
    if rng.random() < 0.2:
        return data[:at] + donor[begin:]
    return data[:at] + donor[begin:end] + data[at + rng.choice((0, end - begin)) :]


def _filled(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    begin, end = _span(rng, data)
    return data[:begin] + rng.choice((b"\0", b"\xff", b"\x7f", b"A")) * (end - begin) + data[end:]


def _word(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    word = rng.choice(structures.WORDS)
    return data[:at] + word + data[at + rng.choice((0, len(word))) :]


def _digits(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    """A number that is written in decimal digits, to another."""
    numbers = structures.decimals(data)
    if not numbers:
        return _word(rng, data, ())
    begin, end = rng.choice(numbers)
    was = int(data[begin:end][:18])
    to = rng.choice((structures.boundary(rng, 64, was, len(data)), -1, 0.5, 1e308, 10**30))
    return data[:begin] + str(to).encode() + data[end:]


_CHANGES = (
    _flip, _byte, _integer, _integer, _integer, _pointer, _pointer, _cut, _without, _repeated,
    _moved, _spliced, _filled, _word, _digits,
)  # fmt: skip
