"""Every figure that a paper on some networks may want, written at once, with the numbers behind."""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from planescope.criticality.relation.record import Relation
from planescope.criticality.relation.relate import relate
from planescope.criticality.sensitivity.record import Sensitivity
from planescope.figures.canvas import Width, inches, save, style
from planescope.figures.columns import (
    Columns,
    dynamics_numbers,
    filters_numbers,
    layers_numbers,
    networks_numbers,
    repetitions_numbers,
    resets_numbers,
    sensitivity_numbers,
    settings_numbers,
)
from planescope.figures.comparisons import Group, networks, networks_room, settings, settings_room
from planescope.figures.dynamics import PANELS, dynamics, table_of
from planescope.figures.groups import (
    SETTINGS,
    grouped,
    panels_by,
    telling_fields,
    varied_fields,
    worded,
)
from planescope.figures.layers import cosines, negative_mass
from planescope.figures.overview import most_biased
from planescope.figures.plan import numbers as plan_numbers
from planescope.figures.plan import plan as plan_of
from planescope.figures.portrait import portrait
from planescope.figures.prediction import prediction
from planescope.figures.relation import relation
from planescope.figures.repetitions import rate_drops, repetitions, together
from planescope.figures.resets import heatmap
from planescope.figures.sensitivity import sensitivity, sensitivity_map
from planescope.figures.sources import Subject, open_subjects
from planescope.files import targets
from planescope.files.errors import OutputError, UsageError
from planescope.files.folders import inside, replacing_inside
from planescope.files.writing import write_csv
from planescope.hyperplanes.layer import Kind
from planescope.measurement.record import Measurement

if TYPE_CHECKING:
    from matplotlib.figure import Figure


T = TypeVar("T")
Form = Literal["pdf", "svg", "png"]

