"""The paper's networks (METHOD, section 8): one table, to build, place and check them by.

ResNets of CIFAR, which are no sequences, have a table of their own (`residual`); their names work
here too.

Modules are named as torchvision names them, those of `mlp` as the authors of the paper do, so that
state dicts are interchangeable. Nothing here needs torch.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, get_args

from planescope.files.errors import CheckpointError, UsageError, nearest, published
from planescope.hyperplanes.layer import Place, StateDict
from planescope.networks.operations import (
    Activation,
    AveragePool,
    BatchNorm,
    Convolution,
    Dropout,
    Flatten,
    GroupNorm,
    Initialiser,
    Linear,
    MaxPool,
    Network,
    Operation,
    ReLU,
    Smooth,
)
from planescope.networks.residual import RESNETS, Residual

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


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
    """Yield a network with each norm and activation, as NAME[_bn|_gn][_leaky|_gelu|_tanh]."""
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


def is_known(name: str, /) -> bool:
    """Tell whether a network has this name."""
    return name in NETWORKS or name in RESNETS


def network(name: str, /) -> Network | Residual:
    """Return one of the paper's networks, or a ResNet of CIFAR, by its name.

    Raises
    ------
    UsageError
        If there is none; the message has the nearest names.
    """
    found = NETWORKS.get(name) or RESNETS.get(name)
    if found is None:
        known = (*NETWORKS, *RESNETS)
        hint = published(name, as_network=True)
        raise UsageError(f"no network is called {name!r}; {nearest(name, known)}{hint}")
    return found


def smallest_image(name: str, /) -> int:
    """Return the least height and width of an image that a network can take, in pixels.

    Where nothing is known of it, as of code of a user's, 1.
    """
    return network(name).smallest_image if is_known(name) else 1


def places(name: str, /) -> dict[str, Place]:
    """Return the place of each layer of a network, by the name of its module, in order.

    Raises
    ------
    UsageError
        If there is no such network.
    """
    return network(name).places()


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
    # Beside the network, as Lightning keeps them: weights of a loss, counters of metrics.
    tensors = {
        key.removeprefix(prefix): tensor
        for key, tensor in state.tensors.items()
        if key.startswith(prefix) or len(tensor.shape) > 1
    }
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
    plan = network(name)
    known, fault = plan.modules(), plan.misfit(shapes)
    extra = next((module for module in shapes if module not in known), None)
    if fault is None and extra is not None:
        fault = f"it has a layer {extra} of shape {shapes[extra]}, which {name} has not"
    if fault is not None:
        raise CheckpointError(
            f"this is no {name}: {fault}; give another --network (measure needs none)"
        )
