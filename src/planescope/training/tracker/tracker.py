"""`Tracker`: a callback of Lightning, and the same object for any other training loop."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from planescope.files.errors import CheckpointError, UsageError, nearest
from planescope.files.writing import in_utf8, write, write_csv, write_parquet
from planescope.hyperplanes.layer import Kind, View
from planescope.measurement.activations import measure_activations
from planescope.measurement.measure import DEFAULT_KINDS, choice, chosen_kinds, compiled
from planescope.measurement.metrics import LOGGABLE, LOGGED, by_key
from planescope.measurement.record import Measurement, from_dict, layers_table
from planescope.training.tracker import distributed as processes
from planescope.training.tracker import live
from planescope.training.tracker.reference import Reference, Starts

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from planescope.measurement.assemble import Observed

SCHEMA = "planescope.track/1"

# Updates that may wait on the device to be read; a training that never asks waits for one in turn.
_UNREAD = 64


def _callback() -> type:
    """Lightning's callback, under whichever of its two names it is installed."""
    bases = []
    for name in ("pytorch_lightning", "lightning.pytorch"):
        try:
            bases.append(import_module(name).Callback)
        except ModuleNotFoundError as exc:
            if exc.name not in (name, name.partition(".")[0]):
                raise
    return type("_Callback", tuple(bases) or (object,), {})


if TYPE_CHECKING:
    from pytorch_lightning import Callback as _Callback
else:
    _Callback = _callback()


@dataclass(eq=False)
class _Record:
    """A measurement, or until somebody reads it what makes it from what lies on the device."""

    step: int
    epoch: int | None
    result: Measurement | Callable[[], Measurement]
    is_logged: bool = False

    def read(self) -> Measurement:
        if not isinstance(self.result, Measurement):
            self.result = self.result()
        return self.result


