"""Files below a megabyte that claim all that the limits allow: none takes a gigabyte of memory.

They are made to be as large as a reader lets them be, which damage by chance does not come to; read
in processes that are watched, as the fuzzer's.
"""

from __future__ import annotations

import gzip
import io
import os
import struct
import zipfile
import zlib

import h5py
import numpy as np
import pytest

import planescope as ps
from checks.fuzz import campaign
from checks.fuzz.targets import TARGETS, preload
from planescope.files.zips import BOMB_BYTES

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

LIMIT = BOMB_BYTES - 4096


def npz(dtype, channels):
    """One array of zeros, as large as may be, of filters with so many channels."""
    bytes_each = np.dtype(dtype).itemsize * channels * 9
    shape = (LIMIT // bytes_each, channels, 3, 3)
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "a.weight.npy", buffer.getvalue() + bytes(LIMIT // bytes_each * bytes_each)
        )
    return out.getvalue()


def hdf5(dtype, chunk=1 << 10):
    """A kernel of zeros in packed chunks; all of them are the same bytes."""
    filters = LIMIT // 2 // 9 // 64 // chunk * chunk
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        name = "layers/conv2d/vars/0"
        chunks = (3, 3, 64, chunk)
        made = file.create_dataset(
            name, (3, 3, 64, filters), dtype, chunks=chunks, compression="gzip"
        )
        packed = zlib.compress(bytes(9 * 64 * chunk * 2))
        for at in range(0, filters, chunk):
            made.id.write_direct_chunk((0, 0, 0, at), packed)
        if dtype == "V2":
            made.attrs["dtype"] = "bfloat16"
    return buffer.getvalue()


def keras(dtype):
    """Packed chunks in a packed member."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", hdf5(dtype) + bytes(LIMIT - (1 << 20)))
    return out.getvalue()


def repeated(count):
    """A torch file whose tensor is one number, many times."""
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x01tQ"
    shape = b"J" + struct.pack("<i", count) + b"K\x01K\x01K\x02t"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0(" + shape
    tensor += b"(K\0K\0K\0K\0t\x89}tR"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("net/data.pkl", b"\x80\x02}X\x08\0\0\0a.weight" + tensor + b"s.")
        archive.writestr("net/data/0", bytes(4))
    return out.getvalue()


def packed_pickle():
    """Sets take most of all that one instruction can make."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data.pkl", b"\x8f" * (1 << 24) + b".")
    return out.getvalue()


def idx():
    head = struct.pack(">BBBBIII", 0, 0, 8, 3, LIMIT >> 16, 256, 256)
    return gzip.compress(head + bytes(LIMIT >> 16 << 16), compresslevel=1)


def measure(folder, *_):
    ps.measure(folder / "input", kinds="all").to_json()


@pytest.mark.parametrize(
    ("make", "read", "is_read"),
    [
        pytest.param(lambda: npz("<f2", 1024), measure, True, id="npz-of-halves"),
        pytest.param(lambda: npz("<f8", 64), measure, True, id="npz-of-doubles"),
        pytest.param(lambda: npz("<f2", 1), measure, False, id="npz-of-many-filters"),
        pytest.param(lambda: hdf5("<f2"), measure, True, id="hdf5"),
        pytest.param(lambda: hdf5("V2"), measure, True, id="hdf5-of-bfloat16"),
        pytest.param(lambda: keras("<f2"), measure, True, id="keras-packed-twice"),
        pytest.param(lambda: repeated((1 << 22) - 1), measure, True, id="torch-one-number"),
        pytest.param(lambda: repeated(1 << 23), measure, False, id="torch-one-number-too-often"),
        pytest.param(packed_pickle, measure, False, id="torch-packed-pickle"),
        pytest.param(idx, TARGETS["idx"], True, id="idx"),
    ],
)
def test_a_file_below_a_megabyte_takes_less_than_a_gigabyte(make, read, is_read):
    preload()
    data = make()
    assert len(data) < 1 << 20
    outcome = campaign.run(
        "bombs", read, {"small": {"input": SMALL}}, cases=[999], files=lambda _: {"input": data}
    )
    assert not outcome.faults
    assert outcome.results == is_read, dict(outcome.refusals)


def small():
    buffer = io.BytesIO()
    np.savez(buffer, **{"a.weight": np.ones((2, 1, 3, 3), np.float32)})
    return buffer.getvalue()


SMALL = small()
