"""Train a network as a config says, into the folder of a run."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import warnings
from collections.abc import Callable, Collection, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from planescope.files import signals
from planescope.files.errors import (
    CheckpointError,
    MissingDependencyError,
    OutputError,
    PlanescopeError,
    RunError,
    StoppedError,
    UsageError,
    one_line,
)
from planescope.files.optional import consented, is_foreign, is_trusted, required
from planescope.networks import paper
from planescope.networks.build import build
from planescope.training.folder.status import State, Status
from planescope.training.loggers import APART, begin_loggers
from planescope.training.precision import fitting_precision
from planescope.training.run import Run
from planescope.training.split import both_splits
from planescope.training.stopping import is_last, on_interrupt

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from torch import nn

    from planescope.files.optional import Kind
    from planescope.training.config import RunConfig
    from planescope.training.recording import Recorder
    from planescope.training.task import Data, Task


def train(
    config: RunConfig,
    path: str | os.PathLike[str],
    *,
    resume: bool = False,
    trust: bool | str | Collection[str] = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> Run:
    """Train a network, or go on with a run that was stopped.

    The same config gives the same weights: on a CPU bit for bit, with the same versions and number
    of threads, however often the run was killed and resumed; on a GPU closely.

    Parameters
    ----------
    path : path
        Folder of the run.
    resume : bool
        Go on after the last epoch that was finished; a run that is finished is left as it is.
    trust : bool, str or collection of str
        Callables that may run, and loggers that may send (wandb, mlflow), when a run is resumed
        that names them; True for all. Without it nothing is downloaded to where such a run says
        either. A config for a new run is yours.
    progress : callable, optional
        Called after each batch with (batches done, batches in all, how it stands).

    Returns
    -------
    Run
        Finished.

    Raises
    ------
    UsageError
        If the config cannot be trained, the run exists and is not resumed, another process holds
        it, or the config of a resumed run is another.
    CheckpointError
        If data are missing or damaged, or there is no run to resume.
    RunError
        If the loss is no longer finite or memory ran out; what was saved is kept.
    StoppedError
        If it was interrupted, as by Ctrl-C.
    OutputError
        If the disk is full.
    """
    # What can be refused at once is, before seconds go into imports.
    run = Run(path)
    config = _settled(config, run)
    _check_path(run, config, resume=resume)
    if resume and run.exists:
        config = _consented(run, config, trust)
    if ":" not in config.network:
        paper.network(config.network)
    for package in ("torch", "pytorch_lightning"):
        required(package)
    for name in config.loggers:
        if name in APART and find_spec(name) is None:
            raise MissingDependencyError(f"the logger {name} needs it: pip install {name}")
    with _quiet(), _isolated(config.threads):
        trainer, task, recorder = _prepare(config, run, progress)
        if rank() > 0:  # another process of the same training; the first one keeps the run
            _fit(trainer, task, recorder, run)
            return run
        with run.lock():
            # Another process may have begun it meanwhile, and its config.yaml is not to be ours.
            _check_path(run, config, resume=resume)
            if not run.exists:
                Run.create(path, config)
            with _outcome(run):
                # Only now: a data base of mlflow's begins to be written when its logger is made.
                with begin_loggers(config.loggers, run) as trainer.loggers:
                    _fit(trainer, task, recorder, run)
                epochs = recorder.history[-1].epoch
                early = f"on a plateau after epoch {epochs}" if epochs < config.epochs else ""
                run.save_status(Status(state=State.FINISHED, message=early))
    return run


def _settled(config: RunConfig, run: Run) -> RunConfig:
    """Replace a precision of "auto" by the one that the run has, or by the device's own."""
    if config.precision != "auto":
        return config
    if run.exists:
        return config.but({"precision": run.config.precision})
    required("torch")
    return config.but({"precision": fitting_precision(config.accelerator)})


def rank() -> int:
    """Return the rank of this process in a training; the first, 0, keeps the run and prints."""
    # As Lightning finds it, which takes seconds to import.
    ranks = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return next((int(found) for found in ranks if found), 0)


