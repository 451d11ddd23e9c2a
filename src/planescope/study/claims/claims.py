"""The paper's claims (METHOD, section 7), each answered by a study's runs.

A run is what counts once: its value is the mean over its layers behind a ReLU, and intervals and
tests are over runs. Networks are strata: what is said of all of them is the mean of what is found
in each, so that no network counts more for having more runs.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from planescope.criticality.relation.conclusions import Conclusion
from planescope.criticality.relation.record import Relation
from planescope.files.errors import UsageError
from planescope.files.results.result import Table, columns_of, texts_of
from planescope.hyperplanes.chance import benjamini_hochberg
from planescope.study.claims.answers import answers
from planescope.study.claims.conditions import PLAIN, UNLEARNED, with_conditions
from planescope.study.claims.effects import (
    ALL,
    COLUMNS,
    Effect,
    difference,
    effect_of,
    mean,
    with_all,
)
from planescope.study.claims.turns import turns
from planescope.study.related import relation_of

if TYPE_CHECKING:
    import pandas as pd

    from planescope.study.folder import Study

SCHEMA = "planescope.claims/1"

CLAIMS = {
    1: "Trained networks have negative masses far from 1/2 in many layers; at initialisation they "
    "do not.",
    2: "The bias appears during training, and with learning.",
    3: "Layers without bias can be reset with little loss, and biased layers are critical.",
    4: "The effect depends on the data, on batch norm and on noise.",
    # Of the authors' figure (VGG19 on CIFAR-10), not of their text.
    5: "Late layers first turn away from the orthant, and as training goes on back toward it.",
}


@dataclass(frozen=True, kw_only=True)
class Claims(Table):
    """The answers of a study to the claims.

    Attributes
    ----------
    study : str
        Path of its folder.
    effects : tuple of Effect
        By claim.
    relation : Relation or None
        Of the runs with true labels and whole images, for the third claim; None where layers were
        not reset.
    answers : tuple of str
        Sentences a claim, the conclusion first.
    conclusions : tuple of {"holds", "does not hold", "undecided"}
        One a claim; none in files of earlier versions.
    """

    SCHEMA: ClassVar[str] = SCHEMA
    WHAT: ClassVar[str] = "claims"
    REMEDY: ClassVar[str] = "answer them again"
    DERIVED: ClassVar[tuple[str, ...]] = ("claims",)

    study: str
    effects: tuple[Effect, ...]
    relation: Relation | None
    answers: tuple[str, ...]
    conclusions: tuple[Conclusion, ...] = ()

    def of(self, claim: int) -> tuple[Effect, ...]:
        """Return the effects of a claim."""
        return tuple(effect for effect in self.effects if effect.claim == claim)

    @property
    def claims(self) -> tuple[str, ...]:
        """Return the paper's claims, in words."""
        return tuple(CLAIMS.values())

    def columns(self) -> dict[str, list[Any]]:
        """Return the table's columns: a row an effect."""
        return columns_of(self.effects, Effect)

    def _summary(self) -> tuple[str, Mapping[str, Sequence[Any]]]:
        """Return what a notebook shows: the answers, and the effects that they rest on."""
        rows = (effect.cells() for effect in self.effects)
        return " ".join(self.answers), texts_of(rows, COLUMNS)


def claims(study: Study | str | os.PathLike[str], /) -> Claims:
    """Answer the paper's claims from the runs of a study.

    Parameters
    ----------
    study : Study or path
        Some of its runs have true labels, all classes and whole images: what the others are
        compared with.

    Raises
    ------
    CheckpointError
        If there is no study, nothing of it is made yet, or a file is damaged.
    UsageError
        If it has no runs of that kind.
    """
    # Drawing the claims of a table needs nothing of what reads a study's YAML.
    from planescope.study.folder import Study

    whole = study if isinstance(study, Study) else Study(study)
    table = whole.table(_COLUMNS)
    relation = relation_of(whole, list(map(whole.run, plain_runs(table))))
    return claims_of(table, relation, study=str(whole.path))


def claims_of(
    table: pd.DataFrame, relation: Relation | None = None, /, *, study: str = ""
) -> Claims:
    """Answer the claims from a study's table, and the relation of its plain runs.

    Parameters
    ----------
    table : DataFrame
        As `Study.table` gives it.
    relation : Relation, optional
    study : str
        What to call it.

    Raises
    ------
    UsageError
        If it has no layers behind a ReLU, or no runs with true labels and whole images.
    """
    runs, epochs = _by_run(table)
    plain = runs[runs["condition"] == PLAIN]
    if plain.empty:
        raise UsageError(
            f"{study}: has no runs with {PLAIN} and all classes to compare the others with"
        )
    effects = [*_first(plain), *_second(runs, epochs), *_fourth(runs), *turns(_of(table, plain))]
    if relation is not None:
        effects += _third(relation)
    found = tuple(_corrected(effects, _last_epoch(epochs)))
    told = answers(found, relation, UNLEARNED)
    return Claims(
        study=study,
        effects=found,
        relation=relation,
        answers=tuple(each.text for each in told),
        conclusions=tuple(each.conclusion for each in told),
    )


