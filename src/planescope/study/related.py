"""The relation of plain runs to their resets: of their weights, or kept in their place."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from planescope.criticality.relation.record import Relation
from planescope.criticality.relation.relate import NoDropsError, relate
from planescope.files.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planescope.study.folder import Study
    from planescope.training.run import Run


def relation_of(study: Study, runs: Sequence[Run], /) -> Relation | None:
    """Relate runs to their resets; None where none was reset, or none is better than chance.

    Scores are of the weights. Of runs that keep tables alone, the relation is the study's own.

    Raises
    ------
    UsageError
        If weights are gone, and the study's relation is of other runs.
    """
    reset = [run for run in runs if run.resets.is_file()]
    if not reset:
        return None
    if not any(run.keeps_tables_alone for run in reset):
        try:
            return relate(reset)
        except NoDropsError:
            return None
    wanted = {run.path.name for run in reset}
    kept = Relation.load(study.relation_file) if study.relation_file.is_file() else None
    related = set() if kept is None else {Path(run).name for run in kept.runs}
    # Runs that are no better than chance have no layers there, but a note.
    told = () if kept is None else kept.notes
    lost = [name for name in wanted - related if not any(name in note for note in told)]
    if kept is None or lost or related - wanted:
        raise UsageError(
            f"{study.path}: runs are kept without their weights, and relation.json is not of these "
            "runs; keep the study again, or make its runs"
        )
    return kept
