"""`Tracker` as a callback of Keras 3, and the layers of a live Keras model."""

# ruff: noqa: ARG002 - Keras gives these arguments, wanted or not
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import ref

from planescope.checkpoints.keras.live import read_model
from planescope.files.errors import MissingDependencyError, UsageError
from planescope.measurement.choice import Choice, select
from planescope.measurement.record import Source
from planescope.measurement.source import Found
from planescope.training.tracker.frameworks.elsewhere import NotForLightning
from planescope.training.tracker.live import Live

if TYPE_CHECKING:
    from planescope.training.tracker.recorder import Recorder
    from planescope.training.tracker.tracker import Tracker


def callback(
    recorder: Recorder, tracker: Tracker, choice: Choice, loggers: Sequence[Any] = (), /
) -> Any:
    """Return the callback that measures the model which it is given to.

    Its statistics join the logs.

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

    class TrackerCallback(NotForLightning, keras.callbacks.Callback):
        meant_for = "Keras"

        def on_init_end(self, *_: Any, **__: Any) -> None:
            raise UsageError(
                "this callback is for Keras; give transformers' Trainer tracker.for_transformers()"
            )

        def on_train_begin(self, logs: Any = None) -> None:
            self._network: Live | None = None
            self._done_before = 0

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            # A resumed fit begins with another than 0, and a second one of a model with 0 again.
            self._epoch = epoch + self._done_before
            if self._network is None:
                self._network = _live(self.model, choice)
                optimizer = self.model.optimizer
                # Batches whose gradients make one step, as the optimiser counts them.
                self._accumulated = getattr(optimizer, "gradient_accumulation_steps", None) or 1
                self._batches = int(getattr(optimizer, "_iterations", optimizer.iterations))
                self._step = self._batches // self._accumulated
                self._done_before = recorder.history.epochs_behind(self._step, epoch)
                self._epoch += self._done_before
                self._measure()
            self._before = self._batches

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            # Not called for each where several are executed at once.
            whole = (self.params or {}).get("steps")
            done = batch + 1 if whole is None else min(batch + 1, whole)
            before, self._batches = self._step, self._before + done
            self._step = self._batches // self._accumulated
            self._epoch += done == whole
            is_new = self._step > before
            if is_new and tracker.every != "epoch" and recorder.is_due(self._step):
                self._measure()

        def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
            self._epoch = epoch + self._done_before + 1
            tracker._note(logs or {})
            if tracker.every == "epoch":
                self._measure()
            if logs is not None:
                logs.update(tracker.metrics())

        def on_train_end(self, logs: Any = None) -> None:
            if self._network is not None:
                self._measure()
                tracker._log_picture(loggers)
                tracker.close()

        def _measure(self) -> None:
            _ = self.model  # with JAX, to look at it is what brings the variables up to date
            assert self._network is not None  # noqa: S101
            recorder.keep(self._network, self._step, self._epoch)

    return TrackerCallback()


def _live(model: Any, choice: Choice) -> Live:
    source = Source(path=model.name, format="keras model", bytes=None)
    read = read_model(model)
    layers, skipped = select(Found(source=source, layers=read.layers), choice)
    left_out = (*skipped, *read.skipped)
    found = Found(source=source, layers=tuple(layers), skipped=left_out, notes=read.notes)
    owners = {layer.name: ref(model) for layer in layers}
    return Live(found.layers, found, (), {}, owners)
