"""A network that another runtime runs, by the graph of a file.

To import this is to import torch.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn


class FileGraph(nn.Module):  # type: ignore[misc]
    """Base of modules that hand their inputs to another runtime.

    Attributes
    ----------
    picture_shape : tuple of int or None
        Channels, height and width of a picture, where the file tells.
    channels_last : bool
        Whether pictures enter with their channels behind.
    largest_bytes : int
        Of the values between layers, for one input, once there was one.
    left : dict of str to str
        Layers of the file that are no modules within this one, and why.
    """

    picture_shape: tuple[int, int, int] | None = None
    channels_last: bool = False
    largest_bytes: int = 0

    def __init__(self) -> None:
        super().__init__()
        self.left: dict[str, str] = {}

    @property
    def work(self) -> Mapping[str, int | None]:
        """Return the multiply-adds of layers for one input, once there was one."""
        raise NotImplementedError
