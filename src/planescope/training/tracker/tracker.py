"""`Tracker`: a callback of Lightning, and the same object for any other training loop."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planescope.files.errors import CheckpointError, UsageError, nearest
from planescope.hyperplanes.layer import Kind, View
from planescope.measurement.choice import DEFAULT_KINDS, Choice, member
from planescope.measurement.metrics import LOGGABLE, LOGGED
from planescope.measurement.record import Measurement
from planescope.training.tracker import distributed, inputs
from planescope.training.tracker.folder import Folder, checked_metrics, known_metrics
from planescope.training.tracker.frameworks import lightning, transformers
from planescope.training.tracker.history import SCHEMA, History
from planescope.training.tracker.picture import log_picture, refuse_others
from planescope.training.tracker.recorder import Errors, Recorder
from planescope.training.tracker.reference import Reference

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from planescope.data.roles import Unpack


class Tracker(lightning.Callback):
    """Measure a network while it is trained.

    Give it to Lightning (``Trainer(callbacks=[tracker])``), call `update` in a loop of your own, or
    give `for_transformers` to Hugging Face's trainer and `for_keras` to Keras 3.

    Parameters
    ----------
    every : int or "epoch"
        Measure before the first step, then after every so many steps and at the end, or after every
        epoch.
    view : {"raw", "effective"}
        As for `planescope.measure`.
    kinds : iterable of {"conv", "pointwise", "transposed", "linear"}, or "all"
        As for `planescope.measure`.
    layers : str, optional
        Regular expression; only layers in whose name it is found.
    data : DataLoader, Dataset, LightningDataModule, tensors, list of batches, or str, optional
        What `planescope.reset` takes; batches go to the network as they come, floating ones in the
        type of its weights. From them the centre and the activation rate are measured for any
        layer; without them the centre comes from a batch norm's parameters. Tensors, and all
        batches of a list, are used whole; of a DataLoader or anything else that can be read again
        the first batch. They are taken at once, without a draw from anybody's generators, and are
        the same at each update, which then waits for the device.
    unpack : callable, optional
        Gives inputs and labels (or None) of a batch of another kind.
    log : iterable of str, optional
        Statistics to log of each layer too, by the names of the columns of `to_pandas`; by default
        those of all filters together alone, and () logs nothing.
    reference : {"device", "cpu"} or None
        Where the weights of the first update are kept, whose distance from those of later ones is
        `l2` and `linf`. They take as much memory as the weights measured, there and in checkpoints.
        With None there are no distances.
    drift : bool
        Take the drift pressure of each layer: the change of `mean_projection`, the mean over its
        filters of the sum of a filter's weights (those of `view`), since the update before, a
        step. Below 0 filters are pushed away from the orthant. It is a column `drift_pressure` of
        the table and of what `save` writes, and is logged beside `log`; the run of `out` does not
        have it. Null in the first update, and where a layer's module or the filters that count
        are others than in the update before.
    filters : bool
        Keep the values of single filters in `measurements`: 7 numbers a filter and update.
    errors : {"warn", "raise"}
        What is done when an update fails. Before the first that succeeded it raises; after that a
        training is not ended for a statistic: the update is a row of nulls with the reason in its
        notes, and a warning tells of it once. With "raise" it always raises.
    out : path, optional
        Folder of a run, which each update writes: what is known, a snapshot of the weights, the
        statistics, and figures of the training. ``planescope status``, ``report``, ``figures``,
        ``relate`` and, given the network and data, ``reset`` read it. Snapshots are numbered by
        epochs with ``every="epoch"`` where these are told, else by steps. Of Keras there are no
        snapshots; of weights that are shared out among processes there is no such folder.

    Raises
    ------
    UsageError
        If an option is invalid.

    Notes
    -----
    The keys that are logged are ``planescope/STATISTIC`` for the filters of all layers together,
    ``planescope/biased_share``, the share of layers that are biased, and with `log` also
    ``planescope/LAYER/STATISTIC``, for example ``planescope/features.0/negative_mass``.
    As a training of a framework ends, loggers that take pictures (TensorBoard, Weights & Biases,
    MLflow) get one, ``planescope/negative_mass_by_layer``: layers by updates; `log_picture` gives
    it to any other.

    An update queues its work on the device of the network and waits for nothing, unless there are
    `data`. What it took is brought to the host when it is logged, read or saved, and at the latest
    64 updates later. The network and the state of all random generators stay as they are.

    On a CPU, sums over layers of more than 65,536 weights are taken in float32 by pieces: signs,
    and so masses and their tests, are exact; cosines agree with `planescope.measure` to 1e-6, l2
    and linf to a relative 1e-6. All else agrees to the last digits of float64.

    With several processes all call it, and that of rank 0 keeps the statistics. Weights sharded by
    `fully_shard` or `FullyShardedDataParallel` are put together at each update, layer by layer, and
    so is the copy that `data` go through. A failure of one process is then one of all.
    """

    def __init__(
        self,
        *,
        every: int | str = "epoch",
        view: View | str = View.RAW,
        kinds: Iterable[Kind | str] | str = DEFAULT_KINDS,
        layers: str | None = None,
        data: Any = None,
        unpack: Unpack | None = None,
        log: Iterable[str] | None = None,
        reference: str | None = "device",
        drift: bool = False,
        filters: bool = False,
        errors: str = "warn",
        out: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        if every != "epoch" and not (type(every) is int and every > 0):
            raise UsageError(
                f"every={every!r} must be 'epoch', or the number of steps from one measurement to "
                "the next, at least 1"
            )
        self.every = every
        self._by_layer = log is not None
        self._logged = (log,) if isinstance(log, str) else tuple(LOGGED if log is None else log)
        for name in self._logged:
            if name not in LOGGABLE:
                raise UsageError(f"log={name!r} is no statistic; {nearest(str(name), LOGGABLE)}")
        self._choice = Choice.of(kinds, layers, view)
        self._recorder = Recorder(
            every=every,
            choice=self._choice,
            reference=None if reference is None else member(Reference, reference, "reference"),
            inputs=None if data is None else inputs.take(data, has_unpack=unpack is not None),
            unpack=unpack,
            drift=drift,
            filters=filters,
            errors=member(Errors, errors, "errors"),
            folder=None if out is None else Folder(Path(out), self._choice, every),
        )
        self._has_data = data is not None

    # --- any loop

    def update(
        self,
        model: nn.Module,
        step: int,
        *,
        epoch: int | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Measure a module as it is now, if it is due.

        Parameters
        ----------
        model : torch.nn.Module
        step : int
            Optimiser steps done. With ``every=N`` the first call measures, and then those with a
            multiple of N; with ``every="epoch"`` each call does. No step is measured twice.
        epoch : int, optional
            Epochs done, for the table.
        metrics : mapping, optional
            Figures of the training for the run of `out`: any of train_loss, train_accuracy,
            val_loss, val_accuracy and learning_rate.

        Raises
        ------
        NoLayersError
            On the first call, if there is nothing to measure.
        UsageError
            On the first call, if a weight has no values yet or `data` do not fit the network.

        Notes
        -----
        Call it before the first step too: distances are from the weights of the first call.
        """
        self._recorder.pending |= checked_metrics(metrics)
        self._recorder.update(model, step, epoch)

    def close(self) -> None:
        """Say that the training is over, in the run of `out`; the trainers of frameworks do."""
        if self._recorder.folder is not None and distributed.is_first():
            self._recorder.folder.end()

    def _note(self, logs: Mapping[str, Any], *, late: bool = False) -> None:
        """Keep figures that a framework gives, for the next update or, `late`, the last."""
        if self._recorder.folder is not None and distributed.is_first():
            if late:
                self._recorder.folder.amend(known_metrics(logs))
            else:
                self._recorder.pending |= known_metrics(logs)

    def record(self, model: nn.Module, step: int, *, epoch: int | None = None) -> None:
        """Measure a module as it is now, due or not; no step twice.

        Raises
        ------
        NoLayersError, UsageError
            As `update`.
        """
        self._recorder.record(model, step, epoch)

    def begin(self, model: nn.Module, step: int, *, epoch: int | None = None) -> None:
        """Measure a module as a fit begins; of another network than before, whatever the step.

        Raises
        ------
        NoLayersError, UsageError
            As `update`.
        """
        self._recorder.begin(model, step, epoch)

    # --- what was found

    @property
    def history(self) -> History:
        """Return what was found, as `save` writes it; `planescope.report` and figures take it."""
        return self._recorder.history

    @property
    def measurements(self) -> list[tuple[int, Measurement]]:
        """Step and measurement of each update."""
        return [(record.step, record.read()) for record in self._recorder.history.records]

    def metrics(self) -> dict[str, float]:
        """Return the logged metrics of the last update, by key; empty before the first."""
        records = self._recorder.history.records
        if not records:
            return {}
        return records[-1].metrics(self._logged, by_layer=self._by_layer)

    def unlogged(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Step and metrics of each update that was not asked for here before."""
        yield from self._recorder.history.unlogged(self._logged, by_layer=self._by_layer)

    def log_picture(self, *loggers: Any) -> None:
        """Give loggers one picture of all layers by updates: their negative mass.

        Parameters
        ----------
        *loggers
            A ``SummaryWriter``, a run of Weights & Biases, the module ``mlflow``, or a logger of
            Lightning's.

        Raises
        ------
        UsageError
            If one takes no pictures, or there are fewer than two updates.
        """
        refuse_others(loggers)
        self._log_picture(loggers)
        if len(self.history.numbered) < 2:
            raise UsageError("a picture of a training has two updates or more")

    def _log_picture(self, loggers: Iterable[Any]) -> None:
        records = self._recorder.history.records
        if self._logged and records and distributed.is_first():
            log_picture(loggers, self.history, records[-1].step)

    def to_pandas(self) -> pd.DataFrame:
        """Return the table with a row an update and layer."""
        return self._recorder.history.to_pandas()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table; the suffix chooses .json, .csv or .parquet.

        CSV holds the layers' table alone; JSON and Parquet hold the whole measurements too.

        Raises
        ------
        UsageError
            If the suffix is none of these.
        OutputError
            If the file cannot be written; nothing is left behind then.
        """
        self._recorder.history.save(path)

    # --- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint: the table, and the weights of the first update."""
        return {"schema": SCHEMA} | self._recorder.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave.

        Raises
        ------
        CheckpointError
            If another version of planescope gave it.
        """
        if state_dict.get("schema") != SCHEMA:
            raise CheckpointError(
                f"the Tracker's state in the checkpoint is {state_dict.get('schema')!r}, and this "
                f"version of planescope reads {SCHEMA!r}; remove the Tracker, or resume without it"
            )
        self._recorder.load_state_dict(state_dict)

    @property
    def state_key(self) -> str:
        """Name of the state in Lightning's checkpoints; trackers with other options have others."""
        pattern = self._choice.pattern and self._choice.pattern.pattern
        kinds = ",".join(self._choice.kinds)
        return f"planescope.Tracker({self.every}, {self._choice.view}, {kinds}, {pattern})"

    # --- Lightning

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Measure the network as it starts; where there is nothing to measure, stop here."""
        self.begin(pl_module, lightning.steps_at_start(trainer), epoch=trainer.current_epoch)
        lightning.log(trainer, self.unlogged())

    def on_train_batch_end(self, trainer: Any, pl_module: nn.Module, *_: Any) -> None:
        """Measure if it is due; log when the trainer does."""
        # Lightning counts the step when all callbacks have been called.
        step = lightning.steps(trainer) + (not trainer.fit_loop._should_accumulate())
        if self.every != "epoch":
            done = trainer.current_epoch + bool(trainer.is_last_batch)
            self.update(pl_module, step, epoch=done)
            if trainer.log_every_n_steps and step % trainer.log_every_n_steps == 0:
                lightning.log(trainer, self.unlogged())

    def on_train_epoch_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Measure, if it is due."""
        self._note(trainer.callback_metrics)
        if self.every == "epoch":
            self.record(pl_module, lightning.steps(trainer), epoch=trainer.current_epoch + 1)
        lightning.log(trainer, self.unlogged())

    def on_train_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Measure the network as it ends."""
        self.record(pl_module, lightning.steps(trainer), epoch=trainer.current_epoch)
        lightning.log(trainer, self.unlogged())
        self._log_picture(trainer.loggers)
        self.close()

    # --- other trainers

    def on_init_end(self, *_: Any, **__: Any) -> None:
        """Refuse to be a callback of Hugging Face's trainer, which calls this first."""
        raise UsageError(
            "a Tracker itself is no callback of transformers' Trainer; give it "
            "tracker.for_transformers()"
        )

    def set_params(self, *_: Any, **__: Any) -> None:
        """Refuse to be a callback of Keras, which calls this first."""
        raise UsageError("a Tracker itself is no callback of Keras; give it tracker.for_keras()")

    set_model = set_params

    def for_transformers(self, trainer: Any = None) -> Any:
        """Return the callback for Hugging Face's `Trainer`.

        Parameters
        ----------
        trainer : transformers.Trainer, optional
            Logs the statistics when it logs the loss, to the same places, and as it ends one
            picture of all layers: ``trainer.add_callback(tracker.for_transformers(trainer))``.

        Raises
        ------
        MissingDependencyError
            If transformers is not installed.
        """
        return transformers.callback(self, trainer)

    def for_keras(self, *loggers: Any) -> Any:
        """Return the callback for ``fit`` of Keras 3, with any backend.

        The statistics join its logs.

        Parameters
        ----------
        *loggers
            Get one picture of all layers as ``fit`` ends: ``keras.callbacks.TensorBoard``, or what
            `log_picture` takes.

        Raises
        ------
        MissingDependencyError
            If keras is not installed.
        UsageError
            If the tracker has `data`, which go through torch modules alone.
        """
        from planescope.training.tracker.frameworks.keras import callback

        if self._has_data:
            raise UsageError("data= needs a torch module; leave it out for Keras")
        return callback(self._recorder, self, self._choice, loggers)
