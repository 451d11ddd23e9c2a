"""The table of a network: its layers, stages and pool, and the forms in which it is kept."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from planescope.files.errors import NoLayersError
from planescope.files.results.records import record
from planescope.files.results.result import COLUMN_OF, Table, plain
from planescope.files.targets import FILTERS
from planescope.files.writing import write, write_csv, write_parquet
from planescope.hyperplanes.layer import Input, Kind, Pairing, Skipped, View
from planescope.hyperplanes.statistics import Filters, Statistics
from planescope.measurement.verdict import verdict

SCHEMA = "planescope.measurement/1"


@dataclass(frozen=True, kw_only=True)
class Source:
    """The source of a measurement: path or name, format, and bytes (None for what is in memory)."""

    path: str
    format: str
    bytes: int | None


# The order of a layer's keys in the JSON form.
LAYER_KEYS = (
    "name", "kind", "stage", "input", "filters", "fan_in", "kernel", "groups",
    "degenerate", "non_finite", "sideless",
    "negative_mass", "mean_cosine", "std_cosine", "min_cosine", "q25_cosine", "median_cosine",
    "q75_cosine", "max_cosine", "mean_projection", "agreement", "z",
    "p_mass", "q_mass", "p_cosine", "q_cosine", "biased",
    "negative_centre", "mean_centre", "p_centre", "q_centre", "activation_rate", "l2", "linf",
)  # fmt: skip
# The same in flat tables.
LAYER_COLUMNS = tuple(COLUMN_OF.get(key, key) for key in LAYER_KEYS)
# What JSON has besides; the rest of the record is `values`.
TOLD_KEYS = ("norm", "pairing", "aliases")


@dataclass(frozen=True, kw_only=True)
class LayerMeasurement(Statistics):
    """Statistics of one layer, and what it is.

    Attributes
    ----------
    name, kind, stage, input, fan_in, kernel, groups
        As in `Layer`.
    q_mass, q_cosine, q_centre : float or None
        Benjamini-Hochberg values over the layers of the measurement.
    biased : bool or None
        Whether q_mass < 0.05.
    activation_rate : float or None
        Mean over filters of P(z_i > 0); measured from data only.
    l2, linf : float or None
        Relative distances from the checkpoint given as the initial one.
    norm : str or None
        Name of the batch norm behind the layer.
    pairing : {"graph", "names", "order", "given"} or None
        What told the norm.
    aliases : tuple of str
        Other names of the same weights.
    values : Filters or None
        Values of each filter; None in a measurement that was loaded from a file.
    """

    KEYS: ClassVar[tuple[str, ...]] = (*LAYER_KEYS, *TOLD_KEYS)

    name: str
    kind: Kind
    stage: int | None
    input: Input
    fan_in: int
    kernel: tuple[int, ...]
    groups: int | None
    q_mass: float | None = None
    q_cosine: float | None = None
    q_centre: float | None = None
    biased: bool | None = None
    activation_rate: float | None = None
    l2: float | None = None
    linf: float | None = None
    norm: str | None = None
    pairing: Pairing | None = None
    aliases: tuple[str, ...] = ()
    values: Filters | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class PoolMeasurement(Statistics):
    """Statistics of all filters of several layers together: a stage, or the network.

    `stage` is None for the whole network; `biased_layers` counts its biased layers.
    """

    stage: int | None
    layers: int
    biased_layers: int


@dataclass(frozen=True, kw_only=True)
class Measurement(Table):
    """The table of a network.

    Attributes
    ----------
    source : Source
    view : View
        Which hyperplanes: the convolutions' own, or those cut together with batch norm.
    layers : tuple of LayerMeasurement
        In the order of the network where that is known.
    stages : tuple of PoolMeasurement
        Empty where no graph tells the stages.
    network : PoolMeasurement
        All filters of all measured layers pooled.
    skipped : tuple of Skipped
        Layers that were left out, each with the reason.
    notes : tuple of str
        What had to be assumed, and what a reader should know.
    """

    SCHEMA: ClassVar[str] = SCHEMA
    WHAT: ClassVar[str] = "measurement"
    REMEDY: ClassVar[str] = "measure the checkpoint again"
    INDEX: ClassVar[str] = "layer"
    DERIVED: ClassVar[tuple[str, ...]] = ("verdict",)

    source: Source
    view: View
    layers: tuple[LayerMeasurement, ...]
    stages: tuple[PoolMeasurement, ...]
    network: PoolMeasurement
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """Return whether layers face one way beyond chance, and to which side, in sentences."""
        return verdict(self.layers)

    def columns(self) -> dict[str, list[Any]]:
        """Return the table's columns: a row a layer, by the keys of the JSON form but `layer`."""
        rows = [plain(layer) for layer in self.layers]
        return {
            column: [row[key] for row in rows]
            for key, column in zip(LAYER_KEYS, LAYER_COLUMNS, strict=True)
        }

    @classmethod
    def file_columns(cls, results: Sequence[Self], /) -> dict[str, list[Any]]:
        """Return the columns of one or several measurements, as CSV and Parquet have them."""
        return layers_table(results)

    def save_filters(self, path: str | os.PathLike[str]) -> None:
        """Write projection, cosine, crossing and offset of each filter: .npz, .csv or .parquet.

        Raises
        ------
        UsageError, OutputError
            As `save`.
        NoLayersError
            If the measurement was loaded from a file, which does not hold single filters.
        """
        save_filters([self], path)

    def _summary(self) -> tuple[str, Mapping[str, Sequence[Any]]]:
        """Return what a notebook shows: the verdict, and the columns that it speaks of."""
        columns = self.columns()
        keys = ("layer", "filters", "fan_in", "negative_mass", "mean_cosine", "q_mass", "biased")
        sentence = f"{self.source.path} ({self.view} view): {self.verdict}"
        return sentence, {key: columns[key] for key in keys}


