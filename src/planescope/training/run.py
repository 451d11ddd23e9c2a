"""A training run: what its folder holds, read when it is asked for, and written whole."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planescope.files.errors import CheckpointError, UsageError
from planescope.files.folders import (
    make_inside,
    names_inside,
    remove_inside,
    replacing_inside,
)
from planescope.files.reading import read_text
from planescope.files.writing import write_csv
from planescope.measurement.record import (
    LayerMeasurement,
    Measurement,
    layers_table,
)
from planescope.training.folder import columns
from planescope.training.folder.columns import MEASUREMENT_KEYS, MEASUREMENTS_SCHEMA
from planescope.training.folder.description import Described
from planescope.training.folder.filters import filters_of, read_filters, write_filters
from planescope.training.folder.metrics import EpochMetrics, metrics_table, read_metrics
from planescope.training.folder.paths import FILTERS, SNAPSHOTS
from planescope.training.folder.snapshots import SCHEMA as SNAPSHOT_SCHEMA
from planescope.training.folder.snapshots import read_weights, write_weights
from planescope.training.folder.status import STATE_SCHEMA, State, Status

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch
    from numpy.typing import NDArray

    from planescope.training.config import RunConfig
    from planescope.training.tracked import TrackedConfig


# Runs that differ in these alone are repetitions: seeds, and how the work was done.
REPETITION = frozenset(
    {
        "seed", "data_seed", "validation_seed", "data_path", "download", "workers", "threads",
        "accelerator", "devices", "strategy", "compile", "loggers", "train_accuracy",
        "snapshots_until", "snapshots_every",
    }
)  # fmt: skip

_EPOCH_FILE = re.compile(r"(?:epoch|step)-(\d{4,})\.safetensors")


class Run(Described):
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
        make_inside(run.path, SNAPSHOTS)
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
        return (path if isinstance(path, Run) else cls(path, trust=trust))._checked()

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
    def fixed(self) -> str:
        """Say why its layers cannot be put back, as of a training with Keras; "" where they can."""
        if self.tracked is None or self.snapshots:
            return ""
        why = self.unknown or "its snapshots are gone"
        return f"{why}; export the model to ONNX, and planescope sensitivity runs it"

    @property
    def metrics(self) -> tuple[EpochMetrics, ...]:
        """Return a record an epoch, from epoch 0; empty before there is one.

        Raises
        ------
        CheckpointError
            If metrics.csv is damaged.
        """
        path = self._part("metrics.csv")
        return read_metrics(path, self.unit) if path.is_file() else ()

    @property
    def snapshots(self) -> dict[int, Path]:
        """Return the path of each snapshot by its epoch, in order.

        A safetensors file of weights.
        """
        return self._by_epoch(SNAPSHOTS)

    @property
    def keeps_tables_alone(self) -> bool:
        """Return whether it is finished without its weights, as those in `studies/results` are."""
        return not self._part(SNAPSHOTS).exists() and self.status.state is State.FINISHED

    @property
    def measurements(self) -> pd.DataFrame:
        """Return every layer at every snapshot.

        `epoch`, `view`, and the keys of a measurement's layers.

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
        return columns.layers_by_epoch(self._whole_table(), self._measurements_file)

    @property
    def filter_epochs(self) -> tuple[int, ...]:
        """Return the epochs whose values of single filters were kept, in order."""
        return tuple(self._by_epoch(FILTERS))

    def load_filters(self, epoch: int) -> dict[str, NDArray[np.float32]]:
        """Return cosine and offset of each filter at a snapshot, of shape (2, filters), by layer.

        Raises
        ------
        CheckpointError
            If they were not kept or the file is damaged.
        """
        return read_filters(self._part(FILTERS, _file_of(epoch, self.unit)))

    @property
    def stamp(self) -> tuple[int, ...]:
        """Tell when each of the files of results was written; equal while nothing is new."""
        files = (self._measurements_file, self._part("metrics.csv"), self.resets, self.relation)
        return tuple(file.stat().st_mtime_ns if file.is_file() else 0 for file in files)

    @property
    def status(self) -> Status:
        """Return the status of the run: what it wrote last, and whether a process holds it now.

        Raises
        ------
        CheckpointError
            If there is no run, or its state cannot be read.
        """
        path = self._checked()._part("state.json")
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

    def save_status(self, status: Status) -> None:
        """Write how the run stands."""
        fields = {"schema": STATE_SCHEMA, "state": str(status.state), "message": status.message}
        self._write("state.json", json.dumps(fields, indent=2) + "\n")

    def save_metrics(self, metrics: Sequence[EpochMetrics]) -> None:
        """Write the records of all epochs."""
        with replacing_inside(self.path, "metrics.csv") as draft:
            write_csv(draft, metrics_table(metrics, self.unit))

    def save_snapshot(
        self, epoch: int, weights: Mapping[str, torch.Tensor], about: Mapping[str, Any]
    ) -> None:
        """Write weights, with what they are as the file's metadata.

        Raises
        ------
        OutputError
            If the disk is full.
        """
        # One entry: safetensors writes several in any order, and equal snapshots are equal files.
        unit = self.unit
        said = {"schema": SNAPSHOT_SCHEMA, unit: epoch, **about}
        with replacing_inside(self.path, SNAPSHOTS, _file_of(epoch, unit)) as draft:
            write_weights(draft, weights, said)

    def load_snapshot(self, epoch: int) -> dict[str, torch.Tensor]:
        """Return the weights of a snapshot.

        Raises
        ------
        CheckpointError
            If it is missing or damaged.
        """
        return read_weights(self._part(SNAPSHOTS, _file_of(epoch, self.unit)))

    def add_measurement(self, epoch: int, measurement: Measurement) -> None:
        """Add the layers of a snapshot to the table, and keep what their filters are."""
        if filters := filters_of(measurement):
            make_inside(self.path, FILTERS)
            with replacing_inside(self.path, FILTERS, _file_of(epoch, self.unit)) as draft:
                write_filters(draft, filters, epoch)
        new = layers_table([measurement])
        rows = len(new["layer"])
        new |= {"schema": [MEASUREMENTS_SCHEMA] * rows, "epoch": [epoch] * rows}
        known = self._measured() or {key: [] for key in MEASUREMENT_KEYS}
        self._save_measured({key: [*known[key], *new[key]] for key in MEASUREMENT_KEYS})

    def cut(self, epoch: int) -> None:
        """Remove what was written after an epoch; -1 leaves nothing."""
        for folder in (SNAPSHOTS, FILTERS):
            for number, path in self._by_epoch(folder).items():
                if number > epoch:
                    remove_inside(self.path, folder, path.name)
        self.save_metrics([row for row in self.metrics if row.epoch <= epoch])
        if measured := self._measured():
            kept = [index for index, row in enumerate(measured["epoch"]) if row <= epoch]
            self._save_measured({key: [col[i] for i in kept] for key, col in measured.items()})

    def _by_epoch(self, folder: str) -> dict[int, Path]:
        """Return the files of a folder by their epoch, in order."""
        found = {
            int(match[1]): self._part(folder, name)
            for name in names_inside(self.path, folder)
            if (match := _EPOCH_FILE.fullmatch(name))
        }
        return dict(sorted(found.items()))

    @property
    def _measurements_file(self) -> Path:
        """Return the file there is, or else the one to be written."""
        parquet, table = (self._part(f"measurements.{form}") for form in ("parquet", "csv"))
        return table if table.exists() or find_spec("pyarrow") is None else parquet

    def _whole_table(self) -> dict[str, list[Any]]:
        """Return the columns of the measurements.

        An error where there are none that this version reads.
        """
        measured = self._measured()
        if not measured:
            if self.status.state is State.FINISHED:
                raise CheckpointError(
                    f"{self._measurements_file}: is lost; planescope measure "
                    f"{self.path / SNAPSHOTS}/*.safetensors measures what the run has kept"
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

    def _save_measured(self, measured: Mapping[str, list[Any]]) -> None:
        path = self._measurements_file
        with replacing_inside(self.path, path.name) as draft:
            columns.write_measurements(draft, measured, self.unit)


def _file_of(epoch: int, unit: str) -> str:
    return f"{unit}-{epoch:04d}.safetensors"