class Tracker(_Callback):
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
    data : tensor, tuple, list of these, or other iterable of them, optional
        A batch of inputs, or a tuple that begins with one. From them the centre and the activation
        rate are measured for any layer; without them the centre comes from a batch norm's
        parameters. All batches of a list are used, and of any other iterable (a DataLoader) the
        first one; the same at each update, which then waits for the device.
    log : iterable of str
        Statistics to log, by the names of the columns of `to_pandas`; () logs nothing.
    reference : {"device", "cpu"} or None
        Where the weights of the first update are kept, whose distance from those of later ones is
        `l2` and `linf`. They take as much memory as the weights measured, there and in checkpoints.
        With None there are no distances.
    filters : bool
        Keep the values of single filters in `measurements`: 7 numbers a filter and update.

    Raises
    ------
    UsageError
        If an option cannot be.

    Notes
    -----
    The keys that are logged are ``planescope/LAYER/STATISTIC``, for example
    ``planescope/features.0/negative_mass``, and ``planescope/STATISTIC`` for the filters of all
    layers together.

    An update queues its work on the device of the network and waits for nothing, unless there are
    `data`. What it took is brought to the host when it is logged, read or saved, and at the latest
    64 updates later. The network and the state of all random generators stay as they are.

    On a CPU, sums over layers of more than 65,536 weights are taken in float32 by pieces: signs,
    and so masses and their tests, are exact; cosines agree with `planescope.measure` to 1e-6, l2
    and linf to a relative 1e-6. All else agrees to the last digits of float64.

    With several processes all call it, and that of rank 0 keeps the statistics. Weights sharded by
    `fully_shard` or `FullyShardedDataParallel` are put together at each update.
    """

    def __init__(
        self,
        *,
        every: int | str = "epoch",
        view: View | str = View.RAW,
        kinds: Iterable[Kind | str] | str = DEFAULT_KINDS,
        layers: str | None = None,
        data: Any = None,
        log: Iterable[str] = LOGGED,
        reference: str | None = "device",
        filters: bool = False,
    ) -> None:
        super().__init__()
        if every != "epoch" and not (type(every) is int and every > 0):
            raise UsageError(
                f"every={every!r} must be 'epoch', or the number of steps from one measurement to "
                "the next, at least 1"
            )
        self.every = every
        self._logged = (log,) if isinstance(log, str) else tuple(log)
        for name in self._logged:
            if name not in LOGGABLE:
                raise UsageError(f"log={name!r} is no statistic; {nearest(str(name), LOGGABLE)}")
        self._choice = live.Choice(
            view=choice(View, view, "view"),
            kinds=chosen_kinds(kinds),
            pattern=compiled(layers, "layers"),
        )
        self._starts = Starts(
            None if reference is None else choice(Reference, reference, "reference")
        )
        self._data = data
        self._filters = filters
        self._records: list[_Record] = []
        self._live: live.Live | None = None
        self._last_step: int | None = None

    # --- any loop

    def update(self, model: nn.Module, step: int, *, epoch: int | None = None) -> None:
        """Measure a module as it is now, if it is due.

        Parameters
        ----------
        model : torch.nn.Module
        step : int
            Optimiser steps done. With ``every=N`` the first call measures, and then those with a
            multiple of N; with ``every="epoch"`` each call does. No step is measured twice.
        epoch : int, optional
            Epochs done, for the table.

        Raises
        ------
        NoLayersError
            On the first call, if there is nothing to measure.
        UsageError
            On the first call, if a weight has no values yet or `data` do not fit the network.
        """
        if self._last_step is None or self.every == "epoch" or step % int(self.every) == 0:
            self.record(model, step, epoch=epoch)

    def record(self, model: nn.Module, step: int, *, epoch: int | None = None) -> None:
        """Measure a module as it is now, due or not; no step twice.

        Raises
        ------
        NoLayersError, UsageError
            As `update`.
        """
        if step == self._last_step:
            return
        with processes.whole_weights(model):
            if self._live is None or self._live.signature != live.signature(model):
                self._live = live.find_live(model, self._choice)
            if processes.is_first():
                self._take(self._live, step, epoch, model)
            elif processes.is_sharded(model):
                self._assist(self._live, model)
        self._last_step = step

    def _take(self, network: live.Live, step: int, epoch: int | None, model: nn.Module) -> None:
        observed = self._observe(model, network)
        on_cpu = next(model.parameters()).device.type == "cpu"
        threads = torch.get_num_threads() if on_cpu and not processes.is_sharded(model) else 1
        self.keep(network, step, epoch, observed, threads=threads)

    def _assist(self, network: live.Live, model: nn.Module) -> None:
        """Take part in putting sharded weights together, as often and in the same order."""
        self._observe(model, network)
        live.read_layers(network.layers, self._choice.view, Starts(None), {}, threads=1)

    def keep(
        self,
        network: live.Live,
        step: int,
        epoch: int | None,
        observed: Mapping[str, Observed] | None = None,
        *,
        threads: int = 1,
    ) -> None:
        """Measure layers that were found, whatever framework they are of; no step twice."""
        if step == self._last_step:
            return
        self._last_step = step
        view = self._choice.view
        readings = live.read_layers(
            network.layers, view, self._starts, observed or {}, threads=threads
        )
        notes = self._starts.notes

        def settle() -> Measurement:
            measured = live.settle(readings, network.found, view, notes)
            return measured if self._filters else _slim(measured)

        self._records.append(_Record(step, epoch, settle))
        if len(self._records) > _UNREAD:
            self._records[-_UNREAD - 1].read()

    def _observe(self, model: nn.Module, network: live.Live) -> Mapping[str, Observed]:
        if self._data is None:
            return {}
        like = next(model.parameters())
        with processes.unchanged_random_state(like.device):
            self._data = list(_batches(self._data))
            batches = (x.to(like.dtype) if x.is_floating_point() else x for x in self._data)
            return measure_activations(model, batches, network.parts)

    # --- what was found

    @property
    def measurements(self) -> list[tuple[int, Measurement]]:
        """Step and measurement of each update."""
        return [(record.step, record.read()) for record in self._records]

    def metrics(self) -> dict[str, float]:
        """What is logged of the last update, by key; empty before the first."""
        return by_key(self._records[-1].read(), self._logged) if self._records else {}

    def unlogged(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Step and metrics of each update that was not asked for here before."""
        for record in self._records:
            if not record.is_logged and self._logged:
                record.is_logged = True
                yield record.step, by_key(record.read(), self._logged)

    def to_pandas(self) -> pd.DataFrame:
        """Table with a row an update and layer."""
        import pandas as pd

        return pd.DataFrame(in_utf8(self._table()))

    def _table(self) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {"step": [], "epoch": []}
        for record in self._records:
            layers = len(record.read().layers)
            columns["step"] += [record.step] * layers
            columns["epoch"] += [record.epoch] * layers
        table = layers_table([measurement for _, measurement in self.measurements])
        columns["layer"] = table.pop("name")
        left_out = ("schema", "path", "view")
        return columns | {key: table[key] for key in table if key not in left_out}

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

        def as_json(draft: Path) -> None:
            draft.write_text(self._json(indent=2) + "\n", encoding="utf-8")

        def as_csv(draft: Path) -> None:
            write_csv(draft, self._table())

        def as_parquet(draft: Path) -> None:
            write_parquet(draft, self._table(), {"planescope": self._json(), "schema": SCHEMA})

        write(path, {".json": as_json, ".csv": as_csv, ".parquet": as_parquet})

    def _json(self, indent: int | None = None) -> str:
        data = {"schema": SCHEMA, "updates": self._updates()}
        return json.dumps(data, indent=indent, allow_nan=False)

    def _updates(self) -> list[dict[str, Any]]:
        return [
            {"step": r.step, "epoch": r.epoch, "measurement": r.read().to_dict()}
            for r in self._records
        ]

    # --- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the table, and the weights that distances are measured from."""
        return {
            "schema": SCHEMA,
            "updates": self._updates(),
            "starts": self._starts.state_dict(),
        }

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
        self._starts.load_state_dict(state_dict["starts"])
        self._records = [
            _Record(u["step"], u["epoch"], from_dict(u["measurement"]), is_logged=True)
            for u in state_dict["updates"]
        ]
        self._last_step = self._records[-1].step if self._records else None

    @property
    def state_key(self) -> str:
        """Name of the state in Lightning's checkpoints; trackers with other options have others."""
        pattern = self._choice.pattern and self._choice.pattern.pattern
        kinds = ",".join(self._choice.kinds)
        return f"planescope.Tracker({self.every}, {self._choice.view}, {kinds}, {pattern})"

    # --- Lightning

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Measure the network as it starts; where there is nothing to measure, stop here."""
        self.record(pl_module, trainer.global_step, epoch=trainer.current_epoch)
        self._log(trainer)

    def on_train_batch_end(self, trainer: Any, pl_module: nn.Module, *_: Any) -> None:
        """Measure if it is due; log when the trainer does."""
        step = trainer.global_step
        if self.every != "epoch":
            self.update(pl_module, step, epoch=trainer.current_epoch)
            if trainer.log_every_n_steps and step % trainer.log_every_n_steps == 0:
                self._log(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Measure, if it is due."""
        if self.every == "epoch":
            self.record(pl_module, trainer.global_step, epoch=trainer.current_epoch + 1)
        self._log(trainer)

    def on_train_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Measure the network as it ends."""
        self.record(pl_module, trainer.global_step, epoch=trainer.current_epoch)
        self._log(trainer)

    def _log(self, trainer: Any) -> None:
        if not trainer.loggers:
            return
        for step, found in self.unlogged():
            for logger in trainer.loggers:
                logger.log_metrics(found, step=step)

    # --- other trainers

    def for_transformers(self, trainer: Any = None) -> Any:
        """Callback for Hugging Face's `Trainer`.

        Parameters
        ----------
        trainer : transformers.Trainer, optional
            Logs the statistics when it logs the loss, to the same places:
            ``trainer.add_callback(tracker.for_transformers(trainer))``.

        Raises
        ------
        MissingDependencyError
            If transformers is not installed.
        """
        from planescope.training.tracker.transformers import callback

        return callback(self, trainer)

    def for_keras(self) -> Any:
        """Callback for ``fit`` of Keras 3, with any backend; the statistics join its logs.

        Raises
        ------
        MissingDependencyError
            If keras is not installed.
        UsageError
            If the tracker has `data`, which go through torch modules alone.
        """
        from planescope.training.tracker.keras import callback

        if self._data is not None:
            raise UsageError("data= needs a torch module; leave it out for Keras")
        return callback(self, self._choice)


def _slim(measurement: Measurement) -> Measurement:
    """Without the values of single filters."""
    layers = tuple(replace(layer, values=None) for layer in measurement.layers)
    return replace(measurement, layers=layers)


def _batches(data: Any) -> Iterator[torch.Tensor]:
    """Inputs of the batches that are used of `data`."""
    if isinstance(data, torch.Tensor | tuple):
        data = [data]
    batches = data if isinstance(data, list) else list(islice(data, 1))
    if not batches:
        raise UsageError("data= has no batch")
    for batch in batches:
        inputs = batch[0] if isinstance(batch, tuple | list) and batch else batch
        if not isinstance(inputs, torch.Tensor):
            raise UsageError(
                f"data= has a batch of type {type(batch).__name__}; give tensors, or tuples that "
                "begin with one"
            )
        yield inputs
