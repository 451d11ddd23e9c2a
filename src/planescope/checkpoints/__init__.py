"""A file to layers, one at a time; one module a format.

A format is a module with three names:

    NAME            what `source.format` says of a file of this kind
    recognises      (Probe) -> bool: is this file of that format? By content, never by its name
    read            (Path) -> StateDict, Described or list[Layer]: describe the file, unread

One whose models are several files has `files` besides: (Path) -> all files that make the model.

A format that knows its layers (a graph) gives them; one that holds named tensors gives a
`StateDict`, and `planescope.networks.layers` finds the layers in it. Put the name of the new
module in `FORMATS`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from planescope.checkpoints.probe import Probe, probe
from planescope.files.errors import CheckpointError
from planescope.hyperplanes.layer import Described, Layer, StateDict

# In the order in which a file is tried: cheap and certain tests first.
FORMATS = (
    "safetensors",
    "torch.zip",
    "torch.stream",
    "arrays.npz",
    "keras.model",
    "sharded",
    "tflite.model",
    "tfjs",
    "tensorflow.saved_model",
    "tensorflow.checkpoint",
    "onnx.model",
    "tensorflow.frozen",
)


def read_contents(path: Path, /) -> tuple[str, StateDict | Described | list[Layer]]:
    """Name of a file's format, and what it holds; no weights are read yet.

    Raises
    ------
    CheckpointError
        If no format recognises the file, or it is damaged.
    """
    look = probe(path)
    for name in FORMATS:
        module = import_module(f"planescope.checkpoints.{name}")
        if module.recognises(look):
            return module.NAME, module.read(path)
    raise CheckpointError(f"{path}: {_what_it_is(look)}")


def files(path: Path, form: str, /) -> list[Path]:
    """List the files that make the model at `path`, which is of the format named `form`."""
    for name in FORMATS:
        module = import_module(f"planescope.checkpoints.{name}")
        if form == module.NAME:
            return list(module.files(path)) if hasattr(module, "files") else [path]
    return [path]


def _what_it_is(look: Probe) -> str:
    known = "safetensors, PyTorch, ONNX, Keras, TensorFlow and NumPy .npz files can be measured"
    if not look.size:
        return "the file is empty; is the download complete?"
    if look.head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself; fetch it with git lfs pull"
    if b"\0" not in look.head:
        return f"is a text file, not a checkpoint; {known}"
    return f"is no checkpoint of a known format; {known}"
