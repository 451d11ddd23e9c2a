"""What the updates of a Tracker found: kept, read when asked for, written."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planescope.files.writing import write, write_csv, write_parquet
from planescope.hyperplanes.layer import Layer, View
from planescope.hyperplanes.statistics import Statistics
from planescope.measurement.metrics import by_key
from planescope.measurement.record import (
    LayerMeasurement,
    Measurement,
    PoolMeasurement,
    Source,
    from_dict,
    layers_table,
)

if TYPE_CHECKING:
    import os

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
class History:
    """The updates in their order."""

    records: list[Record] = field(default_factory=list)

    def add(self, step: int, epoch: int | None, result: Callable[[], Measurement]) -> None:
        """Keep an update; one of long ago is read meanwhile."""
        self.records.append(Record(step, epoch, result))
        if len(self.records) > _UNREAD:
            self.records[-_UNREAD - 1].read()

    def unlogged(self, logged: Sequence[str]) -> Iterator[tuple[int, dict[str, float]]]:
        """Step and metrics of each update that was not asked for here before."""
        for record in self.records:
            if not record.is_logged and logged:
                record.is_logged = True
                yield record.step, by_key(record.read(), logged)

    def table(self) -> dict[str, list[Any]]:
        """Columns of a table with a row an update and layer."""
        columns: dict[str, list[Any]] = {"step": [], "epoch": []}
        for record in self.records:
            layers = len(record.read().layers)
            columns["step"] += [record.step] * layers
            columns["epoch"] += [record.epoch] * layers
        table = layers_table([record.read() for record in self.records])
        columns["layer"] = table.pop("name")
        left_out = ("schema", "path", "view")
        return columns | {key: table[key] for key in table if key not in left_out}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table, as `Tracker.save` says."""

        def as_json(draft: Path) -> None:
            draft.write_text(self._json(indent=2) + "\n", encoding="utf-8")

        def as_csv(draft: Path) -> None:
            write_csv(draft, self.table())

        def as_parquet(draft: Path) -> None:
            write_parquet(draft, self.table(), {"planescope": self._json(), "schema": SCHEMA})

        write(path, {".json": as_json, ".csv": as_csv, ".parquet": as_parquet})

    def _json(self, indent: int | None = None) -> str:
        data = {"schema": SCHEMA, "updates": self.updates()}
        return json.dumps(data, indent=indent, allow_nan=False)

    def updates(self) -> list[dict[str, Any]]:
        """Plain data of each update."""
        return [
            {"step": r.step, "epoch": r.epoch, "measurement": r.read().to_dict()}
            for r in self.records
        ]

    def load(self, updates: Sequence[Mapping[str, Any]]) -> None:
        """Go on from what `updates` gave."""
        self.records = [
            Record(u["step"], u["epoch"], from_dict(u["measurement"]), is_logged=True)
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
