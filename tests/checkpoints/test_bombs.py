"""Files below a megabyte that claim all that the limits allow: none takes a gigabyte of memory.

They are made to be as large as a reader lets them be, which damage by chance does not come to; read
in processes that are watched, as the fuzzer's.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import onnx
import onnx.helper
import pytest
import torch

import planescope as ps
from checks.fuzz import campaign
from checks.fuzz.structures import FOOTER_BYTES, MAGIC, crc32c, table
from checks.fuzz.targets import TARGETS, preload
from planescope.files.zips import BOMB_BYTES

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

LIMIT = BOMB_BYTES - 4096
ROOT = Path(__file__).parents[1]


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


def hdf5(dtype, name="layers/conv2d/vars/0", chunk=1 << 10):
    """A kernel of zeros in packed chunks; all of them are the same bytes."""
    filters = LIMIT // 2 // 9 // 64 // chunk * chunk
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
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


# --- formats of other frameworks: each by hand, or a fixture whose shapes were changed

TENSORFLOW = ROOT / "tensorflow_files"
HUGE = (1 << 20, 1 << 10, 3, 3)  # 36 GiB of float32


def field(number, content):
    """One field of a protocol buffer: a number, or bytes."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def dimensions(shape):
    return b"".join(field(2, field(1, extent)) for extent in shape)


def frozen(shape, *, saved=False):
    """A graph of one convolution, whose weight is one number, repeated."""
    tensor = field(1, 1) + field(2, dimensions(shape)) + b"\x2d" + struct.pack("<f", 0.5)
    value = field(1, b"value") + field(2, field(8, tensor))
    nodes = (
        field(1, b"x") + field(2, b"Placeholder"),
        field(1, b"w") + field(2, b"Const") + field(5, value),
        field(1, b"c") + field(2, b"Conv2D") + field(3, b"x") + field(3, b"w"),
    )
    graph = b"".join(field(1, node) for node in nodes)
    tag = field(1, field(4, b"serve"))
    return field(1, 1) + field(2, tag + field(2, graph)) if saved else graph


def caffe(shape):
    blob = field(7, field(1, b"".join(map(varint, shape)))) + field(5, bytes(64))
    return field(100, field(1, b"conv") + field(2, b"Convolution") + field(7, blob))


def flax(shape):
    content = b"\x93\x94" + b"".join(b"\xcf" + struct.pack(">Q", n) for n in shape)
    content += b"\xa7float32\xc4\x04" + bytes(4)
    return b"\x81\xa1w\xc7" + bytes([len(content), 1]) + content


def manifest(shape):
    weights = [{"name": "a/kernel", "shape": shape, "dtype": "float32"}]
    coded = {"dtype": "uint8", "scale": 1.0, "min": 0.0}
    weights.append({**weights[0], "name": "b/kernel", "quantization": coded})
    told = [{"paths": ["data"], "weights": weights}]
    return {"input": json.dumps(told).encode(), "data": bytes(1 << 10)}


def checkpoint(shape):
    """An index that claims so much of a few bytes of data."""
    size = math.prod(shape) * 4
    entry = field(1, 1) + field(2, dimensions(shape)) + field(5, size) + b"\x35" + bytes(4)
    index = table([(b"", field(1, 1)), (b"a/kernel", entry)])
    return {"input": index, "input.data-00000-of-00001": bytes(64)}


def packed_block():
    """A table whose one block says that it unpacks to 4 GiB."""
    out = bytearray()
    for block in (varint((1 << 32) - 1) + b"\xfe" * 64 + b"\1", bytes(8) + b"\0"):
        crc = crc32c(block)
        out += block + struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
    footer = varint(71) + varint(8) + varint(0) + varint(69)
    out += footer.ljust(FOOTER_BYTES - len(MAGIC), b"\0") + MAGIC
    return {"input": bytes(out), "input.data-00000-of-00001": b""}


def lite(name, *shape):
    """A tensor whose shape was made so large."""
    raw = (TENSORFLOW / f"{name}.tflite").read_bytes()
    of = struct.pack(f"<{len(shape) + 1}i", len(shape), *shape)
    assert of in raw
    huge = (1 << 20, 1 << 10, *shape[2:])
    return raw.replace(of, struct.pack(f"<{len(shape) + 1}i", len(shape), *huge))


def pickled(dtype):
    raw = pickle.dumps({"a.weight": np.zeros((7, 5, 3, 3), dtype)}, protocol=2)
    assert raw.count(b"K\x07K\x05") == 1
    return raw.replace(b"K\x07K\x05", b"J\xff\xff\xff\x7fK\x05")


