"""The metrics of a run's epochs, a row each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planescope.files.errors import CheckpointError, one_line
from planescope.files.results.records import record
from planescope.training.folder.columns import key_in_files, read_csv

SCHEMA = "planescope.metrics/1"


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


_KEYS = tuple(field.name for field in dataclasses.fields(EpochMetrics))


def read_metrics(path: Path, unit: str, /) -> tuple[EpochMetrics, ...]:
    """Read the records of a table of metrics.

    Raises
    ------
    CheckpointError
        If it is damaged.
    """
    found = read_csv(path, ("schema", *_KEYS), unit)
    found.pop("schema")
    rows = (dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True))
    try:
        return tuple(record(EpochMetrics, row) for row in rows)
    except ValueError as exc:
        raise CheckpointError(f"{path}: is damaged ({one_line(exc)})") from exc


def metrics_table(metrics: Sequence[EpochMetrics], unit: str, /) -> dict[str, list[Any]]:
    """Return the columns of a table of metrics, as files name them."""
    table: dict[str, list[Any]] = {"schema": [SCHEMA] * len(metrics)}
    return table | {
        key_in_files(key, unit): [getattr(row, key) for row in metrics] for key in _KEYS
    }
