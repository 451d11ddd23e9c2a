"""Answers to the claims in sentences: first what can be concluded, then the numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from planescope.criticality.relation.conclusions import (
    Conclusion,
    claimed,
    directions,
    joined,
    of_share,
    together,
)
from planescope.hyperplanes.chance import LEVEL
from planescope.study.claims.effects import ALL, Effect

if TYPE_CHECKING:
    from planescope.criticality.relation.record import Relation

# Where the whole interval of a difference lies within this of 0, there is none to speak of.
SMALL = 0.1


@dataclass(frozen=True)
class Answer:
    """The conclusion on a claim, and the sentences that say so, with that word first."""

    conclusion: Conclusion
    text: str


def conclude(effects: Sequence[Effect], /, sign: int = 0) -> Conclusion:
    """Conclude from the effects of one comparison whether it goes one way.

    Parameters
    ----------
    effects : sequence of Effect
        Of one comparison, by one measure or several.
    sign : int
        The way that is claimed: 1 up, -1 down; 0 for either.
    """
    tested = [e for e in effects if e.q is not None and e.low is not None and e.high is not None]
    if tested and all(_is_small(e) for e in tested):
        return Conclusion.FAILS
    shown = [e for e in tested if e.q is not None and e.q < LEVEL]
    ways = {not sign or sign * e.effect > 0 for e in shown}
    if len(ways) == 1:
        return Conclusion.HOLDS if ways == {True} else Conclusion.FAILS
    return Conclusion.UNDECIDED


def _is_small(effect: Effect) -> bool:
    return effect.low is not None and effect.high is not None and (
        effect.low > -SMALL and effect.high < SMALL
    )  # fmt: skip


def answers(
    effects: Sequence[Effect], relation: Relation | None, unlearned: Sequence[str], /
) -> tuple[Answer, ...]:
    """Answer the claims, each once.

    Parameters
    ----------
    effects : sequence of Effect
    relation : Relation or None
        For the third claim.
    unlearned : sequence of str
        Conditions in which nothing can be learned.
    """
    of = {claim: [e for e in effects if e.claim == claim] for claim in range(1, 6)}
    return (
        _trained(of[1]),
        _learned(of[2], unlearned),
        _critical(relation),
        _depends(of[4]),
        _turns(of[5]),
    )


_NONE = Answer(Conclusion.UNDECIDED, "Undecided: the study has no runs that tell.")


def _trained(effects: Sequence[Effect]) -> Answer:
    told = _overall(effects)
    if not told:
        return _NONE
    found = conclude(told, 1)
    numbers = "; ".join(f"{e.measure} {_numbers(e)}" for e in told)
    return Answer(
        found,
        f"{found.opening}: trained, against initialised: {numbers}"
        f"{_split(effects, partial(conclude, sign=1))}.",
    )


def _learned(effects: Sequence[Effect], unlearned: Sequence[str]) -> Answer:
    """Answer the second claim: during training, epoch after epoch, and with learning."""
    if not effects:
        return _NONE
    parts = [*_during(effects), *_with_learning(effects, unlearned)]
    whole = together([part.conclusion for part in parts])
    return Answer(whole, _both(whole, parts))


def _both(whole: Conclusion, parts: Sequence[Answer]) -> str:
    return f"{whole.opening}, taken together. {' '.join(part.text for part in parts)}"


def _during(effects: Sequence[Effect]) -> Iterator[Answer]:
    steps = [e for e in _overall(effects) if e.comparison.startswith("after epoch")]
    if not steps:
        yield Answer(Conclusion.UNDECIDED, "During training: undecided, no epochs to compare.")
        return
    found = conclude(steps[-1:], 1)
    beyond = [e for e in steps if conclude([e], 1) is Conclusion.HOLDS]
    first = beyond[0].comparison.partition(",")[0] if beyond else ""
    since = f", beyond chance first {first}" * bool(beyond)
    last = steps[-1]
    yield Answer(
        found, f"During training: {found}, {last.comparison}: agreement {_numbers(last)}{since}."
    )


def _with_learning(effects: Sequence[Effect], unlearned: Sequence[str]) -> Iterator[Answer]:
    there = False
    for condition in unlearned:
        each = [e for e in effects if e.comparison.startswith(f"{condition},")]
        own = _overall(each)
        if all("initialised" in e.comparison for e in own):
            continue
        there = True
        found = _needs_learning(own)
        own.sort(key=lambda e: "initialised" in e.comparison)
        numbers = [f"agreement {_numbers(e)}, {e.comparison.removeprefix(f'{condition}, ')}"
                   for e in own]  # fmt: skip
        yield Answer(
            found,
            f"With learning: {found}, by runs with {condition}: {'; '.join(numbers)}"
            f"{_split(each, _needs_learning)}.",
        )
    if not there:
        yield Answer(
            Conclusion.UNDECIDED,
            "With learning: undecided, there are no runs in which nothing can be learned.",
        )


def _needs_learning(effects: Sequence[Effect]) -> Conclusion:
    found = conclude([e for e in effects if "initialised" not in e.comparison], -1)
    risen = conclude([e for e in effects if "initialised" in e.comparison], 1)
    # A bias that comes without learning, and is not shown to be less, does not need it.
    if found is Conclusion.UNDECIDED and risen is Conclusion.HOLDS:
        return Conclusion.FAILS
    return found


def _critical(relation: Relation | None) -> Answer:
    if relation is None:
        return Answer(
            Conclusion.UNDECIDED,
            "Undecided: no layers of plain runs were reset, of networks better than chance.",
        )
    found = together([of_share(share) for share in directions(relation)] or [])
    return Answer(found, f"{found.opening}, both directions taken together. {claimed(relation)}")


def _depends(effects: Sequence[Effect]) -> Answer:
    """Answer each comparison by itself; those of runs that cannot learn are the second claim's."""
    by: dict[tuple[str, str], list[Effect]] = {}
    for effect in _overall(effects):
        by.setdefault((effect.comparison, effect.network), []).append(effect)
    if not by:
        return _NONE
    groups: dict[Conclusion, list[str]] = {each: [] for each in Conclusion}
    for (comparison, network), own in by.items():
        of = "" if network == ALL else f" ({network})"
        numbers = "; ".join(_numbers(e) for e in own)
        apart = _split([e for e in effects if e.comparison == comparison], conclude)
        groups[conclude(own)].append(f"{comparison}{of}: {own[0].measure} {numbers}{apart}")
    holds, fails = groups[Conclusion.HOLDS], groups[Conclusion.FAILS]
    whole = Conclusion.UNDECIDED
    if holds:
        whole = Conclusion.HOLDS
    elif len(fails) == len(by):
        whole = Conclusion.FAILS
    parts = [
        f"{each.opening} in {len(texts)} of {len(by)}: {'; '.join(texts)}."
        for each, texts in groups.items()
        if texts
    ]
    first = next(part for part in parts if part.startswith(whole.opening))
    return Answer(whole, " ".join((first, *(part for part in parts if part != first))))


