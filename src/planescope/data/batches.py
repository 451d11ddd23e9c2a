"""Images to inputs of a network, a batch at a time.

Images in memory are held as bytes on the training device and prepared there; image files are
decoded by worker processes, which send bytes too. Whatever is random about an epoch is drawn when
it begins, on the CPU, from one generator: the batches are the same on every device and with any
number of workers, and the generator's state between epochs, or `Batches.state_dict` within one,
repeats them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import interpolate, pad
from torch.utils.data import DataLoader, Dataset, default_collate

from planescope.data.load import Files, Images, load, pixel_permutation
from planescope.data.options import Resize
from planescope.data.sets.images import LARGE
from planescope.files.errors import CheckpointError, UsageError, one_line
from planescope.files.reading import open_binary
from planescope.files.results.versions import cores

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CROP_PADDING = 4
# Of inputs that are prepared at once on a GPU.
_PREPARED_BYTES = 64 << 20


def validation(name: str, path: Path | None = None, /, *, batch_size: int) -> Batches:
    """Prepare the validation examples of a data set by its name, by batches.

    Raises
    ------
    UsageError, CheckpointError
        As `planescope.data.load.load`.
    """
    return batches(load(name, split="val", path=path), batch_size=batch_size)


def batches(
    data: Images | Files,
    /,
    *,
    batch_size: int,
    shuffle: torch.Generator | None = None,
    augment: bool = False,
    drop_last: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    shard: tuple[int, int] = (0, 1),
    workers: int = 4,
) -> Batches:
    """Prepare a data set by batches.

    Parameters
    ----------
    shuffle : torch.Generator, optional
        Of the CPU; gives each epoch its order and its augmentation. Without it the order is that of
        the data.
    augment : bool
        Images in memory: random crop after padding by 4 zeros, and a flip with probability 1/2.
        Files: random resized crop and flip; without it, the middle of the image with its shorter
        side resized, as the data say. Needs `shuffle`.
    drop_last : bool
        Leave out the last batch of an epoch where it is smaller.
    dtype : torch.dtype
        Of the inputs; they are normalised in float32 before.
    shard : tuple of int
        Rank and number of the processes that share each epoch. Shuffled, all get equally many
        examples, so that a few may be left out, others in each epoch; else every example is used.
    workers : int
        Processes that decode image files; with 0 it is done in this one.

    Returns
    -------
    Batches
        Each iteration over it is an epoch of inputs (`dtype`, B × C × H × W) and labels (int64, B),
        on `device`.

    Raises
    ------
    UsageError
        If the batch size does not fit.
    """
    if augment and shuffle is None:
        raise ValueError("augmentation is random: give a generator as shuffle")
    plan = _Plan(
        batch_size=batch_size,
        shuffle=shuffle,
        augment=augment,
        drop_last=drop_last,
        device=torch.device(device),
        dtype=dtype,
        shard=shard,
    )
    return (
        _FileBatches(data, plan, workers) if isinstance(data, Files) else _ImageBatches(data, plan)
    )


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """The options of `batches`."""

    batch_size: int
    shuffle: torch.Generator | None
    augment: bool
    drop_last: bool
    device: torch.device
    dtype: torch.dtype
    shard: tuple[int, int]


class Batches(ABC):
    """Epochs of a data set; made by `batches`.

    An iteration that is left before its end is an interrupted epoch: `state_dict` tells how far it
    came, and unless that is loaded, the next iteration begins a new epoch. Lightning keeps it with
    each checkpoint and looks for it when a run is resumed, one of an earlier version too.
    """

    def __init__(self, data: Images | Files, plan: _Plan) -> None:
        self._plan = plan
        self._total = len(data.labels)
        self._first = 0  # where in its epoch the next iteration begins
        self._done = 0  # batches of the current epoch that were given out
        self._epoch_state: torch.Tensor | None = None  # the generator's, before the current epoch
        self._draws_device = torch.device("cpu")
        self._mean, self._std = (
            torch.tensor(values, device=plan.device).view(-1, 1, 1)
            for values in (data.mean, data.std)
        )
        if plan.batch_size < 1 or not len(self):
            raise UsageError(
                f"{data.name}: batches of {plan.batch_size} do not fit the {self._total} examples "
                f"of the {data.split} split; give another batch size"
            )

    def __len__(self) -> int:
        """Return the batches in an epoch."""
        rank, ranks = self._plan.shard
        examples = (self._total + (0 if self._plan.shuffle else ranks - 1 - rank)) // ranks
        rounded = math.floor if self._plan.drop_last else math.ceil
        return rounded(examples / self._plan.batch_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        self._done, self._first = self._first, 0
        order, draws = self._draw_epoch()
        for batch in self._prepare(self._remaining(order), self._remaining(draws)):
            self._done += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the generator and of the current epoch, for `load_state_dict`."""
        batch = self._done % len(self)
        shuffle = self._plan.shuffle
        between = shuffle.get_state() if shuffle else None
        return {"batch": batch, "generator": self._epoch_state if batch else between}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration go on where `state_dict` was taken."""
        self._first = self._done = state["batch"]
        self._epoch_state = state["generator"]
        if self._plan.shuffle:
            self._plan.shuffle.set_state(state["generator"])

    def _draw_epoch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw the order, and whatever else is random for each example: shapes (N,) and (N, k)."""
        shuffle = self._plan.shuffle
        if shuffle is None:
            return torch.arange(self._total), torch.empty(self._total, 0, dtype=torch.int64)
        self._epoch_state = shuffle.get_state()
        order = torch.randperm(self._total, generator=shuffle)
        highs = self._draw_below if self._plan.augment else ()
        draws = [torch.randint(high, (self._total,), generator=shuffle) for high in highs]
        return order, torch.stack(draws, 1) if draws else order.new_empty(self._total, 0)

    def _remaining(self, drawn: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return what was drawn, by batches, for the examples that are still to be given."""
        rank, ranks = self._plan.shard
        mine = drawn[rank::ranks]
        if self._plan.shuffle:
            mine = mine[: self._total // ranks]
        parts: tuple[torch.Tensor, ...] = mine.to(self._draws_device).split(self._plan.batch_size)
        return parts[self._done : len(self)]

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().div_(255).sub_(self._mean).div_(self._std).to(self._plan.dtype)

    # Each draw of an example is uniform from 0 to below one of these.
    _draw_below: tuple[int, ...]

    @abstractmethod
    def _prepare(
        self, order: Sequence[torch.Tensor], draws: Sequence[torch.Tensor]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Prepare the batches of examples `order`, with what was drawn for each example."""


class _ImageBatches(Batches):
    _draw_below = (2 * CROP_PADDING + 1, 2 * CROP_PADDING + 1, 2)  # top, left, whether to flip

    def __init__(self, data: Images, plan: _Plan) -> None:
        super().__init__(data, plan)
        self._images, self._labels = data.images.to(plan.device), data.labels.to(plan.device)
        self._resize = data.resize
        self._draws_device = plan.device  # once an epoch: copying by batches would wait for the GPU

    def _prepare(
        self, order: Sequence[torch.Tensor], draws: Sequence[torch.Tensor]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        size = self._together()
        for first in range(0, len(order), size):
            parts, drawn = order[first : first + size], draws[first : first + size]
            indices = torch.cat(list(parts))
            images = self._images.index_select(0, indices)
            if self._plan.augment:
                images = crop_and_flip(images, *torch.cat(list(drawn)).unbind(1))
            inputs = self._normalised(resized(images, self._resize))
            counts = [len(part) for part in parts]
            yield from zip(inputs.split(counts), self._labels[indices].split(counts), strict=True)

    def _together(self) -> int:
        """Return the number of batches that are prepared at once.

        On a GPU several, since what counts there are the launches; a CPU's caches hold one.
        """
        if self._plan.device.type != "cuda":
            return 1
        channels, *size = (int(extent) for extent in self._images.shape[1:])
        if self._resize in (Resize.UPSCALE_224, Resize.PAD_224):
            size = [LARGE, LARGE]
        bytes_of_batch = 4 * self._plan.batch_size * channels * math.prod(size)
        return max(1, _PREPARED_BYTES // bytes_of_batch)


def crop_and_flip(
    images: torch.Tensor, top: torch.Tensor, left: torch.Tensor, flip: torch.Tensor, /
) -> torch.Tensor:
    """Flip images where `flip` is 1, surround them with 4 zeros and cut their size out again.

    Parameters
    ----------
    images : torch.Tensor, shape (B, channels, height, width)
    top, left : torch.Tensor, int64, shape (B,)
        Corner of the cut in the padded image, from 0 to 8.
    flip : torch.Tensor, int64, shape (B,)
        0 or 1.
    """
    count, _, height, width = images.shape
    both = pad(torch.cat((images, images.flip(-1))), (CROP_PADDING,) * 4)
    # A view of all cuts; indexing copies whole rows, several times as fast as single pixels.
    cuts = both.unfold(2, height, 1).unfold(3, width, 1)
    return cuts[torch.arange(count, device=images.device) + count * flip, :, top, left]


def resized(images: torch.Tensor, resize: Resize, /) -> torch.Tensor:
    """Upscale images (bilinear, pixel centres aligned) as `resize` says, in float32."""
    if resize is Resize.UPSCALE_224:
        return interpolate(images.float(), size=(LARGE, LARGE), mode="bilinear")
    if resize is Resize.PAD_224:
        small = interpolate(images.float(), size=(LARGE // 2, LARGE // 2), mode="bilinear")
        return pad(small, (LARGE // 4,) * 4)
    return images  # padding to 32 was done when the data were loaded


class _FileBatches(Batches):
    _draw_below = (1 << 62,)  # a seed: no worker's own random numbers play a part

    def __init__(self, data: Files, plan: _Plan, workers: int) -> None:
        super().__init__(data, plan)
        workers = min(workers, cores())  # examples do not depend on how many there are
        # Refilled for each epoch: the workers stay alive and keep the loader.
        self._items: list[list[tuple[int, int]]] = []
        self._loader = DataLoader(
            _Decoder(data, augment=plan.augment),
            batch_sampler=self._items,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=plan.device.type == "cuda",
            collate_fn=_collate,
            generator=torch.Generator(),  # else starting it would draw from the global one
        )

    def _prepare(
        self, order: Sequence[torch.Tensor], draws: Sequence[torch.Tensor]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        seeds = [d.flatten().tolist() if self._plan.augment else [0] * len(d) for d in draws]
        self._items[:] = [
            list(zip(o.tolist(), s, strict=True)) for o, s in zip(order, seeds, strict=True)
        ]
        for batch in self._loader:
            if isinstance(batch, str):
                raise CheckpointError(batch)
            images, labels = (part.to(self._plan.device, non_blocking=True) for part in batch)
            yield self._normalised(images), labels


class _Decoder(Dataset[Any]):
    """Image files to bytes of one size, by position and seed."""

    def __init__(self, data: Files, *, augment: bool) -> None:
        from torchvision.transforms import v2

        self._data = data
        self._transform = (
            v2.Compose([v2.RandomResizedCrop(data.crop), v2.RandomHorizontalFlip()])
            if augment
            else v2.Compose([v2.Resize(data.size), v2.CenterCrop(data.crop)])
        )

    def __getitem__(self, item: tuple[int, int]) -> tuple[torch.Tensor, int] | str:
        """Decode an image; a sentence where it is broken.

        An error raised in a worker reaches the main process with a traceback for a message.
        """
        index, seed = item
        try:
            image = _decode(self._data.paths[index])
        # PIL's decoders let whatever their internals meet through.
        except Exception as exc:
            return (
                f"{self._data.paths[index]}: cannot be read as an image ({one_line(exc)}); replace "
                "or remove it"
            )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            image = self._transform(image)
        if self._data.shuffle_seed is not None:
            order = pixel_permutation(self._data.shuffle_seed, index, self._data.crop**2)
            image = image.flatten(1)[:, order].view_as(image)
        return image, int(self._data.labels[index])


def _decode(path: str) -> torch.Tensor:
    from PIL import Image
    from torchvision.transforms.v2.functional import pil_to_tensor

    with open_binary(path) as file, Image.open(file) as image:  # a pipe would be waited for
        pixels: torch.Tensor = pil_to_tensor(image.convert("RGB"))
    return pixels


def _collate(examples: list[tuple[torch.Tensor, int] | str]) -> Any:
    broken = [example for example in examples if isinstance(example, str)]
    return broken[0] if broken else default_collate(examples)
