"""HDF5 files of named arrays, as h5py, Chainer, Caffe and many scripts write them."""

from __future__ import annotations

from pathlib import Path

from planescope.checkpoints.arrays.nested import Tree, state_dict
from planescope.checkpoints.hdf5 import BLOCKS, Hdf5, Window
from planescope.checkpoints.hdf5_bytes import MAGIC
from planescope.checkpoints.probe import Probe, probe
from planescope.hyperplanes.layer import StateDict

NAME = "hdf5"


def recognises(probe: Probe) -> bool:
    """Tell HDF5, behind a block of the user's perhaps; Keras' is taken before."""
    return any(probe.head.startswith(MAGIC, at) for at in BLOCKS)


def read(path: Path, *, entry: str | None = None) -> StateDict:
    """Describe the numeric datasets of an HDF5 file by their paths.

    Raises
    ------
    CheckpointError
        If the file is damaged, wants another file opened, or holds no arrays.
    """
    tree: dict[str, Tree] = {}
    with Hdf5(Window(path, 0, probe(path).size)) as file:
        for group, names in file.groups(without="\0").items():
            branch = tree
            for part in group.split("/") if group else ():
                inner = branch.get(part)
                if not isinstance(inner, dict):  # of two objects of one name, the group
                    inner = branch[part] = {}
                branch = inner
            for name in names:
                key = f"{group}/{name}" if group else name
                if (tensor := file.tensor_of_numbers(key)) is not None:
                    branch[name] = tensor
    return state_dict(tree, path, entry=entry)
