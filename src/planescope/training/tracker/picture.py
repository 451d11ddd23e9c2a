"""One picture of a training for loggers that take one: negative mass, layers × updates."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from planescope.files.errors import UsageError, one_line, printable

if TYPE_CHECKING:
    from planescope.training.tracker.history import History

# Hands a picture and the step of its last update on to a logger.
Taker = Callable[[np.ndarray, int], None]

KEY = "planescope/negative_mass_by_layer"
_MLFLOW_KEY = KEY.replace("/", ".")
# Packages whose runs log pictures as `Image`.
_IMAGES = ("wandb", "trackio")
# Inches: of a row, of what surrounds all of them, and across; dots an inch.
ROW, AROUND, ACROSS, DOTS = 0.16, 1.1, 7.0, 120
# With more layers a row is thinner, and some names are left out.
MOST_NAMES = 60


def picture_of(history: History, /) -> np.ndarray:
    """Draw the negative mass of each layer at each update.

    Returns
    -------
    array, uint8, shape (height, width, 3)
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    updates = history.numbered
    last = list(updates.values())[-1]
    names = [layer.name for layer in last.layers]
    rows = {name: i for i, name in enumerate(names)}
    masses = np.full((len(names), len(updates)), np.nan)
    for column, measurement in enumerate(updates.values()):
        for layer in measurement.layers:
            if layer.name in rows and layer.negative_mass is not None:
                masses[rows[layer.name], column] = layer.negative_mass
    height = AROUND + ROW * min(max(len(names), 4), MOST_NAMES)
    figure = Figure(figsize=(ACROSS, height), dpi=DOTS, layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shown = axes.imshow(masses, aspect="auto", cmap="RdBu_r", vmin=0, vmax=1, interpolation="none")
    every = -(-len(names) // MOST_NAMES)
    axes.set_yticks(range(0, len(names), every), names[::every], fontsize=7)
    numbers = list(updates)
    apart = -(-len(numbers) // 10)
    axes.set_xticks(range(0, len(numbers), apart), list(map(str, numbers[::apart])), fontsize=7)
    axes.set_xlabel(history.unit, fontsize=8)
    bar = figure.colorbar(shown, ax=axes, pad=0.01)
    # Not beside the bar, which is short where there are few layers.
    axes.set_title("negative mass; chance gives 1/2", fontsize=8, loc="left")
    bar.ax.tick_params(labelsize=7)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def refuse_others(loggers: Iterable[Any], /) -> None:
    """Refuse loggers that take no picture.

    Raises
    ------
    UsageError
        If there is one.
    """
    for logger in loggers:
        if taker_of(logger) is None:
            raise UsageError(
                f"a {type(logger).__name__} takes no picture; give a SummaryWriter, a run of "
                "wandb, the module mlflow, or a logger of Lightning's"
            )


def log_picture(loggers: Iterable[Any], history: History, step: int, /) -> None:
    """Give the picture to those loggers that take one; none ends a training."""
    takers = [take for logger in loggers if (take := taker_of(logger)) is not None]
    if not takers or len(history.numbered) < 2:
        return
    picture = picture_of(history)
    for take in takers:
        try:
            take(picture, step)
        except Exception as exc:  # a logger is anybody's code
            text = f"a logger did not take planescope's picture: {one_line(exc)}"
            warnings.warn(printable(text), stacklevel=2)


def taker_of(logger: Any, /) -> Taker | None:
    """Return what hands a picture and its step on to a logger; None where it takes none.

    A logger of Lightning's, a callback of Hugging Face's or Keras' that logs, a ``SummaryWriter``,
    a run of Weights & Biases or one alike, or the module ``mlflow``.
    """
    # Callbacks of Hugging Face's trainer hold what they log to; some before they have begun.
    for name in ("tb_writer", "_wandb", "_trackio", "_ml_flow"):
        if getattr(logger, name, None) is not None:
            return taker_of(getattr(logger, name))
    library = _library_of(logger)
    if library == "keras":
        return _taker_of_keras(logger)
    if library in _IMAGES and callable(getattr(logger, "log", None)):
        image = getattr(sys.modules[library], "Image")  # noqa: B009  it is not typed
        return lambda picture, _: logger.log({KEY: image(picture)})
    if library == "mlflow":
        return lambda picture, step: logger.log_image(picture, key=_MLFLOW_KEY, step=step)
    if callable(getattr(logger, "add_image", None)):
        return lambda picture, step: logger.add_image(KEY, picture, step, dataformats="HWC")
    if callable(getattr(logger, "log_image", None)):  # Lightning's for W&B, and those alike
        return lambda picture, step: logger.log_image(key=KEY, images=[picture], step=step)
    experiment: Any = getattr(logger, "experiment", None)
    if callable(getattr(experiment, "add_image", None)):  # Lightning's for TensorBoard
        return taker_of(experiment)
    if callable(getattr(experiment, "log_image", None)) and hasattr(logger, "run_id"):  # MLflow
        return lambda picture, step: experiment.log_image(
            logger.run_id, picture, key=_MLFLOW_KEY, step=step
        )
    return None


def _library_of(logger: Any) -> str:
    """Return the package that a logger comes from; it may be the package."""
    name = logger.__name__ if isinstance(logger, ModuleType) else type(logger).__module__
    return str(name).partition(".")[0]


def _taker_of_keras(callback: Any) -> Taker | None:
    """Return what hands a picture on beside the figures of Keras' TensorBoard."""
    folder = getattr(callback, "log_dir", None)
    if folder is None:
        return None

    def take(picture: np.ndarray, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(folder)) as writer:  # its own is closed as `fit` ends
            writer.add_image(KEY, picture, step, dataformats="HWC")

    return take
