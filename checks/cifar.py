"""Images of CIFAR-10 as networks take them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from planescope.data.sets.files import read_cifar


def images(
    folder: Path, parts: Sequence[str], mean: Sequence[float], std: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read files of ``cifar-10-batches-py`` below a folder, and their labels."""
    held, labels = read_cifar([folder / "cifar-10-batches-py" / part for part in parts])
    pixels = torch.from_numpy(held).float() / 255
    less, by = (torch.tensor(moment)[:, None, None] for moment in (mean, std))
    return (pixels - less) / by, torch.from_numpy(labels)
