"""The difference between two checkpoints of a network, layer by layer, and its files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from planescope.files.results.result import Table, columns_of
from planescope.hyperplanes.layer import Input, Kind, Skipped, View
from planescope.measurement.matching import Matched
from planescope.measurement.record import Measurement, Source


class Side(StrEnum):
    """The side that a layer's hyperplanes face beyond chance."""

    AWAY = "away"
    TOWARD = "toward"
    NONE = "none"


@dataclass(frozen=True, kw_only=True)
class LayerDifference:
    """The difference of one layer.

    Attributes
    ----------
    name, other : str
        Its name in the first checkpoint, and in the second.
    matched : Matched
        What told that the two are one layer.
    kind, filters, fan_in
        As in `LayerMeasurement`.
    mass_before, mass_after : float or None
        Negative mass.
    cosine_before, cosine_after : float or None
        Mean cosine.
    centre_before, centre_after : float or None
        Mean centre, where a batch norm tells it.
    biased_before, biased_after : bool or None
        By the corrected test, each over the layers of its own checkpoint.
    turned_away, turned_toward : int
        Filters whose normal came to point away from the positive orthant, and toward it, among
        those that have a side in both.
    l2, linf : float or None
        Distances of the weights relative to those of the first checkpoint (METHOD, section 5), in
        the view that was measured; None where the inputs stand in another order.
    zeros_before, zeros_after : float
        Shares of the weights that are 0.
    input : Input
        What feeds the layer, as the second checkpoint or else the first one knows.
    side_before, side_after : {"away", "toward", "none"} or None
        Where it faces beyond chance, by mass, cosine or centre, corrected over the layers of its
        own checkpoint; None in files of earlier versions.
    tested_before, tested_after : int or None
        Filters that the mass is a share of; None likewise.
    """

    name: str
    other: str
    matched: Matched
    kind: Kind
    filters: int
    fan_in: int
    mass_before: float | None
    mass_after: float | None
    cosine_before: float | None
    cosine_after: float | None
    centre_before: float | None
    centre_after: float | None
    biased_before: bool | None
    biased_after: bool | None
    turned_away: int
    turned_toward: int
    l2: float | None
    linf: float | None
    zeros_before: float
    zeros_after: float
    input: Input = Input.UNKNOWN
    side_before: Side | None = None
    side_after: Side | None = None
    tested_before: int | None = None
    tested_after: int | None = None

    @property
    def turned(self) -> int:
        """Return the filters that changed sides."""
        return self.turned_away + self.turned_toward

    @property
    def same(self) -> bool:
        """Return whether every weight is the same."""
        return self.linf == 0.0

    @property
    def is_apart(self) -> bool:
        """Return whether the theory does not speak of the layer."""
        return self.input in (Input.IMAGE, Input.OTHER)