def _check_path(run: Run, config: RunConfig, *, resume: bool) -> None:
    if resume and not run.path.is_dir():
        raise CheckpointError(f"{run.path}: there is no run to resume; leave out --resume")
    if run.last_checkpoint.exists() and not run.exists:
        raise CheckpointError(
            f"{run.path}: holds a run without its config.yaml; put that back, or train anew with "
            "another --out"
        )
    if rank() > 0 or not run.exists:
        return
    if not resume:
        raise UsageError(f"{run.path}: exists; go on with --resume, or give another --out")
    for field, wanted, had in config.differences(run.config):
        # Code of a stranger's may be replaced by one's own; a download is a permission, and where
        # what is trained is logged is each owner's choice.
        if field in ("download", "loggers") or _is_code(field, had):
            continue
        raise UsageError(
            f"{run.path}: was started with {field} {had!r}, not {wanted!r}; leave it as it was, or "
            "start another run"
        )


def _is_code(field: str, name: Any) -> bool:
    """Tell whether a field of a config names code of somebody's own."""
    if field == "network":
        return is_foreign(name, "network")
    return field == "data" and is_foreign(name, "data")


def _consented(run: Run, config: RunConfig, trust: bool | str | Collection[str]) -> RunConfig:
    """Refuse code and services that only the run names; download only what the user asked for."""
    had, where = run.config, run.path / "config.yaml"
    kind: Kind
    for kind in ("network", "data"):
        name = getattr(config, kind)
        if name == getattr(had, kind):
            consented(name, kind=kind, where=where, trust=trust)
    for name in set(APART) & set(config.loggers) & set(had.loggers):
        if not is_trusted(name, trust):
            raise UsageError(
                f"{where}: names the logger {name}, which sends what is trained to where this "
                f"machine's settings say; give --loggers {name} if that is meant, --loggers csv to "
                f"log below the run alone, or --trust (from Python: trust={name!r}, or True)"
            )
    return config if trust else config.but({"download": False})


def _prepare(
    config: RunConfig, run: Run, progress: Callable[[int, int, str], None] | None
) -> tuple[pl.Trainer, Task, Recorder]:
    """Make all that training needs; nothing is written, so that a wrong config leaves nothing."""
    from planescope.training.recording import Layers, Recorder, Reporter
    from planescope.training.task import Task

    data = both_splits(config)
    network = _network(config, data)
    if run.last_checkpoint.exists():
        try:
            network.load_state_dict(run.load_snapshot(0))
        except RuntimeError as exc:
            raise CheckpointError(
                f"{run.path}: its weights are not those of {config.network} ({one_line(exc):.200})"
            ) from exc
    task = Task(network, config, data)
    task.centre()
    layers = Layers(network, config)
    if config.compile:
        network.compile()
    about = {
        "network": config.network,
        "width": config.width,
        "classes": len(data.train.classes),
        "input": data.train.input_shape,
    }
    recorder = Recorder(run, config, layers, about)
    callbacks = [recorder, *([] if progress is None else [Reporter(progress, recorder)])]
    return _trainer(config, run, callbacks), task, recorder


def _network(config: RunConfig, data: Data) -> nn.Module:
    channels, height, width = data.train.input_shape
    network = build(
        config.network,
        in_channels=channels,
        classes=len(data.train.classes),
        width=config.width,
        image_size=min(height, width),
        seed=config.seed,
    )
    _check_fit(network, config, data)
    if ":" not in config.network:
        import torch

        # Convolutions take a fifth less time so, on a CPU as on a GPU. Others' networks may look at
        # their tensors in a way that wants the usual order.
        network = network.to(memory_format=torch.channels_last)
    return network


def _check_fit(network: nn.Module, config: RunConfig, data: Data) -> None:
    """Send one empty image through a network before anything is written."""
    import torch

    from planescope.networks.answer import answer

    shape, classes = data.train.input_shape, len(data.train.classes)
    images = f"the images of {config.data}, {'×'.join(map(str, shape))}"
    mode = network.training
    try:
        example = torch.zeros(1, *shape)
        out = answer(network.eval(), (example,), name=config.network, given=images)
    finally:
        network.train(mode)
    found = tuple(getattr(out, "shape", ()))
    if found != (1, classes):
        raise UsageError(
            f"{config.network} gives an output of shape {found} for one image, but {config.data} "
            f"has {classes} classes; it must give (1, {classes})"
        )


