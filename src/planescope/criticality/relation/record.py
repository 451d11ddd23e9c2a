"""Records of the relation between scores that need no data and what layers cost (METHOD, 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

from planescope.criticality.definition import Critical
from planescope.criticality.relation.conclusions import claimed, told
from planescope.criticality.relation.earlier import renewed
from planescope.files.results.result import Table, columns_of
from planescope.hyperplanes.layer import Input, Kind

SCHEMA = "planescope.relation/2"


class Selection(StrEnum):
    """A set of layers that are looked at together."""

    ALL = "all"
    INNER = "inner"  # without those of which the theory does not speak:
    FIRST = "first"  # those whose input is an image
    OTHER = "other"  # those behind something else than a ReLU


class Over(StrEnum):
    """Pairs of layers that an area under the ROC curve is taken over."""

    POOLED = "pooled"  # all
    WITHIN = "within"  # of one run each
    DECIDED = "decided"  # all of layers whose loss is told from the threshold


@dataclass(frozen=True, kw_only=True)
class RelatedLayer:
    """A layer of a network: its scores, and what is lost when it is put back to its start.

    Attributes
    ----------
    run, network : str
        Path of the run, or of the resets; name of its network.
    name, kind, input
        As in a measurement.
    biased : bool or None
        Whether its negative mass is beyond chance.
    tests : tuple of {"mass", "cosine", "centre"}
        Those by which it faces one way beyond chance, corrected over its network.
    metric : str or None
        What was evaluated: ``"accuracy"``, or the name of the function that was given.
    trained, chance : float or None
        That metric of the trained network, and what chance gives.
    relative_drop, relative_drop_low, relative_drop_high : float or None
        ``(trained - value) / trained``, the paper's quantity, and its 95 % interval, from those of
        the two metrics (Donner and Zou 2012); None where they have none.
    loss, loss_low, loss_high : float or None
        Share of what the network knows beyond chance that is gone, and its 95 % interval (METHOD,
        section 7); None where the resets have none.
    critical : {"yes", "no", "undecided"} or None
        Whether that interval lies above the bound, below it, or on both sides.
    robust : bool or None
        Whether it is not critical and loses next to nothing; None where `critical` is undecided or
        None.
    scores : dict of str to (float or None)
        By the names of `planescope.criticality.scores.SCORES`.
    """

    run: str
    network: str
    name: str
    kind: Kind
    input: Input
    biased: bool | None
    tests: tuple[str, ...] = ()
    metric: str | None = None
    trained: float | None = None
    chance: float | None = None
    relative_drop: float
    relative_drop_low: float | None = None
    relative_drop_high: float | None = None
    loss: float | None = None
    loss_low: float | None = None
    loss_high: float | None = None
    critical: Critical | None = None
    robust: bool | None = None
    scores: dict[str, float | None]

    @property
    def is_decided(self) -> bool:
        """Return whether its loss is told from the bound."""
        return self.critical in (Critical.YES, Critical.NO)

    @property
    def selection(self) -> Selection:
        """Return the set of layers that it is looked at in, beside all."""
        apart = {Input.IMAGE: Selection.FIRST, Input.OTHER: Selection.OTHER}
        return apart.get(self.input, Selection.INNER)


@dataclass(frozen=True, kw_only=True)
class Association:
    """The association of a score with the relative drop: in one run, or pooled (`run` is None).

    Each statistic has a 95 % bootstrap interval, over whole runs where there are several, else over
    layers, and is None where it does not exist.

    Attributes
    ----------
    score : str
    selection : Selection
    run : str or None
    runs, layers : int
        How many runs, and layers in all, have the score. A run in which all layers have the same
        score has no rank correlation and is left out of its mean.
    rho, tau : float or None
        Spearman's and Kendall's (tau-b) rank correlation of score and relative drop over the
        layers of a run; pooled, their mean over runs.
    rho_p, tau_p : float or None
        Permutation p-values; see `planescope.criticality.relation.ranks`.
    rho_q : float or None
        `rho_p` of a pooled association, corrected over the scores (Benjamini-Hochberg); the random
        control takes no part.
    partial : float or None
        Partial Spearman correlation given the position: what the score adds to position alone.
    decided : int
        How many layers have the score and are critical or not, by the definition.
    auc, average_precision : float or None
        For "critical" against not, over these; a larger score is taken to speak for critical, so
        that an area below 1/2 means the reverse.
    """

    score: str
    selection: Selection
    run: str | None
    runs: int
    layers: int
    rho: float | None = None
    rho_low: float | None = None
    rho_high: float | None = None
    rho_p: float | None = None
    rho_q: float | None = None
    tau: float | None = None
    tau_low: float | None = None
    tau_high: float | None = None
    tau_p: float | None = None
    partial: float | None = None
    partial_low: float | None = None
    partial_high: float | None = None
    partial_p: float | None = None
    decided: int = 0
    auc: float | None = None
    auc_low: float | None = None
    auc_high: float | None = None
    average_precision: float | None = None
    average_precision_low: float | None = None
    average_precision_high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Area:
    """The area under the ROC curve of a score for "critical" by the definition (METHOD, section 7).

    A layer is critical where its loss is above the bound; of `over` "decided", where the interval
    is.

    Attributes
    ----------
    score : str
    over : {"pooled", "within", "decided"}
    runs, layers, critical : int
        How many runs and layers have the score, and how many of these are critical.
    auc, low, high : float or None
        And 95 % interval, runs drawn anew; None of one run.
    random_low, random_high : float or None
        What 95 % of scores that are drawn at random have.
    over_l2, over_l2_low, over_l2_high : float or None
        How much larger it is than that of the distance from initialisation, paired.
    over_alpha, over_alpha_low, over_alpha_high : float or None
        And than that of WeightWatcher's alpha.
    """

    score: str
    over: Over
    runs: int
    layers: int
    critical: int
    auc: float
    low: float | None
    high: float | None
    random_low: float | None
    random_high: float | None
    over_l2: float | None = None
    over_l2_low: float | None = None
    over_l2_high: float | None = None
    over_alpha: float | None = None
    over_alpha_low: float | None = None
    over_alpha_high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Share:
    """The share of a side's layers that are robust, or critical: the two directions of the claim.

    Attributes
    ----------
    selection : Selection
    biased : bool
        Of which layers: the biased, or the unbiased.
    outcome : {"robust", "critical"}
    count, layers, runs : int
        Layers of that outcome, decided layers in all, and runs that have any.
    undecided : int
        Layers of that side that are left out: critical or not cannot be told.
    share, low, high : float or None
        And 95 % interval: the wider of Wilson's and, over several runs, the bootstrap's.
    """

    selection: Selection
    biased: bool
    outcome: str
    count: int
    layers: int
    runs: int
    undecided: int
    share: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """By how much the best score ranks the layers better than another one.

    Attributes
    ----------
    selection : Selection
    best, other : str
        Scores; the best has the largest absolute mean rho among those that every run has, the
        random control aside.
    difference, low, high : float
        Of the absolute values of their mean rho, with the bootstrap's 95 % interval.
    wins : float
        Share of the bootstrap's draws in which the best one is ahead. The best was chosen on these
        very runs, which flatters it.
    """

    selection: Selection
    best: str
    other: str
    difference: float
    low: float | None
    high: float | None
    wins: float


@dataclass(frozen=True, kw_only=True)
class Advice:
    """The cost of resetting a layer over all runs of its network, and whether it is critical.

    Attributes
    ----------
    network, layer : str
    runs : int
        How many runs have it and its loss.
    yes, no, undecided, robust : int
        In how many of these it is critical, not critical, undecided; and robust.
    relative_drop : float or None
        Mean over these runs.
    loss, loss_low, loss_high : float or None
        Mean loss and 95 % interval: Student's over runs, within what a loss can be, or that of the
        only run. None where no run has one.
    critical : {"yes", "no", "undecided"} or None
        On which side of the bound that interval lies.
    """

    network: str
    layer: str
    runs: int
    yes: int
    no: int
    undecided: int
    robust: int
    relative_drop: float | None
    loss: float | None
    loss_low: float | None
    loss_high: float | None
    critical: Critical | None


@dataclass(frozen=True, kw_only=True)
class Relation(Table):
    """Scores against resets, of one run or many.

    Attributes
    ----------
    runs : tuple of str
        Paths.
    critical, robust : float
        Bounds of the loss for these words.
    layers, associations, shares, comparisons, advice, areas
        In the order of runs, layers and scores; areas are none where no layer has a loss.
    seed, draws : int
        Of bootstrap, shuffles and the random control; how many of each.
    notes : tuple of str
        What a reader should know.
    """

    SCHEMA: ClassVar[str] = SCHEMA
    WHAT: ClassVar[str] = "relation"
    REMEDY: ClassVar[str] = "relate the runs again"
    DERIVED: ClassVar[tuple[str, ...]] = ("verdict",)

    runs: tuple[str, ...]
    critical: float
    robust: float
    layers: tuple[RelatedLayer, ...]
    associations: tuple[Association, ...]
    shares: tuple[Share, ...]
    comparisons: tuple[Comparison, ...]
    advice: tuple[Advice, ...]
    seed: int
    draws: int
    areas: tuple[Area, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def selection(self) -> Selection:
        """Return the layers of the verdict: those behind a ReLU, or all where these are too few."""
        inner = self.at("position", Selection.INNER)
        return Selection.ALL if inner is None or inner.rho is None else Selection.INNER

    def chosen(self, selection: Selection, /) -> tuple[RelatedLayer, ...]:
        """Return the layers of a selection."""
        is_all = selection is Selection.ALL
        return tuple(each for each in self.layers if is_all or each.selection is selection)

    def at(self, score: str, selection: Selection, run: str | None = None) -> Association | None:
        """Return the association of a score, pooled or in one run."""
        wanted = (score, selection, run)
        return next((a for a in self.associations if (a.score, a.selection, a.run) == wanted), None)

    @property
    def verdict(self) -> str:
        """Return whether the bias ranks the layers as resets do, and what resets cost."""
        return " ".join((self.claim, *told(self)))

    @property
    def claim(self) -> str:
        """Say in sentences whether the bias ranks the layers as resets do, and both directions."""
        return claimed(self)

    @classmethod
    def _renewed(cls, data: Any) -> Any:
        return renewed(data, SCHEMA)

    def columns(self) -> dict[str, list[Any]]:
        """Return the table's columns: a row a layer of a run: what it is, its cost, its scores."""
        columns = columns_of(self.layers, RelatedLayer, but=("scores", "tests"))
        columns["tests"] = [" ".join(layer.tests) for layer in self.layers]
        named = dict.fromkeys(name for layer in self.layers for name in layer.scores)
        return columns | {name: [layer.scores.get(name) for layer in self.layers] for name in named}

    def _summary(self) -> tuple[str, Mapping[str, Sequence[Any]]]:
        """Return what a notebook shows: the verdict, and what the layers cost."""
        keys = ("run", "layer", "biased", "relative_drop", "loss", "critical", "robust")
        columns = self.columns()
        return self.verdict, {key: columns[key] for key in keys}
