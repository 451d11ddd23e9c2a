"""The folder of a training run: what is in it; nothing else knows its paths.

    config.yaml          what repeats the run
    network.json         where its layers stand in the network, which is then not built to be read
    environment.json     versions and device of each start
    metrics.csv          a row an epoch
    snapshots/           epoch-0000.safetensors and so on: weights, what they are in the metadata
    measurements.parquet every layer at every snapshot (.csv where pyarrow is missing)
    filters/             epoch-0000.safetensors and so on: cosine and offset of each filter
    last.ckpt            all that resuming needs, after the last epoch that was finished
    state.json           how it ended
    resets.json          what its layers, put back, cost; resets-progress.json keeps work on that
    relation.json        what scores tell of those costs, where `relate --out` wrote it here

Files are whole or absent: they are written in hidden folders ``.planescope-...`` first. Those of an
epoch are written before its `last.ckpt`; what a killed run wrote after that is cut off when it is
resumed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from planescope.files.drafts import remove_drafts
from planescope.files.errors import CheckpointError, UsageError, one_line
from planescope.files.folders import (
    inside,
    make_inside,
    names_inside,
    remove_inside,
    replacing_inside,
)
from planescope.files.locks import held, is_locked
from planescope.files.optional import consented
from planescope.files.reading import open_binary, read_text
from planescope.files.records import record
from planescope.files.results import COLUMN_OF
from planescope.files.writing import is_utf8, write_csv
from planescope.hyperplanes.layer import Structure
from planescope.measurement.record import (
    LAYER_KEYS,
    LayerMeasurement,
    Measurement,
    layer_from_dict,
    layers_table,
)
from planescope.training import columns
from planescope.training.columns import MEASUREMENT_KEYS, MEASUREMENTS_SCHEMA
from planescope.training.snapshots import SCHEMA as SNAPSHOT_SCHEMA

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from numpy.typing import NDArray

    from planescope.files.optional import Kind
    from planescope.training.config import RunConfig
    from planescope.training.tracked import TrackedConfig

METRICS_SCHEMA = "planescope.metrics/1"
FILTERS_SCHEMA = "planescope.run-filters/1"
ENVIRONMENT_SCHEMA = "planescope.environment/1"
STATE_SCHEMA = "planescope.run-state/1"
NETWORK_SCHEMA = "planescope.run-network/1"

_SNAPSHOTS, _FILTERS, _LOCK = "snapshots", "filters", ".lock"
# Runs that differ in these alone are repetitions: seeds, and how the work was done.
REPETITION = frozenset(
    {
        "seed", "data_seed", "validation_seed", "data_path", "download", "workers", "threads",
        "accelerator", "devices", "strategy", "compile", "loggers", "train_accuracy",
        "snapshots_until", "snapshots_every",
    }
)  # fmt: skip

_EPOCH_FILE = re.compile(r"(?:epoch|step)-(\d{4,})\.safetensors")


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """The metrics of an epoch; None for what was not asked for, or does not exist at epoch 0.

    Attributes
    ----------
    epoch : int
        Epochs trained; 0 is the initialisation. Steps, where a Tracker counted these.
    train_loss : float or None
        Mean cross-entropy of the training examples as they were trained on: augmented, with
        dropout, by weights that changed from batch to batch.
    train_accuracy : float or None
        Share of the training examples, not augmented, that the network then classified correctly.
    val_loss, val_accuracy : float or None
        The same of the validation examples; never None in a run that planescope trained.
    learning_rate : float or None
        At the start of the epoch.
    seconds : float
        Wall time, validation included.
    """

    epoch: int
    train_loss: float | None
    train_accuracy: float | None
    val_loss: float | None
    val_accuracy: float | None
    learning_rate: float | None
    seconds: float


_METRICS_KEYS = tuple(field.name for field in dataclasses.fields(EpochMetrics))


class State(StrEnum):
    """The state of a run."""

    NEW = "new"
    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"  # interrupted or killed; resuming goes on
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Status:
    """A run's state; `message` says what happened and what to do, "" where nothing did."""

    state: State
    message: str = ""


