"""The cost of a study beyond its runs; two workers against one; its table; its plan.

The ratio of two workers to one is that of a machine of which nothing else uses the cores.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from checks.benchmarks.processes import machine, run

if TYPE_CHECKING:
    from planescope.study.folder import Study

OVERHEAD_S, RATIO, TABLE_S, TABLE_BYTES, PLAN_S = 0.100, 0.55, 5.0, 1 << 30, 10.0

TINY = """
base: {examples: 64, epochs: 1, batch_size: 64, width: 0.2, snapshots_until: 0, threads: 1,
  accelerator: cpu}
make: [train, measure]
"""
EQUAL = """
base: {epochs: 4, snapshots_until: 0, threads: 1, accelerator: cpu}
make: [train]
seeds: 8
"""
# One field of 2 values, one of 5, one of 10, 1,000 seeds.
PLAN = """
grid:
  network: [lenet, mlp]
  classes: [2, 3, 5, 7, 10]
  learning_rate: [0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 5.0e-4, 2.0e-4, 1.0e-4]
seeds: 1000
when: {match: {network: mlp}, set: {width: 0.25}}
"""
RUNS, LAYERS, EPOCHS = 1000, 20, 50

# All of it, then what one asks first: how the bias went, layer by layer.
SUMMARY = """
import sys
import planescope as ps
table = ps.Study(sys.argv[1]).table()
assert len(table) == 1_000_000
means = table.groupby(["layer", "epoch"], observed=True)[["negative_mass", "agreement"]].mean()
assert len(means) == 1000
"""


def _make(folder: Path, name: str, text: str, workers: int) -> tuple[float, Study]:
    """Seconds that making a study took, and what was made."""
    from planescope.study.work.make import make_study

    file = folder / f"{name}.yaml"
    file.write_text(text, encoding="utf-8")
    began = time.perf_counter()
    study = make_study(file, folder / name, workers=workers)
    seconds = time.perf_counter() - began
    assert not any(study.record(spec.name).error for spec in study.specs)
    return seconds, study


def _overhead(folder: Path) -> None:
    """Everything from the end of one run to the end of the next but its training."""
    seconds, study = _make(folder, "tiny", f"{TINY}seeds: 41\n", 1)
    # Its record is the last thing that a run writes.
    ended = sorted(
        ((study.path / "runs" / spec.name / "study.json").stat().st_mtime, spec.name)
        for spec in study.specs
    )
    made = {name: study.record(name).made for _, name in ended}
    beyond = [
        end - before - made[name]["train"] for (before, _), (end, name) in itertools.pairwise(ended)
    ]
    rows = statistics.mean(made[name]["measure"] for _, name in ended[1:])
    around = seconds - (ended[-1][0] - ended[0][0]) - made[ended[0][1]]["train"]
    print(
        f"{'overhead of a run':34} {1000 * statistics.mean(beyond):7.1f} ms  bound "
        f"{1000 * OVERHEAD_S:.0f} ms; {1000 * min(beyond):.1f} to {1000 * max(beyond):.1f} ms, "
        f"{1000 * rows:.1f} ms of it for its rows of the table; {around:.1f} s a study"
    )


def _workers(folder: Path) -> None:
    """Two workers against one, and what the time goes into: runs, and all that is no run."""
    seconds, trained = [], []
    for workers in (1, 2):
        spent, study = _make(folder, f"equal-{workers}", EQUAL, workers)
        seconds.append(spent)
        trained.append([study.record(spec.name).made["train"] for spec in study.specs])
    each = [statistics.mean(runs) for runs in trained]
    around = [
        spent - sum(runs) / workers
        for workers, spent, runs in zip((1, 2), seconds, trained, strict=True)
    ]
    ratio = seconds[1] / seconds[0]
    print(
        f"{'8 LeNet runs, 2 workers to 1':34} {ratio:7.2f}     bound {RATIO:.2f}; "
        f"{seconds[0]:.1f} s with one, {seconds[1]:.1f} s with two; a run alone {each[0]:.2f} s, "
        f"beside another {each[1]:.2f} s ({each[1] / each[0]:.2f} times); what is no run "
        f"{around[0]:.1f} s and {around[1]:.1f} s"
    )


def _table(folder: Path) -> None:
    import numpy as np
    import pyarrow as pa

    from planescope.study.folder import Study
    from planescope.study.plan import read_plan
    from planescope.study.table import save_part, table_schema

    file = folder / "table.yaml"
    file.write_text(f"seeds: {RUNS}\n", encoding="utf-8")
    study = Study.create(folder / "table", read_plan(file))
    study.save_plan()
    rng = np.random.default_rng(0)
    rows = LAYERS * EPOCHS
    for spec in study.specs:
        columns = {}
        for field in table_schema():
            if pa.types.is_floating(field.type):
                columns[field.name] = rng.random(rows)
            elif pa.types.is_dictionary(field.type):
                columns[field.name] = ["text"] * rows
            else:
                columns[field.name] = np.ones(rows, dtype=bool)
        columns["run"] = [spec.name] * rows
        columns["layer"] = [f"features.{n % LAYERS}" for n in range(rows)]
        columns["epoch"] = np.arange(rows) // LAYERS
        save_part(columns, study.table_folder / f"{spec.name}.parquet")
    seconds, _, peak = run([sys.executable, "-c", SUMMARY, str(study.path)])
    print(
        f"{'table of 1,000,000 rows':34} {seconds:7.1f} s   bound {TABLE_S:.0f} s; peak "
        f"{peak / 2**20:.0f} MiB, bound {TABLE_BYTES / 2**20:.0f} MiB (whole process)"
    )


def _plan(folder: Path) -> None:
    from planescope.study.plan import read_plan

    file = folder / "plan.yaml"
    file.write_text(PLAN, encoding="utf-8")
    began = time.perf_counter()
    specs = read_plan(file).specs
    seconds = time.perf_counter() - began
    assert len({spec.name for spec in specs}) == 100_000
    print(f"{'plan of 100,000 runs':34} {seconds:7.1f} s   bound {PLAN_S:.0f} s")


def main() -> None:
    print(f"study ({machine()})")
    with tempfile.TemporaryDirectory() as folder:
        for part in (_plan, _table, _overhead, _workers):
            part(Path(folder))
