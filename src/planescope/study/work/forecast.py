"""The runs that a study would make, and an estimate of the time: a dry run."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from planescope.files.errors import counted
from planescope.files.results.result import Result
from planescope.files.results.versions import cores
from planescope.study.folder import Study
from planescope.study.plan import read_plan
from planescope.study.work import cluster
from planescope.study.work.costs import GPU, THREAD, Estimate, estimate, seconds_of

if TYPE_CHECKING:
    from planescope.study.spec import Spec


@dataclass(frozen=True, kw_only=True)
class ForecastRun:
    """A run that a study makes.

    Attributes
    ----------
    name : str
    state : str
        ``"done"``, ``"failed"``, ``"begun"`` or ``"new"``.
    settings : dict
        Where its config departs from the default.
    seconds : float or None
        About what is left of it takes, of one that is done all of it, on one thread or, by runs
        that were made, on what made those; None where the network or the data are not known here.
    """

    name: str
    state: str
    settings: dict[str, Any]
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Forecast(Result):
    """Runs of a study and an estimate of the time.

    Attributes
    ----------
    runs : tuple of ForecastRun
    made : int
        Runs that were made already, which the seconds are scaled by.
    workers : int
        That the rest would be made with here.
    estimates : tuple of Estimate
        Of the rest: on one thread, and on one GPU.
    """

    SCHEMA: ClassVar[str] = "planescope.study-forecast/1"
    WHAT: ClassVar[str] = "forecast"

    runs: tuple[ForecastRun, ...]
    made: int
    workers: int
    estimates: tuple[Estimate, ...]

    @property
    def sentence(self) -> str:
        """Say how many runs there are, how long they take, and on what basis."""
        rest = [run for run in self.runs if run.state != "done"]
        known = sum(run.seconds or 0.0 for run in rest)
        thread, gpu = self.estimates
        parts = [f"{counted(len(self.runs), 'run')}, {len(self.runs) - len(rest)} done."]
        unknown = "their network or data are not known before they are made."
        if rest and thread.unknown == len(rest):
            parts.append(f"How long the rest take is not known: {unknown}")
            return " ".join(parts)
        if rest and self.made:
            parts.append(
                f"By those, the rest take about {span(known / self.workers)} with "
                f"{counted(self.workers, 'worker')}."
            )
        elif rest:
            parts.append(
                f"By their operations alone the rest take about {span(3600 * thread.hours)} on "
                f"{thread.device}, {span(3600 * thread.hours / self.workers)} with "
                f"{counted(self.workers, 'worker')} here, or {span(3600 * gpu.hours)} on "
                f"{gpu.device}; once some are made, those tell better."
            )
        if thread.unknown:
            parts.append(f"{thread.unknown} of them are not in this: {unknown}")
        return " ".join(parts)


def forecast(
    file: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    /,
    *,
    workers: int | None = None,
) -> Forecast:
    """List the runs of a study and estimate the time; nothing is made.

    Parameters
    ----------
    file : path
        Its YAML.
    out : path, optional
        Folder of the study: what is made there is not made again, and tells how long runs take.
    workers : int, optional
        As for `make_study`.

    Raises
    ------
    UsageError, CheckpointError
        As `make_study`, of the YAML.
    """
    specs = read_plan(file).specs
    states, took, left = _made(specs, None if out is None else Path(out))
    scale = _scale(specs, took)
    rest = [spec for spec in specs if spec.name in left]
    count = workers or len(cluster.gpus()) or cores()
    return Forecast(
        runs=tuple(
            ForecastRun(
                name=spec.name,
                state=states[spec.name],
                settings=dict(spec.settings),
                seconds=_rounded(seconds_of(spec, steps=left.get(spec.name)), scale),
            )
            for spec in specs
        ),
        made=len(took),
        workers=max(1, min(count, len(rest))),
        estimates=(estimate(rest, THREAD, left), estimate(rest, GPU, left)),
    )


def _rounded(seconds: float | None, scale: float) -> float | None:
    return None if seconds is None else round(seconds * scale, 1)


def _made(
    specs: Sequence[Spec], out: Path | None
) -> tuple[dict[str, str], dict[str, float], dict[str, Collection[str]]]:
    """Return the state of each run, seconds of those that are done, and what is left of others."""
    states = dict.fromkeys((spec.name for spec in specs), "new")
    took: dict[str, float] = {}
    left: dict[str, Collection[str]] = {spec.name: spec.make for spec in specs}
    if out is None or not (out / "study.yaml").is_file():
        return states, took, left
    study = Study(out)
    tables = study.in_table()
    for spec in specs:
        record = study.record(spec.name)
        left[spec.name] = record.missing(spec, in_table=spec.name in tables)
        if study.is_done(spec, record, tables):
            states[spec.name] = "done"
            took[spec.name] = sum(record.made.values())
            del left[spec.name]
        elif record.error:
            states[spec.name] = "failed"
        elif study.run(spec.name).exists:
            states[spec.name] = "begun"
    return states, took, left


def _scale(specs: Sequence[Spec], took: dict[str, float]) -> float:
    """Tell by how much runs that were made took longer than their operations say."""
    known = [
        (took[spec.name], s) for spec in specs if spec.name in took and (s := seconds_of(spec))
    ]
    expected = sum(s for _, s in known)
    return sum(seconds for seconds, _ in known) / expected if expected else 1.0


def span(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 72 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 3600:,.0f} h"
