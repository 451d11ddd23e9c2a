"""Live networks to layers: torch modules, and state dicts of whatever arrays there are."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from planescope.files.errors import UsageError
from planescope.hyperplanes.layer import Kind, Place, StateDict, Tensor, kind_of_convolution

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    import torch
    from torch import nn

    from planescope.hyperplanes.layer import Array


def read_module(module: nn.Module, /) -> StateDict:
    """Find what a torch module holds, and from its graph where its layers stand.

    Parameters
    ----------
    module : torch.nn.Module
        As it is: compiled, on any device, in training or not. It is left exactly so. Of a wrapper
        (`torch.compile`, `DataParallel`, `DistributedDataParallel`) what it wraps is read.

    Returns
    -------
    StateDict
        The tensors are live: each `read` gives the values of then, detached, on their device, not
        copied. A weight that is computed from others (weight norm, spectral norm, pruning) is the
        one that is computed. `places` holds every layer; where the graph cannot be followed they
        have the kind alone, and `note` says why.

    Raises
    ------
    UsageError
        If a layer has no values yet (a lazy module, the meta device) or they are quantised.
    """
    import torch

    from planescope.networks.trace import place_of, trace_places

    module = unwrapped(module)
    if isinstance(module, torch.jit.ScriptModule):
        return _read_script(module)
    tensors = dict(_tensors(module))
    try:
        places, note = trace_places(module), ""
    except Exception as exc:  # forward is anybody's code and does anything when it is given symbols
        places, note = {}, _not_followed(module, f"{type(exc).__name__}: {exc}")
    for name, submodule in module.named_modules():
        if (place := place_of(submodule)) is not None:
            places.setdefault(name or "weight", place)
    return StateDict(tensors=tensors, places=places, note=note)


def read_state_dict(mapping: Mapping[str, Any], /) -> StateDict:
    """Find what a state dict holds.

    Parameters
    ----------
    mapping : mapping of str to array
        Arrays of torch, NumPy, JAX or CuPy by their full names (``features.0.weight``).

    Raises
    ------
    UsageError
        If a name is no string, or a value is no array or holds no numbers to measure.
    """
    tensors = {}
    for name, value in mapping.items():
        if not isinstance(name, str):
            raise UsageError(f"a state dict has names for keys, not {name!r}")
        # torch keeps whatever a module likes under this name.
        if not name.endswith("_extra_state"):
            tensor = _tensor(name, functools.partial(_array, name, value))
            tensors[name] = dataclasses.replace(tensor, identity=_memory(value))
    return StateDict(tensors=tensors)


def _memory(value: Any) -> Hashable:
    """What is equal for two arrays that are one."""
    if hasattr(value, "data_ptr") and hasattr(value, "stride"):
        return value.data_ptr(), value.stride(), str(value.device)
    if (interface := getattr(value, "__array_interface__", None)) is not None:
        return interface["data"][0], value.strides
    return id(value)


def _array(name: str, value: Any) -> Array:
    """What is stored under a name, as an array that can be computed with."""
    if isinstance(value, Mapping):
        raise UsageError(f"{name!r} holds a mapping of its own; give that one, mapping[{name!r}]")
    if not (hasattr(value, "shape") and hasattr(value, "dtype")):
        raise UsageError(f"{name!r} is a {type(value).__name__}, not an array; leave it out")
    if hasattr(value, "detach"):
        return value.detach()
    import numpy as np

    # NumPy itself cannot compute with bfloat16 and float8; float32 holds all of their values.
    if isinstance(value, np.ndarray) and not np.issubdtype(value.dtype, np.floating):
        return value.astype(np.float32) if "float" in value.dtype.name else value
    return value


def _tensor(name: str, read: Callable[[], Array]) -> Tensor:
    array = read()
    if getattr(array, "is_meta", False):
        raise UsageError(f"{name} is on the meta device and has no values; load the weights first")
    if getattr(array, "is_quantized", False):
        raise UsageError(f"{name} is quantised ({array.dtype}); measure the network before that")
    dtype = getattr(array.dtype, "name", str(array.dtype).removeprefix("torch."))
    return Tensor(tuple(array.shape), dtype, read)


def unwrapped(module: nn.Module, /) -> nn.Module:
    """Find the module itself below `torch.compile`, `DataParallel` and the like."""
    from torch import nn

    while True:
        if "_orig_mod" in module._modules:  # torch.compile; its class would take a second to import
            module = module._orig_mod
        elif isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        else:
            return module


def _not_followed(module: nn.Module, reason: str) -> str:
    return (
        f"the graph of {type(module).__name__} could not be followed "
        f"({reason.partition(chr(10))[0]}): stages and inputs are unknown, "
        "and norms are paired with layers by order"
    )


def _tensors(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What modules hold by full name; a computed weight in place of its parts."""
    from torch import nn

    from planescope.networks.trace import place_of

    no_layers = (nn.Embedding, nn.EmbeddingBag, nn.Bilinear, nn.LayerNorm, nn.RMSNorm)
    for name, module in root.named_modules():
        if ".quantized." in type(module).__module__:
            raise UsageError(f"{name} is a quantised layer; measure the network before that")
        # Their weights have the rank of a linear layer's, and the names of one.
        if isinstance(module, no_layers) or "parametrizations" in name.split("."):
            continue
        held = {**module._parameters, **module._buffers}
        for attribute in held if place_of(module) is None else ("weight", "bias"):
            full = f"{name}.{attribute}" if name else attribute
            if nn.parameter.is_lazy(held.get(attribute)):
                raise UsageError(f"{full} is not there yet; run a batch through the network first")
            # What is computed is not held: looking at it would compute it as in training.
            if attribute not in held or held[attribute] is not None:
                yield full, _tensor(full, functools.partial(_current, module, attribute))


