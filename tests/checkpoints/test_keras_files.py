"""The Keras reader against what Keras 2 and 3 wrote, and against HDF5 files that lie.

The files of Keras 2 lie in tests/keras; those of Keras 3 are written here, by the same script.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import planescope as ps
from checks.fuzz.seeds import MAKERS
from planescope.checkpoints import read_contents
from planescope.checkpoints.keras.config import MAX_CALLS, trace
from planescope.checkpoints.keras.model import read
from planescope.files.errors import CheckpointError
from planescope.hyperplanes.layer import Input
from planescope.measurement.source import find

KERAS_2 = Path(__file__).parents[1] / "keras"

# Each layer's kernel and bias, by the number that Keras gives them; how the kernel's axes are to be
# arranged, filters first; and kind and groups. A depthwise kernel has its multiplier (m) behind the
# channels (c) that it multiplies.
LAYERS = {
    "residual": {
        "stem": ("stem/0", None, "hwio->oihw", "conv", 1),
        "dw": ("dw/0", "dw/1", "hwcm->cmhw", "conv", 4),
        "sep.depthwise": ("sep/0", None, "hwcm->cmhw", "conv", 8),
        "sep.pointwise": ("sep/1", "sep/2", "hwio->oihw", "pointwise", 1),
        "block.deep": ("block.deep/0", "block.deep/1", "hwio->oihw", "conv", 1),
        "shared": ("shared/0", "shared/1", "hwio->oihw", "conv", 1),
        "down": ("down/0", "down/1", "hwio->oihw", "conv", 2),
        "up": ("up/0", "up/1", "hwoi->oihw", "transposed", 1),
        "head": ("head/0", "head/1", "io->oi", "linear", None),
    },
    "sequence": {
        "conv1d": ("conv1d/0", "conv1d/1", "wio->oiw", "conv", 1),
        "separable_conv1d.depthwise": ("separable_conv1d/0", None, "wcm->cmw", "conv", 4),
        "separable_conv1d.pointwise": (
            *("separable_conv1d/1", "separable_conv1d/2", "wio->oiw", "pointwise", 1),
        ),
        "depthwise_conv1d": ("depthwise_conv1d/0", "depthwise_conv1d/1", "wcm->cmw", "conv", 5),
        "time_distributed": ("time_distributed/0", "time_distributed/1", "io->oi", "linear", None),
        "conv1d_transpose": (
            *("conv1d_transpose/0", "conv1d_transpose/1", "woi->oiw", "transposed", 1),
        ),
        "dense_1": ("dense_1/0", "dense_1/1", "io->oi", "linear", None),
    },
    "branches": {
        "conv": ("conv/0", "conv/1", "dhwio->oidhw", "conv", 1),
        "back": ("back/0", "back/1", "dhwoi->oidhw", "transposed", 1),
        "head": ("head/0", "head/1", "io->oi", "linear", None),
    },
}

# Stage, input, and norm with its epsilon.
PLACES = {
    "residual": {
        "stem": (0, "image", ("stem_bn", 1e-3)),  # rescaled, but an image
        "dw": (1, "relu", None),  # behind max pooling
        "sep.depthwise": (1, "other", None),
        "sep.pointwise": (1, "other", None),
        "block.deep": (1, "relu", ("block.deep_bn", 1e-5)),  # relu + relu
        "shared": (1, "other", None),  # once behind a ReLU, once behind itself
        "down": (2, "other", None),  # strided; its norm stands behind the ReLU
        "up": (2, "other", None),
        "head": (2, "other", None),
    },
    "sequence": {
        "conv1d": (0, "image", ("batch_normalization", 1e-3)),  # a ReLU6
        "separable_conv1d.depthwise": (1, "relu", None),  # behind average pooling
        "separable_conv1d.pointwise": (1, "other", None),  # a leaky ReLU is none
        "depthwise_conv1d": (1, "other", None),
        "time_distributed": (1, "other", None),
        "conv1d_transpose": (1, "other", None),
        "dense_1": (1, "other", None),
    },
    "branches": {
        "conv": (0, "image", None),
        "back": (0, "other", None),
        "head": (0, "other", None),
    },
}

FILES = [
    *[("2", name) for name in ("residual.keras", "residual.h5", "residual-weights.h5")],
    *[("2", name) for name in ("sequence.h5", "branches-weights.h5")],
    *[("3", f"{name}.{form}") for name in LAYERS for form in ("keras", "h5", "weights.h5")],
]
WITH_CONFIG = [(keras, name) for keras, name in FILES if "weights" not in name]


MADE: list[Path] = []


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of the files that each version of Keras wrote; a process makes those of 3 once."""
    if not MADE:
        folder = tmp_path_factory.mktemp("keras3")
        # Of its backends NumPy is the quickest to start; the files are the same.
        subprocess.run(
            [sys.executable, KERAS_2 / "make_fixtures.py", "keras", folder],
            env={**os.environ, "KERAS_BACKEND": "numpy"},
            check=True,
            capture_output=True,
        )
        MADE.append(folder)
    return {"2": KERAS_2, "3": MADE[0]}


def filters_first(kernel, axes):
    arranged = np.einsum(axes, kernel)
    if "cm" not in axes:
        return arranged
    return arranged.reshape(-1, 1, *arranged.shape[2:])


