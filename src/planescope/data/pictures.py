"""Synthetic pictures: overlapping leaves, strokes, 1/f noise and blends of them, by a seed.

They stand in for the inputs of a network of which nothing but the file is known: where natural
images have edges, flat areas and all scales, so have these (dead leaves: A. B. Lee, D. Mumford and
J. Huang, *Occlusion Models for Natural Images*, IJCV 41, 2001). Drawn block by block, so that large
ones need not lie in memory all at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planescope.files.bounds import check_seed
from planescope.files.errors import UsageError, counted

Pictures = NDArray[np.float32]
Rng = np.random.Generator

# Pictures of one bank: up to this side, and above.
SMALL_SIDE = 64
SMALL_TOTAL, LARGE_TOTAL = 9000, 1500
MOST_CHANNELS, LEAST_SIDE, MOST_SIDE = 1024, 4, 1024
# Numbers in a block, and pictures at most.
_BLOCK_NUMBERS = 1 << 21
_BLOCK = 250

# What a bank is made of, in ninths.
PARTS = {
    "leaves": 2,
    "strokes": 2,
    "noise:0.7": 1,
    "noise:1": 1,
    "noise:1.5": 1,
    "leaves and noise": 1,
    "strokes and leaves": 1,
}
_NINTHS = sum(PARTS.values())


@dataclass(frozen=True, kw_only=True)
class Bank:
    """Synthetic pictures of one size, the same ones each time.

    Attributes
    ----------
    channels, height, width : int
    mean, std : sequence of float
        What the inputs of the network have, a channel each or one for all; 0 and 1 where inputs are
        normalised.
    seed : int

    Raises
    ------
    UsageError
        If a size or moment cannot be.
    """

    channels: int
    height: int
    width: int
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)
    seed: int = 0

    def __post_init__(self) -> None:
        sides = (self.height, self.width)
        if not 1 <= self.channels <= MOST_CHANNELS or not all(
            LEAST_SIDE <= side <= MOST_SIDE for side in sides
        ):
            raise UsageError(
                f"no pictures of {self.channels}×{self.height}×{self.width}: there are those of 1 "
                f"to {MOST_CHANNELS} channels, {LEAST_SIDE} to {MOST_SIDE} pixels a side"
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not np.isfinite(values).all():
                raise UsageError(f"{name} holds NaN or an infinity; give numbers")
            if len(values) not in (1, self.channels):
                raise UsageError(
                    f"{name} has {counted(len(values), 'value')}; give one for each of "
                    f"{self.channels} channels, or one for all"
                )
        if min(self.std) <= 0:
            raise UsageError("std must be above 0")
        check_seed(self.seed)

    @property
    def total(self) -> int:
        """Return how many pictures there are."""
        return SMALL_TOTAL if max(self.height, self.width) <= SMALL_SIDE else LARGE_TOTAL

    @property
    def blocks(self) -> list[tuple[str, int, int]]:
        """Return the blocks in order.

        The part, the number of the block within it, and its pictures.
        """
        numbers = self.channels * self.height * self.width
        size = max(1, min(_BLOCK, _BLOCK_NUMBERS // numbers))
        found: list[tuple[str, int, int]] = []
        for name, share in PARTS.items():
            left, number = self.total * share // _NINTHS, 0
            if name == next(reversed(PARTS)):
                left = self.total - sum(count for _, _, count in found)
            while left > 0:
                found.append((name, number, min(size, left)))
                left, number = left - size, number + 1
        return found

    def draw(self, block: tuple[str, int, int], /) -> Pictures:
        """Draw the pictures of a block: shape (pictures, channels, height, width)."""
        name, number, count = block
        part = list(PARTS).index(name)
        rng = np.random.default_rng([self.seed, part, number])
        size = (count, self.channels, self.height, self.width)
        mean, std = (
            np.broadcast_to(np.asarray(values, dtype=np.float32), self.channels)[:, None, None]
            for values in (self.mean, self.std)
        )
        drawn: Pictures = _draw(name, size, rng) * std + mean
        return drawn

    def __iter__(self) -> Iterator[Pictures]:
        return map(self.draw, self.blocks)


def _draw(name: str, size: tuple[int, ...], rng: Rng) -> Pictures:
    if name == "leaves":
        return leaves(size, rng)
    if name == "strokes":
        return strokes(size, rng)
    if name == "leaves and noise":
        return (leaves(size, rng) + _varied(size, 0.7, rng)) * np.float32(0.7)
    if name == "strokes and leaves":
        return strokes(size, rng) + np.float32(0.5) * leaves(size, rng)
    return _varied(size, float(name.partition(":")[2]), rng)


def leaves(size: tuple[int, ...], rng: Rng, /) -> Pictures:
    """Draw dead leaves: overlapping ellipses and boxes of random sizes, turns and values.

    Parameters
    ----------
    size : (pictures, channels, height, width)

    Returns
    -------
    array of float32 of that shape
        Of mean about 0 and a standard deviation about 1 over many pictures.
    """
    n, channels, height, width = size
    side = min(height, width)
    rows, columns = _grid(height, width)
    ground = rng.normal(0, 0.8, (n, 1, 1, 1)) + rng.normal(0, 0.4, (n, channels, 1, 1))
    result = np.broadcast_to(ground, size).astype(np.float32)
    several = rng.integers(1, 25, n)
    for step in range(int(several.max(initial=0))):
        on = np.flatnonzero(several > step)
        count = len(on)
        radius = _column(side * np.exp(rng.uniform(np.log(0.05), np.log(0.5), count)))
        row = _column(rng.uniform(0, height, count))
        column = _column(rng.uniform(0, width, count))
        turn, stretch = rng.uniform(0, np.pi, count), np.exp(rng.uniform(-1.2, 1.2, count))
        cosine, sine = _column(np.cos(turn)), _column(np.sin(turn))
        along = ((columns - column) * cosine + (rows - row) * sine) / radius
        across = ((rows - row) * cosine - (columns - column) * sine) / (radius * _column(stretch))
        is_round = rng.random(count) < 0.5
        inside = np.empty(along.shape, dtype=bool)
        inside[is_round] = along[is_round] ** 2 + across[is_round] ** 2 < 1
        inside[~is_round] = np.maximum(abs(along[~is_round]), abs(across[~is_round])) < 1
        value = rng.normal(0, 1.1, (count, 1)) + rng.normal(0, 0.35, (count, channels))
        values = value.astype(np.float32)[:, :, None, None]
        result[on] = np.where(inside[:, None], values, result[on])
    return _blurred(result)


def strokes(size: tuple[int, ...], rng: Rng, /) -> Pictures:
    """Draw bright strokes on a dark, even ground: one to three wandering lines a picture.

    Parameters and return value are those of `leaves`.
    """
    n, channels, height, width = size
    side = min(height, width)
    rows, columns = _grid(height, width)
    ink = np.zeros((n, height, width), dtype=np.float32)
    lines = rng.integers(1, 4, n)
    for line in range(3):
        row, column = (rng.uniform(0.2, 0.8, n) * extent for extent in (height, width))
        turn, thick = rng.uniform(0, 2 * np.pi, n), side * rng.uniform(0.03, 0.08, n)
        points = np.where(lines > line, rng.integers(6, 30, n), 0)
        for point in range(int(points.max(initial=0))):
            turn = turn + rng.normal(0, 0.35, n)
            row = row + np.sin(turn) * side * 0.035
            column = column + np.cos(turn) * side * 0.035
            on = np.flatnonzero(points > point)
            away = (rows - _column(row[on])) ** 2 + (columns - _column(column[on])) ** 2
            spot = np.clip(np.float32(1.5) - np.sqrt(away) / _column(thick[on]), 0, 1)
            ink[on] = np.maximum(ink[on], spot)
    shade = np.float32(1 if channels == 1 else 0.6)
    picture = (ink * np.float32(3.2) - np.float32(0.45)) * shade
    return np.repeat(picture[:, None], channels, axis=1)


def noise(size: tuple[int, ...], slope: float, rng: Rng, /) -> Pictures:
    """Draw noise whose amplitude falls as 1 over the frequency to the power `slope`.

    Parameters and return value are those of `leaves`; each picture has a standard deviation of 1.
    Channels go together where there are several.
    """
    _, channels, height, width = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    amplitude = np.maximum(frequency, 1 / min(height, width)) ** -slope
    white = rng.standard_normal(size, dtype=np.float32)
    waves = np.fft.rfft2(white) * amplitude.astype(np.float32)
    result: Any = np.fft.irfft2(waves, s=(height, width)).astype(np.float32)
    if channels > 1:
        result = 1.5 * result.mean(axis=1, keepdims=True) + 0.6 * result
    result -= 0.5 * result.mean(axis=(1, 2, 3), keepdims=True)
    result /= result.std(axis=(1, 2, 3), keepdims=True)
    return np.asarray(result, dtype=np.float32)


def _varied(size: tuple[int, ...], slope: float, rng: Rng) -> Pictures:
    """Return the noise of several contrasts and offsets."""
    n = size[0]
    contrast = rng.uniform(0.3, 1.8, (n, 1, 1, 1)).astype(np.float32)
    offset = rng.normal(0, 0.5, (n, 1, 1, 1)).astype(np.float32)
    return noise(size, slope, rng) * contrast + offset


def _grid(height: int, width: int) -> tuple[Pictures, Pictures]:
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    return rows, columns


def _column(values: Any) -> Pictures:
    """Return a value a picture, to be set against its pixels."""
    return np.asarray(values, dtype=np.float32)[:, None, None]


def _blurred(pictures: Pictures) -> Pictures:
    """Return the means over 3 × 3 pixels, the border repeated."""
    padded = np.pad(pictures, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    rows = padded[:, :, :-2] + padded[:, :, 1:-1] + padded[:, :, 2:]
    result: Pictures = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / np.float32(9)
    return result