def _current(module: nn.Module, attribute: str) -> torch.Tensor:
    """The tensor that forward would use now, computed from its parts where it has parts."""
    if not module._forward_pre_hooks and "parametrizations" not in module._modules:
        held: torch.Tensor = getattr(module, attribute)
        return held.detach()
    import torch
    from torch.nn.utils import parametrize

    with torch.no_grad():
        if parametrize.is_parametrized(module, attribute):
            # In training a spectral norm would take a step of its power iteration at each look.
            with _evaluating(module.parametrizations[attribute]):
                return getattr(module, attribute).detach()
        hooks = [
            hook
            for hook in module._forward_pre_hooks.values()
            if type(hook).__module__.startswith("torch.nn.utils.")
        ]
        if hooks:
            # The older weight norm, spectral norm and pruning compute the weight before each call;
            # here they do on a stand-in that shares the parts.
            stand_in = object.__new__(type(module))
            vars(stand_in).update(vars(module), training=False)
            for hook in hooks:
                hook(stand_in, ())
            module = stand_in
        return getattr(module, attribute).detach()


@contextlib.contextmanager
def _evaluating(root: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in root.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _read_script(module: torch.jit.ScriptModule) -> StateDict:
    """Read a TorchScript module, whose submodules know what they were scripted from."""
    tensors = {
        name: _tensor(name, functools.partial(_array, name, tensor))
        for name, tensor in module.state_dict().items()
    }
    places = {}
    for name, submodule in module.named_modules():
        weight = tensors.get(f"{name}.weight" if name else "weight")
        kind = _SCRIPTED.get(submodule.original_name)
        if weight is not None and kind is not None:
            kind = kind_of_convolution(weight.shape[2:]) if kind is Kind.CONV else kind
            groups = getattr(submodule, "groups", 1 if kind is Kind.LINEAR else None)
            places[name or "weight"] = Place(kind=kind, groups=groups)
    return StateDict(tensors=tensors, places=places, note=_not_followed(module, "TorchScript"))


_SCRIPTED = {
    **{f"Conv{n}d": Kind.CONV for n in (1, 2, 3)},
    **{f"ConvTranspose{n}d": Kind.TRANSPOSED for n in (1, 2, 3)},
    "Linear": Kind.LINEAR,
}