def layers_of(path):
    return list(read(path).layers)


def norm_of(layer):
    return layer.norm and (layer.norm.name, layer.norm.eps)


def same(tensor, expected):
    array = tensor.read()
    assert tensor.shape == array.shape == expected.shape
    assert tensor.dtype == array.dtype.name
    return np.array_equal(array, expected)


@pytest.mark.parametrize(("keras", "name"), FILES)
def test_every_weight_is_as_keras_hands_it_out(folders, keras, name):
    network = name.replace("-", ".").partition(".")[0]
    expected = np.load(folders[keras] / "expected.npz")
    form, contents = read_contents(folders[keras] / name)
    layers = contents.layers
    assert form == "keras"
    assert {layer.name for layer in layers} == set(LAYERS[network])
    for layer in layers:
        kernel, bias, axes, kind, groups = LAYERS[network][layer.name]
        assert same(layer.weight, filters_first(expected[f"{network}/{kernel}"], axes))
        assert (layer.bias is None) == (bias is None)
        assert bias is None or same(layer.bias, expected[f"{network}/{bias}"])
        assert layer.kind == kind
        assert layer.groups == groups or (layer.groups is None and "weights" in name)


@pytest.mark.parametrize(("keras", "name"), WITH_CONFIG)
def test_the_config_tells_the_place_of_each_layer(folders, keras, name):
    layers = layers_of(folders[keras] / name)
    assert [layer.name for layer in layers] == list(PLACES[Path(name).stem])
    for layer in layers:
        place = (layer.stage, layer.input, norm_of(layer))
        assert place == PLACES[Path(name).stem][layer.name]
        assert not layer.norm_assumed


@pytest.mark.parametrize(("keras", "name"), FILES)
def test_every_value_of_a_norm_is_as_keras_hands_it_out(folders, keras, name):
    expected = np.load(folders[keras] / "expected.npz")
    norms = {
        layer.norm.name: layer.norm for layer in layers_of(folders[keras] / name) if layer.norm
    }
    for module, norm in norms.items():
        # "stem_bn" has no scale.
        names = ["gamma", "beta", "mean", "variance"][module == "stem_bn" :]
        assert (norm.gamma is None) == (module == "stem_bn")
        for number, part in enumerate(names):
            prefix = "sequence" if module == "batch_normalization" else "residual"
            assert same(getattr(norm, part), expected[f"{prefix}/{module}/{number}"])


def test_without_a_config_norms_are_paired_by_the_order_of_keras_2(folders):
    layers = {layer.name: layer for layer in layers_of(folders["2"] / "residual-weights.h5")}
    paired = {name: layer.norm.name for name, layer in layers.items() if layer.norm}
    # That of "down" stands behind its ReLU; only the config knows.
    assert paired == {"stem": "stem_bn", "block.deep": "block.deep_bn", "down": "down_bn"}
    for layer in layers.values():
        assert layer.norm_assumed == (layer.norm is not None)
        assert (layer.stage, layer.input) == (None, Input.UNKNOWN)


def test_without_a_config_keras_3_keeps_no_order_to_pair_norms_by(folders):
    for layer in layers_of(folders["3"] / "residual.weights.h5"):
        assert layer.norm is None
        assert (layer.stage, layer.input) == (None, Input.UNKNOWN)


# --- What the config says, in the forms of both versions.


def layer(class_name, name, *inputs, **config):
    """An entry of a functional model's config, as Keras 2 writes it."""
    return {
        "class_name": class_name,
        "config": {"name": name, **config},
        "name": name,
        "inbound_nodes": [[[source, 0, 0, {}] for source in inputs]] if inputs else [],
    }


def functional(*layers):
    return {
        "class_name": "Functional",
        "config": {
            "name": "model",
            "layers": [layer("InputLayer", "in"), *layers],
            "input_layers": [["in", 0, 0]],
            "output_layers": [[layers[-1]["name"], 0, 0]],
        },
    }


def sequential(*layers):
    return {"class_name": "Sequential", "config": {"name": "model", "layers": list(layers)}}


def positions(config):
    return {entry.name: entry.position for entry in trace(json.dumps(config))}


def between(first, *classes):
    """A chain from the input through `first` and the classes to a convolution named "last"."""
    chain = [first, *classes, ("Conv2D", {})]
    names = [*(f"layer{number}" for number in range(len(chain) - 1)), "last"]
    sources = ["in", *names]
    entries = zip(chain, names, sources, strict=False)
    return positions(
        functional(*[layer(c, name, at, **config) for (c, config), name, at in entries])
    )


RELU = ("ReLU", {})


@pytest.mark.parametrize(
    ("class_name", "options", "is_relu"),
    [
        ("ReLU", {}, True),
        ("ReLU", {"max_value": 6.0, "negative_slope": 0.0, "threshold": 0.0}, True),
        ("ReLU", {"negative_slope": 0.1}, False),
        ("ReLU", {"threshold": 1.0}, True),
        ("LeakyReLU", {}, False),
        ("Activation", {"activation": "relu"}, True),
        ("Activation", {"activation": "relu6"}, True),
        ("Activation", {"activation": {"class_name": "function", "config": "relu"}}, True),
        ("Activation", {"activation": "tanh"}, False),
        ("Relu", {}, True),  # keras.ops.relu
        ("TFOpLambda", {"function": "nn.relu"}, True),
        ("TFOpLambda", {"function": "nn.elu"}, False),
    ],
)
def test_a_relu_is_known_in_every_form(class_name, options, is_relu):
    found = between(("Conv2D", {}), ("BatchNormalization", {}), (class_name, options))
    assert found["layer0"].norm == "layer1"
    assert found["last"].input == ("relu" if is_relu else "other")


