"""The modules of a network one by one: which are layers, with what weight; why others are none."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize

from planescope.files.errors import UsageError
from planescope.hyperplanes.layer import (
    Kind,
    Place,
    Skipped,
    StateDict,
    Tensor,
    kind_of_convolution,
)
from planescope.networks.graph.functional import place_of
from planescope.networks.live import affine
from planescope.networks.live.affine import Leaf
from planescope.networks.live.copies import (
    is_hooked,
    own_tensors,
    stand_in,
    weight_hooks,
    without_autocast,
)
from planescope.networks.live.entries import Survey, full_name, outwards
from planescope.networks.live.mapping import array_of, named_tensor
from planescope.networks.live.plain import is_plain
from planescope.networks.live.quantised import enter_quantised, is_quantised
from planescope.networks.live.solved import (
    enter_solved,
    is_callable,
    is_norm,
    may_be_affine,
    no_layer,
    weights_of,
)
from planescope.networks.state import exclusions
from planescope.networks.state.parametrisations import WEIGHT_OR_PARTS, untold_step


def survey(root: nn.Module, /) -> Survey:
    """Look at each module of a network once; none is changed.

    Raises
    ------
    UsageError
        If a layer has no values yet.
    """
    found = Survey()
    settled: set[str | None] = set()  # modules whose parts belong to them
    for name, module in root.named_modules():
        if "" not in settled and settled.isdisjoint(outwards(name)):
            settled.add(_enter(found, name, module))
    _tell_shared(found, root)
    return found


def _enter(found: Survey, name: str, module: nn.Module) -> str | None:
    """Enter one module; give the name of what is settled with all its parts, if anything is."""
    if isinstance(module, parametrize.ParametrizationList):
        return name
    if _is_script(module):
        _enter_script(found, name, module)
        return name
    if is_quantised(module):
        return enter_quantised(found, name, module)
    if (reason := no_layer(module)) is not None:
        found.leave_out(name or type(module).__name__, reason)
        return name
    if (inactive := _inactive(module)) is not None:
        found.leave_out(full_name(name, inactive), exclusions.INACTIVE)
        return full_name(name, inactive)
    place = place_of(module)
    if place is not None and is_as_torch_has_it(module):
        enter_plain(found, name, module, place)
        return None
    if may_be_affine(module) and enter_solved(found, name, module):
        return name
    if isinstance(module, _NormBase):
        found.norm_eps[name] = float(module.eps)
    elif is_callable(module) and (leaf := affine.frozen_norm(module)) is not None:
        found.leaves[module] = leaf
        if leaf.eps is not None:
            found.norm_eps[name] = leaf.eps
    elif is_callable(module) and "running_mean" in module._buffers:
        found.doubtful.append(name)
    _enter_rest(found, name, module)
    return None


def not_followed(module: nn.Module, reason: str, /) -> str:
    """Say what is unknown of a module without a graph, and why there is none."""
    return (
        f"the graph of {type(module).__name__} could not be followed "
        f"({reason.partition(chr(10))[0]}): stages and inputs are unknown, "
        "and norms are paired with layers by order"
    )


def read_script(module: torch.jit.ScriptModule, /) -> StateDict:
    """Read a TorchScript module, whose submodules know what they were scripted from."""
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    tensors = {
        name: named_tensor(name, functools.partial(array_of, name, tensor))
        for name, tensor in held.items()
    }
    if not held:
        raise UsageError(
            "a TorchScript module without parameters: freezing makes them constants of its graph; "
            "measure the module before it is frozen"
        )
    steps = (untold_step(name, each.original_name) for name, each in module.named_modules())
    untold = dict(step for step in steps if step is not None)
    places, skipped = {}, []
    for name, submodule in module.named_modules():
        if (attribute := untold.get(name or "weight")) is not None:
            reason = (
                f"its {attribute} is computed from parts by a formula that TorchScript does not "
                "tell; measure the module before it is scripted"
            )
            skipped.append(Skipped(name=name or "weight", reason=reason))
            for part in submodule.state_dict():
                tensors.pop(full_name(name, part), None)
            continue
        parts = [full_name(name, part) for part in WEIGHT_OR_PARTS]
        # Of spectral norm `weight_v` is a vector.
        held_as = [part for part in parts if part in tensors and len(tensors[part].shape) > 1]
        if not held_as:
            continue
        full = held_as[0]
        weight = tensors[full]
        kind = _SCRIPTED.get(re.sub("^(Mkldnn|Parametrized)", "", submodule.original_name))
        if kind is None:
            reason = (
                f"its class was {submodule.original_name}, and TorchScript does not tell how that "
                "uses its weight; measure the module before it is scripted"
            )
            skipped.append(Skipped(name=name or "weight", reason=reason))
            del tensors[full]
            continue
        kind = kind_of_convolution(weight.shape[2:]) if kind is Kind.CONV else kind
        groups = getattr(submodule, "groups", 1 if kind is Kind.LINEAR else None)
        places[name or "weight"] = Place(kind=kind, groups=groups)
    note = not_followed(module, "TorchScript")
    return StateDict(tensors=tensors, places=places, note=note, skipped=tuple(skipped))


_SCRIPTED = {
    **{f"Conv{n}d": Kind.CONV for n in (1, 2, 3)},
    **{f"ConvTranspose{n}d": Kind.TRANSPOSED for n in (1, 2, 3)},
    **dict.fromkeys(("Linear", "NonDynamicallyQuantizableLinear"), Kind.LINEAR),
}


def _is_script(module: nn.Module) -> TypeGuard[torch.jit.ScriptModule]:
    return isinstance(module, torch.jit.ScriptModule)


def _enter_script(found: Survey, name: str, module: torch.jit.ScriptModule) -> None:
    """Enter a part that was scripted, or packed for one processor, by what its classes were."""
    read = read_script(module)
    found.tensors |= {full_name(name, part): tensor for part, tensor in read.tensors.items()}
    for part, place in read.places.items():
        found.layers[name if part == "weight" else full_name(name, part)] = place
        if part == "weight":  # it is a layer itself
            found.leaves[module] = Leaf(place=place, stride=getattr(module, "stride", 1))
    found.left_out += [
        dataclasses.replace(one, name=full_name(name, one.name)) for one in read.skipped
    ]


def _inactive(module: nn.Module) -> str | None:
    """Name of the part that does not act where adapters keep a whole copy of a module beside it."""
    if not {"original_module", "modules_to_save"} <= module._modules.keys():
        return None
    copies, active = module._modules["modules_to_save"], getattr(module, "active_adapter", None)
    names = active if isinstance(active, list | tuple) else [active]
    acts = copies is not None and not getattr(module, "disable_adapters", False)
    acts = acts and any(name in copies._modules for name in names if isinstance(name, str))
    return "original_module" if acts else "modules_to_save"


# --- layers as torch has them


def is_as_torch_has_it(module: nn.Module, /) -> bool:
    """Tell whether a layer computes what torch's class does, with the weight that it shows."""
    base: Any = next(
        base for base in type(module).__mro__ if base.__module__.startswith("torch.nn.modules.")
    )
    own = type(module)
    return (
        "forward" not in vars(module)
        and own.forward is base.forward
        and getattr(own, "_conv_forward", None) is getattr(base, "_conv_forward", None)
    )


