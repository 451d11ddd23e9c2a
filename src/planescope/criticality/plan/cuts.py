"""The weights that each way takes from a layer, and those that a repair has to keep.

To import this is to import torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from planescope.criticality.plan.allocation import PUT_BACK
from planescope.criticality.plan.fit.changes import Before, overwrite
from planescope.criticality.plan.fit.holding import Form, array_of, weight_of
from planescope.criticality.plan.forms.graphs import GraphNetwork
from planescope.criticality.plan.forms.opening import (
    Opened,
    acting,
    check_finite,
    check_shapes,
    load_file,
    opened,
)
from planescope.criticality.replacements import (
    of_bits,
    of_rank,
    pruned,
    weakest_filters,
    without_filters,
)
from planescope.criticality.resets.weights import with_weights
from planescope.criticality.sensitivity.parts import find_parts
from planescope.files.errors import UsageError
from planescope.networks.live.mapping import read_state_dict
from planescope.training.run import Run

if TYPE_CHECKING:
    from planescope.criticality.sensitivity.parts import Part


@dataclass(frozen=True, kw_only=True, eq=False)
class Knife:
    """A way to take away, and what it needs to know of a network.

    Attributes
    ----------
    way : str
    parts : mapping of str to Part
        By layer, for ``"filters"``: the norm that belongs to it alone.
    starts : mapping of str to torch.Tensor
        For ``"reset"`` and ``"freeze"``: tensors of the state that layers are put back to.
    """

    way: str
    parts: Mapping[str, Part] = field(default_factory=dict)
    starts: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def cut(
        self, changed: nn.Module, name: str, setting: Fraction, /
    ) -> tuple[Form | None, Before]:
        """Take away from a layer in place.

        Returns
        -------
        Form or None
            What has to stay when it is repaired; None where it is not to be repaired.
        list of pairs of tensors
            What was overwritten.
        """
        layer = changed.get_submodule(name)
        if self.way in ("reset", "freeze"):
            return self._put_back(layer, name, setting)
        weight = array_of(layer)
        every = torch.ones(len(weight), weight[0].size, dtype=torch.bool)
        before: Before = []
        match self.way:
            case "prune":
                new = pruned(weight, setting)
                form = Form(stays=torch.from_numpy(new != 0).flatten(1))
            case "bits":
                new = of_bits(weight, int(setting))
                most = 2 ** (int(setting) - 1) - 1
                largest = torch.from_numpy(weight).double().flatten(1).abs().amax(1)
                form = Form(stays=every, most=most, steps=largest / most)
            case "filters":
                gone = torch.from_numpy(weakest_filters(weight, setting))
                new = without_filters(weight, gone.numpy())
                every[gone] = False
                form = Form(stays=every, removed=gone)
                own = self.parts[name]
                for key in filter(None, (own.bias, *own.norm)):
                    _clear(before, _tensor(changed, key), gone)
            case _:
                rank, largest_rank = int(setting), min(every.shape)
                new = of_rank(weight, Fraction(rank, largest_rank))
                form = Form(stays=every, rank=rank if rank < largest_rank else None)
        overwrite(before, layer, torch.from_numpy(np.ascontiguousarray(new)))
        return form, before

    def _put_back(
        self, layer: nn.Module, name: str, setting: Fraction
    ) -> tuple[Form | None, Before]:
        before: Before = []
        weight = weight_of(layer)
        if not setting:
            return Form(stays=torch.ones(weight.flatten(1).shape, dtype=torch.bool)), before
        overwrite(before, layer, self.starts[f"{name}.weight"])
        bias = layer._parameters.get("bias")
        if bias is not None:
            before.append((bias, bias.detach().clone()))
            with torch.no_grad():
                bias.copy_(self.starts[f"{name}.bias"])
        return None, before


def _tensor(module: nn.Module, name: str) -> torch.Tensor:
    owner, _, own = name.rpartition(".")
    found: torch.Tensor = getattr(module.get_submodule(owner), own)
    return found


def _clear(before: Before, tensor: torch.Tensor, which: torch.Tensor) -> None:
    before.append((tensor, tensor.detach().clone()))
    with torch.no_grad():
        tensor[which.to(tensor.device)] = 0


def knife_of(way: str, whole: nn.Module, to: Any, given: Opened, /) -> Knife:
    """Find what a way needs to know of the network."""
    if (to is not None) != (way in PUT_BACK) and not (way in PUT_BACK and _is_run(given)):
        raise UsageError(
            "--to FILE (to=) says to which state layers are reset or frozen: give it with these "
            "ways, and with no other"
        )
    if way in PUT_BACK:
        return Knife(way=way, starts=_starts(to, whole, given))
    if way != "filters":
        return Knife(way=way)
    if isinstance(whole, GraphNetwork):
        return Knife(way=way, parts=whole.parts)
    parts, _, _ = find_parts(whole, "all", None)
    return Knife(way=way, parts={part.layer.name: part for part in parts})


def _is_run(given: Opened) -> bool:
    return given.file is not None and given.source != given.file


def _starts(to: Any, whole: nn.Module, given: Opened) -> Mapping[str, torch.Tensor]:
    """Return tensors of the state that layers are put back to, of the shapes of the network's."""
    if to is None or (isinstance(to, int) and not isinstance(to, bool)):
        to = _snapshot(to, given)
    if isinstance(to, str | os.PathLike):
        if given.architecture is None and given.file is None:
            start: nn.Module = load_file(to, given.module)
        else:
            start = opened(to, given.architecture, "state to put back to").module
    elif isinstance(to, nn.Module):
        start = opened(to, None, "state to put back to").module
    elif isinstance(to, Mapping):
        start = with_weights(given.module, read_state_dict(to), "to=")
    else:
        raise UsageError(f"to= is a {type(to).__name__}; give a module, a state dict or a file")
    own, tensors = acting(whole), acting(start)
    check_shapes(own, tensors, "state to put back to")
    is_file = isinstance(to, str | os.PathLike)
    check_finite(tensors, f"{to}:" if is_file else "the state to put back to")
    if all(bool((own[n] == t.to(own[n].device)).all()) for n, t in tensors.items() if t.ndim > 1):
        raise UsageError(
            "every layer is already what it would be put back to; give another --to (to=)"
        )
    return tensors


def _snapshot(epoch: int | None, given: Opened) -> str:
    if not _is_run(given):
        raise UsageError(f"--to {epoch} (to=): epochs are those of a run; give a module or a file")
    files = Run(given.source).snapshots
    wanted = min(files) if epoch is None else epoch
    if wanted not in files:
        near = min(files, key=lambda one: abs(one - wanted))
        raise UsageError(
            f"{given.source}: has no snapshot of epoch {epoch}; the nearest is of {near}"
        )
    return str(files[wanted])