@pytest.mark.parametrize(
    ("activation", "norm", "is_relu"),
    [
        pytest.param("linear", "layer1", True, id="linear"),
        pytest.param(None, "layer1", True, id="none"),
        pytest.param("relu", None, True, id="relu"),
        pytest.param({"class_name": "function", "config": "relu6"}, None, True, id="function"),
        pytest.param({"class_name": "ReLU", "config": {}}, None, True, id="layer"),
        pytest.param(
            {"class_name": "ReLU", "config": {"negative_slope": 0.1}}, None, False, id="leaky"
        ),
        pytest.param("swish", None, False, id="swish"),
    ],
)
def test_a_norm_behind_an_activation_is_not_the_layers_own(activation, norm, is_relu):
    found = between(("Conv2D", {"activation": activation}), ("BatchNormalization", {}), RELU)
    assert found["layer0"].norm == norm
    assert found["last"].input == "relu"


def test_a_norm_behind_a_relu_layer_is_not_the_layers_own():
    found = between(("Conv2D", {}), RELU, ("BatchNormalization", {}))
    assert found["layer0"].norm is None


def test_dropout_stands_in_no_ones_way():
    found = between(
        ("Conv2D", {}), ("Dropout", {}), ("BatchNormalization", {}), ("Dropout", {}), RELU
    )
    assert found["layer0"].norm == "layer2"


def test_a_norm_on_one_of_two_ways_is_not_paired():
    found = positions(
        functional(
            layer("Conv2D", "conv", "in"),
            layer("BatchNormalization", "norm", "conv"),
            layer("Add", "add", "conv", "norm"),
        )
    )
    assert found["conv"].norm is None


@pytest.mark.parametrize(
    ("class_name", "options", "of_image", "of_relu"),
    [
        ("MaxPooling2D", {}, "image", "relu"),
        ("GlobalAveragePooling2D", {}, "image", "relu"),
        ("ZeroPadding2D", {}, "image", "relu"),
        ("Flatten", {}, "image", "relu"),
        ("SpatialDropout2D", {}, "image", "relu"),
        ("Rescaling", {"scale": 0.5, "offset": 0.0}, "image", "relu"),
        ("Rescaling", {"scale": [0.5, -0.5]}, "image", "other"),
        ("Rescaling", {"scale": 1.0, "offset": -0.1}, "image", "other"),
        ("Rescaling", {}, "image", "other"),
        ("Normalization", {}, "image", "other"),
        ("RandomFlip", {}, "image", "other"),
        ("Negative", {}, "image", "other"),
        ("TFOpLambda", {"function": "math.negative"}, "image", "other"),
        ("TrueDivide", {}, "image", "other"),  # x / 255
        ("TFOpLambda", {"function": "math.subtract"}, "image", "other"),
        ("Add", {}, "image", "other"),  # x + a constant
        ("BatchNormalization", {}, "image", "other"),
        ("Softmax", {}, "other", "other"),
        ("Conv2D", {}, "other", "other"),
    ],
)
def test_what_a_layer_is_fed_is_followed_along_the_graph(class_name, options, of_image, of_relu):
    assert between((class_name, options))["last"].input == of_image
    assert between(RELU, (class_name, options))["last"].input == of_relu


@pytest.mark.parametrize(
    ("class_name", "one", "other", "together"),
    [
        ("Add", "ReLU", "ReLU", "relu"),
        ("Concatenate", "ReLU", "ReLU", "relu"),
        ("Concatenate", "ReLU", "Softmax", "other"),
        ("Subtract", "ReLU", "ReLU", "other"),
    ],
)
def test_what_joins_relus_is_one(class_name, one, other, together):
    ends = [layer(one, "one", "in"), layer(other, "other", "in")]
    joined = layer(class_name, "join", "one", "other")
    found = positions(functional(*ends, joined, layer("Conv2D", "last", "join")))
    assert found["last"].input == together


def test_operands_of_keras_2_are_found_in_keywords():
    add = {**layer("TFOpLambda", "add", function="__operators__.add")}
    add["inbound_nodes"] = [["one", 0, 0, {"y": ["other", 0, 0], "name": None}]]
    ends = [layer("ReLU", "one", "in"), layer("ReLU", "other", "in")]
    found = positions(functional(*ends, add, layer("Conv2D", "last", "add")))
    assert found["last"].input == "relu"