def _turns(effects: Sequence[Effect]) -> Answer:
    told = _overall(effects)
    if not told:
        return _NONE
    parts = []
    for part, sign in (("at the turn", 1), ("trained", -1)):
        own = [e for e in told if e.comparison.startswith(part)]
        found = conclude(own, sign)
        way = "Away" if sign > 0 else "Back"
        each = [e for e in effects if e.comparison.startswith(part)]
        apart = _split(each, partial(conclude, sign=sign))
        parts += [
            Answer(found, f"{way}: {found}, {e.comparison}: {e.measure} {_numbers(e)}{apart}.")
            for e in own
        ]
    whole = together([part.conclusion for part in parts])
    return Answer(whole, _both(whole, parts))


def _overall(effects: Sequence[Effect]) -> list[Effect]:
    """Return those of all networks; of a comparison that has none, those of each."""
    whole = {(e.comparison, e.measure) for e in effects if e.network == ALL}
    return [e for e in effects if e.network == ALL or (e.comparison, e.measure) not in whole]


def _split(effects: Sequence[Effect], rule: Callable[[Sequence[Effect]], Conclusion]) -> str:
    """Say in which networks it holds, where they are not of one answer."""
    networks = list(dict.fromkeys(e.network for e in effects if e.network != ALL))
    found = {n: rule([e for e in effects if e.network == n]) for n in networks}
    if len(set(found.values())) < 2:
        return ""
    texts = [
        f"{each} in {joined([n for n in networks if found[n] is each])}"
        for each in Conclusion
        if each in found.values()
    ]
    return f"; by network: {', '.join(texts)}"


def _numbers(effect: Effect) -> str:
    """Return the numbers of a comparison, in words that claim nothing."""
    text = f"from {effect.before:.2f} to {effect.after:.2f}"
    if effect.low is None or effect.high is None or effect.q is None:
        # One run, or runs that do not differ: nothing tells what chance would do.
        return f"{text} ({effect.effect:+.2f}, no interval)"
    return (
        f"{text} ({effect.effect:+.2f}, 95 % interval {effect.low:+.2f} to {effect.high:+.2f}, "
        f"q = {effect.q:.2g})"
    )
