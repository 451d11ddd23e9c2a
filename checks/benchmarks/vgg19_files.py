"""A checkpoint of VGG19's size in every format: ``python -m checks.benchmarks.vgg19_files DIR``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

WIDTHS = (64, 64, 0, 128, 128, 0, *(256,) * 4, 0, *(512,) * 4, 0, *(512,) * 4)


def arrays() -> dict[str, np.ndarray]:
    """A state dict with VGG19's names and shapes, random."""
    rng = np.random.default_rng(0)
    state, channels, index = {}, 3, 0
    for width in WIDTHS:
        if width:
            scale = np.float32((2 / (9 * channels)) ** 0.5)
            weight = rng.standard_normal((width, channels, 3, 3), dtype=np.float32) * scale
            state[f"features.{index}.weight"] = weight
            state[f"features.{index}.bias"] = np.zeros(width, np.float32)
            channels = width
        index += 2 if width else 1
    for index, (out, fan_in) in zip(
        (0, 3, 6), ((4096, 25088), (4096, 4096), (1000, 4096)), strict=True
    ):
        state[f"classifier.{index}.weight"] = np.full((out, fan_in), 0.01, np.float32)
        state[f"classifier.{index}.bias"] = np.zeros(out, np.float32)
    return state


def write(folder: Path) -> None:
    """Write `folder`/vgg19.* in every format, by the real libraries."""
    state = arrays()
    _write_torch(folder, state)
    np.savez(folder / "vgg19.npz", **state)
    _write_onnx(folder / "vgg19.onnx", state)
    _write_keras(folder)


def _write_torch(folder: Path, state: dict[str, np.ndarray]) -> None:
    import torch
    from safetensors.numpy import save_file

    save_file(state, folder / "vgg19.safetensors")
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    torch.save(tensors, folder / "vgg19.pt")
    torch.save(tensors, folder / "vgg19.stream.pt", _use_new_zipfile_serialization=False)


def _write_onnx(path: Path, state: dict[str, np.ndarray]) -> None:
    import onnx
    from onnx import helper, numpy_helper

    nodes, value = [], "x"
    for name in [n.removesuffix(".weight") for n in state if n.endswith(".weight")]:
        inputs = [value, f"{name}.weight", f"{name}.bias"]
        if name.startswith("features"):
            nodes.append(helper.make_node("Conv", inputs, [name], name=name))
        else:
            nodes.append(helper.make_node("Gemm", inputs, [name], name=name, transB=1))
        nodes.append(helper.make_node("Relu", [name], [f"{name}.relu"]))
        value = f"{name}.relu"
    graph = helper.make_graph(
        nodes,
        "vgg19",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 224, 224])],
        [helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in state.items()],
    )
    onnx.save(helper.make_model(graph), path)


def _write_keras(folder: Path) -> None:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    layers = [keras.Input((112, 112, 3))]
    layers += [
        keras.layers.Conv2D(width, 3, padding="same", activation="relu")
        if width
        else keras.layers.MaxPooling2D()
        for width in WIDTHS
    ]
    layers.append(keras.layers.Flatten())
    layers += [keras.layers.Dense(width) for width in (4096, 4096, 1000)]
    model = keras.Sequential(layers)
    model.save(folder / "vgg19.keras")
    model.save_weights(folder / "vgg19.weights.h5")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
