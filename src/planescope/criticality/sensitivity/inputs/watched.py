"""Inputs that are looked at on their way to the network: all are numbers, and not all alike.

To import this is to import torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

from planescope.criticality.resets.engine.feed import Feed
from planescope.data.roles import Batch
from planescope.files.errors import UsageError


class Alike:
    """Tells of inputs that go by whether all are alike, example by example."""

    def __init__(self) -> None:
        self._one: torch.Tensor | None = None
        self._are, self._examples = True, 0

    def look_at(self, batch: Batch) -> None:
        """Hold the first input of a batch, where it has a row an example, against those before."""
        self._examples += batch.size
        rows = batch.args[0] if batch.args else None
        if not self._are or not isinstance(rows, torch.Tensor) or len(rows) != batch.size:
            self._are = False
            return
        if self._one is None:
            self._one = rows[0].clone()
        self._are = rows.shape[1:] == self._one.shape and bool((rows == self._one).all())

    def refuse(self, name: str) -> None:
        """Refuse inputs that were all alike.

        Raises
        ------
        UsageError
            If they were, and more than one.
        """
        if self._are and self._examples > 1:
            raise UsageError(f"{name}: all inputs are alike, which tell nothing of layers")


def check_finite(batch: Batch, name: str, /) -> None:
    """Refuse inputs that hold NaN or an infinity.

    Raises
    ------
    UsageError
        If one does.
    """
    for value in (*batch.args, *batch.kwargs.values()):
        is_number = isinstance(value, torch.Tensor) and value.is_floating_point()
        if is_number and not bool(value.isfinite().all()):
            raise UsageError(f"{name}: an input holds NaN or an infinity; leave it out")


class Watched:
    """Batches of a feed as they come, looked at on the way: all are numbers, and not all alike."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._batches: Iterator[Batch] | None = None
        self.seen = Alike()

    def first(self, device: torch.device) -> Batch:
        """Return the first batch, which is given again by `on`."""
        batches = self._feed.on(device)
        batch = next(batches)
        self._batches = itertools.chain([batch], batches)
        return batch

    def on(self, device: torch.device) -> Iterator[Batch]:
        """Give all batches; once, or as often as the feed does."""
        batches, self._batches = self._batches or self._feed.on(device), None
        self.seen = Alike()
        for batch in batches:
            check_finite(batch, self._feed.name)
            self.seen.look_at(batch)
            yield batch