def load(path: str | os.PathLike[str]) -> Measurement:
    """Load a measurement that `Measurement.save` wrote as JSON or Parquet.

    Raises
    ------
    CheckpointError
        If the file is missing, is not such a file, holds several, or has another schema version.
    MissingDependencyError
        If a Parquet file needs pyarrow.
    """
    return Measurement.load(path)


def layers_table(measurements: Sequence[Measurement], /) -> dict[str, list[Any]]:
    """Return the columns of all layers of some measurements, ready for a file."""
    table: dict[str, list[Any]] = {key: [] for key in ("schema", "path", "view", *LAYER_COLUMNS)}
    for measurement in measurements:
        for layer in measurement.layers:
            row = plain(layer)
            row["kernel"] = "x".join(map(str, layer.kernel))
            row |= {"layer": layer.name, "schema": SCHEMA, "path": measurement.source.path}
            row["view"] = str(measurement.view)
            for key, column in table.items():
                column.append(row[key])
    return table


def filters_table(measurements: Sequence[Measurement], /) -> dict[str, Any]:
    """Return the columns of all filters of some measurements, ready for a file.

    Raises
    ------
    NoLayersError
        If a measurement was loaded from a file, which does not hold them.
    """
    layers = [(m, layer) for m in measurements for layer in m.layers]
    values = list(_values_of(layers))
    counts = [layer.filters for _, layer in layers]
    columns: dict[str, Any] = {}
    if len(measurements) > 1:
        columns["path"] = np.repeat([m.source.path for m, _ in layers], counts)
    columns["layer"] = np.repeat([layer.name for _, layer in layers], counts)
    columns["index"] = np.concatenate([np.arange(count) for count in counts])
    for name in ("projection", "cosine", "crossing", "offset"):
        columns[name] = np.concatenate([getattr(v, name) for v in values])
    return columns


def save_filters(measurements: Sequence[Measurement], path: str | os.PathLike[str], /) -> None:
    """Write the values of each filter of some measurements: .npz, .csv or .parquet.

    Raises
    ------
    UsageError, OutputError, NoLayersError
        As `Measurement.save_filters`.
    """
    columns = filters_table(measurements)
    schema = "planescope.filters/1"

    def as_npz(draft: Path) -> None:
        np.savez(draft, schema=schema, **columns)

    def as_csv(draft: Path) -> None:
        write_csv(draft, {name: column.tolist() for name, column in columns.items()})

    def as_parquet(draft: Path) -> None:
        write_parquet(draft, columns, {"schema": schema})

    write(path, dict(zip(FILTERS, (as_npz, as_csv, as_parquet), strict=True)))


def _values_of(layers: Iterable[tuple[Measurement, LayerMeasurement]]) -> Iterator[Filters]:
    for measurement, layer in layers:
        yield filter_values(measurement, layer)


def filter_values(measurement: Measurement, layer: LayerMeasurement, /) -> Filters:
    """Return the values of a layer's filters.

    Raises
    ------
    NoLayersError
        If the measurement was loaded from a file, which does not hold them.
    """
    if layer.values is None:
        raise NoLayersError(
            f"{measurement.source.path}: a loaded measurement has no values of single filters; "
            "measure the checkpoint itself"
        )
    return layer.values


def layer_from_dict(row: Mapping[str, Any], /) -> LayerMeasurement:
    """Return the layer from its keys as in the JSON form; without the values of single filters.

    Raises
    ------
    ValueError
        If one is missing or of another type.
    """
    return record(LayerMeasurement, row)
