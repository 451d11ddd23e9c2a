"""The weights of the first update, from which distances are measured."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from planescope.hyperplanes.distances import extent
from planescope.hyperplanes.layer import Array, Layer

# What gives the module that a layer is of, or None where it is gone.
Owner = Callable[[], object]


class Reference(StrEnum):
    """The place where the weights of the first update are kept."""

    DEVICE = "device"
    CPU = "cpu"


@dataclass(eq=False, slots=True)
class Start:
    """A layer's weights at the first update, shape (filters, fan_in)."""

    weight: Array
    _extent: tuple[Array | float, Array | float]

    def extent(self) -> tuple[float, float]:
        """Return the length and peak of the weights; the first to ask waits for the device."""
        length, peak = self._extent = float(self._extent[0]), float(self._extent[1])
        return length, peak


class Starts:
    """The layers' weights as they were first seen.

    Attributes
    ----------
    notes : tuple of str
        From which weights distances are, where those are not the initialisation; each once.
    """

    def __init__(self, reference: Reference | None) -> None:
        self.notes: tuple[str, ...] = ()
        self._reference = reference
        self._starts: dict[str, Start] = {}
        self._loaded: dict[str, Array] = {}  # from a checkpoint, not yet on the layer's device
        self._owners: dict[str, Owner] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled; which modules the layers are of is told by the next update."""
        return vars(self) | {"_owners": {}}

    def __deepcopy__(self, memo: dict[int, Any]) -> Starts:
        """Copy it with the modules that it knows: the copy tells others from them."""
        twin = Starts(self._reference)
        vars(twin).update(copy.deepcopy(self.__getstate__(), memo), _owners=dict(self._owners))
        return twin

    def note(self, text: str) -> None:
        """Add a note on distances once, if they are measured."""
        if self._reference is not None and text not in self.notes:
            self.notes += (text,)

    def follow(self, owners: Mapping[str, Owner]) -> frozenset[str]:
        """Tell which module each layer is of: the same module goes on, another begins anew.

        What a module holds may be exchanged, shared out or computed: it stays the same layer.
        Return the layers that were replaced.
        """
        replaced = set()
        known = self._owners.keys() | self._loaded.keys() | self._starts.keys()
        for name, owner in owners.items():
            before = self._owners.get(name)
            if before is not None and before() is not owner():
                replaced.add(name)
                self._starts.pop(name, None)
                self._loaded.pop(name, None)
                self.note(
                    f"{name} was replaced: its distances are from the first weights of its new "
                    "module"
                )
            elif known and name not in known:
                self.note(f"{name} came later: its distances are from the weights it had then")
            self._owners[name] = owner
        return frozenset(replaced)

    def of(self, layer: Layer, rows: Array, /) -> Start | None:
        """Return the weights that the layer began with.

        Those of now where it is new or has a new shape.
        """
        if self._reference is None:
            return None
        name, start = layer.name, self._starts.get(layer.name)
        began = start.weight if start else self._loaded.pop(name, None)
        if began is not None and tuple(began.shape) != tuple(rows.shape):
            self.note(f"{name} changed its shape: its distances are from the weights it had then")
            start = began = None
        if start is None:
            weight = self._copy(rows if began is None else began, rows)
            start = self._starts[name] = Start(weight, extent(beside(weight, rows)))
        return start

    def _copy(self, weight: Array, rows: Array) -> Array:
        """Copy into memory of our own: what is read may be the network's."""
        if not hasattr(weight, "clone"):
            return weight.copy()
        kept = weight.clone()
        return kept.cpu() if self._reference is Reference.CPU else beside(kept, rows)

    def state_dict(self) -> dict[str, Array]:
        """Return the weights by layer."""
        return self._loaded | {name: start.weight for name, start in self._starts.items()}

    def load_state_dict(self, state: Mapping[str, Any], notes: tuple[str, ...] = ()) -> None:
        """Begin from weights that `state_dict` gave, with what was noted of them."""
        self._loaded, self._starts, self._owners = dict(state), {}, {}
        self.notes = notes


def beside(weight: Array, rows: Array, /) -> Array:
    """Return the weights on the device of others."""
    is_elsewhere = hasattr(weight, "to") and weight.device != rows.device
    return weight.to(rows.device, non_blocking=True) if is_elsewhere else weight
