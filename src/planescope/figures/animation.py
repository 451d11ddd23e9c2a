"""A film of how the distributions of the cosines move through training."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from planescope.figures.canvas import Width, canvas, inches, our_style, styled
from planescope.figures.layers import (
    AWAY_BIASED,
    FRAME,
    RIDGE_PITCH,
    TOWARD_BIASED,
    UNBIASED,
    Look,
    cosine_axis,
    legend,
    look,
    mark_stages,
    name_rows,
    ridge,
)
from planescope.files.errors import CheckpointError, MissingDependencyError, OutputError, UsageError
from planescope.files.targets import FILMS, check_target
from planescope.files.writing import write
from planescope.measurement.measure import measure
from planescope.measurement.record import Measurement, filter_values
from planescope.training.run import Run

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.animation import AbstractMovieWriter
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

# Of GIF, which counts hundredths of a second and is not shown faster.
FASTEST = 50
DPI = 200
# Inches of all rows: a film is looked at as a whole.
TALLEST = 4.5
# Seconds that the last frame is held.
HELD = 2


def animate(
    run: Run | str | os.PathLike[str],
    path: str | os.PathLike[str],
    /,
    *,
    fps: int = 3,
    width: Width = "column",
    trust: bool | str | Collection[str] = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> None:
    """Write a film of the cosines of each layer through training, over the density of chance.

    A frame a snapshot; bins, scales and axes are the same in all of them: a row is as high as the
    highest peak it ever has. Biased layers are filled, in the colour of the side that their normals
    face. The last frame is held for two seconds.

    Parameters
    ----------
    run : Run or path
        A training run or its folder.
    path : path
        The suffix chooses .gif, or .mp4 by the program ffmpeg.
    fps : int
        Frames a second, from 1 to 50.
    width : "column", "page" or inches
        Of 200 dots each.
    trust
        As for a `Run`; of a path.
    progress : callable, optional
        Called with (snapshots read, snapshots in all, epoch).

    Raises
    ------
    UsageError
        If the suffix is none of these, or `fps` or `width` is invalid.
    CheckpointError
        If there is no such run, it has no snapshots, or a file of it is damaged.
    MissingDependencyError
        If ffmpeg is not installed.
    OutputError
        If the file cannot be written; nothing is left behind then.
    """
    import matplotlib as mpl
    from matplotlib.animation import FFMpegWriter, PillowWriter

    across = inches(width)
    mp4 = check_target(path, FILMS) == ".mp4"
    if fps not in range(1, FASTEST + 1):
        raise UsageError(f"fps {fps!r}: give frames a second, from 1 to {FASTEST}")
    if mp4 and not FFMpegWriter.isAvailable():
        raise MissingDependencyError(
            f"{path}: an .mp4 needs the program ffmpeg; install it, or write a .gif"
        )
    run = Run.open(run, trust=trust)
    measured = _measure(run, progress)
    frames, laws = _frames(run, measured)
    figure = _backdrop(list(measured.values()), laws, across, run.unit)

    def film(draft: Path) -> None:
        # The style is from the defaults on; where ffmpeg lies is no matter of style.
        ffmpeg = FFMpegWriter.bin_path()
        with our_style(), mpl.rc_context({"animation.ffmpeg_path": ffmpeg}):
            writer = FFMpegWriter(fps) if mp4 else PillowWriter(fps)
            _film(figure, [*frames, *[frames[-1]] * (HELD * fps)], writer, draft)

    try:
        write(path, dict.fromkeys(FILMS, film))
    except subprocess.CalledProcessError as exc:
        said = str(exc.stderr).strip().rpartition("\n")[2]
        raise OutputError(f"{path}: ffmpeg could not write it: {said}") from exc


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The parts that change from snapshot to snapshot: title, outline and look of each layer."""

    title: str
    outlines: tuple[Floats, ...]
    looks: tuple[Look, ...]


def _measure(run: Run, progress: Callable[[int, int, str], None] | None) -> dict[int, Measurement]:
    """Measure the snapshots as the run did: the files hold every filter, its table does not."""
    config, kinds = run.about, run.measurements["kind"].unique()
    snapshots, structure = run.snapshots, run.structure
    if not snapshots:
        raise CheckpointError(f"{run.path}: has no snapshots to animate")
    if not run.can_be_measured:
        raise UsageError(run.unknown)
    measured = {}
    for done, (epoch, path) in enumerate(snapshots.items()):
        if progress is not None:
            progress(done, len(snapshots), f"{run.unit} {epoch}")
        measured[epoch] = measure(path, view=config.view, kinds=kinds, network=structure)
    return measured


def _frames(run: Run, measured: Mapping[int, Measurement]) -> tuple[list[Frame], list[Floats]]:
    """Return the frames, and the density of chance of each layer."""
    accuracy = {
        row.epoch: f", validation accuracy {100 * row.val_accuracy:.1f} %"
        for row in run.metrics
        if row.val_accuracy is not None
    }
    shots = list(measured.values())
    outlines, laws = [], []
    for row, layer in enumerate(shots[0].layers):
        versions = [filter_values(shot, shot.layers[row]) for shot in shots]
        through_time, law = ridge(versions, layer.fan_in, row)
        outlines.append(through_time)
        laws.append(law)
    frames = [
        Frame(
            title=f"{run.unit} {epoch}{accuracy.get(epoch, '')}",
            outlines=tuple(layer[i] for layer in outlines),
            looks=tuple(map(look, shot.layers)),
        )
        for i, (epoch, shot) in enumerate(measured.items())
    ]
    return frames, laws


@styled
def _backdrop(
    shots: Sequence[Measurement], laws: Sequence[Floats], width: float, unit: str
) -> Figure:
    """Draw the parts that all frames share; the layout is that of the last."""
    from matplotlib.collections import LineCollection

    layers = shots[-1].layers
    pitch = min(RIDGE_PITCH, TALLEST / len(layers))
    figure = canvas(width, len(layers) * pitch + FRAME)
    axes = figure.add_subplot()
    for kind in (AWAY_BIASED, TOWARD_BIASED, UNBIASED):
        axes.fill(
            [], [], facecolor=kind.face, edgecolor=kind.color, label=kind.label, linewidth=0.3
        )
    lines = LineCollection(laws, colors="black", linewidths=0.8, label="chance, density")
    axes.add_collection(lines)
    cosine_axis(axes, [layer for shot in shots for layer in shot.layers])
    name_rows(axes, layers, pitch)
    mark_stages(axes, layers, pitch)
    legend(figure, width, unit)
    return figure


def _film(figure: Figure, frames: Sequence[Frame], writer: AbstractMovieWriter, path: Path) -> None:
    from matplotlib.collections import PolyCollection

    (axes,), (head,) = figure.axes, figure.legends
    ridges = PolyCollection([], linewidths=0.3)
    axes.add_collection(ridges)
    with writer.saving(figure, path, DPI):
        for frame in frames:
            ridges.set_verts(frame.outlines)
            ridges.set_facecolor([kind.face for kind in frame.looks])
            ridges.set_edgecolor([kind.color for kind in frame.looks])
            head.get_title().set_text(frame.title)
            writer.grab_frame()
