"""Repair a network that somebody pruned, quantised, merged or reset: nothing is trained."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from planescope.criticality.options import EXAMPLES, RepairedBy
from planescope.criticality.plan.opening import check_pair, filled, opened
from planescope.criticality.plan.record import Repair, RepairedLayer
from planescope.files.errors import UsageError
from planescope.files.optional import required

if TYPE_CHECKING:
    import torch
    from torch import nn

    from planescope.criticality.plan.divergence import Yardstick
    from planescope.criticality.plan.examples import Examples
    from planescope.criticality.plan.holding import Form
    from planescope.criticality.plan.observation import Anatomy
    from planescope.criticality.plan.passage import Passage
    from planescope.criticality.plan.reconstruction import Before, Reconstruction
    from planescope.criticality.resets.engine.answers import Pick
    from planescope.data.load import DataOptions
    from planescope.data.roles import Unpack
    from planescope.training.run import Run

# (layers done, layers in all, name of the layer)
OnLayer = Callable[[int, int, str], None]


def repair(
    network: nn.Module | Run | str | os.PathLike[str],
    reference: nn.Module | Run | str | os.PathLike[str],
    *,
    data: Any = None,
    by: RepairedBy = "least squares",
    examples: int = EXAMPLES,
    seed: int = 0,
    unpack: Unpack | None = None,
    output: Pick | None = None,
    architecture: str | nn.Module | None = None,
    data_path: str | os.PathLike[str] | None = None,
    data_options: DataOptions | None = None,
    input_shape: Sequence[int] | None = None,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    trust: bool | str | Collection[str] = False,
    on_layer: OnLayer | None = None,
) -> Repair:
    """Put each layer of a changed network back to where the data of the whole one lie.

    Layer by layer in forward order, on inputs without labels; nothing is trained, shapes, names and
    zeros stay, as do the number of bits of a quantised filter and the rank of a factored layer. A
    layer is kept as repaired only where that lowers the divergence from the reference, beside the
    repair of the others, on every fourth example, which the repair does not see.

    Parameters
    ----------
    network : torch.nn.Module, Run or path
        The changed network (of a run the last snapshot): pruned (masks of ``torch.nn.utils.prune``
        too), quantised in floating point, factored, merged or reset. It is left as it is.
    reference : torch.nn.Module, Run or path
        The whole network, of the same shapes.
    data : DataLoader, Dataset, tensor, iterable of batches, or str
        Inputs as for `planescope.reset`; labels are not looked at. By default synthetic pictures,
        which stand in for natural images of zero mean and unit variance.
    by : {"least squares", "moments"}
        Fit the weights that stay, or put back mean and deviation of each channel (METHOD, section
        7). Filters of more than 8,192 inputs are repaired by moments.
    examples : int
        At most so many are taken: the first, or of a data set so many drawn at random.
    seed : int
        Of what is drawn.
    unpack, output
        As for `planescope.reset`.
    architecture : str or torch.nn.Module, optional
        Of files: a name as for `planescope.networks.build.build`, or a module, which is copied.
    data_path, data_options
        Of a data set by name.
    input_shape, mean, std
        Of synthetic pictures, as for `planescope.sensitivity`.
    trust
        Of runs, as for `planescope.sensitivity`.
    on_layer : callable, optional
        Called with (layers done, layers in all, name), to show progress.

    Returns
    -------
    Repair
        Its `module` is the repaired network.

    Raises
    ------
    UsageError
        If the networks are of other shapes, equal, or hold NaN, or the inputs do not fit.
    CheckpointError
        If a file is missing, damaged or of another network.
    """
    torch = required("torch")
    from planescope.criticality.plan.divergence import Yardstick
    from planescope.criticality.plan.examples import synthetic, take
    from planescope.criticality.resets.engine.borrow import borrowed
    from planescope.data.random_states import generators_of, same_random_states

    if by not in get_args(RepairedBy):
        raise UsageError(f"by={by!r}: repair by one of {', '.join(get_args(RepairedBy))}")
    if examples < 2:
        raise UsageError(f"examples={examples}: give two or more, some to check against")
    given = opened(network, architecture, "network", trust=trust)
    whole = opened(reference, architecture, "reference", trust=trust)
    with same_random_states(*generators_of(data)), torch.no_grad():
        own, other = (borrowed(one.module, whole=False) for one in (given, whole))
        check_pair(own, other)
        device = next((t.device for t in other.parameters()), torch.device("cpu"))
        notes: list[str] = []
        if data is None:
            inputs, notes = synthetic(
                other, input_shape or whole.input_shape or given.input_shape, most=examples,
                seed=seed, pick=output, mean=mean, std=std,
            )  # fmt: skip
        taken = take(
            inputs if data is None else data,
            other,
            most=examples,
            device=device,
            unpack=unpack,
            seed=seed,
            data_path=data_path,
            data_options=data_options,
        )
        yardstick = Yardstick.of(other, taken.check, output)
        mended = Mending.of(other, taken, yardstick, by=by, seed=seed)
        before = yardstick.value(own)
        if before == float("inf"):
            raise UsageError(f"{given.source}: gives NaN or an infinity on these inputs")
        layers, after = mended.repair(own, before, on_layer=on_layer)
    return Repair(
        source=given.source,
        reference=whole.source,
        by=by,
        inputs="synthetic pictures" if data is None else taken.name,
        fitted=taken.fitted,
        checked=taken.checked,
        measure=yardstick.name,
        before=before,
        after=after,
        layers=layers,
        notes=(*notes, *taken.notes),
        module=filled(given.module, own),
    )


def _second_half(on_layer: OnLayer, layers: int, number: int, name: str) -> None:
    on_layer(layers + number, 2 * layers, name)


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
        from planescope.criticality.plan.observation import look_at
        from planescope.criticality.plan.reconstruction import Reconstruction

        anatomy = look_at(whole, taken.fit[0])
        return cls(Reconstruction(whole, anatomy, taken.fit, seed), anatomy, yardstick, by)

    def repair(
        self,
        changed: nn.Module,
        before: float,
        *,
        forms: Mapping[str, Form | None] | None = None,
        on_layer: OnLayer | None = None,
    ) -> tuple[tuple[RepairedLayer, ...], float]:
        """Repair a network in place, and give what was done and the measure at the end.

        A layer whose form is None stays as it is.
        """
        from planescope.criticality.plan.passage import Passage

        names = list(self.anatomy.calls)
        passage = None
        if self.by == "least squares":
            passage = Passage.of(changed, self.reconstruction.batches, self.anatomy)
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
        from planescope.criticality.plan.divergence import is_less
        from planescope.criticality.plan.reconstruction import put_back, swap

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
        from planescope.criticality.plan.holding import form_of, weight_of
        from planescope.criticality.plan.reconstruction import LeftError

        same = "it gives what it gives in the reference"
        reason, by = None, self.by
        own = weight_of(changed.get_submodule(name))
        if form is None:
            form = form_of(own, weight_of(self.reconstruction.whole.get_submodule(name)))
            form = dataclasses.replace(form, removed=self._gone(changed, name, own))
        if by == "least squares":
            try:
                done = self.reconstruction.least_squares(changed, name, form, passage)
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
        """Filters whose weights are 0, as is what is added behind them: somebody removed them."""
        place = self.anatomy.norms.get(name, name)
        bias = changed.get_submodule(place)._parameters.get("bias")
        if bias is None or bias.shape != weight.shape[:1]:
            return None
        gone = (weight.flatten(1) == 0).all(1) & (bias == 0)
        return gone.nonzero()[:, 0].cpu() if bool(gone.any()) else None