TRAINING = (
    "negative_mass", "mean_cosine", "mean_projection", "l2", "linf", "negative_centre",
    "mean_centre", "drift_pressure",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Written:
    """The figures and tables that `write_all` wrote, and those left out, each with the reason."""

    files: tuple[Path, ...]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Drawing:
    """A figure by the name of its file, not drawn yet, and the numbers behind it."""

    name: str
    draw: Callable[[], Figure]
    numbers: Callable[[], Columns]


def write_all(
    sources: Iterable[Any],
    out: str | os.PathLike[str],
    /,
    *,
    form: Form = "pdf",
    width: Width = "page",
    style_sheet: str | os.PathLike[str] | None = None,
    each: bool = True,
    network: str | None = None,
    data: str | None = None,
    trust: bool | str | Collection[str] = False,
    init: Any = None,
    kinds: Iterable[Kind | str] | str = (),
    progress: Callable[[int, int, str], None] | None = None,
) -> Written:
    """Write every figure that can be made of some networks, each with its numbers as CSV.

    Of each network: its statistics through training, beside loss and accuracy (``training``); its
    negative masses (``layers``) and cosines (``cosines``), and the hyperplanes of its most biased
    layer (``portrait``), once trained; what resets cost (``resets``); which of its layers are
    critical, told without labels (``prediction``); what it costs to prune, thin, factor or quantise
    them (``sensitivity``, ``sensitivity-map``); and what a plan costs at each size (``plan``). Of
    several: side by side (``networks``); of runs that differ in their seeds alone, each layer's
    masses through training with the range over runs (``repetitions``); of runs with resets, whether
    scores that need no data rank the layers as these do (``relation``); and, of runs that differ in
    the data's complexity or noise, by that (``by-label-noise`` and so on). With several, names of
    files begin with that of the network.

    Everything is drawn before anything is written, and each file is whole or absent; one of that
    name is replaced.

    Parameters
    ----------
    sources : iterable of path, Run, Tracker, input of `measure`, or Measurement, Resets and so on
    out : path
        The folder; it is made if need be.
    form : {"pdf", "svg", "png"}
    width : "column", "page" or inches
    style_sheet : path, optional
        As `style` takes it.
    each : bool
        False leaves out the figures of single networks.
    network, data, trust
        As for a `planescope.training.run.Run`, of all runs that paths lead to; `network` also of
        checkpoints, as `planescope.measure` takes it.
    init, kinds
        Of checkpoints and networks in memory, as `planescope.measure` takes them.
    progress : callable, optional
        Called with (figures drawn, figures in all, name of the next).

    Raises
    ------
    UsageError
        If there is nothing to draw, or an option is invalid.
    OutputError
        If the folder cannot be made or written.
    PlanescopeError
        As `planescope.figures.sources.open_subjects`: a source that cannot be read or drawn.
    """
    folder = _checked(Path(out))
    inches(width)
    if f".{form}" not in targets.FIGURES:
        raise UsageError(f"form {form!r}: give {', '.join(f[1:] for f in targets.FIGURES)}")
    with style(style_sheet):
        subjects = open_subjects(
            sources, network=network, data=data, trust=trust, init=init, kinds=kinds
        )
        if not subjects:
            raise UsageError("nothing to draw: give a run or a file")
        drawings = [*(_each(subjects, width) if each else ()), *_together(subjects, width)]
        related, reason = _relations(subjects)
        if related is not None:
            drawings.append(_relation("relation", related, width))
        if not drawings:
            raise UsageError("nothing to compare: give several networks, or draw each of them")
        drawn = []
        for done, drawing in enumerate(drawings):
            if progress is not None:
                progress(done, len(drawings), drawing.name)
            drawn.append((drawing.name, drawing.draw(), drawing.numbers()))
        _make(folder)
        files: list[Path] = []
        for name, figure, numbers in drawn:
            paths = folder / f"{name}.{form}", folder / f"{name}.csv"
            save(figure, inside(folder, paths[0].name))
            with replacing_inside(folder, paths[1].name) as draft:
                write_csv(draft, numbers)
            files += paths
    left_out = [*(_left_out(subjects) if each else ()), *([reason] if reason else ())]
    return Written(files=tuple(files), left_out=tuple(left_out))


def _checked(folder: Path) -> Path:
    """Return a folder for results, looked at before long work begins."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise OutputError(f"{there}: is no folder; give another")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"{there}: cannot be written to; give another folder")
    return folder


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise OutputError(f"{folder}: cannot be made: {exc.strerror or exc}") from exc


def _each(subjects: Sequence[Subject], width: Width) -> Iterator[_Drawing]:
    """Yield the figures of each network."""
    slugs = _slugs(subjects)
    for subject, slug in zip(subjects, slugs, strict=True):
        head = "" if len(subjects) == 1 else f"{slug}-"
        for drawing in _of_one(subject, width):
            yield _Drawing(name=head + drawing.name, draw=drawing.draw, numbers=drawing.numbers)


def _slugs(subjects: Sequence[Subject]) -> list[str]:
    """Return the names of subjects as names of files, which stay apart."""
    slugs: list[str] = []
    for subject in subjects:
        slug = base = re.sub(r"[^\w.]+", "-", subject.name).strip("-.") or "network"
        for number in itertools.count(2):
            if slug.casefold() not in map(str.casefold, slugs):
                break
            slug = f"{base}-{number}"
        slugs.append(slug)
    return slugs


def _of_one(subject: Subject, width: Width) -> Iterator[_Drawing]:
    run, measurement, resets = subject.run, subject.measurement, subject.resets
    followed = run if run is not None else subject.history
    if followed is not None:
        table = table_of(followed)
        there = [s for s in TRAINING if s in PANELS and s in table and table[s].notna().any()]
        yield _Drawing(
            name="training",
            draw=lambda: dynamics(followed, statistics=there, width=width),
            numbers=lambda: dynamics_numbers(followed, there),
        )
    if measurement is not None:
        yield _Drawing(
            name="layers",
            draw=lambda: negative_mass(measurement, width=width),
            numbers=lambda: layers_numbers(measurement),
        )
    if measurement is not None and _has_filters(measurement):
        chosen = most_biased(measurement).name
        yield _Drawing(
            name="cosines",
            draw=lambda: cosines(measurement, width=width),
            numbers=lambda: filters_numbers(measurement),
        )
        yield _Drawing(
            name="portrait",
            draw=lambda: portrait(measurement, chosen, width=width),
            numbers=lambda: filters_numbers(measurement, chosen),
        )
    if subject.relation is not None:
        yield _relation("relation", subject.relation, width)
    if (planned := subject.plan) is not None:
        yield _Drawing(
            name="plan",
            draw=lambda: plan_of(planned, width=width),
            numbers=lambda: plan_numbers(planned),
        )
    if resets is not None:
        yield _Drawing(
            name="resets",
            draw=lambda: heatmap(resets, width=width),
            numbers=lambda: resets_numbers(resets),
        )
    for one in subject.sensitivities:
        yield from _sensitivity(one, width)
    for told in subject.predictions:
        yield _Drawing(
            name="prediction",
            draw=functools.partial(prediction, told, width=width),
            numbers=told.columns,
        )


def _sensitivity(found: Sensitivity, width: Width) -> Iterator[_Drawing]:
    if found.ladders:
        yield _Drawing(
            name="sensitivity",
            draw=lambda: sensitivity(found, width=width),
            numbers=lambda: sensitivity_numbers(found),
        )
    yield _Drawing(
        name="sensitivity-map",
        draw=lambda: sensitivity_map(found, width=width),
        numbers=lambda: sensitivity_numbers(found),
    )


def _together(subjects: Sequence[Subject], width: Width) -> Iterator[_Drawing]:
    """Yield the figures of several networks."""
    groups = grouped(subjects)
    if sum(map(len, groups.values())) > 1:
        for name, part in _parts("networks", groups, networks_room(width)):
            yield _networks(name, part, width)
    yield from _repeated(subjects, width)
    for field, words in SETTINGS.items():
        panels = panels_by(subjects, field)
        for name, chunk in _parts(f"by-{field.replace('_', '-')}", panels, settings_room(width)):
            yield _settings(name, chunk, words, width)


def _repeated(subjects: Sequence[Subject], width: Width) -> Iterator[_Drawing]:
    """Yield a figure of training for all runs that differ in their seeds alone."""
    runs = [subject for subject in subjects if subject.run is not None and subject.config]
    varied = telling_fields(configs := [s.config for s in runs if s.config], varied_fields(configs))
    groups: dict[str, list[Subject]] = {}
    for subject, config in zip(runs, configs, strict=True):
        groups.setdefault(worded(config, varied), []).append(subject)
    groups = {title: group for title, group in groups.items() if len(group) > 1}
    for title, group in groups.items():
        slug = re.sub(r"[^\w.]+", "-", title).strip("-.")
        yield _repetitions(
            "repetitions" if len(groups) == 1 else f"repetitions-{slug}", group, width
        )


def _repetitions(name: str, group: Sequence[Subject], width: Width) -> _Drawing:
    table, metrics = together({s.name: s.run for s in group if s.run is not None})
    drops = rate_drops(group[0].config)
    return _Drawing(
        name=name,
        draw=lambda: repetitions(table, metrics, drops=drops, width=width),
        numbers=lambda: repetitions_numbers(table),
    )


def _relations(subjects: Sequence[Subject]) -> tuple[Relation | None, str]:
    """Relate scores to the resets of all runs that have them, or say why that cannot be done."""
    runs = [s.run for s in subjects if s.run is not None and s.resets is not None]
    if not runs:
        return None, ""
    try:
        return relate(runs), ""
    except UsageError as exc:
        # Fewer runs may do, as may other resets; no figure of a network is the worse for it.
        return None, f"relation: {exc}"


def _relation(name: str, related: Relation, width: Width) -> _Drawing:
    return _Drawing(
        name=name,
        draw=lambda: relation(related, width=width),
        numbers=lambda: {str(key): [*column] for key, column in related.to_pandas().items()},
    )


def _networks(name: str, groups: Mapping[str, Group], width: Width) -> _Drawing:
    return _Drawing(
        name=name,
        draw=lambda: networks(groups, width=width),
        numbers=lambda: networks_numbers(groups),
    )


def _settings(
    name: str, panels: Mapping[str, Mapping[str, Group]], words: str, width: Width
) -> _Drawing:
    return _Drawing(
        name=name,
        draw=lambda: settings(panels, words, width=width),
        numbers=lambda: settings_numbers(panels, words),
    )


def _parts(name: str, panels: Mapping[str, T], room: int) -> Iterator[tuple[str, dict[str, T]]]:
    """Yield the panels by figure, numbered where one has no room for all."""
    items = list(panels.items())
    starts = range(0, len(items), room)
    for number, start in enumerate(starts, 1):
        yield name if len(starts) == 1 else f"{name}-{number}", dict(items[start : start + room])


def _has_filters(measurement: Measurement) -> bool:
    return all(layer.values is not None for layer in measurement.layers)


def _left_out(subjects: Iterable[Subject]) -> Iterator[str]:
    for subject in subjects:
        kept = subject.run is not None and not subject.run.keeps_tables_alone
        if kept and subject.resets is None:
            fixed = "" if subject.run is None else subject.run.fixed
            remedy = fixed or f"planescope reset {subject.path} makes them"
            yield f"resets of {subject.name}: {remedy}"
        if subject.run is not None and (unknown := subject.run.unknown):
            yield unknown
        if subject.run is not None and subject.run.keeps_tables_alone:
            yield (
                f"layers, cosines and portrait of {subject.name}, and its panel of networks: its "
                "weights were not kept; train it again"
            )
        if subject.measurement is not None and not _has_filters(subject.measurement):
            yield (
                f"cosines and portrait of {subject.name}: a saved measurement has no values of "
                "single filters; give the checkpoint"
            )
