"""Run all benchmarks: ``make bench``; or some: ``python -m checks.benchmarks measure_files``."""

from __future__ import annotations

import importlib
import sys

BENCHMARKS = (
    "measure_files", "measure_modules", "train_epoch", "tracker", "report", "resets", "own_data",
    "study", "peers", "worth",
)  # fmt: skip

for name in sys.argv[1:] or BENCHMARKS:
    importlib.import_module(f"checks.benchmarks.{name}").main()
