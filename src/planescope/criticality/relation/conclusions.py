"""Conclusions of a relation in sentences: first what can be concluded, then why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

from planescope.criticality.definition import Critical
from planescope.criticality.relation.ranks import FEWEST_RUNS
from planescope.hyperplanes.chance import LEVEL
from planescope.hyperplanes.layer import Input

if TYPE_CHECKING:
    from planescope.criticality.relation.record import Advice, Association, Relation, Share

# Where the interval of rho reaches no further, the ranks have at most a quarter in common.
_WEAK = 0.5
# A share of layers above this is most of them.
_MOST = 0.5
# More names than these are counted.
_NAMED = 3


class Conclusion(StrEnum):
    """The answer to a claim."""

    HOLDS = "holds"
    FAILS = "does not hold"
    UNDECIDED = "undecided"

    @property
    def opening(self) -> str:
        """Return the word as a sentence begins with it."""
        return self.value.capitalize()


def together(parts: Sequence[Conclusion], /) -> Conclusion:
    """Conclude on a claim of several parts, all of which it needs."""
    if Conclusion.FAILS in parts:
        return Conclusion.FAILS
    return Conclusion.HOLDS if set(parts) == {Conclusion.HOLDS} else Conclusion.UNDECIDED


def of_share(share: Share, /) -> Conclusion:
    """Conclude whether a direction of the claim holds of most of its layers."""
    if share.low is None or share.high is None:
        return Conclusion.UNDECIDED
    if share.low > _MOST:
        return Conclusion.HOLDS
    return Conclusion.FAILS if share.high < _MOST else Conclusion.UNDECIDED


def directions(relation: Relation, /) -> tuple[Share, ...]:
    """Return the two shares that the claim is about: robust unbiased layers, critical biased."""
    return tuple(
        share
        for share in relation.shares
        if share.selection is relation.selection
        and share.outcome == ("critical" if share.biased else "robust")
    )


def claimed(relation: Relation, /) -> str:
    """Say whether the bias ranks the layers as resets do, and both directions."""
    sides = (*map(_direction, directions(relation)), *_beside_mass(relation))
    return " ".join((*_ranking(relation), *sides, *apart(relation)))


def spoken(relation: Relation, /) -> str:
    """Name the layers that a relation's verdict is about."""
    if relation.selection == "all":
        return "all layers" if any(layer.selection != "inner" for layer in relation.layers) else (
            "the layers"
        )  # fmt: skip
    is_known = all(layer.input is Input.RELU for layer in relation.chosen(relation.selection))
    return "the layers behind a ReLU" if is_known else "the inner layers"


def _ranking(relation: Relation) -> Iterator[str]:
    found = relation.at("agreement", relation.selection)
    if found is None or found.rho is None or found.rho_p is None:
        yield "Undecided: no run has three layers or more whose agreement differs."
        return
    where, numbers = spoken(relation), _numbers(found)
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
    yield text
    if found.runs < FEWEST_RUNS:
        yield (
            f"Undecided beyond {'this run' if found.runs == 1 else 'these runs'}: an "
            f"interval over runs needs {FEWEST_RUNS} or more."
        )
    centre = relation.at("mean_centre", relation.selection)
    if centre is not None and centre.rho is not None and centre.rho_p is not None:
        shown = "ranks" if centre.rho_p < LEVEL else "does not rank"
        order = ", the further on the inactive side the more a layer costs" * (
            centre.rho_p < LEVEL and centre.rho < 0
        )
        yield (
            f"Behind a norm the centre tells the side: beyond chance it {shown} those layers as "
            f"the resets do{order} ({_numbers(centre)})."
        )


def _numbers(found: Association) -> str:
    mean = "of" if found.runs == 1 else "on average"
    return (
        f"Spearman's rho {mean} {found.rho:.2f}{_span(found.rho_low, found.rho_high)}, "
        f"p = {found.rho_p:.2g}, {counted(found.runs, 'run')}"
    )


