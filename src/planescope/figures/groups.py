"""Networks grouped by the settings in which their runs differ, in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from planescope.figures.sources import Subject
from planescope.measurement.record import Measurement
from planescope.training.run import REPETITION

if TYPE_CHECKING:
    from planescope.training.config import RunConfig


# Fields of a config that say how complex or noisy the data are, in words.
SETTINGS = {
    "data": "data",
    "classes": "classes",
    "examples": "training examples",
    "label_noise": "label noise",
    "shuffle_pixels": "shuffled",
}
# Whose values are names, which speak for themselves.
NAMES = ("network", "data")


def grouped(subjects: Sequence[Subject]) -> dict[str, list[Measurement]]:
    """Return the networks by title; runs that differ in seeds alone share one."""
    configs = [subject.config for subject in subjects if subject.config is not None]
    varied = telling_fields(configs, varied_fields(configs))
    groups: dict[str, list[Measurement]] = {}

    def place(subject: Subject) -> list[Any]:
        return [_order(getattr(subject.config, field, None)) for field in varied]

    for subject in sorted(subjects, key=place):
        if subject.measurement is None:
            continue
        title = subject.name
        if subject.config is not None and len(configs) > 1:
            title = worded(subject.config, varied)
        groups.setdefault(title, []).append(subject.measurement)
    return groups


def panels_by(subjects: Sequence[Subject], field: str) -> dict[str, dict[str, list[Measurement]]]:
    """Group runs by what else they have in common, and by the value of a field that differs.

    What goes with the field, as more epochs with fewer classes, is said with its value.
    """
    runs = [(s.config, s.measurement) for s in subjects if s.config and s.measurement]
    configs = [config for config, _ in runs]
    varied = [other for other in varied_fields(configs) if other != field]
    of_names = {o for o in varied for name in NAMES if _goes_with(configs, name, o)}
    with_it = [o for o in varied if o not in of_names and _goes_with(configs, field, o)]
    others = telling_fields(configs, [other for other in varied if other not in with_it])
    found: dict[str, dict[Any, list[Measurement]]] = {}
    first: dict[str, RunConfig] = {}
    words: dict[Any, str] = {}
    for config, measurement in runs:
        value, beside = getattr(config, field), worded(config, with_it) if with_it else ""
        words[value] = f"{_value(value)} ({beside})" if beside else _value(value)
        panel = worded(config, others)
        first.setdefault(panel, config)
        found.setdefault(panel, {}).setdefault(value, []).append(measurement)
    panels = {panel: values for panel, values in found.items() if len(values) > 1}
    # What all these panels have in common need not stand over each.
    left = varied_fields([first[panel] for panel in panels])
    titles = [other for other in others if other in left]
    return {
        worded(first[panel], titles): {words[v]: values[v] for v in sorted(values, key=_order)}
        for panel, values in panels.items()
    }


def _goes_with(configs: Sequence[RunConfig], field: str, other: str) -> bool:
    """Return whether all runs of one value of a field have one value of another."""
    pairs = {(getattr(config, field), getattr(config, other)) for config in configs}
    return len(pairs) == len({value for value, _ in pairs})


def varied_fields(configs: Sequence[RunConfig]) -> list[str]:
    """Return the fields in which runs differ, other than those of repetitions."""
    found = {field for other in configs[1:] for field, _, _ in configs[0].differences(other)}
    fields = type(configs[0]).model_fields if configs else ()
    return [field for field in fields if field in found - REPETITION]


def telling_fields(configs: Sequence[RunConfig], fields: Sequence[str]) -> list[str]:
    """Return fewer of some fields that tell as many configs apart: the first, names before all."""

    def told(some: Sequence[str]) -> int:
        return len({tuple(getattr(config, field) for field in some) for config in configs})

    kept = list(fields)
    for field in reversed(fields):
        fewer = [other for other in kept if other != field]
        if field not in NAMES and told(fewer) == told(fields):
            kept = fewer
    return kept


def worded(config: RunConfig, fields: Iterable[str]) -> str:
    """Word fields of a config: a network's or data set's name alone, others with their names."""
    parts = []
    for field in fields:
        value = _value(getattr(config, field))
        parts.append(
            value if field in NAMES else f"{SETTINGS.get(field, field.replace('_', ' '))} {value}"
        )
    return ", ".join(parts) or config.network


def _value(value: Any) -> str:
    """Return a setting as a figure shows it; None stands for no limit."""
    words = {None: "all", True: "yes", False: "no"}
    if value is None or isinstance(value, bool):
        return words[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _order(value: Any) -> tuple[bool, Any]:
    """Return the key that sorts values of a field, no limit last."""
    return value is None, 0 if value is None else value
