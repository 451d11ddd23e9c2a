"""The contents of a page as plain data: networks, their layers, and all numbers of the figures.

Everything here can be written as JSON. Floats are rounded to what a figure or a table can show, so
that a large network through many epochs is a small file.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from planescope.criticality.plan.planned import Plan
from planescope.figures.report.filters import FiltersShown
from planescope.figures.report.prediction import PredictionShown
from planescope.figures.report.relation import RelationShown
from planescope.figures.report.resets import ResetsShown
from planescope.figures.report.sensitivity import SensitivityShown
from planescope.files.errors import printable
from planescope.measurement.difference import Difference

T = TypeVar("T")

SCHEMA = "planescope.page/1"


@dataclass(frozen=True, kw_only=True)
class LayerShown:
    """A layer, as a page describes it.

    Attributes
    ----------
    name, label : str
        As in the checkpoint; and in one short line, without what cannot be printed.
    weights : int
        Filters times fan-in.
    band : tuple of float
        Negative masses that chance gives to so many filters of one layer alone, 95 %; those that
        were tested, corrected over the layers, are the statistics band_low and band_high.
    """

    name: str
    label: str
    kind: str
    stage: int | None
    input: str
    kernel: str
    groups: int | None
    filters: int
    fan_in: int
    weights: int
    band: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class NetworkShown:
    """A network, at one moment or through its training.

    Attributes
    ----------
    name, path, about : str
        Its short name, where it was found, and what was found there.
    epochs : tuple of int or None
        Of the snapshots, in order; a single None where there was no training.
    statistics : mapping of str to list
        By name, then epoch, then layer.
    pool : mapping of str to list
        Of all filters together, by name, then epoch.
    filters : FiltersShown
        Distributions and portraits.
    metrics : mapping of str to list, or None
        Of a training, by name; with the epochs they belong to.
    resets : ResetsShown or None
    relation : RelationShown or None
        Scores beside what resets cost; what they tell of it where that was looked at.
    config, environment : mapping or None
        Of a training; the environment is that of its last start.
    notes : tuple of str
    skipped : tuple of (reason, names)
        Layers that were left out.
    """

    name: str
    path: str
    about: str
    verdict: str
    layers: tuple[LayerShown, ...]
    epochs: tuple[int | None, ...]
    unit: str = "epoch"
    statistics: Mapping[str, list[list[Any]]]
    pool: Mapping[str, list[Any]]
    filters: FiltersShown
    metrics: Mapping[str, list[Any]] | None = None
    resets: ResetsShown | None = None
    relation: RelationShown | None = None
    config: Mapping[str, Any] | None = None
    environment: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    skipped: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The contents of a page.

    Attributes
    ----------
    networks : tuple of NetworkShown
        At least one.
    verdict : str
        What is said of all of them, in a sentence.
    made : mapping of str to str
        Versions and the command that made it.
    follows : bool
        Whether the page is of a training that goes on, and looks for news.
    difference : Difference or None
        What moved between the first two networks; it stands in the page's text, not in its data.
    predictions : tuple of (int, PredictionShown)
        Which layers are critical, told without labels, with the place of the network; in the page's
        text likewise.
    sensitivities : tuple of (int, SensitivityShown)
        What layers are worth, with the place of the network; likewise.
    plans : tuple of (Plan, str)
        Smaller networks made out of these, and the address of the picture of each; likewise.
    """

    networks: tuple[NetworkShown, ...]
    verdict: str
    made: Mapping[str, str]
    follows: bool = False
    difference: Difference | None = None
    predictions: tuple[tuple[int, PredictionShown], ...] = ()
    sensitivities: tuple[tuple[int, SensitivityShown], ...] = ()
    plans: tuple[tuple[Plan, str], ...] = ()

    def to_json(self) -> str:
        """Return JSON text by the schema ``planescope.page/1``; no value of it is NaN."""
        fields = {"schema": SCHEMA, **vars(self)}
        for key in ("difference", "predictions", "sensitivities", "plans"):
            del fields[key]
        return json.dumps(fields, default=vars, allow_nan=False, separators=(",", ":"))


def as_text(value: T, /) -> T:
    """Return plain data whose texts show as themselves: no control sign, no turn of direction."""
    shown: Any = value
    if isinstance(value, str):
        shown = printable(value)
    elif isinstance(value, (list, tuple)):
        shown = type(value)(map(as_text, value))
    elif isinstance(value, Mapping):
        shown = {as_text(key): as_text(each) for key, each in value.items()}
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            each.name: as_text(getattr(value, each.name)) for each in dataclasses.fields(value)
        }
        shown = dataclasses.replace(value, **fields)
    return cast("T", shown)
