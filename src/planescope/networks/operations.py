"""The operations of networks that are sequences, and what follows from them; without torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from planescope.files.errors import CheckpointError
from planescope.hyperplanes.layer import Kind, Place
from planescope.networks.graph.places import Node, Position, Role, follow

Activation = Literal["leaky", "gelu", "tanh"]

# PyTorch's default, which all of these networks keep.
NORM_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class Convolution:
    """Two-dimensional, with bias, a square kernel larger than 1, and zero padding."""

    filters: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    name: str = ""

    def __str__(self) -> str:
        return f"a {self.kernel}×{self.kernel} convolution"


@dataclass(frozen=True, slots=True)
class Linear:
    """Fully connected, with bias; `filters` is None where there are as many as classes."""

    filters: int | None
    name: str = ""

    def __str__(self) -> str:
        return "a linear layer"


@dataclass(frozen=True, slots=True)
class BatchNorm:
    """Over the filters of the layer before it."""

    name: str = ""

    def __str__(self) -> str:
        return "a batch norm"


@dataclass(frozen=True, slots=True)
class ReLU:
    """The rectifier."""

    name: str = ""


@dataclass(frozen=True, slots=True)
class Smooth:
    """An activation that cuts nothing off: leaky ReLU (slope 0.01), GELU or tanh."""

    kind: Activation = "gelu"
    name: str = ""


@dataclass(frozen=True, slots=True)
class GroupNorm:
    """Over groups of the filters of the layer before it, in each example."""

    groups: int = 2
    name: str = ""

    def __str__(self) -> str:
        return "a group norm"


@dataclass(frozen=True, slots=True)
class Dropout:
    """Sets the share `probability` of its inputs to zero in training."""

    probability: float = 0.5
    name: str = ""


@dataclass(frozen=True, slots=True)
class MaxPool:
    """Takes the image down a stage."""

    kernel: int = 2
    stride: int = 2
    name: str = ""


@dataclass(frozen=True, slots=True)
class AveragePool:
    """Adaptive: gives `size` × `size` whatever comes in."""

    size: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class Flatten:
    """Image to vector."""

    name: str = ""


WithWeight = Convolution | Linear | BatchNorm | GroupNorm
Operation = WithWeight | ReLU | Smooth | Dropout | MaxPool | AveragePool | Flatten


_ROLES: dict[type[Operation], Role] = {
    Convolution: Role.LAYER,
    Linear: Role.LAYER,
    BatchNorm: Role.NORM,
    GroupNorm: Role.SHIFT,
    ReLU: Role.RELU,
    Smooth: Role.OTHER,
    Dropout: Role.IDENTITY,
    MaxPool: Role.VIEW,
    AveragePool: Role.VIEW,
    Flatten: Role.VIEW,
}


class Initialiser(StrEnum):
    """The way weights are drawn; biases are zero except in `TORCH`."""

    XAVIER = "xavier"  # uniform, with the gain of a ReLU
    KAIMING = "kaiming"  # normal, for the outputs and a ReLU
    VGG = "vgg"  # convolutions as KAIMING, linear layers as NORMAL
    NORMAL = "normal"  # N(0, 0.01²)
    TORCH = "torch"  # whatever torch.nn does by itself


@dataclass(frozen=True, slots=True)
class Network:
    """Operations in the order in which an image goes through them."""

    operations: tuple[Operation, ...]
    initialiser: Initialiser

    @property
    def smallest_image(self) -> int:
        """Return the least height and width of an image that it can take, in pixels."""
        size = 1
        for operation in reversed(self.operations):
            match operation:
                case Convolution(kernel=kernel, stride=stride, padding=padding):
                    size = max(1, (size - 1) * stride + kernel - 2 * padding)
                case MaxPool(kernel=kernel, stride=stride):
                    size = (size - 1) * stride + kernel
        return size

    def places(self) -> dict[str, Place]:
        """Return the place of each layer by the name of its module, in order."""
        nodes = [Node(role=Role.IMAGE)]
        for operation in self.operations:
            nodes.append(_node(operation, reads=len(nodes) - 1))
        layers = {o.name: o for o in self.operations if isinstance(o, Convolution | Linear)}
        return {
            layer: _place(layers[layer], position, self.operations)
            for layer, position in follow(nodes).items()
        }

    def modules(self) -> set[str]:
        """Return the names of all modules that have a weight."""
        return {one.name for one in self.operations if isinstance(one, WithWeight)}

    def misfit(self, shapes: Mapping[str, tuple[int, ...]], /) -> str | None:
        """Return the first difference from shapes of weights, or None; any width will do."""
        return _misfit(self.operations, shapes)

    def width_of(self, shapes: Mapping[str, tuple[int, ...]], /) -> float:
        """Return the factor that gives every layer its number of filters, each rounded.

        Raises
        ------
        CheckpointError
            If no one width does.
        """
        low, high = 0.0, math.inf
        for operation in self.operations:
            if isinstance(operation, Convolution | Linear) and operation.filters:
                found, usual = shapes[operation.name][0], operation.filters
                least = (found - 0.5) / usual if found > 1 else 0.0  # no layer has fewer than 1
                low, high = max(low, least), min(high, (found + 0.5) / usual)
                if low >= high:
                    raise CheckpointError(
                        f"{operation.name} has {found} filters, usually {usual}; no one width "
                        "gives the layers before it theirs too"
                    )
        return (low + high) / 2


def _node(operation: Operation, reads: int) -> Node:
    is_layer = isinstance(operation, Convolution | Linear)
    return Node(
        role=_ROLES[type(operation)],
        reads=(reads,),
        name=operation.name if is_layer else "",
        downsamples=isinstance(operation, Convolution | MaxPool) and operation.stride > 1,
    )


def _place(
    layer: Convolution | Linear, position: Position, operations: Sequence[Operation]
) -> Place:
    # The first node is the image.
    norm = None if position.norm is None else operations[position.norm - 1].name
    return Place(
        kind=Kind.CONV if isinstance(layer, Convolution) else Kind.LINEAR,
        stage=position.stage,
        input=position.input,
        groups=1,
        norm=norm,
        eps=None if norm is None else NORM_EPS,
    )


def _misfit(operations: Iterable[Operation], shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    width: int | None = None  # of what comes in; anything at first
    area = 1
    for operation in operations:
        match operation:
            case AveragePool(size=size):
                area = size * size
            case Flatten() if width is not None:
                width *= area
            case Convolution() | Linear() | BatchNorm() | GroupNorm():
                shape = shapes.get(operation.name)
                if shape is None:
                    return f"{operation.name} should be {operation}, but there is none of that name"
                if not _has_form(operation, shape):
                    return f"{operation.name} should be {operation}, but has shape {shape}"
                inputs = shape[0] if len(shape) == 1 else shape[1]
                if width is not None and inputs != width:
                    return f"{operation.name} takes {inputs} inputs, but {width} come to it"
                width = shape[0]
    return None


def _has_form(operation: WithWeight, shape: tuple[int, ...]) -> bool:
    match operation:
        case Convolution(kernel=kernel):
            return len(shape) == 4 and shape[2:] == (kernel, kernel)
        case Linear():
            return len(shape) == 2
    return len(shape) == 1
