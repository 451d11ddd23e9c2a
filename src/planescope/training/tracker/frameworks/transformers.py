"""`Tracker` as a callback of Hugging Face's trainer."""

# ruff: noqa: ARG002 - the trainer gives these arguments, wanted or not
from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planescope.files.errors import (
    MissingDependencyError,
    UsageError,
    one_line,
    printable,
)
from planescope.training.tracker.frameworks.elsewhere import NotForLightning

if TYPE_CHECKING:
    from planescope.training.tracker.tracker import Tracker


def callback(tracker: Tracker, trainer: Any = None, /) -> Any:
    """Return the callback that measures the trainer's model; with a trainer it logs through that.

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

    class TrackerCallback(NotForLightning, TrainerCallback):
        meant_for = "transformers' Trainer"

        def set_params(self, *_: Any, **__: Any) -> None:
            raise UsageError(
                "this callback is for transformers' Trainer; give Keras tracker.for_keras()"
            )

        set_model = set_params

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step and not tracker.measurements:
                _resume(tracker, args, state.global_step)
            tracker.begin(kwargs["model"], state.global_step, epoch=_done(state.epoch))

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if tracker.every != "epoch":
                tracker.update(kwargs["model"], state.global_step, epoch=_done(state.epoch))

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if tracker.every == "epoch":
                tracker.record(kwargs["model"], state.global_step, epoch=round(state.epoch))

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                _save(tracker, _folder(args, state.global_step))

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._end(state, kwargs["model"])
            self._log()
            tracker.close()

        def _end(self, state: Any, model: Any) -> None:
            tracker.record(model, state.global_step, epoch=_done(state.epoch))

        # Not earlier: to log in between would make the trainer forget that it has to.
        def on_log(
            self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any
        ) -> None:
            if (logs or {}).keys() >= _ENDED:
                # Now: later the best model may have taken the place of the last, and loggers close.
                self._end(state, kwargs["model"])
                if trainer is not None:
                    tracker._log_picture(trainer.callback_handler.callbacks)
            else:
                records = tracker.history.records
                is_late = bool(records) and records[-1].step == state.global_step
                tracker._note(logs or {}, late=is_late)
            self._log()

        def _log(self) -> None:
            # The trainer stamps what it logs with the step of now.
            found = list(tracker.unlogged())
            if trainer is not None and found:
                trainer.log(found[-1][1])

    return TrackerCallback()


# What Hugging Face's trainer logs together but once, when all steps are done: of all of them.
_ENDED = {"train_runtime", "train_loss"}


def _done(epoch: float | None) -> int:
    """Return the epochs done, of the trainer's count, which has a fraction within one."""
    return int((epoch or 0) + 1e-6)


def _folder(args: Any, step: int) -> Path:
    return Path(args.output_dir) / f"checkpoint-{step}"


def _name(tracker: Tracker) -> str:
    """Name of its file; trackers with other options have others."""
    return f"planescope-tracker-{hashlib.sha256(tracker.state_key.encode()).hexdigest()[:8]}.pt"


def _save(tracker: Tracker, folder: Path) -> None:
    import torch

    try:
        torch.save(tracker.state_dict(), folder / _name(tracker))
    except (OSError, RuntimeError) as exc:  # a training does not end for it
        text = f"the Tracker's state was not saved in {folder}: {one_line(exc)}"
        warnings.warn(printable(text), stacklevel=2)


def _resume(tracker: Tracker, args: Any, step: int) -> None:
    """Go on from what lies beside the checkpoint; without it, the first update says from where."""
    import torch

    given = getattr(args, "resume_from_checkpoint", None)
    folders = [Path(given)] if isinstance(given, str) else []
    for folder in (*folders, _folder(args, step)):
        if (path := folder / _name(tracker)).is_file():
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
                tracker.load_state_dict(state)
            except Exception as exc:  # a damaged file raises what it likes
                text = f"{path}: the Tracker's state cannot be read: {one_line(exc)}"
                warnings.warn(printable(text), stacklevel=2)
            return
