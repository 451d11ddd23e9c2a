"""The layers that the modules of a network give one by one, as they are entered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from planescope.hyperplanes.layer import Place, Skipped, Tensor
from planescope.networks.live.affine import Leaf

if TYPE_CHECKING:
    from torch import nn


@dataclass(eq=False)
class Survey:
    """The layers that the modules of a network give one by one.

    Attributes
    ----------
    tensors : dict of str to Tensor
        Weights that act and biases of layers, as torch lays them out, and what else may belong to
        norms; by full name, in the order of the modules.
    layers : dict of str to Place
        By the name of the module.
    leaves : dict of module to Leaf
        Layers and norms that no graph should look into.
    shared : dict of str to str
        Layers that have another's weight, by name, with that of the one that is measured.
    left_out : list of Skipped
    doubtful : list of str
        Modules that keep a running mean, and by themselves do not normalise by it.
    loose : dict of str to str
        Parameters that look like weights, in modules that are no layer by themselves, with why.
    norm_eps : dict of str to float
        Epsilon of batch norms by name.
    hooked : list of str
        Layers with hooks that may change what goes in or comes out.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    layers: dict[str, Place] = field(default_factory=dict)
    leaves: dict[nn.Module, Leaf] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    left_out: list[Skipped] = field(default_factory=list)
    doubtful: list[str] = field(default_factory=list)
    loose: dict[str, str] = field(default_factory=dict)
    norm_eps: dict[str, float] = field(default_factory=dict)
    hooked: list[str] = field(default_factory=list)

    def add(self, name: str, place: Place, weight: Tensor, bias: Tensor | None) -> None:
        """Enter a layer."""
        self.layers[name or "weight"] = place
        self.tensors[full_name(name, "weight")] = weight
        if bias is not None:
            self.tensors[full_name(name, "bias")] = bias

    def leave_out(self, name: str, reason: str) -> None:
        """Enter what is no layer, with the reason."""
        self.left_out.append(Skipped(name=name, reason=reason))


def full_name(name: str, attribute: str) -> str:
    """Return the name of what a module holds."""
    return f"{name}.{attribute}" if name else attribute


def outwards(name: str, /) -> Iterator[str]:
    """Yield the name of a module, and those of the modules that it is in."""
    while name:
        yield name
        name = name.rpartition(".")[0]
