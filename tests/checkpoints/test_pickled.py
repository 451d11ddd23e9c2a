"""Pickled dictionaries of arrays against the libraries that wrote them; nothing is executed."""

from __future__ import annotations

import collections
import io
import itertools
import pickle
import struct
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import joblib
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import planescope as ps
from planescope.checkpoints import read_contents
from planescope.files.errors import CheckpointError
from planescope.hyperplanes.layer import Kind, StateDict
from planescope.networks.state.layers import find_layers

FIXTURES = Path(__file__).parents[1] / "formats"


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def read(path):
    form, state = read_contents(path)
    assert form == "pickle"
    return state


def same(state, wanted):
    """Assert that a state dict has just these arrays, bit by bit."""
    assert set(state.tensors) == set(wanted)
    for name, values in wanted.items():
        tensor = state.tensors[name]
        found = tensor.read()
        assert tensor.shape == found.shape == values.shape, name
        assert found.tobytes() == np.ascontiguousarray(values).tobytes(), name


FILES = {
    "flax-jax.pkl": ("flax", "params"),
    "flax-bfloat16.pkl": ("flax-bfloat16", "params"),
    "haiku.pkl": ("haiku", "params"),
    "haiku-tuple.pkl": ("haiku", "0"),
    "net.pdparams": ("paddle", ""),
    "nested.pdparams": ("paddle", "model"),
}


@pytest.mark.parametrize("file", FILES)
def test_files_of_flax_haiku_and_paddle_give_their_arrays_bit_by_bit(file):
    expected, entry = FILES[file]
    state = read(FIXTURES / file)
    assert state.entry == entry
    with np.load(FIXTURES / f"{expected}.expected.npz") as file:
        wanted = dict(file)
    # The statistics have PyTorch's names, for its epsilon is Haiku's.
    for old, new in (("moving_mean", "running_mean"), ("moving_variance", "running_var")):
        wanted = {name.replace(old, new): array for name, array in wanted.items()}
    extra = state.tensors.keys() - set(wanted)
    same(StateDict(tensors={n: t for n, t in state.tensors.items() if n not in extra}), wanted)
    # What Haiku counts beside its averages.
    assert all("_ema." in name for name in extra)


def test_frozen_dictionaries_of_flax_are_dictionaries():
    state = read(FIXTURES / "flax-frozen.ckpt")
    with np.load(FIXTURES / "flax.expected.npz") as wanted:
        parameters = {name: wanted[name] for name in wanted if not name.endswith((".mean", ".var"))}
    same(state, parameters)
    kinds = {layer.name: layer.kind for layer in find_layers(state)[0]}
    assert kinds["ConvTranspose_0"] is Kind.TRANSPOSED
    assert kinds["Conv_0"] is Kind.CONV


NET = {"conv1.weight": draw(4, 3, 3, 3), "conv1.bias": draw(4), "fc.weight": draw(2, 4)}


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_gives_the_same_arrays(tmp_path, protocol):
    (tmp_path / "net.pkl").write_bytes(pickle.dumps(NET, protocol))
    same(read(tmp_path / "net.pkl"), NET)


@pytest.mark.parametrize("protocol", range(6))
@given(
    values=arrays.arrays(
        st.sampled_from(["<f4", ">f4", "<f8", ">f2", "<i8", "|b1", "|u1", "<c8"]),
        st.lists(st.integers(0, 7), max_size=4).map(tuple),
    ),
    columns_first=st.booleans(),
)
def test_arrays_of_every_type_and_order_come_as_they_are(tmp_path, protocol, values, columns_first):
    held = np.asarray(values, order="F" if columns_first else "C")
    (tmp_path / "net.pkl").write_bytes(pickle.dumps({"a": {"w": held}}, protocol))
    (tensor,) = read(tmp_path / "net.pkl").tensors.values()
    native = values.astype(values.dtype.newbyteorder("="))
    assert (tensor.shape, tensor.dtype) == (values.shape, native.dtype.name)
    assert tensor.read().tobytes() == native.tobytes()


