"""HDF5 files of named arrays, as h5py writes them."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from planescope.checkpoints import read_contents
from planescope.files.errors import CheckpointError


def draw(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


NET = {"conv1.weight": draw(4, 3, 3, 3), "conv1.bias": draw(4), "fc.weight": draw(2, 4)}


def written(path, arrays, **options):
    with h5py.File(path, "w", **options) as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values)
    return path


@pytest.mark.parametrize("options", [{}, {"userblock_size": 512}], ids=["plain", "user-block"])
def test_named_arrays_come_bit_by_bit(tmp_path, options):
    form, state = read_contents(written(tmp_path / "net.h5", NET, **options))
    assert form == "hdf5"
    assert set(state.tensors) == set(NET)
    for name, values in NET.items():
        assert state.tensors[name].read().tobytes() == values.tobytes()


def test_groups_are_parts_of_names_and_texts_are_left_out(tmp_path):
    arrays = {"net/conv1/W": NET["conv1.weight"], "net/conv1/b": NET["conv1.bias"], "a": "text"}
    arrays["optimizer/conv1/W"] = draw(4, 3, 3, 3)
    _, state = read_contents(written(tmp_path / "net.h5", arrays))
    assert set(state.tensors) == {"conv1.W", "conv1.b"}
    assert state.entry == "net"


def test_blobs_of_caffe_are_weights_and_biases(tmp_path):
    arrays = {"data/conv1/0": NET["conv1.weight"], "data/conv1/1": NET["conv1.bias"]}
    _, state = read_contents(written(tmp_path / "net.caffemodel.h5", arrays))
    assert set(state.tensors) == {"data.conv1.W", "data.conv1.b"}


def test_a_file_without_arrays_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="holds no arrays by name"):
        read_contents(written(tmp_path / "net.h5", {"a": "text"}))
