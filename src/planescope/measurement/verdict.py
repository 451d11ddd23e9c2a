"""The verdict on a measured network, in a sentence (METHOD, sections 2 to 4)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planescope.hyperplanes.chance import LEVEL, NORMAL_95, mass_p_value, wilson
from planescope.hyperplanes.layer import Input

if TYPE_CHECKING:
    from planescope.measurement.record import LayerMeasurement

# A share of filters within these is near 1/2: fewer than three quarters face one way.
_NEAR_HALF = (0.25, 0.75)
# More names than these are counted.
_NAMED = 3

# Inputs of which the theory does not speak (METHOD, section 1), and why.
APART = {Input.IMAGE: "whose input is an image", Input.OTHER: "behind something else than a ReLU"}


@dataclass(frozen=True)
class Finding:
    """The outcome of the tests of one layer.

    Attributes
    ----------
    layer : LayerMeasurement
    by : dict of str to bool
        Of the tests that are beyond chance, corrected over the layers: whether the layer is turned
        away by it, that is, whether most of its data lie where the ReLU gives 0.
    near_half : bool
        Whether the share that tells (behind a norm the centres', else the masses') is near 1/2 with
        its whole 95 % interval.
    """

    layer: LayerMeasurement
    by: dict[str, bool]
    near_half: bool

    @property
    def away(self) -> bool:
        """Return the side, by the test that tells it best: behind a norm the centre."""
        return next(self.by[name] for name in ("centre", "mass", "cosine") if name in self.by)


def finding(layer: LayerMeasurement, /) -> Finding:
    """Return what the tests of a layer say."""
    mass, z, centre = layer.negative_mass, layer.z, layer.negative_centre
    by = {}
    if layer.q_mass is not None and layer.q_mass < LEVEL and mass is not None:
        by["mass"] = mass > 0.5
    # Cosines that spread more than they did at initialisation, to both sides, face no way.
    faces = z is not None and abs(z) > NORMAL_95
    if z is not None and faces and layer.q_cosine is not None and layer.q_cosine < LEVEL:
        by["cosine"] = z < 0
    if layer.q_centre is not None and layer.q_centre < LEVEL and centre is not None:
        by["centre"] = centre > 0.5
    usable = layer.filters - layer.degenerate - layer.non_finite
    if centre is not None:
        told = _counted(centre, layer.p_centre, usable)
    else:
        told = usable - layer.sideless
    share = mass if centre is None else centre
    near = False
    if share is not None and told > 0:
        low, high = wilson(round(share * told), told)
        near = _NEAR_HALF[0] < low and high < _NEAR_HALF[1]
    return Finding(layer, by, near_half=near)


def _counted(share: float, p_value: float | None, most: int) -> int:
    """Return of how many filters a negative centre is the share; 0 where that cannot be told.

    Filters whose norm has a beta or gamma of 0 have no centre; how many is in the p-value alone.
    """
    if p_value is None:
        return 0
    for count in range(most, 0, -1):
        negative = round(share * count)
        is_whole = math.isclose(negative / count, share)
        if is_whole and math.isclose(mass_p_value(negative, count), p_value, rel_tol=1e-6):
            return count
    return 0


def verdict(layers: Sequence[LayerMeasurement], /) -> str:
    """Return whether layers face one way beyond chance: first what can be concluded, then why.

    Layers of which the theory does not speak (METHOD, section 1) are named apart.
    """
    found = [finding(layer) for layer in layers]
    inner = [one for one in found if one.layer.input not in APART]
    known = all(one.layer.input is Input.RELU for one in inner)
    return " ".join((_said(inner, known), *_apart(found)))


def _said(inner: Sequence[Finding], known: bool) -> str:
    if not inner:
        return "Undecided: no layer that was measured lies behind a ReLU."
    of = f"{_count(len(inner))}{' behind a ReLU' if known else ''}"
    turned = [one for one in inner if one.by]
    plain = [one for one in inner if not one.by and one.near_half]
    tests = "by mass, cosine or centre" if any(_has_centre(one) for one in inner) else (
        "by mass or cosine"
    )  # fmt: skip
    if not turned and not plain:
        return f"Undecided in {of}: nothing is beyond chance {tests}, and filters are too few."
    if not turned:
        rest = len(inner) - len(plain)
        more = f", and {rest} {'is' if rest == 1 else 'are'} undecided: too few filters" * bool(
            rest
        )
        return (
            f"Does not hold: none of {of} faces one way beyond chance {tests} (corrected "
            f"p >= {LEVEL:g}){more}."
        )
    away = sum(one.away for one in turned)
    if 0 < away < len(turned):
        sides = f"{away} away from the positive orthant and {len(turned) - away} toward it"
    else:
        sides = f"all {'away from' if away else 'toward'} the positive orthant"
    return (
        f"Holds in {len(turned)} of {of}: beyond chance (corrected p < {LEVEL:g}) "
        + _and(list(_by_test(turned)))
        + f"; {sides}; most of all {_strongest(turned)}."
        + _rest(inner, turned, plain)
    )


def _rest(inner: Sequence[Finding], turned: Sequence[Finding], plain: Sequence[Finding]) -> str:
    undecided = len(inner) - len(turned) - len(plain)
    parts = []
    if plain:
        parts.append(f"does not hold in {_named(plain)}")
    if undecided:
        rest = [one for one in inner if one not in turned and one not in plain]
        parts.append(f"undecided in {_named(rest)}: too few filters to tell")
    text = "; ".join(parts)
    return f" {text[:1].upper()}{text[1:]}." if text else ""


def _by_test(turned: Sequence[Finding]) -> Iterator[str]:
    for test in ("mass", "cosine", "centre"):
        count = sum(test in one.by for one in turned)
        if count or (test == "centre" and any(_has_centre(one) for one in turned)):
            yield f"by {test} in {count}"


def _strongest(turned: Sequence[Finding]) -> str:
    """Name the layer that is turned most, by the number that tells its side."""

    def strength(one: Finding) -> tuple[bool, float, int]:
        layer = one.layer
        share = layer.negative_centre if "centre" in one.by else layer.negative_mass
        sure = bool({"centre", "mass"} & one.by.keys())
        return sure, abs(2 * (0.5 if share is None else share) - 1), layer.filters

    best = max(turned, key=strength)
    layer, name = best.layer, _name(best.layer)
    if "centre" in best.by:
        return f"{name}, with a negative centre in {layer.negative_centre:.3f} of its filters"
    if "mass" in best.by:
        return f"{name}, with a negative mass of {layer.negative_mass:.3f}"
    return f"{name}, whose mean cosine has z = {layer.z:+.1f}"


def _apart(found: Sequence[Finding]) -> Iterator[str]:
    for kind, words in APART.items():
        own = [one for one in found if one.layer.input is kind]
        if own:
            turned = sum(bool(one.by) for one in own)
            yield (
                f"Apart, for the theory does not speak of {'it' if len(own) == 1 else 'them'}: "
                f"{_named(own)}, {words}; {_beyond(turned, len(own))}."
            )
    unknown = sum(one.layer.input is Input.UNKNOWN for one in found)
    if unknown:
        which = "the layers" if unknown == len(found) else _count(unknown)
        yield f"What feeds {which} is not known; the theory speaks of layers behind a ReLU."


def _beyond(turned: int, count: int) -> str:
    if count == 1:
        return f"it is {'' if turned else 'not '}beyond chance"
    return f"{turned} {'is' if turned == 1 else 'are'} beyond chance"


def _has_centre(one: Finding) -> bool:
    return one.layer.q_centre is not None


def _named(found: Sequence[Finding]) -> str:
    if len(found) > _NAMED:
        return _count(len(found))
    return _and([_name(one.layer) for one in found])


def _name(layer: LayerMeasurement) -> str:
    """Return the name of a layer, such that one that is a number is not read as a count."""
    return f"layer {layer.name}" if layer.name.isdecimal() else layer.name


def _and(parts: Sequence[str]) -> str:
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _count(number: int) -> str:
    return "1 layer" if number == 1 else f"{number} layers"
