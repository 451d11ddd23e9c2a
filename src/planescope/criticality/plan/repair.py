"""Repair a network that somebody pruned, quantised, merged or reset: nothing is trained."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from planescope.criticality.plan.record import Repair, RepairedLayer
from planescope.files.errors import UsageError, nearest
from planescope.files.optional import required

if TYPE_CHECKING:
    import torch
    from torch import nn

    from planescope.criticality.plan.divergence import Yardstick
    from planescope.criticality.plan.examples import Examples
    from planescope.criticality.plan.holding import Form
    from planescope.criticality.plan.observation import Anatomy
    from planescope.criticality.plan.reconstruction import Before, Reconstruction
    from planescope.criticality.resets.answers import Pick
    from planescope.data.load import DataOptions
    from planescope.data.loaders import Unpack

By = Literal["least squares", "moments"]
WAYS = ("least squares", "moments")
# Examples that are taken of what a user gives.
EXAMPLES = 400
# (layers done, layers in all, name of the layer)
OnLayer = Callable[[int, int, str], None]


def repair(
    network: nn.Module | str | os.PathLike[str],
    reference: nn.Module | str | os.PathLike[str],
    *,
    data: Any = None,
    by: By = "least squares",
    examples: int = EXAMPLES,
    seed: int = 0,
    unpack: Unpack | None = None,
    output: Pick | None = None,
    architecture: str | nn.Module | None = None,
    data_path: str | os.PathLike[str] | None = None,
    data_options: DataOptions | None = None,
    input_shape: tuple[int, ...] | None = None,
    on_layer: OnLayer | None = None,
) -> Repair:
    """Put each layer of a changed network back to where the data of the whole one lie.

    Layer by layer in forward order, on inputs without labels; nothing is trained, shapes, names and
    zeros stay, as do the number of bits of a quantised filter and the rank of a factored layer. A
    layer is kept as repaired only where that lowers the divergence from the reference, beside the
    repair of the others, on every fourth example, which the repair does not see.

    Parameters
    ----------
    network : torch.nn.Module or path
        The changed network: pruned (masks of ``torch.nn.utils.prune`` too), quantised in floating
        point, factored, merged or reset. It is left as it is.
    reference : torch.nn.Module or path
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
    input_shape : tuple of int, optional
        Channels, height and width of synthetic pictures; without it 32 pixels a side.
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
    from planescope.criticality.resets.borrow import borrowed, generators_of, same_random_states

    if by not in WAYS:
        raise UsageError(f"by={by!r}: repair by one of {', '.join(WAYS)}")
    if examples < 2:
        raise UsageError(f"examples={examples}: give two or more, some to check against")
    given, source = opened(network, architecture, "network")
    whole, name = opened(reference, architecture, "reference")
    with same_random_states(*generators_of(data)), torch.no_grad():
        own, other = borrowed(given, whole=False), borrowed(whole, whole=False)
        check_pair(own, other)
        device = next((t.device for t in other.parameters()), torch.device("cpu"))
        notes: list[str] = []
        if data is None:
            inputs, notes = synthetic(other, input_shape, most=examples, seed=seed, pick=output)
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
            raise UsageError(f"{source}: gives NaN or an infinity on these inputs")
        layers, after = mended.repair(own, before, on_layer=on_layer)
    return Repair(
        source=source,
        reference=name,
        by=by,
        inputs="synthetic pictures" if data is None else taken.name,
        fitted=taken.fitted,
        checked=taken.checked,
        measure=yardstick.name,
        before=before,
        after=after,
        layers=layers,
        notes=(*notes, *taken.notes),
        module=filled(given, own),
    )


def opened(
    network: Any, architecture: str | nn.Module | None, what: str, /
) -> tuple[nn.Module, str]:
    """Return the module that is meant, and what it is called."""
    from torch import nn

    from planescope.networks.module import unwrapped

    if isinstance(network, nn.Module):
        module = unwrapped(network)
        return module, type(module).__name__
    if not isinstance(network, str | os.PathLike):
        raise UsageError(f"the {what} is a {type(network).__name__}; give a module or a file")
    if architecture is None:
        raise UsageError(f"{network}: a checkpoint does not tell its network; give architecture=")
    return load_file(network, architecture), str(network)


def load_file(path: str | os.PathLike[str], architecture: str | nn.Module, /) -> nn.Module:
    """Load the weights of a file into the network that they belong to."""
    from planescope.criticality.resets.trained import state_of, with_weights
    from planescope.networks.parametrisations import resolved

    return with_weights(architecture, resolved(state_of(path)), path)


def check_pair(changed: nn.Module, whole: nn.Module, /) -> None:
    """Refuse two networks of other shapes, equal ones, and weights that are no numbers."""
    own, other = acting(changed), acting(whole)
    for name, tensor in other.items():
        if name not in own:
            raise UsageError(
                f"the reference has {name}, which the network has not; {nearest(name, own)}"
            )
        if own[name].shape != tensor.shape:
            shapes = " and ".join("×".join(map(str, t.shape)) for t in (tensor, own[name]))
            raise UsageError(f"{name} has shapes {shapes} in the reference and the network")
    if extra := [name for name in own if name not in other]:
        raise UsageError(f"the network has {extra[0]}, which the reference has not")
    check_finite(own, "the network")
    check_finite(other, "the reference")
    if all(
        bool((own[name] == tensor.to(own[name].device)).all()) for name, tensor in other.items()
    ):
        raise UsageError(
            "the network is its reference: no weight differs; give the changed one first, then "
            "the whole one"
        )


def check_finite(tensors: Mapping[str, torch.Tensor], what: str, /) -> None:
    """Refuse weights that are no numbers."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UsageError(f"{what} holds NaN or an infinity in {name}")


def acting(module: nn.Module, /) -> dict[str, torch.Tensor]:
    """Tensors of a network by name, a pruned weight as it acts; counters are left out."""
    from planescope.criticality.plan.holding import weight_of
    from planescope.criticality.plan.observation import is_pruned

    found = {
        name: tensor.detach()
        for name, tensor in module.state_dict().items()
        if hasattr(tensor, "shape") and not name.endswith("num_batches_tracked")
    }
    for name, part in module.named_modules():
        if is_pruned(part):
            prefix = f"{name}." if name else ""
            del found[f"{prefix}weight_orig"], found[f"{prefix}weight_mask"]
            found[f"{prefix}weight"] = weight_of(part)
    return found


def filled(given: nn.Module, own: nn.Module, /) -> nn.Module:
    """Copy a network as it is, with the tensors of another of its kind."""
    from planescope.networks.copies import deep_copy

    made = deep_copy(given)
    made.load_state_dict(own.state_dict())
    return made


def _is_less(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Tell whether a mean over examples is lower by two standard errors of the pairs."""
    off = one - other
    if not bool(off.isfinite().all()):
        return bool(one.mean() < other.mean())
    return bool(off.mean() + 2 * off.std(correction=0) / len(off) ** 0.5 < 0)


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
        forms: dict[str, Form] | None = None,
        on_layer: OnLayer | None = None,
    ) -> tuple[tuple[RepairedLayer, ...], float]:
        """Repair a network in place, and give what was done and the measure at the end."""
        names = list(self.anatomy.calls)
        done: dict[str, tuple[str, Before]] = {}
        reasons: dict[str, str | None] = {}
        for number, name in enumerate(names):
            if on_layer is not None:
                on_layer(number, 2 * len(names), name)
            by, overwritten, reasons[name] = self._tried(changed, name, (forms or {}).get(name))
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
        from planescope.criticality.plan.reconstruction import put_back, swap

        values: dict[str, tuple[bool, float]] = {}
        least = self.yardstick.of_examples(changed)
        for number, (name, (_, overwritten)) in enumerate(reversed(done.items())):
            if on_layer is not None:
                on_layer(number, name)
            repaired = swap(overwritten)
            without = self.yardstick.of_examples(changed)
            kept = not _is_less(without, least)
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
        self, changed: nn.Module, name: str, form: Form | None
    ) -> tuple[str, Before | None, str | None]:
        from planescope.criticality.plan.holding import form_of, weight_of
        from planescope.criticality.plan.reconstruction import LeftError

        same = "it gives what it gives in the reference"
        reason, by = None, self.by
        if by == "least squares":
            whole = weight_of(self.reconstruction.whole.get_submodule(name))
            wanted = form or form_of(weight_of(changed.get_submodule(name)), whole)
            try:
                done = self.reconstruction.least_squares(changed, name, wanted)
            except LeftError as exc:
                reason, by = f"by moments: {exc}", "moments"
            else:
                return by, done, None if done is not None else same
        try:
            done = self.reconstruction.moments(changed, name)
        except LeftError as exc:
            return by, None, str(exc)
        return by, done, reason if done is not None else same
