"""Small networks that no score, cut or calibration of planescope was chosen on.

They are what `studies/critical-test.yaml` trains, as ``checks.architectures:NAME``: a ResNet of
eight layers, a ConvNet with GELU and one with a layer norm behind each convolution.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from planescope.networks.residual_module import Block

# Filters of the convolutions of a ConvNet; behind those at even places the image is halved.
FILTERS = (8, 16, 16, 32, 32)


class ResNet8(nn.Module):
    """A convolution, three blocks of two, and a linear layer, of so many filters at first."""

    def __init__(self, width: int, in_channels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = Block(width, width, 1)
        self.layer2 = Block(width, 2 * width, 2)
        self.layer3 = Block(2 * width, 4 * width, 2)
        self.linear = nn.Linear(4 * width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        inner = functional.relu(self.bn1(self.conv1(images)))
        return self.linear(self.layer3(self.layer2(self.layer1(inner))).mean((2, 3)))


class ChannelNorm(nn.LayerNorm):
    """A layer norm over the channels of each position of an image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise (N, C, H, W)."""
        return super().forward(images.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNet(nn.Module):
    """Five convolutions, each with its norm and activation, and two linear layers."""

    def __init__(self, in_channels: int, classes: int, *, norm: bool, gelu: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for place, filters in enumerate(FILTERS):
            layers.append(nn.Conv2d(channels, filters, 3, padding=1))
            if norm:
                layers.append(ChannelNorm(filters))
            layers.append(nn.GELU() if gelu else nn.ReLU())
            if place % 2 == 0:
                layers.append(nn.MaxPool2d(2))
            channels = filters
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        for layer in layers:
            if isinstance(layer, nn.Conv2d):  # torch's own weights are too small without a norm
                nn.init.kaiming_normal_(layer.weight)
        hidden = nn.Linear(4 * channels, 64)
        self.classifier = nn.Sequential(
            hidden, nn.GELU() if gelu else nn.ReLU(), nn.Linear(64, classes)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.classifier(self.features(images))


def resnet8_8(in_channels: int, classes: int) -> ResNet8:
    """Return a ResNet of eight layers, of 8, 16 and 32 filters."""
    return ResNet8(8, in_channels, classes)


def resnet8_16(in_channels: int, classes: int) -> ResNet8:
    """Return a ResNet of eight layers, of 16, 32 and 64 filters."""
    return ResNet8(16, in_channels, classes)


def convnet_gelu(in_channels: int, classes: int) -> ConvNet:
    """Return a ConvNet with GELU and no norm."""
    return ConvNet(in_channels, classes, norm=False, gelu=True)


def convnet_layernorm(in_channels: int, classes: int) -> ConvNet:
    """Return a ConvNet with ReLU behind a layer norm of each convolution."""
    return ConvNet(in_channels, classes, norm=True, gelu=False)
