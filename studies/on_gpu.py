"""Make a study on a machine with a GPU, and keep its tables; stop in time where time is short.

    python studies/on_gpu.py studies/paper-figure-full.yaml --keep studies/results/paper-figure-full

Small batches leave a large GPU waiting for the host, so that several runs share each GPU. What is
finished when the time is up is kept; the same command goes on with the rest.
"""

from __future__ import annotations

import argparse
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

from planescope.study.folder import Study
from planescope.study.plan import read_plan
from planescope.study.work import cluster

# Cores that a run keeps busy: one launches its steps, one prepares what is next.
CORES = 2
# Seconds that a study has to end in once it is told to.
GRACE = 30.0


def main() -> int:
    """Make, keep, and say how far it came."""
    given = _arguments()
    if not given.without_gpu and not cluster.gpus():
        print(
            f"{given.file}: nvidia-smi shows no GPU here, which this is for; --without-gpu goes on "
            "without one, where the study does not ask for it",
            file=sys.stderr,
        )
        return 2
    out = given.out or Path(given.file.stem)
    runs = len(read_plan(given.file).specs)
    workers = given.workers or max(1, min(runs, cluster.cores() // CORES))
    began = time.monotonic()
    _make(given.file, out, workers, 60.0 * given.minutes)
    if not (out / "study.yaml").is_file():
        return 1  # the study has said why
    runpy.run_path(str(Path(__file__).with_name("keep.py")))["keep"](out, given.keep)
    done = len(Study(given.keep).runs)
    print(
        f"{done} of {runs} runs made in {(time.monotonic() - began) / 60:.1f} minutes, "
        f"{workers} at once; their tables are in {given.keep}"
        + ("" if done == runs else "; the same command goes on with the rest")
    )
    return 0 if done == runs else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path, help="YAML of the study")
    parser.add_argument("--keep", type=Path, required=True, help="where the tables go")
    parser.add_argument("--out", type=Path, help="folder of the study; by default the file's name")
    parser.add_argument("--minutes", type=float, default=11.0, help="stop after so long (11)")
    parser.add_argument("--workers", type=int, help="runs at once; by default one for two cores")
    parser.add_argument("--without-gpu", action="store_true", help="go on where there is no GPU")
    return parser.parse_args()


def _make(file: Path, out: Path, workers: int, seconds: float) -> None:
    """Make a study by its command, which is interrupted when the time is up."""
    command = [sys.executable, "-m", "planescope", "study", str(file), "--out", str(out)]
    study = subprocess.Popen([*command, "--workers", str(workers)])  # noqa: S603
    try:
        study.wait(seconds)
    except subprocess.TimeoutExpired:
        study.send_signal(signal.SIGINT)
        try:
            study.wait(GRACE)
        except subprocess.TimeoutExpired:
            study.kill()


if __name__ == "__main__":
    sys.exit(main())
