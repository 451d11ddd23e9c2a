"""A file to layers, one at a time; one module a format.

A format is a module with three names:

    NAME            what `source.format` says of a file of this kind
    recognises      (Probe) -> bool: is this file of that format? By content, never by its name alone
    read            (Path) -> StateDict or list[Layer]: describe the file; read no weights yet

A format that knows its layers (a graph) gives them; one that holds named tensors gives a `StateDict`,
and `planescope.checkpoints.state_dict` finds the layers in it. Put the new module's name in `FORMATS`.
"""

from __future__ import annotations

# In the order in which a file is tried: cheap and certain tests first.
FORMATS = ("safetensors", "torch_zip", "torch_stream", "npz", "keras", "sharded", "onnx")
