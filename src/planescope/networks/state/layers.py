"""Named tensors to layers: which of them are layers, of what kind, with which bias and norm.

A state dict holds names and shapes, nothing else. What they do not tell is told by
`StateDict.places` where the file or a graph knows it, and otherwise judged here; the notes say
what had to be assumed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from planescope.files.errors import UsageError
from planescope.hyperplanes.layer import (
    Described,
    Input,
    Kind,
    Layer,
    Layout,
    Pairing,
    Place,
    Skipped,
    StateDict,
    Tensor,
)
from planescope.networks.state import adapters, exclusions
from planescope.networks.state.axes import Axes, Wanted, Weight, reordered
from planescope.networks.state.layout import lay_out, named
from planescope.networks.state.pairing import FoundNorm, Norms, find_norms, norms_beside, pair
from planescope.networks.state.parametrisations import resolved
from planescope.networks.state.sharing import notes_of_widths, shared
from planescope.networks.state.stored import (
    StoredWeight,
    left_over,
    loose_biases,
    sifted,
    stored_weights,
)

__all__ = ["Hints", "describe", "find_layers", "natural"]

_VALUE = re.compile(r"(?<=.)[./](raw_)?value$")


@dataclass(frozen=True, kw_only=True)
class Hints:
    """Facts that a user gives about a file that does not say them itself.

    Attributes
    ----------
    axes : Wanted
        How weights lie.
    norms : mapping of str to str or None
        The batch norm behind each layer, or None.
    eps : float or None
        Epsilon of the norms whose own the file does not hold.
    """

    axes: Wanted = field(default_factory=Wanted)
    norms: Mapping[str, str | None] = field(default_factory=dict)
    eps: float | None = None

    @property
    def given(self) -> tuple[str, ...]:
        """Return the options that the user gave."""
        asked = {
            "--layout": bool(self.axes.layouts),
            "--transposed": self.axes.transposed is not None,
            "--norms": bool(self.norms),
            "--eps": self.eps is not None,
        }
        return tuple(name for name, is_given in asked.items() if is_given)


def find_layers(
    state: StateDict, /, *, transposed: re.Pattern[str] | None = None
) -> tuple[list[Layer], list[Skipped]]:
    """Find the layers of a state dict, of every kind, and what only looks like one.

    Raises
    ------
    UsageError
        As `describe`.
    """
    found = describe(state, Hints(axes=Wanted(transposed=transposed)))
    return list(found.layers), list(found.skipped)


def describe(state: StateDict, hints: Hints | None = None, /) -> Described:
    """Find the layers of a state dict, of every kind.

    Parameters
    ----------
    hints : Hints, optional
        What the user says.

    Raises
    ------
    UsageError
        If `transposed` matches no convolution, or a norm is given that does not fit.
    """
    hints = hints or Hints()
    state = resolved(_with_plain_names(state))
    parts, changed = adapters.adapted(state.tensors)
    tensors = {name: t for name, t in state.tensors.items() if name not in parts}
    norms = find_norms(tensors)
    stored = stored_weights(tensors, norms)
    of_adapters = adapters.of_adapters(changed, (each.module for each in stored))
    of_copies = adapters.of_copies(each.module for each in stored)
    reasons = {**state.reasons, **of_adapters, **of_copies}
    kept, skipped = sifted(stored, state, tensors, reasons)
    kept.sort(key=_network_order(state))
    near = norms_beside(norms.found)
    laid = lay_out(
        [_weight(each, near) for each in kept if each.module not in state.places], hints.axes
    )
    layers: list[Layer] = []
    for each in kept:
        layer = _layer(each, laid.axes.get(each.module), state.places.get(each.module), hints.axes)
        if isinstance(layer, Skipped):
            skipped.append(layer)
        else:
            layers.append(layer)
    if hints.axes.transposed is not None and all(x.kind is not Kind.TRANSPOSED for x in layers):
        raise UsageError(f"--transposed {hints.axes.transposed.pattern!r} matches no convolution")
    is_laid = _checked_layouts(hints.axes, [each.module for each in kept], state)
    layers = _with_norms(layers, norms, state, hints)
    layers, alias_notes = shared(layers)
    skipped += left_over(tensors, stored, norms, {x.name for x in skipped} | reasons.keys())
    listed = {x.name for x in skipped} | {layer.name for layer in layers}
    skipped += [Skipped(name=n, reason=r) for n, r in reasons.items() if n not in listed]
    skipped += [x for x in state.skipped if x.name not in listed]
    bare = {layer.filters for layer in layers if layer.bias is None and layer.filters > 1}
    if not state.places and (loose := loose_biases(tensors, stored, norms, bare)):
        alias_notes.append(
            f"vectors that may be biases, of layers that no name tells: {named(loose)}"
        )
    notes = [
        *laid.notes,
        *alias_notes,
        *_unpaired(layers, norms, state),
        *_unused(layers, state, hints, is_laid=is_laid),
        *exclusions.of_standardised(layers, tensors, state.places),
    ]
    return Described(layers=tuple(layers), skipped=tuple(skipped), notes=tuple(notes))


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key by which ``features.10`` comes behind ``features.2``."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]


def _with_plain_names(state: StateDict) -> StateDict:
    """Take off the number of an output that TensorFlow puts behind each name, and NNX' `value`."""
    if any(name.endswith(":0") for name in state.tensors):
        tensors = {name.removesuffix(":0"): tensor for name, tensor in state.tensors.items()}
        return dataclasses.replace(state, tensors=tensors)
    if state.tensors and all(map(_VALUE.search, state.tensors)):
        tensors = {_VALUE.sub("", name): tensor for name, tensor in state.tensors.items()}
        if len(tensors) == len(state.tensors):
            return dataclasses.replace(state, tensors=tensors)
    return state


