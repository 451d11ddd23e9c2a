"""Tensors of a state dict that by their names and ranks may be weights, and those left over."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

from planescope.hyperplanes.layer import (
    Place,
    Skipped,
    StateDict,
    Tensor,
)
from planescope.networks.state import exclusions
from planescope.networks.state.pairing import Norms
from planescope.networks.state.parametrisations import is_part

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
    r"(embed(ding)?s?|tokens?|mask|table|bias(es)?|mean|var(iance)?|scales?|gamma|beta|"
    r"q?zeros?|zero_points?|"
    r"(^|[._/])pos)$"
)
_BIAS = re.compile(r"((^|[._/])b_?\d*|_b)$")
_LISTED = re.compile(r"(?:arr_|param_?|weights?_?)?(\d+)")
# As quantisers call the whole numbers that a weight is made of.
_WHOLE_NUMBERS = re.compile(r"(^|[._/])(\w*weight|weight[._]_?data|W_q|weight_int\d*)$")
# Whole numbers that are places in something, or choose among its parts.
_PLACES = re.compile(
    r"(ind(ex|ices)|(^|[._/])\w*ids?|mask|coord\w*|offsets?|lengths?|bias|perm|order|zeros?|zero_points?|pos\w*)$"
)
_NARROW = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int4", "uint4")
_LEFT = (
    "a parameter that is no layer's weight by its name; what it does, a state dict does not tell"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredWeight:
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


def stored_weights(tensors: Mapping[str, Tensor], norms: Norms) -> list[StoredWeight]:
    """Return the tensors that by their names and ranks may be weights."""
    able = {n: t for n, t in tensors.items() if len(t.shape) >= 2 and n not in norms.parts}
    for pattern in (_NAME, _FLAT_NAME, _NUMBERED):
        found = [_split(match, tensors) for name in able if (match := pattern.fullmatch(name))]
        if found:
            # The parts of an attention or a recurrent layer end so too.
            return [each for each in found if each is not None]
    # {"conv1": array}: names without our endings count where nothing has them.
    listed = _listed_biases(tensors)
    return [
        StoredWeight(
            module=name,
            ending="",
            tensor=tensor,
            bias=_bias(tensors, f"{name}_bias", f"{name}_b", listed.get(name, "")),
        )
        for name, tensor in able.items()
        if not exclusions.of_name(name) and not _is_no_weight(name, tensor) and not is_part(name)
    ]


def _listed_biases(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Find the biases of weights in a list (arr_0, arr_1, ...): the one vector behind each.

    Behind a bias may stand the four vectors of a norm; two or four alone are a norm's own.
    """
    numbers: dict[int, str] = {}
    for name in tensors:
        match = _LISTED.fullmatch(name)
        if match is None or int(match[1]) in numbers:
            return {}
        numbers[int(match[1])] = name
    found, vectors = {}, 0
    for number in sorted(numbers, reverse=True):
        if len(tensors[numbers[number]].shape) == 1:
            vectors += 1
            continue
        bias = numbers.get(number + 1, "")
        sides = tensors[numbers[number]].shape
        if vectors in (1, 3, 5) and bias and tensors[bias].shape[0] in sides[:2] + sides[-2:]:
            found[numbers[number]] = bias
        vectors = 0
    return found


def _split(match: re.Match[str], tensors: Mapping[str, Tensor]) -> StoredWeight | None:
    name, ending = match[0], match["ending"]
    if exclusions.of_name(name):
        return None
    if "number" in match.groupdict():
        bias = _bias(tensors, f"{match['stem']}b{match['number']}")
        return StoredWeight(module=name, ending=ending, tensor=tensors[name], bias=bias)
    module, separator = match["module"] or "", match["separator"] or ""
    prefix = module + separator
    bias = _bias(tensors, *(prefix + last for last in WEIGHTS[ending]))
    if (part := _half(prefix, ending, tensors)) is not None:
        module, bias = prefix + part, bias if part == "pointwise" else None
    return StoredWeight(module=module or name, ending=ending, tensor=tensors[name], bias=bias)


def _half(prefix: str, ending: str, tensors: Mapping[str, Tensor]) -> str | None:
    """Tell which of the two layers of a separable convolution a kernel is, if any."""
    part, _, rest = ending.partition("_")
    other = {"depthwise": "pointwise", "pointwise": "depthwise"}.get(part)
    return part if other and f"{prefix}{other}_{rest}" in tensors else None


def _bias(tensors: Mapping[str, Tensor], *names: str) -> Tensor | None:
    return next((tensors[name] for name in names if name in tensors), None)


