"""The paper's networks (METHOD, section 8): one table, to build, place and check them by.

ResNets of CIFAR, which are no sequences, have a table of their own (`residual`); their names work
here too.

Modules are named as torchvision names them, those of `mlp` as the authors of the paper do, so that
state dicts are interchangeable. Nothing here needs torch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, get_args

from planescope.files.errors import CheckpointError, UsageError, nearest, published
from planescope.hyperplanes.layer import Kind, Place, StateDict
from planescope.networks import residual
from planescope.networks.places import Node, Position, Role, follow
from planescope.networks.residual import RESNETS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

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


def _numbered(prefix: str, operations: Iterable[Operation]) -> Iterator[Operation]:
    """Name operations as a `torch.nn.Sequential` of that name does."""
    for index, operation in enumerate(operations):
        yield dataclasses.replace(operation, name=f"{prefix}.{index}")


def _sequential(
    features: Iterable[Operation], size: int, classifier: Iterable[Operation]
) -> tuple[Operation, ...]:
    return (
        *_numbered("features", features),
        AveragePool(size, name="avgpool"),
        Flatten(name="flatten"),
        *_numbered("classifier", classifier),
    )


def _stages(stages: Iterable[Sequence[int]], *, norm: bool = False) -> Iterator[Operation]:
    for stage in stages:
        for filters in stage:
            yield Convolution(filters)
            if norm:
                yield BatchNorm()
            yield ReLU()
        yield MaxPool()


_LENET = Network(
    _sequential(
        _stages([(6, 6), (16, 16), (64, 64)]),
        3,
        [Linear(120), ReLU(), Dropout(), Linear(84), ReLU(), Dropout(), Linear(None)],
    ),
    Initialiser.XAVIER,
)

_ALEXNET = Network(
    _sequential(
        [
            Convolution(64, kernel=11, stride=4, padding=2),
            ReLU(),
            MaxPool(3, 2),
            Convolution(192, kernel=5, padding=2),
            ReLU(),
            MaxPool(3, 2),
            *(Convolution(384), ReLU()),
            *(Convolution(256), ReLU()),
            *(Convolution(256), ReLU()),
            MaxPool(3, 2),
        ],
        6,
        [Dropout(), Linear(4096), ReLU(), Dropout(), Linear(4096), ReLU(), Linear(None)],
    ),
    Initialiser.TORCH,
)

# Convolutions in each of the five stages.
_VGG_DEPTHS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}


def _vgg(name: str, *, norm: bool = False, initialiser: Initialiser = Initialiser.VGG) -> Network:
    widths = (64, 128, 256, 512, 512)
    stages = [(width,) * depth for width, depth in zip(widths, _VGG_DEPTHS[name], strict=True)]
    hidden: list[Operation] = [Linear(4096), ReLU(), Dropout()]
    return Network(
        _sequential(_stages(stages, norm=norm), 7, [*hidden, *hidden, Linear(None)]), initialiser
    )


def _mlp(*, norm: bool = False) -> Network:
    def behind(block: str) -> list[Operation]:
        norms = [BatchNorm(f"{block}.bn")] if norm else []
        return [Dropout(0.2, f"{block}.dropout"), *norms, ReLU(f"{block}.relu")]

    operations: list[Operation] = [Flatten("flatten"), Linear(4096, "hidden1.fc")]
    operations += behind("hidden1")
    for block in ("hidden2", "hidden3", "hidden4"):
        # No ReLU inside a block, as the authors have it: their two layers are one of low rank.
        operations += [Linear(1024, f"{block}.fc1"), Linear(4096, f"{block}.fc2"), *behind(block)]
    return Network((*operations, Linear(None, "classifier")), Initialiser.KAIMING)


def _varied(operations: Iterable[Operation], norm: str, activation: str) -> Iterator[Operation]:
    """Give operations another norm behind each convolution, and another activation."""
    for operation in operations:
        match operation:
            case BatchNorm():
                continue
            case ReLU() if activation:
                yield Smooth(activation)  # type: ignore[arg-type]
            case _:
                yield operation
        if isinstance(operation, Convolution) and norm:
            yield BatchNorm() if norm == "bn" else GroupNorm()


def _variants(name: str) -> dict[str, Network]:
    """A network with each norm and each activation, under NAME[_bn|_gn][_leaky|_gelu|_tanh]."""
    plan = {"lenet": _LENET, "vgg11": _vgg("vgg11")}[name]
    heads = ("features", "classifier")
    parts = [[o for o in plan.operations if o.name.startswith(head)] for head in heads]
    size = next(o.size for o in plan.operations if isinstance(o, AveragePool))
    found = {}
    for norm in ("", "bn", "gn"):
        for activation in ("", *get_args(Activation)):
            features, classifier = (list(_varied(part, norm, activation)) for part in parts)
            title = "_".join(filter(None, (name, norm, activation)))
            found[title] = Network(_sequential(features, size, classifier), plan.initialiser)
    return found


NETWORKS: dict[str, Network] = {
    "lenet": _LENET,
    "alexnet": _ALEXNET,
    **{name: _vgg(name) for name in _VGG_DEPTHS},
    **{f"{name}_bn": _vgg(name, norm=True) for name in _VGG_DEPTHS},
    "vgg19_orig": _vgg("vgg19", initialiser=Initialiser.NORMAL),
    "mlp": _mlp(),
    "mlp_bn": _mlp(norm=True),
    # Ours: what the bias owes to the activation and to the norm.
    **{title: plan for name in ("lenet", "vgg11") for title, plan in _variants(name).items()},
}


def network(name: str, /) -> Network:
    """Return one of the paper's networks by its name.

    Raises
    ------
    UsageError
        If there is none; the message has the nearest names.
    """
    if name not in NETWORKS:
        known = (*NETWORKS, *RESNETS)
        raise UsageError(f"no network is called {name!r}; {nearest(name, known)}{published(name)}")
    return NETWORKS[name]


def smallest_image(name: str, /) -> int:
    """Return the least height and width of an image that the network can take, in pixels.

    Raises
    ------
    UsageError
        If there is no such network.
    """
    size = 1
    for operation in reversed(network(name).operations):
        match operation:
            case Convolution(kernel=kernel, stride=stride, padding=padding):
                size = max(1, (size - 1) * stride + kernel - 2 * padding)
            case MaxPool(kernel=kernel, stride=stride):
                size = (size - 1) * stride + kernel
    return size


def places(name: str, /) -> dict[str, Place]:
    """Return the place of each layer of a network, by the name of its module, in order.

    Raises
    ------
    UsageError
        If there is no such network.
    """
    if name in RESNETS:
        return residual.places(name)
    operations = network(name).operations
    nodes = [Node(role=Role.IMAGE)]
    for operation in operations:
        nodes.append(_node(operation, reads=len(nodes) - 1))
    layers = {o.name: o for o in operations if isinstance(o, Convolution | Linear)}
    return {
        layer: _place(layers[layer], position, operations)
        for layer, position in follow(nodes).items()
    }


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


def match(name: str, state: StateDict, /) -> StateDict:
    """Put the layers of a state dict in their places in a network.

    Parameters
    ----------
    name : str
        The network. Its width, number of classes and input channels may be others than usual.
    state : StateDict
        Its names may have a prefix, ``model.`` for example, as Lightning writes them.

    Returns
    -------
    StateDict
        With `places`, and names without the prefix.

    Raises
    ------
    UsageError
        If there is no such network.
    CheckpointError
        If the state dict is not that of the network: the first layer that is missing, has another
        shape, or is not in the network.
    """
    state = _without_prefix(name, state)
    check(name, state)
    return dataclasses.replace(state, places=places(name))


def _without_prefix(name: str, state: StateDict) -> StateDict:
    first = next(iter(places(name))) + ".weight"
    prefixed = [key for key in state.tensors if key.endswith(f".{first}")]
    if first in state.tensors or not prefixed:
        return state
    key = min(prefixed, key=len)  # blocks of a ResNet have a layer of that name too
    prefix = key.removesuffix(first)
    tensors = {key.removeprefix(prefix): tensor for key, tensor in state.tensors.items()}
    return dataclasses.replace(state, tensors=tensors)


def check(name: str, state: StateDict, /) -> None:
    """Refuse a state dict that is not that of a network; `match` says what may differ.

    Raises
    ------
    UsageError
        If there is no such network.
    CheckpointError
        If a layer is missing, has another kernel, does not fit the width of the one before, or is
        not in the network; the message has the first, with both sides.
    """
    shapes = {
        key.removesuffix(".weight"): tensor.shape
        for key, tensor in state.tensors.items()
        if key.endswith(".weight")
    }
    if name in RESNETS:
        known, fault = residual.modules(name), residual.misfit(name, shapes)
    else:
        operations = network(name).operations
        known = {operation.name for operation in operations if isinstance(operation, WithWeight)}
        fault = _misfit(operations, shapes)
    extra = next((module for module in shapes if module not in known), None)
    if fault is None and extra is not None:
        fault = f"it has a layer {extra} of shape {shapes[extra]}, which {name} has not"
    if fault is not None:
        raise CheckpointError(f"this is no {name}: {fault}; leave out --network or give another")


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
