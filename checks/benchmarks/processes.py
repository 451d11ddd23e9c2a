"""Whole processes, timed in turn: seconds and peak memory, the median of several rounds."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# A child's peak memory counts what its parent held when it was started, so a small process, not
# this one, starts it.
_LAUNCHER = """
import json, os, sys, time
# An installed package has its modules compiled; the round that is not counted does so here.
environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
began = time.perf_counter()
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], environment, file_actions=[
    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)])
_, status, usage = os.wait4(pid, 0)
seconds = time.perf_counter() - began
peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
processor = usage.ru_utime + usage.ru_stime
print(json.dumps([seconds, processor, peak, os.waitstatus_to_exitcode(status)]))
"""


@dataclass(frozen=True)
class Cost:
    """Medians over the rounds, and the spread of the seconds.

    `processor` are those of all threads, which other work on the machine lengthens by less.
    """

    seconds: float
    fastest: float
    slowest: float
    processor: float
    peak_bytes: int


def run(command: Sequence[str]) -> tuple[float, float, int]:
    """Run one command to its end; wall seconds, processor seconds and peak bytes."""
    launched = subprocess.run(
        [sys.executable, "-S", "-c", _LAUNCHER, *command], capture_output=True, check=True
    )
    seconds, processor, peak, status = json.loads(launched.stdout)
    if status:
        raise RuntimeError(f"{command} ended with {status}: {launched.stderr.decode()}")
    return seconds, processor, peak


def compare(commands: Mapping[str, Sequence[str]], *, rounds: int = 7) -> dict[str, Cost]:
    """Time commands in turn, A B C A B C ..., after one round that is not counted."""
    runs: dict[str, list[tuple[float, float, int]]] = {name: [] for name in commands}
    for count in range(rounds + 1):
        for name, command in commands.items():
            cost = run(command)
            if count:
                runs[name].append(cost)
    return {name: median(costs) for name, costs in runs.items()}


def median(costs: list[tuple[float, float, int]]) -> Cost:
    """Return the medians of what `run` gave."""
    seconds, processor, peaks = zip(*costs, strict=True)
    return Cost(
        statistics.median(seconds), min(seconds), max(seconds),
        statistics.median(processor), int(statistics.median(peaks)),
    )  # fmt: skip


def machine() -> str:
    """Name the machine that the figures were made on."""
    import os

    import numpy as np

    return (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"NumPy {np.__version__}"
    )


def table(costs: Mapping[str, Cost], floor: str, bounds: Mapping[str, float]) -> None:
    """Print each cost with its ratio to the floor's, and the bound where there is one."""
    print(
        f"{'':32} {'median':>8} {'range':>15} {'peak':>9} {'ratio':>6} {'bound':>6} "
        f"{'processor':>9} {'ratio':>6}"
    )
    for name, cost in costs.items():
        ratio = cost.seconds / costs[floor].seconds
        bound = f"{bounds[name]:.1f}" if name in bounds else ""
        print(
            f"{name:32} {cost.seconds:7.3f}s {cost.fastest:6.3f}-{cost.slowest:6.3f}s "
            f"{cost.peak_bytes / 2**20:6.0f}MiB {ratio:6.2f} {bound:>6} "
            f"{cost.processor:8.3f}s {cost.processor / costs[floor].processor:6.2f}"
        )
