"""`Tracker` as a callback of Keras 3, and the layers of a live Keras model."""

# ruff: noqa: ARG002 - Keras gives these arguments, wanted or not
from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from planescope.checkpoints.keras.config import ConfigLayer, trace
from planescope.checkpoints.keras.model import described_layers
from planescope.checkpoints.keras.variables import Variables
from planescope.files.errors import MissingDependencyError
from planescope.hyperplanes.layer import Layer, Tensor
from planescope.measurement.measure import Found, select
from planescope.measurement.record import Source
from planescope.training.tracker.live import Choice, Live

if TYPE_CHECKING:
    import numpy as np

    from planescope.training.tracker.tracker import Tracker

_VARIABLES = (
    *("kernel", "depthwise_kernel", "pointwise_kernel", "bias"),
    *("gamma", "beta", "moving_mean", "moving_variance"),
)


def callback(tracker: Tracker, choice: Choice, /) -> Any:
    """Callback that measures the model which it is given to; its statistics join the logs.

    Raises
    ------
    MissingDependencyError
        If keras is not installed.
    """
    try:
        import keras
    except ModuleNotFoundError as exc:
        if exc.name != "keras":
            raise
        raise MissingDependencyError("a callback for Keras needs it: pip install keras") from exc

    class TrackerCallback(keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            self._network = _live(self.model, choice)
            self._step, self._epoch = int(self.model.optimizer.iterations), 0
            self._measure()

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self._step += 1
            if tracker.every != "epoch" and self._step % int(tracker.every) == 0:
                self._measure()

        def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
            self._epoch = epoch + 1
            if tracker.every == "epoch":
                self._measure()
            if logs is not None:
                logs.update(tracker.metrics())

        def on_train_end(self, logs: Any = None) -> None:
            self._measure()

        def _measure(self) -> None:
            _ = self.model  # with JAX, to look at it is what brings the variables up to date
            tracker.keep(self._network, self._step, self._epoch)

    return TrackerCallback()


def read_model(model: Any, /) -> list[Layer]:
    """Describe the layers of a live Keras model, as those of its file are described.

    Each `read` gives the values of then, on the host.
    """
    described = trace(model.to_json())
    layers = (
        {layer.name: found for layer in described if (found := _find(model, layer.path))}
        if described
        else {layer.path.replace("/", "."): layer for layer in model._flatten_layers()}
    )
    described = described or [_alone(name, layer) for name, layer in layers.items()]
    owned = {
        name: Variables(
            group=(),
            name=name,
            keys={
                variable: f"{name}/{variable}"
                for variable in _VARIABLES
                if getattr(layer, variable, None) is not None
            },
        )
        for name, layer in layers.items()
    }

    def tensor(key: str) -> Tensor:
        name, _, variable = key.rpartition("/")
        layer = layers[name]
        held = getattr(layer, variable)
        shape, dtype = tuple(held.shape), str(held.dtype).removeprefix("torch.")
        return Tensor(shape, dtype, lambda: _on_host(getattr(layer, variable)))

    file: Any = SimpleNamespace(tensor=tensor, window=SimpleNamespace(path=model.name))
    return list(described_layers(file, described, owned))


def _live(model: Any, choice: Choice) -> Live:
    source = Source(path=model.name, format="keras model", bytes=None)
    layers, skipped = select(
        Found(source=source, layers=tuple(read_model(model))), choice.kinds, choice.pattern
    )
    found = Found(source=source, layers=tuple(layers), skipped=tuple(skipped))
    return Live(found.layers, found, (), {})


def _alone(name: str, layer: Any) -> ConfigLayer:
    """Describe a layer of a model whose config does not tell how its layers are called."""
    return ConfigLayer(
        path=tuple(name.split(".")),
        slot="",
        class_name=type(layer).__name__,
        options={"groups": getattr(layer, "groups", 1)},
        inbound=[],
    )


def _find(model: Any, path: Sequence[str]) -> Any:
    """Look a layer up by its name, behind those of the models that it is in; None if not there."""
    for name in path:
        held = getattr(model, "layers", [])
        wrapped = [layer.layer for layer in held if hasattr(layer, "layer")]
        model = next((layer for layer in [*held, *wrapped] if layer.name == name), None)
    return model


def _on_host(values: Any) -> np.ndarray:
    import keras
    import numpy as np

    array = np.asarray(keras.ops.convert_to_numpy(values))
    # NumPy cannot compute with bfloat16; float32 holds all of its values.
    return array if np.isdtype(array.dtype, "real floating") else array.astype(np.float32)
