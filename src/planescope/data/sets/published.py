"""Published data sets that fit in memory: what they are, and in which files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from planescope.data.options import Resize
from planescope.data.sets import files as datafiles

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from planescope.data.options import Split
    from planescope.data.sets.images import Channels

_TEN = tuple("0123456789")


@dataclass(frozen=True, kw_only=True)
class Known:
    """A published data set that fits in memory.

    Attributes
    ----------
    torchvision : str
        Name of the class in `torchvision.datasets` that downloads it.
    folder : str
        Where torchvision puts the files, below the data path; they are found above it too.
    files : mapping of Split to tuple of str
        Their names; `.gz` may follow.
    read : callable
        Paths of those files to images and labels.
    size : int
        Height and width of an image, in pixels.
    counts : mapping of Split to int
        Examples.
    augment : bool or None
        Whether training crops and flips unless told otherwise; None where it must not.
    resized : mapping of Resize to mean and std
        Where they are known to differ from those of the plain images.
    """

    torchvision: str
    folder: str
    files: Mapping[Split, tuple[str, ...]]
    read: Callable[[Sequence[Path]], datafiles.Examples]
    classes: tuple[str, ...]
    mean: Channels
    std: Channels
    size: int
    counts: Mapping[Split, int]
    augment: bool | None
    resized: Mapping[Resize, tuple[Channels, Channels]] = field(default_factory=dict)


_IDX: Mapping[Split, tuple[str, ...]] = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "val": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}

_CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""

# Means and standard deviations: METHOD, section 8; Fashion-MNIST's and SVHN's are their training
# images' own.
KNOWN: Mapping[str, Known] = {
    "mnist": Known(
        torchvision="MNIST",
        folder="MNIST/raw",
        files=_IDX,
        read=datafiles.read_mnist,
        classes=_TEN,
        mean=(0.1307,),
        std=(0.3015,),
        size=28,
        counts={"train": 60_000, "val": 10_000},
        augment=None,
    ),
    "fashion-mnist": Known(
        torchvision="FashionMNIST",
        folder="FashionMNIST/raw",
        files=_IDX,
        read=datafiles.read_mnist,
        classes=(
            *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
            *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
        ),
        mean=(0.2860,),
        std=(0.3530,),
        size=28,
        counts={"train": 60_000, "val": 10_000},
        augment=False,
    ),
    "cifar10": Known(
        torchvision="CIFAR10",
        folder="cifar-10-batches-py",
        files={
            "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
            "val": ("test_batch",),
        },
        read=datafiles.read_cifar,
        classes=(
            *("airplane", "automobile", "bird", "cat", "deer"),
            *("dog", "frog", "horse", "ship", "truck"),
        ),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
        size=32,
        counts={"train": 50_000, "val": 10_000},
        augment=True,
        resized={
            Resize.UPSCALE_224: ((0.4914, 0.4822, 0.4465), (0.1953, 0.1925, 0.1942)),
            Resize.PAD_224: ((0.1229, 0.1206, 0.1117), (0.2367, 0.2323, 0.2190)),
        },
    ),
    "cifar100": Known(
        torchvision="CIFAR100",
        folder="cifar-100-python",
        files={"train": ("train",), "val": ("test",)},
        read=datafiles.read_cifar,
        classes=tuple(_CIFAR100_CLASSES.split()),
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2009, 0.1984, 0.2023),
        size=32,
        counts={"train": 50_000, "val": 10_000},
        augment=True,
        resized={
            Resize.UPSCALE_224: ((0.5071, 0.4865, 0.4409), (0.1942, 0.1918, 0.1958)),
            Resize.PAD_224: ((0.1268, 0.1217, 0.1103), (0.2435, 0.2343, 0.2177)),
        },
    ),
    "svhn": Known(
        torchvision="SVHN",
        folder=".",
        files={"train": ("train_32x32.mat",), "val": ("test_32x32.mat",)},
        read=datafiles.read_svhn,
        classes=_TEN,
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
        size=32,
        counts={"train": 73_257, "val": 26_032},
        augment=None,
    ),
}
# Mean and standard deviation.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
