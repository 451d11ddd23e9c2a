"""Containers of a network: what torch, safetensors, ONNX and Keras write of it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from checks.drawn.networks import IMAGE, Drawn


class UnfitError(Exception):
    """A container has no way to hold this network."""


def _state(network: Drawn, path: Path) -> None:
    torch.save(network.state_dict(), path)


def _module(network: Drawn, path: Path) -> None:
    torch.save(network, path)


def _safetensors(network: Drawn, path: Path) -> None:
    from safetensors.torch import save_file

    save_file(network.state_dict(), path)


def _script(network: Drawn, path: Path) -> None:
    torch.jit.trace(network, torch.zeros(1, *IMAGE)).save(path)


def _export(network: Drawn, path: Path) -> None:
    torch.export.save(torch.export.export(network, (torch.zeros(1, *IMAGE),)), path)


def _onnx(*, dynamo: bool) -> Callable[[Drawn, Path], None]:
    def write(network: Drawn, path: Path) -> None:
        images = (torch.zeros(1, *IMAGE),)
        if dynamo:
            torch.onnx.export(
                network, images, path, dynamo=True, optimize=False, external_data=False,
                verbose=False,
            )  # fmt: skip
            return
        torch.onnx.export(
            network, images, path, dynamo=False,
            # Otherwise norms are folded into the weights before them: another table, rightly.
            training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False,
        )  # fmt: skip

    return write


def _keras(network: Drawn, path: Path) -> None:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    values: list[Any] = [keras.Input((*IMAGE[1:], IMAGE[0]))]
    fed: list[tuple[Any, nn.Module]] = []
    for step in network.steps:
        given = [values[number] for number in step.reads]
        if not step.name:
            values.append(_keras_operation(keras, step.op, given))
            continue
        part = getattr(network, step.name)
        layer, value = _keras_layer(keras, step.name, part, given[0])
        fed.append((layer, part))
        values.append(value)
    model = keras.Model(values[0], values[-1])
    for layer, part in fed:
        layer.set_weights(_keras_weights(part))
    model.save(path)


def _keras_operation(keras: Any, op: str, given: list[Any]) -> Any:
    layers = keras.layers
    same = (
        *("relu", "relu6", "gelu", "silu", "tanh", "sigmoid", "elu", "mish", "selu", "softplus"),
        *("softsign",),
    )
    activations = {**{word: word for word in same}, "clamp": "relu", "at_least_0": "relu"}
    if op in activations:
        return layers.Activation(activations[op])(given[0])
    made = {
        "leaky": lambda: layers.LeakyReLU(negative_slope=0.1),
        "max_pool": lambda: layers.MaxPooling2D(2),
        "avg_pool": lambda: layers.AveragePooling2D(2),
        "nearest": lambda: layers.UpSampling2D(2),
        "bilinear": lambda: layers.UpSampling2D(2, interpolation="bilinear"),
        "mean": layers.GlobalAveragePooling2D,
        "pad": lambda: layers.ZeroPadding2D(((0, 1), (1, 0))),
        "scaled": lambda: layers.Rescaling(0.5),
        "turned": lambda: layers.Rescaling(-1.5),
        "shifted": lambda: layers.Rescaling(1.0, 0.25),
        "add": layers.Add,
        "sub": layers.Subtract,
        "mul": layers.Multiply,
        "max": layers.Maximum,
        "min": layers.Minimum,
        "divided": lambda: layers.Rescaling(0.4),
        "from_one": lambda: layers.Rescaling(-1.0, 1.0),
        "negative": lambda: layers.Rescaling(-1.0),
        "softmax": lambda: layers.Softmax(-1),
        "threshold": lambda: layers.ReLU(),
        "cat": layers.Concatenate,
    }
    if op not in made:  # a flattened image has another order there
        raise UnfitError(op)
    return made[op]()(given if len(given) > 1 else given[0])


def _keras_layer(keras: Any, name: str, part: nn.Module, value: Any) -> tuple[Any, Any]:
    layers = keras.layers
    match part:
        case nn.Conv2d():
            around = part.padding[0]
            if around:
                value = layers.ZeroPadding2D(around)(value)
            options = {
                "strides": part.stride, "dilation_rate": part.dilation,
                "use_bias": part.bias is not None, "name": name,
            }  # fmt: skip
            if part.groups == part.in_channels == part.out_channels > 1:
                layer = layers.DepthwiseConv2D(part.kernel_size, **options)
            else:
                layer = layers.Conv2D(
                    part.out_channels, part.kernel_size, groups=part.groups, **options
                )
        case nn.ConvTranspose2d():
            layer = layers.Conv2DTranspose(
                part.out_channels, 2, 2, use_bias=part.bias is not None, name=name
            )
        case nn.Linear():
            layer = layers.Dense(part.out_features, use_bias=part.bias is not None, name=name)
        case nn.BatchNorm2d() | nn.BatchNorm1d():
            layer = layers.BatchNormalization(epsilon=part.eps, name=name)
        case nn.GroupNorm():
            layer = layers.GroupNormalization(part.num_groups, epsilon=part.eps, name=name)
        case _:
            raise UnfitError(type(part).__name__)
    return layer, layer(value)


def _keras_weights(part: nn.Module) -> list[Any]:
    held = {name: tensor.detach().numpy() for name, tensor in part.state_dict().items()}
    match part:
        case nn.Conv2d() if part.groups == part.in_channels == part.out_channels > 1:
            held["weight"] = held["weight"].transpose(2, 3, 0, 1)
        case nn.Conv2d():
            held["weight"] = held["weight"].transpose(2, 3, 1, 0)
        case nn.ConvTranspose2d():
            held["weight"] = held["weight"].transpose(2, 3, 1, 0)
        case nn.Linear():
            held["weight"] = held["weight"].T
    names = ("weight", "bias", "running_mean", "running_var")
    return [held[name] for name in names if name in held]


CONTAINERS: dict[str, tuple[str, Callable[[Drawn, Path], None]]] = {
    "state dict": ("state.pt", _state),
    "safetensors": ("net.safetensors", _safetensors),
    "pickled module": ("module.pt", _module),
    "TorchScript": ("script.pt", _script),
    "pt2": ("net.pt2", _export),
    "ONNX": ("net.onnx", _onnx(dynamo=False)),
    "ONNX by dynamo": ("dynamo.onnx", _onnx(dynamo=True)),
    "Keras": ("net.keras", _keras),
    "Keras, HDF5": ("net.h5", _keras),
}
GRAPHS = ("pt2", "ONNX", "ONNX by dynamo", "Keras", "Keras, HDF5")


def write(name: str, network: Drawn, folder: Path) -> Path:
    """Write a network into a container.

    Raises
    ------
    UnfitError
        If that holds no such network.
    """
    file, writer = CONTAINERS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        writer(network, folder / file)
    return folder / file
