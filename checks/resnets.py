"""ResNets of He et al. for CIFAR-10: 6n + 2 layers, zero-padded shortcuts.

Names of the state dict are those of the weights that Yerlan Idelbayev trained and published
(github.com/akamaster/pytorch_resnet_cifar10).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

# What its inputs are made by: pixels in [0, 1], less the mean, by the deviation.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WIDTHS = (16, 32, 64)


class Block(nn.Module):
    """Two convolutions, and a shortcut that is thinned and padded with zeros where sizes change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.padding = stride, (outputs - inputs) // 2

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Add what the convolutions give to the shortcut."""
        inner = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(images)))))
        if self.padding:
            thinned = images[:, :, :: self.stride, :: self.stride]
            images = functional.pad(thinned, (0, 0, 0, 0, self.padding, self.padding))
        return functional.relu(images + inner)


class CifarResNet(nn.Module):
    """A convolution, three stages of `blocks` blocks, and a linear layer."""

    def __init__(self, blocks: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        before = WIDTHS[0]
        for stage, width in enumerate(WIDTHS, 1):
            first = Block(before, width, 1 if stage == 1 else 2)
            rest = [Block(width, width, 1) for _ in range(blocks - 1)]
            setattr(self, f"layer{stage}", nn.Sequential(first, *rest))
            before = width
        self.linear = nn.Linear(before, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        inner = functional.relu(self.bn1(self.conv1(images)))
        return self.linear(self.layer3(self.layer2(self.layer1(inner))).mean((2, 3)))


def resnet20() -> CifarResNet:
    """Return a network of 20 layers."""
    return CifarResNet(3)


def resnet32() -> CifarResNet:
    """Return a network of 32 layers."""
    return CifarResNet(5)


def resnet44() -> CifarResNet:
    """Return a network of 44 layers."""
    return CifarResNet(7)


def resnet56() -> CifarResNet:
    """Return a network of 56 layers."""
    return CifarResNet(9)
