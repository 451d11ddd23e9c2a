"""Bytes to arrays, to the last bit; archives that lie are refused before memory is taken."""

from __future__ import annotations

import contextlib
import io
import os
import random
import struct
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planescope.checkpoints.arrays.raw import ITEM_SIZES, decode, read_array, stored_tensor
from planescope.files.errors import CheckpointError
from planescope.files.reading import read_exactly
from planescope.files.zips import BOMB_BYTES, Archive

FLOAT8 = [name for name in ITEM_SIZES if name.startswith("float8")]
PLAIN = [name for name in ITEM_SIZES if name not in (*FLOAT8, "bfloat16")]


def same_bits(found, wanted):
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    nan = np.isnan(wanted)
    np.testing.assert_array_equal(np.isnan(found), nan)
    # Libraries differ in the payload of a NaN, and in nothing else.
    assert found[~nan].tobytes() == wanted[~nan].tobytes()


# --- element types


@pytest.mark.parametrize("dtype", FLOAT8)
def test_all_values_of_float8_are_those_of_ml_dtypes_and_torch(dtype):
    raw = np.arange(256, dtype=np.uint8)
    found = decode(raw, dtype)
    same_bits(found, raw.view(getattr(ml_dtypes, dtype)).astype(np.float32))
    if hasattr(torch, dtype):  # float8_e8m0fnu from torch 2.7 on
        same_bits(found, torch.from_numpy(raw).view(getattr(torch, dtype)).float().numpy())


@pytest.mark.parametrize("big_endian", [False, True])
def test_all_values_of_bfloat16_are_those_of_ml_dtypes_and_torch(big_endian):
    values = np.arange(65536, dtype=np.uint16)
    raw = values.astype(">u2" if big_endian else "<u2").view(np.uint8)
    found = decode(raw, "bfloat16", big_endian=big_endian)
    same_bits(found, values.view(ml_dtypes.bfloat16).astype(np.float32))
    same_bits(found, torch.from_numpy(values).view(torch.bfloat16).float().numpy())


@pytest.mark.parametrize("big_endian", [False, True])
def test_all_values_of_float16_are_kept(big_endian):
    values = np.arange(65536, dtype=np.uint16)
    raw = values.astype(">u2" if big_endian else "<u2").view(np.uint8)
    found = decode(raw, "float16", big_endian=big_endian)
    assert found.dtype == np.float16
    assert found.tobytes() == values.tobytes()


@pytest.mark.parametrize("dtype", PLAIN)
@pytest.mark.parametrize("big_endian", [False, True])
def test_other_types_are_as_numpy_reads_them(dtype, big_endian):
    random_bytes = np.random.default_rng(0).integers(0, 256, 64, np.uint8)
    raw = random_bytes % 2 if dtype == "bool" else random_bytes
    found = decode(raw.copy(), dtype, big_endian=big_endian)
    stored = np.dtype(dtype).newbyteorder(">" if big_endian else "<")
    assert found.dtype == np.dtype(dtype)
    assert found.dtype.isnative
    same_bits(found, np.frombuffer(raw.tobytes(), stored).astype(dtype))


@pytest.mark.parametrize("dtype", ITEM_SIZES)
def test_the_size_of_each_type_is_that_of_its_library(dtype):
    library = getattr(ml_dtypes, dtype, None) or dtype
    assert ITEM_SIZES[dtype] == np.dtype(library).itemsize


# --- arrays in a file


@pytest.fixture
def file(tmp_path):
    """24 numbers from byte 16 on."""
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(16) + np.arange(24, dtype="<f4").tobytes())
    return path


@given(
    shape=st.lists(st.integers(0, 4), max_size=4).map(tuple),
    order=st.randoms(use_true_random=False),
    step=st.integers(1, 3),
    start=st.integers(0, 5),
)
def test_any_strides_read_as_numpy_strides(tmp_path_factory, shape, order, step, start):
    whole = np.arange(start + step * 4**4 + 1, dtype=np.float32)
    axes = order.sample(range(len(shape)), len(shape))
    strides = [0] * len(shape)
    stride = step
    for axis in axes:
        strides[axis] = stride
        stride *= max(1, shape[axis])
    path = tmp_path_factory.mktemp("strides") / "a.bin"
    path.write_bytes(whole.tobytes())
    found = read_array(path, 4 * start, "float32", shape, strides=tuple(strides))
    wanted = np.lib.stride_tricks.as_strided(whole[start:], shape, [4 * s for s in strides])
    np.testing.assert_array_equal(found, wanted)