def enter_plain(found: Survey, name: str, module: nn.Module, place: Place, /) -> None:
    """Enter a layer as torch has it; where a weight cannot be computed leave it out.

    Raises
    ------
    UsageError
        If it has no values yet.
    """
    tensors: dict[str, Tensor] = {}
    held = {**module._parameters, **module._buffers}
    for attribute in ("weight", "bias"):
        full = full_name(name, attribute)
        if nn.parameter.is_lazy(held.get(attribute)):
            raise UsageError(f"{full} is not there yet; run a batch through the network first")
        # What is computed is not held: looking at it would compute it as in training.
        if attribute in held and held[attribute] is None:
            continue
        try:
            tensors[attribute] = named_tensor(full, functools.partial(_current, module, attribute))
        except UsageError:
            raise
        except Exception as exc:  # parametrisations are anybody's code
            found.leave_out(name, f"torch cannot compute its {attribute} ({_first_line(exc)})")
            return
    found.add(name, place, tensors["weight"], tensors.get("bias"))
    if is_hooked(module):
        found.hooked.append(name or "weight")


def _first_line(exc: Exception) -> str:
    return f"{type(exc).__name__}: {exc}".partition("\n")[0]


def _current(module: nn.Module, attribute: str) -> torch.Tensor:
    """Return the tensor that forward would use now, computed from its parts where it has parts."""
    if not module._forward_pre_hooks and "parametrizations" not in module._modules:
        held: torch.Tensor = getattr(module, attribute)
        return held.detach()
    is_computed = parametrize.is_parametrized(module, attribute)
    if not is_computed and not weight_hooks(module):
        held = getattr(module, attribute)
        return held.detach()
    with torch.no_grad(), without_autocast(_device(module)):
        # A copy: in training a spectral norm would take a step of its iteration at each look, and
        # the older weight norm, spectral norm and pruning put the weight into the module.
        twin = stand_in(module)
        for hook in twin._forward_pre_hooks.values():
            hook(twin, ())
        computed: torch.Tensor = getattr(twin, attribute)
        return computed.detach()


