"""Observation of what layers get and give while a network runs, without a trace in it.

To import this is to import torch.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from planescope.criticality.plan.fit.patches import CONVOLUTIONS
from planescope.data.roles import Batch
from planescope.networks.graph.file_graph import FileGraph
from planescope.networks.live.entries import outwards
from planescope.networks.live.module import read_module

# Norms that scale and shift each channel behind what they do, and the axis of those channels.
NORMS: dict[type[nn.Module], int] = {
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm), 1),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm), 1),
    nn.LayerNorm: -1,
}
# What is told of a call: number of the call, input, output.
Take = Callable[[int, torch.Tensor, torch.Tensor], None]


class LeftError(Exception):
    """A layer that cannot be repaired so; the message says why."""


class CallsError(LeftError):
    """A layer that is called as often as the data say."""

    def __init__(self) -> None:
        super().__init__("how often it is called, or on how much, depends on the data")


class _SeenError(BaseException):
    """All that was asked for has been seen; the rest of the network need not run."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Anatomy:
    """Layers of a network in the order in which it calls them.

    Attributes
    ----------
    calls : dict of str to int
        How often each layer is called in one pass.
    norms : dict of str to str
        Of a layer, the norm that reads what it gives, and nothing but that.
    left : dict of str to str
        Layers that cannot be looked at, and why.
    """

    calls: dict[str, int] = field(default_factory=dict)
    norms: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)


def look_at(module: nn.Module, batch: Batch, /) -> Anatomy:
    """Run a network on a batch, and find its layers."""
    found = Anatomy()
    calls: Counter[str] = Counter()
    # Tensors are held, so that no other gets the identity of one.
    given: dict[int, tuple[str, torch.Tensor]] = {}
    readers: dict[str, list[str]] = {}

    def after(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            calls[name] += 1
            if isinstance(output, torch.Tensor):
                given[id(output)] = (name, output)

        return hook

    def before(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: Any) -> None:
            own = args[0] if args else None
            if id(own) in given:
                readers.setdefault(name, []).append(given[id(own)][0])
            else:
                readers.setdefault(name, []).append("")

        return hook

    layers = {n: m for n, m in module.named_modules() if is_layer(m)}
    handles = [m.register_forward_hook(after(n)) for n, m in layers.items()]
    norms = {n: m for n, m in module.named_modules() if type(m) in NORMS}
    handles += [m.register_forward_pre_hook(before(n)) for n, m in norms.items()]
    try:
        with torch.no_grad():
            module(*batch.args, **batch.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    found.calls.update(calls)
    for norm, read in readers.items():
        if len(set(read)) == 1 and read[0] and len(read) == calls[read[0]]:
            found.norms[read[0]] = norm
    found.left.update(_left(module, layers, calls))
    for name in found.left:
        found.calls.pop(name, None)
    return found


def _left(
    module: nn.Module, layers: Mapping[str, nn.Module], calls: Mapping[str, int]
) -> dict[str, str]:
    """Return what holds weights and cannot be looked at, with the reason."""
    found = {}
    shared = Counter(id(m.weight) for n, m in layers.items() if calls[n])
    for name, layer in layers.items():
        if not calls[name]:
            found[name] = _not_called(module, name)
        elif shared[id(layer.weight)] > 1:
            found[name] = "it shares its weight with another layer"
    found.update(_odd(module))
    if isinstance(module, FileGraph):
        return found | module.left
    return found | _others(module, {*layers, *found})


def is_layer(module: nn.Module, /) -> bool:
    """Tell convolutions and linear layers with torch's own forward and a weight from others."""
    kind = type(module)
    known = (*CONVOLUTIONS, nn.Linear)
    return any(isinstance(module, k) and kind.forward is k.forward for k in known) and (
        "weight" in module._parameters or is_pruned(module)
    )


def is_pruned(module: nn.Module, /) -> bool:
    """Tell whether ``torch.nn.utils.prune`` holds the weight in parts."""
    return "weight_orig" in module._parameters and "weight_mask" in module._buffers


def _odd(module: nn.Module) -> dict[str, str]:
    """Return the modules with a weight of two axes or more that are no layers of ours."""
    found = {}
    for name, part in module.named_modules():
        weight = getattr(part, "weight", None)
        if is_layer(part) or not isinstance(weight, torch.Tensor) or weight.ndim < 2:
            continue
        if "weight" in part._buffers:
            found[name] = "its weight is a buffer, which no training changes"
        elif "weight" not in part._parameters:
            found[name] = "its weight is computed from other tensors"
        else:
            kind = type(part).__name__
            if hasattr(nn, kind):  # of the name of one of torch's
                kind = f"{type(part).__module__}.{kind}"
            found[name] = f"a {kind} is no convolution or linear layer as torch has it"
    return found


def _not_called(module: nn.Module, name: str) -> str:
    owner = module.get_submodule(name.rpartition(".")[0])
    if isinstance(owner, nn.MultiheadAttention):
        return "the attention that it is of reads its weight, and does not call it"
    return "the network does not call it"


def _others(module: nn.Module, known: set[str]) -> dict[str, str]:
    """Return what else holds weights, by module or parameter, and why it is no layer."""
    rest = [
        name
        for name, tensor in module.named_parameters()
        if sum(extent > 1 for extent in tensor.shape) > 1
        and known.isdisjoint(("", *outwards(name.rpartition(".")[0])))
    ]
    if not rest:
        return {}
    told = {one.name: one.reason for one in read_module(module).skipped}
    found = {}
    for name in rest:
        owner = module.get_submodule(name.rpartition(".")[0])
        if type(owner) in NORMS:
            continue
        place = next((outer for outer in outwards(name) if outer in told), name)
        found[place] = told.get(
            place, f"a parameter of {type(owner).__name__}, which is no layer as torch has it"
        )
    return found


def watch(
    module: nn.Module,
    batch: Batch,
    wanted: Mapping[str, tuple[int, Take]],
    /,
    *,
    to_the_end: bool = False,
) -> None:
    """Run a network until all calls of some modules have been seen.

    Parameters
    ----------
    wanted : mapping of str to pair
        By name: how many calls there are, and what is told of each.
    to_the_end : bool
        See all calls, however many there are.

    Raises
    ------
    CallsError
        If there are other calls than so many.
    """
    left = {name: count for name, (count, _) in wanted.items()}

    def hook_of(name: str, take: Take) -> Callable[..., None]:
        seen = 0

        def hook(_module: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> None:
            nonlocal seen
            first = args[0] if args else next(iter(kwargs.values()))
            if left[name] or to_the_end:
                take(seen, first, output)
            seen += 1
            left[name] -= 1
            if not to_the_end and not any(left.values()):
                raise _SeenError

        return hook

    handles = [
        module.get_submodule(name).register_forward_hook(hook_of(name, take), with_kwargs=True)
        for name, (_, take) in wanted.items()
    ]
    try:
        with contextlib.suppress(_SeenError), torch.no_grad():
            module(*batch.args, **batch.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    if not to_the_end and any(left.values()):
        raise CallsError
