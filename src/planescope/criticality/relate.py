"""From runs whose layers were reset to their `Relation`: what scores tell of drops."""

from __future__ import annotations

import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from planescope.criticality.areas import areas
from planescope.criticality.relation import (
    FEWEST_RUNS,
    Association,
    Comparison,
    RelatedLayer,
    Relation,
    Selection,
)
from planescope.criticality.resets.record import Accuracy, ResetCell, Resets
from planescope.criticality.scores import SCORES, layer_scores
from planescope.files.errors import UsageError
from planescope.hyperplanes.layer import Input
from planescope.measurement.measure import measure
from planescope.measurement.source import find
from planescope.training.folder.status import State
from planescope.training.run import Run

# (runs done, runs in all, path of the next one)
OnRun = Callable[[int, int, str], None]

# Draws for what is said of each of several runs alone, and for areas.
DRAWS_A_RUN = 999


def relate(
    runs: Run | str | os.PathLike[str] | Iterable[Run | str | os.PathLike[str]],
    /,
    *,
    critical: float = 0.10,
    robust: float = 0.02,
    unfinished: bool = False,
    draws: int = 9999,
    seed: int = 0,
    alpha: bool = False,
    trust: bool | str | Collection[str] = False,
    on_run: OnRun | None = None,
) -> Relation:
    """Hold scores that need no data against what resetting the layers to epoch 0 costs.

    Parameters
    ----------
    runs : path or Run, or iterable of these
        Runs whose layers were reset (`planescope.reset`).
    critical : float
        A relative drop above this, if significant, makes a layer critical.
    robust : float
        A relative drop up to this makes a layer robust; within noise, one up to `critical` does.
    unfinished : bool
        Take runs that are not finished, as far as they are.
    draws : int
        Of the bootstrap, and of shuffles where there are too many to go through all; for what is
        said of one of several runs alone at most 999.
    seed : int
        Of these draws, and of the random control.
    alpha : bool
        Take WeightWatcher's alpha among the scores, which takes a singular value decomposition of
        each layer.
    trust
        As for a `Run`; of those given as paths.
    on_run : callable, optional
        Called with (runs done, runs in all, path of the next one), to show progress.

    Returns
    -------
    Relation

    Raises
    ------
    CheckpointError
        If there is no run, or files are missing or damaged.
    UsageError
        If a run is not finished, was not reset to epoch 0 or not after its last epoch, or was given
        twice; if runs of one network were reset in different layers; if no run has a relative drop;
        or an option is invalid.
    """
    some = [runs] if isinstance(runs, (Run, str, os.PathLike)) else runs
    given = [Run.open(run, trust=trust) for run in some]
    if not given:
        raise UsageError("give a run whose layers were reset, or several")
    _check_options(critical, robust, draws)
    layers: list[RelatedLayer] = []
    notes: list[str] = []
    rng = _rng(seed)
    seen: set[Path] = set()
    for done, run in enumerate(given):
        if on_run is not None:
            on_run(done, len(given), str(run.path))
        if run.path.resolve() in seen:
            raise UsageError(f"{run.path}: is given twice; a run counts once")
        seen.add(run.path.resolve())
        resets = _resets(run, unfinished=unfinished)
        if run.unknown:
            notes.append(run.unknown)
        related = list(
            _related(run, resets, critical=critical, robust=robust, rng=rng, with_alpha=alpha)
        )
        if not related:
            notes.append(f"{run.path} is left out: its network is no better than chance")
        layers += related
    if not layers:
        raise UsageError(
            f"{given[0].path}: has no relative drops: its network is no better than chance"
        )
    return relate_layers(
        layers, critical=critical, robust=robust, draws=draws, seed=seed, notes=notes
    )


