"""`Tracker` as a callback of Hugging Face's trainer."""

# ruff: noqa: ARG002 - the trainer gives these arguments, wanted or not
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from planescope.files.errors import MissingDependencyError

if TYPE_CHECKING:
    from planescope.training.tracker.tracker import Tracker


def callback(tracker: Tracker, trainer: Any = None, /) -> Any:
    """Callback that measures the trainer's model; with a trainer it logs through that.

    Raises
    ------
    MissingDependencyError
        If transformers is not installed.
    """
    try:
        from transformers import TrainerCallback
    except ModuleNotFoundError as exc:
        if exc.name != "transformers":
            raise
        raise MissingDependencyError(
            "a callback for transformers needs it: pip install transformers"
        ) from exc

    class TrackerCallback(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            tracker.record(kwargs["model"], state.global_step, epoch=int(state.epoch or 0))

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if tracker.every != "epoch":
                tracker.update(kwargs["model"], state.global_step, epoch=int(state.epoch))

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if tracker.every == "epoch":
                tracker.record(kwargs["model"], state.global_step, epoch=round(state.epoch))

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            tracker.record(kwargs["model"], state.global_step, epoch=round(state.epoch))
            self._log()

        # Not earlier: to log in between would make the trainer forget that it has to.
        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._log()

        def _log(self) -> None:
            # The trainer stamps what it logs with the step of now.
            found = list(tracker.unlogged())
            if trainer is not None and found:
                trainer.log(found[-1][1])

    return TrackerCallback()
