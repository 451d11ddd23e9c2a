"""Networks to train: the paper's, those of torchvision and timm, and one's own."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING

from planescope.files.errors import OF_THE_HUB, UsageError
from planescope.files.optional import required
from planescope.networks import libraries
from planescope.networks.operations import (
    NORM_EPS,
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
    ReLU,
    Smooth,
)
from planescope.networks.paper import network
from planescope.networks.residual import Residual

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import nn

    from planescope.networks.operations import Activation, Operation


def build(
    name: str,
    /,
    *,
    in_channels: int = 3,
    classes: int = 10,
    width: float = 1.0,
    image_size: int = 32,
    seed: int | None = None,
    drawn: bool = True,
) -> nn.Module:
    """Build a network with freshly drawn weights.

    Parameters
    ----------
    name : str
        One of the paper's networks (METHOD, section 8), ``resnet20`` to ``resnet110`` of CIFAR,
        ``torchvision:NAME``, ``timm:NAME``, or ``package.module:callable``, which gets those of
        `in_channels`, `classes` and `image_size` that it has parameters for.
    width : float
        Multiplies the number of filters of every layer but the last, rounded, at least 1; of the
        paper's networks alone.
    image_size : int
        Height and width of the images, in pixels.
    seed : int, optional
        Draws the weights from a generator of their own: the same seed gives the same weights, and
        another seed the same network initialised afresh. By default torch's global generator.
    drawn : bool
        False spares the drawing, which takes a second of VGG's, for weights that are to be loaded;
        of the paper's networks alone. Those of convolutions and linear layers are then anything.

    Returns
    -------
    torch.nn.Module
        On the CPU, in training mode.

    Raises
    ------
    UsageError
        If there is no such network, or an option is invalid.
    MissingDependencyError
        If torch, torchvision or timm is not installed.
    """
    _check_options(in_channels, classes, width)
    library, colon, rest = name.partition(":")
    if colon and width != 1:
        raise UsageError(
            f"{name} has one width; leave out width, or take one of the paper's networks"
        )
    required("torch")
    with _drawing_from(seed):
        if not colon:
            plan = network(name)
            if isinstance(plan, Residual):
                from planescope.networks import residual_module

                return residual_module.build(
                    plan, in_channels=in_channels, classes=classes, width=width
                )
            _check_size(name, plan, image_size)
            return _sequence(plan, in_channels, classes, width, image_size, drawn=drawn)
        if library == "torchvision":
            return libraries.torchvision(rest, in_channels, classes)
        if library == "hf":
            raise UsageError(f"{name}: {OF_THE_HUB}")
        if library == "timm":
            return libraries.timm(rest, in_channels, classes)
        return libraries.own(library, rest, in_channels, classes, image_size)


def load_pretrained(name: str, /) -> nn.Module:
    """Load a network with its published weights, those its library calls the default.

    Parameters
    ----------
    name : str
        ``torchvision:NAME`` or ``timm:NAME``.

    Raises
    ------
    UsageError
        If there is no such network, or it has no published weights.
    CheckpointError
        If the weights cannot be fetched, or the file of them is damaged.
    MissingDependencyError
        If torchvision or timm is not installed.
    """
    library, _, rest = name.partition(":")
    if library == "torchvision":
        return libraries.torchvision_pretrained(rest)
    if library == "timm":
        return libraries.timm_pretrained(rest)
    raise UsageError(f"{name} has no published weights; give torchvision:NAME or timm:NAME")


def _check_options(in_channels: int, classes: int, width: float) -> None:
    if in_channels < 1 or classes < 1:
        raise UsageError(
            f"a network has 1 channel and 1 class or more, not {in_channels} and {classes}"
        )
    if not 0 < width < math.inf:
        raise UsageError(f"width {width} is not above 0; it multiplies the numbers of filters")


@contextlib.contextmanager
def _drawing_from(seed: int | None) -> Iterator[None]:
    if seed is None:
        yield
        return
    import torch

    with torch.random.fork_rng(devices=[]):
        # `torch.manual_seed` would reach other devices' generators too, which are not put back.
        torch.default_generator.manual_seed(seed)
        yield


def _check_size(name: str, plan: Network, image_size: int) -> None:
    least = plan.smallest_image
    if image_size < least:
        raise UsageError(
            f"{name} takes images of at least {least}×{least} pixels, not "
            f"{image_size}×{image_size}; upscale them or choose another network"
        )


def _sequence(
    plan: Network, in_channels: int, classes: int, width: float, image_size: int, *, drawn: bool
) -> nn.Module:
    import torch
    from torch import nn

    # Without memory at first: torch's own initialisation would be a second for nothing with VGG.
    with torch.device("meta"):
        modules = _modules(plan.operations, in_channels, classes, width, image_size)
        built = _nested(modules)
    built.to_empty(device="cpu")
    for module in built.modules():
        if drawn or isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.GroupNorm):
            _initialise(module, plan.initialiser)
    return built


def _activation(kind: Activation) -> nn.Module:
    from torch import nn

    match kind:
        case "leaky":
            return nn.LeakyReLU()
        case "gelu":
            return nn.GELU()
        case "tanh":
            return nn.Tanh()


def _modules(
    operations: Iterable[Operation], channels: int, classes: int, width: float, image_size: int
) -> Iterator[tuple[str, nn.Module]]:
    from torch import nn

    size = image_size
    norm: type[nn.Module] = nn.BatchNorm2d
    for operation in operations:
        match operation:
            case Convolution(filters=filters, kernel=kernel, stride=stride, padding=padding):
                filters = max(1, round(filters * width))
                yield operation.name, nn.Conv2d(channels, filters, kernel, stride, padding)
                channels = filters
            case Linear(filters=hidden):
                filters = classes if hidden is None else max(1, round(hidden * width))
                yield operation.name, nn.Linear(channels, filters)
                channels = filters
            case BatchNorm():
                yield operation.name, norm(channels, eps=NORM_EPS)
            case GroupNorm(groups=groups):
                # One group where the filters cannot be shared out.
                groups = groups if channels % groups == 0 else 1
                yield operation.name, nn.GroupNorm(groups, channels, eps=NORM_EPS)
            case ReLU():
                yield operation.name, nn.ReLU(inplace=True)
            case Smooth(kind=kind):
                yield operation.name, _activation(kind)
            case Dropout(probability=probability):
                yield operation.name, nn.Dropout(probability)
            case MaxPool(kernel=kernel, stride=stride):
                yield operation.name, nn.MaxPool2d(kernel, stride)
            case AveragePool(size=size):
                yield operation.name, nn.AdaptiveAvgPool2d(size)
            case Flatten():
                yield operation.name, nn.Flatten()
                channels *= size * size
                norm = nn.BatchNorm1d


def _nested(modules: Iterable[tuple[str, nn.Module]]) -> nn.Module:
    """Return the sequences within a sequence, as the dots in the names say."""
    from torch import nn

    root = nn.Sequential()
    for name, module in modules:
        parent, _, last = name.rpartition(".")
        if parent and not hasattr(root, parent):
            root.add_module(parent, nn.Sequential())
        root.get_submodule(parent).add_module(last, module)
    return root


def _initialise(module: nn.Module, initialiser: Initialiser) -> None:
    from torch import nn

    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.GroupNorm):
        module.reset_parameters()
    if not isinstance(module, nn.Conv2d | nn.Linear):
        return
    if initialiser is Initialiser.TORCH:
        module.reset_parameters()
        return
    if initialiser is Initialiser.VGG:
        is_linear = isinstance(module, nn.Linear)
        initialiser = Initialiser.NORMAL if is_linear else Initialiser.KAIMING
    match initialiser:
        case Initialiser.XAVIER:
            nn.init.xavier_uniform_(module.weight, gain=nn.init.calculate_gain("relu"))
        case Initialiser.KAIMING:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        case Initialiser.NORMAL:
            nn.init.normal_(module.weight, std=0.01)
    nn.init.zeros_(module.bias)