def relate_layers(
    layers: Sequence[RelatedLayer],
    /,
    *,
    critical: float = 0.10,
    robust: float = 0.02,
    draws: int = 9999,
    seed: int = 0,
    notes: Sequence[str] = (),
) -> Relation:
    """Relate the scores of layers to their drops; the layers of a run stand together, in order.

    Parameters
    ----------
    layers : sequence of RelatedLayer
        At least one.
    critical, robust, draws, seed
        As in `relate`.
    notes : sequence of str
        What a reader should know.

    Raises
    ------
    UsageError
        If runs of one network have different layers, or an option is invalid.
    """
    # SciPy's statistics take two seconds to import, which nobody else should wait for.
    from planescope.criticality.associate import Sample, advise, corrected, selected, shares

    _check_options(critical, robust, draws)
    _check_names(layers)
    rng = _rng(seed)
    associations: list[Association] = []
    comparisons: list[Comparison] = []
    for selection in Selection:
        chosen = selected(layers, selection)
        if not chosen:
            continue
        whole = Sample(chosen, selection, draws=draws, rng=rng)
        pooled = [whole.associate(score) for score in SCORES if whole.has(score)]
        associations += corrected(pooled)
        comparisons += whole.compare(pooled)
        if len(whole.runs) == 1 or selection is Selection.FIRST:
            continue
        for run in whole.runs:
            own = [layer for layer in chosen if layer.run == run]
            one = Sample(own, selection, draws=min(draws, DRAWS_A_RUN), rng=rng, run=run)
            associations += [one.associate(score) for score in SCORES if one.has(score)]
    return Relation(
        runs=tuple(dict.fromkeys(layer.run for layer in layers)),
        critical=critical,
        robust=robust,
        layers=tuple(layers),
        associations=tuple(associations),
        shares=tuple(shares(layers, draws=draws, rng=rng)),
        comparisons=tuple(comparisons),
        advice=tuple(advise(layers, critical=critical)),
        areas=tuple(areas(layers, [*SCORES], draws=min(draws, DRAWS_A_RUN), rng=rng)),
        seed=seed,
        draws=draws,
        notes=(*notes, *_notes(layers)),
    )


def _rng(seed: int) -> np.random.Generator:
    if seed < 0:
        raise UsageError(f"a seed must be 0 or more, not {seed}")
    return np.random.default_rng(seed)


def _check_options(critical: float, robust: float, draws: int) -> None:
    if not 0 < critical < 1:
        raise UsageError(f"critical must lie in (0, 1), not {critical}")
    if not 0 <= robust <= critical:
        raise UsageError(f"robust must lie in [0, {critical:g}] (critical), not {robust}")
    if draws < 99:
        raise UsageError(f"{draws} draws tell nothing; give 99 or more")


def _check_names(layers: Sequence[RelatedLayer]) -> None:
    """Runs of one network have the same layers, so that these can be shuffled alike."""
    known: dict[str, tuple[str, list[str]]] = {}
    for (run, network), names in _names(layers).items():
        other, expected = known.setdefault(network, (run, names))
        if names != expected:
            odd = next(iter(set(names) ^ set(expected)), names[0])
            raise UsageError(
                f"{run} and {other} are both {network}, but {odd} was reset in one of them only; "
                "reset the same layers in both, or relate them apart"
            )


def _names(layers: Sequence[RelatedLayer]) -> dict[tuple[str, str], list[str]]:
    """Return the names of layers by path and network of their run."""
    names: dict[tuple[str, str], list[str]] = defaultdict(list)
    for layer in layers:
        names[layer.run, layer.network].append(layer.name)
    return names


def _notes(layers: Sequence[RelatedLayer]) -> Iterator[str]:
    names = _names(layers)
    few = [run for (run, _), own in names.items() if len(own) < 3]
    if few:
        yield (
            f"{few[0] if len(few) == 1 else f'{len(few)} runs'}: fewer than 3 layers, which "
            "have no rank correlation"
        )
    if 1 < len(names) < FEWEST_RUNS:
        yield (
            f"intervals over {len(names)} runs are too narrow; {FEWEST_RUNS} or more can be "
            "built on"
        )
    if len(names) == 1:
        yield "one run: intervals draw its layers anew, as if these were independent"


