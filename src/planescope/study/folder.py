"""The folder of a study: what is in it, and how far it is.

    study.yaml      what it was last started with
    runs/NAME/      a run each, with study.json: what was made of it, or why that failed
    table/          a Parquet data set: every run at every snapshot, layer by layer
    relation.json   the statistics of all runs against their resets

A run's folder is the truth: remove one, and the run is made again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from planescope.files.errors import CheckpointError, UsageError
from planescope.files.folders import inside, make_inside, names_inside, replacing_inside
from planescope.files.locks import held, is_locked
from planescope.files.reading import read_text
from planescope.files.results import records
from planescope.files.results.result import Result
from planescope.study.config import StudyConfig
from planescope.study.plan import Plan, read_plan
from planescope.study.record import RECORD_SCHEMA, RunRecord
from planescope.training.run import Run

if TYPE_CHECKING:
    import pandas as pd

    from planescope.study.spec import Spec


@dataclass(frozen=True, kw_only=True)
class Running:
    """A run that is being made: its epoch of how many, and the last validation accuracy."""

    name: str
    step: str
    epoch: int
    epochs: int
    accuracy: float | None


@dataclass(frozen=True, kw_only=True)
class StudyStatus(Result):
    """The progress of a study.

    Attributes
    ----------
    path : str
    total, done : int
        Runs, and those of which everything is made.
    running : tuple of Running
    failed : tuple of (name, error)
    seconds_left : float or None
        An estimate; None before the first run is made.
    """

    SCHEMA: ClassVar[str] = "planescope.study-status/1"
    WHAT: ClassVar[str] = "status"

    path: str
    total: int
    done: int
    running: tuple[Running, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()
    seconds_left: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data as in the JSON form."""
        failed = [{"name": name, "error": error} for name, error in self.failed]
        return super().to_dict() | {"failed": failed}


