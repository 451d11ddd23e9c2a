"""From the spec of a run to its record: what a worker does.

To import this costs nothing; torch is imported by the first run of a process, once.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from planescope.files import signals
from planescope.files.errors import OutputError, PlanescopeError, StoppedError
from planescope.study.folder import Study
from planescope.study.record import RunRecord
from planescope.training.loop import train
from planescope.training.memory import keep_memory

if TYPE_CHECKING:
    from planescope.study.spec import Spec
    from planescope.training.config import RunConfig
    from planescope.training.run import Run

# GPUs that local workers share out among them, by number; each takes one.
GPUS = "PLANESCOPE_STUDY_GPUS"

# Random numbers, warnings and threads are the process's: it makes one run at a time.
_ALONE = threading.Lock()


def make_run(spec: Spec, study: str) -> RunRecord:
    """Make what is missing of a run, and write into its folder how that went.

    What was broken off goes on where it was, on whichever machine that was. A run that fails is
    kept, with its error in the record; that is not raised.

    Parameters
    ----------
    study : str
        Folder of the study, the same for all workers.

    Raises
    ------
    StoppedError
        If it was interrupted.
    """
    _end_fast()
    keep_memory()
    folder = Study(study)
    with _ALONE, folder.lock_run(spec.name):
        _take_own_gpu()
        had = folder.record(spec.name)
        record = replace(had, error="")
        if had.error:  # it is tried again
            record = _saved(folder, record)
        for step in record.missing(spec, in_table=spec.name in folder.in_table()):
            if record.error:
                break
            # Saved after each step: a worker that is killed in the next one does not repeat it.
            record = _saved(folder, _stepped(step, spec, folder, record))
        return record


@functools.cache
def _end_fast() -> None:
    """Have this process end without a last look for garbage: with torch that takes two seconds."""
    atexit.register(signals.leave_garbage)


def _stepped(step: str, spec: Spec, folder: Study, record: RunRecord) -> RunRecord:
    """Make one step of a run."""
    began = time.monotonic()
    try:
        _STEPS[step](spec, folder)
    except StoppedError:
        raise
    except Exception as exc:
        # A user's own network or data may raise anything, and must not stop the other runs.
        return replace(record, error=f"{step}: {_sentence(exc)}")
    made = {**record.made, step: round(time.monotonic() - began, 3)}
    return replace(record, made=made, reset=dict(spec.reset) if step == "reset" else record.reset)


def _saved(folder: Study, record: RunRecord) -> RunRecord:
    """Write a record; if that fails, as on a full disk, the record says so."""
    try:
        folder.save_record(record)
    except OutputError as exc:
        return replace(record, error=record.error or str(exc))
    return record


def _sentence(exc: Exception) -> str:
    text = " ".join(str(exc).split())
    return text if isinstance(exc, PlanescopeError) else f"{type(exc).__name__}: {text}"


def _train(spec: Spec, folder: Study) -> None:
    run = folder.run(spec.name)
    trust = (*_typed(spec), *spec.config.loggers)
    train(_config(spec, run), run.path, resume=True, trust=trust)


def _config(spec: Spec, run: Run) -> RunConfig:
    """Return the config of a run.

    The threads it was started with, where it was: they decide last bits.
    """
    config = spec.config
    if run.exists:
        had = run.config
        # All else is the same, or its name would be another.
        same = ("threads", "data_path", "workers")
        return config.but({field: getattr(had, field) for field in same})
    import torch

    return config.but({"threads": config.threads or torch.get_num_threads()})


def _typed(spec: Spec) -> tuple[str, ...]:
    """Return the code that the starter of the study named; its folder may be anybody's."""
    return spec.get("network"), spec.get("data")


def _reset(spec: Spec, folder: Study) -> None:
    from planescope.criticality.resets import ResetOptions, reset

    settings: dict[str, Any] = dict(spec.reset)
    wanted = settings.pop("snapshots")
    run = folder.run(spec.name)
    config = run.config
    kept = list(run.snapshots)[:-1]
    snapshots = None if wanted is None else [epoch for epoch in kept if epoch in wanted]
    devices = ("cpu",) if config.accelerator == "cpu" else ("auto",)
    with _threads(config.threads):
        reset(
            run.path,
            to=snapshots,
            trust=_typed(spec),
            options=ResetOptions(**settings, devices=devices),
        )


def _measure(spec: Spec, folder: Study) -> None:
    from planescope.study.table import write_part

    write_part(folder.run(spec.name), spec.name, folder.table_folder)


_STEPS: dict[str, Callable[[Spec, Study], None]] = {
    "train": _train,
    "reset": _reset,
    "measure": _measure,
}


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count or before)
        yield
    finally:
        torch.set_num_threads(before)


def _take_own_gpu() -> None:
    """Let this worker of a local cluster see one GPU, by its number among the workers."""
    gpus = os.environ.pop(GPUS, "").split(",")
    if gpus != [""]:
        from distributed import get_worker

        # Read by CUDA when torch first asks for it, which nothing in this process has done.
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[int(str(get_worker().name)) % len(gpus)]