@pytest.mark.parametrize(
    ("class_name", "options", "stages"),
    [
        ("MaxPooling2D", {"strides": [2, 2]}, (0, 1)),
        ("MaxPooling2D", {"strides": None, "pool_size": [3, 3]}, (0, 1)),
        ("AveragePooling1D", {"strides": 2}, (0, 1)),
        ("MaxPooling2D", {"strides": [1, 1]}, (0, 0)),
        ("Conv2D", {"strides": [2, 1]}, (1, 1)),  # is itself in the stage that it opens
        ("Conv2DTranspose", {"strides": [2, 2]}, (0, 0)),
        ("GlobalMaxPooling2D", {}, (0, 0)),
    ],
)
def test_a_stage_begins_behind_pooling_and_with_a_stride(class_name, options, stages):
    found = between(RELU, (class_name, options))
    behind = found["layer1"].stage if class_name.startswith("Conv") else 0
    assert (behind, found["last"].stage) == stages


def test_a_stride_on_the_image_itself_begins_no_stage():
    found = between(("Rescaling", {}), ("Conv2D", {"strides": [2, 2]}))
    assert (found["layer1"].stage, found["last"].stage) == (0, 0)


def test_the_oldest_sequential_config_is_a_list():
    config = {"class_name": "Sequential", "config": [layer("Conv2D", "a"), layer("ReLU", "b")]}
    assert positions(config)["a"].input == "image"


def test_a_model_without_layers_in_its_config_is_judged_by_names():
    assert trace('{"class_name": "Mine", "config": {"width": 3}}') == []


# --- How HDF5 stores it.


def numbered(path, groups, **options):
    """A file of bare weights in the layout of Keras 3."""
    with h5py.File(path, "w", **options.pop("file", {})) as file:
        for group, arrays in groups.items():
            for number, array in enumerate(arrays):
                file.create_dataset(f"layers/{group}/vars/{number}", data=array, **options)
    return path


KERNEL = np.random.default_rng(0).normal(size=(3, 3, 2, 4)).astype(np.float32)
FLIPPED = KERNEL.transpose(3, 2, 0, 1)


def with_chunks(path, chunks, *, early=False, filters=(), skip=0):
    """A kernel whose chunks are listed in HDF5's newer way; `early`: all are there from the start.

    `skip` says which filters were not applied to the chunk that is the whole.
    """
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_chunk(chunks)
    if early:
        made.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    for name in filters:
        getattr(made, f"set_{name}")()
    with h5py.File(path, "w", libver="latest") as file:
        group = file.create_group("layers/conv2d/vars").id
        space = h5py.h5s.create_simple(KERNEL.shape)
        dataset = h5py.h5d.create(group, b"0", h5py.h5t.IEEE_F32LE, space, made)
        if skip:
            dataset.write_direct_chunk((0, 0, 0, 0), KERNEL.tobytes(), skip)
        else:
            dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ascontiguousarray(KERNEL))
    return path


@pytest.mark.parametrize(
    "chunks", [(3, 3, 2, 4), (2, 3, 1, 3), (1, 1, 1, 1), (2, 2, 2, 2)], ids=str
)
@pytest.mark.parametrize("filters", [(), ("shuffle", "deflate", "fletcher32")], ids=["", "packed"])
@pytest.mark.parametrize("early", [False, True], ids=["late", "early"])
def test_each_way_to_list_chunks_is_read(tmp_path, chunks, filters, early):
    path = with_chunks(tmp_path / "a.h5", chunks, early=early, filters=filters)
    (only,) = layers_of(path)
    assert same(only.weight, FLIPPED)


@pytest.mark.parametrize("version", ["earliest", "latest"])
def test_values_in_the_head_of_a_dataset_below_a_name_of_any_script_are_read(tmp_path, version):
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_layout(h5py.h5d.COMPACT)
    with h5py.File(tmp_path / "a.h5", "w", libver=version) as file:
        group = file.create_group("layers/conv2d_名/vars").id
        space = h5py.h5s.create_simple(KERNEL.shape)
        dataset = h5py.h5d.create(group, b"0", h5py.h5t.IEEE_F32LE, space, made)
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ascontiguousarray(KERNEL))
    (only,) = layers_of(tmp_path / "a.h5")
    assert only.name == "conv2d_名"
    assert same(only.weight, FLIPPED)


def test_filters_that_were_not_applied_to_a_chunk_are_not_undone(tmp_path):
    path = with_chunks(tmp_path / "a.h5", KERNEL.shape, filters=("shuffle", "deflate"), skip=0b11)
    (only,) = layers_of(path)
    assert same(only.weight, FLIPPED)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4"])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="contiguous"),
        pytest.param({"chunks": (3, 3, 1, 4)}, id="chunked"),
        pytest.param({"compression": "gzip", "shuffle": True, "fletcher32": True}, id="packed"),
        pytest.param({"file": {"userblock_size": 512}}, id="behind-a-block-of-the-user"),
        pytest.param({"file": {"libver": "latest"}}, id="newest-layout"),
    ],
)
def test_every_storage_of_floats_gives_the_same_bits(tmp_path, dtype, options):
    path = numbered(tmp_path / "a", {"conv2d": [KERNEL.astype(dtype)]}, **options)
    _, contents = read_contents(path)
    [only] = contents.layers
    expected = FLIPPED.astype(dtype)
    assert same(only.weight, expected.astype(expected.dtype.newbyteorder("=")))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_the_weights_within_a_keras_archive_are_read_stored_or_deflated(tmp_path, compression):
    inner = numbered(tmp_path / "inner", {"conv2d": [KERNEL]})
    path = tmp_path / "a.keras"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("config.json", json.dumps(sequential(layer("Conv2D", "first"))))
        archive.write(inner, "model.weights.h5")
    form, contents = read_contents(path)
    [only] = contents.layers
    assert (form, only.name) == ("keras", "first")
    assert same(only.weight, FLIPPED)