def _direction(share: Share) -> str:
    side, outcome = ("biased", "critical") if share.biased else ("unbiased", "robust")
    if not share.layers:
        left = f": {counted(share.undecided, f'{side} layer')} cannot be told" * bool(
            share.undecided
        )
        return f"Undecided whether {side} layers are {outcome}: there is none to tell by{left}."
    found = of_share(share)
    left = f" ({share.undecided} more cannot be told)" * bool(share.undecided)
    verdict = {
        Conclusion.HOLDS: f"Holds that most {side} layers are {outcome}",
        Conclusion.FAILS: f"Does not hold that most {side} layers are {outcome}",
        Conclusion.UNDECIDED: f"Undecided whether most {side} layers are {outcome}",
    }[found]
    return (
        f"{verdict}: {share.count} of {share.layers} {'is' if share.count == 1 else 'are'}"
        f"{_span(share.low, share.high)}{left}."
    )


def _beside_mass(relation: Relation) -> Iterator[str]:
    """Say of layers that are unbiased by their mass that they face one way by another test."""
    unbiased = [each for each in relation.chosen(relation.selection) if each.biased is False]
    turned = sum(bool(layer.tests) for layer in unbiased)
    if turned:
        yield (
            f"Biased is by the mass: {turned} of {counted(len(unbiased), 'unbiased layer')} "
            f"{'faces' if turned == 1 else 'face'} one way beyond chance by cosine or centre."
        )


def apart(relation: Relation, /) -> Iterator[str]:
    """Name the layers of which the theory does not speak."""
    for kind, words in (
        (Input.IMAGE, "whose input is an image"),
        (Input.OTHER, "behind something else than a ReLU"),
    ):
        own = [layer for layer in relation.layers if layer.input is kind]
        if not own:
            continue
        names = list(dict.fromkeys(layer.name for layer in own))
        named = counted(len(names), "layer") if len(names) > _NAMED else joined(names)
        decided = [layer for layer in own if layer.is_decided]
        critical = sum(layer.critical is Critical.YES for layer in decided)
        cost = (
            "none is decided" if not decided
            else f"{critical} of {len(decided)} decided {'is' if critical == 1 else 'are'} critical"
        )  # fmt: skip
        yield (
            f"Apart, for the theory does not speak of {'it' if len(names) == 1 else 'them'}: "
            f"{named}, {words}; {cost}."
        )
    unknown = sum(layer.input is Input.UNKNOWN for layer in relation.layers)
    if unknown:
        yield (
            f"What feeds {counted(unknown, 'layer')} is not known; the theory speaks of layers "
            "behind a ReLU."
        )


def told(relation: Relation, /) -> Iterator[str]:
    """Say of each network which layers are critical; the surest are named first."""
    networks = list(dict.fromkeys(one.network for one in relation.advice))
    for network in networks:
        own = [one for one in relation.advice if one.network == network]
        if all(one.critical is None for one in own):
            continue
        text = f"In {network}: " * (len(networks) > 1) + "; ".join(_verdicts(own))
        yield text[:1].upper() + text[1:] + "."


def _verdicts(advice: Sequence[Advice]) -> Iterator[str]:
    for verdict, opening in (
        (Critical.YES, "critical when put back to the start"),
        (Critical.NO, "not critical"),
        (Critical.UNDECIDED, "undecided"),
        (None, "without a loss, so that nothing is said"),
    ):
        chosen = [one for one in advice if one.critical is verdict]
        # Of the critical what costs most, of the others what least.
        chosen.sort(key=lambda one: one.loss or 0.0, reverse=verdict is Critical.YES)
        if chosen:
            yield f"{opening}: {', '.join(map(_named, chosen))}"


def _named(one: Advice) -> str:
    if one.loss is None:
        return one.layer
    if one.loss_low is None or one.loss_high is None:
        return f"{one.layer} (loss {one.loss:.0%})"
    return f"{one.layer} (loss {one.loss:.0%}, {one.loss_low:.0%} to {one.loss_high:.0%})"


def _span(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return ""
    return f" (95 % interval {low:.2f} to {high:.2f})"


def counted(number: int, what: str, /) -> str:
    """Return a count in words that agree in number."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def joined(parts: Sequence[str], /) -> str:
    """Return names as a sentence lists them."""
    return "".join(parts) if len(parts) < 2 else f"{', '.join(parts[:-1])} and {parts[-1]}"
