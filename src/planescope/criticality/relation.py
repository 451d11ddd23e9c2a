"""Records of the relation between scores that need no data and what layers cost (METHOD, 7)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

from planescope.criticality.definition import Critical
from planescope.files.results import Table, columns_of
from planescope.hyperplanes.chance import LEVEL
from planescope.hyperplanes.layer import Kind

# Fewer runs than these, drawn anew, give intervals that are too narrow to build on.
FEWEST_RUNS = 5


class Selection(StrEnum):
    """A set of layers that are looked at together."""

    ALL = "all"
    INNER = "inner"  # without those whose input is an image, of which the theory does not speak
    FIRST = "first"  # those alone


class Over(StrEnum):
    """Pairs of layers that an area under the ROC curve is taken over."""

    POOLED = "pooled"  # all
    WITHIN = "within"  # of one run each
    DECIDED = "decided"  # all of layers whose loss is told from the threshold


class Decision(StrEnum):
    """The answer to whether a layer is critical: what resetting it costs, and no more."""

    CRITICAL = "critical"
    NOT_CRITICAL = "not critical"
    UNDECIDED = "undecided"


# The words of files that were written before.
_FORMER = {
    "keep": Decision.CRITICAL, "spare": Decision.NOT_CRITICAL, "not decidable": Decision.UNDECIDED
}  # fmt: skip
# Where the interval of rho reaches no further, the ranks have at most a quarter in common.
_WEAK = 0.5


@dataclass(frozen=True, kw_only=True)
class RelatedLayer:
    """A layer of a run: its scores, and what the network loses when it is put back to epoch 0.

    Attributes
    ----------
    run, network : str
        Path of the run; name of its network.
    name, kind
        As in a measurement.
    first : bool
        Whether its input is an image.
    biased : bool or None
        Whether its negative mass is beyond chance.
    drop : float
        Relative drop of the accuracy.
    drop_low, drop_high : float
        95 % interval of the drop, from those of the two accuracies (Donner and Zou 2012).
    critical, robust : bool
        A drop above the threshold that is significant; a drop that is small, or within noise and
        not above the threshold.
    scores : dict of str to (float or None)
        By the names of `planescope.criticality.scores.SCORES`.
    loss : float or None
        Share of what the network knows beyond chance that is gone (METHOD, section 7).
    decision : {"yes", "no", "undecided"} or None
        Whether the layer is critical by the interval of that loss.
    """

    run: str
    network: str
    name: str
    kind: Kind
    first: bool
    biased: bool | None
    drop: float
    drop_low: float
    drop_high: float
    critical: bool
    robust: bool
    scores: dict[str, float | None]
    loss: float | None = None
    decision: Critical | None = None


@dataclass(frozen=True, kw_only=True)
class Association:
    """The association of a score with the drop: in one run, or pooled over all (`run` is None).

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
        Spearman's and Kendall's (tau-b) rank correlation of score and drop over the layers of a
        run; pooled, their mean over runs.
    rho_p, tau_p : float or None
        Permutation p-values; see `planescope.criticality.ranks`.
    rho_q : float or None
        `rho_p` of a pooled association, corrected over the scores (Benjamini-Hochberg); the random
        control takes no part.
    partial : float or None
        Partial Spearman correlation given the position: what the score adds to position alone.
    auc, average_precision : float or None
        For "critical" against not, over all layers of all runs; a larger score is taken to speak
        for critical, so that an area below 1/2 means the reverse.
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
    auc: float | None = None
    auc_low: float | None = None
    auc_high: float | None = None
    average_precision: float | None = None
    average_precision_low: float | None = None
    average_precision_high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Area:
    """The area under the ROC curve of a score for "critical" by the definition (METHOD, section 7).

    A layer is critical where its loss is above 0.1; of `over` "decided", where the interval is.

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
        Layers of that outcome, layers in all, and runs that have any.
    share, low, high : float or None
        And 95 % interval: the wider of Wilson's and, over several runs, the bootstrap's.
    """

    selection: Selection
    biased: bool
    outcome: str
    count: int
    layers: int
    runs: int
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
    runs, critical, robust : int
        How many runs have it, and in how many it is critical, or robust.
    drop, low, high : float
        Mean relative drop and 95 % interval: Student's over runs, or that of the only run.
    decision : Decision
        "critical" where the whole interval is above the threshold of critical, "not critical" where
        it is below.
    """

    network: str
    layer: str
    runs: int
    critical: int
    robust: int
    drop: float
    low: float
    high: float
    decision: Decision


@dataclass(frozen=True, kw_only=True)
class Relation(Table):
    """Scores against resets, of one run or many.

    Attributes
    ----------
    runs : tuple of str
        Paths.
    critical, robust : float
        Thresholds of these words for the relative drop.
    layers, associations, shares, comparisons, advice, areas
        In the order of runs, layers and scores; areas are none where no layer has a loss.
    seed, draws : int
        Of bootstrap, shuffles and the random control; how many of each.
    notes : tuple of str
        What a reader should know.
    """

    SCHEMA: ClassVar[str] = "planescope.relation/1"
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

    def at(self, score: str, selection: Selection, run: str | None = None) -> Association | None:
        """Return the association of a score, pooled or in one run."""
        wanted = (score, selection, run)
        return next((a for a in self.associations if (a.score, a.selection, a.run) == wanted), None)

    @property
    def verdict(self) -> str:
        """Return whether the bias ranks the layers as resets do, and what resets cost."""
        return " ".join((self.claim, *self._advised()))

    @property
    def claim(self) -> str:
        """Say in sentences whether the bias ranks the layers as resets do, and both directions."""
        return " ".join((self._ranking(), *self._directions()))

    def _ranking(self) -> str:
        found = self.at("agreement", self.selection)
        if found is None or found.rho is None or found.rho_p is None:
            return "Undecided: no run has three layers or more whose agreement differs."
        where = "the layers" if self.selection is Selection.ALL else "the layers behind a ReLU"
        rho = f"{_mean(found.runs)}{found.rho:.2f}{_span(found.rho_low, found.rho_high)}"
        numbers = f"Spearman's rho {rho}, p = {found.rho_p:.2g}, {_count(found.runs, 'run')}"
        high = found.rho_high
        if found.rho_p < LEVEL and found.rho > 0:
            text = f"Holds: agreement ranks {where} as the resets do ({numbers})."
        elif found.rho_p < LEVEL:
            text = f"Does not hold: agreement ranks {where} in the reverse order ({numbers})."
        elif high is not None and high < _WEAK:
            text = (
                f"Does not hold: agreement does not rank {where} as the resets do, beyond chance "
                f"({numbers})."
            )
        else:
            text = (
                f"Undecided: agreement does not rank {where} as the resets do, beyond chance, but "
                f"may do so ({numbers})."
            )
        if found.runs < FEWEST_RUNS:
            text += (
                f" Undecided beyond {'this run' if found.runs == 1 else 'these runs'}: an "
                f"interval over runs needs {FEWEST_RUNS} or more."
            )
        return text

    def _directions(self) -> Iterator[str]:
        for share in self.shares:
            wanted = "critical" if share.biased else "robust"
            if share.selection is self.selection and share.outcome == wanted and share.layers:
                side = "biased" if share.biased else "unbiased"
                yield (
                    f"Of {_count(share.layers, f'{side} layer')}, {share.count} "
                    f"{'is' if share.count == 1 else 'are'} {wanted}"
                    f"{_span(share.low, share.high)}."
                )

    def _advised(self) -> Iterator[str]:
        networks = list(dict.fromkeys(one.network for one in self.advice))
        for network in networks:
            of = f"In {network}: " if len(networks) > 1 else ""
            parts = []
            for decision, opening in (
                (Decision.CRITICAL, "critical when put back to the start"),
                (Decision.NOT_CRITICAL, "not critical"),
                (Decision.UNDECIDED, "undecided"),
            ):
                chosen = [a for a in self.advice if (a.network, a.decision) == (network, decision)]
                # The surest first: of the critical what costs most, of the others what least.
                chosen.sort(key=lambda one: one.drop, reverse=decision is Decision.CRITICAL)
                if chosen:
                    told = decision is not Decision.UNDECIDED
                    named = ", ".join(
                        a.layer + f" ({a.drop:.0%}, {a.low:.0%} to {a.high:.0%})" * told
                        for a in chosen
                    )
                    parts.append(f"{opening}: {named}")
            text = of + "; ".join(parts)
            yield text[:1].upper() + text[1:] + "."

    @classmethod
    def _renewed(cls, data: Any) -> Any:
        advice = data.get("advice") if isinstance(data, dict) else None
        if not isinstance(advice, list):
            return data
        renewed = [
            one | {"decision": _FORMER[one["decision"]]}
            if isinstance(one, dict) and str(one.get("decision")) in _FORMER
            else one
            for one in advice
        ]
        return data | {"advice": renewed}

    def columns(self) -> dict[str, list[Any]]:
        """Return the table's columns: a row a layer of a run: what it is, its drop, its scores."""
        columns = columns_of(self.layers, RelatedLayer, but=("scores",))
        named = dict.fromkeys(name for layer in self.layers for name in layer.scores)
        return columns | {name: [layer.scores.get(name) for layer in self.layers] for name in named}

    def _summary(self) -> tuple[str, Mapping[str, Sequence[Any]]]:
        """Return what a notebook shows: the verdict, and what the layers cost."""
        keys = ("run", "layer", "biased", "drop", "critical", "robust")
        columns = self.columns()
        return self.verdict, {key: columns[key] for key in keys}


def _span(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return ""
    return f" (95 % interval {low:.2f} to {high:.2f})"


def _mean(runs: int) -> str:
    return "of " if runs == 1 else "on average "


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