def _last_epoch(epochs: pd.DataFrame) -> int | None:
    """Return the epoch with which all plain runs end; None where they differ."""
    last = epochs[epochs["condition"] == PLAIN].groupby("run")["epoch"].max()
    return int(last.iloc[0]) if last.nunique() == 1 else None


def _corrected(effects: Sequence[Effect], last: int | None) -> Iterator[Effect]:
    """Correct the tests of each claim; what two claims compare is tested once, in the first.

    The second claim's last epoch is the first claim's end of training.
    """
    trained: dict[str, float | None] = {}
    for claim in CLAIMS:
        own = [effect for effect in effects if effect.claim == claim]
        again = [claim == 2 and e.comparison == _after(last) for e in own]
        tests = [None if twice else e.p for e, twice in zip(own, again, strict=True)]
        values = benjamini_hochberg(tests)
        for effect, q, twice in zip(own, values, again, strict=True):
            if claim == 1 and effect.measure == "agreement":
                trained[effect.network] = q
            yield dataclasses.replace(effect, q=trained.get(effect.network) if twice else q)


def _after(epoch: int | None) -> str:
    return f"after epoch {epoch}, against initialised"


def plain_runs(table: pd.DataFrame, /) -> list[str]:
    """Return the names of the runs with true labels, all classes and whole images."""
    runs, _ = _by_run(table)
    return [str(name) for name in runs.index[runs["condition"] == PLAIN]]


_COLUMNS = [
    "run", "network", "data", "classes", "labels", "label_noise", "shuffle_pixels", "centred",
    "epoch", "layer", "input", "agreement", "biased", "negative_mass", "negative_centre",
]  # fmt: skip


