"""One small network in all of TensorFlow's formats, and the arrays expected of each.

    pip install tensorflow-cpu python-snappy
    pip install --no-deps tensorflowjs
    python tests/tensorflow_files/make_fixtures.py

The arrays come from Keras and from TensorFlow Lite's interpreter, with filters first. Tests read
what this wrote; none of them installs TensorFlow.
"""

from __future__ import annotations

import importlib.machinery
import os
import shutil
import struct
import sys
import types
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import h5py
import keras
import numpy as np
import snappy
import tensorflow as tf
from keras import layers
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

HERE = Path(__file__).parent
SHAPE = (16, 16, 3)
expected: dict[str, np.ndarray] = {}


def network() -> keras.Model:
    image = keras.Input(SHAPE, batch_size=1)
    x = layers.Rescaling(1 / 255.0)(image)
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(x)
    x = layers.BatchNormalization(name="stem_bn")(x)
    x = layers.ReLU()(x)
    x = layers.MaxPooling2D()(x)
    x = layers.DepthwiseConv2D(
        3, depth_multiplier=2, padding="same", activation="relu6", name="deep"
    )(x)
    x = layers.Conv2D(8, 1, name="point")(x)
    y = layers.SeparableConv2D(8, 3, padding="same", activation="relu", name="apart")(x)
    x = layers.Add()([x, y])
    x = layers.Conv2D(6, 3, strides=2, activation="relu", name="stride")(x)
    x = layers.Conv2DTranspose(5, 2, strides=2, name="up")(x)
    x = layers.ReLU()(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(7, activation="relu", name="hidden")(x)
    x = layers.Dense(4, activation="softmax", name="answer")(x)
    return keras.Model(image, x)


def fill(model: keras.Model) -> None:
    for number, variable in enumerate(model.weights):
        drawn = np.random.default_rng(number).normal(size=variable.shape) * 0.3
        variable.assign(abs(drawn) + 0.1 if "variance" in variable.path else drawn)


def filters_first(name: str, kernel: np.ndarray) -> np.ndarray:
    """Turn a kernel of Keras by its own documentation of the layer's class."""
    if kernel.ndim == 2:  # (inputs, outputs)
        return kernel.T
    if name in ("deep", "apart.depthwise"):  # (height, width, channels, multiplier)
        height, width, channels, multiplier = kernel.shape
        turned = kernel.reshape(height, width, channels * multiplier)
        return turned.transpose(2, 0, 1)[:, None]
    if name == "up":  # (height, width, filters, channels)
        return kernel.transpose(2, 3, 0, 1)
    return kernel.transpose(3, 2, 0, 1)  # (height, width, channels, filters)


def expect_keras(model: keras.Model) -> None:
    for layer in model.layers:
        for variable in layer.weights:
            value, what = np.asarray(variable), variable.path.rpartition("/")[2]
            if what.startswith(("gamma", "beta", "moving")):
                expected[f"norm/{layer.name}.{what}"] = value
                continue
            name = layer.name
            if name == "apart":
                name += ".depthwise" if what == "depthwise_kernel" else ".pointwise"
            if what == "bias":
                expected[f"bias/{name}"] = value
            else:
                expected[f"weight/{name}"] = filters_first(name, value)


def images() -> list[list[np.ndarray]]:
    rng = np.random.default_rng(0)
    return [[rng.uniform(0, 255, size=(1, *SHAPE)).astype(np.float32)] for _ in range(8)]


def lite(model: keras.Model, name: str, **options: object) -> None:
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    for option, value in options.items():
        setattr(converter, option, value)
    if name == "half":
        converter.target_spec.supported_types = [tf.float16]
    data = converter.convert()
    (HERE / f"{name}.tflite").write_bytes(data)
    expect_lite(name, data)


# How each operator's weights lie, and which of its inputs they are.
_LITE = {
    "CONV_2D": (1, lambda w: w.transpose(0, 3, 1, 2)),
    "DEPTHWISE_CONV_2D": (1, lambda w: w.transpose(3, 0, 1, 2)),
    "TRANSPOSE_CONV": (1, lambda w: w.transpose(0, 3, 1, 2)),
    "FULLY_CONNECTED": (1, lambda w: w),
}


def expect_lite(name: str, data: bytes) -> None:
    # Without a delegate, which would take the operators away.
    interpreter = tf.lite.Interpreter(
        model_content=data,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    details = interpreter.get_input_details()[0]
    interpreter.set_tensor(details["index"], np.ones(details["shape"], details["dtype"]))
    interpreter.invoke()
    tensors = {each["index"]: each for each in interpreter.get_tensor_details()}
    count = 0
    for op in interpreter._get_ops_details():
        if op["op_name"] not in _LITE:
            continue
        at, turn = _LITE[op["op_name"]]
        index = op["inputs"][at]
        values = interpreter.get_tensor(index)
        told = tensors[index]["quantization_parameters"]
        if values.dtype == np.int8:
            axis = [1] * values.ndim
            axis[told["quantized_dimension"]] = -1
            zeros = told["zero_points"].reshape(axis).astype(np.float32)
            values = (values.astype(np.float32) - zeros) * told["scales"].reshape(axis)
        expected[f"{name}/{count}"] = turn(values)
        count += 1


def sparse() -> None:
    """Write a network whose weights are stored sparse."""
    model = keras.Sequential(
        [keras.Input((8, 8, 16), batch_size=1), layers.Conv2D(16, 1, name="thin"),
         layers.Flatten(), layers.Dense(16, name="wide")]
    )  # fmt: skip
    fill(model)
    for layer in (model.layers[0], model.layers[2]):
        kernel = np.asarray(layer.kernel).copy()
        kernel[np.random.default_rng(1).random(kernel.shape) < 0.9] = 0
        layer.kernel.assign(kernel)
    lite(model, "sparse", optimizations=[tf.lite.Optimize.EXPERIMENTAL_SPARSITY])


def grouped() -> None:
    model = keras.Sequential(
        [keras.Input((8, 8, 4), batch_size=1), layers.Conv2D(6, 3, groups=2, name="groups")]
    )
    fill(model)
    expected["grouped/weight"] = filters_first("groups", np.asarray(model.layers[0].kernel))
    freeze(model, "grouped", (1, 8, 8, 4))
    lite(model, "grouped")


def freeze(model: keras.Model, name: str, shape: tuple[int, ...]) -> None:
    function = tf.function(lambda image: model(image, training=False))
    concrete = function.get_concrete_function(tf.TensorSpec(shape))
    graph = convert_variables_to_constants_v2(concrete).graph.as_graph_def()
    (HERE / f"{name}.pb").write_bytes(graph.SerializeToString(deterministic=True))


def saved(model: keras.Model) -> None:
    folder = HERE / "saved"
    shutil.rmtree(folder, ignore_errors=True)
    model.export(folder, verbose=False)
    (folder / "fingerprint.pb").unlink()
    (folder / "assets").rmdir()


def by_hand() -> None:
    """Save a network that no Keras built."""

    class Network(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            rng = np.random.default_rng(5)
            self.filters = tf.Variable(rng.normal(size=(3, 3, 2, 4)).astype(np.float32))
            self.shift = tf.Variable(rng.normal(size=4).astype(np.float32))
            self.last = tf.Variable(rng.normal(size=(4, 3)).astype(np.float32))

        @tf.function(input_signature=[tf.TensorSpec((1, 6, 6, 2))])
        def serve(self, image: tf.Tensor) -> tf.Tensor:
            seen = tf.nn.relu(tf.nn.conv2d(image, self.filters, 2, "SAME") + self.shift)
            return tf.reduce_mean(seen, (1, 2)) @ self.last

    net = Network()
    expected["by-hand/filters"] = net.filters.numpy()
    expected["by-hand/shift"] = net.shift.numpy()
    expected["by-hand/last"] = net.last.numpy()
    folder = HERE / "by-hand"
    shutil.rmtree(folder, ignore_errors=True)
    tf.saved_model.save(net, str(folder))
    (folder / "fingerprint.pb").unlink()
    (folder / "assets").rmdir()


def checkpoints(model: keras.Model) -> None:
    shutil.rmtree(HERE / "checkpoint", ignore_errors=True)
    tf.train.Checkpoint(model=model, step=tf.Variable(3)).write(str(HERE / "checkpoint/net.ckpt"))
    index = HERE / "checkpoint/net.ckpt.index"
    packed = HERE / "checkpoint/packed.ckpt.index"
    packed.write_bytes(with_snappy(index.read_bytes()))
    data = "net.ckpt.data-00000-of-00001"
    shutil.copy(HERE / "checkpoint" / data, HERE / "checkpoint" / data.replace("net", "packed"))


def old_checkpoint() -> None:
    """Write what a program of TensorFlow 1 saved, named as slim and layers named variables."""
    rng = np.random.default_rng(7)
    shapes = {
        "net/conv1/weights": (3, 3, 3, 4),
        "net/conv1/BatchNorm/beta": (4,),
        "net/conv1/BatchNorm/gamma": (4,),
        "net/conv1/BatchNorm/moving_mean": (4,),
        "net/conv1/BatchNorm/moving_variance": (4,),
        "net/conv1/weights/Adam": (3, 3, 3, 4),
        "net/conv1_depthwise/depthwise_weights": (3, 3, 4, 1),
        "net/deconv/weights": (2, 2, 5, 4),
        "net/deconv/biases": (5,),
        "net/rnn/basic_lstm_cell/kernel": (9, 16),
        "net/words/embeddings": (10, 4),
        "net/head/kernel": (5, 2),
        "net/head/bias": (2,),
    }
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = {}
        for name, shape in shapes.items():
            value = rng.normal(size=shape).astype(np.float32)
            variables[name] = tf.compat.v1.get_variable(name, initializer=value)
            expected[f"old/{name}"] = value
        session.run(tf.compat.v1.global_variables_initializer())
        saver = tf.compat.v1.train.Saver(variables)
        saver.save(session, str(HERE / "old/net-7"), write_meta_graph=False)
    (HERE / "old/checkpoint").unlink()


def with_snappy(index: bytes) -> bytes:
    """Compress the blocks of a table as older versions did."""
    import google_crc32c
    from tensorflow.python.lib.io import tf_record  # noqa: F401 - loads the checksum

    def masked(data: bytes) -> int:
        crc = google_crc32c.value(data)
        return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

    def varint(data: bytes, at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = data[at]
            value |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                return value, at

    def packed(value: int) -> bytes:
        out = bytearray()
        while value >= 128:
            out.append(value & 127 | 128)
            value >>= 7
        return bytes([*out, value])

    def handle(at: int) -> tuple[int, int, int]:
        begin, at = varint(index, at)
        length, at = varint(index, at)
        return begin, length, at

    out = bytearray()

    def put(block: bytes, kind: int) -> bytes:
        data = (snappy.compress(block) if kind else block) + bytes([kind])
        begin = len(out)
        out.extend(data + struct.pack("<I", masked(data)))
        return packed(begin) + packed(len(data) - 1)

    meta_begin, meta_length, at = handle(len(index) - 48)
    begin, length, _ = handle(at)
    block = index[begin : begin + length]
    at, entries, key = 0, [], b""
    (restarts,) = struct.unpack("<I", block[-4:])
    while at < len(block) - 4 - 4 * restarts:
        shared, at = varint(block, at)
        fresh, at = varint(block, at)
        size, at = varint(block, at)
        key = key[:shared] + block[at : at + fresh]
        at += fresh
        entries.append((key, block[at : at + size]))
        at += size
    root = b""
    for key, value in entries:
        data_begin, at = varint(value, 0)
        data_length, _ = varint(value, at)
        place = put(index[data_begin : data_begin + data_length], 1)
        root += packed(0) + packed(len(key)) + packed(len(place)) + key + place
    root += struct.pack("<II", 0, 1)
    meta = put(index[meta_begin : meta_begin + meta_length], 0)
    footer = meta + put(root, 1)
    return bytes(out) + footer.ljust(40, b"\0") + index[-8:]


def for_browsers(model: keras.Model) -> None:
    # What TensorFlow.js' converter imports for models of other kinds.
    for name in (
        "tensorflow_decision_forests", "tensorflow_hub", "jax", "jax.experimental",
        "jax.experimental.jax2tf",
    ):  # fmt: skip
        module = types.ModuleType(name)
        module.__spec__, module.__path__ = importlib.machinery.ModuleSpec(name, None), []
        sys.modules[name] = module
    sys.modules["jax"].experimental = sys.modules["jax.experimental"]
    sys.modules["jax.experimental"].jax2tf = sys.modules["jax.experimental.jax2tf"]
    from tensorflowjs import write_weights
    from tensorflowjs.converters import keras_h5_conversion, tf_saved_model_conversion_v2

    for name, quantised in (
        ("plain", None), ("uint8", {"uint8": "*"}), ("uint16", {"uint16": "*"}),
        ("float16", {"float16": "*"}),
    ):  # fmt: skip
        if name in ("plain", "uint8"):
            folder = HERE / f"graph-{name}"
            shutil.rmtree(folder, ignore_errors=True)
            tf_saved_model_conversion_v2.convert_tf_saved_model(
                str(HERE / "saved"), str(folder), quantization_dtype_map=quantised
            )
        folder = HERE / f"layers-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        with h5py.File(HERE / "net.h5") as file:
            config, groups = keras_h5_conversion.h5_merged_saved_model_to_tfjs_format(file)
        # Small shards, so that weights lie across their borders.
        keras_h5_conversion.write_artifacts(
            config, groups, str(folder), quantised, weight_shard_size_bytes=1000
        )
    assert write_weights


def main() -> None:
    keras.utils.set_random_seed(0)
    model = network()
    fill(model)
    expect_keras(model)
    model.save(HERE / "net.keras")
    model.save(HERE / "net.h5")
    freeze(model, "net", (1, *SHAPE))
    saved(model)
    by_hand()
    checkpoints(model)
    old_checkpoint()
    lite(model, "net")
    lite(model, "half", optimizations=[tf.lite.Optimize.DEFAULT])
    lite(model, "int8", optimizations=[tf.lite.Optimize.DEFAULT], representative_dataset=images)
    sparse()
    grouped()
    for_browsers(model)
    (HERE / "net.h5").unlink()
    np.savez_compressed(HERE / "expected.npz", **expected)


if __name__ == "__main__":
    main()
