"""``planescope measure FILE --json`` as a whole process, against reading its bytes with NumPy."""

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
with open(sys.argv[1], "rb") as file:
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
FORMATS = ("safetensors", "pt", "stream.pt", "npz", "onnx", "weights.h5", "keras")


def convolutions(path: Path) -> list[str]:
    """Where the convolutions of a safetensors file lie: offset, filters, fan-in."""
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
    print(f"measure: a 574 MB VGG19 by format, whole process ({machine()})")
    table(costs, "floor", {suffix: BOUNDS.get(suffix, OTHER_BOUND) for suffix in FORMATS})
