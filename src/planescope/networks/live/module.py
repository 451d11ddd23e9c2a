"""Live networks to layers: torch modules, found, traced and read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planescope.hyperplanes.layer import (
    Skipped,
    StateDict,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn


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
    from planescope.networks.live.survey import read_script

    module = unwrapped(module)
    if isinstance(module, torch.jit.ScriptModule):
        return read_script(module)
    with unwrapping(module):
        return _read(module)


def _read(module: nn.Module) -> StateDict:
    """Return the layers of a module none of whose parts is compiled."""
    from planescope.networks.graph.called import Called, enter_called
    from planescope.networks.graph.trace import trace
    from planescope.networks.graph.unused import SecondLook
    from planescope.networks.live.survey import not_followed, survey

    found, called, note = survey(module), Called(), ""
    look = SecondLook(module, found.leaves)
    try:
        traced = trace(module, found.leaves, found.shared)
        if module not in found.leaves:
            look.refuse_misled(found.layers, traced.usage)
    except Exception as exc:  # forward is anybody's code and does anything when it is given symbols
        note = not_followed(module, f"{type(exc).__name__}: {exc}")
        for name in found.doubtful:  # only a graph could tell what they do with it
            if found.tensors.pop(f"{name}.running_mean", None) is not None:
                reason = "it keeps a running mean, and does not normalise by that alone"
                found.leave_out(name, reason)
    else:
        called = enter_called(found, module, traced, look)
    places = {**called.places}
    for name, place in found.layers.items():
        places.setdefault(name, place)
    loose = (Skipped(name=name, reason=reason) for name, reason in found.loose.items())
    left_out = [*found.left_out, *loose]
    return StateDict(
        tensors=found.tensors,
        places=places,
        note=note,
        notes=(*called.notes, *note_on_hooks(found.hooked)),
        skipped=tuple(left_out),
        norm_eps=found.norm_eps,
    )


def note_on_hooks(names: Sequence[str], of: str = "") -> tuple[str, ...]:
    """Say which parts of a network have hooks that were not run; nothing where none has."""
    if not names:
        return ()
    others = {1: "", 2: " and 1 other"}.get(len(names), f" and {len(names) - 1} others")
    return (f"hooks on {names[0]}{others}{of} are not run: what they change is in no number here",)


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
