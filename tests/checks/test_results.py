"""Figures that the program itself tells of the tests are those of the tables that are kept."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("torch")

from planescope.criticality.sensitivity.job import EXPECTED

RESULTS = Path(__file__).parents[2] / "studies" / "results"


def test_the_note_on_expected_losses_tells_what_the_tests_found():
    known, new, cost = (
        pd.read_csv(RESULTS / f"{name}.csv")
        for name in ("critical-known", "critical-test", "sensitivity")
    )
    cost = cost[cost["network"] != "resnet20"]  # for development
    is_own = cost["network"].str.startswith("vgg11")
    held = []
    for table in (known, new, cost[is_own], cost[~is_own]):
        if "critical" in table:  # elsewhere the network has no loss
            table = table[table["critical"].isin(("yes", "no", "undecided"))]
        within = (table["expected_lower"] <= table["loss"]) & (
            table["loss"] <= table["expected_upper"]
        )
        held.append(round(100 * within.mean()))
    low, high = map(int, re.search(r"(\d+) to (\d+) %", EXPECTED).groups())
    assert (low, high) == (min(held), max(held))
