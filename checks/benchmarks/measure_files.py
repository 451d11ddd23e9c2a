"""``planescope measure FILE --json`` as a whole process, against reading its bytes with NumPy.

And a folder of 100 checkpoints in one command, less what a single one costs: their bytes' floor is
that of 100 files read in one process, less that of one.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from checks.benchmarks.processes import compare, machine, table

# Reads just the convolutions' bytes, takes sums and norms: what no measurement can do without.
FLOOR = """
import sys
import numpy as np
for path in sys.argv[1].split("|"):
    with open(path, "rb") as file:
        for line in sys.argv[2:]:
            offset, filters, fan_in = map(int, line.split(","))
            rows = np.fromfile(file, np.float32, filters * fan_in, offset=offset - file.tell())
            rows = rows.reshape(filters, fan_in)
            print(rows.sum(1).mean(), np.sqrt(np.einsum("ij,ij->i", rows, rows)).mean())
"""

# For formats that find their bytes at once, and for those whose library must be imported first.
BOUNDS = {
    "safetensors": 1.7, "pt": 1.7, "stream.pt": 1.7, "onnx": 2.0, "keras": 2.5, "weights.h5": 2.5,
}  # fmt: skip
OTHER_BOUND = 3.0
FILES, MANY_BOUND = 100, 1.2
FORMATS = ("safetensors", "pt", "stream.pt", "npz", "onnx", "weights.h5", "keras")


def convolutions(path: Path) -> list[str]:
    """Find the convolutions of a safetensors file: offset, filters, fan-in."""
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(length))
    found = []
    for tensor in header.values():
        if len(tensor.get("shape", ())) == 4:
            filters, *rest = tensor["shape"]
            offset = 8 + length + tensor["data_offsets"][0]
            found.append((offset, filters, rest[0] * rest[1] * rest[2]))
    return [",".join(map(str, entry)) for entry in sorted(found)]


def _many(folder: Path, reference: Path, planescope: str) -> str:
    """Return the line of a folder of checkpoints, which are one file under many names."""
    many = folder / "many"
    many.mkdir()
    paths = [many / f"{number:03d}.safetensors" for number in range(FILES)]
    for path in paths:
        path.hardlink_to(reference)
    where = convolutions(reference)
    floor = [sys.executable, "-c", FLOOR]
    costs = compare(
        {
            "one": [planescope, "measure", str(reference), "--json"],
            "many": [planescope, "measure", str(many), "--each", "--json"],
            "floor of one": [*floor, str(reference), *where],
            "floor of many": [*floor, "|".join(map(str, paths)), *where],
        },
        rounds=3,
    )
    ratios = [
        (getattr(costs["many"], clock) - getattr(costs["one"], clock))
        / (getattr(costs["floor of many"], clock) - getattr(costs["floor of one"], clock))
        for clock in ("seconds", "processor")
    ]
    return (
        f"{FILES} checkpoints in one command over their bytes' floor: {ratios[0]:.2f} "
        f"(bound {MANY_BOUND}), processor time {ratios[1]:.2f}; "
        f"{costs['many'].peak_bytes / 2**20:.0f} MiB"
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-m", "checks.benchmarks.vgg19_files", name], check=True)
        reference = folder / "vgg19.safetensors"
        planescope = str(Path(sys.executable).with_name("planescope"))
        commands = {
            "floor": [sys.executable, "-c", FLOOR, str(reference), *convolutions(reference)]
        }
        for suffix in FORMATS:
            commands[suffix] = [planescope, "measure", str(folder / f"vgg19.{suffix}"), "--json"]
        costs = compare(commands)
        many = _many(folder, reference, planescope)
    print(f"measure: a 574 MB VGG19 by format, whole process ({machine()})")
    print(many)
    table(costs, "floor", {suffix: BOUNDS.get(suffix, OTHER_BOUND) for suffix in FORMATS})
