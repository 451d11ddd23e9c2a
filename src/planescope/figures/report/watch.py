"""A page that follows a training: made anew whenever the run has something new."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from planescope.figures.report import Report, report
from planescope.files.errors import CheckpointError
from planescope.files.targets import PAGES, check_target
from planescope.training.folder.status import State
from planescope.training.run import Run

GOING_ON = (State.NEW, State.RUNNING)


def watch(
    run: Run | str | os.PathLike[str],
    out: str | os.PathLike[str],
    /,
    *,
    command: str | None = None,
    interval: float = 2.0,
    on_page: Callable[[Report], None] | None = None,
) -> Report:
    """Write the page of a run, and write it anew until the training has ended.

    While it goes on the page looks for a newer version of itself; the last one does not. A run
    that was not measured yet is waited for.

    Parameters
    ----------
    run : Run or path
    out : path
        An .html file.
    command : str, optional
        What the page says it was made by.
    interval : float
        Seconds between looks at the run.
    on_page : callable, optional
        Called with each page once it is written.

    Returns
    -------
    Report
        The last page.

    Raises
    ------
    UsageError, CheckpointError, OutputError
        As `report` and `Report.save`.
    """
    run = Run.open(run)
    check_target(out, PAGES)
    seen = None
    while True:
        # Asked for before anything is read: what is written meanwhile is seen the next time.
        goes_on, stamp = run.status.state in GOING_ON, run.stamp
        if not goes_on or (stamp != seen and _is_measured(run)):
            page = report(run, command=command, follows=goes_on)
            page.save(out)
            seen = stamp
            if on_page is not None:
                on_page(page)
        if not goes_on:
            return page
        time.sleep(interval)


def _is_measured(run: Run) -> bool:
    try:
        return bool(run.measured_layers)
    except CheckpointError:
        return False
