"""The safetensors reader against the official library, and against files that lie."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from planescope.checkpoints import FORMATS, read_contents
from planescope.checkpoints.probe import Probe
from planescope.checkpoints.safetensors import DTYPES, read, recognises
from planescope.files.errors import CheckpointError
from planescope.hyperplanes.layer import StateDict


def file_of(header, data=b""):
    """Bytes of a file: little-endian length of the header, the header, the data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def same_bits(ours, official):
    """Whether arrays are equal to the last bit, NaN and the sign of zero included."""
    assert ours.dtype == official.dtype
    assert ours.shape == official.shape
    return ours.tobytes() == official.tobytes()


@pytest.mark.parametrize(
    "dtype",
    [
        *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
        *("float16", "float32", "float64", "complex64"),
    ],
)
def test_every_bit_is_as_the_official_numpy_loader_reads_it(tmp_path, dtype):
    raw = np.random.default_rng(0).integers(0, 256, 64, dtype=np.uint8)
    array = (raw % 2 if dtype == "bool" else raw).view(dtype).reshape(2, -1, 2)
    path = tmp_path / "a.safetensors"
    arrays = {"a": array, "scalar": array[0, 0, 0, ...], "none": array[:0]}
    safetensors.numpy.save_file(arrays, path)
    official = safetensors.numpy.load_file(path)
    ours = read(path).tensors
    assert ours.keys() == official.keys()
    for name, tensor in ours.items():
        assert (tensor.shape, tensor.dtype) == (official[name].shape, dtype)
        assert same_bits(tensor.read(), official[name])


@pytest.mark.parametrize(
    "dtype",
    [
        *("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
        # From torch 2.7 on.
        *(["float8_e8m0fnu"] if hasattr(torch, "float8_e8m0fnu") else []),
    ],
)
def test_narrow_floats_are_widened_exactly(tmp_path, dtype):
    patterns = torch.arange(65536 if dtype == "bfloat16" else 256, dtype=torch.int32)
    raw = patterns.to(torch.int16 if dtype == "bfloat16" else torch.uint8)
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"a": raw.view(getattr(torch, dtype))}, path)
    tensor = read(path).tensors["a"]
    assert tensor.dtype == dtype
    official = safetensors.torch.load_file(path)["a"].float().numpy()
    # NaN has many bit patterns, and the two may widen it to different ones.
    np.testing.assert_array_equal(tensor.read(), official)
    assert np.array_equal(
        np.signbit(tensor.read()[official == 0]), np.signbit(official[official == 0])
    )


def test_a_state_dict_keeps_names_and_is_in_no_order(tmp_path):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    path = tmp_path / "net.weights"  # found by content, not by name
    safetensors.torch.save_file(network.state_dict(), path, metadata={"format": "pt"})
    form, contents = read_contents(path)
    assert form == "safetensors"
    assert isinstance(contents, StateDict)
    assert not contents.in_order
    assert contents.tensors.keys() == network.state_dict().keys()
    for name, value in network.state_dict().items():
        assert same_bits(contents.tensors[name].read(), value.numpy())


def test_a_file_without_tensors_is_read(tmp_path):
    path = tmp_path / "none.safetensors"
    safetensors.numpy.save_file({}, path)
    assert read(path).tensors == {}


ONE = {"a": entry()}  # two float32, 8 bytes
TWO = {"a": entry(), "b": entry(offsets=(8, 16))}
DEEP = b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"

