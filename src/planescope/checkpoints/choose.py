"""Which of some files, told by their names alone, is the model."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from planescope.files.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# The names under which Hugging Face keeps one and the same model, the one to read first.
TWINS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "tf_model.h5",
)

_MODEL = re.compile(
    r"[^.].*\.(safetensors|index\.json|pt|pth|bin|tar|ckpt|onnx|keras|h5|npz|tflite|pb)"
    # A checkpoint of TensorFlow that was saved without a name is `.index` alone.
    r"|([^.].*)?\.index|model\.json",
    re.IGNORECASE,
)
# What trainers leave beside a model, under a model's suffix.
_COMPANION = re.compile(
    r"(training_args|optimi[sz]er|scheduler|scaler|rng_state)\w*\.(bin|pth?)"
    r"|(fingerprint|keras_metadata)\.pb"
)

_SHOWN = 5


def models_among(names: Iterable[str]) -> list[str]:
    """Tell by their names which files hold models; twins count once."""
    models = [name for name in names if _is_model(PurePosixPath(name).name)]
    twins = [name for name in TWINS if name in models]
    # Shards of TensorFlow.js, which their model.json lists.
    shards = re.compile(r"(.*/)?group\d+-shard\d+of\d+(\.bin)?")
    lists = any(PurePosixPath(name).name == "model.json" for name in models)
    return [
        name for name in models if name not in twins[1:] and not (lists and shards.fullmatch(name))
    ]


def _is_model(name: str) -> bool:
    return bool(_MODEL.fullmatch(name)) and not _COMPANION.fullmatch(name)


def only_model(models: Sequence[str], names: Sequence[str], where: str) -> str:
    """Take the one model there is.

    Parameters
    ----------
    models, names : sequence of str
        The models, and all the files among which they were looked for.
    where : str
        Where they lie; with a slash and a name behind it, a target for `locate`.

    Raises
    ------
    CheckpointError
        If there is none or several; it lists what there is.
    """
    if not models:
        found = f"only {listing(names)}" if names else "it is empty"
        raise CheckpointError(f"{where}: holds no model, {found}; give a model's file")
    if len(models) > 1:
        raise CheckpointError(
            f"{where}: holds {len(models)} models, {listing(models)}; "
            f"give one of them, as in {where}/{models[0]}"
        )
    return models[0]


def listing(names: Sequence[str]) -> str:
    """Name the first few, and count the rest."""
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest
