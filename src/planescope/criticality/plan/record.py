"""The record of a repair, layer by layer: a table, and the repaired network beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from planescope.files.errors import counted
from planescope.files.results.result import Table, columns_of


@dataclass(frozen=True, kw_only=True)
class RepairedLayer:
    """A layer of a repaired network.

    Attributes
    ----------
    name : str
    by : str or None
        ``"least squares"`` or ``"moments"``; None where nothing was tried.
    kept : bool
        Whether the layer is changed in the result.
    without : float or None
        What the measure is, on inputs that the repair did not see, where this layer alone is as it
        was and the others are repaired.
    reason : str or None
        Why the layer is as it was.
    """

    name: str
    by: str | None = None
    kept: bool = False
    without: float | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Repair(Table):
    """A repaired network, and what the repair did.

    Attributes
    ----------
    source, reference : str
        The changed network, and the whole one.
    by : str
        What was asked for.
    inputs : str
        What it was repaired on.
    fitted, checked : int
        Examples that weights were fitted to, and that were kept back to check them.
    measure : str
        ``"divergence"``: mean of KL(p, p') in nats, p of the reference; or ``"relative change"``
        of an output that is no class.
    before, after : float
        The measure on the examples kept back.
    layers : tuple of RepairedLayer
        In forward order; those that nothing was tried on are behind.
    notes : tuple of str
    module : torch.nn.Module
        The changed network with its repaired weights: a copy, in the modes of the one given.
    """

    SCHEMA: ClassVar[str] = "planescope.repair/1"
    WHAT: ClassVar[str] = "repair"
    INDEX: ClassVar[str | None] = "layer"

    source: str
    reference: str
    by: str
    inputs: str
    fitted: int
    checked: int
    measure: str
    before: float
    after: float
    layers: tuple[RepairedLayer, ...]
    notes: tuple[str, ...] = ()
    module: Any = field(default=None, compare=False, repr=False)

    @property
    def verdict(self) -> str:
        """Say in a sentence what the repair did."""
        kept = sum(layer.kept for layer in self.layers)
        tried = sum(layer.by is not None for layer in self.layers)
        if not kept:
            return (
                f"nothing was repaired: in none of {counted(tried, 'layer')} it lowers the "
                f"{self.measure} from the reference ({self.before:.4g})"
            )
        return (
            f"{kept} of {counted(len(self.layers), 'layer')} repaired; {self.measure} from "
            f"the reference {self.before:.4g} before, {self.after:.4g} after, on "
            f"{counted(self.checked, 'example')} that the repair did not see"
        )

    def columns(self) -> dict[str, list[Any]]:
        """Return a row a layer."""
        return columns_of(self.layers, RepairedLayer)

    def _summary(self) -> tuple[str, Mapping[str, Sequence[Any]]]:
        """Return the verdict, and the rows."""
        return self.verdict, self.columns()