class Run:
    """A training run by the path of its folder; what it has is read when it is asked for.

    Parameters
    ----------
    path : path
        The folder; whether it is there shows when something is asked for.
    network, data : str, optional
        Take these in place of those that the run names.
    trust : bool, str or collection of str
        Callables that may run although only the run names them; True for all. The folder may be
        anybody's: without consent no code that it names is run.
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
        self._given = {k: v for k, v in {"network": network, "data": data}.items() if v is not None}
        typed = () if isinstance(trust, bool) else (trust,) if isinstance(trust, str) else trust
        self.trust: bool | frozenset[str] = (
            True if trust is True else frozenset((*typed, *self._given.values()))
        )

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @classmethod
    def create(cls, path: str | os.PathLike[str], config: RunConfig | TrackedConfig) -> Run:
        """Make the folder of a new run.

        Raises
        ------
        UsageError
            If there is something at that path.
        OutputError
            If it cannot be made.
        """
        from planescope.training.config import RunConfig, dump_config
        from planescope.training.tracked import dump_tracked

        run = cls(path)
        make_inside(run.path, _SNAPSHOTS)
        if run.exists:
            raise UsageError(f"{path}: exists; go on with --resume, or give another --out")
        is_own = isinstance(config, RunConfig)
        run._write("config.yaml", dump_config(config) if is_own else dump_tracked(config))
        return run

    @classmethod
    def open(
        cls,
        path: Run | str | os.PathLike[str],
        *,
        trust: bool | str | Collection[str] = False,
    ) -> Run:
        """Find a run that exists.

        Parameters
        ----------
        path : Run or path
            A `Run` keeps what it was made with.
        trust
            As for a `Run`; of a path.

        Raises
        ------
        CheckpointError
            If there is none.
        """
        run = path if isinstance(path, Run) else cls(path, trust=trust)
        if not run.exists:
            raise CheckpointError(f"{run.path}: is no run: it has no config.yaml")
        return run

    @classmethod
    def found(cls, model: Any, /, *, trust: bool | str | Collection[str] = False) -> Run | None:
        """Return the run that is meant: a `Run`, or the path of one; None of whatever else.

        Raises
        ------
        CheckpointError
            If a `Run` has no folder.
        """
        if isinstance(model, Run):
            return cls.open(model)
        if not isinstance(model, str | os.PathLike):
            return None
        run = cls(model, trust=trust)
        return run if run.exists else None

    @property
    def exists(self) -> bool:
        """Return whether the folder holds a run, of whatever state."""
        return self._part("config.yaml").is_file()

    @property
    def config(self) -> RunConfig:
        """Read the config of the run, with network and data replaced where others were given.

        Raises
        ------
        CheckpointError
            If there is no run, or its config.yaml is lost.
        UsageError
            If that is no config.
        """
        from planescope.training.config import load_config

        if self.tracked is not None:
            raise UsageError(
                f"{self.path}: a Tracker followed this training, which planescope cannot repeat"
            )
        path = Run.open(self.path)._part("config.yaml")
        # A user's own file that is empty is all defaults; here it would make another run of this.
        if not path.stat().st_size:
            raise CheckpointError(
                f"{path}: is empty; put it back, or train anew with another --out"
            )
        config = load_config(path)
        return config.but(self._given) if self._given else config

    @property
    def tracked(self) -> TrackedConfig | None:
        """Return what a Tracker knew of the training; None for a run that planescope trained.

        Raises
        ------
        CheckpointError
            If there is no run, or its config.yaml is lost.
        UsageError
            If that is no config.
        """
        from planescope.training.tracked import load_tracked

        path = Run.open(self.path)._part("config.yaml")
        found = load_tracked(path) if path.stat().st_size else None
        return found.but(self._given) if found is not None else None

    @property
    def about(self) -> RunConfig | TrackedConfig:
        """Return all that is known of the training: `tracked`, or else `config`."""
        return self.tracked or self.config

    @property
    def is_tracked(self) -> bool:
        """Tell whether there is a run, and a Tracker wrote it."""
        return self.exists and self.tracked is not None

    @functools.cached_property  # it never changes, and every file of a run asks for it
    def unit(self) -> str:
        """Return the unit of its snapshots: epochs, or steps where a Tracker counted these."""
        tracked = self.tracked
        return "epoch" if tracked is None else tracked.unit

    @property
    def named_data(self) -> str | None:
        """Return the name that was given to its data; None where nobody gave one."""
        return self._given.get("data") if self.tracked is not None else self.config.data

    @property
    def named_network(self) -> str | None:
        """Return the name that its network is built by; None where only its class is known."""
        return self._given.get("network") if self.tracked is not None else self.config.network

    def consented(self, kind: Kind, /) -> str:
        """Return the name of its network, or of its data, if what that names may run.

        Raises
        ------
        UsageError
            If it is code that nobody consented to.
        CheckpointError
            As `config`.
        """
        where = self.path / "config.yaml"
        return consented(getattr(self.about, kind), kind=kind, where=where, trust=self.trust)

    @property
    def structure(self) -> Structure | str:
        """Return the structure recorded for the network, or the network's name.

        Of a run of an earlier version that names code nobody consented to, nothing does: then no
        layer has a place, and the note says how to have them.

        Raises
        ------
        CheckpointError
            If network.json is damaged.
        """
        tracked, name = self.tracked, self.about.network
        if ":" not in name and tracked is None:
            return name
        recorded = self._recorded()
        if recorded is not None and (recorded.network == name or tracked is not None):
            return recorded
        if tracked is not None:
            raise CheckpointError(f"{self._part('network.json')}: is lost; put it back")
        try:
            return self.consented("network")
        except UsageError:
            return Structure(
                network=name,
                names=(),
                places={},
                note=f"{self.path} was made by an earlier version, which did not record where its "
                f"layers stand: stages, inputs and norms are unknown; give --network {name} to "
                "build it, or --trust",
            )

    @property
    def unknown(self) -> str:
        """Say why the places of its layers are unknown; "" where they are known."""
        structure = self.structure
        return structure.note if isinstance(structure, Structure) and not structure.known else ""

    @property
    def can_be_measured(self) -> bool:
        """Tell whether snapshots can be measured in the run's view, which may need norms."""
        return self.about.view == "raw" or not self.unknown

    def _recorded(self) -> Structure | None:
        path = self._part("network.json")
        if not path.is_file():
            return None
        try:
            data = json.loads(read_text(path))
            if data.pop("schema") != NETWORK_SCHEMA:
                raise ValueError("its schema is another")
            return record(Structure, data)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            raise CheckpointError(
                f"{path}: cannot be read ({exc}); remove it, and give --network to have the "
                "network built instead"
            ) from exc

    def save_structure(self, structure: Structure) -> None:
        """Write where the layers of its network stand."""
        fields = {"schema": NETWORK_SCHEMA, **dataclasses.asdict(structure)}
        self._write("network.json", json.dumps(fields, indent=1) + "\n")

    @property
    def metrics(self) -> tuple[EpochMetrics, ...]:
        """Return a record an epoch, from epoch 0; empty before there is one.

        Raises
        ------
        CheckpointError
            If metrics.csv is damaged.
        """
        path = self._part("metrics.csv")
        if not path.is_file():
            return ()
        found = columns.read_csv(path, ("schema", *_METRICS_KEYS), self.unit)
        found.pop("schema")
        rows = (dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True))
        try:
            return tuple(record(EpochMetrics, row) for row in rows)
        except ValueError as exc:
            raise CheckpointError(f"{path}: is damaged ({one_line(exc)})") from exc

    @property
    def snapshots(self) -> dict[int, Path]:
        """Path of each snapshot by its epoch, in order; a safetensors file of weights."""
        return self._by_epoch(_SNAPSHOTS)

    @property
    def keeps_tables_alone(self) -> bool:
        """Return whether it is finished without its weights, as those in `studies/results` are."""
        return not self._part(_SNAPSHOTS).exists() and self.status.state is State.FINISHED

    @property
    def measurements(self) -> pd.DataFrame:
        """Every layer at every snapshot: `epoch`, `view`, and the keys of a measurement's layers.

        Where a Tracker counted steps, `step` takes the place of `epoch`.

        Raises
        ------
        CheckpointError
            If nothing was measured yet, the file is damaged, or its rows have another schema
            version.
        """
        import pandas as pd

        table = pd.DataFrame(self._whole_table()).drop(columns="schema")
        return table.rename(columns={"epoch": self.unit})

    @property
    def measured_layers(self) -> dict[int, tuple[LayerMeasurement, ...]]:
        """Return the layers at each snapshot by its epoch, in order: `measurements` as records.

        Raises
        ------
        CheckpointError
            As `measurements`.
        """
        table = self._whole_table()
        found: dict[int, list[LayerMeasurement]] = {}
        for values in zip(*table.values(), strict=True):
            row = dict(zip(table, values, strict=True))
            fields = {key: row[COLUMN_OF.get(key, key)] for key in LAYER_KEYS}
            try:
                fields["kernel"] = [
                    int(extent) for extent in (row["kernel"] or "").split("x") if extent
                ]
                found.setdefault(int(row["epoch"]), []).append(layer_from_dict(fields))
            except (ValueError, TypeError, AttributeError, OverflowError) as exc:
                raise CheckpointError(
                    f"{self._measurements_file}: is damaged ({one_line(exc)})"
                ) from exc
        return {epoch: tuple(found[epoch]) for epoch in sorted(found)}

    @property
    def filter_epochs(self) -> tuple[int, ...]:
        """Return the epochs whose values of single filters were kept, in order."""
        return tuple(self._by_epoch(_FILTERS))

    def load_filters(self, epoch: int) -> dict[str, NDArray[np.float32]]:
        """Cosine and offset of each filter at a snapshot, of shape (2, filters), by layer.

        Raises
        ------
        CheckpointError
            If they were not kept or the file is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        path = self._part(_FILTERS, _file_of(epoch, self.unit))
        try:
            with open_binary(path) as file:
                # In any order; the file has them by name.
                filters: dict[str, NDArray[np.float32]] = dict(sorted(load(file.read()).items()))
        except (OSError, SafetensorError) as exc:
            raise CheckpointError(f"{path}: cannot be read ({exc})") from exc
        return filters

    @property
    def environments(self) -> tuple[dict[str, Any], ...]:
        """Read versions and device of each start of the run; empty before the first.

        Raises
        ------
        CheckpointError
            If environment.json is damaged.
        """
        path = self._part("environment.json")
        if not path.is_file():
            return ()
        try:
            return tuple(map(dict, json.loads(read_text(path))["starts"]))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as exc:
            raise CheckpointError(f"{path}: is damaged ({exc!r})") from exc

    @property
    def last_checkpoint(self) -> Path:
        """Return the path of all that resuming needs, once an epoch was finished."""
        return self._part("last.ckpt")

    @property
    def resets(self) -> Path:
        """Read the latest resets of its layers, once there are some."""
        return self._part("resets.json")

    @property
    def relation(self) -> Path:
        """Read the relation of scores and resets that was written there, if any."""
        return self._part("relation.json")

    @property
    def resets_progress(self) -> Path:
        """Return the path of unfinished work on resets."""
        return self._part("resets-progress.json")

    @property
    def stamp(self) -> tuple[int, ...]:
        """When each of the files that hold results was written; equal while nothing is new."""
        files = (self._measurements_file, self._part("metrics.csv"), self.resets, self.relation)
        return tuple(file.stat().st_mtime_ns if file.is_file() else 0 for file in files)

    @property
    def logs(self) -> Path:
        """Return the folder for loggers."""
        return self._part("logs")

    @property
    def status(self) -> Status:
        """Return the status of the run: what it wrote last, and whether a process holds it now.

        Raises
        ------
        CheckpointError
            If there is no run, or its state cannot be read.
        """
        path = Run.open(self.path)._part("state.json")
        if self._is_locked():
            return Status(state=State.RUNNING)
        if not path.is_file():
            return Status(state=State.NEW)
        try:
            data = json.loads(read_text(path))
            status = Status(state=State(data["state"]), message=str(data["message"]))
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as exc:
            raise CheckpointError(f"{path}: cannot be read ({exc!r})") from exc
        if status.state is State.RUNNING and self.tracked is not None:
            return Status(state=State.RUNNING, message="or its end was not told: tracker.close()")
        if status.state is State.RUNNING:
            return Status(state=State.STOPPED, message="it was killed; go on with --resume")
        return status

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run, so that no other process trains it; a killed process lets go.

        Its folder is made, if it is not there: who is to make the run is settled by that too.

        Raises
        ------
        UsageError
            If another process holds it.
        OutputError
            If the folder cannot be made.
        """
        make_inside(self.path)
        # `status` of another process takes the lock for a moment.
        with held(self._part(_LOCK), timeout=1) as is_ours:
            if not is_ours:
                raise UsageError(f"{self.path}: another process is training this run")
            for folder in ((), (_SNAPSHOTS,), (_FILTERS,)):
                remove_drafts(self._part(*folder))
            yield

    def save_status(self, status: Status) -> None:
        """Write how the run stands."""
        fields = {"schema": STATE_SCHEMA, "state": str(status.state), "message": status.message}
        self._write("state.json", json.dumps(fields, indent=2) + "\n")

    def save_environment(self, environment: Mapping[str, Any]) -> None:
        """Add what a start of the run had: versions, device."""
        starts: tuple[dict[str, Any], ...] = ()
        with contextlib.suppress(CheckpointError):  # a damaged one is begun anew
            starts = self.environments
        fields = {"schema": ENVIRONMENT_SCHEMA, "starts": [*starts, dict(environment)]}
        self._write("environment.json", json.dumps(fields, indent=2) + "\n")

    def save_metrics(self, metrics: Sequence[EpochMetrics]) -> None:
        """Write the records of all epochs."""
        table: dict[str, list[Any]] = {"schema": [METRICS_SCHEMA] * len(metrics)}
        table |= {
            columns.key_in_files(key, self.unit): [getattr(row, key) for row in metrics]
            for key in _METRICS_KEYS
        }
        with replacing_inside(self.path, "metrics.csv") as draft:
            write_csv(draft, table)

    def save_snapshot(
        self, epoch: int, weights: Mapping[str, torch.Tensor], about: Mapping[str, Any]
    ) -> None:
        """Write weights, with what they are as the file's metadata.

        Raises
        ------
        OutputError
            If the disk is full.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        # Copied: safetensors refuses tensors that share memory, as shared layers do.
        tensors = {
            name: weight.detach().to("cpu", copy=True).contiguous()
            for name, weight in weights.items()
        }
        # One entry: safetensors writes several in any order, and equal snapshots are equal files.
        unit = self.unit
        metadata = {"planescope": json.dumps({"schema": SNAPSHOT_SCHEMA, unit: epoch, **about})}
        with replacing_inside(self.path, _SNAPSHOTS, _file_of(epoch, unit)) as draft:
            try:
                save_file(tensors, draft, metadata)
            except SafetensorError as exc:
                raise OSError(str(exc)) from exc

    def load_snapshot(self, epoch: int) -> dict[str, torch.Tensor]:
        """Return the weights of a snapshot.

        Raises
        ------
        CheckpointError
            If it is missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load, load_file

        path = self._part(_SNAPSHOTS, _file_of(epoch, self.unit))
        try:
            with open_binary(path) as file:  # safetensors would wait for a pipe
                # It takes no path whose bytes are no text; a whole file costs twice the memory.
                weights: dict[str, torch.Tensor] = (
                    load_file(path)
                    if is_utf8(str(path))
                    else dict(sorted(load(file.read()).items()))
                )
        except (OSError, SafetensorError) as exc:
            raise CheckpointError(f"{path}: cannot be read ({exc})") from exc
        return weights

    def add_measurement(self, epoch: int, measurement: Measurement) -> None:
        """Add the layers of a snapshot to the table, and keep what their filters are."""
        self._save_filters(epoch, measurement)
        new = layers_table([measurement])
        rows = len(new["layer"])
        new |= {"schema": [MEASUREMENTS_SCHEMA] * rows, "epoch": [epoch] * rows}
        known = self._measured() or {key: [] for key in MEASUREMENT_KEYS}
        self._save_measured({key: [*known[key], *new[key]] for key in MEASUREMENT_KEYS})

    def cut(self, epoch: int) -> None:
        """Remove what was written after an epoch; -1 leaves nothing."""
        for folder in (_SNAPSHOTS, _FILTERS):
            for number, path in self._by_epoch(folder).items():
                if number > epoch:
                    remove_inside(self.path, folder, path.name)
        self.save_metrics([row for row in self.metrics if row.epoch <= epoch])
        if measured := self._measured():
            kept = [index for index, row in enumerate(measured["epoch"]) if row <= epoch]
            self._save_measured({key: [col[i] for i in kept] for key, col in measured.items()})

    def _part(self, *names: str) -> Path:
        """Return the path of a part of the run, which lies in its folder and nowhere else."""
        return inside(self.path, *names)

    def _by_epoch(self, folder: str) -> dict[int, Path]:
        """Return the files of a folder by their epoch, in order."""
        found = {
            int(match[1]): self._part(folder, name)
            for name in names_inside(self.path, folder)
            if (match := _EPOCH_FILE.fullmatch(name))
        }
        return dict(sorted(found.items()))

    def _is_locked(self) -> bool:
        return is_locked(self._part(_LOCK))

    def _write(self, name: str, text: str) -> None:
        with replacing_inside(self.path, name) as draft:
            draft.write_text(text, encoding="utf-8", newline="\n")

    @property
    def _measurements_file(self) -> Path:
        """Return the file there is, or else the one to be written."""
        parquet, table = (self._part(f"measurements.{form}") for form in ("parquet", "csv"))
        return table if table.exists() or find_spec("pyarrow") is None else parquet

    def _whole_table(self) -> dict[str, list[Any]]:
        """Columns of the measurements; an error where there are none that this version reads."""
        measured = self._measured()
        if not measured:
            if self.status.state is State.FINISHED:
                raise CheckpointError(
                    f"{self._measurements_file}: is lost; planescope measure "
                    f"{self.path / _SNAPSHOTS}/*.safetensors measures what the run has kept"
                )
            raise CheckpointError(
                f"{self.path}: nothing was measured yet; planescope train --resume --out "
                f"{self.path} goes on with it"
            )
        if others := {str(schema) for schema in measured["schema"]} - {MEASUREMENTS_SCHEMA}:
            raise CheckpointError(
                f"{self._measurements_file}: holds rows of the schema {min(others)!r}, and this "
                f"version of planescope reads {MEASUREMENTS_SCHEMA!r}; train the run again"
            )
        return measured

    def _measured(self) -> dict[str, list[Any]]:
        path = self._measurements_file
        return columns.read_measurements(path, self.unit) if path.is_file() else {}

    def _save_filters(self, epoch: int, measurement: Measurement) -> None:
        """Single precision, for pictures; a snapshot of a large network is a thousand times this.

        A measurement that was loaded from a file has none.
        """
        from safetensors.numpy import save_file

        values = {layer.name: layer.values for layer in measurement.layers if layer.values}
        if not values:
            return
        # An offset beyond float32 becomes an infinity, which is no point of a picture.
        with np.errstate(over="ignore"):
            arrays = {
                name: np.stack([filters.cosine, filters.offset]).astype(np.float32)
                for name, filters in values.items()
            }
        about = json.dumps({"schema": FILTERS_SCHEMA, "epoch": epoch})
        make_inside(self.path, _FILTERS)
        with replacing_inside(self.path, _FILTERS, _file_of(epoch, self.unit)) as draft:
            save_file(arrays, draft, {"planescope": about})

    def _save_measured(self, measured: Mapping[str, list[Any]]) -> None:
        path = self._measurements_file
        with replacing_inside(self.path, path.name) as draft:
            columns.write_measurements(draft, measured, self.unit)


def _file_of(epoch: int, unit: str) -> str:
    return f"{unit}-{epoch:04d}.safetensors"