def test_a_stride_of_zero_repeats(file):
    found = read_array(file, 20, "float32", (3, 2), strides=(0, 1))
    np.testing.assert_array_equal(found, [[1, 2]] * 3)


def test_scalars_and_empty_arrays(file):
    assert read_array(file, 20, "float32", ()) == 1
    assert read_array(file, 16, "float32", (3, 0, 2)).shape == (3, 0, 2)
    assert read_array(file, 16, "float32", (0, 2), strides=(2, 1)).shape == (0, 2)


def test_a_tensor_is_not_read_before_it_is_asked_for(file):
    tensor = stored_tensor(file, 16, "float32", (4, 6), finish=np.transpose)
    assert (tensor.shape, tensor.dtype, tensor.is_floating) == ((4, 6), "float32", True)
    other = np.ones(24, "<f4")
    file.write_bytes(bytes(16) + other.tobytes())
    np.testing.assert_array_equal(tensor.read(), np.ones((6, 4)))


def test_a_tensor_that_ends_behind_the_file_is_refused(file):
    with pytest.raises(CheckpointError, match=r"a\.bin: ends 8 bytes early, inside a tensor; is"):
        read_array(file, 24, "float32", (4, 6))


@pytest.mark.parametrize("shape", [(2**40,), (2**20, 2**20, 2**20)])
def test_a_shape_that_lies_takes_no_memory(file, shape):
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="bytes early"):
        read_array(file, 16, "float32", shape)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_reading_holds_the_bytes_once(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(1 << 24))
    tracemalloc.start()
    read_array(path, 0, "float32", (1 << 22,))
    assert tracemalloc.get_traced_memory()[1] < 1.1 * (1 << 24)
    tracemalloc.stop()


@pytest.mark.parametrize(("offset", "length"), [(0, 113), (112, 1), (-1, 4), (0, -1), (2**70, 1)])
def test_bytes_outside_the_file_are_refused(file, offset, length):
    with pytest.raises(CheckpointError, match=f"wants {length} bytes at offset {offset}, but the"):
        read_exactly(file, offset, length)


def test_bytes_are_read_where_they_lie(file):
    assert read_exactly(file, 16, 8) == struct.pack("<2f", 0, 1)
    assert read_exactly(file, 112, 0) == b""


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("none", "cannot be read: No such file"),
        ("", "cannot be read: is a folder, not a file"),
        ("a\0b", "cannot be read: .*embedded null"),
    ],
)
def test_what_cannot_be_opened_is_named(tmp_path, name, sentence):
    with pytest.raises(CheckpointError, match=sentence):
        read_exactly(tmp_path / name, 0, 1)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on Windows")
def test_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="is not a regular file"):
        read_exactly(tmp_path / "pipe", 0, 1)


# --- archives


