"""Flax's msgpack files against what Flax wrote, and against files that lie."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

import planescope as ps
from planescope.checkpoints import read_contents
from planescope.checkpoints.flax import recognises
from planescope.checkpoints.probe import probe
from planescope.files.errors import CheckpointError

FIXTURES = Path(__file__).parents[1] / "formats"

FILES = {
    "flax.msgpack": "flax",
    "flax-train-state.msgpack": "flax",
    "flax-chunked.msgpack": "flax",
    "flax-bfloat16.msgpack": "flax-bfloat16",
}


@pytest.mark.parametrize("file", FILES)
def test_files_of_flax_give_their_arrays_bit_by_bit(file):
    form, state = read_contents(FIXTURES / file)
    assert (form, state.entry, state.in_order) == ("flax-msgpack", "params", False)
    with np.load(FIXTURES / f"{FILES[file]}.expected.npz") as arrays:
        wanted = dict(arrays)
    assert set(state.tensors) == set(wanted)
    for name, values in wanted.items():
        found = state.tensors[name].read()
        assert found.shape == values.shape == state.tensors[name].shape
        assert found.tobytes() == np.ascontiguousarray(values).tobytes(), name


@pytest.mark.parametrize("file", ["flax.msgpack", "flax-train-state.msgpack"])
def test_layers_of_flax_have_their_filters_first(file):
    """Kernels are (height, width, in, out), dense ones (in, out)."""
    measured = ps.measure(FIXTURES / file, kinds="all")
    with np.load(FIXTURES / "flax.expected.npz") as arrays:
        kernels = {n.removesuffix(".kernel"): a for n, a in arrays.items() if a.ndim > 1}
    assert {layer.name for layer in measured.layers} == set(kernels)
    for layer in measured.layers:
        kernel = kernels[layer.name]
        outputs = kernel.shape[-1]
        assert (layer.filters, layer.fan_in) == (outputs, kernel.size // outputs)
        sums = kernel.astype(np.float64).reshape(-1, outputs).sum(axis=0)
        assert layer.mean_projection == pytest.approx(sums.mean(), rel=1e-6, abs=1e-7)


def text(value):
    return b"\xd9" + bytes([len(value)]) + value


def array(shape, dtype, raw):
    content = b"\x93" + bytes([0x90 + len(shape)])
    content += b"".join(b"\xcf" + struct.pack(">Q", n) for n in shape)
    content += text(dtype) + b"\xc6" + struct.pack(">I", len(raw)) + raw
    return b"\xc9" + struct.pack(">IB", len(content), 1) + content


def file(path, *entries):
    path.write_bytes(bytes([0x80 + len(entries)]) + b"".join(k + v for k, v in entries))
    return path


GOOD = array((2, 2), b"float32", bytes(16))


def test_a_file_by_hand_is_read(tmp_path):
    _, state = read_contents(file(tmp_path / "a", (text(b"w"), GOOD), (text(b"step"), b"\x07")))
    assert {name: tensor.shape for name, tensor in state.tensors.items()} == {"w": (2, 2)}


LIES = {
    "shape": (array((2, 3), b"float32", bytes(16)), r"array 'w' claims float32 .* has 16 bytes"),
    "size": (array((1 << 62, 2), b"float32", b""), "impossible shape"),
    "type": (array((2,), b"object", bytes(16)), "holds object values"),
    "length": (b"\xc9\xff\xff\xff\xff\x01", "wants 4294967295 bytes where"),
    "elements": (b"\xdd\xff\xff\xff\xff", "claims 4294967295 elements"),
    "entries": (b"\xdf\xff\xff\xff\xff", "claims 4294967295 entries"),
    "code": (b"\xc1", "unknown type 0xc1"),
    "depth": (b"\x91" * 100 + b"\x01", "nests beyond 64"),
    "extension": (b"\xc7\x01\x01\x01", "not described as Flax describes it"),
    "nothing": (b"\x01", "holds no arrays by name"),
    "rest": (GOOD + b"\x00", "is another or is damaged"),
    "pieces": (
        b"\x83" + text(b"__msgpack_chunked_array__") + b"\xc3" + text(b"shape")
        + b"\x81\xa10\x08" + text(b"chunks") + b"\x81\xa10" + GOOD,
        "lacks some of its pieces",
    ),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_is_refused_with_the_reason(tmp_path, lie):
    value, match = LIES[lie]
    with pytest.raises(CheckpointError, match=match):
        read_contents(file(tmp_path / "net.msgpack", (text(b"w"), value)))


@pytest.mark.parametrize("head", [b"", b"\x80", b"\x82", b"\x81\xa1\0\x01", b"\x81\xc0", b"\xde\0"])
def test_another_file_is_not_taken_for_msgpack(tmp_path, head):
    (tmp_path / "a").write_bytes(head)
    assert not recognises(probe(tmp_path / "a"))