def test_large_arrays_stay_in_the_file(tmp_path):
    weights = {"w": draw(64, 64, 3, 3)}
    (tmp_path / "net.pkl").write_bytes(pickle.dumps(weights))
    state = read(tmp_path / "net.pkl")
    (tmp_path / "net.pkl").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"ends .* bytes early"):
        state.tensors["w"].read()


def test_arrays_of_jax_and_of_short_floats_are_read(tmp_path):
    short = {name: values.astype(ml_dtypes.bfloat16) for name, values in NET.items()}
    on_device = jax.tree.map(jnp.asarray, NET)
    (tmp_path / "net.pkl").write_bytes(pickle.dumps({"params": {"a": short, "b": on_device}}))
    wanted = {f"a.{name}": values.astype(np.float32) for name, values in short.items()}
    same(read(tmp_path / "net.pkl"), wanted | {f"b.{name}": v for name, v in NET.items()})


def test_joblib_files_are_read_where_they_are_not_compressed(tmp_path):
    model = {"net": NET, "table": np.asfortranarray(draw(3, 5)), "objects": np.array([{}], object)}
    joblib.dump(model, tmp_path / "net.joblib")
    wanted = {f"net.{name}": values for name, values in NET.items()}
    same(read(tmp_path / "net.joblib"), {**wanted, "table": model["table"]})
    joblib.dump(model, tmp_path / "packed.joblib", compress=3)
    with pytest.raises(CheckpointError, match=r"joblib compressed; .*compress=0"):
        read(tmp_path / "packed.joblib")


def test_a_pickled_array_of_objects_is_what_it_holds(tmp_path):
    pairs = {"conv1_1": [draw(3, 3, 3, 8), draw(8)], "fc6": [draw(8, 4), draw(4)]}
    np.save(tmp_path / "vgg.npy", np.array(pairs, object), allow_pickle=True)
    wanted = {"conv1_1.W": pairs["conv1_1"][0], "conv1_1.b": pairs["conv1_1"][1]}
    wanted |= {"fc6.W": pairs["fc6"][0], "fc6.b": pairs["fc6"][1]}
    same(read(tmp_path / "vgg.npy"), wanted)


class TwoString:
    """Writes what Python 2 called a string: SHORT_BINSTRING below 256 bytes, BINSTRING else."""

    def __init__(self, raw):
        self.raw = raw

    def dump(self):
        length = len(self.raw)
        head = b"U" + bytes([length]) if length < 256 else b"T" + struct.pack("<i", length)
        return head + self.raw


def python_2(blobs):
    """A dictionary of float32 arrays as cPickle of Python 2 wrote it with protocol 2."""
    out = [b"\x80\x02}("]
    for name, values in blobs.items():
        shape = b"(" + b"".join(b"J" + struct.pack("<i", n) for n in values.shape) + b"t"
        out += [
            TwoString(name.encode()).dump(),
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01",
            shape,
            b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xff"
            b"J\xff\xff\xff\xffK\x00tb\x89",
            TwoString(values.tobytes()).dump(),
            b"tb",
        ]
    return b"".join([*out, b"u."])


def test_dumps_of_caffe2_are_read_without_their_momentum(tmp_path):
    blobs = {
        "conv1_w": draw(8, 3, 3, 3), "conv1_b": draw(8), "conv1_w_momentum": draw(8, 3, 3, 3),
        "res_conv1_bn_s": draw(8), "pred_w": draw(2, 8), "pred_b": draw(2),
    }  # fmt: skip
    (tmp_path / "net.pkl").write_bytes(python_2(blobs))
    wanted = {
        "conv1.w": "conv1_w", "conv1.b": "conv1_b", "res_conv1_bn_s": "res_conv1_bn_s",
        "pred.w": "pred_w", "pred.b": "pred_b",
    }  # fmt: skip
    same(read(tmp_path / "net.pkl"), {name: blobs[key] for name, key in wanted.items()})