# The header, how many bytes of data follow, and what is said after the file's name. The official
# library refuses each of them too, but for those marked `ours`.
DAMAGED = [
    pytest.param(b"{", 0, "the header is not valid JSON (Expecting property", id="half-an-object"),
    pytest.param(b'{"a":\xff}', 0, "the header is not valid JSON ('utf-8' codec", id="not-utf8"),
    pytest.param(b"[1]", 0, "the header is not a JSON object", id="list"),
    pytest.param(DEEP, 0, "the header is not valid JSON (maximum recursion", id="nested-deep"),
    pytest.param(b'{"a":' + b"9" * 5000 + b"}", 0, "the header is not valid JSON", id="long-int"),
    pytest.param(b'{"\\ud800":1}', 0, "the header is not valid JSON", id="lone-surrogate"),
    pytest.param(b'{"a":1,"a":1}', 0, "(it names 'a' twice)", id="name-twice"),
    pytest.param(
        b'{"a":{"dtype":"F32","dtype":"F32","shape":[0],"data_offsets":[0,0]}}',
        0,
        "(it names 'dtype' twice)",
        id="field-twice",
    ),
    pytest.param({"__metadata__": {"a": 1}}, 0, "__metadata__ does not map text", id="meta-int"),
    pytest.param({"__metadata__": "a"}, 0, "__metadata__ does not map text", id="meta-text"),
    pytest.param({"__metadata__": []}, 0, "__metadata__ does not map text", id="meta-list"),
    pytest.param({"a": 7}, 0, "tensor 'a' lacks a dtype, a shape", id="no-entry"),
    pytest.param({"a": {"dtype": "F32"}}, 0, "tensor 'a' lacks a dtype, a shape", id="no-shape"),
    pytest.param({"a": entry(dtype=4)}, 8, "tensor 'a' lacks a dtype, a shape", id="dtype-int"),
    pytest.param({"a": entry(offsets=(0, 8, 8))}, 8, "tensor 'a' lacks a dtype", id="3-offsets"),
    pytest.param({"a": entry(shape=[True, 2])}, 8, "shape or offset that is no", id="bool-extent"),
    pytest.param({"a": entry(shape=[2.0])}, 8, "shape or offset that is no count", id="float"),
    pytest.param({"a": entry(shape=[-2])}, 8, "shape or offset that is no count", id="negative"),
    pytest.param({"a": entry(shape=[10**4000])}, 8, "shape or offset that is no", id="googol"),
    pytest.param({"a": entry(offsets=(-8, 0))}, 8, "shape or offset that is no", id="before-data"),
    pytest.param({"a": entry(dtype="F128")}, 8, "is of the unknown dtype 'F128'", id="dtype"),
    pytest.param(
        {"a": entry(shape=[3])},
        8,
        "tensor 'a' of shape [3] and dtype F32 takes 12 bytes, but its offsets hold 8",
        id="shape-too-large",
    ),
    pytest.param({"a": entry(offsets=(8, 0))}, 8, "takes 8 bytes, but its offsets", id="backwards"),
    pytest.param({"a": entry(shape=[1 << 40, 1 << 40])}, 8, "impossible shape", id="overflow"),
    pytest.param(
        {"a": entry(shape=[0, 1 << 61], offsets=(0, 0))},
        0,
        "impossible shape",
        id="ours-empty-overflow",
    ),
    pytest.param(
        {"a": entry(shape=[1] * 65, offsets=(0, 4))}, 4, "impossible shape", id="ours-65-dimensions"
    ),
    pytest.param(
        {"a": entry(), "b": entry(offsets=(4, 12))},
        12,
        "tensor 'b' overlaps the tensor before it: it starts at byte 4 of the data, not at 8",
        id="overlap",
    ),
    pytest.param(
        {"a": entry(), "b": entry(offsets=(12, 20))},
        20,
        "tensor 'b' leaves a hole before it: it starts at byte 12 of the data, not at 8",
        id="hole",
    ),
    pytest.param(
        TWO,
        12,
        "the header describes 16 bytes of data, but the file has 12; is the download complete?",
        id="truncated-data",
    ),
    pytest.param(ONE, 9, "the header describes 8 bytes of data, but the file has 9", id="longer"),
]


