"""Write small Keras files of known weights, and the weights beside them.

    python make_fixtures.py tf_keras FOLDER     # Keras 2; needs tensorflow and tf-keras
    python make_fixtures.py keras FOLDER        # Keras 3; any backend

The files in this folder were written by the first command, with tf-keras 2.21: TensorFlow is too
much to ask of whoever runs the tests. The tests call the second.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import numpy as np


def residual(keras):
    """Images: a residual block, a model within the model, and a layer that is called twice."""
    layers = keras.layers

    inside = x = keras.Input((None, None, 4), name="features")
    x = layers.Conv2D(4, 3, padding="same", name="deep")(x)
    x = layers.BatchNormalization(epsilon=1e-5, name="deep_bn")(x)
    block = keras.Model(inside, layers.ReLU(name="deep_relu")(x), name="block")

    shared = layers.Conv2D(4, 3, padding="same", name="shared")
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Rescaling(1 / 255, name="rescale")(image)
    x = layers.Conv2D(4, 3, padding="same", use_bias=False, name="stem")(x)
    x = layers.BatchNormalization(scale=False, name="stem_bn")(x)
    x = layers.Activation("relu", name="stem_relu")(x)
    x = layers.MaxPooling2D(name="pool")(x)
    y = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="dw")(x)
    y = layers.SeparableConv2D(4, 3, padding="same", activation="relu", name="sep")(y)
    x = block(layers.Add(name="add")([x, y]))
    x = shared(layers.Dropout(0.5, name="drop")(shared(x)))
    x = layers.Conv2D(6, 3, strides=2, groups=2, padding="same", activation="relu", name="down")(x)
    x = layers.BatchNormalization(name="down_bn")(x)
    x = layers.Conv2DTranspose(5, 3, name="up")(x)
    x = layers.Flatten(name="flat")(x)
    return keras.Model(
        image, layers.Dense(3, activation="softmax", name="head")(x), name="residual"
    )


def sequence(keras):
    """One after another, without a name for most: Keras' own names tell the classes."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((16, 3)),
            layers.Conv1D(4, 3),
            layers.BatchNormalization(),
            layers.Activation("relu6"),
            layers.AveragePooling1D(2),
            layers.SeparableConv1D(5, 3, depth_multiplier=2),
            layers.LeakyReLU(),
            layers.DepthwiseConv1D(3),
            layers.TimeDistributed(layers.Dense(4)),
            layers.Conv1DTranspose(3, 2),
            layers.LSTM(3),
            layers.Dense(2),
        ],
        name="sequence",
    )


def branches(keras):
    """Two inputs: volumes, and words with an embedding, recurrence and attention."""
    layers = keras.layers
    volume = keras.Input((5, 5, 5, 1), name="volume")
    x = layers.Conv3D(2, 3, name="conv")(volume)
    x = layers.PReLU(shared_axes=[1, 2, 3], name="slopes")(x)
    x = layers.Conv3DTranspose(3, 2, name="back")(x)
    x = layers.GlobalAveragePooling3D(name="mean")(x)
    words = keras.Input((4,), name="words")
    y = layers.Embedding(7, 6, name="table")(words)
    y = layers.Bidirectional(layers.GRU(3, return_sequences=True, use_bias=False), name="both")(y)
    y = layers.MultiHeadAttention(2, 3, use_bias=False, name="heads")(y, y)
    y = layers.LayerNormalization(name="even")(y)
    y = layers.GlobalMaxPooling1D(name="most")(y)
    x = layers.Concatenate(name="join")([x, y])
    return keras.Model([volume, words], layers.Dense(2, name="head")(x), name="branches")


NETWORKS = {"residual": residual, "sequence": sequence, "branches": branches}

FILES = {
    "keras": [f"{name}.{suffix}" for name in NETWORKS for suffix in ("keras", "h5", "weights.h5")],
    # A name that ends in -weights.h5 gives the older layout of bare weights, in no Keras 3.
    "tf_keras": [
        *("residual.keras", "residual.h5", "residual-weights.h5"),
        *("sequence.h5", "branches-weights.h5"),
    ],
}


def weights(model, prefix=""):
    """Weights of all layers by name and number, as the framework hands them out."""
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from weights(layer, f"{prefix}{layer.name}.")
        else:
            for number, weight in enumerate(layer.get_weights()):
                yield f"{prefix}{layer.name}/{number}", weight


def main(library, folder):
    keras = importlib.import_module(library)
    rng = np.random.default_rng(0)
    models, expected = {}, {}
    for name, build in NETWORKS.items():
        models[name] = model = build(keras)
        model.set_weights([rng.random(w.shape).astype(w.dtype) for w in model.get_weights()])
        expected.update({f"{name}/{key}": value for key, value in weights(model)})
    for file in FILES[library]:
        model = models[re.match(r"\w+", file)[0]]
        (model.save_weights if "weights" in file else model.save)(folder / file)
    np.savez_compressed(folder / "expected.npz", **expected)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
