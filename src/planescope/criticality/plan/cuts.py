"""Cuts: the weights that each way takes from a layer, and those that a repair has to keep.

To import this is to import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from planescope.criticality.plan.holding import Form, weight_of
from planescope.criticality.plan.reconstruction import Before, overwrite
from planescope.criticality.replacements import (
    of_bits,
    of_rank,
    pruned,
    weakest_filters,
    without_filters,
)

if TYPE_CHECKING:
    from planescope.criticality.sensitivity.network import Part


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
        held = weight_of(layer)
        weight = held.cpu().numpy()
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
