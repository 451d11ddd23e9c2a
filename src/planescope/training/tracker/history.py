"""The measurements of a Tracker's updates: kept, read when asked for, written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from planescope.files.results import Table
from planescope.hyperplanes.layer import Layer, View
from planescope.hyperplanes.statistics import Statistics
from planescope.measurement.metrics import by_key
from planescope.measurement.record import (
    LayerMeasurement,
    Measurement,
    PoolMeasurement,
    Source,
    layers_table,
)

SCHEMA = "planescope.track/1"

# Updates that may wait on the device to be read; a training that never asks waits for one in turn.
_UNREAD = 64


@dataclass(eq=False)
class Record:
    """A measurement, or until somebody reads it what makes it from what lies on the device."""

    step: int
    epoch: int | None
    result: Measurement | Callable[[], Measurement]
    is_logged: bool = False

    def read(self) -> Measurement:
        """Give the measurement; the first to ask waits for the device."""
        if not isinstance(self.result, Measurement):
            self.result = self.result()
        return self.result


@dataclass(eq=False)
class History(Table):
    """The updates in their order."""

    SCHEMA: ClassVar[str] = SCHEMA
    WHAT: ClassVar[str] = "updates of a Tracker"
    REMEDY: ClassVar[str] = "save the Tracker again"

    records: list[Record] = field(default_factory=list)

    def add(self, step: int, epoch: int | None, result: Callable[[], Measurement]) -> None:
        """Keep an update; one of long ago is read meanwhile."""
        self.records.append(Record(step, epoch, result))
        if len(self.records) > _UNREAD:
            self.records[-_UNREAD - 1].read()

    def unlogged(
        self, logged: Sequence[str], *, by_layer: bool
    ) -> Iterator[tuple[int, dict[str, float]]]:
        """Step and metrics of each update that was not asked for here before."""
        for record in self.records:
            if not record.is_logged and logged:
                record.is_logged = True
                yield record.step, by_key(record.read(), logged, by_layer=by_layer)

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of a table with a row an update and layer."""
        columns: dict[str, list[Any]] = {"step": [], "epoch": []}
        for record in self.records:
            layers = len(record.read().layers)
            columns["step"] += [record.step] * layers
            columns["epoch"] += [record.epoch] * layers
        table = layers_table([record.read() for record in self.records])
        left_out = ("schema", "path", "view")
        return columns | {key: table[key] for key in table if key not in left_out}

    @property
    def unit(self) -> str:
        """Return what tells updates apart: the epoch where each has its own, else the step."""
        epochs = [record.epoch for record in self.records]
        known = [epoch for epoch in epochs if epoch is not None]
        return "epoch" if len(set(known)) == len(epochs) else "step"

    @property
    def numbered(self) -> dict[int, Measurement]:
        """Return the measurements by epoch or step, as `unit` says; of several the last one."""
        by_epoch = self.unit == "epoch"
        return {
            r.epoch if by_epoch and r.epoch is not None else r.step: r.read() for r in self.records
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], /) -> Self:
        """Make the record of what `to_dict` gave.

        Raises
        ------
        ValueError
            If a part is missing or of another type.
        """
        updates = data.get("updates")
        if not isinstance(updates, list):
            raise ValueError("updates is no list")
        history = cls()
        for update in updates:
            if not isinstance(update, dict) or not isinstance(update.get("measurement"), dict):
                raise ValueError("an update is no measurement")
            step, epoch = update.get("step"), update.get("epoch")
            if type(step) is not int or not (epoch is None or type(epoch) is int):
                raise ValueError("an update has no step")
            measured = Measurement.from_dict(update["measurement"])
            history.records.append(Record(step, epoch, measured, is_logged=True))
        return history

    @classmethod
    def file_columns(cls, results: Sequence[Self], /) -> dict[str, list[Any]]:
        """Return the columns of the table, which has no schema of its own."""
        (history,) = results
        return history.columns()

    def to_dict(self) -> dict[str, Any]:
        """Return plain data of all updates."""
        return {"schema": self.SCHEMA, "updates": self.updates()}

    def updates(self) -> list[dict[str, Any]]:
        """Return plain data of each update."""
        return [
            {"step": r.step, "epoch": r.epoch, "measurement": r.read().to_dict()}
            for r in self.records
        ]

    def resume(self, updates: Sequence[Mapping[str, Any]]) -> None:
        """Go on from what `updates` gave."""
        self.records = [
            Record(u["step"], u["epoch"], Measurement.from_dict(u["measurement"]), is_logged=True)
            for u in updates
        ]


def nulls(
    layers: Sequence[Layer | LayerMeasurement], source: Source, view: View, note: str, /
) -> Measurement:
    """Make the row of an update that failed: layers as they were, without statistics."""
    fields = dataclasses.fields(Statistics)
    nothing: dict[str, Any] = {
        f.name: 0 if f.name in ("degenerate", "non_finite", "sideless") else None for f in fields
    }
    measured = tuple(
        LayerMeasurement(
            **nothing | {"filters": layer.filters},
            name=layer.name,
            kind=layer.kind,
            stage=layer.stage,
            input=layer.input,
            fan_in=layer.fan_in,
            kernel=layer.kernel,
            groups=layer.groups,
        )
        for layer in layers
    )
    filters = sum(layer.filters for layer in layers)
    network = PoolMeasurement(
        **nothing | {"filters": filters}, stage=None, layers=len(layers), biased_layers=0
    )
    return Measurement(
        source=source, view=view, layers=measured, stages=(), network=network, notes=(note,)
    )
