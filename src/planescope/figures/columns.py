"""The numbers behind each figure, as columns of a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from planescope.criticality.resets.record import CELL_KEYS, Resets
from planescope.criticality.sensitivity.record import Sensitivity
from planescope.figures.comparisons import Group, mass_range
from planescope.figures.dynamics import CURVES, METRICS, PANELS, table_of
from planescope.figures.layers import tested_level
from planescope.hyperplanes.chance import LEVEL
from planescope.hyperplanes.statistics import Statistics
from planescope.measurement.record import Measurement, filters_table
from planescope.training.run import Run
from planescope.training.tracker.history import History

if TYPE_CHECKING:
    import pandas as pd

Columns = dict[str, list[Any]]

_LAYER_KEYS = (
    "filters", "fan_in", "degenerate", "non_finite", "sideless", "negative_mass", "mean_cosine",
    "q_mass", "biased",
)  # fmt: skip
_LAYER_COLUMNS = ("number", "layer", *_LAYER_KEYS, "chance_low", "chance_high")


def dynamics_numbers(run: Run | History, statistics: Iterable[str], /) -> Columns:
    """Return a row a point: of loss and accuracy by curve, of each statistic by layer.

    `q` is the corrected p-value by which a point is filled.
    """
    unit = run.unit
    columns: Columns = {key: [] for key in ("panel", "line", unit, "value", "q")}

    def add(panel: str, line: str, epoch: int, value: float | None, q: float | None) -> None:
        for column, cell in zip(columns.values(), (panel, line, epoch, value, q), strict=True):
            column.append(cell)

    for metric in METRICS:
        for curve in CURVES:
            for row in run.metrics if isinstance(run, Run) else ():
                value = getattr(row, f"{curve}_{metric}")
                if value is not None:
                    add(metric, f"{curve}", row.epoch, value, None)
    table = table_of(run)
    for statistic in statistics:
        tests = table[PANELS[statistic].test] if PANELS[statistic].test else [None] * len(table)
        rows = zip(table["layer"], table["epoch"], table[statistic], tests, strict=True)
        for name, epoch, value, q in rows:
            add(statistic, name, epoch, value, q)
    return columns


def layers_numbers(measurement: Measurement, /) -> Columns:
    """Return a row a layer, with what chance gives its negative mass.

    The network's pool is the last.
    """
    columns: Columns = {key: [] for key in _LAYER_COLUMNS}
    level = tested_level(measurement.layers)
    for number, layer in enumerate(measurement.layers, 1):
        _add(columns, _layer(number, layer, level))
    _add(columns, _layer(len(measurement.layers) + 1, measurement.network))
    return columns


def filters_numbers(measurement: Measurement, layer: str | None = None, /) -> Columns:
    """Return a row a filter, of one layer or of all."""
    table = filters_table([measurement])
    chosen = table["layer"] == (table["layer"] if layer is None else layer)
    return {name: column[chosen].tolist() for name, column in table.items()}


def networks_numbers(groups: Mapping[str, Group], /) -> Columns:
    """Return a row a layer of each network."""
    columns: Columns = {key: [] for key in ("panel", "source", *_LAYER_COLUMNS)}
    for panel, group in groups.items():
        _add_group(columns, group, {"panel": panel})
    return columns


def repetitions_numbers(table: pd.DataFrame, /) -> Columns:
    """Return a row a layer and epoch: the mean over runs, the least and the largest."""
    found = table.groupby(["layer", "epoch"], sort=False)["negative_mass"]
    rows = found.agg(["mean", "min", "max", "count"]).reset_index()
    names = {"mean": "negative_mass", "min": "least", "max": "largest"}
    rows = rows.rename(columns={**names, "count": "runs"})
    return {str(key): [*column] for key, column in rows.items()}


def settings_numbers(panels: Mapping[str, Mapping[str, Group]], setting: str, /) -> Columns:
    """Return a row a layer of each network, with the value of the setting."""
    columns: Columns = {key: [] for key in ("panel", setting, "source", *_LAYER_COLUMNS)}
    for panel, values in panels.items():
        for value, group in values.items():
            _add_group(columns, group, {"panel": panel, setting: value})
    return columns


def resets_numbers(resets: Resets, /) -> Columns:
    """Return a row a cell, with the negative mass and the bias of its layer once trained."""
    layers = {layer.name: layer for layer in resets.layers}
    columns: Columns = {key: [getattr(c, key) for c in resets.cells] for key in CELL_KEYS}
    for key in ("negative_mass", "biased"):
        columns[key] = [getattr(layers.get(cell.layer), key, None) for cell in resets.cells]
    return columns


def sensitivity_numbers(found: Sensitivity, /) -> Columns:
    """Return a row a layer and way that applies to it."""
    return found.columns()


def _add_group(columns: Columns, group: Sequence[Measurement], head: Mapping[str, Any]) -> None:
    for measurement in group:
        level = tested_level(measurement.layers)
        for number, layer in enumerate(measurement.layers, 1):
            row = {**head, "source": measurement.source.path, **_layer(number, layer, level)}
            _add(columns, row)


def _layer(number: int, row: Statistics, level: float = LEVEL) -> dict[str, Any]:
    low, high = mass_range(row, level)
    values = {key: getattr(row, key, None) for key in _LAYER_KEYS}
    name = getattr(row, "name", "all layers")
    return {"number": number, "layer": name, **values, "chance_low": low, "chance_high": high}


def _add(columns: Columns, row: Mapping[str, Any]) -> None:
    for key, column in columns.items():
        column.append(row[key])
