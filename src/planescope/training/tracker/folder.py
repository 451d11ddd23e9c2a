"""The run folder that a Tracker writes: what is known of a training, its weights and statistics."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planescope.files.errors import UsageError, nearest
from planescope.files.results.versions import version
from planescope.hyperplanes.layer import Structure
from planescope.training.folder.metrics import EpochMetrics
from planescope.training.folder.status import State, Status
from planescope.training.run import Run

if TYPE_CHECKING:
    import torch

    from planescope.measurement.choice import Choice
    from planescope.measurement.record import Measurement
    from planescope.training.tracked import TrackedConfig

# What frameworks call the figures that a run keeps of an epoch.
NAMES = {
    "train_loss": ("train_loss", "loss", "train/loss", "train_loss_epoch"),
    "train_accuracy": ("train_accuracy", "accuracy", "train_acc", "train/acc", "train/accuracy"),
    "val_loss": ("val_loss", "eval_loss", "val/loss", "valid_loss"),
    "val_accuracy": ("val_accuracy", "eval_accuracy", "val_acc", "val/acc", "val/accuracy"),
    "learning_rate": ("learning_rate", "lr"),
}


def known_metrics(logs: Mapping[str, Any], /) -> dict[str, float]:
    """Take those figures of a framework's logs that a run keeps, by the names it has for them."""
    found: dict[str, float] = {}
    for name, others in NAMES.items():
        for other in others:
            if other in logs and (value := _number(logs[other])) is not None:
                found.setdefault(name, value)
    return found


def _number(value: Any) -> float | None:
    """Return a figure as a number; None of what is another thing, as a value a class."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):  # the last of a tensor of several
        return None


class Folder:
    """A run as a Tracker writes it, update by update.

    Parameters
    ----------
    path : path
    choice : Choice
        What the Tracker measures.
    every : int or "epoch"
        How often.
    """

    def __init__(self, path: Path, choice: Choice, every: int | str) -> None:
        self.run = Run(path)
        self._choice, self._every = choice, every
        self._metrics: list[EpochMetrics] = []
        self._last: int | None = None
        self._since = time.perf_counter()

    def write(
        self,
        number: int,
        measurement: Measurement,
        weights: Mapping[str, torch.Tensor] | None,
        structure: Callable[[], Structure],
        metrics: Mapping[str, float],
        *,
        unit: str,
        goes_on: bool,
    ) -> None:
        """Write an update; the first one makes the folder.

        Parameters
        ----------
        number : int
            Epochs or steps done, as `unit` says.
        weights : mapping or None
            None where only the framework itself lays weights out.
        goes_on : bool
            The Tracker was resumed: a run that is there is gone on with.

        Raises
        ------
        UsageError
            If there is a run that this does not go on with, or numbers do not go up.
        OutputError
            If something cannot be written.
        """
        if self._last is None:
            self._begin(number, measurement.source.path, unit, structure, goes_on=goes_on)
        if self._last is not None and number <= self._last:
            if number < self._last:
                raise UsageError(
                    f"{self.run.path}: {unit} {number} comes after {self._last}; the folder is of "
                    "one training, give another Tracker(out=) to the next"
                )
            self.run.cut(number - 1)  # the end of a training that stopped within an epoch
            self._metrics = [row for row in self._metrics if row.epoch < number]
        now = time.perf_counter()
        fields: dict[str, Any] = dict.fromkeys(NAMES) | dict(metrics)
        self._metrics.append(EpochMetrics(epoch=number, seconds=now - self._since, **fields))
        self._since, self._last = now, number
        if weights is not None:
            self.run.save_snapshot(number, weights, {"network": measurement.source.path})
        self.run.add_measurement(number, measurement)
        self.run.save_metrics(self._metrics)

    def _begin(
        self,
        number: int,
        network: str,
        unit: str,
        structure: Callable[[], Structure],
        *,
        goes_on: bool,
    ) -> None:
        if self.run.exists:
            if not goes_on:
                raise UsageError(
                    f"{self.run.path}: exists; give another out, or resume the Tracker with the "
                    "training"
                )
            self.run.cut(number - 1)
            self._metrics = list(self.run.metrics)
        else:
            Run.create(self.run.path, self._record(network, unit))
        self.run.save_structure(structure())
        self.run.save_environment({"planescope": version(), "python": platform.python_version()})
        self.run.save_status(Status(state=State.RUNNING))

    def _record(self, network: str, unit: str) -> TrackedConfig:
        """Return what is known of the training: the class of its network, what is measured."""
        from planescope.training.tracked import TrackedConfig

        return TrackedConfig(
            network=network,
            view=self._choice.view.value,
            kinds=tuple(kind.value for kind in self._choice.kinds),
            layers=self._choice.pattern and self._choice.pattern.pattern,
            every=self._every,
            unit="epoch" if unit == "epoch" else "step",
        )

    def amend(self, metrics: Mapping[str, float]) -> None:
        """Add figures that came after an update to it: what an evaluation behind an epoch gave."""
        if self._metrics and metrics:
            fields: dict[str, Any] = dict(metrics)
            self._metrics[-1] = replace(self._metrics[-1], **fields)
            self.run.save_metrics(self._metrics)

    def end(self) -> None:
        """Say that the training is over."""
        if self._last is not None:
            self.run.save_status(Status(state=State.FINISHED))


def checked_metrics(metrics: Mapping[str, float] | None, /) -> dict[str, float]:
    """Refuse figures of other names than those a run keeps.

    Raises
    ------
    UsageError
        If there is one.
    """
    for name in metrics or {}:
        if name not in NAMES:
            raise UsageError(f"metrics has {name!r}; {nearest(str(name), NAMES)}")
    return {name: float(value) for name, value in (metrics or {}).items()}
