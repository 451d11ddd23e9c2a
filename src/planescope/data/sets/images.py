"""Data sets, once found: labelled images in memory, or labelled image files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from planescope.data.options import Resize

if TYPE_CHECKING:
    import torch

    from planescope.data.options import Split

Channels = tuple[float, ...]  # one value a channel

LARGE = 224  # the size that ImageNet's networks take


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """Labelled images of one size, in memory.

    Attributes
    ----------
    images : torch.Tensor, uint8, shape (N, channels, height, width)
    labels : torch.Tensor, int64, shape (N,)
    classes : tuple of str
        What each label means.
    mean, std : tuple of float
        By channel, of values scaled to [0, 1]; a prepared input is ``(x / 255 - mean) / std``.
    resize : Resize
        Upscaling is done when a batch is prepared, padding to 32 is done already.
    augment : bool
        Whether training on them should crop and flip at random.
    """

    images: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]
    mean: Channels
    std: Channels
    name: str
    split: Split
    resize: Resize = Resize.NATIVE
    augment: bool = False

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Return the channels, height and width of a prepared input."""
        channels, height, width = self.images.shape[1:]
        if self.resize in (Resize.UPSCALE_224, Resize.PAD_224):
            height = width = LARGE
        return channels, height, width

    def take(self, indices: torch.Tensor) -> Images:
        """Return those examples alone, in that order."""
        return replace(self, images=self.images[indices], labels=self.labels[indices])


@dataclass(frozen=True, kw_only=True, eq=False)
class Files:
    """Labelled image files, decoded when they are needed.

    Attributes
    ----------
    paths : tuple of str
    size, crop : int
        The shorter side is resized to `size`; the middle `crop` × `crop` pixels are taken.
    shuffle_seed : int or None
        Seed of the pixel permutations; None where pixels stay in place.

    The others are those of `Images`.
    """

    paths: tuple[str, ...]
    labels: torch.Tensor
    classes: tuple[str, ...]
    mean: Channels
    std: Channels
    name: str
    split: Split
    augment: bool = False
    shuffle_seed: int | None = None
    size: int = 256
    crop: int = LARGE

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Return the channels, height and width of a prepared input."""
        return 3, self.crop, self.crop

    def take(self, indices: torch.Tensor) -> Files:
        """Return those examples alone, in that order."""
        paths = tuple(self.paths[index] for index in indices.tolist())
        return replace(self, paths=paths, labels=self.labels[indices])
