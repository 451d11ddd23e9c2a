"""Several processes at once: on one file, and training one network."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from checks.reliability.together import measures

pytestmark = pytest.mark.skipif(os.name == "nt", reason="forks as POSIX has them")


@pytest.mark.slow
def test_many_measure_one_file_into_one_target_and_each_gives_the_same(tmp_path):
    outcome = measures(tmp_path, count=16)
    assert outcome.problems == []
    assert "16 processes" in str(outcome)
    assert [path.name for path in (tmp_path / "work").iterdir() if path.name.startswith(".")] == []


@pytest.mark.slow
def test_a_tracker_in_four_processes_gives_what_it_gives_in_one():
    # In a process of its own, which forks them before it has threads.
    done = subprocess.run(
        [sys.executable, "-m", "checks.reliability", "together", "trackers"],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a tracker in 4 processes over gloo, 7 updates" in done.stdout
    assert done.stdout.endswith("; nothing lost\n")