def _of(table: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Return the layers behind a ReLU of some runs."""
    inner = with_conditions(table)
    return inner[inner["run"].isin(set(runs.index))]


def _by_run(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return a row a run, and a row a run and epoch: means over the layers behind a ReLU."""
    import pandas as pd

    inner = with_conditions(table)
    inner["biased"] = inner["biased"].astype(float)
    # As agreement, of the sides on which the data lie.
    inner["centre"] = (2 * inner["negative_centre"] - 1).abs()
    keys = ["agreement", "biased", "centre"]
    epochs = inner.groupby(["run", "epoch"])[keys].mean().reset_index()
    about = inner.groupby("run")[["network", "condition"]].first()
    last = epochs.loc[epochs.groupby("run")["epoch"].idxmax()].set_index("run")
    start = epochs[epochs["epoch"] == 0].set_index("run")
    runs = about.join(last[keys]).join(start[keys].add_suffix("_0"))
    return runs, pd.merge(epochs, about, left_on="run", right_index=True)


def _first(plain: pd.DataFrame) -> Iterator[Effect]:
    """Yield trained against initialised, the same runs."""
    for key, measure in (("biased", "share of biased layers"), ("agreement", "agreement")):
        yield from _since_start(plain, 1, key, measure, "trained, against initialised")


def _since_start(
    runs: pd.DataFrame, claim: int, key: str, measure: str, comparison: str
) -> Iterator[Effect]:
    both = runs.dropna(subset=[key, f"{key}_0"])
    changes = {
        str(network): mean(list(own[key] - own[f"{key}_0"]))
        for network, own in both.groupby("network")
    }
    for network, estimate in with_all(changes):
        own = both if network == ALL else both[both["network"] == network]
        yield effect_of(
            estimate,
            claim=claim,
            network=network,
            comparison=comparison,
            measure=measure,
            runs=len(own),
            others=0,
            before=_of_networks(own, f"{key}_0"),
            after=_of_networks(own, key),
        )


def _of_networks(runs: pd.DataFrame, key: str) -> float:
    """Return the mean of the networks' means."""
    return float(runs.groupby("network")[key].mean().mean())


def _second(runs: pd.DataFrame, epochs: pd.DataFrame) -> Iterator[Effect]:
    """Yield epoch against epoch during training, and true labels against random ones."""
    plain = epochs[epochs["condition"] == PLAIN]
    start = plain[plain["epoch"] == 0].set_index("run")["agreement"]
    for epoch in sorted(set(plain["epoch"]) - {0}):
        now = plain[plain["epoch"] == epoch].set_index("run")
        now = now[now.index.isin(start.index)]
        changes = {
            str(network): mean(list(own["agreement"] - start[own.index]))
            for network, own in now.groupby("network")
        }
        # Epochs that some network has no snapshot of would compare other networks.
        if set(changes) == set(plain["network"]):
            network, estimate = list(with_all(changes))[-1]
            yield effect_of(
                estimate,
                claim=2,
                network=network,
                comparison=_after(epoch),
                measure="agreement",
                runs=len(now),
                others=0,
                before=_of_networks(now.assign(start=start[now.index]), "start"),
                after=_of_networks(now, "agreement"),
            )
    for condition in UNLEARNED:
        yield from _between(runs, 2, condition, "agreement", "agreement")
        own = runs[runs["condition"] == condition]
        words = f"{condition}, trained, against initialised"
        yield from _since_start(own, 2, "agreement", "agreement", words)


def _fourth(runs: pd.DataFrame) -> Iterator[Effect]:
    """Yield each condition against plain runs of the same networks; and with norm, without."""
    # Where nothing can be learned is the second claim's: one answer for one comparison.
    for condition in sorted(set(runs["condition"]) - {PLAIN, *UNLEARNED}):
        yield from _between(runs, 4, condition, "agreement", "agreement")
    plain = runs[runs["condition"] == PLAIN]
    for network in sorted(set(plain["network"])):
        normed, bare = (plain[plain["network"] == n] for n in (f"{network}_bn", network))
        if normed.empty:
            continue
        yield effect_of(
            difference(list(normed["agreement"]), list(bare["agreement"])),
            claim=4,
            network=network,
            comparison="with batch norm, against without",
            measure="agreement",
            runs=len(normed),
            others=len(bare),
            before=float(bare["agreement"].mean()),
            after=float(normed["agreement"].mean()),
        )
        told = normed.dropna(subset=["centre"])
        if not told.empty:
            yield effect_of(
                mean(list(told["centre"] - told["agreement"])),
                claim=4,
                network=f"{network}_bn",
                comparison="agreement of the centres, against that of the raw masses",
                measure="agreement",
                runs=len(told),
                others=0,
                before=float(told["agreement"].mean()),
                after=float(told["centre"].mean()),
            )


def _between(
    runs: pd.DataFrame, claim: int, condition: str, key: str, measure: str
) -> Iterator[Effect]:
    """Yield the runs of a condition against plain ones of the same networks."""
    changes, sizes = {}, {}
    for network in sorted(set(runs["network"])):
        own = runs[runs["network"] == network]
        after, before = (own.loc[own["condition"] == c, key].dropna() for c in (condition, PLAIN))
        if len(after) and len(before):
            changes[network] = difference(list(after), list(before))
            sizes[network] = (len(after), len(before), before.mean(), after.mean())
    for network, estimate in with_all(changes):
        chosen = list(sizes.values()) if network == ALL else [sizes[network]]
        yield effect_of(
            estimate,
            claim=claim,
            network=network,
            comparison=f"{condition}, against {PLAIN}",
            measure=measure,
            runs=sum(size[0] for size in chosen),
            others=sum(size[1] for size in chosen),
            before=float(sum(size[2] for size in chosen) / len(chosen)),
            after=float(sum(size[3] for size in chosen) / len(chosen)),
        )


def _third(relation: Relation) -> Iterator[Effect]:
    """Yield Ranks; and both directions of the claim."""
    for score in ("agreement", "position"):
        found = relation.at(score, relation.selection)
        for key, measure in (("rho", "Spearman's rho"), ("partial", "rho given position")):
            if found is None or getattr(found, key) is None:
                continue
            yield Effect(
                claim=3,
                network=ALL,
                comparison=f"{score}, against the relative drop",
                measure=measure,
                runs=found.runs,
                others=0,
                before=None,
                after=None,
                effect=getattr(found, key),
                low=getattr(found, f"{key}_low"),
                high=getattr(found, f"{key}_high"),
                p=getattr(found, f"{key}_p"),
            )
    for share in relation.shares:
        if share.selection is relation.selection and share.share is not None:
            yield Effect(
                claim=3,
                network=ALL,
                comparison=f"{share.outcome} among the {'' if share.biased else 'un'}biased",
                measure=f"share of {share.layers} decided layers",
                runs=share.runs,
                others=0,
                before=None,
                after=None,
                effect=share.share,
                low=share.low,
                high=share.high,
            )
