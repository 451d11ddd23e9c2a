"""A file to layers, one at a time; one module a format.

A format is a module with three names:

    NAME            what `source.format` says of a file of this kind
    recognises      (Probe) -> bool: is this file of that format? By content, never by its name
    read            (Path) -> StateDict or Described: describe the file; read no weights yet

One whose models are several files has `files` besides: (Path) -> all files that make the model.

A format that knows its layers (a graph) gives those, and what it leaves out; one that holds named
tensors gives a `StateDict`, and `planescope.networks.state.layers` finds the layers in it. Put the
name of the new module in `FORMATS`, with what each of its files has: of another file, the module
and the libraries that it needs are not imported.
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from types import ModuleType

from planescope.checkpoints.entries import read_entry
from planescope.checkpoints.probe import ZIP_MAGIC, AnotherFormatError, Sign, probe
from planescope.files.errors import CheckpointError
from planescope.hyperplanes.layer import Described, StateDict

FOREIGN = "planescope.checkpoints.foreign"

_ZIP = re.escape(ZIP_MAGIC)
_NUMBER = rb"[\x80-\xff]*[\0-\x7f]"  # of a protocol buffer
_HDF5 = rb"(.{512}|.{1024}|.{2048})?\x89HDF\r\n\x1a\n"  # behind a block of the user's perhaps

# In the order in which a file is tried: cheap and certain tests first. `foreign` refuses what is
# certain to be none of ours; behind it stand formats without a sign of their own.
FORMATS = {
    "safetensors": Sign(rb".{8}\{"),
    "torch.zip": Sign(_ZIP, r"[^/]*/data\.pkl"),
    "torch.export": Sign(_ZIP, r"serialized_exported_program\.json|[^/]*/models/.*\.json"),
    "torch.stream": Sign(rb"\x80"),
    "arrays.pickled": Sign(rb"\x80|\x93NUMPY|[(}\]ic]"),
    "arrays.npz": Sign(_ZIP + rb"|\x93NUMPY", r".*\.npy"),
    "keras.model": Sign(_ZIP + rb"|" + _HDF5, r"model\.weights\.h5"),
    "arrays.datasets": Sign(_HDF5),
    "sharded": Sign(rb"\s*\{"),
    "flax": Sign(rb"[\x81-\x8f\xde\xdf]"),
    "tflite.model": Sign(rb".{4}TFL3"),
    "tfjs": Sign(rb"\s*[{\[]"),
    # A version, then a graph, which begins with its description.
    "tensorflow.saved.saved_model": Sign(rb"(\x08" + _NUMBER + rb")+\x12" + _NUMBER + rb"\x0a"),
    "tensorflow.saved.checkpoint": Sign(rb""),
    "foreign": Sign(rb""),
    "onnx.model": Sign(rb""),
    "caffe.model": Sign(rb"[\x0a\x12\x1a\xa2]"),
    "tensorflow.frozen": Sign(rb""),
}


def open_model(
    path: Path, /, *, entry: str | None = None
) -> tuple[ModuleType, StateDict | Described]:
    """Find the format that reads a file, and what the file holds; no weights are read yet.

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
    for name, sign in FORMATS.items():
        if not sign.fits(look):
            continue
        module = import_module(f"planescope.checkpoints.{name}")
        if module.recognises(look):
            try:
                return module, read_entry(module, path, entry)
            except AnotherFormatError as exc:
                refused = exc
    raise refused or CheckpointError(f"{path}: {import_module(FOREIGN).outline(look)}")


def read_contents(path: Path, /, *, entry: str | None = None) -> tuple[str, StateDict | Described]:
    """Name a file's format, and what it holds, as `open_model` does."""
    module, contents = open_model(path, entry=entry)
    return module.NAME, contents


def files(path: Path, module: ModuleType, /) -> list[Path]:
    """List the files that make the model at `path`, which that format reads."""
    return list(module.files(path)) if hasattr(module, "files") else [path]
