"""A network whose weights are shared out among processes, put together part by part in a copy."""

from __future__ import annotations

import functools
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from planescope.networks.live.copies import (
    own_tensors,
    shares_out,
    stand_in,
    unshared_class,
    wrapped_in,
)


def stand_in_by_parts(
    network: nn.Module, come_to: Callable[[str], None], /
) -> tuple[nn.Module, dict[str, str]]:
    """Copy a network for evaluation by all processes at once, as `stand_in` does.

    What `fully_shard` has made one part is put together, by all processes, while that part runs.
    Their own hooks would leave the weights of the root together after an evaluation, which a
    training then goes on with though its optimiser has stepped; and one that a failure has left
    half done cannot be begun again.

    Parameters
    ----------
    come_to : callable
        Told of each part before it is put together.

    Returns
    -------
    module
    dict of str to str
        For each module of the network, by its name, the name of its copy.
    """
    memo: dict[int, Any] = {id(t): t for t in own_tensors(network) if hasattr(t, "full_tensor")}
    parts = list(network.named_modules(remove_duplicate=False))
    for _, part in reversed(parts):  # what lies within comes first
        if (inner := _within(part)) is not None:
            memo[id(part)] = stand_in(inner, memo=memo)
    twin: nn.Module = stand_in(network, memo=memo)
    for _, part in parts:
        if _within(part) is None:
            _give_hooks(part, memo[id(part)])
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")  # who uses it has imported it
    kind = getattr(fsdp, "FSDPModule", ())
    leads = {id(memo[id(part)]): memo[id(part)] for _, part in parts if isinstance(part, kind)}
    for lead in leads.values():
        lead.__class__ = unshared_class(lead, kind)
    leads[id(twin)] = twin
    for name, lead in twin.named_modules():
        if id(lead) in leads:
            stores = list(_stores(lead, leads, set()))
            _put_together_in(lead, stores, functools.partial(come_to, f"inputs in {name or 'all'}"))
    named = {id(part): name for name, part in twin.named_modules()}
    return twin, {name: named[id(memo[id(part)])] for name, part in parts}


def _within(module: nn.Module) -> nn.Module | None:
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner: nn.Module = module.module
        return inner
    return wrapped_in(module)


def _give_hooks(part: nn.Module, twin: nn.Module) -> None:
    """Have a copy call the hooks that an evaluation of its module would, but those that share."""
    for around in ("_forward", "_forward_pre"):
        own = vars(part)[f"{around}_hooks"]
        kept = OrderedDict((key, hook) for key, hook in own.items() if not shares_out(hook))
        setattr(twin, f"{around}_hooks", kept)
        for about in ("with_kwargs", "always_called"):
            name = f"{around}_hooks_{about}"
            if name in vars(part):
                setattr(
                    twin,
                    name,
                    OrderedDict((k, v) for k, v in vars(part)[name].items() if k in kept),
                )


def _stores(
    part: nn.Module, leads: dict[int, nn.Module], seen: set[int]
) -> Iterator[dict[str, Any]]:
    """Find where a part holds its weights, without the parts within that lead others."""
    seen.add(id(part))
    yield part._parameters
    yield part._buffers
    for child in part._modules.values():
        if child is not None and id(child) not in leads and id(child) not in seen:
            yield from _stores(child, leads, seen)


def _put_together_in(
    lead: nn.Module, stores: list[dict[str, Any]], come_to: Callable[[], None]
) -> None:
    """Have a module hold whole weights while it runs, in the order of all processes."""
    held: list[tuple[dict[str, Any], str, Any]] = []

    def gather(*_: Any) -> None:
        come_to()
        whole: dict[int, torch.Tensor] = {}  # two modules may hold one weight
        for store in stores:
            for name, tensor in store.items():
                if hasattr(tensor, "full_tensor"):
                    held.append((store, name, tensor))
                    if id(tensor) not in whole:
                        whole[id(tensor)] = _whole(tensor)
        for store, name, tensor in held:
            store[name] = whole[id(tensor)]

    def share_out(*_: Any) -> None:
        for store, name, tensor in held:
            store[name] = tensor
        held.clear()

    lead.register_forward_pre_hook(gather, prepend=True)
    lead.register_forward_hook(share_out)


def _whole(tensor: Any) -> torch.Tensor:
    whole: torch.Tensor = tensor.detach().full_tensor()
    is_parameter = isinstance(tensor, nn.Parameter)
    return nn.Parameter(whole, requires_grad=False) if is_parameter else whole
