"""Named tensors to layers: which of them are layers, of what kind, with which bias and norm.

A state dict holds names and shapes, nothing else. What they do not tell is told by
`StateDict.places` where the file or a graph knows it, and otherwise judged here; the notes say
what had to be assumed.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
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
from planescope.networks import exclusions
from planescope.networks.layout import (
    Axes,
    Wanted,
    Weight,
    filters_first,
    lay_out,
    named,
    reordered,
)
from planescope.networks.pairing import FoundNorm, Norms, find_norms, pair
from planescope.networks.parametrisations import is_part, resolved
from planescope.networks.sharing import shared

__all__ = ["Hints", "describe", "filters_first", "find_layers", "natural"]

# Last parts of the names of weights, and of the bias that goes with each.
WEIGHTS = {
    "weight": ("bias",),
    "kernel": ("bias",),
    "weights": ("biases", "bias"),
    "w": ("b", "bias"),
    "W": ("b", "bias"),
    "depthwise_kernel": ("bias",),
    "pointwise_kernel": ("bias",),
    "depthwise_weights": ("biases",),
    "pointwise_weights": ("biases",),
}

_ENDING = "|".join(WEIGHTS)
_NAME = re.compile(rf"(?:(?P<module>.*)(?P<separator>[./]))?(?P<ending>{_ENDING})", re.DOTALL)
# As MXNet and Caffe2 write them: conv1_weight, conv1_w; W1 and b1.
_FLAT_NAME = re.compile(rf"(?P<module>.+)(?P<separator>_)(?P<ending>{_ENDING})", re.DOTALL)
_NUMBERED = re.compile(r"(?P<stem>(?:.*[._/])?)(?P<ending>[Ww])(?P<number>_?\d+)", re.DOTALL)

# Arrays under names of their own, in a mapping that has no `.weight` at all, which are no weights.
_NO_WEIGHT = re.compile(
    r"(embed(ding)?s?|tokens?|mask|table|bias(es)?|mean|var(iance)?|scale|gamma|beta|"
    r"(^|[._/])pos)$"
)
_BIAS = re.compile(r"((^|[._/])b_?\d*|_b)$")

_LEFT = (
    "a parameter that is no layer's weight by its name; what it does, a state dict does not tell"
)


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


@dataclass(frozen=True, kw_only=True, eq=False)
class _Stored:
    """A tensor that may be a weight, with the bias that goes with it by name."""

    module: str
    ending: str
    tensor: Tensor
    bias: Tensor | None = None
    siblings: tuple[str, ...] = ()

    @property
    def outputs(self) -> int | None:
        """Return the length of the bias."""
        if self.bias is None:
            return None
        return 0 if 0 in self.bias.shape else max(1, *self.bias.shape, 1)


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
    adapters, changed = exclusions.adapted(state.tensors)
    tensors = {name: t for name, t in state.tensors.items() if name not in adapters}
    norms = find_norms(tensors)
    stored = _stored(tensors, norms)
    of_adapters = exclusions.of_adapters(changed, (each.module for each in stored))
    reasons = {**state.reasons, **of_adapters}
    kept, skipped = _sifted(stored, state, tensors, reasons)
    kept.sort(key=_network_order(state))
    laid = lay_out(
        [_weight(each, norms) for each in kept if each.module not in state.places], hints.axes
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
    layers = _with_norms(layers, norms, state, hints)
    layers, alias_notes = shared(layers)
    skipped += _left_over(tensors, stored, norms, {x.name for x in skipped} | reasons.keys())
    listed = {x.name for x in skipped} | {layer.name for layer in layers}
    skipped += [Skipped(name=n, reason=r) for n, r in reasons.items() if n not in listed]
    skipped += [x for x in state.skipped if x.name not in listed]
    notes = [
        *laid.notes,
        *alias_notes,
        *_unpaired(layers, norms, state),
        *exclusions.of_standardised(layers, tensors, state.places),
    ]
    return Described(layers=tuple(layers), skipped=tuple(skipped), notes=tuple(notes))


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key by which ``features.10`` comes behind ``features.2``."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]


def _with_plain_names(state: StateDict) -> StateDict:
    """Take off the number of an output that TensorFlow puts behind each name."""
    if not any(name.endswith(":0") for name in state.tensors):
        return state
    tensors = {name.removesuffix(":0"): tensor for name, tensor in state.tensors.items()}
    return dataclasses.replace(state, tensors=tensors)


def _stored(tensors: Mapping[str, Tensor], norms: Norms) -> list[_Stored]:
    """Return the tensors that by their names and ranks may be weights."""
    able = {n: t for n, t in tensors.items() if len(t.shape) >= 2 and n not in norms.parts}
    for pattern in (_NAME, _FLAT_NAME, _NUMBERED):
        found = [_split(match, tensors) for name in able if (match := pattern.fullmatch(name))]
        if found:
            # The parts of an attention or a recurrent layer end so too.
            return [each for each in found if each is not None]
    # {"conv1": array}: names without our endings count where nothing has them.
    return [
        _Stored(
            module=name, ending="", tensor=tensor, bias=_bias(tensors, f"{name}_bias", f"{name}_b")
        )
        for name, tensor in able.items()
        if not exclusions.of_name(name) and not _is_no_weight(name, tensor) and not is_part(name)
    ]


def _split(match: re.Match[str], tensors: Mapping[str, Tensor]) -> _Stored | None:
    name, ending = match[0], match["ending"]
    if exclusions.of_name(name):
        return None
    if "number" in match.groupdict():
        bias = _bias(tensors, f"{match['stem']}b{match['number']}")
        return _Stored(module=name, ending=ending, tensor=tensors[name], bias=bias)
    module, separator = match["module"] or "", match["separator"] or ""
    prefix = module + separator
    bias = _bias(tensors, *(prefix + last for last in WEIGHTS[ending]))
    if (part := _half(prefix, ending, tensors)) is not None:
        module, bias = prefix + part, bias if part == "pointwise" else None
    return _Stored(module=module or name, ending=ending, tensor=tensors[name], bias=bias)


def _half(prefix: str, ending: str, tensors: Mapping[str, Tensor]) -> str | None:
    """Tell which of the two layers of a separable convolution a kernel is, if any."""
    part, _, rest = ending.partition("_")
    other = {"depthwise": "pointwise", "pointwise": "depthwise"}.get(part)
    return part if other and f"{prefix}{other}_{rest}" in tensors else None


def _bias(tensors: Mapping[str, Tensor], *names: str) -> Tensor | None:
    return next((tensors[name] for name in names if name in tensors), None)


def _sifted(
    stored: Sequence[_Stored],
    state: StateDict,
    tensors: Mapping[str, Tensor],
    reasons: Mapping[str, str],
) -> tuple[list[_Stored], list[Skipped]]:
    """Part weights of layers from other tensors, with the reason."""
    kept: list[_Stored] = []
    skipped: list[Skipped] = []
    recurrent = exclusions.recurrent((each.module for each in stored), tensors)
    beside = _beside(stored, tensors)
    for each in stored:
        module = each.module
        place = state.places.get(module)
        reason: str | None
        if module in reasons:
            reason = reasons[module]
        elif place is None and module in recurrent:
            reason = exclusions.RECURRENT
        elif len(each.tensor.shape) > 5:
            reason = f"a weight of {len(each.tensor.shape)} dimensions"
        else:
            reason = _why_not(each, place, beside.get(module, ()))
        if reason is None:
            kept.append(each)
        else:
            skipped.append(Skipped(name=module, reason=reason))
    return kept, skipped


def _why_not(each: _Stored, place: Place | None, siblings: Sequence[str]) -> str | None:
    weight = each.tensor
    if place is not None:
        if not weight.is_floating or 0 in weight.shape:
            return exclusions.of_weight("", weight, "", None)
        return None
    reason = None if each.bias is None else exclusions.of_bias(weight.shape, each.bias)
    reason = reason or exclusions.of_weight(each.module, weight, each.ending, each.outputs)
    return reason or exclusions.of_siblings(siblings)


def _beside(stored: Sequence[_Stored], tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Return the last parts of what stands beside the weight and bias of each module."""
    modules = {each.module: each for each in stored}
    found: defaultdict[str, list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        module, separator, last = exclusions.split(name)
        if not separator or module not in modules:
            continue
        known = modules[module]
        is_own = last == known.ending or last in WEIGHTS.get(known.ending, ())
        if not is_own and (tensor.is_floating or len(tensor.shape) > 0):
            found[module].append(last)
    return found


def _network_order(state: StateDict) -> Callable[[_Stored], Any]:
    if state.places and all(place.stage is not None for place in state.places.values()):
        order = {name: i for i, name in enumerate(state.places)}
        return lambda each: order.get(each.module, len(order))
    if state.in_order:
        return lambda _: 0
    return lambda each: natural(each.module)


def _weight(each: _Stored, norms: Norms) -> Weight:
    return Weight(
        module=each.module,
        ending=each.ending,
        shape=each.tensor.shape,
        outputs=each.outputs,
        norm=_likely_norm(each.module, norms.found),
    )


def _likely_norm(module: str, norms: Mapping[str, FoundNorm]) -> int | None:
    """Return the width of the norm that stands behind a layer by the commonest names."""
    parent, dot, last = module.rpartition(".")
    names = [f"{module}.norm", f"{module}.bn"]
    if last.isdecimal():
        names.append(f"{parent}{dot}{int(last) + 1}")
    names += [parent + dot + re.sub("conv|deconv", word, last) for word in ("bn", "norm")]
    return next((norms[name].width for name in names if name in norms and name != module), None)


def _layer(
    each: _Stored, axes: Axes | None, place: Place | None, wanted: Wanted
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


def _left_over(
    tensors: Mapping[str, Tensor], stored: Sequence[_Stored], norms: Norms, told: set[str]
) -> Iterator[Skipped]:
    """Return tensors with the rank of a weight that were not taken for one."""
    taken = {id(t) for each in stored for t in (each.tensor, each.bias) if t is not None}
    for name, tensor in tensors.items():
        if len(tensor.shape) < 2 or id(tensor) in taken or name in norms.parts:
            continue
        module = re.sub(r"[./][^./]*$", "", name)
        if name in told or (
            is_part(name) and re.sub(r"\.parametrizations\..*", "", module) in told
        ):
            continue
        if (reason := exclusions.of_name(name)) is not None:
            yield Skipped(name=name, reason=reason)
        elif tensor.is_floating and module not in told and not _is_other(name, tensor):
            yield Skipped(name=name, reason=_LEFT)


def _is_no_weight(name: str, tensor: Tensor) -> bool:
    """Tell by its name that a tensor is no weight; a "b" of three axes is a layer, not a bias."""
    is_bias = len(tensor.shape) < 3 and _BIAS.search(name.lower())
    return bool(is_bias or _NO_WEIGHT.search(name.lower()))


def _is_other(name: str, tensor: Tensor) -> bool:
    """Tell tensors that do not even look like a weight: tokens, positions, tables, scales."""
    known = _is_no_weight(name, tensor) or re.search(
        r"(^|[._/])(bias|gain|pos\w*|\w*token\w*|\w*embed\w*|lora_\w+|recurrent_\w+|anchor\w*|grid)$",
        name.lower(),
    )
    return bool(known) or sum(extent > 1 for extent in tensor.shape) < 2


def _unpaired(layers: Sequence[Layer], norms: Norms, state: StateDict) -> Iterator[str]:
    """Say which norms stand behind no layer that is known."""
    used = {layer.norm.name for layer in layers if layer.norm is not None}
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
