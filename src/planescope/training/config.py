"""The options of a training run: one record, its YAML file, and the errors it may have.

The command line makes its options from the fields below, so that each is described and checked in
one place.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, Literal

from planescope.data.options import BOUNDS, PLAIN, Labels, Resize, Validation
from planescope.files.errors import MissingDependencyError, UsageError
from planescope.files.yaml import read_document, shown
from planescope.hyperplanes.layer import KindName
from planescope.training.precision import Precision

try:
    from pydantic import (
        BaseModel,
        BeforeValidator,
        ConfigDict,
        Field,
        ValidationError,
        model_validator,
    )
except ModuleNotFoundError as exc:
    if exc.name != "pydantic":
        raise
    raise MissingDependencyError("training needs pydantic: pip install '.[train]'") from exc

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic import ModelWrapValidatorHandler
    from pydantic_core import ErrorDetails

SCHEMA = "planescope.config/1"


def _split(value: Any) -> Any:
    """Take texts of numbers with commas between, as the command line gives them, apart."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        return value
    return [part for one in value for part in (one.split(",") if isinstance(one, str) else (one,))]


Numbers = Annotated[tuple[float, ...], BeforeValidator(_split)]
Logger = Literal["csv", "tensorboard", "wandb", "mlflow"]


def _of_data(name: str, description: str) -> Any:
    """Return a field that `DataOptions` has too: its default and bounds are those."""
    default = getattr(PLAIN, name)
    bounds: Any = {} if isinstance(default, tuple) else BOUNDS.get(name, {})
    plain = default.value if isinstance(default, Enum) else default
    return Field(plain, description=description, **bounds)


