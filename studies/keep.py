"""Copy a study without its weights: what claims and figures are made from again.

    python studies/keep.py STUDY studies/results/NAME

A finished run keeps its config, environment, metrics and measurements, and counts as made; runs
that are not finished are left out.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from planescope import Run
from planescope.training.run import State

KEPT = (
    "config.yaml", "environment.json", "metrics.csv", "measurements.parquet", "resets.json",
    "state.json", "study.json",
)  # fmt: skip


def keep(study: Path, out: Path) -> None:
    """Copy the tables of a study's finished runs."""
    (out / "table").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(study / "study.yaml", out / "study.yaml")
    for folder in sorted((study / "runs").iterdir()):
        part = study / "table" / f"{folder.name}.parquet"
        if Run(folder).status.state is not State.FINISHED or not part.is_file():
            continue
        kept = out / "runs" / folder.name
        kept.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, kept / name)
        shutil.copyfile(part, out / "table" / part.name)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    keep(Path(sys.argv[1]), Path(sys.argv[2]))