def _resets(run: Run, *, unfinished: bool) -> Resets:
    """Return the resets of a run, to epoch 0 too."""
    state = run.status.state
    if state is not State.FINISHED and not unfinished:
        raise UsageError(
            f"{run.path}: the run is not finished but {state}; let it finish, or take it as it is "
            "with --unfinished"
        )
    if not run.resets.is_file():
        raise UsageError(
            f"{run.path}: its layers were not reset yet; run planescope reset {run.path}"
        )
    resets = Resets.load(run.resets)
    if 0 not in resets.snapshots or 0 not in run.snapshots:
        raise UsageError(
            f"{run.path}: its layers were not put back to epoch 0, which the relation is about; "
            f"run planescope reset {run.path} --snapshot 0"
        )
    return resets


def _related(
    run: Run,
    resets: Resets,
    *,
    critical: float,
    robust: float,
    rng: np.random.Generator,
    with_alpha: bool,
) -> Iterator[RelatedLayer]:
    """Layers of a run in order; none where the trained network is no better than chance."""
    names = [layer.name for layer in resets.layers]
    cells = {name: resets.at(name, 0)[0] for name in names if resets.at(name, 0)}
    if any(cell.relative_drop is None for cell in cells.values()):
        return
    network, files = run.about.network, run.snapshots
    trained = files[max(files)]
    exactly = f"^(?:{'|'.join(map(re.escape, names))})$"
    structure = run.structure
    measured = measure(trained, network=structure, kinds="all", layers=exactly, init=files[0])
    weights = {layer.name: layer for layer in find(trained, network=structure).layers}
    inputs = _recorded_inputs(run) if run.unknown else {}
    rank = {name: i for i, name in enumerate(names)}
    layers = sorted(measured.layers, key=lambda layer: rank[layer.name])
    for i, (reset, layer) in enumerate(zip(resets.layers, layers, strict=True)):
        if (reset.name, reset.negative_mass) != (layer.name, layer.negative_mass):
            raise UsageError(
                f"{run.path}: its layers were reset before it was trained further; run planescope "
                f"reset {run.path} again"
            )
        cell = cells[layer.name]
        drop, low, high = _drop(resets.trained, cell)
        yield RelatedLayer(
            run=str(run.path),
            network=network,
            name=layer.name,
            kind=layer.kind,
            first=inputs.get(layer.name, layer.input) is Input.IMAGE,
            biased=layer.biased,
            drop=drop,
            drop_low=low,
            drop_high=high,
            critical=drop > critical and bool(cell.significant),
            robust=drop <= (robust if cell.significant else critical),
            scores=layer_scores(
                layer,
                weights[layer.name],
                position=i / max(1, len(names) - 1),
                random=float(rng.random()),
                with_alpha=with_alpha,
            ),
            loss=cell.loss,
            decision=cell.critical,
        )


def _recorded_inputs(run: Run) -> dict[str, Input]:
    """Return the input of each layer, from the run's own measurements."""
    layers = list(run.measured_layers.values())[-1]
    inputs = {layer.name: layer.input for layer in layers}
    reset = Resets.load(run.resets).layers
    if any(inputs.get(layer.name, Input.UNKNOWN) is Input.UNKNOWN for layer in reset):
        raise UsageError(run.unknown)
    return inputs


def _drop(before: Accuracy, after: ResetCell) -> tuple[float, float, float]:
    """Relative drop and its 95 % interval, from those of both accuracies.

    Square-and-add limits of the difference (Donner and Zou 2012), divided by the trained accuracy;
    that both accuracies are of the same examples would make them narrower.
    """
    a, b = before.value or 0.0, after.value or 0.0
    down = math.hypot(a - (before.low or 0.0), (after.high or 0.0) - b)
    up = math.hypot((before.high or 0.0) - a, b - (after.low or 0.0))
    return (a - b) / a, (a - b - down) / a, min(1.0, (a - b + up) / a)
