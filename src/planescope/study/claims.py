"""The paper's claims (METHOD, section 7), each answered by a study's runs.

A run is what counts once: its value is the mean over its layers behind a ReLU, and intervals and
tests are over runs. Networks are strata: what is said of all of them is the mean of what is found
in each, so that no network counts more for having more runs.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from planescope.criticality.relation import Relation
from planescope.files.errors import UsageError
from planescope.files.results import Table, by_layer, columns_of, texts_of
from planescope.hyperplanes.chance import LEVEL, benjamini_hochberg
from planescope.study.effects import (
    ALL,
    COLUMNS,
    Effect,
    difference,
    effect_of,
    mean,
    with_all,
)
from planescope.study.related import relation_of
from planescope.study.turns import turns

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
        A sentence a claim.
    """

    SCHEMA: ClassVar[str] = SCHEMA
    WHAT: ClassVar[str] = "claims"
    REMEDY: ClassVar[str] = "answer them again"
    DERIVED: ClassVar[tuple[str, ...]] = ("claims",)

    study: str
    effects: tuple[Effect, ...]
    relation: Relation | None
    answers: tuple[str, ...]

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
    corrected: list[Effect] = []
    for claim in CLAIMS:
        own = [effect for effect in effects if effect.claim == claim]
        values = benjamini_hochberg([effect.p for effect in own])
        corrected += [dataclasses.replace(e, q=q) for e, q in zip(own, values, strict=True)]
    return Claims(
        study=study,
        effects=tuple(corrected),
        relation=relation,
        answers=tuple(_answers(corrected, relation)),
    )


def plain_runs(table: pd.DataFrame, /) -> list[str]:
    """Return the names of the runs with true labels, all classes and whole images."""
    runs, _ = _by_run(table)
    return [str(name) for name in runs.index[runs["condition"] == PLAIN]]


PLAIN = "true labels, whole images"
# Where nothing of the images, or nothing at all, can be learned.
WRONG, RANDOM, NOISE = "all labels wrong", "random labels", "Gaussian noise"
UNLEARNED = (WRONG, RANDOM, NOISE)
CENTRED = "centred filters"
_COLUMNS = [
    "run", "network", "data", "classes", "labels", "label_noise", "shuffle_pixels", "centred",
    "epoch", "layer", "input", "agreement", "biased", "negative_mass", "negative_centre",
]  # fmt: skip


def _of(table: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Return the layers behind a ReLU of some runs."""
    inner = with_conditions(table)
    return inner[inner["run"].isin(set(runs.index))]


def with_conditions(table: pd.DataFrame, /) -> pd.DataFrame:
    """Return the layers behind a ReLU of a study's table, each with the `condition` of its run.

    Raises
    ------
    UsageError
        If there are none.
    """
    table = by_layer(table)
    inner = table[(table["input"] == "relu") & table["agreement"].notna()].copy()
    if inner.empty:
        raise UsageError("the study has no layers behind a ReLU; its claims are about those")
    for name in ("run", "network", "layer"):
        if name in inner:
            inner[name] = inner[name].astype(str)
    inner["condition"] = condition_of(inner)
    return inner


def condition_of(table: pd.DataFrame, /) -> list[str]:
    """Return what the run of each row of a study's table was trained on, in words."""
    # All classes: as many as a run can have where that is known, else where none were chosen.
    most = math.inf if table["classes"].isna().any() else table["classes"].max()
    # Tables of before lack the last three.
    columns = (table.get(key, itertools.repeat(None, len(table))) for key in _CONDITIONS)
    return [_condition(*row, most=most) for row in zip(*columns, strict=True)]


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


# What a condition is made of, in the order of `_condition`.
_CONDITIONS = ("classes", "label_noise", "shuffle_pixels", "labels", "data", "centred")


def _condition(
    classes: float,
    noise: float,
    shuffled: bool,
    labels: str | float | None,
    data: str | float | None,
    centred: bool | float | None,
    *,
    most: float,
) -> str:
    parts = []
    if str(data).startswith("noise:"):
        parts.append(NOISE)
    if classes < most:  # NaN, all of them, is not
        parts.append(f"{classes:.0f} classes")
    if noise:
        parts.append(f"{noise:.0%} of the labels wrong" if noise < 1 else WRONG)
    if shuffled:
        parts.append("shuffled pixels")
    if labels == "random":
        parts.append(RANDOM)
    if centred is True or centred == 1:  # NaN where a table does not say
        parts.append(CENTRED)
    return ", ".join(parts) or PLAIN


def _first(plain: pd.DataFrame) -> Iterator[Effect]:
    """Trained against initialised, the same runs."""
    for key, measure in (("biased", "share of biased layers"), ("agreement", "agreement")):
        both = plain.dropna(subset=[key, f"{key}_0"])
        changes = {
            str(network): mean(list(own[key] - own[f"{key}_0"]))
            for network, own in both.groupby("network")
        }
        for network, estimate in with_all(changes):
            own = both if network == ALL else both[both["network"] == network]
            yield effect_of(
                estimate,
                claim=1,
                network=network,
                comparison="trained, against initialised",
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
    """During training: epoch against epoch. With learning: true labels against random ones."""
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
                comparison=f"after epoch {epoch}, against initialised",
                measure="agreement",
                runs=len(now),
                others=0,
                before=_of_networks(now.assign(start=start[now.index]), "start"),
                after=_of_networks(now, "agreement"),
            )
    for condition in UNLEARNED:
        yield from _between(runs, 2, condition, "agreement", "agreement")


def _fourth(runs: pd.DataFrame) -> Iterator[Effect]:
    """Each condition against plain runs of the same networks; and with against without norm."""
    for condition in sorted(set(runs["condition"]) - {PLAIN}):
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
                comparison=f"{score}, against the drop",
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
                measure=f"share of {share.layers} layers",
                runs=share.runs,
                others=0,
                before=None,
                after=None,
                effect=share.share,
                low=share.low,
                high=share.high,
            )


def _answers(effects: Sequence[Effect], relation: Relation | None) -> Iterator[str]:
    """Answer each claim in a sentence."""
    for claim in CLAIMS:
        own = [effect for effect in effects if effect.claim == claim]
        if claim == 3 and relation is not None:
            yield relation.claim
            continue
        told = [e for e in own if e.network == ALL or all(o.network != ALL for o in own)]
        if not told:
            yield "The study has no runs that tell."
            continue
        yield " ".join(_sentence(effect) for effect in told)


def _sentence(effect: Effect) -> str:
    if effect.before is None or effect.after is None:
        return ""
    numbers = f"{effect.before:.2f} to {effect.after:.2f}"
    if effect.low is not None and effect.high is not None and effect.q is not None:
        span = f"{effect.low:+.2f} to {effect.high:+.2f}"
        certain = f"difference {effect.effect:+.2f}, 95 % interval {span}, q = {effect.q:.2g}"
        shown = effect.q < LEVEL
    else:
        # One run, or runs that do not differ: nothing tells what chance would do.
        certain, shown = f"difference {effect.effect:+.2f}, no interval", None
    change = {
        True: "changes",
        False: "does not change beyond chance",
        None: "is seen to change, without a test" if effect.effect else "does not change",
    }[shown]
    measure = effect.measure[:1].upper() + effect.measure[1:]
    return f"{measure} {change}, {effect.comparison}: from {numbers} ({certain})."