def sifted(
    stored: Sequence[StoredWeight],
    state: StateDict,
    tensors: Mapping[str, Tensor],
    reasons: Mapping[str, str],
) -> tuple[list[StoredWeight], list[Skipped]]:
    """Part weights of layers from other tensors, with the reason."""
    kept: list[StoredWeight] = []
    skipped: list[Skipped] = []
    heads = exclusions.of_heads({each.module: each.tensor.shape for each in stored})
    recurrent = exclusions.recurrent((each.module for each in stored), tensors)
    beside = _beside(stored, tensors)
    modules = {each.module for each in stored}
    for each in stored:
        module = each.module
        place = state.places.get(module)
        reason: str | None
        if module in reasons:
            reason = reasons[module]
        elif place is None and module in recurrent:
            reason = exclusions.RECURRENT
        elif place is None and module in heads:
            reason = exclusions.HEADS
        elif len(each.tensor.shape) > 5:
            reason = f"a weight of {len(each.tensor.shape)} dimensions"
        else:
            reason = exclusions.of_spread(module, modules) if place is None else None
            reason = reason or _why_not(each, place, beside.get(module, ()))
        if reason is None:
            kept.append(each)
        else:
            skipped.append(Skipped(name=module, reason=reason))
    return kept, skipped


def _why_not(each: StoredWeight, place: Place | None, siblings: Sequence[str]) -> str | None:
    weight = each.tensor
    if place is not None:
        if not weight.is_floating or 0 in weight.shape:
            return exclusions.of_weight("", weight, "", None)
        return None
    reason = None if each.bias is None else exclusions.of_bias(weight.shape, each.bias)
    reason = reason or exclusions.of_weight(each.module, weight, each.ending, each.outputs)
    return reason or exclusions.of_siblings(siblings)


def _beside(stored: Sequence[StoredWeight], tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Return the last parts of what beside the weight of each module may change it."""
    modules = {each.module: each for each in stored}
    found: defaultdict[str, list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        module, separator, last = exclusions.split(name)
        if not separator or module not in modules:
            continue
        known = modules[module]
        is_own = last == known.ending or last in WEIGHTS.get(known.ending, ())
        stem = name.removesuffix(last)
        pair = f"{stem}scale" in tensors and f"{stem}zero_point" in tensors
        if is_own or exclusions.is_harmless(last, tensor, known.tensor, is_quantised=pair):
            continue
        if tensor.is_floating or len(tensor.shape) > 0:
            found[module].append(last)
    return found


def left_over(
    tensors: Mapping[str, Tensor], stored: Sequence[StoredWeight], norms: Norms, told: set[str]
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
        elif module in told:
            continue
        elif _is_of_whole_numbers(name, tensor):
            yield Skipped(name=name, reason=exclusions.not_floating(tensor))
        elif tensor.is_floating and not _is_other(name, tensor):
            yield Skipped(name=name, reason=_LEFT)


def loose_biases(
    tensors: Mapping[str, Tensor],
    stored: Sequence[StoredWeight],
    norms: Norms,
    widths: Container[int],
) -> list[str]:
    """Name vectors that may be biases of layers of some widths, and that no name gives to one.

    As those in lists of their own (``biases.0``), or in one list with the weights (``vars.1``).
    """
    taken = {id(t) for each in stored for t in (each.tensor, each.bias) if t is not None}
    lists = {exclusions.split(each.module)[0] for each in stored if not each.ending}
    found = []
    for name, tensor in tensors.items():
        outer, separator, last = exclusions.split(name)
        if id(tensor) in taken or name in norms.parts or len(tensor.shape) != 1:
            continue
        beside = f"{outer}{separator}weight" in tensors or f"{outer}{separator}scale" in tensors
        called = exclusions.split(outer)[2] if last.isdecimal() else last
        is_listed = last.isdecimal() and outer in lists
        is_called = _BIASES.fullmatch(called.lower()) is not None and not beside
        if tensor.is_floating and tensor.shape[0] in widths and (is_listed or is_called):
            found.append(name)
    return found


def _is_of_whole_numbers(name: str, tensor: Tensor) -> bool:
    """Tell what a quantiser made of a weight, whatever it calls it: codes, blocks, packed words."""
    if tensor.is_floating:
        return False
    is_narrow = tensor.dtype in _NARROW and sum(extent > 1 for extent in tensor.shape) > 1
    is_code = is_narrow and not _PLACES.search(name.lower())
    return is_code or bool(_WHOLE_NUMBERS.search(name))


_BIASES = re.compile(r"b(s|ias|iases)?_?\d*|.*[._]bias(es)?|bias_.*")


def _is_no_weight(name: str, tensor: Tensor) -> bool:
    """Tell by its name that a tensor is no weight; a "b" of three axes is a layer, not a bias."""
    is_bias = len(tensor.shape) < 3 and _BIAS.search(name.lower())
    return bool(is_bias or _NO_WEIGHT.search(name.lower()))


def _is_other(name: str, tensor: Tensor) -> bool:
    """Tell tensors that do not even look like a weight: tokens, positions, tables, scales."""
    extents = sum(extent > 1 for extent in tensor.shape)
    if extents > 1 and re.search(r"(^|[._/])[bB]$", name):
        return False  # of Fourier features, or of a product of two; a bias has one extent
    known = _is_no_weight(name, tensor) or re.search(
        r"(^|[._/])(bias|gain|pos\w*|\w*token\w*|\w*embed\w*|lora_\w+|recurrent_\w+|anchor\w*|grid)$",
        name.lower(),
    )
    return bool(known) or extents < 2
