"""From what is known of some networks to what a page shows of them."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from planescope.criticality.relation.record import Relation
from planescope.figures.canvas import shown
from planescope.figures.layers import tested_level
from planescope.figures.plan import picture
from planescope.figures.report.contents import Contents, LayerShown, NetworkShown
from planescope.figures.report.filters import Arrays, filters_shown
from planescope.figures.report.prediction import prediction_shown
from planescope.figures.report.relation import RelationShown, relation_shown, scores_shown
from planescope.figures.report.resets import ResetsShown, resets_shown
from planescope.figures.report.rounding import rounded
from planescope.figures.report.sensitivity import sensitivity_shown
from planescope.figures.sources import Subject
from planescope.files.errors import UsageError, counted
from planescope.files.folders import is_same_place
from planescope.hyperplanes import chance
from planescope.hyperplanes.layer import Input, Skipped, View
from planescope.measurement.measure import measure
from planescope.measurement.record import LayerMeasurement, Measurement
from planescope.measurement.verdict import APART, verdict
from planescope.training.run import Run
from planescope.training.tracker.history import History

# Statistics of a layer that a page has, at each epoch, in the order of its tables.
STATISTICS = (
    "negative_mass", "agreement", "mean_cosine", "std_cosine", "min_cosine", "q25_cosine",
    "median_cosine", "q75_cosine", "max_cosine", "mean_projection", "z", "p_mass", "q_mass",
    "p_cosine", "q_cosine", "biased", "negative_centre", "mean_centre", "q_centre",
    "activation_rate", "l2", "linf", "degenerate", "non_finite", "sideless",
)  # fmt: skip
# The ends of the band of masses that was tested at an epoch, corrected over the layers.
BAND = ("band_low", "band_high")
METRICS = ("train_loss", "val_loss", "train_accuracy", "val_accuracy")

LONGEST_LABEL = 34


def contents_of(
    subjects: Sequence[Subject],
    /,
    *,
    made: Mapping[str, str],
    follows: bool = False,
) -> Contents:
    """Gather what a page shows of some networks, and of resets, plans and so on of these.

    Raises
    ------
    UsageError
        If there is none, or a result is of none of them.
    CheckpointError
        If a file of a run is missing or damaged.
    """
    found, others = networks_of(subjects)
    if not found:
        raise UsageError(
            "nothing to report: give a run, a checkpoint or a saved measurement"
            f"{' too' if others else ''}"
        )
    relations = [other.relation for other in others if other.relation is not None]
    networks = tuple(_shown(subject, relations, len(found)) for subject in found)
    worth = [
        (place, sensitivity_shown(one))
        for place, subject in enumerate(found)
        for one in subject.sensitivities
    ]
    told = [
        (place, prediction_shown(one, subject.resets, subject.run))
        for place, subject in enumerate(found)
        for one in subject.predictions
    ]
    plans = tuple((other.plan, picture(other.plan)) for other in others if other.plan is not None)
    return Contents(
        networks=networks, verdict=_verdict(networks), made=dict(made), follows=follows,
        predictions=tuple(told), sensitivities=tuple(worth), plans=plans,
    )  # fmt: skip


def networks_of(subjects: Sequence[Subject], /) -> tuple[list[Subject], list[Subject]]:
    """Return the networks among some subjects, with the resets that came apart from them.

    And the rest.

    Raises
    ------
    UsageError
        If resets, a relation, a prediction, a sensitivity or a plan belong to none of the networks,
        or several resets to one.
    """
    networks = [each for each in subjects if each.run is not None or each.measurement is not None]
    others = [each for each in subjects if each not in networks]
    whose: dict[int, str] = {}
    for other in others if networks else ():
        owners = [i for i, each in enumerate(networks) if _belongs(other, each)]
        if not owners and len(networks) == 1 and other.relation is None:
            owners = [0]  # a file that was moved no longer tells
        if not owners:
            raise UsageError(
                f"{other.path}: is of none of the networks given; give the run or the checkpoint "
                "that it is of too"
            )
        owner = networks[owners[0]]
        if other.resets is not None:
            if owners[0] in whose:
                raise UsageError(
                    f"{other.path} and {whose[owners[0]]}: are resets of one network; give one"
                )
            whose[owners[0]] = other.path
            owner = replace(owner, resets=other.resets)
        networks[owners[0]] = replace(
            owner,
            sensitivities=(*owner.sensitivities, *other.sensitivities),
            predictions=(*owner.predictions, *other.predictions),
        )
    return networks, others


def _belongs(other: Subject, network: Subject) -> bool:
    known = (other.resets, *other.sensitivities, *other.predictions, other.plan)
    for apart in (one for one in known if one is not None):
        return is_same_place(apart.source, network.path)
    return other.relation is not None and _run_in(other.relation, network) is not None


def _run_in(relation: Relation, subject: Subject) -> str | None:
    """Return the run of a subject as a relation names it."""
    if subject.run is None:
        return None
    wanted = subject.run.path
    return next((path for path in relation.runs if is_same_place(path, wanted)), None)


def _shown(subject: Subject, relations: Sequence[Relation], networks: int) -> NetworkShown:
    if subject.run is not None:
        return _of_run(subject, subject.run, relations, networks)
    if subject.history is not None:
        return _of_history(subject, subject.history, networks)
    if subject.measurement is not None:
        return _of_measurement(subject, subject.measurement, networks)
    raise TypeError("a subject without a run or a measurement is no network")


def _of_measurement(subject: Subject, measurement: Measurement, networks: int) -> NetworkShown:
    layers = measurement.layers
    resets = None if subject.resets is None else resets_shown(subject.resets, layers)
    return NetworkShown(
        name=subject.name,
        path=subject.path,
        about=f"{measurement.source.format}, {_view(measurement.view)}",
        **_through([layers]),
        epochs=(None,),
        filters=filters_shown(layers, [_arrays(layers)], networks=networks),
        resets=resets,
        relation=None if resets is None else scores_shown(layers, resets),
        notes=measurement.notes,
        skipped=_by_reason(measurement.skipped),
    )


def _of_history(subject: Subject, history: History, networks: int) -> NetworkShown:
    """Gather what a Tracker saw of a training, at each of its updates."""
    updates = history.numbered
    last = list(updates.values())[-1]
    each = [measurement.layers for measurement in updates.values()]
    shown = _of_measurement(subject, last, networks)
    return replace(
        shown,
        about=f"{last.source.format}, {counted(len(updates), 'update')}, {_view(last.view)}",
        **_through(each),
        epochs=tuple(updates),
        unit=history.unit,
        filters=filters_shown(last.layers, [_arrays(one) for one in each], networks=networks),
    )


def _of_run(
    subject: Subject, run: Run, relations: Sequence[Relation], networks: int
) -> NetworkShown:
    config, measured = run.about, run.measured_layers
    kept = set(run.filter_epochs)
    arrays: list[Arrays] = [run.load_filters(epoch) if epoch in kept else {} for epoch in measured]
    layers = list(measured.values())
    if not arrays[-1]:
        arrays[-1] = _measured_arrays(run, layers[-1])
    resets = None if subject.resets is None else resets_shown(subject.resets, layers[-1])
    starts = run.environments
    return NetworkShown(
        name=subject.name,
        path=subject.path,
        about=f"{config.network} on {config.data}, {counted(len(measured), 'snapshot')}, "
        f"{_view(View(config.view))}",
        **_through(layers),
        epochs=tuple(measured),
        unit=run.unit,
        filters=filters_shown(layers[-1], arrays, networks=networks),
        metrics=_metrics(run),
        resets=resets,
        relation=_relation(subject, resets, layers[-1], relations),
        config=config.model_dump(mode="json"),
        environment=starts[-1] if starts else None,
        notes=(run.unknown,) if run.unknown else (),
    )


def _measured_arrays(run: Run, layers: Sequence[LayerMeasurement]) -> Arrays:
    """Return filters of the last snapshot of a run that kept none, as one of an earlier version."""
    config, snapshots = run.about, run.snapshots
    if not snapshots or not run.can_be_measured:
        return {}
    kinds = {layer.kind for layer in layers}
    path = snapshots[max(snapshots)]
    measured = measure(path, view=config.view, kinds=kinds, network=run.structure)
    return _arrays(measured.layers)


def _arrays(layers: Sequence[LayerMeasurement]) -> Arrays:
    values = {layer.name: layer.values for layer in layers if layer.values is not None}
    return {name: (each.cosine, each.offset) for name, each in values.items()}


def _relation(
    subject: Subject,
    resets: ResetsShown | None,
    layers: Sequence[LayerMeasurement],
    relations: Sequence[Relation],
) -> RelationShown | None:
    """Return the given relation of a run, or the one kept in it, or the scores alone."""
    run = subject.run
    kept = [] if run is None or not run.relation.is_file() else [Relation.load(run.relation)]
    for relation in (*relations, *kept):
        if (name := _run_in(relation, subject)) is not None:
            return relation_shown(layers, relation, name)
    return None if resets is None else scores_shown(layers, resets)


def _verdict(networks: Sequence[NetworkShown]) -> str:
    """Return the verdict of a single network, or how many of several are biased.

    As a single one's does, it counts no layers of which the theory does not speak.
    """
    if len(networks) == 1:
        return networks[0].verdict
    counts = [_biased(network) for network in networks]
    told = [each for each, (_, of) in enumerate(counts) if of]
    if not told:
        return f"Undecided: no layer of {len(networks)} networks lies behind a ReLU."
    of = f"{len(told)} networks"
    if len(told) < len(networks):
        of += f" that have layers behind a ReLU, of {len(networks)},"
    inputs = {layer.input for each in networks for layer in each.layers} - {*APART}
    behind = " behind a ReLU" if inputs == {Input.RELU} else ""
    some = sum(counts[each][0] > 0 for each in told)
    if not some:
        return f"In none of {of} is a layer{behind} biased beyond chance."
    most = max(told, key=lambda each: counts[each][0] / counts[each][1])
    biased, layers = counts[most]
    return (
        f"In {some} of {of} layers{behind} are biased beyond chance (by mass, corrected "
        f"p < {chance.LEVEL:g}); most of all in {networks[most].name}, where {biased} of {layers} "
        "are."
    )


def _biased(network: NetworkShown) -> tuple[int, int]:
    """Return how many layers are biased, and of how many, without those that are apart."""
    last = network.statistics["biased"][-1]
    inner = [bool(last[at]) for at, layer in enumerate(network.layers) if layer.input not in APART]
    return sum(inner), len(inner)


def _view(view: View) -> str:
    return "effective view (batch norm folded in)" if view is View.EFFECTIVE else "raw view"


def _through(epochs: Sequence[Sequence[LayerMeasurement]]) -> dict[str, Any]:
    """Return the layers at each epoch; the last epoch tells what they are."""
    last = epochs[-1]
    rows = [{layer.name: layer for layer in layers} for layers in epochs]

    def value(row: Mapping[str, LayerMeasurement], name: str, key: str) -> Any:
        found = getattr(row[name], key) if name in row else None
        return rounded(found) if isinstance(found, float) else found

    statistics = {
        key: [[value(row, layer.name, key) for layer in last] for row in rows] for key in STATISTICS
    }
    levels = [tested_level(layers) for layers in epochs]
    for side, key in enumerate(BAND):
        statistics[key] = [
            [rounded(_band(_usable(layer), level)[side]) for layer in last] for level in levels
        ]
    there = {key: table for key, table in statistics.items() if _any(table)}
    pools = [_pool(layers) for layers in epochs]
    return {
        "verdict": verdict(last),
        "layers": tuple(map(_layer, last)),
        "statistics": there,
        "pool": {key: [pool[key] for pool in pools] for key in pools[0]},
    }


def _any(table: Iterable[Iterable[Any]]) -> bool:
    return any(value is not None for row in table for value in row)


def _layer(layer: LayerMeasurement) -> LayerShown:
    return LayerShown(
        name=layer.name,
        label=shown(layer.name, LONGEST_LABEL),
        kind=str(layer.kind),
        stage=layer.stage,
        input=str(layer.input),
        kernel="×".join(map(str, layer.kernel)),
        groups=layer.groups,
        filters=layer.filters,
        fan_in=layer.fan_in,
        weights=layer.filters * layer.fan_in,
        band=_band(_usable(layer)),
    )


@functools.cache
def _band(filters: int, level: float = chance.LEVEL) -> tuple[float, float]:
    """Return the masses that chance gives; layers of one width share it."""
    return chance.mass_band(filters, level=1 - level) if filters else (0.5, 0.5)


def _usable(layer: LayerMeasurement) -> int:
    return layer.filters - layer.degenerate - layer.non_finite - layer.sideless


def _pool(layers: Sequence[LayerMeasurement]) -> dict[str, Any]:
    """Return all filters together, from what is known of each layer: their sums are exact."""
    known = [(layer, _usable(layer)) for layer in layers if layer.negative_mass is not None]
    count = sum(usable for _, usable in known)
    negative = sum((layer.negative_mass or 0.0) * usable for layer, usable in known)
    cosines = sum((layer.mean_cosine or 0.0) * usable for layer, usable in known)
    scores = sum((layer.z or 0.0) * math.sqrt(usable) for layer, usable in known)
    return {
        "filters": sum(layer.filters for layer in layers),
        "biased": sum(bool(layer.biased) for layer in layers),
        "negative_mass": rounded(negative / count) if count else None,
        "mean_cosine": rounded(cosines / count) if count else None,
        "z": rounded(scores / math.sqrt(count)) if count else None,
        "band": _band(count) if count else None,
    }


def _metrics(run: Run) -> dict[str, list[Any]] | None:
    rows = run.metrics
    if not rows:
        return None
    table: dict[str, list[Any]] = {"epoch": [row.epoch for row in rows]}
    for key in METRICS:
        column = [rounded(getattr(row, key)) for row in rows]
        if any(value is not None for value in column):
            table[key] = column
    return table


def _by_reason(skipped: Iterable[Skipped]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    reasons: dict[str, list[str]] = {}
    for layer in skipped:
        reasons.setdefault(layer.reason, []).append(layer.name)
    return tuple((reason, tuple(names)) for reason, names in reasons.items())