def _device(module: nn.Module) -> torch.device:
    return next((tensor.device for tensor in own_tensors(module)), torch.device("cpu"))


# --- all else


def _enter_rest(found: Survey, name: str, module: nn.Module) -> None:
    """Enter what may belong to a norm, and parameters that look like weights."""
    weights = weights_of(module)
    for attribute, tensor in {**module._parameters, **module._buffers}.items():
        full = full_name(name, attribute)
        if tensor is None or nn.parameter.is_lazy(tensor):
            continue
        read = functools.partial(_current, module, attribute)
        if sum(extent > 1 for extent in tensor.shape) < 2:
            if tensor.ndim < 2:
                found.tensors[full] = named_tensor(full, read)
        elif attribute.endswith("proj_weight"):
            found.leave_out(full, exclusions.ATTENTION)
        elif attribute in weights.keys() & module._parameters.keys() and not is_norm(module):
            found.loose[full] = (
                f"a parameter of {type(module).__name__}, which is no affine map of one input by "
                "itself: how it acts there is not known"
            )


def _tell_shared(found: Survey, root: nn.Module) -> None:
    """Measure each weight once, under its first name; the other names are told."""
    modules = dict(root.named_modules())
    first: dict[Any, str] = {}
    for name in list(found.layers):
        module = modules["" if name == "weight" and name not in modules else name]
        key = _weight_key(module, found.layers[name])
        owner = first.setdefault(key, name) if key is not None else name
        if owner != name:
            del found.layers[name]
            for part in ("weight", "bias"):
                found.tensors.pop(f"{name}.{part}", None)
            found.shared[name] = owner
            found.leave_out(name, _sharing(owner, modules[owner], module))
    _tell_again(found, root, {module: name for name, module in modules.items()})


def _tell_again(found: Survey, root: nn.Module, first: dict[nn.Module, str]) -> None:
    """Tell under which other names modules that are layers, or hold some, stand in the network."""
    told: list[str] = []
    for name, module in root.named_modules(remove_duplicate=False):
        owner = first[module]
        if owner == name or any(name.startswith(f"{outer}.") for outer in told):
            continue
        inner = [layer for layer in found.layers if f"{layer}.".startswith(f"{owner}.")]
        if inner:
            told.append(name)
            held = "which is" if inner == [owner] else "whose layers are"
            found.leave_out(name, f"the same module as {owner}, {held} measured once")


def _weight_key(module: nn.Module, place: Place) -> Any:
    weight = None if _is_script(module) else module._parameters.get("weight")
    if weight is None or weight.numel() == 0:
        return None
    how = type(module) if not is_known(module) else None
    # Of others' tensor classes, and of what has no storage, all lie at 0.
    where: Any = id(weight)
    if is_plain(weight) and weight.data_ptr() != 0:
        where = (weight.data_ptr(), tuple(weight.shape), weight.stride(), weight.device)
    return (where, weight.dtype, place.kind, place.groups, how)


def is_known(module: nn.Module, /) -> bool:
    """Return whether a module is one of torch's layers, computed as torch does."""
    return place_of(module) is not None and is_as_torch_has_it(module)


def _sharing(owner: str, measured: nn.Module, module: nn.Module) -> str:
    told = f"has the weight of {owner}, with which it is measured once"
    own, other = module._parameters.get("bias"), measured._parameters.get("bias")
    return told if own is other else f"{told}; its bias is another"