class FieldError(UsageError):
    """A field that is unknown or has a value that is invalid.

    Attributes
    ----------
    field : str
        Its name.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


class RunConfig(BaseModel):
    """Everything that decides how a run goes; the same record gives the same weights.

    On a CPU that holds bit for bit for the same versions and number of threads. On a GPU sums are
    taken in an order that varies, so that weights agree closely, not to the bit.

    Raises
    ------
    UsageError
        If a field is unknown or a value is invalid.
    """

    # A closed choice is kept as the word that the user wrote.
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_enum_values=True
    )

    network: str = Field(
        "lenet",
        description="One of the paper's networks (lenet, alexnet, vgg11 ... vgg19_bn, vgg19_orig, "
        "mlp, mlp_bn), lenet or vgg11 with _bn or _gn (batch, group norm) and _leaky, _gelu or "
        "_tanh behind the name, resnet20 to resnet110 of CIFAR, torchvision:NAME, timm:NAME or "
        "package.module:callable.",
    )
    width: float = Field(
        1.0, gt=0, description="Multiplies the number of filters of each layer but the last."
    )

    data: str = Field(
        "digits",
        description="digits, mnist, fashion-mnist, cifar10, cifar100, svhn, imagenet, noise:NAME "
        "(Gaussian images of a data set's size and moments, random labels), folder:PATH or "
        "package.module:callable.",
    )
    data_path: str | None = Field(None, description="Where the files of the data lie.")
    download: bool = Field(False, description="Let torchvision download the data if missing.")
    classes: int | None = _of_data("classes", "Train on this many classes, chosen at random.")
    examples: int | None = _of_data("examples", "Train on this many examples, chosen at random.")
    validation: Validation = _of_data(
        "validation", "Validate on the data set's own examples, or on some taken from training."
    )
    validation_share: float = _of_data(
        "validation_share", "Share of the training examples that is taken for that."
    )
    validation_seed: int = _of_data("validation_seed", "Seed of that draw.")
    labels: Labels = _of_data(
        "labels",
        "Training labels: the data set's, or for each example one drawn from all classes, so that "
        "the right one may come too.",
    )
    label_noise: float = _of_data(
        "label_noise", "Share of training labels replaced by another class."
    )
    shuffle_pixels: bool = _of_data(
        "shuffle_pixels", "Permute the pixels of each training image, always in its own way."
    )
    resize: Resize | None = Field(
        None,
        description="Zeros around the image up to 32; upscaled to 224; or upscaled to 112 with "
        "zeros around. By default pad-32 where the network needs it.",
    )
    augment: bool | None = _of_data(
        "augment", "Crop and flip at random; by default where that is usual."
    )
    normalise: bool = _of_data("normalise", "Subtract channel means, divide by deviations.")
    mean: Numbers = _of_data(
        "mean", "These means in place of the data's own: one, or one a channel with commas."
    )
    std: Numbers = _of_data("std", "Likewise these standard deviations.")
    image_size: int | None = _of_data(
        "image_size", "Resize the shorter side of image files to this [default: 256]."
    )
    crop: int | None = _of_data(
        "crop", "Take the middle square of so many pixels of them [default: 224]."
    )
    data_seed: int = Field(
        PLAIN.seed, description="Seed of classes, examples, noise and shuffling.", **BOUNDS["seed"]
    )
    workers: int = Field(4, ge=0, description="Processes that decode image files.")

    epochs: int = Field(30, ge=1, description="Passes over the training examples.")
    batch_size: int = Field(64, ge=1, description="Examples of a step, on each device.")
    optimiser: Literal["sgd", "adam", "adamw"] = Field("sgd", description="How steps are taken.")
    learning_rate: float = Field(
        0.02, gt=0, description="At the start; for one-cycle, at the highest."
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="Of sgd.")
    weight_decay: float = Field(5e-4, ge=0, description="Weight of the squared weights.")
    schedule: Literal["constant", "step", "cosine", "one-cycle"] = Field(
        "cosine", description="How the learning rate goes; one-cycle alone changes by steps."
    )
    decay: float = Field(0.1, gt=0, le=1, description="Factor of a step of the schedule.")
    decay_every: int = Field(30, ge=1, description="Epochs between steps of the schedule.")
    milestones: tuple[int, ...] = Field(
        (), description="Epochs after which the schedule steps, in place of decay-every."
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="Stop a run on a plateau: the lowest training loss was not improved on for "
        "this many epochs.",
    )
    min_delta: float = Field(0.0, ge=0, description="Least fall of the loss that counts.")
    centred: bool = Field(
        False,
        description="Take the mean off each filter of the convolutions (of the hidden linear "
        "layers where there are none) at initialisation and after each step.",
    )
    seed: int = Field(
        0, ge=0, lt=2**32, description="Of initial weights, order, augmentation and dropout."
    )
    train_accuracy: bool = Field(
        False, description="After each epoch classify the training examples too."
    )

    snapshots_until: int = Field(10, ge=0, description="Keep each epoch until this one,")
    snapshots_every: int = Field(10, ge=1, description="then one in so many, and the last.")
    view: Literal["raw", "effective"] = Field(
        "raw", description="Hyperplanes to measure: raw, or with batch norm folded in."
    )
    kinds: tuple[KindName, ...] = Field(
        (),
        description="Layers to measure: conv, pointwise, transposed, linear or all; repeatable. By "
        "default conv, or linear where there is none.",
    )
    loggers: tuple[Logger, ...] = Field(
        (), description="Log to csv, tensorboard, wandb or mlflow as well; repeatable."
    )

    accelerator: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where to train.")
    devices: int = Field(1, ge=1, description="How many GPUs, or processes on a CPU.")
    strategy: Literal["auto", "ddp"] = Field("auto", description="How devices share the work.")
    precision: Precision | Literal["auto"] = Field(
        "32-true",
        description="Of computing; weights are always kept in 32 bits. auto: bf16-mixed where the "
        "device has instructions for it; the run's config has what was chosen.",
    )
    compile: bool = Field(False, description="Compile the network with torch.compile.")
    threads: int | None = Field(
        None, ge=1, description="Threads of the CPU; by default as many as torch finds cores."
    )

    @model_validator(mode="wrap")
    @classmethod
    def _in_a_sentence(cls, values: Any, build: ModelWrapValidatorHandler[RunConfig]) -> RunConfig:
        try:
            built: RunConfig = build(values)
        except ValidationError as exc:
            raise _field_error(exc.errors()[0]) from None
        return built

    def but(self, changes: Mapping[str, Any], /) -> RunConfig:
        """Make the same record with some fields replaced.

        Raises
        ------
        UsageError
            If a field is unknown or a value is invalid.
        """
        return RunConfig(**{**self.model_dump(), **changes})

    def differences(self, other: RunConfig, /) -> Iterator[tuple[str, Any, Any]]:
        """Yield the fields in which two records differ, each with both values."""
        for field in type(self).model_fields:
            mine, its = getattr(self, field), getattr(other, field)
            if mine != its:
                yield field, mine, its


def _field_error(error: ErrorDetails) -> FieldError:
    """Return the first thing that pydantic found wrong, in a sentence."""
    field = str(error["loc"][0]) if error["loc"] else "config"
    if error["type"] == "extra_forbidden":
        near = ", ".join(difflib.get_close_matches(field, RunConfig.model_fields, cutoff=0.0))
        return FieldError(field, f"there is no such field; the nearest are {near}")
    problem = error["msg"].removeprefix("Input ")
    return FieldError(field, f"{problem}, not {shown(error['input'])}")


def load_config(path: str | os.PathLike[str], /) -> RunConfig:
    """Read a config from YAML; what is left out has its default.

    Raises
    ------
    UsageError
        If it is no mapping of fields, or a field is invalid; the message has the line.
    CheckpointError
        If the file cannot be read.
    """
    document = read_document(path)
    values = dict(document.values)
    schema = values.pop("schema", SCHEMA)
    if schema != SCHEMA:
        raise UsageError(f"{path}: its schema is {schema!r}, and this version reads {SCHEMA!r}")
    try:
        return RunConfig(**values)
    except FieldError as exc:
        raise document.error(exc, exc.field) from None


def dump_config(config: RunConfig, /) -> str:
    """Return YAML that `load_config` reads back to an equal record; every field is written."""
    import yaml

    fields = {"schema": SCHEMA, **config.model_dump(mode="json")}
    return str(yaml.safe_dump(fields, sort_keys=False, allow_unicode=True))