def shards():
    """One shard of which an index names what it does not hold."""
    names = {f"{n}.weight": "a.safetensors" for n in range(15000)}
    return {"input": json.dumps({"weight_map": names}).encode(), "a.safetensors": bytes(8)}


def repeated_onnx(shape):
    """A convolution whose weight is a number that the graph repeats."""
    wanted = onnx.helper.make_tensor("s", onnx.TensorProto.INT64, [4], shape)
    one = onnx.helper.make_tensor("v", onnx.TensorProto.FLOAT, [1, 1, 1, 1], [0.5])
    node = onnx.helper.make_node
    nodes = [node("Expand", ["v", "s"], ["w"]), node("Conv", ["x", "w"], ["y"])]
    image = onnx.helper.make_tensor_value_info("x", 1, [1, shape[1], 9, 9])
    out = onnx.helper.make_tensor_value_info("y", 1, None)
    graph = onnx.helper.make_graph(nodes, "g", [image], [out], [wanted, one])
    return onnx.helper.make_model(graph).SerializeToString()


def exported(shape):
    """A program whose weight is one number, many times: JSON tells shape and strides."""
    buffer = io.BytesIO()
    program = torch.export.export(torch.nn.Conv2d(2, 4, 3), (torch.zeros(1, 2, 8, 8),))
    torch.export.save(program, buffer)
    out = io.BytesIO()
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(out, "w") as new:
        changed = 0
        for name in old.namelist():
            content = old.read(name)
            if name.endswith(".json"):
                sizes = [
                    b", ".join(b'{"as_int": %d}' % n for n in s) for s in ((4, 2, 3, 3), shape)
                ]
                compact = [size.replace(b" ", b"") for size in sizes]
                changed += content.count(sizes[0]) + content.count(compact[0])
                content = content.replace(sizes[0], sizes[1]).replace(compact[0], compact[1])
                strides = [b'{"as_int": %d}' % n for n in (18, 9)]
                for stride in (*strides, *(each.replace(b" ", b"") for each in strides)):
                    content = content.replace(
                        stride, stride.replace(b"18", b"0").replace(b"9", b"0")
                    )
            new.writestr(name, content)
    assert changed
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
        pytest.param(
            lambda: hdf5("<f2", "conv/kernel"),
            measure,
            True,
            id="hdf5-of-others",
            marks=pytest.mark.slow,
        ),
        pytest.param(lambda: frozen((1, 1, 1 << 11, 1 << 11)), measure, True, id="graph"),
        pytest.param(lambda: frozen(HUGE), measure, False, id="graph-of-a-repeated-number"),
        pytest.param(lambda: frozen(HUGE, saved=True), measure, False, id="saved-model"),
        pytest.param(lambda: caffe(HUGE), measure, False, id="caffe"),
        pytest.param(lambda: flax(HUGE), measure, False, id="flax"),
        pytest.param(lambda: manifest(HUGE), measure, False, id="tfjs"),
        pytest.param(lambda: checkpoint(HUGE), measure, False, id="tensorflow-checkpoint"),
        pytest.param(packed_block, measure, False, id="tensorflow-checkpoint-packed"),
        pytest.param(lambda: lite("net", 8, 3, 3, 3), measure, False, id="tflite"),
        pytest.param(lambda: lite("sparse", 16, 1024), measure, False, id="tflite-sparse"),
        pytest.param(lambda: pickled("f4"), measure, False, id="pickled"),
        pytest.param(shards, measure, False, id="shards"),
        pytest.param(lambda: repeated_onnx(HUGE), measure, False, id="onnx"),
        pytest.param(
            lambda: exported(HUGE),
            measure,
            False,
            id="pt2",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(not hasattr(torch, "float8_e8m0fnu"), reason="torch before 2.7"),
            ],
        ),
    ],
)
def test_a_file_below_a_megabyte_takes_less_than_a_gigabyte(make, read, is_read):
    preload()
    made = make()
    files = made if isinstance(made, dict) else {"input": made}
    assert sum(map(len, files.values())) < 1 << 20
    outcome = campaign.run(
        "bombs", read, {"small": {"input": SMALL}}, cases=[999], files=lambda _: files
    )
    assert not outcome.faults
    assert outcome.results == is_read, dict(outcome.refusals)


def small():
    buffer = io.BytesIO()
    np.savez(buffer, **{"a.weight": np.ones((2, 1, 3, 3), np.float32)})
    return buffer.getvalue()


SMALL = small()