def _trainer(config: RunConfig, run: Run, callbacks: list[Any]) -> pl.Trainer:
    import pytorch_lightning as pl
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    from planescope.training.recording import WholeCheckpoints

    try:
        return pl.Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            strategy=config.strategy,
            precision=config.precision,
            max_epochs=config.epochs,
            callbacks=callbacks,
            plugins=[WholeCheckpoints()],
            logger=False,
            default_root_dir=run.path,
            # Batches come shuffled and shared out; nothing else is to happen at a step or beside.
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1 << 30,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError, RuntimeError) as exc:
        raise UsageError(
            f"{config.devices} × {config.accelerator} with strategy {config.strategy} and "
            f"precision {config.precision} does not work here: {' '.join(str(exc).split())}"
        ) from exc


def _fit(trainer: pl.Trainer, task: Task, recorder: Recorder, run: Run) -> None:
    checkpoint = run.last_checkpoint if run.last_checkpoint.exists() else None
    recorder.begin(trainer, checkpoint)

    def stop() -> None:
        # A terminal interrupts all processes; one that left by itself would leave others waiting.
        task.stopping = rank() == 0

    try:
        if checkpoint is None:
            trainer.validate(task, verbose=False)
            recorder.record_initial(trainer, task)
        if not is_last(recorder.history, recorder.config):
            with on_interrupt(stop):
                trainer.fit(task, ckpt_path=checkpoint, weights_only=True)
    except BaseException:
        launcher = trainer.strategy.launcher
        if launcher is not None:  # the other processes wait for this one, for ever
            launcher.kill(getattr(signal, "SIGKILL", signal.SIGTERM))  # Windows has no SIGKILL
        raise


@contextlib.contextmanager
def _outcome(run: Run) -> Iterator[None]:
    """Write how training ended, and say it in a sentence."""
    import torch

    where = run.path
    try:
        yield
    except (KeyboardInterrupt, SystemExit, StoppedError) as exc:  # Lightning exits at a signal
        signals.be_patient()
        _try_to_save(run, State.STOPPED, "interrupted; go on with --resume")
        raise StoppedError(
            f"{where}: interrupted; go on with: planescope train --out {shlex.quote(str(where))} "
            "--resume"
        ) from exc
    except RunError as exc:
        _try_to_save(run, State.FAILED, str(exc))
        raise RunError(f"{where}: {exc}") from exc
    except torch.OutOfMemoryError as exc:
        problem = "memory ran out; take a smaller --batch-size or --width"
        _try_to_save(run, State.FAILED, problem)
        raise RunError(f"{where}: {problem}") from exc
    except OSError as exc:
        problem = f"{exc.filename or where}: {exc.strerror or exc}"
        _try_to_save(run, State.FAILED, problem)
        raise OutputError(problem) from exc
    except PlanescopeError as exc:
        _try_to_save(run, State.FAILED, str(exc))
        raise
    except BaseException as exc:
        _try_to_save(run, State.FAILED, f"{type(exc).__name__}: {exc}")
        raise


def _try_to_save(run: Run, state: State, message: str) -> None:
    # On a full disk what ended the run is the news, not that this cannot be written either.
    with contextlib.suppress(OutputError):
        run.save_status(Status(state=state, message=message))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what Lightning and torch remark on off the terminal; errors are still raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pytorch_lightning  # noqa: F401  sets its loggers' levels when it is imported

        names = ("pytorch_lightning", "lightning_fabric", "torch")
        loggers = [logging.getLogger(name) for name in names]
        levels = [logger.level for logger in loggers]
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def _isolated(threads: int | None) -> Iterator[None]:
    """Give a caller's random numbers, threads and way of convolving back as they were."""
    import torch
    from pytorch_lightning.utilities.seed import isolate_rng

    before, deterministic = torch.get_num_threads(), torch.backends.cudnn.deterministic
    try:
        torch.set_num_threads(threads or before)
        # Else a GPU's convolutions add up in another order each time.
        torch.backends.cudnn.deterministic = True
        with isolate_rng():
            yield
    finally:
        torch.set_num_threads(before)
        torch.backends.cudnn.deterministic = deterministic
