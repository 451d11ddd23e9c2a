"""The epochs that are kept, the last one, and interruption between two batches.

All of it follows from the metrics of the epochs so far, so that a resumed run decides alike.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from planescope.files import signals

if TYPE_CHECKING:
    from planescope.training.config import RunConfig
    from planescope.training.folder.metrics import EpochMetrics


def is_last(history: Sequence[EpochMetrics], config: RunConfig, /) -> bool:
    """Tell whether this epoch is the last: all were trained, or the run is on a plateau."""
    return history[-1].epoch >= config.epochs or _on_plateau(history, config)


def is_snapshot(history: Sequence[EpochMetrics], config: RunConfig, /) -> bool:
    """Return whether the latest epoch is kept: all until one, then one in so many, and the last."""
    beyond = history[-1].epoch - config.snapshots_until
    return beyond <= 0 or beyond % config.snapshots_every == 0 or is_last(history, config)


def _on_plateau(history: Sequence[EpochMetrics], config: RunConfig) -> bool:
    """Return whether the training loss has not fallen by `min_delta` for `patience` epochs."""
    if config.patience is None:
        return False
    best, since = float("inf"), 0
    for row in history:
        if row.train_loss is None:
            continue
        since += 1
        if row.train_loss < best - config.min_delta:
            best, since = row.train_loss, 0
    return since >= config.patience


@contextlib.contextmanager
def on_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at the first signal that asks for an end; a second one interrupts at once.

    Of SIGTERM and SIGHUP that holds where something hears them already, as the command line does.
    Only a program's main thread hears signals; in another this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    found = {number: signal.getsignal(number) for number in signals.ENDING}
    usual = {number: handler for number, handler in found.items() if callable(handler)}

    def first(number: int, _: Any) -> None:
        for each, handler in usual.items():
            signal.signal(each, handler)
        signals.note(number)
        stop()

    for number in usual:
        signal.signal(number, first)
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
