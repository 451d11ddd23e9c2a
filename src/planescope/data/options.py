"""The options of a data set, which a run's config and the command line have too.

To import this costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from planescope.files.bounds import Bounds, check_bounds
from planescope.files.errors import UsageError

Split = Literal["train", "val"]


class Labels(StrEnum):
    """The source of the labels of the training examples."""

    GIVEN = "given"  # the data set
    RANDOM = "random"  # a draw from all classes for each example, whatever it shows


class Resize(StrEnum):
    """The change of an image's size before it enters the network."""

    NATIVE = "native"
    PAD_32 = "pad-32"  # zeros around it up to 32 × 32, for digits of 28 × 28
    UPSCALE_224 = "224"
    PAD_224 = "112-in-224"  # upscaled to 112, zeros around it up to 224


class Validation(StrEnum):
    """The source of the validation examples."""

    GIVEN = "given"  # the data set's own
    RANDOM = "random"  # drawn from the training examples, which lose them
    STRATIFIED = "stratified"  # likewise, the same share of each class


BOUNDS: Bounds = {
    "classes": {"ge": 1},
    "validation_share": {"gt": 0, "lt": 1},
    "validation_seed": {"ge": 0},
    "examples": {"ge": 1},
    "label_noise": {"ge": 0, "le": 1},
    "seed": {"ge": 0},
    "mean": {},
    "std": {"gt": 0},
    "image_size": {"ge": 1},
    "crop": {"ge": 1},
}


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The options of a data set: how it departs from its plain form.

    Attributes
    ----------
    classes : int, optional
        Keep this many classes, chosen at random; their labels become 0, 1, ...
    validation : Validation
    validation_share : float
        Of the training examples, where they give those for validation; in (0, 1).
    validation_seed : int
        Of that draw.
    examples : int, optional
        Keep this many training examples, chosen at random.
    labels : Labels
        Random ones are drawn anew for all training examples, uniformly from all classes, so that
        the right one may come too; the validation examples keep theirs.
    label_noise : float
        Share of the training labels that are replaced by another class, drawn uniformly; exactly
        ``round(label_noise * N)`` labels. In [0, 1].
    shuffle_pixels : bool
        Permute the pixels of each training image: a permutation of its own, the same in all
        channels and in every epoch.
    resize : Resize
        For sets in memory; images in folders are always cropped to 224 × 224.
    augment : bool, optional
        Crop and flip training images at random. By default where that is usual: CIFAR and folders.
    normalise : bool
        Subtract the channel means and divide by the standard deviations; else inputs lie in [0, 1].
    mean, std : sequence of float
        Of these, by channel, in place of the data set's own; one value stands for all channels.
    image_size, crop : int, optional
        Of images in folders: the shorter side is resized to `image_size`, and the middle square of
        `crop` pixels is taken; by default 256 and 224, and all of the square where only the first
        is given.
    seed : int
        Of classes, examples, noise and permutations. Each draws from a stream of its own, so that
        one option does not change what another draws.

    Raises
    ------
    UsageError
        If a value is out of its range.
    """

    classes: int | None = None
    validation: Validation = Validation.GIVEN
    validation_share: float = 0.1
    validation_seed: int = 0
    examples: int | None = None
    labels: Labels = Labels.GIVEN
    label_noise: float = 0.0
    shuffle_pixels: bool = False
    resize: Resize = Resize.NATIVE
    augment: bool | None = None
    normalise: bool = True
    seed: int = 0
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    image_size: int | None = None
    crop: int | None = None

    def __post_init__(self) -> None:
        check_bounds(self, BOUNDS)
        for fits, problem in (
            (
                self.labels is Labels.GIVEN or not self.label_noise,
                "random labels have no right ones that label noise could replace; leave out one",
            ),
            (
                self.normalise or not (self.mean or self.std),
                "no normalisation has no mean and no standard deviation",
            ),
        ):
            if not fits:
                raise UsageError(problem)


PLAIN = DataOptions()


def check_unprepared(options: DataOptions | None, name: str, /) -> None:
    """Refuse options for inputs that go to the network as they come.

    Raises
    ------
    UsageError
        If there are any.
    """
    if options is not None:
        raise UsageError(
            f"{name}: its inputs go to the network as they come; leave out --mean, --std and the "
            "like (data_options=), which prepare a data set by name"
        )