def archive_of(tmp_path, *members, change=lambda whole: whole):
    """Zip archive of (name, bytes, method) members, its bytes changed afterwards."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data, method in members:
            archive.writestr(name, data, method)
    path = tmp_path / "a.zip"
    path.write_bytes(change(buffer.getvalue()))
    return path


STORED = ("weights", bytes(range(256)), zipfile.ZIP_STORED)
DEFLATED = ("zeros", bytes(4096), zipfile.ZIP_DEFLATED)


def test_members_are_found_and_read(tmp_path):
    path = archive_of(tmp_path, STORED, DEFLATED, ("empty", b"", zipfile.ZIP_DEFLATED))
    archive = Archive(path)
    assert list(archive.members) == ["weights", "zeros", "empty"]
    assert [archive.is_stored(name) for name in archive.members] == [True, False, False]
    assert archive.read("weights") == STORED[1]
    assert archive.read("zeros") == DEFLATED[1]
    assert archive.read("empty") == b""
    assert read_exactly(path, archive.offset("weights"), 256) == STORED[1]


def test_an_archive_behind_other_bytes_is_read(tmp_path):
    path = archive_of(tmp_path, STORED, change=lambda whole: b"#!stub\n" + whole)
    assert Archive(path).read("weights") == STORED[1]


def directory(field, value, *, size):
    """Overwrite a field of the (only) entry of the central directory."""

    def change(whole):
        begin = whole.rindex(b"PK\1\2") + field
        return whole[:begin] + value.to_bytes(size, "little") + whole[begin + size :]

    return change


def flags(value):
    """Set the general flags of the member, in both of its headers."""

    def change(whole):
        local = whole[:6] + value.to_bytes(2, "little") + whole[8:]
        return directory(8, value, size=2)(local)

    return change


@pytest.mark.parametrize(
    ("member", "change", "sentence"),
    [
        pytest.param(STORED, lambda whole: whole[:-30], "is damaged .*is the down", id="truncated"),
        pytest.param(STORED, lambda whole: whole[:60], "is damaged", id="no-directory"),
        pytest.param(STORED, flags(1), "'weights' is encrypted; decrypt", id="encrypted"),
        pytest.param(
            DEFLATED, directory(20, 2**31, size=4), "'zeros' lies outside", id="beyond-the-file"
        ),
        pytest.param(
            STORED,
            directory(24, 9999, size=4),
            "'weights' is stored, yet claims two",
            id="two-sizes",
        ),
        pytest.param(
            DEFLATED,
            directory(24, 2**31, size=4),
            f"'zeros' would inflate from .. to {2**31} bytes; refused as a zip bomb",
            id="bomb",
        ),
    ],
)
def test_a_directory_that_lies_is_refused(tmp_path, member, change, sentence):
    path = archive_of(tmp_path, member, change=change)
    with pytest.raises(CheckpointError, match=sentence):
        Archive(path)


@pytest.mark.parametrize(
    ("member", "change", "sentence"),
    [
        pytest.param(
            DEFLATED, directory(24, 4095 + 2, size=4), "inflates to another size", id="size-lies"
        ),
        pytest.param(
            DEFLATED,
            lambda whole: whole[:35] + b"\xff" * 8 + whole[43:],
            "'zeros' is damaged: Error",
            id="broken-stream",
        ),
        pytest.param(
            STORED,
            lambda whole: b"PK\0\0" + whole[4:],
            "is not where the directory",
            id="no-header",
        ),
        pytest.param(
            STORED,
            lambda whole: whole[:28] + b"\xff\xff" + whole[30:],
            "is not where the directory",
            id="header-lies",
        ),
        pytest.param(
            ("a", bytes(100), zipfile.ZIP_BZIP2),
            lambda whole: whole,
            "'a' is compressed by method 12; only stored and deflated",
            id="bzip2",
        ),
    ],
)
def test_a_member_that_lies_is_refused(tmp_path, member, change, sentence):
    archive = Archive(archive_of(tmp_path, member, change=change))
    with pytest.raises(CheckpointError, match=sentence):
        archive.read(member[0])


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused(tmp_path):
    path = archive_of(tmp_path, STORED, STORED)
    with pytest.raises(CheckpointError, match="two members are named 'weights'"):
        Archive(path)


def test_a_member_larger_than_it_can_need_to_be_is_refused(tmp_path):
    archive = Archive(archive_of(tmp_path, DEFLATED))
    assert len(archive.read("zeros", limit=4096)) == 4096
    with pytest.raises(CheckpointError, match="'zeros' has 4096 bytes, more than the 4095 that"):
        archive.read("zeros", limit=4095)


def test_a_stream_cannot_inflate_beyond_what_the_directory_claims(tmp_path):
    """A small claim over a large stream: what comes is the claim, not the bomb."""
    zeros = ("zeros", bytes(1 << 25), zipfile.ZIP_DEFLATED)
    archive = Archive(archive_of(tmp_path, zeros, change=directory(24, 100, size=4)))
    tracemalloc.start()
    assert archive.read("zeros") == bytes(100)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_large_arrays_of_zeros_are_no_bomb(tmp_path):
    # 64 MiB that deflate a thousandfold: a pruned or freshly initialised layer.
    zeros = ("zeros", bytes(1 << 26), zipfile.ZIP_DEFLATED)
    assert len(zeros[1]) < BOMB_BYTES
    assert len(Archive(archive_of(tmp_path, zeros)).read("zeros")) == 1 << 26


def test_bytes_changed_at_random_give_our_errors_or_a_result(tmp_path):
    rng = random.Random(0)  # noqa: S311
    whole = archive_of(tmp_path, STORED, DEFLATED).read_bytes()
    path = tmp_path / "b.zip"
    for _ in range(1500):
        changed = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            # Mostly in the directory, at the end.
            place = rng.randrange(len(changed) - 150 if rng.random() < 0.7 else 0, len(changed))
            changed[place] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
        path.write_bytes(changed[: rng.randrange(len(changed))] if rng.random() < 0.1 else changed)
        with contextlib.suppress(CheckpointError):
            archive = Archive(path)
            for name in archive.members:
                archive.read(name)