def test_bfloat16_is_widened_exactly(tmp_path):
    narrow = KERNEL.astype(ml_dtypes.bfloat16)
    path = numbered(tmp_path / "a", {"conv2d": [narrow]})
    with h5py.File(path, "a") as file:  # as Keras 3 marks it
        file["layers/conv2d/vars/0"].attrs["dtype"] = "bfloat16"
    [only] = layers_of(path)
    assert only.weight.dtype == "bfloat16"
    assert np.array_equal(only.weight.read(), FLIPPED.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_layers_come_in_the_order_of_their_numbers_and_not_of_the_alphabet(tmp_path):
    names = ["conv2d", *(f"conv2d_{number}" for number in range(1, 12))]
    layers = layers_of(numbered(tmp_path / "a", {name: [KERNEL] for name in reversed(names)}))
    assert [layer.name for layer in layers] == names


def attribute_of_a_group(path, text, **options):
    """A file whose layer is called by an attribute of its group, in the newest layout."""
    with h5py.File(path, "w", libver="latest") as file:
        created = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
        created.set_link_creation_order(h5py.h5p.CRT_ORDER_TRACKED)
        for name, values in options.items():
            getattr(created, name)(*values)
        h5py.h5g.create(file.id, b"layers")
        h5py.h5g.create(file.id, b"layers/conv2d")
        group = h5py.Group(h5py.h5g.create(file.id, b"layers/conv2d/vars", gcpl=created))
        group.attrs["name"] = text
        group["0"] = KERNEL
    return path


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="plain"),
        pytest.param({"set_attr_phase_change": (6, 3)}, id="phases-of-attributes"),
        pytest.param({"set_obj_track_times": (True,)}, id="times"),
        pytest.param({"set_attr_creation_order": (h5py.h5p.CRT_ORDER_TRACKED,)}, id="order"),
    ],
)
def test_headers_of_every_form_tell_their_attributes(tmp_path, options):
    path = attribute_of_a_group(tmp_path / "a", "first", **options)
    assert [layer.name for layer in layers_of(path)] == ["first"]


def test_a_name_that_is_no_utf_8_has_its_bytes_replaced(tmp_path):
    path = attribute_of_a_group(tmp_path / "a", np.bytes_(b"caf\xe9"))
    assert [layer.name for layer in layers_of(path)] == ["caf\ufffd"]


def test_what_is_not_measured_is_not_read(tmp_path):
    large = np.zeros((1 << 12, 1 << 10), np.float32)  # 16 MiB
    path = numbered(tmp_path / "a", {"dense": [large], "conv2d": [KERNEL]})
    tracemalloc.start()
    try:
        weights = {layer.name: layer.weight for layer in layers_of(path)}
        assert same(weights["conv2d"], FLIPPED)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert set(weights) == {"dense", "conv2d"}
    assert peak < 1 << 21


def test_a_layer_in_a_wrapper_that_keeps_something_of_its_own_is_in_its_place(tmp_path):
    inner = {"class_name": "Conv2D", "config": {"name": "inner", "filters": 4}}
    parts = {"sn/inner/kernel": KERNEL, "sn/vector_u": np.ones((1, 4), np.float32)}
    with h5py.File(tmp_path / "net.h5", "w") as file:
        net = functional(layer("SpectralNormalization", "sn", "in", layer=inner))
        file.attrs["model_config"] = json.dumps(net)
        file.attrs["layer_names"] = ["sn"]
        file.create_group("sn").attrs["weight_names"] = list(parts)
        for name, values in parts.items():
            file["sn"][name] = values
    found = find(tmp_path / "net.h5")
    [only] = found.layers
    assert (only.name, only.input, found.skipped) == ("sn", Input.IMAGE, ())
    assert same(only.weight, FLIPPED)


def test_weights_of_keras_1_have_their_names_translated(tmp_path):
    with h5py.File(tmp_path / "vgg.h5", "w") as file:
        file.attrs["layer_names"] = np.array([b"block1_conv1", b"bn_conv1"])
        parts = {"block1_conv1": ["W_1", "b_1"], "bn_conv1": ["running_mean", "running_std"]}
        for name, variables in parts.items():
            weights = [f"{name}_{variable}:0" for variable in variables]
            file.create_group(name).attrs["weight_names"] = np.array(weights, "S")
            for weight in weights:
                file[name][weight] = KERNEL if "_W" in weight else np.ones(4, np.float32)
    [only] = layers_of(tmp_path / "vgg.h5")
    assert only.bias.shape == (4,)
    assert (only.norm.name, only.norm_assumed) == ("bn_conv1", True)
    assert same(only.weight, FLIPPED)


@pytest.mark.parametrize("variables", [("depthwise_kernel", "pointwise_kernel"), ("kernel",)])
def test_kernels_of_one_axis_are_no_layers(tmp_path, variables):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["layer_names"] = ["a"]
        file.create_group("a").attrs["weight_names"] = variables
        for variable in variables:
            file["a"][variable] = np.ones(4)
    assert layers_of(tmp_path / "a.h5") == []


