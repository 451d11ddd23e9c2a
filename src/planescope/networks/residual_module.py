"""ResNets of He et al. (2015) for CIFAR as torch modules. To import this is to import torch."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from planescope.networks.residual import FILTERS, STAGES, Residual


class Block(nn.Module):  # type: ignore[misc]
    """Two convolutions, and a shortcut that is thinned and padded with zeros where sizes change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.more = stride, outputs - inputs

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Add what the convolutions give to the shortcut."""
        inner = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(images)))))
        if self.more:
            thinned, below = images[:, :, :: self.stride, :: self.stride], self.more // 2
            images = functional.pad(thinned, (0, 0, 0, 0, below, self.more - below))
        return functional.relu(images + inner)


class CifarResNet(nn.Module):  # type: ignore[misc]
    """A convolution, three stages of blocks, and a linear layer.

    Parameters
    ----------
    blocks : int
        Of each stage.
    width : int
        Filters of the first stage; each later one has twice as many.
    """

    def __init__(
        self, blocks: int, *, in_channels: int = 3, classes: int = 10, width: int = FILTERS
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        before = width
        for stage in range(STAGES):
            filters = width << stage
            first = Block(before, filters, 2 if stage else 1)
            rest = [Block(filters, filters, 1) for _ in range(blocks - 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(first, *rest))
            before = filters
        self.linear = nn.Linear(before, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        inner = functional.relu(self.bn1(self.conv1(images)))
        logits: torch.Tensor = self.linear(
            self.layer3(self.layer2(self.layer1(inner))).mean((2, 3))
        )
        return logits


def build(plan: Residual, /, *, in_channels: int, classes: int, width: float) -> CifarResNet:
    """Build one, drawn as He et al. do; its first layer has 16 × width filters."""
    network = CifarResNet(
        plan.blocks, in_channels=in_channels, classes=classes,
        width=max(1, round(FILTERS * width)),
    )  # fmt: skip
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return network
