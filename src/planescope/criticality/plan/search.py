"""Plan a smaller network: rival allocations at one size, each repaired, and the nearest taken."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from planescope.criticality.confidence import wilson
from planescope.criticality.definition import loss
from planescope.criticality.plan.allocation import RIVALS, Settings, check_size, stays
from planescope.criticality.plan.planned import Plan, PlannedLayer, Rival
from planescope.criticality.plan.repair import (
    EXAMPLES,
    Mending,
    acting,
    check_finite,
    filled,
    opened,
)
from planescope.criticality.replacements import of_bits, of_rank, pruned
from planescope.files.errors import UsageError, nearest
from planescope.files.optional import required

if TYPE_CHECKING:
    import torch
    from torch import nn

    from planescope.criticality.plan.divergence import Yardstick
    from planescope.criticality.plan.examples import Examples
    from planescope.criticality.plan.holding import Form
    from planescope.criticality.resets.answers import Pick
    from planescope.data.load import DataOptions
    from planescope.data.loaders import Batch, Unpack

# Sizes, and bits, that are looked at for a budget.
_SIZES = tuple(Fraction(n, 20) for n in range(1, 20))
_BITS = tuple(Fraction(n) for n in range(2, 9))
# (tries done, tries in all, what is tried)
OnTry = Callable[[int, int, str], None]


def plan(
    model: nn.Module | str | os.PathLike[str],
    *,
    way: str = "prune",
    size: float | None = None,
    bits: float | None = None,
    budget: float | None = None,
    data: Any = None,
    repair: bool = True,
    keep: Collection[str] = (),
    examples: int = EXAMPLES,
    seed: int = 0,
    network: str | nn.Module | None = None,
    unpack: Unpack | None = None,
    output: Pick | None = None,
    data_path: str | os.PathLike[str] | None = None,
    data_options: DataOptions | None = None,
    input_shape: tuple[int, ...] | None = None,
    on_try: OnTry | None = None,
) -> Plan:
    """Make a smaller network out of a trained one, and tell what it costs. Nothing is trained.

    The size is shared out among the layers in the ways that others use; each is repaired by least
    squares, and the one nearest to the whole network on examples kept back is the plan. The table
    compares them on examples that chose nothing, where there are enough.

    Parameters
    ----------
    model : torch.nn.Module or path
        Trained; of a file with `network`. It is left as it is.
    way : {"prune", "rank", "bits"}
        METHOD, section 7.
    size : float
        Share of the weights of the planned layers that stays; of a rank, in two factors.
    bits : float
        Of ``way="bits"`` in place of a size: mean over weights.
    budget : float
        In place of either: the smallest network whose loss on the examples of the table is no more
        (METHOD, section 7: measured with labels, else expected).
    data : as for `planescope.repair`
        With labels the loss is measured. By default synthetic pictures.
    repair : bool
        False compares the allocations as they are.
    keep : collection of str
        Layers that stay whole.
    examples : int
        For repairing; as many more for the table.
    seed, unpack, output, data_path, data_options, input_shape
        As for `planescope.repair`.
    network : str or torch.nn.Module, optional
        Of a file.
    on_try : callable, optional
        Called with (tries done, tries in all, name), to show progress.

    Returns
    -------
    Plan

    Raises
    ------
    UsageError
        If no setting reaches the size or budget, a name in `keep` is not there, or the inputs do
        not fit.
    CheckpointError
        If the file is missing, damaged or of another network.
    """
    torch = required("torch")
    from planescope.criticality.resets.borrow import borrowed, generators_of, same_random_states

    asked = _asked(way, size, bits, budget)
    given, source = opened(model, network, "network")
    with same_random_states(*generators_of(data)), torch.no_grad():
        whole = borrowed(given, whole=False)
        check_finite(acting(whole), f"{source}:")
        notes: list[str] = []
        inputs = data
        if data is None:
            from planescope.criticality.plan.examples import synthetic

            inputs, notes = synthetic(whole, input_shape, most=2 * examples, seed=seed, pick=output)
        bench = Bench.of(
            whole, inputs, keep=keep, examples=examples, seed=seed, unpack=unpack, output=output,
            data_path=data_path, data_options=data_options,
        )  # fmt: skip
        if asked is None:
            assert budget is not None  # noqa: S101
            tries = _within(bench, way, budget, repair=repair, on_try=on_try)
        else:
            tries = bench.tries(way, asked, repair=repair, on_try=on_try)
        best = min(tries, key=lambda one: one.checked)
        layers = bench.layers(way, best.settings)
    method = "synthetic" if data is None else bench.method
    return Plan(
        source=source,
        way=way,
        asked=float(best.asked),
        method=method,
        inputs="synthetic pictures" if data is None else bench.taken.name,
        fitted=bench.taken.fitted,
        checked=bench.taken.checked,
        examples=sum(batch.size for batch in bench.table.batches),
        measure=bench.table.name,
        accuracy=bench.accuracy,
        chosen=best.rival,
        rivals=tuple(one.rival for one in tries),
        layers=layers,
        notes=(*notes, *bench.notes, *bench.taken.notes),
        module=filled(given, best.module),
    )


def _asked(way: str, size: float | None, bits: float | None, budget: float | None) -> float | None:
    """Size or bits; None where a budget is given."""
    if way not in RIVALS:
        raise UsageError(f"way {way!r} is not planned; take one of {', '.join(RIVALS)}")
    if [size, bits, budget].count(None) != 2:
        raise UsageError("give one of size, bits and budget")
    if (bits is not None) != (way == "bits") and budget is None:
        raise UsageError("bits= goes with the way bits, size= with the others")
    if budget is not None and not 0 < budget < 1:
        raise UsageError(f"a budget of {budget:g}: give a loss between 0 and 1")
    return size if bits is None else bits


@dataclass(frozen=True, kw_only=True, eq=False)
class Try:
    """One allocation, applied."""

    asked: float
    settings: Settings
    module: nn.Module
    checked: float
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
    """

    whole: nn.Module
    mending: Mending
    taken: Examples
    table: Yardstick
    labels: list[torch.Tensor] | None
    weights: dict[str, np.ndarray[Any, Any]]
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls, whole: nn.Module, data: Any, /, *, keep: Collection[str], examples: int, seed: int,
        unpack: Unpack | None, output: Pick | None,
        data_path: str | os.PathLike[str] | None, data_options: DataOptions | None,
    ) -> Bench:  # fmt: skip
        """Take inputs, some for the table, and look at the network."""
        import torch

        from planescope.criticality.plan.divergence import Yardstick
        from planescope.criticality.plan.examples import halves, take
        from planescope.criticality.plan.holding import weight_of

        device = next((t.device for t in whole.parameters()), torch.device("cpu"))
        both = take(
            data, whole, most=2 * examples, device=device, unpack=unpack, seed=seed,
            data_path=data_path, data_options=data_options,
        )  # fmt: skip
        taken, rest = halves(both, examples)
        notes = []
        if not rest:
            rest = taken.check
            notes.append(
                f"there are {both.fitted + both.checked} examples, none left for the table: it is "
                "of those that chose the plan"
            )
        check = Yardstick.of(whole, taken.check, output)
        mending = Mending.of(whole, taken, check, by="least squares", seed=seed)
        names = list(mending.anatomy.calls)
        for name in keep:
            if name not in names:
                raise UsageError(f"there is no layer {name}; {nearest(name, names)}")
        weights = {
            name: weight_of(whole.get_submodule(name)).cpu().numpy()
            for name in names
            if name not in keep
        }
        if not weights:
            raise UsageError("no layer is left to plan; keep fewer")
        table = Yardstick.of(whole, rest, output)
        return cls(whole, mending, taken, table, _labels(rest, table), weights, notes)

    @property
    def method(self) -> str:
        """Return the way in which the loss is told."""
        return "unlabelled" if self.labels is None else "measured"

    def tries(self, way: str, asked: float, *, repair: bool, on_try: OnTry | None) -> list[Try]:
        """Share a size out in all ways, as they are and repaired."""
        check_size(way, asked, self.weights)
        found: list[Try] = []
        total = len(RIVALS[way]) * (1 + repair)
        for name, allocate in RIVALS[way].items():
            settings = allocate(self.weights, asked)
            for repaired in (False, True)[: 1 + repair]:
                if on_try is not None:
                    on_try(len(found), total, f"{name}{', repaired' if repaired else ''}")
                try:
                    found.append(self._try(way, asked, name, settings, repaired=repaired))
                except KeyboardInterrupt:
                    if not found:
                        raise
                    self.notes.append(
                        f"stopped after {len(found)} of {total} tries: the best of these is taken"
                    )
                    return found
        return found

    def _try(self, way: str, asked: float, name: str, settings: Settings, *, repaired: bool) -> Try:
        from planescope.networks.copies import deep_copy

        changed = deep_copy(self.whole)
        forms = {layer: _apply(changed, layer, way, setting) for layer, setting in settings.items()}
        value = self.mending.yardstick.value(changed)
        if repaired:
            _, value = self.mending.repair(changed, value, forms=forms)
        kept = sum(stays(way, self.weights[n], s) for n, s in settings.items())
        size = kept / sum(w.size for w in self.weights.values())
        rival = self._told(changed, name, repaired=repaired, size=size)
        return Try(asked=asked, settings=settings, module=changed, checked=value, rival=rival)

    def _told(self, changed: nn.Module, name: str, *, repaired: bool, size: float) -> Rival:
        """Hold a network against the whole one on the examples of the table."""
        answers = self.table.asked(changed)
        divergence = float(self.table.compared(answers).mean())
        shown = divergence if math.isfinite(divergence) else None
        if not self.table.of_classes:
            return Rival(name=name, repaired=repaired, size=size, divergence=shown)
        agreed = given = sure = count = 0.0
        for out, logs in zip(answers, self.table.answers, strict=True):
            best = out.argmax(1)
            p = logs.exp()
            count += best.numel()
            agreed += float((best == logs.argmax(1)).sum())
            given += float(p.gather(1, best.unsqueeze(1)).sum())
            sure += float(p.amax(1).sum())
        right = self._accuracy(answers)
        if right is None:
            chance = 1 / self.table.answers[0].shape[1]
            expected = (1 - given / sure) / (1 - chance / (sure / count))
            return Rival(
                name=name, repaired=repaired, size=size, divergence=shown,
                agreement=agreed / count, loss=expected,
            )  # fmt: skip
        whole, chance = self.accuracy or 0.0, self._chance()
        low, _ = wilson(round(whole * count), round(count))
        # Of a network that knows no more than chance there is nothing to lose.
        measured = loss(whole, right, chance).value if low > chance else None
        return Rival(
            name=name, repaired=repaired, size=size, divergence=shown, agreement=agreed / count,
            accuracy=right, loss=measured,
        )  # fmt: skip

    @property
    def accuracy(self) -> float | None:
        """Return the whole network's share of right answers on the examples of the table."""
        return self._accuracy(self.table.answers)

    def _accuracy(self, answers: Sequence[torch.Tensor]) -> float | None:
        if self.labels is None:
            return None
        pairs = list(zip(answers, self.labels, strict=True))
        right = sum(int((given.argmax(1) == labels).sum()) for given, labels in pairs)
        count = sum(int(labels.numel()) for _, labels in pairs)
        return right / count

    def _chance(self) -> float:
        import torch

        every = torch.cat([labels.flatten() for labels in self.labels or ()])
        return float(every.bincount().max()) / len(every)

    def layers(self, way: str, settings: Settings) -> tuple[PlannedLayer, ...]:
        """Tell of each layer what stays, and what it costs alone."""
        from planescope.criticality.plan.holding import hold, weight_of
        from planescope.networks.copies import deep_copy

        changed, rows = deep_copy(self.whole), []
        for name, setting in settings.items():
            layer = changed.get_submodule(name)
            whole = weight_of(layer).clone()
            _apply(changed, name, way, setting)
            alone = self.mending.yardstick.value(changed)
            hold(layer, whole)
            weight = self.weights[name]
            rows.append(
                PlannedLayer(
                    name=name,
                    parameters=weight.size,
                    setting=float(setting),
                    size=stays(way, weight, setting) / weight.size,
                    alone=alone if math.isfinite(alone) else None,
                )
            )
        return tuple(rows)