def test_norms_of_branches_that_are_stored_side_by_side_are_not_paired(tmp_path):
    order = ["left", "right", "left_bn", "right_bn"]  # as ResNet's shortcuts are
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["layer_names"] = order
        for name in order:
            parts = ["moving_mean:0", "moving_variance:0"] if "_bn" in name else ["kernel:0"]
            file.create_group(name).attrs["weight_names"] = [f"{name}/{part}" for part in parts]
            for part in parts:
                file[f"{name}/{name}/{part}"] = KERNEL if part == "kernel:0" else np.ones(4)
    assert [layer.norm for layer in layers_of(tmp_path / "a.h5")] == [None, None]
    (note,) = (n for n in ps.measure(tmp_path / "a.h5").notes if "norms" in n)
    assert note.startswith("batch norms that were paired with no layer: left_bn, right_bn (")


def test_norms_of_numbered_variables_are_named_as_paired_with_none(tmp_path):
    """Keras 3 sorts the groups of `save_weights`, so that order tells nothing."""
    norm = [np.ones(4, np.float32)] * 4
    path = numbered(tmp_path / "a", {"conv2d": [KERNEL], "batch_normalization_1": norm})
    (note,) = ps.measure(path).notes
    assert note.startswith("batch norms that were paired with no layer: batch_normalization_1 (")


@pytest.mark.parametrize(
    ("group", "arrays"),
    [
        pytest.param("lstm/cell", [(4, 8), (2, 8), (8,)], id="recurrent"),
        pytest.param("gru/cell", [(4, 6), (2, 6)], id="recurrent-without-bias"),
        pytest.param("embedding", [(10, 4)], id="embedding"),
        pytest.param("positions", [(1, 10, 4)], id="positions"),
        pytest.param("multi_head_attention/output_dense", [(2, 3, 6), (6,)], id="attention"),
        pytest.param("p_re_lu", [(8, 8, 4)], id="prelu"),
        pytest.param("batch_normalization", [(4,)] * 4, id="norm"),
        pytest.param("mine", [(3, 3, 2, 4), (7,)], id="bias-of-no-axis"),
        pytest.param("mine", [(4,), (4,)], id="vectors"),
        pytest.param("mine", [(1, 1, 1, 1, 2, 4)], id="four-extents"),
        pytest.param("conv2d", [(3, 0, 2, 4)], id="empty"),
    ],
)
def test_what_is_no_layer_of_hyperplanes_is_not_taken_for_one(tmp_path, group, arrays):
    path = numbered(tmp_path / "a", {group: [np.ones(shape, np.float32) for shape in arrays]})
    assert layers_of(path) == []


@pytest.mark.parametrize(
    ("group", "arrays", "kind", "shape"),
    [
        pytest.param("first", [(3, 3, 2, 4), (4,)], "conv", (4, 2, 3, 3), id="convolution"),
        pytest.param("first", [(3, 3, 4, 2), (4,)], "transposed", (4, 2, 3, 3), id="by-its-bias"),
        pytest.param("first", [(3, 3, 4, 2), (8,)], "conv", (8, 1, 3, 3), id="depthwise-by-bias"),
        pytest.param("transpose_1", [(3, 3, 4, 2)], "transposed", (4, 2, 3, 3), id="by-its-name"),
        pytest.param("first", [(3, 3, 2, 4)], "conv", (4, 2, 3, 3), id="no-bias"),
        pytest.param("fc", [(2, 4), (4,)], "linear", (4, 2), id="linear"),
    ],
)
def test_a_layer_of_no_known_class_is_judged_by_shapes(tmp_path, group, arrays, kind, shape):
    path = numbered(tmp_path / "a", {group: [np.ones(s, np.float32) for s in arrays]})
    [only] = layers_of(path)
    assert (only.kind, only.weight.shape, only.weight.read().shape) == (kind, shape, shape)


# --- Files that lie.


def with_dataset(make):
    """A file whose kernel `make` creates, in the group that it is given."""

    def build(path):
        with h5py.File(path, "w") as file:
            make(file.create_group("layers/conv2d/vars"), path.parent)

    return build


def external_link(group, folder):
    numbered(folder / "other.h5", {"conv2d": [KERNEL]})
    group["0"] = h5py.ExternalLink(str(folder / "other.h5"), "layers/conv2d/vars/0")


def virtual(group, folder):
    layout = h5py.VirtualLayout(KERNEL.shape, "f4")
    source = numbered(folder / "other.h5", {"conv2d": [KERNEL]})
    layout[:] = h5py.VirtualSource(source, "layers/conv2d/vars/0", KERNEL.shape)
    group.create_virtual_dataset("0", layout)


def inflating(*, mask):
    """A chunk of 64 bytes that inflates to a megabyte."""

    def make(group, folder):
        options = {"chunks": (1, 1, 4, 4), "compression": "gzip", "shuffle": True}
        dataset = group.create_dataset("0", (1, 1, 4, 4), "f4", **options)
        dataset.id.write_direct_chunk((0, 0, 0, 0), zlib.compress(bytes(1 << 20)), mask)

    return with_dataset(make)


def deep(group, folder):
    group.file.create_group("/".join(["layers"] * 70))


