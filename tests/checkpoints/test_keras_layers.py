"""Classes of one's own, quantised and adapted layers of Keras: what acts, or left out by name."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from planescope.checkpoints.keras.model import read

MAKE = """
import pickle, sys
import keras, numpy as np
from keras import layers as L, ops
from planescope.checkpoints.keras.live import read_model

folder = sys.argv[1]
keras.utils.set_random_seed(0)

@keras.saving.register_keras_serializable()
class StdConv(L.Conv2D):
    def call(self, x):
        kernel = self.kernel - ops.mean(self.kernel, (0, 1, 2), keepdims=True)
        return ops.conv(x, kernel, padding="same") + self.bias

@keras.saving.register_keras_serializable()
class Block(L.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.conv = L.Conv2D(3, 3, padding="same", name="inner")
    def call(self, x):
        return ops.relu(self.conv(x))

x = image = keras.Input((8, 8, 3))
adapted = L.Conv2D(4, 3, padding="same", name="adapted")
shared = L.Conv2D(4, 3, padding="same", name="shared")
x = shared(ops.relu(shared(ops.relu(adapted(x)))))
x = StdConv(4, 3, name="standardised")(x)
x = L.Flatten()(Block(name="block")(x))
whole, packed = L.Dense(5, name="whole"), L.Dense(4, name="packed")
x = packed(whole(x))
y = L.LSTM(3, name="recurrent")(L.Reshape((2, 2))(x))
z = L.MultiHeadAttention(1, 2, name="heads")(*2 * [L.Reshape((2, 2))(x)])
net = keras.Model(image, L.Concatenate()([y, L.Flatten()(z)]), name="net")
adapted.enable_lora(2)
adapted.lora_kernel_b.assign(np.random.default_rng(0).normal(size=adapted.lora_kernel_b.shape))
whole.quantize("int8")
packed.quantize("int4")
net.save(f"{folder}/net.keras")
net.save(f"{folder}/net.h5")
live = read_model(net)
with open(f"{folder}/live.pkl", "wb") as file:
    layers = {layer.name: np.asarray(layer.weight.read()) for layer in live.layers}
    kernel = ops.convert_to_numpy(adapted.kernel)
    inputs = np.random.default_rng(1).normal(size=(3, whole.kernel.shape[0])).astype("float32")
    outputs = ops.convert_to_numpy(whole(inputs))
    skipped = {skipped.name: skipped.reason for skipped in live.skipped}
    pickle.dump((layers, skipped, kernel, inputs, outputs), file)
"""

LAYERS = ["adapted", "shared", "whole", "block.inner"]
LEFT_OUT = {
    "standardised": "is not one of Keras: what it does with its weights is not told",
    "packed": "its weights are quantised (int4/128) in a way not read",
    "recurrent": "a recurrent layer: its weights act on its own output too",
    "heads": "queries, keys and values of an attention: several linear maps in one",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keras")
    done = subprocess.run(
        [sys.executable, "-c", MAKE, folder],
        env={**os.environ, "KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder, pickle.loads((folder / "live.pkl").read_bytes())


@pytest.mark.parametrize("name", ["net.keras", "net.h5"])
def test_files_and_live_models_give_the_weights_that_act(made, name):
    folder, (live, left_out, kernel, inputs, outputs) = made
    found = read(folder / name)
    layers = {layer.name: layer for layer in found.layers}
    assert list(layers) == LAYERS
    assert list(live) == LAYERS
    for layer, weight in live.items():
        np.testing.assert_allclose(layers[layer].weight.read(), weight, atol=1e-6)
    # The update of low rank acts with the kernel.
    np.testing.assert_allclose(live["adapted"], kernel.transpose(3, 2, 0, 1), atol=1e-6)
    # Keras rounds what it is given to 8 bits as well.
    whole = layers["whole"]
    ours = inputs @ whole.weight.read().T + whole.bias.read()
    assert np.abs(ours - outputs).max() < 0.02 * np.abs(outputs).max()
    skipped = {each.name: each.reason for each in found.skipped}
    for reasons in (skipped, left_out):
        # What the class is called differs from format to format.
        told = {name: reason.partition("StdConv ")[2] or reason for name, reason in reasons.items()}
        assert told == LEFT_OUT
    assert "1 layer within classes that are not of Keras" in found.notes[0]


CALLED = """
import sys
import keras
import numpy as np
import planescope as ps

class Net(keras.Model):
    def __init__(self):
        super().__init__()
        self.first = keras.layers.Conv2D(6, 3)
        self.last = keras.layers.Dense(4)

    def call(self, x):
        return self.last(keras.ops.relu(self.first(x)).mean((1, 2)))

keras.utils.set_random_seed(0)
net = Net()
net(np.zeros((1, 8, 8, 3), "float32"))
net.save(sys.argv[1])
for source in (net, sys.argv[1], {weight.path: weight for weight in net.weights}):
    for layer in ps.measure(source, kinds="all").layers:
        print(layer.name.rpartition("/")[2], layer.filters, round(layer.mean_cosine, 6))
"""


def test_a_model_that_its_first_call_has_built_is_read_live_in_its_file_and_by_its_variables(
    tmp_path,
):
    done = subprocess.run(
        [sys.executable, "-c", CALLED, tmp_path / "net.keras"],
        env={**os.environ, "KERAS_BACKEND": "torch"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[1] for row in rows] == ["6", "4"] * 3
    assert len({tuple(row[2] for row in rows[at : at + 2]) for at in (0, 2, 4)}) == 1
