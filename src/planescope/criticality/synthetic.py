"""Inputs for a network of which nothing but the file is known: pictures that it is sure of.

Of a bank of synthetic pictures (`planescope.data.pictures`) three sets are chosen by the network's
own answers: those it is surest of, those it stays sure of when they are shifted and blurred by
noise, and any. Nothing is fitted and no gradient is taken, so that whatever gives answers will do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planescope.data.pictures import SMALL_SIDE, Bank, Pictures
from planescope.files.errors import UsageError

Indices = NDArray[np.intp]
# From a batch of pictures to the network's outputs, a row a picture.
Answer = Callable[[Pictures], NDArray[Any]]

# Pictures in a set, up to SMALL_SIDE pixels a side and above.
SMALL_SET, LARGE_SET = 400, 120
# Candidates for the set that stays sure, of the surest of each class.
_CANDIDATES = 1500
_SHIFTS = ((1, 2), (-2, 1), (0, -2))
_NOISE = 0.15
# A bank of this size lies in memory; of a larger one what was chosen is drawn again.
_HELD_BYTES = 1 << 28
# A batch of so many small pictures stays in the caches of a processor.
_BATCH_NUMBERS, _BATCH = 1 << 20, 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Synthetic:
    """Synthetic inputs chosen for one network.

    Attributes
    ----------
    images : array of float32, shape (images, channels, height, width)
        Each once.
    sets : dict of str to array of int
        Indices of the images of each set: ``surest``, ``stable`` and ``any``; ``any`` alone where
        the network's output is no class.
    answers : int
        How many of its classes the network gives to any of the images; 0 without classes.
    """

    images: Pictures
    sets: dict[str, Indices] = field(default_factory=dict)
    answers: int = 0


def choose(answer: Answer, bank: Bank, /, *, of_classes: bool = True) -> Synthetic:
    """Choose synthetic inputs by the answers of a network; the same ones each time.

    Parameters
    ----------
    answer : callable
        From pictures, float32 of shape (n, channels, height, width), to outputs of shape
        (n, classes) or (n, classes, ...).
    bank : Bank
    of_classes : bool
        Whether the largest output is the answer; else only ``any`` is drawn.

    Raises
    ------
    UsageError
        If the answers are not finite, or all alike: then nothing tells a layer's worth.
    """
    size = SMALL_SET if max(bank.height, bank.width) <= SMALL_SIDE else LARGE_SET
    rng = np.random.default_rng([bank.seed, len(bank.blocks)])
    any_of = np.sort(rng.permutation(bank.total)[:size])
    if not of_classes:
        return Synthetic(images=_taken(bank, any_of, None), sets={"any": np.arange(len(any_of))})
    holds = bank.total * bank.channels * bank.height * bank.width * 4 <= _HELD_BYTES
    held: list[Pictures] | None = [] if holds else None
    found = []
    for pictures in bank:
        found.append(_sure(answer, pictures))
        if held is not None:
            held.append(pictures)
    sureness = np.concatenate([sure for sure, _, _ in found])
    decisions = np.concatenate([answers for _, answers, _ in found])
    classes = found[0][2]
    if len(np.unique(decisions)) < 2:
        raise UsageError(
            "the network gives one and the same answer to all synthetic pictures, which tell "
            "nothing of its layers then; give inputs of its own kind by --inputs (data=)"
        )
    candidates = balanced(sureness, decisions, _CANDIDATES, classes)
    taken = _taken(bank, candidates, held)
    least = _sure_at_worst(answer, taken, decisions[candidates], bank, rng, sureness[candidates])
    sets = {
        "surest": candidates[balanced(sureness[candidates], decisions[candidates], size, classes)],
        "stable": candidates[balanced(least, decisions[candidates], size, classes)],
        "any": any_of,
    }
    union = np.unique(np.concatenate(list(sets.values())))
    return Synthetic(
        images=_taken(bank, union, held),
        sets={name: np.searchsorted(union, which) for name, which in sets.items()},
        answers=len(np.unique(decisions[union])),
    )


def balanced(
    sureness: NDArray[Any], decisions: NDArray[Any], size: int, classes: int, /
) -> Indices:
    """Find the surest of each class, as many of each, `size` at most; in ascending order.

    A class that has fewer gives fewer.
    """
    share = max(1, size // classes)
    kept = []
    for one in np.unique(decisions):
        own = np.flatnonzero(decisions == one)
        kept.append(own[np.argsort(-sureness[own], kind="stable")[:share]])
    chosen = np.concatenate(kept)
    best = np.argsort(-sureness[chosen], kind="stable")[:size]
    return np.sort(chosen[best])


def softmax(outputs: NDArray[Any], /) -> NDArray[np.float64]:
    """Return the probabilities of classes (axis 1).

    Of several positions their mean: shape (n, classes).
    """
    wide = np.asarray(outputs, dtype=np.float64)
    wide = np.exp(wide - wide.max(axis=1, keepdims=True))
    wide /= wide.sum(axis=1, keepdims=True)
    result: NDArray[np.float64] = wide.reshape(*wide.shape[:2], -1).mean(axis=2)
    return result


def _sure(answer: Answer, pictures: Pictures) -> tuple[NDArray[Any], NDArray[Any], int]:
    """Return how sure the network is, what it answers, and how many classes it has."""
    parts = []
    for batch in _batches(pictures):
        outputs = np.asarray(answer(batch))
        if not np.isfinite(outputs).all():
            raise UsageError(
                "the network gives outputs that are not finite for synthetic pictures; is the "
                "file whole, and of this network?"
            )
        parts.append(softmax(outputs))
    p = np.concatenate(parts)
    return p.max(axis=1), p.argmax(axis=1), p.shape[1]


def _sure_at_worst(
    answer: Answer,
    pictures: Pictures,
    decisions: NDArray[Any],
    bank: Bank,
    rng: np.random.Generator,
    sureness: NDArray[Any],
) -> NDArray[Any]:
    """Return the least probability of what was answered, over small shifts with noise."""
    least, scale = sureness.copy(), _NOISE * np.asarray(bank.std, dtype=np.float32)
    for shift in _SHIFTS:
        start = 0
        for batch in _batches(pictures):
            drawn = rng.standard_normal(batch.shape, dtype=np.float32)
            moved = np.roll(batch, shift, (2, 3)) + drawn * scale[:, None, None]
            stop = start + len(batch)
            p = softmax(np.asarray(answer(moved)))
            own = p[np.arange(len(batch)), decisions[start:stop]]
            least[start:stop] = np.minimum(least[start:stop], own)
            start = stop
    return least


def _batches(pictures: Pictures) -> Iterator[Pictures]:
    size = min(_BATCH, max(1, _BATCH_NUMBERS // max(1, pictures[0].size)))
    for start in range(0, len(pictures), size):
        yield pictures[start : start + size]


def _taken(bank: Bank, which: Indices, held: list[Pictures] | None) -> Pictures:
    """Return some pictures of a bank by their places in it, which ascend."""
    parts, start = [], 0
    for number, block in enumerate(bank.blocks):
        stop = start + block[2]
        own = which[(which >= start) & (which < stop)] - start
        if len(own):
            parts.append((bank.draw(block) if held is None else held[number])[own])
        start = stop
    return np.concatenate(parts)