@dataclass(frozen=True, kw_only=True)
class Difference(Table):
    """The difference between two checkpoints.

    Attributes
    ----------
    before, after : Source
    view : View
    layers : tuple of LayerDifference
        Those that both have, in the order of the first.
    skipped_before, skipped_after : tuple of Skipped
        Layers without a partner, or not measured, each with the reason.
    notes : tuple of str
        What had to be assumed, and what a reader should know.
    level_before, level_after : float or None
        The p-value below which a mass is beyond chance, corrected over all layers of its
        checkpoint; None in files of earlier versions.
    measurements : pair of Measurement, or None
        Of both; None in a difference that was loaded from a file.
    """

    SCHEMA = "planescope.difference/1"
    WHAT = "difference"
    REMEDY = "compare the checkpoints again"
    DERIVED = ("verdict",)
    INDEX = "layer"

    before: Source
    after: Source
    view: View
    layers: tuple[LayerDifference, ...]
    skipped_before: tuple[Skipped, ...] = ()
    skipped_after: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    level_before: float | None = None
    level_after: float | None = None
    measurements: tuple[Measurement, Measurement] | None = field(
        default=None, repr=False, compare=False
    )

    @property
    def verdict(self) -> str:
        """Return in sentences in how many layers it holds that weights moved, and what turned."""
        if not self.layers:
            return "Undecided: the two have no layer in common."
        return " ".join((self._moved(), *self._turned(), self._sides(), *self._apart()))

    def _moved(self) -> str:
        count = _count(len(self.layers))
        moved = [layer for layer in self.layers if not layer.same and layer.l2 is not None]
        unknown = [layer.name for layer in self.layers if layer.l2 is None]
        undecided = f" Undecided in {_named(unknown)}, whose distance is not comparable." * bool(
            unknown
        )
        if not moved and unknown:
            return f"Undecided in {_named(unknown)} of {count}: distances are not comparable."
        if not moved:
            return f"Does not hold that weights moved: those of {count} are the same in both."
        most = max(moved, key=lambda layer: layer.l2 or 0.0)
        return (
            f"Holds that weights moved in {len(moved)} of {count}, most of all in {most.name} (by "
            f"{most.l2:.3g} of its length).{undecided}"
        )

    def _turned(self) -> Iterator[str]:
        turned = sum(layer.turned for layer in self.layers)
        if not turned:
            if any(not layer.same for layer in self.layers):
                yield "No filter changed sides."
            return
        away = sum(layer.turned_away for layer in self.layers)
        filters = sum(layer.filters for layer in self.layers)
        yield (
            f"{turned} of {filters} filters changed sides, {away} away from the positive orthant "
            f"and {turned - away} toward it."
        )

    def _sides(self) -> str:
        """Say which layers, of those the theory speaks of, face one way before and after."""
        inner = [layer for layer in self.layers if not layer.is_apart]
        if not inner:
            return "Undecided whether layers face one way: none of them lies behind a ReLU."
        if any(layer.side_before is None or layer.side_after is None for layer in inner):
            return "Which layers face one way is not said by a file of this version; compare again."
        was, now = ([layer for layer in inner if _faces(side(layer))] for side in _ENDS)
        if not was and not now:
            return "No layer faces one way beyond chance, by mass, cosine or centre."
        came = [layer.name for layer in now if layer not in was]
        went = [layer.name for layer in was if layer not in now]
        round_ = [x.name for x in now if x in was and x.side_before is not x.side_after]
        parts = [
            f"{words} {_named(names)}"
            for names, words in ((came, "new:"), (went, "no longer:"), (round_, "turned round:"))
            if names
        ]
        text = (
            f"{len(was)} of {_count(len(inner))} {'faces' if len(was) == 1 else 'face'} one way "
            f"beyond chance before and {len(now)} after, by mass, cosine or centre"
        )
        return f"{text}: {'; '.join(parts) if parts else 'the same'}."

    def _apart(self) -> Iterator[str]:
        apart = [layer for layer in self.layers if layer.is_apart]
        if apart:
            them = "it" if len(apart) == 1 else "them"
            yield (
                f"Apart, for the theory does not speak of {them}: "
                f"{_named([layer.name for layer in apart])}."
            )

    def columns(self) -> dict[str, list[Any]]:
        """Return the table's columns; a row a layer that both have."""
        return columns_of(self.layers, LayerDifference)

    def _summary(self) -> tuple[str, Mapping[str, Sequence[Any]]]:
        """Return the verdict, and the columns that a notebook shows below it."""
        table = self.columns() | {"turned": [layer.turned for layer in self.layers]}
        keys = ("layer", "filters", "mass_before", "mass_after", "turned", "l2")
        title = f"{self.before.path} → {self.after.path}: {self.verdict}"
        return title, {key: table[key] for key in keys}


# More names than these are counted.
_NAMED = 3
_ENDS: tuple[Callable[[LayerDifference], Side | None], ...] = (
    lambda layer: layer.side_before,
    lambda layer: layer.side_after,
)


def _faces(side: Side | None) -> bool:
    return side in (Side.AWAY, Side.TOWARD)


def _named(names: Sequence[str]) -> str:
    if len(names) > _NAMED:
        return _count(len(names))
    return "".join(names) if len(names) < 2 else f"{', '.join(names[:-1])} and {names[-1]}"


def _count(number: int) -> str:
    return "1 layer" if number == 1 else f"{number} layers"
