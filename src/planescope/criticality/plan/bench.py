"""A whole network on its inputs, against which smaller ones are held, allocation by allocation.

To import this is to import torch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from planescope.criticality.definition import interval, loss
from planescope.criticality.plan.allocation import (
    PUT_BACK,
    RIVALS,
    Settings,
    check_size,
    in_order,
    stays,
)
from planescope.criticality.plan.choice import choose
from planescope.criticality.plan.cuts import Knife
from planescope.criticality.plan.divergence import Yardstick
from planescope.criticality.plan.examples import Examples, halves, take
from planescope.criticality.plan.fit.changes import put_back
from planescope.criticality.plan.fit.holding import array_of
from planescope.criticality.plan.fit.mending import Mending
from planescope.criticality.plan.fit.observation import Anatomy
from planescope.criticality.plan.orders import Orders
from planescope.criticality.plan.planned import PlannedLayer, Rival
from planescope.criticality.resets.engine.answers import over_positions
from planescope.files.errors import UsageError, nearest
from planescope.hyperplanes.chance import wilson
from planescope.hyperplanes.layer import Skipped
from planescope.networks.live.copies import deep_copy

if TYPE_CHECKING:
    import numpy as np

    from planescope.criticality.options import Task
    from planescope.criticality.plan.fit.holding import Form
    from planescope.data.roles import Batch

# (tries done, tries in all, what is tried)
OnTry = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Try:
    """One allocation, applied.

    Attributes
    ----------
    asked : float
    settings : dict of str to Fraction
    module : torch.nn.Module
    checked, told : tensor
        The measure for each of the examples that choose, and of those of the table.
    rival : Rival
    """

    asked: float
    settings: Settings
    module: nn.Module
    checked: torch.Tensor
    told: torch.Tensor
    rival: Rival


@dataclass(eq=False)
class Bench:
    """A whole network, its inputs, and what changed ones are held against.

    Attributes
    ----------
    whole : torch.nn.Module
    mending : Mending
    taken : Examples
    table : Yardstick
        On examples that choose nothing; else those that check.
    labels : list of tensor or None
    weights : dict of str to array
        Of the layers that are planned.
    skipped : list of Skipped
        The others, and why.
    knife : Knife
        The way, and what it needs to know.
    stopped : bool
        Whether somebody has had enough.
    """

    whole: nn.Module
    mending: Mending
    taken: Examples
    table: Yardstick
    labels: list[torch.Tensor] | None
    weights: dict[str, np.ndarray[Any, Any]]
    skipped: list[Skipped]
    knife: Knife
    notes: list[str] = field(default_factory=list)
    stopped: bool = False

    @classmethod
    def of(
        cls, whole: nn.Module, data: Any, knife: Knife, /, *, examples: int, seed: int = 0,
        keep: Collection[str] = (), labelled: bool = True, output: Any = None,
        task: Task | None = None, architecture: Any = None, **given: Any,
    ) -> Bench:  # fmt: skip
        """Take inputs, some for the table, and look at the network.

        Parameters
        ----------
        **given
            `unpack`, `data_path` and `data_options` of `take`.
        """
        device = next((t.device for t in whole.parameters()), torch.device("cpu"))
        both = take(
            data, whole, most=2 * examples, device=device, seed=seed, labelled=labelled, **given
        )
        taken, rest = halves(both, examples)
        notes = []
        if not rest:
            rest = taken.check
            notes.append(
                f"there are {both.fitted + both.checked} examples, none left for the table: it is "
                "of those that chose the plan"
            )
        told = {"labelled": labelled, "task": task, "architecture": architecture}
        check = Yardstick.of(whole, taken.check, output, **told)
        mending = Mending.of(whole, taken, check, by="least squares", seed=seed)
        weights, skipped = _planned(whole, mending.anatomy, knife, keep)
        table = Yardstick.of(whole, rest, output, **told)
        labels = _labels(rest, table) if labelled else None
        return cls(whole, mending, taken, table, labels, weights, skipped, knife, notes)

    @property
    def method(self) -> str:
        """Return the way in which the loss is told."""
        return "unlabelled" if self.labels is None else "measured"

    @property
    def allocations(self) -> dict[str, Callable[[float], Settings]]:
        """Return the ways to share a size out, by name."""
        if self.knife.way not in PUT_BACK:
            rivals = RIVALS[self.knife.way]
            return {name: _of_weights(f, self.weights) for name, f in rivals.items()}
        orders = self._orders
        return {
            "joint cost, step by step": lambda size: in_order(
                self.weights, orders.step_by_step(size), size
            ),
            "cost alone": lambda size: in_order(self.weights, orders.by_cost_alone(), size),
            "distance": lambda size: in_order(self.weights, orders.by_distance(), size),
        }

    @functools.cached_property
    def _orders(self) -> Orders:
        return Orders(self.whole, self.knife, self.mending.yardstick, self.weights)

    def tries(
        self, asked: float, *, repair: bool, on_try: OnTry | None = None, before: int = 0,
        total: int | None = None,
    ) -> list[Try]:  # fmt: skip
        """Share a size out in all ways, as they are and repaired.

        Parameters
        ----------
        before, total : int
            For `on_try`: tries that were made before these, and all.
        """
        check_size(self.knife.way, asked, self.weights)
        found: list[Try] = []
        count = len(self.allocations) * (1 + repair)
        try:
            for name, allocate in self.allocations.items():
                self._tell(on_try, before + len(found), total or count, name)
                settings = allocate(asked)
                for repaired in (False, True)[: 1 + repair]:
                    what = f"{name}{', repaired' if repaired else ''}"
                    tell = functools.partial(
                        self._tell, on_try, before + len(found), total or count
                    )
                    tell(what)
                    found.append(self._try(asked, name, settings, repaired=repaired, tell=tell))
        except KeyboardInterrupt:
            if not found and not before:
                raise
            self.stopped = True
            self.notes.append(
                f"stopped after {len(found)} of {count} tries at {asked:g}: the best of these is "
                "taken"
            )
        return found

    def best(self, tries: Sequence[Try]) -> Try:
        """Find the one nearest to the whole network on the examples that choose."""
        return choose(tries, self.knife.way, of_classes=self.mending.yardstick.of_classes)

    @staticmethod
    def _tell(on_try: OnTry | None, done: int, total: int, what: str) -> None:
        if on_try is not None:
            on_try(done, total, what)

    def _try(
        self, asked: float, name: str, settings: Settings, *, repaired: bool,
        tell: Callable[[str], None] | None = None,
    ) -> Try:  # fmt: skip
        def on_layer(_done: int, _total: int, layer: str) -> None:
            if tell is not None:
                tell(f"{name}, repaired: {layer}")

        changed = deep_copy(self.whole)
        forms: dict[str, Form | None] = {
            layer: self.knife.cut(changed, layer, setting)[0] for layer, setting in settings.items()
        }
        checked = self.mending.yardstick.of_examples(changed)
        if repaired:
            before = float(checked.mean())
            self.mending.repair(changed, before, forms=forms, on_layer=on_layer, like=self.whole)
            checked = self.mending.yardstick.of_examples(changed)
        kept = sum(stays(self.knife.way, self.weights[n], s) for n, s in settings.items())
        size = kept / sum(w.size for w in self.weights.values())
        answers = self.table.asked(changed)
        told = self.table.compared(answers)
        rival = self._rival(answers, told, name, repaired=repaired, size=size)
        return Try(
            asked=asked, settings=settings, module=changed, checked=checked, told=told, rival=rival
        )

    def _rival(
        self, answers: Sequence[torch.Tensor], told: torch.Tensor, name: str, *, repaired: bool,
        size: float,
    ) -> Rival:  # fmt: skip
        """Hold a network against the whole one on the examples of the table."""
        divergence = float(told.mean())
        shown = divergence if math.isfinite(divergence) else None
        if not self.table.of_classes:
            return Rival(name=name, repaired=repaired, size=size, divergence=shown)
        agreed = given = sure = 0.0
        count = sum(len(out) for out in answers)
        for out, logs in zip(answers, self.table.answers, strict=True):
            best, is_number = out.argmax(1), _are_numbers(out)
            p = logs.exp()
            agreed += float(over_positions((best == logs.argmax(1)) & is_number).sum())
            left = p.gather(1, best.unsqueeze(1)).squeeze(1) * is_number
            given += float(over_positions(left).sum())
            sure += float(over_positions(p.amax(1)).sum())
        right = self._accuracy(answers)
        if right is None:
            chance = 1 / self.table.answers[0].shape[1]
            expected = (1 - given / sure) / (1 - chance / (sure / count))
            return Rival(
                name=name, repaired=repaired, size=size, divergence=shown,
                agreement=agreed / count, loss=expected,
            )  # fmt: skip
        whole, chance = self.accuracy or 0.0, self._chance()
        # Of a network that knows no more than chance there is nothing to lose.
        measured = loss(whole, right, chance).value if self._low > chance else None
        return Rival(
            name=name, repaired=repaired, size=size, divergence=shown, agreement=agreed / count,
            accuracy=right, loss=measured,
        )  # fmt: skip

    @property
    def accuracy(self) -> float | None:
        """Return the whole network's share of right answers on the examples of the table."""
        return self._accuracy(self.table.answers)

    def _accuracy(self, answers: Sequence[torch.Tensor]) -> float | None:
        right = self._right(answers)
        return None if right is None else float(right.sum()) / len(right)

    def _right(self, answers: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """Return which examples are answered right; of those with several positions, the share."""
        if self.labels is None:
            return None
        pairs = zip(answers, self.labels, strict=True)
        return torch.cat(
            [
                over_positions((given.argmax(1) == labels) & _are_numbers(given))
                for given, labels in pairs
            ]
        )

    @functools.cached_property
    def _low(self) -> float:
        """Return the lower end of the 95 % interval of the whole network's accuracy."""
        right = self._right(self.table.answers)
        assert right is not None  # noqa: S101
        if self.table.answers[0].ndim > 2:
            return interval(right.cpu().numpy())[0]
        return wilson(int(right.sum()), len(right))[0]

    def _chance(self) -> float:
        """Return the share of the commonest label: of positions, then of examples."""
        classes = self.table.answers[0].shape[1]
        shares = [
            labels.flatten().bincount(minlength=classes).double() * len(labels) / labels.numel()
            for labels in self.labels or ()
        ]
        counts = torch.stack(shares).sum(0)
        return float(counts.max() / counts.sum())

    def layers(self, settings: Settings) -> tuple[PlannedLayer, ...]:
        """Tell of each layer what stays, and what it costs alone and with those before it."""
        changed, joint, rows = deep_copy(self.whole), deep_copy(self.whole), []
        for name, setting in settings.items():
            _, before = self.knife.cut(changed, name, setting)
            alone = self.mending.yardstick.value(changed)
            put_back(before)
            self.knife.cut(joint, name, setting)
            together = self.mending.yardstick.value(joint)
            weight = self.weights[name]
            rows.append(
                PlannedLayer(
                    name=name,
                    parameters=weight.size,
                    setting=float(setting),
                    size=stays(self.knife.way, weight, setting) / weight.size,
                    alone=alone if math.isfinite(alone) else None,
                    jointly=together if math.isfinite(together) else None,
                )
            )
        return tuple(rows)


def _are_numbers(answers: torch.Tensor) -> torch.Tensor:
    """Tell which answers are numbers throughout: an output that is no number is no answer."""
    return ~answers.isnan().any(1)


def _of_weights(
    allocate: Callable[[Any, float], Settings], weights: Any
) -> Callable[[float], Settings]:
    return lambda size: allocate(weights, size)


def _planned(
    whole: nn.Module, anatomy: Anatomy, knife: Knife, keep: Collection[str]
) -> tuple[dict[str, np.ndarray[Any, Any]], list[Skipped]]:
    """Return the weights of the layers that are planned; the others, with the reason."""
    names = list(anatomy.calls)
    for name in keep:
        if name not in names:
            raise UsageError(f"there is no layer {name}; {nearest(name, names)}")
    reasons = dict.fromkeys(keep, "it was to be kept") | anatomy.left
    for name in names:
        if knife.way == "filters" and name not in reasons:
            part = knife.parts.get(name)
            if part is None:
                reasons[name] = "its place in the network is not known"
            elif part.is_output:
                reasons[name] = "its filters are the network's outputs"
            elif part.is_coupled:
                reasons[name] = "its channels are coupled with those of other layers"
    weights = {name: array_of(whole.get_submodule(name)) for name in names if name not in reasons}
    if not weights:
        raise UsageError("no layer is left to plan; keep fewer, or take another way")
    return weights, [Skipped(name=name, reason=reason) for name, reason in reasons.items()]


def _labels(batches: list[Batch], table: Yardstick) -> list[torch.Tensor] | None:
    """Return the labels that are classes, a value an answer; None where there are none."""
    found = []
    for batch, logs in zip(batches, table.answers, strict=True):
        labels = batch.labels
        shape = (batch.size, *logs.shape[2:])
        if not isinstance(labels, torch.Tensor) or tuple(labels.shape) != shape:
            return None
        if labels.is_floating_point() or not table.of_classes:
            return None
        if int(labels.min()) < 0 or int(labels.max()) >= logs.shape[1]:
            raise UsageError(
                f"there are labels from {int(labels.min())} to {int(labels.max())}, but the "
                f"network has {logs.shape[1]} classes"
            )
        found.append(labels.to(logs.device))
    return found
