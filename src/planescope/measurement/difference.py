"""The difference between two checkpoints of a network, layer by layer, and its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from planescope.files.results import Table, columns_of
from planescope.hyperplanes.layer import Kind, Skipped, View
from planescope.measurement.matching import Matched
from planescope.measurement.record import Measurement, Source


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

    @property
    def turned(self) -> int:
        """Filters that changed sides."""
        return self.turned_away + self.turned_toward

    @property
    def same(self) -> bool:
        """Return whether every weight is the same."""
        return self.linf == 0.0


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
    measurements: tuple[Measurement, Measurement] | None = field(
        default=None, repr=False, compare=False
    )

    @property
    def verdict(self) -> str:
        """Return what moved most, in a sentence."""
        if not self.layers:
            return "The two have no layer in common."
        count = f"{len(self.layers)} layer{'s' * (len(self.layers) > 1)}"
        moved = [layer for layer in self.layers if not layer.same]
        if not moved:
            return f"Nothing moved: the weights of {count} that both have are the same."
        text = f"{len(moved)} of {count} moved"
        known = [layer for layer in moved if layer.l2 is not None]
        if known:
            most = max(known, key=lambda layer: layer.l2 or 0.0)
            text += f", most of all {most.name} (by {most.l2:.3g} of its length)"
        turned = sum(layer.turned for layer in self.layers)
        filters = sum(layer.filters for layer in self.layers)
        if not turned:
            text += "; no filter changed sides"
        else:
            away = sum(layer.turned_away for layer in self.layers)
            text += (
                f"; {turned} of {filters} filters changed sides, {away} away from the positive "
                f"orthant and {turned - away} toward it"
            )
        return f"{text}; {self._bias()}."

    def _bias(self) -> str:
        before, after = (
            {layer.name for layer in self.layers if getattr(layer, key)}
            for key in ("biased_before", "biased_after")
        )
        if before == after:
            if len(after) > 1:
                return f"the same {len(after)} layers are biased"
            return "the same layer is biased" if after else "no layer is biased"
        came = [layer.name for layer in self.layers if layer.name in after - before]
        went = [layer.name for layer in self.layers if layer.name in before - after]
        parts = (("came in", came), ("went in", went))
        return "bias " + " and ".join(
            f"{verb} {names[0] if len(names) == 1 else f'{len(names)} layers'}"
            for verb, names in parts
            if names
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
