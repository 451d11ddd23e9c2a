"""Lightning for a `Tracker`: its base class, the count of steps, the loggers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any


def _callback() -> type:
    """Return Lightning's callback, under whichever of its two names it is installed."""
    bases = []
    for name in ("pytorch_lightning", "lightning.pytorch"):
        try:
            bases.append(import_module(name).Callback)
        except ModuleNotFoundError as exc:
            if exc.name not in (name, name.partition(".")[0]):
                raise
    return type("Callback", tuple(bases) or (object,), {})


if TYPE_CHECKING:
    from pytorch_lightning import Callback as Callback
else:
    Callback = _callback()


def log(trainer: Any, found: Iterable[tuple[int, Mapping[str, float]]], /) -> None:
    """Give the loggers of a trainer metrics by their steps; they are not read where it has none."""
    if not trainer.loggers:
        return
    for step, metrics in found:
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)


def steps(trainer: Any, /) -> int:
    """Count the batches stepped on, by which losses are logged: once, for all optimisers."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def steps_at_start(trainer: Any, /) -> int:
    """Count them as a fit begins: a checkpoint may lack the last, which Lightning adds later."""
    loop = trainer.fit_loop.epoch_loop
    is_behind = (
        getattr(loop, "restarting", False)
        and not loop._should_accumulate()
        and (
            getattr(loop, "restarted_on_train_batch_end", False)
            or not getattr(loop, "restarted_on_last", False)
        )
    )
    return steps(trainer) + bool(is_behind)
