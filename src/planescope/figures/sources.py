"""From a path, whatever it is of, to what is known of one network."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from planescope.criticality.plan.planned import Plan
from planescope.criticality.prediction.record import Prediction
from planescope.criticality.relation.record import Relation
from planescope.criticality.resets.record import Resets
from planescope.criticality.sensitivity.record import Sensitivity
from planescope.files.errors import CheckpointError, UsageError
from planescope.files.folders import inside
from planescope.files.results.result import Result
from planescope.files.results.saved import Saved, found_saved
from planescope.hyperplanes.layer import Kind
from planescope.measurement.measure import measure
from planescope.measurement.record import SCHEMA as MEASUREMENT
from planescope.measurement.record import Measurement
from planescope.training.run import Run
from planescope.training.tracker.history import History

if TYPE_CHECKING:
    from planescope.training.config import RunConfig

# What files may hold, by the name of its schema.
_KINDS: Mapping[str, type[Result]] = {
    kind.SCHEMA.partition("/")[0]: kind
    for kind in (Measurement, Resets, Relation, Plan, Sensitivity, Prediction, History)
}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """All that is known of one network.

    Attributes
    ----------
    name : str
        Short; other subjects opened with it have others.
    path : str
        Where it was found.
    measurement : Measurement or None
        Of the network as it was trained; None where there is only what its resets cost. With the
        values of single filters, unless it was loaded from a file.
    run : Run or None
        The training, where there is one.
    config : RunConfig or None
        What the run was started with.
    resets : Resets or None
        What its layers, put back, cost, where that was looked at.
    relation : Relation or None
        How scores of some networks relate to resets; such a subject has nothing else.
    sensitivities : tuple of Sensitivity
        What it costs to prune, thin, factor or quantise its layers, where that was looked at.
    predictions : tuple of Prediction
        Which of its layers are critical, told without labels, likewise.
    plan : Plan or None
        A smaller network made out of one; such a subject has nothing else.
    history : History or None
        The updates of a Tracker; `measurement` is the last of them.
    """

    name: str
    path: str
    measurement: Measurement | None = None
    run: Run | None = None
    config: RunConfig | None = field(default=None, repr=False)
    resets: Resets | None = None
    relation: Relation | None = None
    sensitivities: tuple[Sensitivity, ...] = ()
    predictions: tuple[Prediction, ...] = ()
    plan: Plan | None = None
    history: History | None = None


def open_subjects(
    sources: Iterable[Any],
    /,
    *,
    remeasure: bool = True,
    network: str | None = None,
    data: str | None = None,
    trust: bool | str | Collection[str] = False,
    init: Any = None,
    kinds: Iterable[Kind | str] | str = (),
) -> tuple[Subject, ...]:
    """Open each of some sources.

    Parameters
    ----------
    sources : iterable of path, Run, Tracker, input of `measure`, or Measurement, Resets and so on
        A run's folder; a study's, of which all runs that are made are opened; a file that holds a
        measurement, resets, a relation, a prediction, a sensitivity or what a Tracker saved; or a
        checkpoint, which is measured, as is a run's last snapshot.
    remeasure : bool
        Measure a run's last snapshot, which gives the values of its filters; else a run comes
        without a measurement.
    network : str, optional
        As for a `Run`, of all runs that paths lead to; of checkpoints as `measure` takes it.
    data, trust
        As for a `Run`, of all runs that paths lead to.
    init, kinds
        Of checkpoints and networks in memory, as `measure` takes them.

    Returns
    -------
    tuple of Subject
        Their names differ: several of one name are numbered.

    Raises
    ------
    CheckpointError
        If a run has no measurements or no snapshots, a study no run that is made, a saved result
        has another schema version, or a file is missing or damaged.
    PlanescopeError
        As `planescope.measure`.
    """
    given = {"network": network, "data": data, "trust": trust}
    asked = {"network": network, "init": init, "kinds": kinds or None}
    how = {name: value for name, value in asked.items() if value is not None}
    parts = [one for source in sources for one in _parts(source, given)]
    found = [_opened(one, remeasure, how) for one in parts]
    has_run = any(subject.run is not None for subject in found)
    if data and not has_run:
        raise UsageError("--data is about runs, and none was given; leave it out")
    if how and not any(map(_is_measured, parts)):
        about = " and ".join(f"--{name}" for name in how if name != "network" or not has_run)
        if about:
            raise UsageError(
                f"{about}: nothing that was given is measured here, a checkpoint or a network; "
                "leave it out"
            )
    return tuple(_apart(found))


def _parts(source: Any, given: Mapping[str, Any]) -> Iterable[Any]:
    """Return the runs of a study, a run, a saved result as it was read, or the source itself."""
    if not isinstance(source, (str, os.PathLike)):
        return [source]
    if not inside(source, "study.yaml").is_file():
        run = Run(source, **given)
        return [run if run.exists else found_saved(source) or source]
    from planescope.study.folder import Study

    runs = Study(source, **given).runs
    if not runs:
        raise CheckpointError(f"{source}: no run of this study is made yet; planescope study does")
    return runs


def _apart(subjects: list[Subject]) -> Iterable[Subject]:
    counts: dict[str, int] = {}
    taken = {subject.name for subject in subjects}
    for subject in subjects:
        name, counts[subject.name] = subject.name, counts.get(subject.name, 0) + 1
        if counts[subject.name] > 1:
            name = f"{subject.name}-{counts[subject.name]}"
            while name in taken:
                counts[subject.name] += 1
                name = f"{subject.name}-{counts[subject.name]}"
            taken.add(name)
        yield replace(subject, name=name)


def _is_measured(source: Any) -> bool:
    """Return whether a source is a checkpoint or a network: nothing that was found before."""
    return not isinstance(source, (Saved, Run, *_KINDS.values())) and not _is_tracker(source)


def _is_tracker(source: Any) -> bool:
    return isinstance(getattr(source, "history", None), History)


def _opened(source: Any, remeasure: bool, how: Mapping[str, Any]) -> Subject:
    if isinstance(source, Saved):
        return _loaded(source, remeasure)
    if isinstance(source, Measurement):
        return _measured(source)
    if isinstance(source, Resets):
        return Subject(name=_short(source.source), path=source.source, resets=source)
    if isinstance(source, Relation):
        return Subject(name="relation", path=", ".join(source.runs), relation=source)
    if isinstance(source, Sensitivity):
        return Subject(name=_short(source.source), path=source.source, sensitivities=(source,))
    if isinstance(source, Prediction):
        return Subject(name=_short(source.source), path=source.source, predictions=(source,))
    if isinstance(source, Plan):
        return Subject(name="plan", path=source.source, plan=source)
    if isinstance(source, Run):
        return _run(source, remeasure)
    if isinstance(source, History):
        return _followed(source)
    if _is_tracker(source):
        return _followed(source.history)
    if not isinstance(source, (str, os.PathLike)):
        return _measured(measure(source, **how))
    return replace(_measured(measure(source, **how)), path=str(source))


def _loaded(saved: Saved, remeasure: bool) -> Subject:
    kind = _KINDS.get((saved.schema or MEASUREMENT).partition("/")[0])
    if kind is None:
        raise CheckpointError(
            f"{saved.path}: holds {saved.schema!r:.80}; give a run, a measurement, resets, a "
            "relation, a prediction, a sensitivity, a plan, what a Tracker saved, or a checkpoint"
        )
    found = _opened(kind.of_saved(saved), remeasure, {})
    return replace(found, name=Path(saved.path).stem, path=saved.path)


def _measured(measurement: Measurement) -> Subject:
    path = measurement.source.path
    return Subject(name=_short(path), path=path, measurement=measurement)


def _followed(history: History) -> Subject:
    """Return the network that a Tracker saw: that of its last update."""
    if not history.records:
        raise UsageError("the Tracker has no update yet; train with it first")
    return replace(_measured(history.records[-1].read()), history=history)


def _short(path: str) -> str:
    """Return the name of a file or folder without its suffix; of ``timm:NAME``, that."""
    return PurePath(path.rstrip("/")).stem or path


def _run(run: Run, remeasure: bool) -> Subject:
    return Subject(
        name=run.path.resolve().name,
        path=str(run.path),
        measurement=_remeasured(run) if remeasure else None,
        run=run,
        config=None if run.tracked is not None else run.config,
        resets=Resets.load(run.resets) if run.resets.is_file() else None,
    )


def _remeasured(run: Run) -> Measurement | None:
    """Return the last snapshot, measured as the run did.

    None where it kept none, or not its norms.
    """
    config, table, snapshots = run.about, run.measurements, run.snapshots
    if run.keeps_tables_alone:
        return None
    if not snapshots and run.tracked is not None:
        return None  # of Keras, whose weights only Keras lays out
    if not snapshots:
        raise CheckpointError(f"{run.path}: has no snapshots, which are what is measured")
    if not run.can_be_measured:
        return None
    first, last = snapshots[min(snapshots)], snapshots[max(snapshots)]
    return measure(
        last,
        view=config.view,
        kinds=table["kind"].unique(),
        network=run.structure,
        init=first if first != last and min(snapshots) == 0 else None,
    )
