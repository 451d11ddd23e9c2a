"""Copies of modules in evaluation, on which a forward may run without a trace in the module."""

from __future__ import annotations

import contextlib
import copy
import random
import sys
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

_HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_backward_hooks", "_backward_pre_hooks"),
)


def stand_in(
    module: nn.Module, /, *, dtype: torch.dtype | None = None, memo: dict[int, Any] | None = None
) -> nn.Module:
    """Copy a module with all that it holds, for evaluation, without the hooks of others.

    Hooks that compute a weight before each call stay. `copy.deepcopy` would refuse tensors that
    are computed from others.

    Parameters
    ----------
    dtype : torch.dtype, optional
        Of the copies of what is floating; by default that of each.
    """
    memo = {} if memo is None else memo
    if id(module) in memo:
        known: nn.Module = memo[id(module)]
        return known
    if isinstance(module, torch.jit.ScriptModule):
        raise TypeError("TorchScript has no copy that shares nothing")
    twin = memo[id(module)] = object.__new__(type(module))
    held = {name: _copied(value, dtype, memo) for name, value in vars(module).items()}
    for part in ("_parameters", "_buffers"):
        held[part] = {name: _copied(t, dtype, memo) for name, t in vars(module)[part].items()}
    held["_modules"] = {
        name: child and stand_in(child, dtype=dtype, memo=memo)
        for name, child in module._modules.items()
    }
    held |= {name: OrderedDict() for name in _HOOKS if name in held}
    held["_forward_pre_hooks"] = OrderedDict(enumerate(weight_hooks(module)))
    held |= {"training": False, "_compiled_call_impl": None}
    vars(twin).update(held)
    return twin


def deep_copy(module: nn.Module, /, *, memo: dict[int, Any] | None = None) -> nn.Module:
    """Copy a module as `copy.deepcopy` does, with tensors that hooks have computed from others.

    Old weight norm and pruning leave such ones behind after each call. Weights that
    `fully_shard` has shared out are put together, by all processes.

    Parameters
    ----------
    memo : dict, optional
        Copies that are known already, by the `id` of what they are of.
    """
    held = (value for part in module.modules() for value in vars(part).values())
    computed = (t for t in held if isinstance(t, torch.Tensor) and not t.is_leaf)
    known = {id(tensor): tensor.detach().clone() for tensor in computed} | (memo or {})
    with _unsharded_classes(module):
        return copy.deepcopy(module, known | _put_together(module))


def _put_together(module: nn.Module) -> dict[int, Any]:
    """Return whole weights in place of shared ones, and nothing in place of who shares them."""
    known: dict[int, Any] = {}
    for parameter in module.parameters():
        if hasattr(parameter, "full_tensor"):
            whole = parameter.detach().full_tensor().clone()
            known[id(parameter)] = nn.Parameter(whole, requires_grad=parameter.requires_grad)
    for part in module.modules() if known else ():
        for value in vars(part).values():
            held = value.values() if isinstance(value, dict) else ()
            if any(_shares(each) for each in held):
                known[id(value)] = {}
    return known


def _shares(value: Any) -> bool:
    """Tell what holds the processes among which a module's weights are shared out."""
    of_torch = type(value).__module__.startswith("torch.distributed.")
    return of_torch and not isinstance(value, torch.Tensor | nn.Module)


@contextlib.contextmanager
def _unsharded_classes(module: nn.Module) -> Iterator[None]:
    """Parts that `fully_shard` has given a class of its own, meanwhile in the one they had."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")  # who uses it has imported it
    kind = getattr(fsdp, "FSDPModule", ())
    changed = [(part, type(part)) for part in module.modules() if isinstance(part, kind)]
    try:
        for part, _ in changed:
            part.__class__ = unshared_class(part, kind)
        yield
    finally:
        for part, own in changed:
            part.__class__ = own


def unshared_class(module: nn.Module, kind: Any, /) -> type:
    """Find the class that a module had before `fully_shard` gave it one of its own `kind`."""
    return next(each for each in type(module).__mro__ if not issubclass(each, kind))


# Under these names `torch.compile`, the checkpoints of activations and `FullyShardedDataParallel`
# hold the part they wrap.
_WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


def without_wrappers(module: nn.Module, /) -> nn.Module:
    """Put the parts that `torch.compile` and the like wrap in the place of what wraps them.

    They have their own names then.
    """
    for part, name, _ in _wrapped(module):
        while (inner := wrapped_in(part._modules[name])) is not None:
            part._modules[name] = inner
    return module


def plain_name(name: str, /) -> str:
    """Return the name of a tensor or a module without what wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPED)


def wrapped_in(module: nn.Module | None, /) -> nn.Module | None:
    """Return the module that `torch.compile` or the like wraps; None where it is no wrapper."""
    held = {} if module is None else module._modules
    return next((held[name] for name in _WRAPPED if name in held), None)


