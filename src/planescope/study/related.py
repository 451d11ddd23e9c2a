"""The relation of plain runs to their resets: of their weights, or kept in their place."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from planescope.criticality.relation.record import RelatedLayer, Relation
from planescope.criticality.relation.relate import NoDropsError, relate, relate_layers
from planescope.files.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planescope.study.folder import Study
    from planescope.training.run import Run


def relation_of(study: Study, runs: Sequence[Run], /) -> Relation | None:
    """Relate runs to their resets; None where none was reset, or none is better than chance.

    Scores are of the weights. What runs that keep tables alone came to is taken from the study's
    own relation: of such runs alone it is that one, beside others their layers join.

    Raises
    ------
    UsageError
        If weights are gone, and the study's relation is of other runs.
    """
    reset = [run for run in runs if run.resets.is_file()]
    whole = [run for run in reset if not run.keeps_tables_alone]
    kept = None
    if len(whole) < len(reset):
        kept = _kept(study, {run.path.name for run in reset}, {run.path.name for run in whole})
    try:
        new = relate(whole) if whole else None
    except NoDropsError:
        new = None
    return new if kept is None else kept if new is None else _together(reset, kept, new)


def _kept(study: Study, wanted: set[str], whole: set[str]) -> Relation:
    """Return the study's own relation, if it is of the runs that have no weights any more."""
    kept = Relation.load(study.relation_file) if study.relation_file.is_file() else None
    related = set() if kept is None else {Path(run).name for run in kept.runs}
    # Runs that are no better than chance have no layers there, but a note.
    told = () if kept is None else kept.notes
    lost = [name for name in wanted - whole - related if not any(name in note for note in told)]
    if kept is None or lost or related - wanted:
        raise UsageError(
            f"{study.path}: runs are kept without their weights, and relation.json is not of these "
            "runs; keep the study again, or make its runs"
        )
    return kept


def _together(reset: Sequence[Run], kept: Relation, new: Relation) -> Relation:
    """Relate the layers of both, run by run; of a run that is in both, those of its weights."""
    by_run: dict[str, list[RelatedLayer]] = {}
    for relation in (kept, new):
        for run in relation.runs:
            own = [layer for layer in relation.layers if layer.run == run]
            by_run[Path(run).name] = own
    layers = [
        dataclasses.replace(layer, run=str(run.path))
        for run in reset
        for layer in by_run.get(run.path.name, ())
    ]
    # What is said of the number of runs is said anew.
    names = [run.path.name for run in reset]
    notes = [note for note in (*kept.notes, *new.notes) if any(name in note for name in names)]
    return relate_layers(
        layers, critical=new.critical, robust=new.robust, draws=new.draws, seed=new.seed,
        notes=[*dict.fromkeys(notes)],
    )  # fmt: skip
