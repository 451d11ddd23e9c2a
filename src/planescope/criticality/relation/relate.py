"""From networks whose layers were reset to their `Relation`: what scores tell of the cost."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from planescope.criticality.definition import THRESHOLD
from planescope.criticality.relation.areas import areas
from planescope.criticality.relation.associate import Sample, advise, corrected, selected, shares
from planescope.criticality.relation.evidence import Evidence
from planescope.criticality.relation.ranks import FEWEST_RUNS
from planescope.criticality.relation.record import (
    Association,
    Comparison,
    RelatedLayer,
    Relation,
    Selection,
)
from planescope.criticality.relation.sources import gather, of_run
from planescope.criticality.resets.record import Resets
from planescope.criticality.scores import SCORES
from planescope.files.bounds import check_seed
from planescope.files.errors import UsageError
from planescope.training.run import Run

# (runs done, runs in all, path of the next one)
OnRun = Callable[[int, int, str], None]

# Draws for what is said of each of several runs alone, and for areas.
DRAWS_A_RUN = 999


class NoDropsError(UsageError):
    """No layer can be related: the network of no run is better than chance."""


def relate(
    runs: Any,
    /,
    *,
    critical: float = THRESHOLD,
    robust: float = 0.02,
    snapshot: int | str | None = None,
    unfinished: bool = False,
    draws: int = 9999,
    seed: int = 0,
    alpha: bool = False,
    trust: bool | str | Collection[str] = False,
    on_run: OnRun | None = None,
) -> Relation:
    """Hold scores that need no data against what putting the layers back to their start costs.

    Parameters
    ----------
    runs : path, Run, or iterable of these and of Resets, Measurement, Tracker
        Runs whose layers were reset (`planescope.reset`). Of any other network its resets and its
        measurement (`planescope.measure` with `init`, or a Tracker), as records or as the files
        that they were saved in, in any order: each of the resets is paired with the measurement
        that has its layers and their masses.
    critical : float
        Bound of the loss: a layer is critical where the 95 % interval of its loss lies above it,
        not critical where it lies below, else undecided (METHOD, section 7).
    robust : float
        A layer that is not critical is robust with a loss up to this, or within noise.
    snapshot : int or str, optional
        What layers were put back to, in resets that are not of a run; by default 0, ``"init"``, or
        the only one.
    unfinished : bool
        Take runs that are not finished, as far as they are.
    draws : int
        Of the bootstrap, and of shuffles where there are too many to go through all; for what is
        said of one of several runs alone at most 999.
    seed : int
        Of these draws, and of the random control.
    alpha : bool
        Take WeightWatcher's alpha among the scores, which takes a singular value decomposition of
        each layer; of runs, whose weights are at hand.
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
        twice; if resets have no measurement of their network; if runs of one network were reset in
        different layers, or fresh draws stand beside other resets; if no run has a relative drop;
        or an option is invalid.
    """
    given = gather(_each(runs), snapshot=snapshot, trust=trust)
    if not given:
        raise UsageError("give a run whose layers were reset, or several")
    _check_options(critical, robust, draws)
    layers: list[RelatedLayer] = []
    notes: list[str] = []
    found: list[Evidence] = []
    rng = _rng(seed)
    for done, one in enumerate(given):
        if on_run is not None:
            on_run(done, len(given), str(one.path))
        evidence = of_run(one, unfinished=unfinished) if isinstance(one, Run) else one
        if isinstance(one, Run) and one.unknown:
            notes.append(one.unknown)
        if evidence.without_drops:
            notes.append(f"{evidence.path} is left out: {evidence.without_drops}")
            continue
        found.append(evidence)
        layers += evidence.related(critical=critical, robust=robust, rng=rng, with_alpha=alpha)
    if not layers:
        raise NoDropsError(f"{given[0].path}: has no relative drops: {evidence.without_drops}")
    notes += [*_of_draws(found), *_rounded(found), *_undefined(found)]
    return relate_layers(
        layers, critical=critical, robust=robust, draws=draws, seed=seed, notes=notes
    )


def _each(runs: Any) -> Iterable[Any]:
    is_one = isinstance(runs, (Run, Resets, str, os.PathLike))
    return [runs] if is_one or not isinstance(runs, Iterable) else runs


def _of_draws(found: Sequence[Evidence]) -> Iterator[str]:
    """Keep fresh draws apart: that they cost much does not tell what training changed."""
    fresh = [one for one in found if one.is_fresh]
    if fresh and len(fresh) < len(found):
        other = next(one for one in found if not one.is_fresh)
        raise UsageError(
            f"{fresh[0].path} holds fresh draws and {other.path} the layers' own start, which are "
            "two questions; relate them apart"
        )
    if fresh:
        yield (
            "layers were drawn anew, which is another question than putting them back to their own "
            "start: fresh draws can make every layer critical"
        )


def _rounded(found: Sequence[Evidence]) -> Iterator[str]:
    """Name networks whose resets were computed in fewer than 32 bits."""
    for one in found:
        if one.resets.precision not in (None, "32-true"):
            yield (
                f"{one.path} was reset in {one.resets.precision}: answers on the edge may be "
                "others than in 32-true"
            )


def _undefined(found: Sequence[Evidence]) -> Iterator[str]:
    """Say once for each reason which runs have no critical layers, and what to do."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for one in found:
        if one.without_loss:
            reasons[one.without_loss].append(one.path)
    for reason, paths in reasons.items():
        more = f" and {len(paths) - 1} more" * (len(paths) > 1)
        yield f"{paths[0]}{more}: critical or not is not said: {reason}"


def relate_layers(
    layers: Sequence[RelatedLayer],
    /,
    *,
    critical: float = THRESHOLD,
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
        if len(whole.runs) == 1 or selection in (Selection.FIRST, Selection.OTHER):
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
        areas=tuple(
            areas(layers, [*SCORES], bound=critical, draws=min(draws, DRAWS_A_RUN), rng=rng)
        ),
        seed=seed,
        draws=draws,
        notes=(*notes, *_notes(layers)),
    )


def _rng(seed: int) -> np.random.Generator:
    check_seed(seed)
    return np.random.default_rng(seed)


def _check_options(critical: float, robust: float, draws: int) -> None:
    if not 0 < critical < 1:
        raise UsageError(f"critical must lie in (0, 1), not {critical}")
    if not 0 <= robust <= critical:
        raise UsageError(f"robust must lie in [0, {critical:g}] (critical), not {robust}")
    if draws < 99:
        raise UsageError(f"{draws} draws tell nothing; give 99 or more")


def _check_names(layers: Sequence[RelatedLayer]) -> None:
    """Refuse runs of one network that have other layers: these are shuffled alike."""
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
