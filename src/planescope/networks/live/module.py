"""Live networks to layers: torch modules, and state dicts of whatever arrays there are."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from planescope.files.errors import UsageError
from planescope.hyperplanes.layer import (
    Kind,
    Place,
    Skipped,
    StateDict,
    Tensor,
    kind_of_convolution,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

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
        The tensors are live: each `read` gives the values of then, detached, on their device. A
        weight that is held as it acts is not copied. One that is computed from others (weight norm,
        spectral norm, pruning, any parametrisation) is the one that is computed; of a class with a
        forward of its own, the one that acts when the module runs in evaluation (`affine.solve`).
        `skipped` names what has weights and no such one, what shares another's, and why. `places`
        holds every layer; where the graph cannot be followed they have the kind alone, and `note`
        says why.

    Raises
    ------
    UsageError
        If a layer has no values yet (a lazy module, the meta device).
    """
    import torch

    from planescope.networks.live.copies import unwrapping

    module = unwrapped(module)
    if isinstance(module, torch.jit.ScriptModule):
        return read_script(module)
    with unwrapping(module):
        return _read(module)


def _read(module: nn.Module) -> StateDict:
    """Return the layers of a module none of whose parts is compiled."""
    from planescope.networks.graph.trace import trace
    from planescope.networks.live.survey import survey

    found = survey(module)
    tensors, places, note = dict(found.tensors), {}, ""
    try:
        traced = trace(module, found.leaves, found.shared)
    except Exception as exc:  # forward is anybody's code and does anything when it is given symbols
        note = _not_followed(module, f"{type(exc).__name__}: {exc}")
        for name in found.doubtful:  # only a graph could tell what they do with it
            if tensors.pop(f"{name}.running_mean", None) is not None:
                reason = "it keeps a running mean, and does not normalise by that alone"
                found.leave_out(name, reason)
    else:
        # Of a network that is one layer itself all that it calls is that layer.
        called = {} if module in found.leaves else traced.functional
        own = {name: held for name, held in called.items() if name not in found.layers}
        for name, held in own.items():
            tensors |= {f"{name}.{part}": tensor for part, tensor in held.tensors.items()}
        places = {n: p for n, p in traced.places.items() if n in found.layers or n in own}
        for held in own.values():
            for source in held.sources:
                found.loose.pop(source, None)
            owner = held.parameter.removesuffix(".weight")
            # Another module takes its weight, and changes it; it is not called itself.
            if owner in found.layers and owner not in traced.places:
                del found.layers[owner]
                tensors = {n: t for n, t in tensors.items() if n.rpartition(".")[0] != owner}
                found.leave_out(owner, f"not called itself; what acts is {held.name}")
    for name, place in found.layers.items():
        places.setdefault(name, place)
    loose = (Skipped(name=name, reason=reason) for name, reason in found.loose.items())
    left_out = [*found.left_out, *loose]
    return StateDict(
        tensors=tensors,
        places=places,
        note=note,
        notes=(_on_hooks(found.hooked),) if found.hooked else (),
        skipped=tuple(left_out),
        norm_eps=found.norm_eps,
    )


def _on_hooks(names: list[str]) -> str:
    others = {1: "", 2: " and 1 other layer"}.get(len(names), f" and {len(names) - 1} other layers")
    return f"hooks on {names[0]}{others} are not run: what they change is not in the table"


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
            tensors[name] = live_tensor(name, value)
    return StateDict(tensors=tensors)


def live_tensor(name: str, value: Any, /) -> Tensor:
    """Describe an array by its name; one that shares its memory is known as the same.

    Raises
    ------
    UsageError
        If it is no array, or has no values.
    """
    tensor = named_tensor(name, functools.partial(_array, name, value))
    # What NumPy itself cannot compute with is widened, and keeps its type: that says how it rounds.
    dtype = value.dtype.name if isinstance(value, np.ndarray) else tensor.dtype
    return dataclasses.replace(tensor, identity=_memory(value), dtype=dtype)


