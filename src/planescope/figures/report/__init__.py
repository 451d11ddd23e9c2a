"""One HTML page that shows the hyperplanes of networks, and needs nothing beside it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from planescope.figures.report.contents import Contents, as_text
from planescope.figures.report.gather import contents_of
from planescope.figures.report.render import render
from planescope.figures.sources import open_subjects
from planescope.files.results.versions import made_by
from planescope.files.targets import PAGES, check_target
from planescope.files.writing import replacing
from planescope.hyperplanes.layer import Kind
from planescope.measurement.difference import Difference

# Of the frame in a notebook.
HEIGHT = 800


@dataclass(frozen=True, kw_only=True)
class Report:
    """A page.

    Attributes
    ----------
    contents : Contents
        What it shows, as plain data.
    html : str
        The whole file.
    """

    contents: Contents
    html: str

    def __repr__(self) -> str:
        names = ", ".join(network.name for network in self.contents.networks)
        return f"Report({names}; {len(self.html) / 2**20:.1f} MiB; .save(path) writes it)"

    def save(self, path: str | os.PathLike[str], /) -> None:
        """Write the page to an .html file.

        Raises
        ------
        UsageError
            If the name ends in another suffix.
        OutputError
            If the file cannot be written; nothing is left behind then.
        """
        check_target(path, PAGES)
        with replacing(path) as draft:
            # The name of a file may be no text.
            draft.write_text(self.html, encoding="utf-8", errors="backslashreplace", newline="\n")

    def _repr_html_(self) -> str:
        """Return the page in a frame, from which it can reach nothing of the notebook."""
        from html import escape

        return (
            f'<iframe srcdoc="{escape(self.html)}" title="planescope report" width="100%" '
            f'height="{HEIGHT}" sandbox="allow-scripts allow-downloads" '
            'allow="clipboard-write" style="border: 1px solid #ccc"></iframe>'
        )


def report(
    x: Any,
    /,
    *others: Any,
    network: str | None = None,
    data: str | None = None,
    trust: bool | str | Collection[str] = False,
    init: Any = None,
    kinds: Iterable[Kind | str] | str = (),
    command: str | None = None,
    follows: bool = False,
    difference: Difference | None = None,
) -> Report:
    """Make the page of one network, or of several to compare.

    Parameters
    ----------
    x, *others : path, Run, Tracker, Measurement, Prediction, or what `planescope.measure` takes
        A training run or its folder; a Tracker or what it saved; a saved measurement; a
        checkpoint or a live module, which is measured; resets, a relation, predictions or
        sensitivities of one of these, saved or not. A run has all that is known of it on the page:
        its training, and what resets cost and how the statistics rank the layers, where that was
        looked at.
    network, data, trust
        As for a `planescope.training.run.Run`, of all runs that paths lead to; `network` also of
        checkpoints, as `planescope.measure` takes it.
    init, kinds
        Of checkpoints and networks in memory, as `planescope.measure` takes them.
    command : str, optional
        What the page says it was made by.
    follows : bool
        Let the page look for a newer version of itself from time to time.
    difference : Difference, optional
        What moved between the first two networks, as `planescope.diff` tells it; the page has a
        section of it then.

    Returns
    -------
    Report
        Shows itself in a notebook; `save` writes it.

    Raises
    ------
    UsageError
        If there is nothing to report.
    CheckpointError
        If a run has no measurements, a saved result has another schema version, or a file is
        missing or damaged.
    MissingDependencyError
        If Jinja2 or Plotly is not installed.
    """
    subjects = open_subjects(
        (x, *others),
        remeasure=False,
        network=network,
        data=data,
        trust=trust,
        init=init,
        kinds=kinds,
    )
    contents = contents_of(subjects, made=made_by(command), follows=follows)
    if difference is not None:  # the networks themselves are subjects
        moved = dataclasses.replace(difference, measurements=None)
        contents = dataclasses.replace(contents, difference=moved)
    contents = as_text(contents)
    return Report(contents=contents, html=render(contents))
