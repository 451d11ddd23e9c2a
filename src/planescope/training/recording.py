"""Recording of each epoch: metrics, snapshots, measurements, and what resuming needs."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from planescope.files.errors import CheckpointError, NoLayersError, RunError
from planescope.files.reading import open_binary
from planescope.files.results.versions import environment
from planescope.files.writing import replacing, write_torch
from planescope.hyperplanes.layer import Array, Kind, Layer, Structure, View
from planescope.measurement.assemble import measure_layers
from planescope.measurement.metrics import by_key
from planescope.measurement.record import Measurement, Source
from planescope.networks.live.module import read_module
from planescope.networks.state.layers import find_layers
from planescope.training.folder.status import State, Status
from planescope.training.stopping import is_last, is_snapshot

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from planescope.training.config import RunConfig
    from planescope.training.folder.metrics import EpochMetrics
    from planescope.training.run import Run
    from planescope.training.task import Task

# Called with (batches done, batches in all, how it stands).
Progress = Callable[[int, int, str], None]


class Layers:
    """The layers of a network that a config measures, and how they were at first.

    The graph is followed once; each measurement reads the weights of then.

    Parameters
    ----------
    network : torch.nn.Module
        At initialisation.

    Attributes
    ----------
    structure : Structure
        Where its layers stand, to be kept.

    Raises
    ------
    NoLayersError
        If it has none of the kinds wanted.
    """

    def __init__(self, network: nn.Module, config: RunConfig) -> None:
        state = read_module(network)
        found, self._skipped = find_layers(state)
        self._layers = _chosen(found, config)
        self._source = Source(path=config.network, format="module", bytes=None)
        self._view = View(config.view)
        self._initial = {layer.name: _as_it_is(layer) for layer in self._layers}
        self.structure = Structure(
            network=config.network,
            names=tuple(state.tensors),
            places=dict(state.places),
            note=state.note,
        )

    def measure(self) -> Measurement:
        """Return the statistics of the network as it is now."""
        return measure_layers(
            self._layers, source=self._source, view=self._view, initial=self._initial
        )


def _chosen(layers: Sequence[Layer], config: RunConfig) -> list[Layer]:
    def of_kinds(kinds: Sequence[str]) -> list[Layer]:
        return [layer for layer in layers if "all" in kinds or layer.kind in kinds]

    wanted = config.kinds or (Kind.CONV,)
    chosen = of_kinds(wanted) or ([] if config.kinds else of_kinds([Kind.LINEAR]))
    if not chosen:
        there = ", ".join(sorted({layer.kind for layer in layers})) or "none that can be measured"
        raise NoLayersError(
            f"{config.network} has no layer of kind {' or '.join(wanted)} (there are: {there}); "
            "choose by --kinds"
        )
    return chosen


def _as_it_is(layer: Layer) -> Layer:
    """Return the layer with its weights of now, given on whatever device they are compared on."""
    weight = layer.weight.read().clone()

    def read() -> Array:
        return weight.to(layer.weight.read().device)

    return replace(layer, weight=replace(layer.weight, read=read))


class Recorder(pl.Callback):
    """Writes what an epoch came to into the run's folder, `last.ckpt` at the end of it.

    Attributes
    ----------
    history : list of EpochMetrics
        Of the epochs so far, from epoch 0.
    """

    def __init__(self, run: Run, config: RunConfig, layers: Layers, about: dict[str, Any]) -> None:
        self.config = config
        self.history: list[EpochMetrics] = []
        self._run, self._layers, self._about = run, layers, about

    def begin(self, trainer: pl.Trainer, checkpoint: Path | None) -> None:
        """Go back to the end of the last epoch that was finished; to nothing without one."""
        if trainer.is_global_zero:
            epoch = -1 if checkpoint is None else _epochs(checkpoint)
            if epoch not in (-1, *(row.epoch for row in self._run.metrics)):
                raise CheckpointError(
                    f"{self._run.path}: metrics.csv lacks epoch {epoch}, after which training goes "
                    f"on; put it back, or remove {self._run.last_checkpoint.name} to begin anew"
                )
            self._run.cut(epoch)
            self._run.save_structure(self._layers.structure)
            self._run.save_environment(environment(str(trainer.strategy.root_device)))
            self._run.save_status(Status(state=State.RUNNING))
        self.history = list(self._run.metrics)

    def record_initial(self, trainer: pl.Trainer, task: Task) -> None:
        """Keep the network as it is before training; it must have been validated."""
        for logger in trainer.loggers:
            with _said_by(logger):
                logger.log_hyperparams(self.config.model_dump(mode="json"))
        self._record(trainer, task, epoch=0)

    def on_train_epoch_end(self, trainer: pl.Trainer, task: Task) -> None:
        """Keep the epoch, and stop where the run is on a plateau."""
        self._record(trainer, task, trainer.current_epoch + 1)
        # Written by all processes together; from now on the files of the epoch count.
        trainer.save_checkpoint(self._run.last_checkpoint)
        trainer.should_stop = is_last(self.history, self.config)

    def _record(self, trainer: pl.Trainer, task: Task, epoch: int) -> None:
        metrics = task.metrics(epoch)
        self.history.append(metrics)
        if not trainer.is_global_zero:
            return
        kept = is_snapshot(self.history, self.config)
        if kept or trainer.loggers:
            measured = self._layers.measure()
        if kept:
            self._run.save_snapshot(epoch, task.network.state_dict(), self._about)
            self._run.add_measurement(epoch, measured)
        self._run.save_metrics(self.history)
        for logger in trainer.loggers:
            with _said_by(logger):
                logger.log_metrics(_logged(metrics) | by_key(measured), step=epoch)
                logger.save()


@contextlib.contextmanager
def _said_by(logger: Any) -> Iterator[None]:
    """Say in a sentence what a logger could not do; each raises errors of its own package."""
    try:
        yield
    except OSError:
        raise
    except Exception as exc:
        reason = " ".join(str(exc).split()) or type(exc).__name__
        raise RunError(f"{type(logger).__name__} could not log: {reason}") from exc


def _epochs(checkpoint: Path) -> int:
    """Return how many epochs were finished when a checkpoint was written."""
    return int(WholeCheckpoints().load_checkpoint(checkpoint)["epoch"]) + 1


def _logged(metrics: EpochMetrics) -> dict[str, float]:
    return {name: value for name, value in vars(metrics).items() if value is not None}


class Reporter(pl.Callback):
    """Tells how far the training is, after each batch."""

    def __init__(self, progress: Progress, recorder: Recorder) -> None:
        self._progress, self._recorder = progress, recorder
        self._text = ""

    def on_train_epoch_start(self, trainer: pl.Trainer, task: Task) -> None:  # noqa: ARG002
        """Look up how the last epoch ended."""
        last = self._recorder.history[-1]
        self._text = (
            f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}, "
            f"validation accuracy {last.val_accuracy:.1%}"
        )

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Tell it."""
        total = trainer.num_training_batches * (trainer.max_epochs or 0)
        self._progress(trainer.global_step, int(total), self._text)


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that are whole or absent, and of which nothing is executed.

    Lightning's own are written in the temporary folder and then moved, which between two file
    systems is a copy that can be cut off.
    """

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Any = None,  # noqa: ARG002
    ) -> None:
        """Write beside the target, then rename.

        At a requeue Lightning keeps where it is within an epoch, which a run goes on from as little
        as from any other moment but the end of one: that is in its last checkpoint.
        """
        if _is_of_requeue(path):
            return
        with replacing(path) as draft:
            write_torch(draft, checkpoint)

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any = None,  # noqa: ARG002
        weights_only: bool | None = None,  # noqa: ARG002
    ) -> dict[str, Any]:
        """Read tensors and plain values alone.

        Raises
        ------
        CheckpointError
            If it is damaged or holds anything else, or is none of ours.
        """
        if _is_of_requeue(path):  # which Lightning looks for where a run has no checkpoint yet
            raise CheckpointError(
                f"{path}: is no checkpoint of planescope, and would be gone on with; remove it"
            )
        try:
            with open_binary(path):  # torch would wait for a pipe
                loaded: dict[str, Any] = torch.load(
                    path, map_location="cpu", weights_only=True, mmap=True
                )
        except (
            OSError,
            RuntimeError,
            ValueError,
            EOFError,
            KeyError,
            pickle.UnpicklingError,
        ) as exc:
            raise CheckpointError(
                f"{path}: is damaged; remove it to resume from the beginning"
            ) from exc
        return loaded


def _is_of_requeue(path: str | os.PathLike[str]) -> bool:
    return os.path.basename(path).startswith("hpc_ckpt_")  # noqa: PTH119
