"""Live models of Keras, on any of its backends, described as their files are."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from planescope.checkpoints.keras.config import trace
from planescope.checkpoints.keras.entries import ConfigLayer, is_of_keras
from planescope.checkpoints.keras.model import describe
from planescope.checkpoints.keras.variables import Variables, Weights
from planescope.files.errors import UsageError
from planescope.hyperplanes.layer import Described, Tensor

_LIBRARIES = ("keras", "tf_keras")

_VARIABLES = (
    *("kernel", "depthwise_kernel", "pointwise_kernel", "bias", "kernel_scale"),
    *("gamma", "beta", "moving_mean", "moving_variance"),
)


def is_model(x: object, /) -> bool:
    """Tell a model or layer of Keras, which on one of its backends is a torch module as well."""
    libraries = (sys.modules.get(name) for name in _LIBRARIES)
    layers = (getattr(getattr(library, "layers", None), "Layer", None) for library in libraries)
    return any(isinstance(x, layer) for layer in layers if isinstance(layer, type))


def refuse(model: object, done: str, instead: str, /) -> None:
    """Refuse a model of Keras where networks are run, which is done with those of torch and ONNX.

    Raises
    ------
    UsageError
        If it is one: that it cannot be `done` here, and what to do.
    """
    if is_model(model):
        raise UsageError(
            f"a Keras network cannot be {done} here; {instead}, or give its torch version"
        )


def read_model(model: Any, /) -> Described:
    """Describe the layers of a live Keras model.

    Each `read` gives the values of then, on the host.
    """
    described = trace(model.to_json()) if hasattr(model, "to_json") else []
    found = [(layer, _find(model, layer.path)) for layer in described]
    containers = dict(_containers(model))
    if not described:
        found = [_alone(model, layer, containers) for layer in model._flatten_layers()]
    inner = [
        _alone(model, part, containers)
        for layer, live in found
        if layer.is_foreign and live is not None and described
        for part in live._flatten_layers(include_self=False)
    ]
    live_layers = {layer.name: (layer, live) for layer, live in _once([*found, *inner])}
    variables = [
        Variables(
            group=tuple(layer.slot.split("/")), name=layer.name, keys=dict(_keys(layer, live))
        )
        for layer, live in live_layers.values()
    ]

    def tensor(key: str) -> Tensor:
        name, _, variable = key.rpartition("/")
        layer = live_layers[name]
        held = _held(*layer, variable)
        dtype = getattr(held.dtype, "name", str(held.dtype)).removeprefix("torch.")
        return Tensor(tuple(held.shape), dtype, lambda: _on_host(_held(*layer, variable)))

    file = SimpleNamespace(tensor=tensor, path=Path(model.name))
    layers = [layer for layer, _ in [*found, *inner]]
    weights = Weights(layers=[held for held in variables if held.keys], numbered=True)
    return describe(file, layers, weights, missing="it has no weights yet")


def _once(found: Sequence[tuple[ConfigLayer, Any]]) -> Iterator[tuple[ConfigLayer, Any]]:
    """Give each live layer under its first name."""
    seen = set()
    for layer, live in found:
        if live is not None and id(live) not in seen:
            seen.add(id(live))
            yield layer, live


def _keys(layer: ConfigLayer, live: Any) -> Iterator[tuple[str, str]]:
    """Name the variables of a layer: those of Keras' classes as it does, else by number."""
    held = [name for name in _VARIABLES if getattr(live, name, None) is not None]
    if layer.is_foreign or not held:
        held = [str(number) for number, _ in enumerate(_own(layer, live))]
    yield from ((name, f"{layer.name}/{name}") for name in held)


def _held(layer: ConfigLayer, live: Any, variable: str) -> Any:
    if variable.isdecimal():
        return _own(layer, live)[int(variable)]
    return getattr(live, variable)


def _own(layer: ConfigLayer, live: Any) -> list[Any]:
    """Return the variables of a layer.

    Of a class that is not of Keras, without those of its parts.
    """
    if not layer.is_foreign:
        return list(live.weights)
    names = ("trainable_variables", "trainable_weights")  # of Keras 3, of Keras 2
    lists = (getattr(live, f"_{non}{name}", None) for name in names for non in ("", "non_"))
    return [variable for held in lists if held for variable in held]


def _containers(model: Any) -> Iterator[tuple[int, str]]:
    """Name the lists in which layers are kept, as files have them in the path."""
    for parent in model._flatten_layers():
        for name, value in vars(parent).items():
            if isinstance(value, list | tuple) and not name.startswith("_"):
                yield from ((id(item), name) for item in value if hasattr(item, "_flatten_layers"))


def _alone(model: Any, layer: Any, containers: dict[int, str]) -> tuple[ConfigLayer, Any]:
    """Describe a layer of a model whose config does not tell how its layers are called."""
    # A model whose first call has built it has no path of its own.
    path = tuple((getattr(layer, "path", None) or layer.name).split("/"))
    if len(path) > 1 and path[0] == model.name:
        path = path[1:]
    if id(layer) in containers and containers[id(layer)] != "layers":
        path = (*path[:-1], containers[id(layer)], path[-1])
    options = {"groups": getattr(layer, "groups", 1)}
    if getattr(layer, "quantization_mode", None):
        options["dtype"] = {"config": {"mode": layer.quantization_mode}}
    described = ConfigLayer(
        path=path,
        slot="/".join(path),
        class_name=type(layer).__name__,
        options=options,
        inbound=[],
        is_foreign=not is_of_keras(type(layer).__module__),
    )
    return described, layer


def _find(model: Any, path: Sequence[str]) -> Any:
    """Look a layer up by its name, behind those of the models that it is in; None if not there."""
    for name in path:
        held = getattr(model, "layers", [])
        wrapped = [layer.layer for layer in held if hasattr(layer, "layer")]
        model = next((layer for layer in [*held, *wrapped] if layer.name == name), None)
    return getattr(model, "layer", model)


def _on_host(values: Any) -> np.ndarray:
    keras = sys.modules.get("keras")
    # What Keras 2 holds converts by itself.
    if keras is not None and not type(values).__module__.startswith(("tensorflow", "tf_keras")):
        values = keras.ops.convert_to_numpy(values)
    array = np.asarray(values)
    # NumPy cannot compute with bfloat16; float32 holds all of its values.
    known = np.isdtype(array.dtype, "real floating") or "float" not in array.dtype.name
    return array if known else array.astype(np.float32)