def _network_order(state: StateDict) -> Callable[[StoredWeight], Any]:
    if state.places and all(place.stage is not None for place in state.places.values()):
        order = {name: i for i, name in enumerate(state.places)}
        return lambda each: order.get(each.module, len(order))
    if state.in_order:
        return lambda _: 0
    # An encoder comes before its decoder, whatever the alphabet says.
    return lambda each: natural(each.module.replace("decoder", "encodes"))


def _weight(each: StoredWeight, near: Callable[[str], set[int]]) -> Weight:
    widths = near(each.module)
    return Weight(
        module=each.module,
        ending=each.ending,
        shape=each.tensor.shape,
        outputs=each.outputs,
        norm=widths.pop() if len(widths) == 1 else None,
    )


def _layer(
    each: StoredWeight, axes: Axes | None, place: Place | None, wanted: Wanted
) -> Layer | Skipped:
    if place is not None:
        groups = place.groups
        if place.kind is Kind.TRANSPOSED and groups is None:
            outputs = each.outputs or each.tensor.shape[1]
            groups = max(1, outputs // max(1, each.tensor.shape[1]))
            groups = groups if each.tensor.shape[0] % groups == 0 else 1
        axes = Axes(place.kind, place.layout or Layout.FIRST, groups)
    if axes is None:
        return Skipped(
            name=each.module,
            reason=f"its bias of length {each.outputs} fits no axis of its weight; "
            "--layout settles it",
        )
    layer = Layer(
        name=each.module,
        kind=axes.kind,
        weight=reordered(each.tensor, axes),
        bias=None if each.bias is None else _flat(each.bias),
        groups=axes.groups,
        stage=None if place is None else place.stage,
        input=Input.UNKNOWN if place is None else place.input,
    )
    if each.bias is None:
        return layer
    if each.outputs != layer.filters:
        if wanted.layout(each.module) is None and not wanted.is_transposed(each.module):
            return Skipped(
                name=each.module,
                reason=f"its bias has {each.outputs} values, and it has {layer.filters} filters",
            )
        return Skipped(
            name=each.module,
            reason=f"read as it was given it has {layer.filters} filters, but its bias has "
            f"{each.outputs} values",
        )
    return layer


def _flat(bias: Tensor) -> Tensor:
    if len(bias.shape) == 1:
        return bias
    return Tensor((max(1, *bias.shape, 1),), bias.dtype, lambda: bias.read().reshape(-1))


def _with_norms(layers: list[Layer], norms: Norms, state: StateDict, hints: Hints) -> list[Layer]:
    told = {name for name, place in state.places.items() if place.stage is not None}
    used = {place.norm for name, place in state.places.items() if name in told}
    free = {name: norm for name, norm in norms.found.items() if name not in used}
    open_layers = [x for x in layers if x.name not in told or x.name in hints.norms]
    order = _positions(layers, state) if state.in_order else None
    assumed = pair(open_layers, {**free, **_asked(norms, hints)}, order, hints.norms)

    def with_norm(layer: Layer) -> Layer:
        place = state.places.get(layer.name)
        if layer.name in told and layer.name not in hints.norms and place is not None:
            if place.norm is None or place.norm not in norms.found:
                return layer
            found, pairing = norms.found[place.norm], Pairing.GRAPH
            if found.width != layer.filters:  # of what a view has made of it
                return layer
            own = place.eps
        elif layer.name in assumed:
            found, pairing = assumed[layer.name]
            own = state.norm_eps.get(found.name)
        else:
            return layer
        eps = own if own is not None else found.eps if hints.eps is None else hints.eps
        norm = dataclasses.replace(found.make(eps), eps_assumed=own is None and hints.eps is None)
        return dataclasses.replace(layer, norm=norm, pairing=pairing)

    return [with_norm(layer) for layer in layers]


def _checked_layouts(wanted: Wanted, names: Sequence[str], state: StateDict) -> bool:
    """Return whether the layouts that a user gives can be of use; one of a name must be.

    Raises
    ------
    UsageError
        If a name is given that no weight has.
    """
    for pattern, layout in wanted.layouts:
        if pattern is not None and not any(pattern.search(name) for name in names):
            raise UsageError(f"--layout {pattern.pattern}={layout}: matches no layer")
    return not wanted.layouts or any(name not in state.places for name in names)


def _unused(
    layers: Sequence[Layer], state: StateDict, hints: Hints, *, is_laid: bool
) -> Iterator[str]:
    """Say that something was given which the file tells itself."""
    if not is_laid:
        yield "--layout was not used: how the weights here lie is known"
    taken = (
        layer.norm
        for layer in layers
        if layer.norm is not None and layer.norm.name not in state.norm_eps
    )
    if hints.eps is not None and all(norm.eps != hints.eps for norm in taken):
        yield "--eps was not used: no norm behind a layer here lacks an epsilon of its own"


def _asked(norms: Norms, hints: Hints) -> Mapping[str, FoundNorm]:
    return {
        name: norms.found[name] for name in hints.norms.values() if name and name in norms.found
    }


def _positions(layers: Sequence[Layer], state: StateDict) -> dict[str, int]:
    """Return where in the file each layer begins."""
    names = {layer.name for layer in layers}
    found: dict[str, int] = {}
    for at, name in enumerate(state.tensors):
        module = re.sub(r"[._/][^._/]*$", "", name)
        longer = re.sub(r"[./][^./]*$", "", name)
        for candidate in (name, longer, module):
            if candidate in names:
                found.setdefault(candidate, at)
    return found


def _unpaired(layers: Sequence[Layer], norms: Norms, state: StateDict) -> Iterator[str]:
    """Say which norms stand behind no layer that is known."""
    used = {layer.norm.name for layer in layers if layer.norm is not None}
    places = {layer.name: state.places.get(layer.name) for layer in layers if layer.norm is None}
    wider = [name for name, place in places.items() if place and place.norm in norms.found]
    yield from notes_of_widths(wider)
    if any(place.stage is not None for place in state.places.values()):
        return
    if rest := [name for name in norms.found if name not in used]:
        yield (
            f"batch norms that were paired with no layer: {named(rest)} "
            "(--norms LAYER=NORM pairs them)"
        )
    if norms.broken:
        name, why = next(iter(norms.broken.items()))
        yield f"the batch norm {name} was not used: {why}"