def of_type(dtype):
    return with_dataset(lambda group, _: group.create_dataset("0", (3, 3, 2, 4), dtype))


def renamed(change):
    """The layout of Keras 2 with one kernel, changed."""

    def build(path):
        with h5py.File(path, "w") as file:
            file.attrs["layer_names"] = ["conv"]
            file.create_group("conv").attrs["weight_names"] = ["conv/kernel:0"]
            file["conv/conv/kernel:0"] = KERNEL
            change(file)

    return build


def described(config, kernel=None):
    def change(file):
        file.attrs.update(model_config=config)
        if kernel is not None:
            del file["conv/conv/kernel:0"]
            file["conv/conv/kernel:0"] = kernel

    def build(path):
        renamed(change)(path)

    return build


def cut(path):
    numbered(path, {"conv2d": [KERNEL]})
    path.write_bytes(path.read_bytes()[:1500])


TWICE = [layer("Conv2D", "a", "b"), layer("Conv2D", "b", "a")]
# Each model calls the one within it twice. The calls are numbered from 1: the first built it.
MANY = functional(layer("ReLU", "last", "in"))
for _ in range(20):
    calls = [[["in", 0, 0, {}]], [["m", 1, 0, {}]]]
    MANY = functional({**MANY, "name": "m", "inbound_nodes": calls})

HOSTILE = [
    pytest.param(with_dataset(external_link), "link layers/conv2d/vars/0 points elsewhere", id="a"),
    pytest.param(
        with_dataset(lambda group, _: group.update({"0": h5py.SoftLink("/x")})),
        "link layers/conv2d/vars/0 points elsewhere, perhaps to another file, and is not followed",
        id="soft-link",
    ),
    pytest.param(
        with_dataset(
            lambda group, folder: group.create_dataset(
                "0", (3, 3, 2, 4), "f4", external=[(folder / "raw", 0, 288)]
            )
        ),
        "layers/conv2d/vars/0 keeps its values in another file, which is not opened",
        id="external-storage",
    ),
    pytest.param(with_dataset(virtual), "keeps its values in another file", id="virtual"),
    pytest.param(
        of_type(h5py.string_dtype()), "holds text or list values and is no tensor", id="text"
    ),
    pytest.param(of_type([("x", "f4")]), "and is no tensor; save the weights as", id="compound"),
    pytest.param(of_type("V2"), "holds void16 values and is no tensor", id="opaque"),
    pytest.param(
        with_dataset(lambda group, _: group.create_dataset("0", data=h5py.Empty("f4"))),
        "and is no tensor",
        id="no-shape",
    ),
    pytest.param(
        with_dataset(lambda group, _: group.create_dataset("0", (3, 3, 1 << 20, 1 << 20), "f4")),
        "claims 39582418599936 bytes, but 0 are stored; refused as a bomb",
        id="never-written",
    ),
    pytest.param(
        with_dataset(
            lambda group, _: group.create_dataset(
                "0",
                (3, 3, 1, 1),
                "f4",
                chunks=(3, 3, 1 << 14, 1 << 12),
                maxshape=(3, 3, None, None),
            )
        ),
        "claims 2415919104 bytes",
        id="large-chunk",
    ),
    pytest.param(
        with_dataset(lambda group, _: group.create_dataset("0", data=KERNEL, compression="lzf")),
        "is packed by HDF5 filters [32000]; save it uncompressed or with gzip",
        id="other-filter",
    ),
    pytest.param(inflating(mask=0), "inflates beyond its own shape; refused as a", id="inflating"),
    pytest.param(inflating(mask=1), "inflates beyond its own shape", id="inflating-unshuffled"),
    pytest.param(with_dataset(deep), "groups nest more than 64 deep", id="deep"),
    pytest.param(cut, "the HDF5 file is damaged (", id="cut"),
    pytest.param(lambda path: h5py.File(path, "w").close(), "holds no arrays by name", id="none"),
    pytest.param(
        renamed(lambda file: file.pop("conv/conv/kernel:0")),
        "lists the weight 'conv/kernel:0' of layer 'conv', but does not hold it",
        id="missing",
    ),
    pytest.param(described("{"), "the model's config makes no sense (Expecting", id="no-json"),
    pytest.param(described("[" * 100_000), "config makes no sense (maximum", id="nested-deep"),
    pytest.param(
        described(json.dumps(functional(*TWICE))),
        "config makes no sense (its layers call one another in a circle)",
        id="circle",
    ),
    pytest.param(
        described(json.dumps(MANY)),
        f"config makes no sense (its layers are called more than {MAX_CALLS} times)",
        id="doubling",
    ),
    pytest.param(
        described(json.dumps(sequential(layer("Conv1D", "conv")))),
        "the config calls 'conv' a Conv1D, but conv/conv/kernel:0, of float32, cannot be its",
        id="another-rank",
    ),
    pytest.param(
        described(json.dumps(sequential(layer("Conv2D", "conv"))), KERNEL.astype(np.int8)),
        "a Conv2D, but conv/conv/kernel:0, of int8, cannot be its weights; save the model again, "
        "in floating point",
        id="integers",
    ),
]


