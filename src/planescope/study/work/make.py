"""Makes a study: hands out its runs, hears how they end, and loses none on the way."""

from __future__ import annotations

import contextlib
import math
import os
import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from planescope.files.drafts import remove_drafts
from planescope.files.errors import PlanescopeError, RunError, StoppedError, UsageError
from planescope.files.results.versions import cores
from planescope.study.folder import Running, Study, StudyStatus
from planescope.study.plan import read_plan
from planescope.study.record import RunRecord
from planescope.study.work import cluster
from planescope.study.work.costs import seconds_of
from planescope.study.work.worker import make_run

if TYPE_CHECKING:
    from distributed import Client, Future

    from planescope.study.spec import Spec

# Runs that the scheduler knows of at once; a cluster that grows by demand sees enough of it.
WINDOW = 1000
# Seconds between two looks at how far runs are.
LOOK_S = 1.0
# Seconds that a scheduler which was there has to come back.
RETURN_S = 120.0

OnStatus = Callable[[StudyStatus], None]


class _LostError(Exception):
    """The scheduler went away."""


def make_study(
    file: str | os.PathLike[str],
    out: str | os.PathLike[str],
    /,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    security: Any = None,
    dashboard: Callable[[str], None] | None = None,
    retry_failed: bool = False,
    on_status: OnStatus | None = None,
) -> Study:
    """Make what is missing of a study.

    What is finished is left as it is, what was broken off goes on after its last epoch. Runs that
    fail are kept with their error, and the others made all the same.

    Parameters
    ----------
    file : path
        Its YAML.
    out : path
        Folder of the study.
    workers : int, optional
        Processes on this machine; by default one a GPU, or else one a core.
    scheduler : str, optional
        Address of a Dask scheduler, whose workers are used instead. They must see `out` and the
        data under the same paths.
    security : distributed.Security, optional
        Certificates for that scheduler; by default as Dask's own configuration says.
    dashboard : callable, optional
        Called with the address of Dask's dashboard, which any user of this machine can look at;
        without it there is none. Of workers on this machine.
    retry_failed : bool
        Try again what failed before.
    on_status : callable, optional
        Called with how far the study is, about once a second.

    Returns
    -------
    Study
        Whatever failed is in its `status`.

    Raises
    ------
    UsageError
        If the YAML is wrong, another process makes this study, no scheduler answers, or its
        workers lack the package or have another version.
    CheckpointError
        If the YAML cannot be read.
    StoppedError
        If it was interrupted, as by Ctrl-C; the same call goes on.
    RunError
        If the scheduler went away and did not come back.
    OutputError
        If the folder cannot be made.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"the number of workers must be 1 or more, not {workers}")
    if workers is not None and scheduler is not None:
        raise UsageError("a scheduler has workers of its own; leave out --workers")
    if scheduler is None and security is not None:
        raise UsageError("certificates are for a scheduler; give --scheduler too")
    if scheduler is not None and dashboard is not None:
        raise UsageError("a scheduler has a dashboard of its own; leave out --dashboard")
    study = Study.create(out, read_plan(file))
    with study.lock():
        study.save_plan()
        _tidy(study)
        drive = _Drive(study, on_status, retry_failed=retry_failed)
        try:
            drive.run(workers, scheduler, security=security, dashboard=dashboard)
            if "relate" in study.config.make:
                _relate(study)
        except KeyboardInterrupt as exc:
            with contextlib.suppress(PlanescopeError):
                _tidy(study)  # of workers that were killed in writing
            raise StoppedError(f"{study.path}: interrupted; the same command goes on") from exc
    return study


def _relate(study: Study) -> None:
    """Hold the statistics of all runs against their resets, unless that was done with these."""
    from planescope.criticality.relation.record import Relation
    from planescope.criticality.relation.relate import relate

    runs = {str(run.path): run.resets for run in study.runs if run.resets.is_file()}
    if not runs:
        return
    if study.relation_file.is_file():
        made = study.relation_file.stat().st_mtime_ns
        is_new = all(resets.stat().st_mtime_ns < made for resets in runs.values())
        found = Relation.load(study.relation_file) if is_new else None
        # One of an earlier version comes without what it says of layers.
        if found is not None and found.advice and set(found.runs) <= runs.keys():
            return
    relate(runs).save(study.relation_file)


def _tidy(study: Study) -> None:
    from planescope.study.table import remove_others, renew

    remove_others(study.table_folder, [spec.name for spec in study.specs])
    renew(study.table_folder)
    # Runs that are made are not looked into again.
    for folder in (study.path, study.table_folder):
        remove_drafts(folder)
    for name in study.there():
        study.run(name).remove_drafts()


@dataclass
class _Drive:
    """One making of a study."""

    study: Study
    on_status: OnStatus | None
    retry_failed: bool = field(kw_only=True)

    def __post_init__(self) -> None:
        self._failed: dict[str, str] = {}
        self._missing: dict[str, list[str]] = {}  # steps of the runs that are to be made
        self._done = 0
        self._made = 0  # of those that are done: now, not before
        self._seconds = 0.0  # that they took,
        self._expected = 0.0  # and what they had been estimated at
        self._slots = 1

    def run(
        self,
        workers: int | None,
        scheduler: str | None,
        *,
        security: Any = None,
        dashboard: Callable[[str], None] | None = None,
    ) -> None:
        """Make all runs that are not made, however often the scheduler goes away meanwhile."""
        if scheduler is None:
            if todo := self._todo():
                count = workers or len(cluster.gpus()) or cores()
                try:
                    count = min(count, len(todo))
                    with cluster.local_client(count, dashboard=dashboard) as client:
                        self._make(client, todo)
                except _LostError:
                    raise RunError(
                        f"{self.study.path}: its workers went away; the same command goes on"
                    ) from None
            return
        patience = cluster.ANSWER_S
        while todo := self._todo():
            try:
                with cluster.client_of(scheduler, patience=patience, security=security) as client:
                    self._make(client, todo)
            except _LostError:
                patience = RETURN_S
            except UsageError as exc:
                if patience == RETURN_S:  # it had answered before
                    raise RunError(f"{exc}; the same command goes on with the study") from exc
                raise

    def _todo(self) -> list[Spec]:
        """Return the runs to be made; what their folders say is the truth."""
        tables = self.study.in_table()
        todo = []
        self._done = 0
        for spec in self.study.specs:
            record = self.study.record(spec.name)
            # Rows that are lost are written again: others read the table with tools of their own.
            missing = record.missing(spec, in_table=spec.name in tables)
            if not record.error and not missing:
                self._done += 1
            elif spec.name in self._failed:
                pass
            elif record.error and not self.retry_failed:
                self._failed[spec.name] = record.error
            else:
                todo.append(spec)
                self._missing[spec.name] = missing
        return todo

    def _make(self, client: Client, todo: Sequence[Spec]) -> None:
        info = client.scheduler_info(n_workers=-1)["workers"]
        self._slots = max(1, len(info))
        has_gpus = any(about["resources"].get("GPU") for about in info.values())
        _check_devices(todo, has_gpus=has_gpus)
        ended: queue.Queue[tuple[Spec, Future]] = queue.Queue()
        waiting = iter(todo)
        in_flight: dict[str, Future] = {}
        left = {spec.name: spec for spec in todo}

        def submit_next() -> None:
            spec = next(waiting, None)
            if spec is None:
                return
            future = client.submit(
                make_run,
                spec,
                str(self.study.path.resolve()),
                key=f"{spec.name}-{os.getpid()}-{time.monotonic_ns()}",
                pure=False,
                resources={"GPU": 1} if has_gpus and spec.get("accelerator") != "cpu" else None,
            )
            in_flight[spec.name] = future
            future.add_done_callback(lambda done: ended.put((spec, done)))

        for _ in range(min(WINDOW, len(todo))):
            submit_next()
        looked = -math.inf
        while left:
            with contextlib.suppress(queue.Empty):
                spec, future = ended.get(timeout=LOOK_S)
                self._hear(spec, future)
                del left[spec.name], in_flight[spec.name]
                submit_next()
            if time.monotonic() - looked > LOOK_S:
                looked = time.monotonic()
                if client.status not in ("running", "newly-created"):
                    raise _LostError
                self._tell(left, in_flight)
        self._tell(left, in_flight)

    def _hear(self, spec: Spec, future: Future) -> None:
        """Take in how a run ended."""
        match future.status:
            case "finished":
                record: RunRecord = future.result()
            case "error":
                record = self._died(spec, future.exception())
            case _:  # cancelled or lost, with the scheduler
                raise _LostError
        if record.error:
            self._failed[spec.name] = record.error
            return
        self._done += 1
        self._made += 1
        steps = self._missing[spec.name]
        self._seconds += sum(record.made.get(step, 0.0) for step in steps)
        self._expected += seconds_of(spec, steps=steps) or 0.0

    def _died(self, spec: Spec, exc: BaseException | None) -> RunRecord:
        """Record the failure of a run whose worker died."""
        if isinstance(exc, StoppedError):
            raise KeyboardInterrupt
        record = self.study.record(spec.name)
        # The worker was killed by the run after it, before it could tell of this one.
        if self.study.is_done(spec, record, self.study.in_table()):
            return record
        error = f"its worker failed: {exc!r}"
        if type(exc).__name__ == "KilledWorker":
            error = (
                "its workers were killed one after another, perhaps for want of memory; start "
                "fewer --workers"
            )
        record = replace(record, error=error)
        with contextlib.suppress(PlanescopeError):
            self.study.save_record(record)
        return record

    def _tell(self, left: dict[str, Spec], in_flight: dict[str, Future]) -> None:
        if self.on_status is None:
            return
        running: list[Running] = []
        for name in in_flight:
            if len(running) == self._slots:
                break
            with contextlib.suppress(PlanescopeError):  # half there; the next look sees it
                run = self.study.running(left[name], self.study.record(name))
                running += [] if run is None else [run]
        self.on_status(
            StudyStatus(
                path=str(self.study.path),
                total=len(self.study.specs),
                done=self._done,
                running=tuple(running),
                failed=tuple(self._failed.items()),
                seconds_left=self._seconds_left(left),
            )
        )

    def _seconds_left(self, left: dict[str, Spec]) -> float | None:
        """Estimate what is left, by what the runs until now took; None before the first."""
        if not self._seconds:
            return None
        expected = [seconds_of(spec, steps=self._missing[name]) for name, spec in left.items()]
        if self._expected and None not in expected:
            total = sum(seconds or 0.0 for seconds in expected) * self._seconds / self._expected
        else:
            total = len(left) * self._seconds / self._made
        return total / self._slots


def _check_devices(todo: Sequence[Spec], *, has_gpus: bool) -> None:
    wanting = next((spec for spec in todo if spec.get("accelerator") == "cuda"), None)
    if wanting is not None and not has_gpus:
        raise UsageError(
            f"{wanting.name} wants a GPU, and no worker has one; start workers with --resources "
            "GPU=1, or leave out accelerator"
        )
