"""Named tensors to layers: which of them are layers, of what kind, with which bias and norm.

A state dict holds names and shapes, nothing else. What they do not tell is told by `StateDict.places`
where the file or a graph knows it, and otherwise judged here; the result says where it was.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from planescope.checkpoints.parametrised import resolved
from planescope.errors import CheckpointError, UsageError
from planescope.layer import (
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

# Last parts of the names of weights, and of the bias that goes with each.
WEIGHTS = {"weight": "bias", "kernel": "bias", "weights": "biases", "w": "b", "W": "b"}

# How batch norms name their running mean and variance, scale and shift: torch, then Keras.
NORMS = (
    ("running_mean", "running_var", "weight", "bias"),
    ("moving_mean", "moving_variance", "gamma", "beta"),
)

# PyTorch's default; a state dict does not hold it.
DEFAULT_EPS = 1e-5

_RECURRENT = re.compile(r"(weight|bias)_(ih|hh|hr)(_l\d+)?(_reverse)?$")
_EMBEDDING = re.compile(
    r"embed|(^|[._])(wte|wpe|shared|tok|token|tokens|vocab|codebook|relative_attention_bias)$"
)
# Arrays under names of their own, in a mapping that has no `.weight` at all, which are no weights.
_NO_WEIGHT = re.compile(r"pos|embed|token|mask|table|bias|running|mean|var|scale|gamma|beta|stat")


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
    weights = {_module(name): name for name in state.tensors if _may_be_weight(name, state)}
    norms = _norms(state.tensors)
    layers: list[Layer] = []
    skipped: list[Skipped] = []
    turned = False
    for module, name in weights.items():
        if module in norms:
            continue
        tensor, place = state.tensors[name], state.places.get(module)
        reason = _not_a_layer(module, tensor, place)
        if reason is None:
            kind = _kind(module, tensor, place, transposed)
            turned |= kind is Kind.TRANSPOSED
            layers.append(_layer(module, name, kind, place, state.tensors))
        elif reason:
            skipped.append(Skipped(name=module, reason=reason))
    skipped += [
        Skipped(name=name, reason="a recurrent weight: it acts on its own output")
        for name in state.tensors
        if _RECURRENT.search(name) and len(state.tensors[name].shape) == 2
    ]
    if transposed is not None and not turned:
        raise UsageError(f"--transposed {transposed.pattern!r} matches no convolution")
    layers = _in_network_order(layers, state)
    return _with_norms(layers, norms, state), skipped


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key by which ``features.10`` comes behind ``features.2``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _module(name: str) -> str:
    module, _, last = name.rpartition(".")
    return module if module and last in WEIGHTS else name


def _may_be_weight(name: str, state: StateDict) -> bool:
    if len(state.tensors[name].shape) < 2 or _RECURRENT.search(name):
        return False
    if name.rpartition(".")[2] in WEIGHTS:
        return True
    # {"conv1": array}: names without our endings count where nothing has them.
    return not _has_weight_names(state) and not _NO_WEIGHT.search(name.lower())


@functools.lru_cache(maxsize=1)
def _has_weight_names(state: StateDict) -> bool:
    return any(name.rpartition(".")[2] in WEIGHTS for name in state.tensors)


def _not_a_layer(module: str, tensor: Tensor, place: Place | None) -> str | None:
    """Why a weight makes no layer: a sentence, "" where it is not worth one, None where it does."""
    rank = len(tensor.shape)
    if rank > 5:
        return "" if place is None else f"a weight of {rank} dimensions"
    if place is None and rank <= 3 and _EMBEDDING.search(module.lower()):
        return "an embedding: its rows are looked up, they cut nothing"
    if not tensor.is_floating:
        return f"its weights are stored as {tensor.dtype}; convert them to floating point"
    if 0 in tensor.shape:
        return "it has no weights"
    return None


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
    weight = tensors[name]
    groups = None if place is None else place.groups
    if kind is Kind.TRANSPOSED:
        weight = filters_first(weight, groups or 1)
    stem, _, last = name.rpartition(".")
    bias = tensors.get(f"{stem}.{WEIGHTS[last]}" if stem else WEIGHTS[last]) if last in WEIGHTS else None
    return Layer(
        name=module,
        kind=kind,
        weight=weight,
        bias=bias if bias is not None and bias.shape == weight.shape[:1] else None,
        groups=groups,
        **({} if place is None else {
            "stage": place.stage, "input": place.input, "relu_follows": place.relu_follows,
        }),
    )


def filters_first(weight: Tensor, groups: int, /) -> Tensor:
    """Weight of a transposed convolution, (in, out / groups, *kernel), as (out, in / groups, *kernel).

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
                    _norm, module, mean, variance, tensors.get(prefix + gamma), tensors.get(prefix + beta)
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
    import dataclasses

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
    """Pair each layer with the norm that comes next, if no other layer does and the width is right."""
    known = {layer.name: layer for layer in layers}
    previous: Layer | None = None
    for module in dict.fromkeys(_owner(name) for name in state.tensors):
        if module in known:
            previous = known[module]
        elif module in norms and previous is not None:
            if norms[module].width == previous.filters:
                yield previous.name, norms[module]
            previous = None


def _owner(name: str) -> str:
    return name.rpartition(".")[0] or name


def _by_name(
    layers: list[Layer], norms: Mapping[str, _FoundNorm]
) -> Iterator[tuple[str, _FoundNorm]]:
    """Pair by names where the order is lost: conv1 and bn1, 0 and 1, conv_stem and conv_stem_bn."""
    taken = set()
    for layer in layers:
        parent, dot, last = layer.name.rpartition(".")
        for candidate in _norm_names(last):
            norm = norms.get(f"{parent}{dot}{candidate}")
            if norm is not None and norm.width == layer.filters and norm.name not in taken:
                taken.add(norm.name)
                yield layer.name, norm
                break


def _norm_names(last: str) -> Iterator[str]:
    """What the norm behind a layer of this name is called, in common networks."""
    if last.isdecimal():
        yield str(int(last) + 1)
    for ours, theirs in (("conv", "bn"), ("conv", "norm"), ("conv", "batchnorm"), ("fc", "bn")):
        if ours in last:
            yield last.replace(ours, theirs)
    yield from (f"{last}_bn", f"bn_{last}", f"{last}_norm", f"{last}bn")
