"""The .npz reader against NumPy itself, and against files that lie."""

from __future__ import annotations

import contextlib
import io
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planescope.checkpoints import read_contents
from planescope.checkpoints.arrays.npz import read
from planescope.files.errors import CheckpointError

SAVERS = [np.savez, np.savez_compressed]


def npy(header, data=b"", version=1):
    """Bytes of an .npy file: magic, version, length of the header, the header, the data."""
    text = header if isinstance(header, bytes) else repr(header).encode()
    length = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + data


def entry(descr="<f4", shape=(2,), fortran_order=False):
    return {"descr": descr, "fortran_order": fortran_order, "shape": shape}


def archive(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


@pytest.mark.parametrize("save", SAVERS)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    "dtype", ["?", "i1", "u2", "<i4", ">i8", "<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "<c8"]
)
def test_every_bit_is_as_numpy_loads_it(tmp_path, save, order, dtype):
    raw = np.random.default_rng(0).integers(0, 256, 24 * np.dtype(dtype).itemsize, dtype=np.uint8)
    array = (raw % 2 if dtype == "?" else raw).view(dtype).reshape((2, 3, 4), order=order)
    path = tmp_path / "a.npz"
    save(path, a=array, scalar=array[0, 0, 0], none=array[:0], column=array[:, 0, 0])
    official = np.load(path)
    ours = read(path).tensors
    assert set(ours) == set(official)
    for name, tensor in ours.items():
        native = official[name].astype(official[name].dtype.newbyteorder("="))
        assert (tensor.shape, tensor.dtype) == (native.shape, native.dtype.name)
        assert tensor.read().dtype == native.dtype
        assert tensor.read().tobytes() == native.tobytes()


@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_version_of_the_header_is_read(tmp_path, version):
    content = npy(entry(), np.float32([1, 2]).tobytes(), version)
    tensor = read(archive(tmp_path / "a.npz", {"a": content})).tensors["a"]
    assert tensor.read().tolist() == [1, 2]


def test_a_state_dict_is_in_no_order_and_found_by_content(tmp_path):
    path = tmp_path / "weights"
    with path.open("wb") as file:
        np.savez(file, **{"conv1.weight": np.ones((4, 3, 3, 3)), "conv1.bias": np.ones(4)})
    form, contents = read_contents(path)
    assert form == "npz"
    assert contents.in_order is False
    assert list(contents.tensors) == ["conv1.weight", "conv1.bias"]


def test_labels_and_times_are_left_out(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(
        path,
        w=np.ones(2),
        classes=np.array(["cat", "dog"]),
        bytes=np.array([b"cat"]),
        saved=np.datetime64("2020-01-01"),
        took=np.timedelta64(1, "s"),
    )
    assert list(read(path).tensors) == ["w"]


@pytest.mark.parametrize("save", SAVERS)
def test_what_is_not_measured_is_not_read(tmp_path, save):
    path = tmp_path / "a.npz"
    save(path, large=np.zeros(1 << 24, np.uint8), small=np.ones(3))
    tracemalloc.start()
    try:
        assert read(path).tensors["small"].read().tolist() == [1, 1, 1]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("shape", [(1,) * 64, (0, (1 << 59) - 1)], ids=["64-dimensions", "empty"])
def test_the_largest_shapes_that_numpy_takes_are_read(tmp_path, shape):
    content = npy(entry(shape=shape), bytes(4 * np.prod(shape, dtype=int)))
    tensor = read(archive(tmp_path / "a.npz", {"a": content})).tensors["a"]
    assert tensor.shape == tensor.read().shape == shape


def test_objects_are_refused_and_not_unpickled(tmp_path):
    class Payload:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    path = tmp_path / "a.npz"
    np.savez(path, meta=np.array([Payload()], dtype=object))
    with pytest.raises(CheckpointError, match=r"array 'meta' holds Python objects, which are not"):
        read(path)
    assert not (tmp_path / "ran").exists()


def test_an_array_without_a_name_is_refused(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.ones(3))
    with pytest.raises(CheckpointError, match=r"a single array without a name; save .*savez"):
        read_contents(path)


DAMAGED = [
    pytest.param(b"", "has no valid .npy header", id="empty"),
    pytest.param(npy(entry(), bytes(8))[1:], "has no valid .npy header", id="no-magic"),
    pytest.param(npy(entry(), bytes(8), 4), "has no valid .npy header", id="version-4"),
    pytest.param(npy(entry())[:40], "has no valid .npy header", id="header-cut"),
    pytest.param(npy(b"("), "has no valid .npy header", id="no-literal"),
    pytest.param(npy(b"(" * 3000), "has no valid .npy header", id="nested-deep"),
    pytest.param(npy(b"open('x', 'w')"), "has no valid .npy header", id="a-call"),
    pytest.param(npy(b"[1]"), "has no valid .npy header", id="no-dict"),
    pytest.param(npy({}), "elements that are no plain numbers", id="no-descr"),
    pytest.param(npy(entry([("x", "<f4")]), bytes(8)), "no plain numbers", id="fields"),
    pytest.param(npy(entry("<V2"), bytes(4)), "holds void16 values", id="raw-bytes"),
    pytest.param(npy(entry("<f3"), bytes(6)), "of an unknown type, '<f3'", id="unknown-float"),
    pytest.param(npy(entry(shape=[2]), bytes(8)), "an impossible shape", id="list"),
    pytest.param(npy(entry(shape=(-2,)), bytes(8)), "an impossible shape", id="negative"),
    pytest.param(npy(entry(shape=(True, 2)), bytes(8)), "an impossible shape", id="bool"),
    pytest.param(npy(entry(shape=(1,) * 65), bytes(4)), "an impossible shape", id="65-dimensions"),
    pytest.param(npy(entry(shape=(0, 1 << 59))), "an impossible shape", id="empty-overflow"),
    pytest.param(
        npy(entry(), bytes(7)),
        "claims float32 values of shape (2,), but has 7 bytes; is the download complete?",
        id="short",
    ),
    pytest.param(npy(entry(), bytes(9)), "but has 9 bytes", id="long"),
]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(("content", "sentence"), DAMAGED)
def test_a_damaged_array_is_refused_by_name(tmp_path, compression, content, sentence):
    path = archive(tmp_path / "a.npz", {"good": npy(entry(), bytes(8)), "a": content}, compression)
    with pytest.raises(CheckpointError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: array 'a' ")
    assert sentence in str(caught.value)


def test_a_compression_that_numpy_does_not_write_is_refused(tmp_path):
    path = archive(tmp_path / "a.npz", {"a": npy(entry(), bytes(8))}, zipfile.ZIP_LZMA)
    with pytest.raises(CheckpointError, match="only stored and deflated members are read"):
        read(path)


def small_file(save):
    buffer = io.BytesIO()
    save(buffer, a=np.arange(6, dtype=np.float32).reshape(2, 3), b=np.ones(2))
    return buffer.getvalue()


@given(
    content=st.sampled_from([small_file(save) for save in SAVERS]),
    changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=8),
    end=st.none() | st.integers(0, 1 << 16),
)
def test_a_changed_file_gives_arrays_or_a_sentence(tmp_path_factory, content, changes, end):
    damaged = bytearray(content)
    for at, byte in changes:
        damaged[at % len(damaged)] = byte
    path = tmp_path_factory.getbasetemp() / "changed.npz"
    path.write_bytes(damaged[:end])
    with contextlib.suppress(CheckpointError):
        for tensor in read(path).tensors.values():
            assert tensor.read().shape == tensor.shape