class Study:
    """A study by the path of its folder; what it has is read when it is asked for.

    Parameters
    ----------
    path : path
    network, data, trust
        As for each `Run` of it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        network: str | None = None,
        data: str | None = None,
        trust: bool | str | Collection[str] = False,
    ) -> None:
        self.path = Path(path)
        self._given: dict[str, Any] = {"network": network, "data": data, "trust": trust}
        self._plan: Plan | None = None

    def __repr__(self) -> str:
        return f"Study({str(self.path)!r})"

    @classmethod
    def create(cls, path: str | os.PathLike[str], plan: Plan) -> Study:
        """Make or update the folder of a study; runs that are there stay.

        Raises
        ------
        OutputError
            If it cannot be made.
        """
        study = cls(path)
        for folder in ("runs", "table"):
            make_inside(study.path, folder)
        study._plan = plan
        return study

    def save_plan(self) -> None:
        """Keep the YAML that the study is made by."""
        with replacing_inside(self.path, "study.yaml") as draft:
            draft.write_text(self.plan.document.text, encoding="utf-8", newline="\n")

    @property
    def plan(self) -> Plan:
        """Return its YAML and the runs it comes to.

        Raises
        ------
        CheckpointError
            If there is no study.
        """
        if self._plan is None:
            file = inside(self.path, "study.yaml")
            if not file.is_file():
                raise CheckpointError(f"{self.path}: is no study: it has no study.yaml")
            self._plan = read_plan(file)
        return self._plan

    @property
    def config(self) -> StudyConfig:
        """Return the study's file as it was last started."""
        return self.plan.config

    @property
    def specs(self) -> tuple[Spec, ...]:
        """Return all its runs, made or not, in order."""
        return self.plan.specs

    @property
    def runs(self) -> tuple[Run, ...]:
        """Return those of which everything is made, in order."""
        tables = self.in_table()
        return tuple(
            self.run(spec.name)
            for spec in self.specs
            if self.is_done(spec, self.record(spec.name), tables)
        )

    def run(self, name: str, /) -> Run:
        """Return the run of a name, whether it is there or not."""
        return Run(inside(self.path, "runs", name), **self._given)

    @property
    def table_folder(self) -> Path:
        """Return the Parquet data set of all runs at all snapshots, layer by layer."""
        return inside(self.path, "table")

    def table(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Return every layer of every run at every snapshot.

        Columns are `run`, the fields of its config, what its epochs came to, the keys of a
        measurement's layers, and what putting the layer back to that snapshot cost
        (`relative_drop` and others). Text is categorical. The rows of a run that was measured, and
        whose part of the table is not there, are made from its own files.

        Parameters
        ----------
        columns : sequence of str, optional
            Only these.

        Raises
        ------
        CheckpointError
            If nothing is there yet, a column is unknown, or a file is damaged.
        """
        from planescope.study.table import read_table

        names = [spec.name for spec in self.specs]
        lacking = self.there().intersection(names) - self.in_table()
        without = {n: self.run(n) for n in names if n in lacking and self.record(n).is_measured}
        return read_table(self.table_folder, names, columns, without=without)

    @property
    def relation_file(self) -> Path:
        """Return the path of the `Relation` of all runs."""
        return inside(self.path, "relation.json")

    @property
    def status(self) -> StudyStatus:
        """Return the progress of the study, from what lies in its folder."""
        specs = self.specs  # says so where there is no study
        there = self.there()
        tables = self.in_table()
        done, failed, running = 0, [], []
        for spec in specs:
            if spec.name not in there:
                continue
            record = self.record(spec.name)
            if self.is_done(spec, record, tables):
                done += 1
            elif (run := self.running(spec, record)) is not None:
                running.append(run)
            elif record.error:
                failed.append((spec.name, record.error))
        return StudyStatus(
            path=str(self.path),
            total=len(specs),
            done=done,
            running=tuple(running),
            failed=tuple(failed),
        )

    def is_done(self, spec: Spec, record: RunRecord, tables: frozenset[str]) -> bool:
        """Tell whether all steps of a run are done; rows that are lost cost nothing to make."""
        in_table = spec.name in tables or record.is_measured
        return not record.error and not record.missing(spec, in_table=in_table)

    def in_table(self) -> frozenset[str]:
        """Return the names of the runs that have rows in the table."""
        names = names_inside(self.path, "table")
        return frozenset(name.removesuffix(".parquet") for name in names)

    def there(self) -> frozenset[str]:
        """Return the names of the runs that have a folder."""
        return frozenset(names_inside(self.path, "runs"))

    def running(self, spec: Spec, record: RunRecord) -> Running | None:
        """Return the progress of a run that a process is making now."""
        if not is_locked(self._run_lock(spec.name)):
            return None
        # A row may be half there to a reader in another process only if it were not renamed.
        metrics = self.run(spec.name).metrics
        missing = record.missing(spec, in_table=False)
        return Running(
            name=spec.name,
            step=missing[0] if missing else "measure",
            epoch=metrics[-1].epoch if metrics else 0,
            epochs=int(spec.get("epochs")),
            accuracy=metrics[-1].val_accuracy if metrics else None,
        )

    def record(self, name: str, /) -> RunRecord:
        """Return the record of what was made of a run, an empty one if there is none.

        Raises
        ------
        CheckpointError
            If it is damaged.
        """
        path = self._record_file(name)
        try:
            data = json.loads(read_text(path))
            if data.pop("schema") != RECORD_SCHEMA:
                raise ValueError("its schema is another")
            made = records.record(RunRecord, data)
            if made.name != name:
                raise ValueError(f"it is of {made.name!r:.80}")
            return made
        except CheckpointError as exc:
            if isinstance(exc.__cause__, FileNotFoundError):
                return RunRecord(name=name)
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
            raise CheckpointError(
                f"{path}: cannot be read ({exc}); remove it to have the run looked at again"
            ) from exc

    def save_record(self, record: RunRecord) -> None:
        """Write what was made of a run.

        Raises
        ------
        OutputError
            If the disk is full.
        """
        fields = {"schema": RECORD_SCHEMA, **dataclasses.asdict(record)}
        make_inside(self.path, "runs", record.name)
        with replacing_inside(self.path, "runs", record.name, "study.json") as draft:
            draft.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8", newline="\n")

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the study, so that no other process makes it; a killed process lets go.

        Raises
        ------
        UsageError
            If another process holds it.
        """
        with held(inside(self.path, ".lock"), timeout=0) as is_ours:
            if not is_ours:
                raise UsageError(
                    f"{self.path}: another process is making this study; look how far it is with "
                    "--status, or give another --out"
                )
            yield

    @contextlib.contextmanager
    def lock_run(self, name: str) -> Iterator[None]:
        """Hold a run; waits while another process does, as one that outlived its study."""
        make_inside(self.path, "runs", name)
        with held(self._run_lock(name)):
            yield

    def _run_lock(self, name: str) -> Path:
        return inside(self.path, "runs", name, ".study.lock")

    def _record_file(self, name: str) -> Path:
        return inside(self.path, "runs", name, "study.json")


def runs_in(
    paths: Sequence[str | os.PathLike[str]],
    /,
    *,
    network: str | None = None,
    data: str | None = None,
    trust: bool | str | Collection[str] = False,
) -> list[Run]:
    """Return the runs of some paths.

    A study stands for those of its runs of which everything is made.

    Parameters
    ----------
    network, data, trust
        As for a `Run`.

    Raises
    ------
    UsageError
        If a study has no such run yet.
    """
    runs: list[Run] = []
    for path in paths:
        if not inside(path, "study.yaml").is_file():
            runs.append(Run(path, network=network, data=data, trust=trust))
            continue
        made = Study(path, network=network, data=data, trust=trust).runs
        if not made:
            raise UsageError(f"{path}: no run of this study is finished yet; go on with it first")
        runs.extend(made)
    return runs