def _labels(batches: list[Batch], table: Yardstick) -> list[torch.Tensor] | None:
    """Labels that are classes, a value an answer; None where there are none."""
    import torch

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


def _apply(changed: nn.Module, name: str, way: str, setting: Fraction) -> Form:
    """Take away from a layer, and say what has to stay when it is repaired."""
    import torch

    from planescope.criticality.plan.holding import Form, hold, weight_of

    layer = changed.get_submodule(name)
    held = weight_of(layer)
    weight = held.cpu().numpy()
    every = torch.ones(len(weight), weight[0].size, dtype=torch.bool)
    if way == "prune":
        new = pruned(weight, setting)
        form = Form(stays=torch.from_numpy(new != 0).flatten(1))
    elif way == "bits":
        new = of_bits(weight, int(setting))
        most = 2 ** (int(setting) - 1) - 1
        largest = torch.from_numpy(weight).double().flatten(1).abs().amax(1)
        form = Form(stays=every, most=most, steps=largest / most)
    else:
        rank, largest_rank = int(setting), min(every.shape)
        new = of_rank(weight, Fraction(rank, largest_rank))
        form = Form(stays=every, rank=rank if rank < largest_rank else None)
    hold(layer, torch.from_numpy(np.ascontiguousarray(new)).to(held))
    return form


def _within(
    bench: Bench, way: str, budget: float, *, repair: bool, on_try: OnTry | None
) -> list[Try]:
    """Find by halves the smallest size whose loss is within a budget."""
    if not bench.table.of_classes:
        raise UsageError("the network's outputs are no classes: there is no loss to hold a budget")
    sizes = _BITS if way == "bits" else _SIZES
    low, high, best = 0, len(sizes), None
    least = math.inf
    while low < high:
        middle = (low + high) // 2
        tries = bench.tries(way, float(sizes[middle]), repair=repair, on_try=on_try)
        found = min(tries, key=lambda one: one.checked).rival.loss
        least = least if found is None else min(least, found)
        if found is not None and found <= budget:
            high, best = middle, tries
        else:
            low = middle + 1
    if best is None:
        raise UsageError(
            f"no size keeps the loss within {budget:g}; the least that was reached is {least:.4g}"
        )
    return best
