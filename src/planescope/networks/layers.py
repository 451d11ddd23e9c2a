"""Named tensors to layers: which of them are layers, of what kind, with which bias and norm.

A state dict holds names and shapes, nothing else. What they do not tell is told by
`StateDict.places` where the file or a graph knows it, and otherwise judged here; the result says
where it was.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from planescope.files.errors import CheckpointError, UsageError
from planescope.hyperplanes.layer import (
    Array,
    Kind,
    Layer,
    Norm,
    Place,
    Skipped,
    StateDict,
    Tensor,
    kind_of_convolution,
)
from planescope.networks.parametrisations import resolved

# Last parts of the names of weights, and of the bias that goes with each.
WEIGHTS = {"weight": "bias", "kernel": "bias", "weights": "biases", "w": "b", "W": "b"}

# How batch norms name their running mean and variance, scale and shift: torch, Keras, Flax, Paddle,
# MXNet, Chainer.
NORMS = (
    ("running_mean", "running_var", "weight", "bias"),
    ("moving_mean", "moving_variance", "gamma", "beta"),
    ("mean", "var", "scale", "bias"),
    ("_mean", "_variance", "weight", "bias"),
    ("moving_mean", "moving_var", "gamma", "beta"),
    ("avg_mean", "avg_var", "gamma", "beta"),
)

# PyTorch's default; a state dict does not hold it.
DEFAULT_EPS = 1e-5

# What holds weights under other names, and why it is no layer.
_NO_LAYERS = (
    (
        re.compile(r"weight_(ih|hh|hr)(_l\d+)?(_reverse)?$"),
        "a recurrent weight: it acts on its own output",
    ),
    (
        re.compile(r"(^|\.)in_proj_weight$"),
        "queries, keys and values of an attention: three linear maps in one",
    ),
    (
        re.compile(r"(^|\.)(parametrizations\.weight\.original\d?|weight_orig)$"),
        "its weight is computed from this one, and a state dict does not tell how; give the module",
    ),
)
_EMBEDDING = re.compile(
    r"embed|(^|[._])(wte|wpe|shared|tok|token|tokens|vocab|codebook|relative_attention_bias)$"
)
# Arrays under names of their own, in a mapping that has no `.weight` at all, which are no weights.
_NO_WEIGHT = re.compile(
    r"(embed(ding)?s?|tokens?|mask|table|bias|mean|var(iance)?|scale|gamma|beta|(^|[._])pos)$"
)


def find_layers(
    state: StateDict, /, *, transposed: re.Pattern[str] | None = None
) -> tuple[list[Layer], list[Skipped]]:
    """Layers of a state dict, of every kind, and what looks like one but is none.

    Parameters
    ----------
    transposed : compiled pattern, optional
        Names of the layers that are transposed convolutions, which shapes cannot tell.

    Raises
    ------
    UsageError
        If `transposed` matches no convolution.
    """
    state = resolved(state)
    # {"conv1": array}: names without our endings count where nothing has them.
    bare = not any(_last(name) in WEIGHTS for name in state.tensors)
    weights = {
        _module(name): name
        for name, tensor in state.tensors.items()
        if len(tensor.shape) >= 2 and _may_be_weight(name, bare)
    }
    layers: list[Layer] = []
    skipped: list[Skipped] = []
    for module, name in weights.items():
        place = state.places.get(module)
        reason = _not_a_layer(module, name, place, state.tensors)
        if reason is None:
            kind = _kind(module, state.tensors[name], place, transposed)
            layers.append(_layer(module, name, kind, place, state.tensors))
        elif reason:
            skipped.append(Skipped(name=module, reason=reason))
    skipped += [
        Skipped(name=name, reason=reason)
        for name, tensor in state.tensors.items()
        for pattern, reason in _NO_LAYERS
        if len(tensor.shape) >= 2 and pattern.search(name)
    ]
    if transposed is not None and all(layer.kind is not Kind.TRANSPOSED for layer in layers):
        raise UsageError(f"--transposed {transposed.pattern!r} matches no convolution")
    layers = _in_network_order(layers, state)
    return _with_norms(layers, _norms(state.tensors), state), [*skipped, *state.skipped]


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key by which ``features.10`` comes behind ``features.2``."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]


def _module(name: str) -> str:
    module, _, last = name.rpartition(".")
    return module if module and last in WEIGHTS else name


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _may_be_weight(name: str, bare: bool) -> bool:
    if not bare:
        return _last(name) in WEIGHTS
    is_other = any(pattern.search(name) for pattern, _ in _NO_LAYERS)
    return not is_other and not _NO_WEIGHT.search(name.lower())


def _not_a_layer(
    module: str, name: str, place: Place | None, tensors: Mapping[str, Tensor]
) -> str | None:
    """Why a weight makes no layer: a sentence, "" where it is not worth one, None where it does."""
    tensor = tensors[name]
    rank = len(tensor.shape)
    if rank > 5:
        return "" if place is None else f"a weight of {rank} dimensions"
    is_named_so = place is None and rank <= 3 and _EMBEDDING.search(module.lower())
    # The projection of a patch or time embedding is a layer, and has a bias; a table has none.
    if is_named_so and _bias(name, tensors) is None:
        return "an embedding: its rows are looked up, they cut nothing"
    if not tensor.is_floating:
        return f"its weights are stored as {tensor.dtype}; convert them to floating point"
    if 0 in tensor.shape:
        return "it has no weights"
    return None


def _bias(name: str, tensors: Mapping[str, Tensor]) -> Tensor | None:
    stem, dot, last = name.rpartition(".")
    bias = tensors.get(f"{stem}{dot}{WEIGHTS[last]}") if last in WEIGHTS else None
    return bias if bias is not None and bias.is_floating and len(bias.shape) == 1 else None


def _kind(
    module: str, tensor: Tensor, place: Place | None, transposed: re.Pattern[str] | None
) -> Kind:
    if place is not None:
        return place.kind
    if len(tensor.shape) == 2:
        return Kind.LINEAR
    if transposed is not None and transposed.search(module):
        return Kind.TRANSPOSED
    return kind_of_convolution(tensor.shape[2:])


def _layer(
    module: str, name: str, kind: Kind, place: Place | None, tensors: Mapping[str, Tensor]
) -> Layer:
    weight, bias = tensors[name], _bias(name, tensors)
    known = Layer(name=module, kind=kind, weight=weight)
    if place is not None:
        known = dataclasses.replace(
            known,
            groups=place.groups,
            stage=place.stage,
            input=place.input,
        )
    if kind is Kind.TRANSPOSED:
        groups = known.groups or _transposed_groups(weight, bias)
        known = dataclasses.replace(known, groups=groups, weight=filters_first(weight, groups))
    fits = bias is not None and bias.shape == (known.filters,)
    return dataclasses.replace(known, bias=bias if fits else None)


def _transposed_groups(weight: Tensor, bias: Tensor | None) -> int:
    """Groups of a transposed convolution (in, out / groups, *kernel), whose bias counts outputs."""
    inputs, outputs = weight.shape[:2]
    groups, rest = divmod(outputs if bias is None else bias.shape[0], outputs)
    return groups if groups and not rest and inputs % groups == 0 else 1


def filters_first(weight: Tensor, groups: int, /) -> Tensor:
    """Bring the filters of a transposed convolution to the front.

    (in, out / groups, *kernel) becomes (out, in / groups, *kernel).

    Raises
    ------
    CheckpointError
        If the inputs cannot be divided among the groups.
    """
    inputs, outputs, *kernel = weight.shape
    if inputs % groups:
        raise CheckpointError(f"{inputs} inputs cannot be divided among {groups} groups")
    shape = (outputs * groups, inputs // groups, *kernel)

    def read() -> Array:
        stored = weight.read().reshape(groups, inputs // groups, outputs, *kernel)
        return stored.swapaxes(1, 2).reshape(shape)

    return Tensor(shape, weight.dtype, read)


def _in_network_order(layers: list[Layer], state: StateDict) -> list[Layer]:
    if state.places and all(layer.name in state.places for layer in layers):
        order = {name: i for i, name in enumerate(state.places)}
        return sorted(layers, key=lambda layer: order[layer.name])
    return layers if state.in_order else sorted(layers, key=lambda layer: natural(layer.name))


@dataclass(frozen=True, eq=False)
class _FoundNorm:
    name: str
    width: int
    make: Callable[[float], Norm]


def _norms(tensors: Mapping[str, Tensor]) -> dict[str, _FoundNorm]:
    """Batch norms by module name: whatever keeps a running mean and variance."""
    found = {}
    for name, mean in tensors.items():
        module, _, last = name.rpartition(".")
        for mean_name, variance_name, gamma, beta in NORMS:
            variance = tensors.get(f"{module}.{variance_name}" if module else variance_name)
            if last != mean_name or variance is None:
                continue
            if len(mean.shape) == 1 and mean.shape == variance.shape:
                prefix = f"{module}." if module else ""
                make = functools.partial(
                    _norm,
                    module,
                    mean,
                    variance,
                    tensors.get(prefix + gamma),
                    tensors.get(prefix + beta),
                )
                found[module] = _FoundNorm(module, mean.shape[0], make)
    return found


def _norm(
    name: str, mean: Tensor, variance: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float
) -> Norm:
    # A scale of another length belongs to something else.
    gamma, beta = (t if t is not None and t.shape == mean.shape else None for t in (gamma, beta))
    return Norm(name=name, gamma=gamma, beta=beta, mean=mean, variance=variance, eps=eps)


def _with_norms(
    layers: list[Layer], norms: Mapping[str, _FoundNorm], state: StateDict
) -> list[Layer]:
    assumed = dict(_by_order(layers, norms, state) if state.in_order else _by_name(layers, norms))

    def with_norm(layer: Layer) -> Layer:
        place = state.places.get(layer.name)
        if place is not None and place.stage is not None:  # a graph told
            if place.norm is None or place.norm not in norms:
                return layer
            norm = norms[place.norm].make(DEFAULT_EPS if place.eps is None else place.eps)
            return dataclasses.replace(layer, norm=norm)
        if layer.name not in assumed:
            return layer
        norm = assumed[layer.name].make(DEFAULT_EPS)
        return dataclasses.replace(layer, norm=norm, norm_assumed=True)

    return [with_norm(layer) for layer in layers]


def _by_order(
    layers: list[Layer], norms: Mapping[str, _FoundNorm], state: StateDict
) -> Iterator[tuple[str, _FoundNorm]]:
    """Pair each layer with the norm that comes next, if the width is right."""
    known = {layer.name: layer for layer in layers}
    modules = dict.fromkeys(name.rpartition(".")[0] or name for name in state.tensors)
    told = (module for module in modules if module in known or module in norms)
    runs = [list(run) for _, run in itertools.groupby(told, norms.__contains__)]
    for before, behind in itertools.pairwise(runs):
        # conv1, conv2, bn1, bn2: then the order of definition is not that of use.
        if before[0] in norms or (len(before) > 1 and len(behind) > 1):
            continue
        layer, norm = known[before[-1]], norms[behind[0]]
        if norm.width == layer.filters:
            yield layer.name, norm


def _by_name(
    layers: list[Layer], norms: Mapping[str, _FoundNorm]
) -> Iterator[tuple[str, _FoundNorm]]:
    """Pair by names where the order is lost: conv1 and bn1, 0 and 1, conv_stem and conv_stem_bn.

    Where norms stand before their convolutions (DenseNet, pre-activation ResNets) the names are the
    same, but somewhere the widths are not: such a rule is then believed nowhere in the network.
    """
    claims: defaultdict[str, list[tuple[Layer, _FoundNorm]]] = defaultdict(list)
    for layer in layers:
        parent, dot, last = layer.name.rpartition(".")
        for rule, name in _norm_names(last):
            if (norm := norms.get(f"{parent}{dot}{name}")) is not None:
                claims[rule].append((layer, norm))
    believed = [
        claim
        for pairs in claims.values()
        if all(norm.width == layer.filters for layer, norm in pairs)
        for claim in pairs
    ]
    # conv1, fc1 and one bn1: what two claim is nobody's.
    layer_claims = Counter(layer.name for layer, _ in believed)
    norm_claims = Counter(norm.name for _, norm in believed)
    for layer, norm in believed:
        if layer_claims[layer.name] == norm_claims[norm.name] == 1:
            yield layer.name, norm


def _norm_names(last: str) -> Iterator[tuple[str, str]]:
    """What the norm behind a layer of this name is called in common networks, and by which rule."""
    if last.isdecimal():
        yield "next", str(int(last) + 1)
    for ours, theirs in (("conv", "bn"), ("conv", "norm"), ("conv", "batchnorm"), ("fc", "bn")):
        if ours in last:
            yield f"{ours}-{theirs}", last.replace(ours, theirs)
    for rule in ("{}_bn", "bn_{}", "{}_norm", "{}bn"):
        yield rule, rule.format(last)
