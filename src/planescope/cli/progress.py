"""Progress on a terminal, once a command has taken longer than a second; silent in a pipe."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from planescope.cli.printing import console
from planescope.files.errors import printable

if TYPE_CHECKING:
    from rich.progress import Progress

# Rich costs 0.1 s to import: not worth it for what is done at once.
DELAY_S = 1.0


@contextlib.contextmanager
def layer_progress() -> Iterator[Callable[[int, int, str], None] | None]:
    """Give a callback (done, total, name) that draws a bar; None where nobody would see it."""
    if not sys.stderr.isatty():
        yield None
        return
    began = time.monotonic()
    bar: Progress | None = None

    def advance(done: int, total: int, name: str) -> None:
        nonlocal bar
        if bar is None:
            if time.monotonic() - began < DELAY_S:
                return
            bar = _start()
        bar.update(bar.task_ids[0], completed=done, total=total, layer=printable(name))

    try:
        yield advance
    finally:
        if bar is not None:
            bar.stop()


def _start() -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    layer = TextColumn("{task.fields[layer]}", markup=False)
    bar = Progress(
        BarColumn(), MofNCompleteColumn(), layer, console=console(stderr=True), transient=True
    )
    bar.add_task("layers", layer="")
    bar.start()
    return bar
