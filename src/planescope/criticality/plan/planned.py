"""Plans: their cut of each layer, their cost, and that of their rivals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from planescope.files.errors import UsageError, counted
from planescope.files.results.result import Table, columns_of
from planescope.hyperplanes.layer import Skipped


@dataclass(frozen=True, kw_only=True)
class PlannedLayer:
    """A layer of a plan.

    Attributes
    ----------
    name : str
    parameters : int
        Of its weight.
    setting : float
        Share of the weights or filters that goes, rank, number of bits, or 1 where the layer is put
        back.
    size : float
        Share of the weights that stays; of bits, of 32.
    alone : float or None
        The measure with this layer changed alone, not repaired.
    jointly : float or None
        The measure with this layer and all those before it changed, not repaired.
    """

    name: str
    parameters: int
    setting: float
    size: float
    alone: float | None
    jointly: float | None


@dataclass(frozen=True, kw_only=True)
class Rival:
    """One way to share out the same size, and what is left.

    Attributes
    ----------
    name : str
        ``"uniform"``, ``"global magnitude"`` or ``"LAMP"``; of layers that are put back ``"joint
        cost, step by step"``, ``"cost alone"`` or ``"distance"``.
    repaired : bool
    size : float
        That it reaches.
    divergence : float or None
        On the examples of the table; None where the network gives no number.
    agreement : float or None
        Share of examples with the whole network's answer.
    accuracy : float or None
        Where there are labels.
    loss : float or None
        METHOD 7's: measured with labels, else expected; None without classes.
    better : bool
        Whether it is nearer to the whole network than the plan is, beyond chance: by two standard
        errors of the pairs, over the examples of the table.
    """

    name: str
    repaired: bool
    size: float
    divergence: float | None
    agreement: float | None = None
    accuracy: float | None = None
    loss: float | None = None
    better: bool = False

    @property
    def title(self) -> str:
        """Return its name, and whether it is repaired."""
        return f"{self.name}{', repaired' if self.repaired else ''}"


@dataclass(frozen=True, kw_only=True)
class PlanCost:
    """The cost of making a plan, told beforehand.

    Attributes
    ----------
    layers : int
    tries : int
        Allocations, as they are and repaired; for a budget at most so many.
    passes : int
        Of examples through the network, at most: to look at them and at the network, to fit
        weights, and to hold each try against the whole network.
    examples : int
        That weights are fitted to, that choose, and of the table.
    seconds : float
        What the passes take, about; fitting weights comes on top.
    """

    layers: int
    tries: int
    passes: int
    examples: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Plan(Table):
    """A smaller network within a size, and what it costs.

    Attributes
    ----------
    source, way : str
    asked : float
        Size or mean of bits that was asked for, or found for a budget.
    method : str
        ``"synthetic"``, ``"unlabelled"`` or ``"measured"``.
    inputs : str
    fitted, checked, examples : int
        That weights were fitted to; that chose among rivals and repairs; of the table.
    measure : str
        ``"divergence"`` or ``"relative change"``.
    accuracy : float or None
        Of the whole network.
    chosen : Rival
        What the plan is.
    rivals : tuple of Rival
        All that were tried at that size, the chosen one among them.
    layers : tuple of PlannedLayer
    curve : tuple of Rival
        All that were tried at other sizes.
    skipped : tuple of Skipped
        Layers that are not planned, and why.
    notes : tuple of str
    module : torch.nn.Module
        The planned network, a copy in the modes of the one given.
    """

    SCHEMA: ClassVar[str] = "planescope.plan/1"
    WHAT: ClassVar[str] = "plan"
    LEFT: ClassVar[str] = "left whole"
    INDEX: ClassVar[str | None] = "layer"
    DERIVED: ClassVar[tuple[str, ...]] = ("recommended",)

    source: str
    way: str
    asked: float
    method: str
    inputs: str
    fitted: int
    checked: int
    examples: int
    measure: str
    accuracy: float | None
    chosen: Rival
    rivals: tuple[Rival, ...]
    layers: tuple[PlannedLayer, ...]
    curve: tuple[Rival, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    module: Any = field(default=None, compare=False, repr=False)

    @property
    def ahead(self) -> Rival | None:
        """Return the rival that does best of those that do better than the plan, if one does."""
        better = [rival for rival in self.rivals if rival.better]
        return min(better, key=_cost) if better else None

    @property
    def recommended(self) -> bool:
        """Tell whether no rival does better on the examples of the table, beyond chance."""
        return self.ahead is None

    @property
    def verdict(self) -> str:
        """Say in a sentence what the plan is worth."""
        loss = ""
        if self.chosen.loss is not None:
            kind = "measured" if self.method == "measured" else "expected"
            loss = f", {kind} loss {self.chosen.loss:.1%}"
        what = self.chosen.title
        if (ahead := self.ahead) is not None:
            return (
                f"not recommended: {ahead.title} has a lower {self.measure} than the plan "
                f"({what}{loss}) on {counted(self.examples, 'example')} that chose neither"
            )
        rest = f"no rival has a lower {self.measure}"
        if len(self.rivals) == 1:
            rest = "no other was tried"
        elif any(_cost(rival) < _cost(self.chosen) for rival in self.rivals):
            rest += ", beyond chance"
        return f"the plan is {what}{loss}, on {counted(self.examples, 'example')}; {rest}"

    @property
    def remarks(self) -> tuple[str, ...]:
        """Return what its numbers are not."""
        found = []
        if self.method == "synthetic" and self.chosen.loss is not None:
            found.append("loss: expected on synthetic pictures, uncalibrated")
        if self.method == "measured" and self.chosen.loss is None:
            found.append(
                f"no losses: the whole network's accuracy on these examples, {self.accuracy:.1%}, "
                "cannot be told from chance; is its input prepared as in training?"
            )
        if self.way == "filters":
            found.append(
                "size: weights of the filters alone; those that read them in the layers behind go "
                "too where channels are removed for real"
            )
        if self.way == "freeze":
            found.append(
                "frozen layers are what this network can do with; whether a training with them "
                "frozen comes as far was not tested"
            )
        return tuple(found)

    @property
    def put_back(self) -> tuple[str, ...]:
        """Return the layers that are put back, for ``requires_grad_(False)``."""
        if self.way not in ("reset", "freeze"):
            return ()
        return tuple(layer.name for layer in self.layers if layer.setting)

    def pruning_ratios(self) -> dict[Any, float]:
        """Give the share of filters that goes by module, as Torch-Pruning takes it.

        ``pruning_ratio_dict`` of its pruners, for the network in `module`; it chooses filters by
        itself.
        """
        return {
            self.module.get_submodule(layer.name): layer.setting
            for layer in self.layers
            if self.way == "filters"
        }

    def thinned(self, example: Any, /) -> Any:
        """Take the removed filters out of the network, with what is coupled to them.

        By Torch-Pruning (``pip install 'planescope[pruning]'``). Nothing but filters that give
        exactly 0 goes, so that the smaller network answers as `module` does, which is looked at.

        Parameters
        ----------
        example : torch.Tensor
            Inputs that the network takes.

        Returns
        -------
        torch.nn.Module

        Raises
        ------
        UsageError
            If the plan is not by the way ``"filters"``, or of an ONNX file.
        RunError
            If the network cannot be taken apart, or would answer otherwise.
        MissingDependencyError
            If torch-pruning is not installed.
        """
        from planescope.criticality.plan.forms.thinning import thinned

        if self.way != "filters":
            raise UsageError(f"a plan by {self.way} removes no filters; plan by the way filters")
        return thinned(self.module, [layer.name for layer in self.layers], example)

    def masks(self) -> dict[str, Any]:
        """Give of every planned layer which weights stay, as ``torch.nn.utils.prune`` takes it."""
        return {
            layer.name: self.module.get_submodule(layer.name).weight.detach() != 0
            for layer in self.layers
        }

    def columns(self) -> dict[str, list[Any]]:
        """Return a row a layer."""
        return columns_of(self.layers, PlannedLayer)

    def _summary(self) -> tuple[str, Mapping[str, Sequence[Any]]]:
        """Return the verdict, and the rows."""
        return self.verdict, self.columns()


def _cost(rival: Rival) -> float:
    return float("inf") if rival.divergence is None else rival.divergence
