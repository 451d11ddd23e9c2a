"""A user's network while its layers are reset: a copy, and nothing else that is left changed.

To import this is to import torch.
"""

from __future__ import annotations

import contextlib
import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from planescope.files.errors import UsageError, one_line
from planescope.networks.graph.trace import remembered
from planescope.networks.live.copies import deep_copy, plain_name, shares_out, without_wrappers
from planescope.networks.live.module import note_on_hooks

# What a LightningModule holds of its trainer, data and loops among it.
_OF_A_TRAINER = ("_trainer", "_fabric")


_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)  # fmt: skip


def borrowed(module: nn.Module, /, *, whole: bool = True) -> nn.Module:
    """Copy a network, with torch's own hooks alone: nothing of the user's is called.

    Parameters
    ----------
    whole : bool
        Whether weights that are computed from others (masks, norms) are held as they act; else they
        stay in their parts.

    Raises
    ------
    UsageError
        If it cannot be copied, its weights are quantised, or a hook of the user's computes one.
    """
    _refuse_quantised(module)
    _refuse_computed(module)
    if isinstance(module, torch.jit.ScriptModule):
        raise UsageError("TorchScript holds its weights fast; give the module that it was made of")
    held = [(vars(part), name) for part in module.modules() for name in _OF_A_TRAINER]
    kept = [(attributes, name, attributes[name]) for attributes, name in held if name in attributes]
    try:
        for attributes, name, _ in kept:
            attributes[name] = None
        own = deep_copy(module, memo=_own_hooks(module))
    except Exception as exc:  # a lock, an open file: a module holds whatever its class likes
        raise UsageError(
            f"{type(module).__name__} cannot be copied ({one_line(exc)}); give a network that "
            "copy.deepcopy takes"
        ) from exc
    finally:
        for attributes, name, value in kept:
            attributes[name] = value
    own = without_wrappers(own)
    if whole:
        for part in own.modules():
            with_whole_weights(part)
    return remembered(own.eval())


def unheeded_hooks(module: nn.Module, /, of: str = "") -> tuple[str, ...]:
    """Say which modules have hooks of the user's in evaluation, which a copy has not."""
    names = [
        plain_name(name) or type(module).__name__
        for name, part in module.named_modules()
        if any(
            map(_is_unheeded, (*part._forward_hooks.values(), *part._forward_pre_hooks.values()))
        )
    ]
    return note_on_hooks(names, of)


def _is_unheeded(hook: Any) -> bool:
    return not _is_of_torch(hook) and not shares_out(hook)


def _refuse_computed(module: nn.Module) -> None:
    """Refuse weights that hooks of the user's compute: without them they are those of once."""
    for name, part in module.named_modules():
        loose = [
            held for held in ("weight", "bias") if isinstance(vars(part).get(held), torch.Tensor)
        ]
        if loose and any(map(_is_unheeded, part._forward_pre_hooks.values())):
            where = plain_name(name) or type(module).__name__
            raise UsageError(
                f"{where} has a {loose[0]} that a hook of its own computes before each call, and "
                f"such hooks are not run; give the network with that {loose[0]} as a parameter, or "
                "by torch.nn.utils.parametrize"
            )


def _own_hooks(module: nn.Module) -> dict[int, Any]:
    """Return torch's own hooks of each part in place of all, which may hold what nobody copies."""
    every = (getattr(part, name, None) for part in module.modules() for name in _HOOKS)
    return {
        id(hooks): OrderedDict(
            (key, copy.deepcopy(hook)) for key, hook in hooks.items() if _is_of_torch(hook)
        )
        for hooks in every
        if hooks
    }


def _refuse_quantised(module: nn.Module) -> None:
    """Refuse packed weights, which can be measured and not changed in part."""
    for name, part in module.named_modules():
        held = [*part.parameters(recurse=False), *part.buffers(recurse=False)]
        packed = type(part).__module__.startswith("torch.ao.nn") and (
            hasattr(part, "_packed_params") or hasattr(part, "_weight_bias")
        )
        if packed or any(tensor.is_quantized for tensor in held):
            raise UsageError(
                f"{name or type(module).__name__} is quantised (a {type(part).__name__}): its "
                "weights are packed, and nothing can be put in their place; give the network "
                "before it was quantised"
            )


def with_whole_weights(part: nn.Module, /) -> None:
    """Give a module the weights that act in place of the parts they are computed from.

    What is put back is then a weight, whether or not it was pruned or normed where it comes from.
    """
    from torch.nn.utils import prune, remove_spectral_norm, remove_weight_norm

    part.eval()  # a spectral norm would take a step
    if torch.nn.utils.parametrize.is_parametrized(part):
        # Torch's own removal changes the class, which the user's module shares.
        own = part.__class__.__bases__[0]
        with contextlib.suppress(Exception), torch.no_grad():  # a computation of somebody's own
            wholes = {name: getattr(part, name) for name in part.parametrizations}
            del part._modules["parametrizations"]
            part.__class__ = own
            for name, whole in wholes.items():
                part.register_parameter(name, nn.Parameter(whole.detach().clone()))
    for method in list(part._forward_pre_hooks.values()):
        name = getattr(method, "_tensor_name", None) or getattr(method, "name", None)
        with contextlib.suppress(Exception):
            if isinstance(method, prune.BasePruningMethod):
                prune.remove(part, name)
            elif type(method).__name__ == "WeightNorm":
                remove_weight_norm(part, name)
            elif type(method).__name__ == "SpectralNorm":
                remove_spectral_norm(part, name)


def _is_of_torch(hook: Any) -> bool:
    """Tell hooks by which torch computes a weight from others."""
    inner = getattr(hook, "hook", hook)  # torch wraps some
    owner = getattr(inner, "__self__", inner)
    modules = (getattr(inner, "__module__", ""), type(owner).__module__)
    return any(str(name).startswith("torch.nn.") for name in modules)
