"""Patches that a layer sees, and what it gives for them, at positions that are drawn.

To import this is to import torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import pad

# Layers whose outputs are products of weights with patches.
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def rows_of(layer: nn.Module, output: torch.Tensor, /) -> int:
    """Count the patches behind an output: examples times positions."""
    channels = output.shape[_channel_axis(layer, output)]
    return output.numel() // channels if channels else 0


def values_at(layer: nn.Module, output: torch.Tensor, rows: torch.Tensor, /) -> torch.Tensor:
    """Take what the filters give for some patches.

    Parameters
    ----------
    output : tensor
        Of the layer: (examples, filters, *positions) of a convolution, (..., filters) of a linear
        layer.
    rows : tensor of int64, shape (patches,)
        Numbers below `rows_of`, examples first.

    Returns
    -------
    tensor, shape (patches, filters)
    """
    return output.movedim(_channel_axis(layer, output), -1).flatten(0, -2)[rows]


def patches_at(layer: nn.Module, given: torch.Tensor, rows: torch.Tensor, /) -> torch.Tensor:
    """Take the patches that some outputs were computed from.

    Parameters
    ----------
    given : tensor
        Input of the layer.
    rows : tensor of int64, shape (patches,)
        As for `values_at`.

    Returns
    -------
    tensor, shape (patches, groups, fan_in)
        In the order of a flattened filter.
    """
    if isinstance(layer, nn.Linear):
        return given.flatten(0, -2)[rows].unsqueeze(1) if given.ndim > 1 else given[None, None]
    assert isinstance(layer, CONVOLUTIONS)  # noqa: S101
    kernel = tuple(layer.kernel_size)
    if given.ndim == len(kernel) + 1:  # without a row an example
        given = given.unsqueeze(0)
    padded = _padded(layer, given)
    sizes = padded.shape[2:]
    starts, example = _starts(layer, sizes, rows)
    offsets = _offsets(sizes, kernel, layer.dilation)
    at = (starts.unsqueeze(1) + offsets.to(starts.device)).unsqueeze(1)
    channels = torch.arange(padded.shape[1], device=at.device).view(1, -1, 1)
    taken = padded.flatten(2)[example.view(-1, 1, 1), channels, at]
    return taken.reshape(len(rows), layer.groups, -1)


def _channel_axis(layer: nn.Module, output: torch.Tensor) -> int:
    positions = 0 if isinstance(layer, nn.Linear) else len(layer.kernel_size)
    axis: int = output.ndim - positions - 1
    return axis


def _padded(layer: nn.Module, given: torch.Tensor) -> torch.Tensor:
    """Put the layer's own padding about its input."""
    sides: list[int] = layer._reversed_padding_repeated_twice
    if not any(sides):
        return given
    mode = str(layer.padding_mode)
    return pad(given, sides) if mode == "zeros" else pad(given, sides, mode=mode)


def _starts(
    layer: nn.Module, sizes: Sequence[int], rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find where patches begin within an example, and of which example they are."""
    counts = [
        (size - step * (width - 1) - 1) // stride + 1
        for size, width, stride, step in zip(
            sizes, layer.kernel_size, layer.stride, layer.dilation, strict=True
        )
    ]
    rest, at, scale = rows, torch.zeros_like(rows), 1
    for size, count, stride in zip(
        reversed(sizes),
        reversed(counts),
        reversed(list(layer.stride)),
        strict=True,
    ):
        at = at + (rest % count) * stride * scale
        rest, scale = rest // count, scale * size
    return at, rest


def _offsets(sizes: Sequence[int], kernel: Sequence[int], dilation: Sequence[int]) -> torch.Tensor:
    """Find where the elements of a patch lie, from where it begins."""
    found, scale = torch.zeros(1, dtype=torch.int64), 1
    for size, width, step in zip(
        reversed(sizes), reversed(kernel), reversed(dilation), strict=True
    ):
        own = torch.arange(width) * step * scale
        found = (own.unsqueeze(1) + found).flatten()
        scale *= size
    return found
