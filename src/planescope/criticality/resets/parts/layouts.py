"""Layers that are faster with the channels of a pixel together than channel by channel.

The latter is torch's order. On a GPU the other one is faster for convolutions, on a CPU in bfloat16
or where there are few channels, and for pooling; for average pooling always. A run of such layers
saves putting images into that order and back: LeNet in bfloat16, 45 cells of 10,000 images, takes
15 s of a core in place of 35.

Another order may come with a kernel that adds in another order. Whether it does is found by trying:
on a whole batch of real examples that shows in some of a million sums, and which kernel is chosen
depends on shapes, not on values. In bfloat16, which rounds each sum to eight bits, such kernels are
taken all the same. Its price is this module.
To import this is to import torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx, nn

# Of a convolution that has few: one register holds them.
FEW_CHANNELS = 16
_AVERAGES = (nn.AdaptiveAvgPool2d, nn.AvgPool2d)
_CARRIERS = (nn.ReLU, nn.MaxPool2d, nn.Dropout, nn.Identity, nn.BatchNorm2d)

# Nodes one behind the other, each the only one that reads the one before.
Stretch = list[fx.Node]


def channels_together(images: torch.Tensor, /) -> torch.Tensor:
    """Return the same images with the channels of a pixel together in memory."""
    return images.contiguous(memory_format=torch.channels_last)


def stretches(
    nodes: Sequence[fx.Node], modules: Mapping[str, nn.Module], /, *, most: float = FEW_CHANNELS
) -> list[Stretch]:
    """Find the stretches where keeping the channels of a pixel together saves time.

    Parameters
    ----------
    most : float
        Channels with which convolutions gain by it.
    """
    found: list[Stretch] = []
    for node in nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        last = found[-1][-1] if found else None
        follows = last is not None and node.all_input_nodes == [last] and len(last.users) == 1
        gains = _gains(module, most)
        if follows and (gains or isinstance(module, _CARRIERS)):
            found[-1].append(node)
        elif gains:
            found.append([node])
    return [one for one in found if _is_worth_it([modules[str(node.target)] for node in one])]


def _gains(module: nn.Module | None, most: float) -> bool:
    if isinstance(module, nn.Conv2d):
        channels: int = max(module.in_channels, module.out_channels)
        return channels <= most and module.groups == 1
    return isinstance(module, _AVERAGES)


def _is_worth_it(stretch: Sequence[nn.Module]) -> bool:
    """Tell whether a run is worth it: both ways cost what one convolution gains."""
    averages = any(isinstance(module, _AVERAGES) for module in stretch)
    return averages or sum(isinstance(module, nn.Conv2d) for module in stretch) > 1