@pytest.mark.parametrize(("build", "sentence"), HOSTILE)
def test_a_file_that_lies_is_refused_with_a_sentence(tmp_path, build, sentence):
    path = tmp_path / "net.h5"
    build(path)
    with pytest.raises(CheckpointError) as caught:
        [found.weight.read() for found in read_contents(path)[1].layers]
    assert str(caught.value).startswith(f"{path}: ")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_h5py_writes_is_read_as_h5py_reads_it(tmp_path):
    """Each way of keeping values, of the older and the newer formats, or a sentence about it."""
    for name, files in MAKERS["hdf5"]():
        path = tmp_path / name
        path.write_bytes(files["input"])
        if name.startswith("refused"):
            continue
        if name in ("latest-growing", "latest-two-unlimited", "latest-many"):
            with pytest.raises(
                CheckpointError, match="which is not read; rewrite it with h5repack"
            ):
                layers_of(path)
            continue
        layers = {found.name: found for found in layers_of(path)}
        with h5py.File(path) as file:
            kernel, bias = (file[f"layers/conv2d/vars/{number}"][...] for number in (0, 1))
        assert same(layers["first"].weight, kernel.transpose(3, 2, 0, 1).astype(kernel.dtype.name))
        assert same(layers["first"].bias, bias)


def tree_of(path):
    """Where the first tree of a group stands, and the file."""
    content = bytearray(numbered(path, {"conv2d": [KERNEL]}).read_bytes())
    return content.index(b"TREE"), content


@pytest.mark.parametrize(
    ("at", "change", "sentence"),
    [
        pytest.param(5, b"\1", "comes back to itself|another kind of tree", id="level"),
        pytest.param(4, b"\1", "a node of another kind of tree", id="tree-of-another-kind"),
        pytest.param(6, b"\xff\xff", "an address outside the file", id="entries-without-end"),
        pytest.param(32, b"\xff" * 8, "an address outside the file", id="child-elsewhere"),
    ],
)
def test_a_tree_that_lies_is_refused(tmp_path, at, change, sentence):
    begin, content = tree_of(tmp_path / "a")
    content[begin + at : begin + at + len(change)] = change
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(CheckpointError, match=sentence):
        layers_of(tmp_path / "a")


def test_a_tree_that_holds_itself_ends(tmp_path):
    begin, content = tree_of(tmp_path / "a")
    content[begin + 5] = 1  # a level above the leaves, whose child is the node itself
    content[begin + 32 : begin + 40] = begin.to_bytes(8, "little")
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(CheckpointError, match="a tree that comes back to itself"):
        layers_of(tmp_path / "a")


def test_a_chunk_whose_checksum_is_another_is_refused(tmp_path):
    options = {"fletcher32": True, "chunks": KERNEL.shape}
    path = numbered(tmp_path / "a", {"conv2d": [KERNEL]}, **options)
    content = bytearray(path.read_bytes())
    content[content.index(KERNEL.tobytes())] ^= 1
    path.write_bytes(content)
    [only] = layers_of(path)
    with pytest.raises(CheckpointError, match="a chunk whose checksum is another"):
        only.weight.read()


@pytest.mark.parametrize("options", [{}, {"chunks": (3, 3, 2, 2)}])
def test_values_that_were_never_written_are_missed(tmp_path, options):
    with h5py.File(tmp_path / "a", "w") as file:
        group = file.create_group("layers/conv2d/vars")
        group.create_dataset("0", (3, 3, 2, 4), "f4", **options)
        if options:
            group["0"][..., 2:] = KERNEL[..., 2:]
    [only] = layers_of(tmp_path / "a")
    with pytest.raises(CheckpointError, match="values of it were never written"):
        only.weight.read()


def test_groups_linked_in_a_circle_end(tmp_path):
    path = numbered(tmp_path / "a.h5", {"conv2d": [KERNEL]})
    with h5py.File(path, "a") as file:
        file["layers/conv2d/layers"] = file["layers"]
        file["again"] = file["/"]
    assert [found.name for found in layers_of(path)] == ["conv2d"]


def test_a_zip_archive_with_another_config_than_json_is_refused(tmp_path):
    path = tmp_path / "a.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", b"\xff\xfe\xfd")
        archive.write(numbered(tmp_path / "inner", {"conv2d": [KERNEL]}), "model.weights.h5")
    with pytest.raises(CheckpointError, match="the model's config makes no sense"):
        layers_of(path)


def small_files():
    """Small files of either layout; the library's own damage is what is looked for."""
    for build in (
        lambda path: numbered(path, {"conv2d": [KERNEL], "dense": [np.ones((2, 3)), np.ones(3)]}),
        described(json.dumps(sequential(layer("Conv2D", "conv")))),
    ):
        buffer = io.BytesIO()
        build(buffer)
        yield buffer.getvalue()


@settings(max_examples=300)
@given(
    content=st.sampled_from(list(small_files())),
    changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=4),
    end=st.none() | st.integers(0, 1 << 16),
)
def test_a_changed_file_gives_layers_or_a_sentence(tmp_path_factory, content, changes, end):
    damaged = bytearray(content)
    for at, byte in changes:
        damaged[at % len(damaged)] = byte
    path = tmp_path_factory.getbasetemp() / "changed.h5"
    path.write_bytes(damaged[:end])
    with contextlib.suppress(CheckpointError):
        for found in layers_of(path):
            assert found.weight.read().shape == found.weight.shape