def test_a_customary_name_is_descended_and_what_stands_beside_it_is_told(tmp_path):
    checkpoint = {
        "model": NET, "ema": {"conv1.weight": draw(4, 3, 3, 3, seed=1)}, "epoch": 3,
        "optimizer": {"conv1.weight": draw(4, 3, 3, 3, seed=2)},
    }  # fmt: skip
    (tmp_path / "net.pkl").write_bytes(pickle.dumps(checkpoint))
    state = read(tmp_path / "net.pkl")
    same(state, NET)
    assert state.entry == "model"
    assert state.note.startswith("ema: holds arrays too")


def test_a_module_called_model_is_no_entry(tmp_path):
    weights = {"encoder": {"w": draw(4, 3, 3, 3)}, "model": {"w": draw(5, 4, 3, 3)}}
    (tmp_path / "net.pkl").write_bytes(pickle.dumps(weights))
    assert set(read(tmp_path / "net.pkl").tensors) == {"encoder.w", "model.w"}


def test_sorted_names_are_no_order_of_definition(tmp_path):
    for names, in_order in ((("b.w", "a.w"), True), (("a.w", "b.w"), False)):
        (tmp_path / "net.pkl").write_bytes(pickle.dumps({name: draw(2, 2, 3, 3) for name in names}))
        assert read(tmp_path / "net.pkl").in_order is in_order


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("whole", [False, True], ids=["state-dict", "module"])
def test_torch_tensors_in_a_plain_pickle_are_read_as_torch_reads_them(tmp_path, protocol, whole):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ConvTranspose2d(4, 2, 2))
    saved = network if whole else network.state_dict()
    (tmp_path / "net.pkl").write_bytes(pickle.dumps(saved, protocol))
    state = read(tmp_path / "net.pkl")
    same(state, {name: value.numpy() for name, value in network.state_dict().items()})
    kinds = {name: place.kind for name, place in state.places.items()}
    assert kinds == ({"0": Kind.CONV, "1": Kind.TRANSPOSED} if whole else {})


def test_shared_records_are_one_tensor_and_circles_end(tmp_path):
    shared = draw(4, 3, 3, 3)
    weights = {"a": {"w": shared}, "b": {"w": shared}}
    weights["self"] = weights
    (tmp_path / "net.pkl").write_bytes(pickle.dumps(weights))
    tensors = read(tmp_path / "net.pkl").tensors
    assert set(tensors) == {"a.w", "b.w"}
    assert tensors["a.w"] is tensors["b.w"]


def test_objects_without_arrays_are_named(tmp_path):
    for value, match in [
        (collections.Counter(), r"object of collections\.Counter, without arrays by name; save"),
        ([1, 2], "a list, without arrays"),
        (draw(3, 3), "a single array without a name"),
    ]:
        (tmp_path / "net.pkl").write_bytes(pickle.dumps(value))
        with pytest.raises(CheckpointError, match=match):
            read(tmp_path / "net.pkl")


def deep(depth):
    value = draw(2, 2)
    for _ in range(depth):
        value = {"a": value}
    return value


class Evil:
    """Would run when it is unpickled."""

    def __reduce__(self):
        return sys.exit, (3,)