def _memory(value: Any) -> Hashable:
    """Return a key that two arrays share if they have the same memory."""
    if hasattr(value, "data_ptr"):
        from planescope.networks.live.plain import is_plain

        # Of sparse tensors and others' classes torch gives no place in memory, or 0 for all.
        if is_plain(value) and value.data_ptr():
            return value.data_ptr(), value.stride(), str(value.device)
        return id(value)
    if (interface := getattr(value, "__array_interface__", None)) is not None:
        return interface["data"][0], value.strides
    return id(value)


def _array(name: str, value: Any) -> Array:
    """Return the value stored under a name as an array that can be computed with."""
    if isinstance(value, Mapping):
        raise UsageError(f"{name!r} holds a mapping of its own; give that one, mapping[{name!r}]")
    if getattr(value, "is_nested", False):
        raise UsageError(f"{name} is a nested tensor, of parts that are no one array; leave it out")
    if not (hasattr(value, "shape") and hasattr(value, "dtype")):
        raise UsageError(f"{name!r} is a {type(value).__name__}, not an array; leave it out")
    if hasattr(value, "detach"):
        return value.detach()
    if not hasattr(value, "transpose") and hasattr(value, "__array__"):
        return np.asarray(value)  # of a class that NumPy alone can read
    # NumPy itself cannot compute with bfloat16 and float8; float32 holds all of their values.
    if isinstance(value, np.ndarray) and not np.issubdtype(value.dtype, np.floating):
        return value.astype(np.float32) if "float" in value.dtype.name else value
    return value


def named_tensor(name: str, read: Callable[[], Array], /) -> Tensor:
    """Describe an array that can be read again, whatever of torch's kinds it is.

    Raises
    ------
    UsageError
        If it has no values, or its kind cannot be made a plain array.
    """
    array = read()
    if not hasattr(array, "detach"):
        return Tensor(tuple(array.shape), getattr(array.dtype, "name", str(array.dtype)), read)
    from planescope.networks.live.plain import dtype_name, is_plain, plain

    # What is shared out among processes has the type of its parts, for which none is asked.
    part = array.to_local() if hasattr(array, "to_local") else array
    dtype = dtype_name(part if is_plain(part) else plain(name, array))
    # Looked at anew: a training may share a weight out, or pack it, on its way.
    return Tensor(tuple(array.shape), dtype, lambda: plain(name, read()))


def unwrapped(module: nn.Module, /) -> nn.Module:
    """Find the module itself below `torch.compile`, `DataParallel` and other wrappers."""
    from torch import nn
    from torch.optim.swa_utils import AveragedModel

    from planescope.networks.live.copies import wrapped_in

    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
    while True:
        if (inner := wrapped_in(module)) is not None:
            module = inner
        elif isinstance(module, wrappers):
            module = module.module
        else:
            return module


def _not_followed(module: nn.Module, reason: str) -> str:
    return (
        f"the graph of {type(module).__name__} could not be followed "
        f"({reason.partition(chr(10))[0]}): stages and inputs are unknown, "
        "and norms are paired with layers by order"
    )


def read_script(module: torch.jit.ScriptModule, /) -> StateDict:
    """Read a TorchScript module, whose submodules know what they were scripted from."""
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    tensors = {
        name: named_tensor(name, functools.partial(_array, name, tensor))
        for name, tensor in held.items()
    }
    if not held:
        raise UsageError(
            "a TorchScript module without parameters: freezing makes them constants of its graph; "
            "measure the module before it is frozen"
        )
    places, skipped = {}, []
    for name, submodule in module.named_modules():
        full = f"{name}.weight" if name else "weight"
        weight = tensors.get(full)
        if weight is None or len(weight.shape) < 2:
            continue
        kind = _SCRIPTED.get(submodule.original_name.removeprefix("Mkldnn"))
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
    note = _not_followed(module, "TorchScript")
    return StateDict(tensors=tensors, places=places, note=note, skipped=tuple(skipped))


_SCRIPTED = {
    **{f"Conv{n}d": Kind.CONV for n in (1, 2, 3)},
    **{f"ConvTranspose{n}d": Kind.TRANSPOSED for n in (1, 2, 3)},
    **dict.fromkeys(("Linear", "NonDynamicallyQuantizableLinear"), Kind.LINEAR),
}
