"""Layers of changed networks, repaired one after the other, and kept where that helps.

To import this is to import torch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planescope.criticality.plan.divergence import Yardstick, is_less
from planescope.criticality.plan.fit.changes import Before, put_back, swap
from planescope.criticality.plan.fit.holding import Form, form_of, weight_of
from planescope.criticality.plan.fit.observation import (
    Anatomy,
    CallsError,
    LeftError,
    look_at,
)
from planescope.criticality.plan.fit.passage import Passage
from planescope.criticality.plan.fit.reconstruction import Reconstruction
from planescope.criticality.plan.record import RepairedLayer

if TYPE_CHECKING:
    import torch
    from torch import nn

    from planescope.criticality.plan.examples import Examples

# (layers done, layers in all, name of the layer)
OnLayer = Callable[[int, int, str], None]


@dataclass(eq=False)
class Mending:
    """The means to repair one changed network after another.

    Attributes
    ----------
    reconstruction : Reconstruction
    anatomy : Anatomy
    yardstick : Yardstick
        On the examples that are kept back.
    by : str
    """

    reconstruction: Reconstruction
    anatomy: Anatomy
    yardstick: Yardstick
    by: str

    @classmethod
    def of(
        cls, whole: nn.Module, taken: Examples, yardstick: Yardstick, *, by: str, seed: int
    ) -> Mending:
        """Look at the whole network."""
        anatomy = look_at(whole, taken.fit[0])
        return cls(Reconstruction(whole, anatomy, taken.fit, seed), anatomy, yardstick, by)

    def repair(
        self,
        changed: nn.Module,
        before: float,
        *,
        forms: Mapping[str, Form | None] | None = None,
        on_layer: OnLayer | None = None,
        like: nn.Module | None = None,
    ) -> tuple[tuple[RepairedLayer, ...], float]:
        """Repair a network in place, and give what was done and the measure at the end.

        A layer whose form is None stays as it is. `like` is a network of the same parts and code.
        """
        names = list(self.anatomy.calls)
        passage = None
        if self.by == "least squares":
            passage = Passage.of(changed, self.reconstruction.batches, self.anatomy, like)
        done: dict[str, tuple[str, Before]] = {}
        reasons: dict[str, str | None] = {}
        for number, name in enumerate(names):
            if on_layer is not None:
                on_layer(number, 2 * len(names), name)
            if forms is not None and name in forms and forms[name] is None:
                reasons[name] = "it stays as it was put back"
                continue
            by, overwritten, reasons[name] = self._tried(
                changed, name, (forms or {}).get(name), passage
            )
            if overwritten is not None:
                done[name] = by, overwritten
        told = None if on_layer is None else functools.partial(_second_half, on_layer, len(names))
        values, least = self._checked(changed, done, before, told)
        rows = []
        for name in names:
            if name not in done:
                rows.append(RepairedLayer(name=name, reason=reasons[name]))
                continue
            kept, value = values[name]
            if not kept:
                reasons[name] = f"repaired, the {self.yardstick.name} would be higher"
            shown = value if value != float("inf") else None
            rows.append(
                RepairedLayer(
                    name=name, by=done[name][0], kept=kept, without=shown, reason=reasons[name]
                )
            )
        left = [
            RepairedLayer(name=name, reason=reason) for name, reason in self.anatomy.left.items()
        ]
        return (*rows, *left), least

    def _checked(
        self,
        changed: nn.Module,
        done: dict[str, tuple[str, Before]],
        before: float,
        on_layer: Callable[[int, str], None] | None,
    ) -> tuple[dict[str, tuple[bool, float]], float]:
        """Put layers back that the network is nearer to its reference without.

        One layer after the other, from the last, beside the repair of all others: behind a layer
        that is not repaired, the repair of an earlier one may well look like harm. If all of it
        together does not help, all is put back.
        """
        values: dict[str, tuple[bool, float]] = {}
        least = self.yardstick.of_examples(changed)
        for number, (name, (_, overwritten)) in enumerate(reversed(done.items())):
            if on_layer is not None:
                on_layer(number, name)
            repaired = swap(overwritten)
            without = self.yardstick.of_examples(changed)
            kept = not is_less(without, least)
            if kept:
                swap(repaired)
            else:
                least = without
            values[name] = kept, float(without.mean())
        end = float(least.mean())
        if end < before:
            return values, end
        for _, overwritten in reversed(done.values()):
            put_back(overwritten)
        return {name: (False, value) for name, (_, value) in values.items()}, before

    def _tried(
        self, changed: nn.Module, name: str, form: Form | None, passage: Passage | None
    ) -> tuple[str, Before | None, str | None]:
        same = "it gives what it gives in the reference"
        reason, by = None, self.by
        own = weight_of(changed.get_submodule(name))
        if form is None:
            form = form_of(own, weight_of(self.reconstruction.whole.get_submodule(name)))
            form = dataclasses.replace(form, removed=self._gone(changed, name, own))
        if by == "least squares":
            try:
                done = self.reconstruction.least_squares(changed, name, form, passage)
            except CallsError as exc:
                return by, None, str(exc)
            except LeftError as exc:
                reason, by = f"by moments: {exc}", "moments"
            else:
                return by, done, None if done is not None else same
        try:
            done = self.reconstruction.moments(changed, name, form.removed)
        except LeftError as exc:
            return by, None, str(exc)
        return by, done, reason if done is not None else same

    def _gone(self, changed: nn.Module, name: str, weight: torch.Tensor) -> torch.Tensor | None:
        """Return the filters whose weights are 0, as is what is added behind them.

        Somebody removed them.
        """
        place = self.anatomy.norms.get(name, name)
        bias = changed.get_submodule(place)._parameters.get("bias")
        if bias is None or bias.shape != weight.shape[:1]:
            return None
        gone = (weight.flatten(1) == 0).all(1) & (bias == 0)
        return gone.nonzero()[:, 0].cpu() if bool(gone.any()) else None


def _second_half(on_layer: OnLayer, layers: int, number: int, name: str) -> None:
    on_layer(layers + number, 2 * layers, name)
