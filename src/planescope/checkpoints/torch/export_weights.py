"""Weights of an exported program as its operations meet them: stored, turned, or computed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from planescope.checkpoints.torch.aten import (
    CONVOLUTIONS,
    FLIPS,
    KEEPS,
    SPREADS,
    integers,
    names,
)
from planescope.checkpoints.torch.export_folding import fold
from planescope.hyperplanes.layer import Kind, Layer, Tensor, kind_of_convolution
from planescope.networks.state.axes import filters_first

# Behind the name of a module: the part that it keeps, or computes another from.
_PART = re.compile(r"(\.parametrizations\..*|\.[^.]*)$")

# Tensors that are read for one, counted each time that they are, and how much larger it may be.
_MAX_PARTS = 4096
_MAX_STEPS = 64
_MADE, _TIMES = 1 << 22, 4


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter, or what is made of some, as an operation meets it: a matrix turned or not.

    Attributes
    ----------
    stored : int
        Elements of what it is made of.
    parts, steps : int
        How many tensors are read for it, and how many operations follow one another.
    is_spread : bool
        Whether an operation meets it as a stack of the same matrix.
    """

    name: str
    tensor: Tensor
    turned: bool = False
    stored: int = 0
    parts: int = 1
    steps: int = 0
    is_spread: bool = False

    @property
    def as_met(self) -> Tensor:
        """Return the tensor with the axes as the next operation has them."""
        return transposed(self.tensor) if self.turned else self.tensor


@dataclass
class Weights:
    """The values of a program that are made of its parameters alone."""

    tensors: Mapping[str, Tensor]
    _found: dict[str, Weight] = field(default_factory=dict)

    def add(self, value: str, stored: str) -> None:
        """Take in a parameter or buffer under the name of its value."""
        tensor = self.tensors[stored]
        self._found[value] = Weight(stored, tensor, stored=prod(tensor.shape))

    def of(self, argument: Any) -> Weight | None:
        """Find the weight that an argument is."""
        return next((self._found[name] for name in names(argument) if name in self._found), None)

    def named(self, value: str) -> Weight | None:
        """Find the weight that a value is."""
        return self._found.get(value)

    def follow(
        self, word: str, arguments: Mapping[str, Any], outputs: Sequence[str], source: str | None
    ) -> None:
        """Know a weight again behind operations that turn, copy or change it.

        Parameters
        ----------
        source : str or None
            The largest tensor that the operation reads, whose module the result is named by.
        """
        weight = self.of(arguments.get("self"))
        if outputs and (weight is None or not self._same(weight, word, arguments, outputs[0])):
            self._fold(word, arguments, outputs[0], source)
        if word.endswith("_"):  # in place: what had that name is no more what it was
            for name in names(arguments.get("self")):
                self._found.pop(name, None)

    def _same(self, weight: Weight, word: str, arguments: Mapping[str, Any], output: str) -> bool:
        if word in KEEPS:
            self._found[output] = weight
        elif len(weight.tensor.shape) != 2:
            return False
        elif word in FLIPS:
            dims = integers(arguments.get("dims"))
            if word == "permute" and [dim % 2 for dim in dims] != [1, 0]:
                return False
            self._found[output] = replace(weight, turned=not weight.turned)
        elif word in SPREADS:
            # The same matrix for each example.
            shape = weight.tensor.shape[:: -1 if weight.turned else 1]
            size = tuple(integers(arguments.get("size")))
            if size[-2:] != shape:
                return False
            self._found[output] = replace(weight, is_spread=weight.is_spread or size != shape)
        else:
            return False
        return True

    def _fold(
        self, word: str, arguments: Mapping[str, Any], output: str, source: str | None
    ) -> None:
        read = {key: list(names(argument)) for key, argument in arguments.items()}
        met = {key: self._found.get(held[0]) for key, held in read.items() if len(held) == 1}
        known = {key: weight for key, weight in met.items() if weight is not None}
        if source is None or not known or len(known) != sum(map(len, read.values())):
            return
        if any(weight.is_spread for weight in known.values()):
            return
        parts = sum(weight.parts for weight in known.values())
        steps = 1 + max(weight.steps for weight in known.values())
        stored = sum(weight.stored for weight in known.values())
        if parts > _MAX_PARTS or steps > _MAX_STEPS:
            return
        made = fold(word, arguments, {key: weight.as_met for key, weight in known.items()})
        # A few bytes may claim to be spread without end.
        if made is None or prod(made.shape) > max(_MADE, _TIMES * stored):
            return
        name = f"{module_of_part(source)}.weight"
        self._found[output] = Weight(name, made, stored=stored, parts=parts, steps=steps)


def module_of_part(name: str, /) -> str:
    """Return the module that a tensor is a part of, whatever it is called there."""
    return _PART.sub("", name) or name


def transposed(tensor: Tensor, /) -> Tensor:
    """Return a matrix turned round."""
    return Tensor(tensor.shape[::-1], tensor.dtype, lambda: tensor.read().T, None, tensor.digest)


def layer_of(
    word: str,
    arguments: Mapping[str, Any],
    weight: Weight,
    bias: Weight | None,
) -> Layer | None:
    """Describe a layer by the operation and its weights; None where these do not fit it."""
    tensor = weight.tensor
    groups = next(iter(integers(arguments.get("groups"))), 1)
    if not tensor.is_floating or 0 in tensor.shape or groups < 1:
        return None
    turned = "transpose" in word or arguments.get("transposed", {}).get("as_bool") is True
    if word in CONVOLUTIONS:
        if not 3 <= len(tensor.shape) <= 5 or (turned and tensor.shape[0] % groups):
            return None
        kind = Kind.TRANSPOSED if turned else kind_of_convolution(tensor.shape[2:])
        tensor = filters_first(tensor, groups) if turned else tensor
    else:
        # A product has its matrix as (in, out), `linear` as (out, in).
        if len(tensor.shape) != 2:
            return None
        kind, groups = Kind.LINEAR, 1
        if weight.turned is (word == "linear"):
            tensor = transposed(tensor)
    found = None if bias is None else bias.tensor
    return Layer(
        name=weight.name.removesuffix(".weight"),
        kind=kind,
        weight=tensor,
        bias=found if found is not None and found.shape == tensor.shape[:1] else None,
        groups=groups,
    )
