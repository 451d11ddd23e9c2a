"""ResNets for CIFAR-10 of Yerlan Idelbayev (github.com/akamaster/pytorch_resnet_cifar10)."""

from __future__ import annotations

from pathlib import Path

import torch

from planescope.networks.residual import RESNETS
from planescope.networks.residual_module import Block, CifarResNet

__all__ = [
    "MEAN", "STD", "Block", "CifarResNet", "load", "resnet20", "resnet32", "resnet44", "resnet56",
]  # fmt: skip

# What its inputs are made by: pixels in [0, 1], less the mean, by the deviation.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def resnet20() -> CifarResNet:
    """Return a network of 20 layers."""
    return CifarResNet(RESNETS["resnet20"].blocks)


def resnet32() -> CifarResNet:
    """Return a network of 32 layers."""
    return CifarResNet(RESNETS["resnet32"].blocks)


def resnet44() -> CifarResNet:
    """Return a network of 44 layers."""
    return CifarResNet(RESNETS["resnet44"].blocks)


def resnet56() -> CifarResNet:
    """Return a network of 56 layers."""
    return CifarResNet(RESNETS["resnet56"].blocks)


def load(name: str, weights: Path) -> CifarResNet:
    """Load a network that he published, out of a folder that holds ``NAME-*.th``."""
    (path,) = weights.glob(f"{name}-*.th")
    state = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    made = CifarResNet(RESNETS[name].blocks)
    made.load_state_dict({key.removeprefix("module."): t for key, t in state.items()})
    return made.eval()