@contextlib.contextmanager
def unwrapping(module: nn.Module, /) -> Iterator[None]:
    """Do as `without_wrappers` within a block."""
    held = _wrapped(module)
    without_wrappers(module)
    try:
        yield
    finally:
        for part, name, child in held:
            part._modules[name] = child


def _wrapped(module: nn.Module) -> list[tuple[nn.Module, str, nn.Module | None]]:
    """Return who holds a wrapped part, its name there, and what wraps it; the outer ones first."""
    return [
        (part, name, child)
        for part in module.modules()
        for name, child in part._modules.items()
        if wrapped_in(child) is not None
    ]


def _copied(value: Any, dtype: torch.dtype | None, memo: dict[int, Any]) -> Any:
    if isinstance(value, torch.Tensor):
        if id(value) not in memo:
            memo[id(value)] = _own(value, dtype)
        return memo[id(value)]
    return copy.copy(value) if isinstance(value, dict | list | set) else value


def _own(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    if hasattr(tensor, "full_tensor"):  # shared out among processes
        whole = tensor.detach().full_tensor()
        tensor = nn.Parameter(whole, requires_grad=False)
    # What others made of a tensor knows how to be one only as it is.
    if type(tensor) not in (torch.Tensor, nn.Parameter) or is_undrawn(tensor):
        return tensor
    floating = tensor.is_floating_point() and not tensor.is_quantized
    own = tensor.detach().clone()
    own = own.to(dtype) if dtype is not None and floating else own
    return nn.Parameter(own, requires_grad=False) if isinstance(tensor, nn.Parameter) else own


def weight_hooks(module: nn.Module, /) -> list[Any]:
    """Return the hooks that compute a weight of the module before each call.

    Torch's own, and others.

    Another's hook is one where what it would compute lies in the module: a tensor that is
    neither parameter nor buffer, and that no hook of torch's computes.
    """
    own = [hook for hook in module._forward_pre_hooks.values() if _computes(hook)]
    computed = {getattr(hook, "_tensor_name", getattr(hook, "name", "weight")) for hook in own}
    open_parts = any(
        isinstance(value, torch.Tensor) and name not in computed
        for name, value in vars(module).items()
    )
    return [
        hook
        for number, hook in module._forward_pre_hooks.items()
        if _computes(hook)
        or (
            open_parts
            and number not in module._forward_pre_hooks_with_kwargs
            and not shares_out(hook)
        )
    ]


def is_hooked(module: nn.Module, /) -> bool:
    """Tell whether hooks change what a module computes, but those that compute its weight.

    Those of `fully_shard` and tensor parallelism put weights and inputs together.
    """
    after, before = module._forward_hooks.values(), module._forward_pre_hooks.values()
    others = [hook for hook in before if not shares_out(hook)]
    return len(others) > len(weight_hooks(module)) or not all(map(shares_out, after))


def shares_out(hook: Any, /) -> bool:
    """Tell hooks of torch's ways to share weights out among processes."""
    return str(getattr(hook, "__module__", "")).startswith("torch.distributed.")


def _computes(hook: Any) -> bool:
    """Tell hooks of torch's own ways to compute a weight, as objects of their classes."""
    return type(hook).__module__.startswith("torch.nn.utils.")


def base_layer(module: nn.Module, /) -> nn.Module:
    """Find the layer that adapters wrap, or the module itself."""
    while isinstance(below := module._modules.get("base_layer"), nn.Module):
        module = below
    return module


def own_tensors(module: nn.Module, /, *, recurse: bool = True) -> list[torch.Tensor]:
    """Return parameters and buffers of a module and of all within it, each once, in its order."""
    held = (*module.parameters(recurse), *module.buffers(recurse))
    return list({id(tensor): tensor for tensor in held}.values())


def is_undrawn(tensor: torch.Tensor, /) -> bool:
    """Return whether a tensor has no values: of a lazy module, on the meta device, a fake one."""
    from torch._subclasses.fake_tensor import FakeTensor

    return bool(nn.parameter.is_lazy(tensor) or tensor.is_meta or isinstance(tensor, FakeTensor))


@contextlib.contextmanager
def without_autocast(device: torch.device, /) -> Iterator[None]:
    """Run in the types that are stored, whatever autocast the caller is in."""
    known = torch.amp.is_autocast_available(device.type)
    with torch.autocast(device.type, enabled=False) if known else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def same_random_states(*generators: torch.Generator) -> Iterator[None]:
    """Leave all generators that anybody's code may draw from as they were."""
    own = [(one, one.get_state()) for one in generators]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  the user's, kept
    host = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(host)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        for generator, state in own:
            generator.set_state(state)
