"""The choice of a model's file among several, by their names alone."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from planescope.files.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

# What to do with a file that holds a network in a form that no reader of ours knows.
SOURCE = "measure the PyTorch, ONNX, TensorFlow or Keras file that it was made from"

DISTRIBUTED = (
    "a checkpoint that torch.distributed wrote in parts; put them into one file by "
    "torch.distributed.checkpoint.format_utils.dcp_to_torch_save(folder, file)"
)

# The names under which Hugging Face keeps one and the same model, the one to read first.
TWINS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "tf_model.h5",
    "flax_model.msgpack",
)

_MODEL = re.compile(
    r"[^.].*\.(safetensors|index\.json|pt|pth|bin|tar|ckpt|onnx|keras|h5|npz|tflite|pb|"
    r"pt2|ptl|hdf5|caffemodel|msgpack|pkl|pickle|pdparams|joblib|npy)"
    # A checkpoint of TensorFlow that was saved without a name is `.index` alone.
    r"|([^.].*)?\.index|model\.json|(.*-)?weights_manifest\.json",
    re.IGNORECASE,
)
# A part of a model that is cut into several files.
PART = re.compile(r"(?P<model>.+)-\d+-of-(?P<of>\d+)\.\w+", re.ASCII)
# What trainers leave beside a model, under a model's suffix.
_COMPANION = re.compile(
    r"(training_args|optimi[sz]er|scheduler|scaler|rng_state)\w*\.(bin|pth?)"
    r"|(fingerprint|keras_metadata)\.pb|(coreml|analytics/coreml)data\.bin"
)

GGUF = (
    "read its tensors by gguf.GGUFReader and gguf.quants.dequantize and save the arrays by "
    "numpy.savez"
)

_SHOWN = 5


def models_among(names: Iterable[str]) -> list[str]:
    """Tell by their names which files hold models; twins count once."""
    models = [name for name in names if _is_model(PurePosixPath(name).name)]
    twins = [name for name in TWINS if name in models]
    # Shards of TensorFlow.js, which their model.json lists.
    shards = re.compile(r"(.*/)?group\d+-shard\d+of\d+(\.bin)?")
    lists = any(PurePosixPath(name).name == "model.json" for name in models)
    # face-api.js calls them as their manifest.
    ends = "-weights_manifest.json"
    listed = {f"{name.removesuffix(ends)}.bin" for name in models if name.endswith(ends)}
    return [
        name
        for name in models
        if name not in twins[1:] and name not in listed and not (lists and shards.fullmatch(name))
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
        parts = [PART.fullmatch(name) for name in models]
        if len({part and (part["model"], part["of"]) for part in parts}) == 1 and parts[0]:
            raise CheckpointError(
                f"{where}: holds {len(models)} of the {int(parts[0]['of'])} parts of a model "
                "without their index (.index.json): put that beside them, or give one part, as in "
                f"{where}/{models[0]}"
            )
        raise CheckpointError(
            f"{where}: holds {len(models)} models, {listing(models)}; "
            f"give one of them, as in {where}/{models[0]}"
        )
    return models[0]


def listing(names: Sequence[str]) -> str:
    """Name the first few, and count the rest."""
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest


def folder_of_another_format(names: Collection[str]) -> str | None:
    """Say what a folder is that holds no model's file."""
    if "study.yaml" in names:
        return (
            "is the folder of a study; weights by epoch are in runs/NAME/snapshots, and planescope "
            "report shows what was measured"
        )
    if {"config.yaml", "state.json"} <= set(names):
        return (
            "is the folder of a run; weights by epoch are in snapshots, and planescope report "
            "shows what was measured"
        )
    if "saved_model.pb" in names:
        return f"is a TensorFlow SavedModel; {SOURCE}"
    if "_METADATA" in names or "manifest.ocdbt" in names:
        return (
            "is an Orbax checkpoint; restore it by orbax.checkpoint.PyTreeCheckpointer().restore "
            "and save the arrays by numpy.savez"
        )
    if any(name.endswith(".distcp") for name in names):
        return f"is {DISTRIBUTED}"
    if any(name.endswith(".gguf") for name in names):
        return f"holds a GGUF file of llama.cpp's; {GGUF}"
    if "coremldata.bin" in names:
        return f"is a Core ML model, compiled; {SOURCE}"
    if "Manifest.json" in names:
        return f"is a Core ML package; {SOURCE}"
    if any(name.endswith(".xml") for name in names) and any(n.endswith(".bin") for n in names):
        return f"may hold an OpenVINO model; {SOURCE}"
    if "__model__" in names or any(name.endswith(".pdiparams") for name in names):
        return "holds a Paddle model for inference; give its .pdparams file"
    return None
