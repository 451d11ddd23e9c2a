"""Layers of a changed network put back to what the whole one gives (METHOD, section 7: repair).

To import this is to import torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from planescope.criticality.plan.fit.changes import Before, overwrite, put
from planescope.criticality.plan.fit.channels import channel_moments
from planescope.criticality.plan.fit.holding import Form, weight_of
from planescope.criticality.plan.fit.observation import Anatomy, CallsError, LeftError, watch
from planescope.criticality.plan.fit.passage import Passage
from planescope.criticality.plan.fit.patches import patches_at, rows_of, values_at
from planescope.criticality.plan.fit.solutions import Moments, least_squares, of_rank, rounded
from planescope.data.roles import Batch
from planescope.networks.graph.file_graph import FileGraph

# Patches of a layer that weights are fitted to.
PATCHES = 30_000
# Elements of patches that are in memory at once.
_AT_ONCE = 8_000_000
# Bytes of what the whole network gives that are kept.
_KEPT_BYTES = 512 << 20
# Wider filters have second moments that would not fit in memory; they are repaired by moments.
MOST_FAN_IN = 8192


@dataclass(eq=False)
class Reconstruction:
    """The whole network, what it gives, and the inputs that changed ones are fitted on.

    Attributes
    ----------
    whole : torch.nn.Module
        In evaluation mode.
    anatomy : Anatomy
        Of it.
    batches : list of Batch
        To fit on.
    seed : int
        Of the patches that are drawn.
    """

    whole: nn.Module
    anatomy: Anatomy
    batches: Sequence[Batch]
    seed: int = 0
    _values: dict[str, list[torch.Tensor]] = field(default_factory=dict, repr=False)
    _moments: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict, repr=False)
    _counted: dict[tuple[str, int], list[int]] = field(default_factory=dict, repr=False)

    def passes(self, repairs: int, *, goes_on: bool) -> float:
        """Count the passes over the examples that weights are fitted to.

        Parameters
        ----------
        repairs : int
            Of all layers, by least squares.
        goes_on : bool
            Whether a `Passage` saves a pass for each layer, of half a module on average.
        """
        names = list(self.anatomy.calls)
        if not names or not repairs:
            return 0
        groups, start = 0, 0
        while start < len(names):
            start += len(self._together(names[start]))
            groups += 1
        wide = [weight_of(self.whole.get_submodule(name))[0].numel() for name in names]
        by_moments = len([fan_in for fan_in in wide if fan_in > MOST_FAN_IN])
        # Patches are counted once; what the whole network gives is kept where it all fits.
        whole = groups + (groups if groups == 1 else groups * repairs)
        part = 1 if isinstance(self.whole, FileGraph) else 0.5  # a file's graph runs to its end
        fits = 1 if goes_on else part * len(names)
        return whole + repairs * fits + (repairs + 1) * by_moments

    def least_squares(
        self, changed: nn.Module, name: str, form: Form, passage: Passage | None = None
    ) -> Before | None:
        """Fit the weights of a layer that stay; its mean goes into the bias, or the norm behind.

        Parameters
        ----------
        passage : Passage, optional
            Of the changed network on the batches, to save a pass of the layers before.

        Returns
        -------
        list of pairs of tensors, or None
            What was overwritten; None where the layer gives what it gives in the whole network.

        Raises
        ------
        LeftError
            If the layer is too wide, or its form cannot be kept so.
        """
        layer: nn.Module = changed.get_submodule(name)
        weight = weight_of(layer)
        rows = weight.flatten(1).double().cpu()
        groups = int(getattr(layer, "groups", 1))
        if rows.shape[1] > MOST_FAN_IN:
            raise LeftError(f"its filters have {rows.shape[1]} inputs, more than {MOST_FAN_IN}")
        if groups > 1 and form.rank is not None:
            raise LeftError("it has groups and a lower rank")
        gathered = self._gathered(changed, name, layer, groups, passage)
        if gathered is None:
            return None
        norm = self._folding_norm(changed, name)
        bias = layer._parameters.get("bias")
        has_mean = bias is not None or norm is not None
        fitted, shifts = torch.empty_like(rows), []
        size = len(rows) // groups
        for group, moments in enumerate(gathered):
            at = slice(group * size, (group + 1) * size)
            fitted[at] = _fitted(moments, rows[at], _part(form, at), about_mean=has_mean)
        before: Before = []
        overwrite(before, layer, fitted.view_as(weight))
        held = weight_of(layer).flatten(1).double().cpu()  # as it acts, in its own type
        for group, moments in enumerate(gathered):
            shifts.append(moments.shift(held[group * size : (group + 1) * size]))
        shift = torch.cat(shifts)
        if form.removed is not None:  # a constant in its place would keep the filter
            shift[form.removed] = 0
        if bias is not None:
            put(before, bias, shift)
        elif norm is not None:
            mean: torch.Tensor = norm.running_mean
            put(before, mean, mean.double().cpu() - shift)
        return before

    def moments(
        self, changed: nn.Module, name: str, removed: torch.Tensor | None = None
    ) -> Before | None:
        """Put back mean and deviation of each channel, in the norm behind a layer or in itself.

        Channels of filters that were removed stay as they are.

        Raises
        ------
        LeftError
            If there is no place for them.
        """
        self._count([*self.anatomy.calls])
        if not self._is_steady(name):
            raise CallsError
        place = name
        if (norm := self.anatomy.norms.get(name)) is not None:
            place = norm
        target = changed.get_submodule(place)
        own = target._parameters
        has_weight = own.get("weight") is not None or (place == name and "weight_orig" in own)
        if own.get("bias") is None or not has_weight:
            raise LeftError(
                "it has no bias, and no norm behind it, to take a mean"
                if place == name
                else "the norm behind it scales and shifts nothing"
            )
        if own["bias"].ndim != 1:
            raise LeftError("the norm behind it has no value a channel")
        want_mean, want_std = self._wanted(place, name)
        mean, std = channel_moments(changed, place, self.anatomy.calls[name], self.batches)
        if torch.equal(mean, want_mean) and torch.equal(std, want_std):
            return None
        dead = std <= 1e-6 * mean.abs()
        scale = torch.where(dead, 1.0, want_std / torch.where(dead, 1.0, std))
        bias = target._parameters["bias"].detach().double().cpu()
        moved = torch.where(dead, want_mean - mean + bias, want_mean + scale * (bias - mean))
        if removed is not None:
            scale[removed], moved[removed] = 1.0, bias[removed]
        before: Before = []
        weight = weight_of(target) if place == name else target._parameters["weight"].detach()
        wide = scale.view(-1, *[1] * (weight.ndim - 1))
        overwrite(before, target, weight.double().cpu() * wide)
        put(before, target._parameters["bias"], moved)
        return before

    def _wanted(self, place: str, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        if place not in self._moments:
            calls = self.anatomy.calls[name]
            self._moments[place] = channel_moments(self.whole, place, calls, self.batches)
        return self._moments[place]

    def _folding_norm(self, changed: nn.Module, name: str) -> nn.Module | None:
        """Return the batch norm behind a layer, if it keeps a running mean."""
        norm = self.anatomy.norms.get(name)
        found = None if norm is None else changed.get_submodule(norm)
        return found if isinstance(getattr(found, "running_mean", None), torch.Tensor) else None

    def _gathered(
        self, changed: nn.Module, name: str, layer: nn.Module, groups: int,
        passage: Passage | None,
    ) -> list[Moments] | None:  # fmt: skip
        """Return the second moments by groups, of patches in the changed network.

        None where nothing is off.

        The outputs are those of the whole network; where the norm behind is another there, those
        that this norm makes the whole network's of.
        """
        wanted = self._recorded(name)
        scale, offset = self._through_norm(changed, name)
        found: list[Moments] = []
        off = False
        for number, (batch, rows) in enumerate(self._drawn(name)):

            def take(
                call: int, given: torch.Tensor, output: torch.Tensor,
                number: int = number, rows: Sequence[torch.Tensor] = rows,
                sizes: Sequence[int] = self._counted[name, id(batch)],
            ) -> None:  # fmt: skip
                nonlocal off
                if rows_of(layer, output) != sizes[call]:
                    raise CallsError
                at = rows[call].to(output.device)
                y = wanted[number * len(rows) + call].double() * scale + offset
                off = off or not torch.equal(values_at(layer, output, at).cpu().double(), y)
                for some, own in _chunks(at, y, self._width(layer)):
                    u = patches_at(layer, given, some)
                    if not found:
                        size = y.shape[1] // groups
                        found.extend(Moments.empty(u.shape[2], size) for _ in range(groups))
                    for group, moments in enumerate(found):
                        columns = slice(group * len(moments.y), (group + 1) * len(moments.y))
                        moments.add(u[:, group], own[:, columns])

            seen = None if passage is None else passage.before(name, number)
            if seen is None:
                watch(changed, batch, {name: (self.anatomy.calls[name], take)})
            else:
                take(0, *seen)
        return found if off else None

    @staticmethod
    def _width(layer: nn.Module) -> int:
        weight = weight_of(layer)
        width: int = weight[0].numel() * int(getattr(layer, "groups", 1))
        return max(1, width)

    def _through_norm(self, changed: nn.Module, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and offset from the whole network's outputs to those wanted of the changed layer.

        1 and 0 where both have the same norm behind the layer.
        """
        one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        norm = self._folding_norm(changed, name)
        if norm is None:
            return one, zero
        whole = self.whole.get_submodule(self.anatomy.norms[name])
        pairs = zip(_affine(whole), _affine(norm), strict=True)
        if all(torch.equal(a, b) for a, b in pairs):
            return one, zero
        (gain, shift), (own_gain, own_shift) = _affine(whole), _affine(norm)
        dead = own_gain == 0
        safe = torch.where(dead, 1.0, own_gain)
        return (
            torch.where(dead, 1.0, gain / safe),
            torch.where(dead, 0.0, (shift - own_shift) / safe),
        )

    def _drawn(self, name: str) -> Iterator[tuple[Batch, list[torch.Tensor]]]:
        """Yield the batches, with the numbers of the patches of each call that are taken."""
        draw = torch.Generator().manual_seed(self.seed)
        total = sum(batch.size for batch in self.batches)
        calls = self.anatomy.calls[name]
        self._count([name])
        if not self._is_steady(name):
            raise CallsError
        for batch in self.batches:
            sizes = self._counted[name, id(batch)]
            share = -(-PATCHES * batch.size // (total * calls))
            yield batch, [torch.randperm(size, generator=draw)[:share] for size in sizes]

    def _recorded(self, name: str) -> list[torch.Tensor]:
        """Record what the whole network gives for the patches drawn, by batches and calls."""
        if name not in self._values:
            self._record(name)
        return self._values[name]

    def _record(self, name: str) -> None:
        """Record a layer, and those called behind it as far as memory goes, in one pass."""
        self._values.clear()
        chosen = self._together(name)
        self._count(chosen)
        chosen = [each for each in chosen if each == name or self._is_steady(each)]
        drawn = {each: [rows for _, rows in self._drawn(each)] for each in chosen}
        self._values.update({each: [] for each in chosen})
        for number, batch in enumerate(self.batches):
            wanted = {}
            for each in chosen:
                layer = self.whole.get_submodule(each)

                def take(
                    call: int, _given: torch.Tensor, output: torch.Tensor,
                    each: str = each, layer: nn.Module = layer, number: int = number,
                ) -> None:  # fmt: skip
                    at = drawn[each][number][call].to(output.device)
                    self._values[each].append(values_at(layer, output, at).cpu())

                wanted[each] = (self.anatomy.calls[each], take)
            watch(self.whole, batch, wanted)

    def _is_steady(self, name: str) -> bool:
        """Tell whether each batch has as many calls of a layer, which were counted."""
        calls = self.anatomy.calls[name]
        return all(len(self._counted[name, id(batch)]) == calls for batch in self.batches)

    def _together(self, name: str) -> list[str]:
        """Find a layer, and those behind it, whose outputs fit in memory."""
        names = list(self.anatomy.calls)
        chosen: list[str] = []
        held = 0
        for each in names[names.index(name) :]:
            filters = weight_of(self.whole.get_submodule(each)).shape[0]
            held += 4 * filters * PATCHES
            if chosen and held > _KEPT_BYTES:
                break
            chosen.append(each)
        return chosen

    def _count(self, names: Sequence[str]) -> None:
        """Count the patches of some layers in one pass over each batch."""
        for batch in self.batches:
            if all((name, id(batch)) in self._counted for name in names):
                continue
            wanted = {}
            for name in names:
                sizes = self._counted[name, id(batch)] = []
                layer = self.whole.get_submodule(name)

                def take(
                    _call: int, _given: torch.Tensor, output: torch.Tensor,
                    sizes: list[int] = sizes, layer: nn.Module = layer,
                ) -> None:  # fmt: skip
                    sizes.append(rows_of(layer, output))

                wanted[name] = (self.anatomy.calls[name], take)
            watch(self.whole, batch, wanted, to_the_end=True)


def _part(form: Form, at: slice) -> Form:
    steps = None if form.steps is None else form.steps[at]
    return Form(stays=form.stays[at], most=form.most, steps=steps, rank=form.rank)


def _fitted(moments: Moments, rows: torch.Tensor, form: Form, *, about_mean: bool) -> torch.Tensor:
    """Return the weights of a group of filters, in the form that has to stay."""
    c, b = moments.centred(about_mean=about_mean)
    found = least_squares(c, b, rows, form.stays)
    if form.most is not None and form.steps is not None:
        return rounded(c, found, form.most, form.steps, form.stays)
    if form.rank is not None:
        return of_rank(c, found, form.rank)
    return found


def _affine(norm: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gain and shift of a batch norm with running statistics."""
    mean: torch.Tensor = norm.running_mean.double().cpu()
    gain = (norm.running_var.double().cpu() + norm.eps).rsqrt()
    if norm._parameters.get("weight") is not None:
        gain = gain * norm.weight.detach().double().cpu()
    shift = -gain * mean
    if norm._parameters.get("bias") is not None:
        shift = shift + norm.bias.detach().double().cpu()
    return gain, shift


def _chunks(
    rows: torch.Tensor, values: torch.Tensor, width: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the rows and what belongs to them, so many that their patches fit in memory."""
    size = max(1, _AT_ONCE // width)
    for start in range(0, len(rows), size):
        yield rows[start : start + size], values[start : start + size]