@pytest.mark.parametrize(("header", "size", "sentence"), DAMAGED)
def test_a_damaged_file_is_refused_with_a_sentence(tmp_path, request, header, size, sentence):
    path = tmp_path / "net.safetensors"
    path.write_bytes(file_of(header, bytes(size)))
    with pytest.raises(CheckpointError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert sentence in str(caught.value)
    if "ours" not in request.node.callspec.id:
        with pytest.raises(safetensors.SafetensorError):
            safetensors.numpy.load(path.read_bytes())


@pytest.mark.parametrize(
    ("header", "size"),
    [
        pytest.param(ONE, 8, id="plain"),
        pytest.param({"__metadata__": {"format": "pt"}, **ONE}, 8, id="metadata"),
        pytest.param({"__metadata__": None, **ONE}, 8, id="null-metadata"),
        pytest.param({"a": {**entry(), "note": "1"}}, 8, id="unknown-field"),
        pytest.param(json.dumps(ONE).encode() + b"   ", 8, id="padded-header"),
        pytest.param({"b": entry(offsets=(8, 16)), "a": entry()}, 16, id="header-in-any-order"),
        pytest.param({"a": entry(), "b": entry(shape=[0], offsets=(8, 8))}, 8, id="empty-tensor"),
    ],
)
def test_what_the_official_library_reads_is_read(tmp_path, header, size):
    path = tmp_path / "net.safetensors"
    path.write_bytes(file_of(header, bytes(range(size))))
    ours = {name: tensor.read() for name, tensor in read(path).tensors.items()}
    official = safetensors.numpy.load(path.read_bytes())
    assert ours.keys() == official.keys()
    assert all(same_bits(ours[name], official[name]) for name in ours)


@pytest.mark.parametrize(
    ("head", "size", "recognised"),
    [
        pytest.param(file_of(ONE, bytes(8)), None, True, id="whole"),
        pytest.param(file_of({}), None, True, id="no-tensors"),
        pytest.param(file_of(ONE)[:20], None, True, id="cut-inside-the-header"),
        pytest.param(file_of(ONE)[:10], None, True, id="cut-behind-the-first-quote"),
        pytest.param(file_of(ONE)[:8], None, False, id="length-alone"),
        pytest.param(b"", None, False, id="empty"),
        pytest.param(b'{"weight_map": {}}', None, False, id="json"),
        pytest.param((1 << 30).to_bytes(8, "little") + b'{"', 1 << 31, False, id="100-MB-at-most"),
        pytest.param(b"\x99" + bytes(7) + b"{random", 40, False, id="longer-than-the-file"),
        pytest.param(b"\x80\x02" + bytes(6) + b"}", 1 << 20, False, id="no-object"),
    ],
)
def test_recognised_by_length_and_brace(tmp_path, head, size, recognised):
    look = Probe(tmp_path / "x", head, len(head) if size is None else size)
    assert recognises(look) is recognised


def test_a_download_cut_inside_the_header_is_called_incomplete(tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(file_of(ONE)[:20])
    with pytest.raises(CheckpointError, match="the file has 20; is the download complete"):
        read_contents(path)


def test_a_header_longer_than_the_limit_is_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes((100_000_001).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="claims a header of 100000001 bytes"):
        read(path)


def test_a_file_that_shrinks_after_it_was_described(tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(file_of(ONE, bytes(8)))
    tensor = read(path).tensors["a"]
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="ends 3 bytes early, inside a tensor"):
        tensor.read()


def test_reading_one_tensor_takes_its_own_memory_alone(tmp_path):
    path = tmp_path / "net.safetensors"
    arrays = {name: np.zeros(1 << 20, np.float32) for name in "abcdefgh"}  # 4 MiB each
    safetensors.numpy.save_file(arrays, path)
    tracemalloc.start()
    read(path).tensors["c"].read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 << 20


def test_the_table_of_dtypes_is_the_official_one(tmp_path):
    """What the official library lists and we do not is narrower than a byte."""
    path = tmp_path / "net.safetensors"
    path.write_bytes(file_of({"a": entry(dtype="F128")}, bytes(8)))
    with pytest.raises(safetensors.SafetensorError) as caught:
        safetensors.numpy.load(path.read_bytes())
    _, _, listed = str(caught.value).partition("expected one of ")
    official = {word.strip("`") for word in listed.split(" at ")[0].split(", ")}
    assert official - DTYPES.keys() == {"F4", "F6_E2M3", "F6_E3M2"}
    assert DTYPES.keys() <= official


VALID = file_of({"__metadata__": {"format": "pt"}, **TWO}, bytes(range(16)))
CHARACTERS = st.sampled_from(b'{}[]",:0123456789-.eE\\\x00\xffFBI truenlas_')


@st.composite
def mutated(draw):
    """A valid file with some bytes replaced, dropped or doubled."""
    data = bytearray(VALID)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data) - 1))
        width = draw(st.integers(0, 3))
        data[at : at + width] = bytes(draw(st.lists(CHARACTERS, max_size=3)))
    return bytes(data[: draw(st.integers(9, len(data)))] if draw(st.booleans()) else data)


@given(data=mutated())
def test_a_mutated_file_is_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    path.write_bytes(data)
    recognises(Probe(path, data, len(data)))
    try:
        ours = {name: tensor.read() for name, tensor in read(path).tensors.items()}
    except CheckpointError:
        return
    # What we take, the official library must take and understand in the same way.
    official = safetensors.numpy.load(data)
    assert ours.keys() == official.keys()
    assert all(same_bits(ours[name], official[name]) for name in ours)


def test_a_file_imports_its_own_format_alone(tmp_path):
    path = tmp_path / "net.safetensors"
    safetensors.numpy.save_file({"conv.weight": np.ones((4, 3, 3, 3), np.float32)}, path)
    code = (
        "import sys, planescope as ps; ps.measure(sys.argv[1]);"
        "print(*[m for m in sys.modules if m.startswith('planescope.checkpoints.')], sep='\\n')"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    imported = {name.removeprefix("planescope.checkpoints.") for name in run.stdout.split()}
    assert imported & set(FORMATS) == {"safetensors"}