DAMAGE = {
    "cut": (lambda raw: raw[:-900], "damaged"),
    "lying-shape": (lambda raw: raw.replace(b"K\x04K\x03K\x03K\x03t", b"K\x04K\x03K\x03K\x04t"),
                    "claims float32 values of shape"),
    "huge-shape": (lambda raw: raw.replace(b"K\x04K\x03K\x03K\x03t",
                                           b"\x8a\x08" + b"\x7f" * 8 + b"K\x03K\x03t"),
                   "impossible shape"),
    "structured": (lambda raw: raw.replace(b"\x8c\x02f4", b"\x8c\x02i3"), "no plain numbers"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_array_is_refused_with_the_reason(tmp_path, damage):
    change, match = DAMAGE[damage]
    raw = pickle.dumps({"conv.weight": draw(4, 3, 3, 3)}, 4)
    # Of four dimensions, which a mark opens.
    assert change(raw) != raw
    (tmp_path / "net.pkl").write_bytes(change(raw))
    with pytest.raises(CheckpointError, match=match):
        read(tmp_path / "net.pkl")


def test_nothing_is_executed_and_depth_has_a_bound(tmp_path):
    (tmp_path / "net.pkl").write_bytes(pickle.dumps({"w": draw(2, 2, 3, 3), "evil": Evil()}))
    assert set(read(tmp_path / "net.pkl").tensors) == {"w"}
    (tmp_path / "net.pkl").write_bytes(pickle.dumps(deep(80)))
    with pytest.raises(CheckpointError, match="nests more than 64 deep"):
        read(tmp_path / "net.pkl")


def test_bytes_that_many_arrays_share_have_a_bound(tmp_path):
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, 4)
    values = draw(1000, 10)
    pickler.dump(values)
    one = buffer.getvalue()
    record = one[one.index(b"\x8c\x16") - 0 : -1] if b"\x8c\x16" in one else one[11:-1]
    # The bytes are remembered once; each further record recalls them.
    at = one.index(b"B" + struct.pack("<I", values.nbytes))
    number = one[:at].count(b"\x94")
    tail = one[at + 5 + values.nbytes : -1]
    assert tail.startswith(b"\x94")
    again = one[11:at] + b"h" + bytes([number]) + tail
    stream = b"\x80\x04(" + one[11:-1] + again * 200 + b"l."
    del record
    (tmp_path / "net.pkl").write_bytes(stream)
    with pytest.raises(CheckpointError, match="refused as a bomb"):
        read(tmp_path / "net.pkl")


def test_alexnet_of_flax_is_measured_as_alexnet_of_torch(tmp_path):
    """The same weights in both orders give one table, layer by layer."""
    rng = np.random.default_rng(0)
    widths = (3, 8, 8, 16)
    torch_names, flax = {}, {}
    for index, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        weight = rng.normal(size=(outputs, inputs, 3, 3)).astype(np.float32)
        bias = rng.normal(size=outputs).astype(np.float32)
        torch_names |= {f"Conv_{index}.weight": weight, f"Conv_{index}.bias": bias}
        flax[f"Conv_{index}"] = {"kernel": weight.transpose(2, 3, 1, 0), "bias": bias}
    (tmp_path / "net.ckpt").write_bytes(pickle.dumps(flax))
    measured, wanted = ps.measure(tmp_path / "net.ckpt"), ps.measure(torch_names)
    for layer, other in zip(measured.layers, wanted.layers, strict=True):
        assert (layer.name, layer.filters, layer.fan_in) == (
            other.name,
            other.filters,
            other.fan_in,
        )
        assert (layer.negative_mass, layer.mean_cosine) == (other.negative_mass, other.mean_cosine)


def test_transposed_convolutions_of_paddle_and_haiku_are_known_by_their_biases():
    for file, name in (("net.pdparams", "3"), ("haiku.pkl", "up")):
        layers = ps.measure(FIXTURES / file, kinds="transposed").layers
        assert [(layer.name, layer.filters) for layer in layers] == [(name, 5)]


def test_where_nothing_tells_the_axes_the_note_says_so(tmp_path):
    (tmp_path / "net.pkl").write_bytes(pickle.dumps({"a": {"w": draw(5, 3, 3, 5)}}))
    (note,) = ps.measure(tmp_path / "net.pkl").notes
    assert "the names alone say that the filters of a lie on the last axis" in note
