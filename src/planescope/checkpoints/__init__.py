"""A file to layers, one at a time; one module a format.

A format is a module with three names:

    NAME            what `source.format` says of a file of this kind
    recognises      (Probe) -> bool: is this file of that format? By content, never by its name
    read            (Path) -> StateDict or Described: describe the file; read no weights yet

One whose models are several files has `files` besides: (Path) -> all files that make the model.

A format that knows its layers (a graph) gives those, and what it leaves out; one that holds named
tensors gives a `StateDict`, and `planescope.networks.layers` finds the layers in it. Put the name
of the new module in `FORMATS`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from planescope.checkpoints.entries import read_entry
from planescope.checkpoints.probe import AnotherFormatError, probe
from planescope.files.errors import CheckpointError
from planescope.hyperplanes.layer import Described, StateDict

FOREIGN = "planescope.checkpoints.foreign"

# In the order in which a file is tried: cheap and certain tests first. `foreign` refuses what is
# certain to be none of ours; behind it stand formats without a sign of their own.
FORMATS = (
    "safetensors",
    "torch.zip",
    "torch.export",
    "torch.stream",
    "arrays.pickled",
    "arrays.npz",
    "keras.model",
    "arrays.datasets",
    "sharded",
    "flax",
    "tflite.model",
    "tfjs",
    "tensorflow.saved_model",
    "tensorflow.checkpoint",
    "foreign",
    "onnx.model",
    "caffe.model",
    "tensorflow.frozen",
)


def read_contents(path: Path, /, *, entry: str | None = None) -> tuple[str, StateDict | Described]:
    """Name of a file's format, and what it holds; no weights are read yet.

    Parameters
    ----------
    entry : str, optional
        Which of several state dicts in the file: where it lies, or what its names begin with.

    Raises
    ------
    CheckpointError
        If no format recognises the file, or it is damaged.
    UsageError
        If it has no such entry.
    """
    look = probe(path)
    refused = None
    for name in FORMATS:
        module = import_module(f"planescope.checkpoints.{name}")
        if module.recognises(look):
            try:
                return module.NAME, read_entry(module, path, entry)
            except AnotherFormatError as exc:
                refused = exc
    raise refused or CheckpointError(f"{path}: {import_module(FOREIGN).outline(look)}")


def files(path: Path, form: str, /) -> list[Path]:
    """List the files that make the model at `path`, which is of the format named `form`."""
    for name in FORMATS:
        module = import_module(f"planescope.checkpoints.{name}")
        if form == module.NAME:
            return list(module.files(path)) if hasattr(module, "files") else [path]
    return [path]
