"""The measurements of a Tracker's updates: kept, read when asked for, written."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from planescope.files.results.result import Table
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
from planescope.training.tracker import pressure

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
    # A layer each; None where it was not asked for.
    drift: pressure.Pressures | Callable[[], pressure.Pressures] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: all that the update took, brought to the host."""
        self.read()
        self.pressures()
        return vars(self)

    def read(self) -> Measurement:
        """Give the measurement; the first to ask waits for the device."""
        if not isinstance(self.result, Measurement):
            self.result = self.result()
        return self.result

    def pressures(self) -> pressure.Pressures | None:
        """Give the drift pressure of each layer, where it was asked for."""
        if callable(self.drift):
            self.drift = self.drift()
        return self.drift

    def metrics(self, logged: Sequence[str], *, by_layer: bool) -> dict[str, float]:
        """Return what is logged of the update, by key; of all filters together, or layers too."""
        measured, pressures = self.read(), self.pressures()
        found = by_key(measured, logged, by_layer=by_layer)
        if logged and pressures is not None:
            of_all = pressure.of_all(measured.layers, pressures)
            named = {f"planescope/{pressure.NAME}": of_all}
            if by_layer:
                names = [f"planescope/{layer.name}/{pressure.NAME}" for layer in measured.layers]
                named |= dict(zip(names, pressures, strict=True))
            found |= {key: value for key, value in named.items() if value is not None}
        return found


@dataclass(eq=False)
class History(Table):
    """The updates in their order.

    Attributes
    ----------
    records : list of Record
    drift : bool
        The drift pressure of updates to come is taken.
    """

    SCHEMA: ClassVar[str] = SCHEMA
    WHAT: ClassVar[str] = "updates of a Tracker"
    REMEDY: ClassVar[str] = "save the Tracker again"

    records: list[Record] = field(default_factory=list)
    drift: bool = False

    def epochs_behind(self, step: int, epoch: int) -> int:
        """Return the epochs done before a fit that counts them anew and goes on with the steps."""
        last = self.records[-1] if self.records else None
        if last is None or step == 0 or last.step != step or last.epoch is None:
            return 0
        return max(last.epoch - epoch, 0)

    def add(
        self,
        step: int,
        epoch: int | None,
        result: Callable[[], Measurement],
        anew: Collection[str] = (),
    ) -> None:
        """Keep an update; one of long ago is read meanwhile.

        Parameters
        ----------
        anew : collection of str
            Layers whose module was replaced since the update before.
        """
        last, new = self.records[-1] if self.records else None, Record(step, epoch, result)
        if self.drift:
            new.drift = lambda: pressure.between(
                None if last is None else last.read(),
                new.read(),
                0 if last is None else step - last.step,
                anew,
            )
        self.records.append(new)
        if len(self.records) > _UNREAD:
            self.records[-_UNREAD - 1].read()

    def unlogged(
        self, logged: Sequence[str], *, by_layer: bool
    ) -> Iterator[tuple[int, dict[str, float]]]:
        """Step and metrics of each update that was not asked for here before."""
        for record in self.records:
            if not record.is_logged and logged:
                record.is_logged = True
                yield record.step, record.metrics(logged, by_layer=by_layer)

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of a table with a row an update and layer."""
        columns: dict[str, list[Any]] = {"step": [], "epoch": []}
        for record in self.records:
            layers = len(record.read().layers)
            columns["step"] += [record.step] * layers
            columns["epoch"] += [record.epoch] * layers
        table = layers_table([record.read() for record in self.records])
        left_out = ("schema", "path", "view")
        columns |= {key: table[key] for key in table if key not in left_out}
        if self.has_drift:
            columns[pressure.NAME] = [
                value
                for record in self.records
                for value in record.pressures() or (None,) * len(record.read().layers)
            ]
        return columns

    @property
    def has_drift(self) -> bool:
        """Return whether there is a column of drift pressures."""
        return self.drift or any(record.drift is not None for record in self.records)

    @property
    def unit(self) -> str:
        """Return what tells updates apart: the epoch where each has its own, else the step."""
        epochs = [record.epoch for record in self.records]
        known = [epoch for epoch in epochs if epoch is not None]
        return "epoch" if len(set(known)) == len(epochs) else "step"

    @property
    def numbered(self) -> dict[int, Measurement]:
        """Return the measurements by epoch or step, as `unit` says; of several the last one."""
        return {number: record.read() for number, record in self._by_number().items()}

    @property
    def numbered_drift(self) -> dict[int, pressure.Pressures | None]:
        """Return the drift pressures of those updates, None where they were not asked for."""
        return {number: record.pressures() for number, record in self._by_number().items()}

    def _by_number(self) -> dict[int, Record]:
        by_epoch = self.unit == "epoch"
        return {r.epoch if by_epoch and r.epoch is not None else r.step: r for r in self.records}

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
            drift = _drift_from(update.get(pressure.NAME), len(measured.layers))
            history.records.append(Record(step, epoch, measured, is_logged=True, drift=drift))
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
        updates: list[dict[str, Any]] = []
        for record in self.records:
            update = {"step": record.step, "epoch": record.epoch}
            updates.append(update | {"measurement": record.read().to_dict()})
            if (pressures := record.pressures()) is not None:
                updates[-1][pressure.NAME] = list(pressures)
        return updates

    def resume(self, updates: Sequence[Mapping[str, Any]]) -> None:
        """Go on from what `updates` gave."""
        self.records = History.from_dict({"updates": list(updates)}).records


def _drift_from(values: Any, layers: int) -> pressure.Pressures | None:
    """Return the drift pressures of an update in a file.

    Raises
    ------
    ValueError
        If they are not a number or null for each layer.
    """
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != layers:
        raise ValueError(f"{pressure.NAME} of an update is no list with a value a layer")
    for value in values:
        if value is not None and not (type(value) in (int, float) and math.isfinite(value)):
            raise ValueError(f"{pressure.NAME} of an update is no number")
    return tuple(None if value is None else float(value) for value in values)


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
