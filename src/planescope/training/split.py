"""The data of a run, split by split, as its config names them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from planescope.data.options import DataOptions, Labels, Resize, Validation
from planescope.networks import paper

if TYPE_CHECKING:
    from planescope.data.load import Files, Images
    from planescope.data.options import Split
    from planescope.training.config import RunConfig
    from planescope.training.task import Data


def both_splits(config: RunConfig) -> Data:
    """Load the training and the validation split as a config says."""
    from planescope.training.task import Data

    return Data(train=load_split(config, "train"), val=load_split(config, "val"))


def load_split(config: RunConfig, split: Split) -> Images | Files:
    """Load one split of the data as a config says; files of the other are not asked for.

    Raises
    ------
    UsageError, CheckpointError
        As `planescope.data.load.load`.
    """
    data = _load(config, split, config.resize or "native")
    needed = paper.smallest_image(config.network)
    if config.resize is None and min(data.input_shape[1:]) < needed <= 32:
        data = _load(config, split, "pad-32")
    return data


def _load(config: RunConfig, split: Split, resize: str) -> Images | Files:
    from planescope.data.load import load

    own: dict[str, Any] = {
        "validation": Validation(config.validation),
        "labels": Labels(config.labels),
        "resize": Resize(resize),
        "seed": config.data_seed,
    }
    names = {field.name for field in dataclasses.fields(DataOptions)} - own.keys()
    options = DataOptions(**own, **{name: getattr(config, name) for name in names})
    return load(
        config.data, split=split, path=config.data_path, options=options, download=config.download
    )
