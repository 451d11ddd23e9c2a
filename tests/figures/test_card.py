"""A section for a model card: the table's numbers, a picture beside it, no markup of others."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

import planescope as ps
from planescope.figures import claims
from planescope.figures.card import card
from planescope.hyperplanes.layer import Skipped

LENET = Path(__file__).parents[1] / "parity/lenet-epoch-12.tar"


@pytest.fixture(scope="module")
def measured():
    return ps.measure(LENET, network="lenet")


def test_the_command_writes_a_table_and_a_picture(tmp_path):
    target = tmp_path / "our card.md"
    subprocess.run(
        [sys.executable, "-m", "planescope", "measure", LENET, "--card", target], check=True,
        capture_output=True,
    )  # fmt: skip
    text = target.read_text(encoding="utf-8")
    assert "](our%20card.png)" in text
    assert (tmp_path / "our card.png").read_bytes().startswith(b"\x89PNG")
    rows = [line for line in text.splitlines() if line.startswith("| features")]
    assert rows[0] == "| features.0 | 6 | 9 | 1.000 | -0.3904 | 3.1e-02 | away |"
    assert len(rows) == 6


def test_every_row_has_as_many_cells_as_the_head(measured):
    rows = [line for line in card(measured, "a.png").splitlines() if line.startswith("|")]
    assert len({row.count("|") - row.count(r"\|") for row in rows}) == 1


def test_a_name_in_a_file_marks_nothing_up(measured):
    evil = "a|b](http://x) <script>`x`</script>\n# head \x1b[2J \u202e"
    layers = (dataclasses.replace(measured.layers[0], name=evil), *measured.layers[1:])
    text = card(
        dataclasses.replace(
            measured, layers=layers, skipped=(Skipped(name=evil, reason=evil),), notes=(evil,)
        ),
        "a.png",
    )
    plain = card(measured, "a.png")
    assert "<script" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert text.count("](") == plain.count("](")
    assert text.count("\n#") == plain.count("\n#")
    assert len([line for line in text.splitlines() if line.startswith("|")]) == len(
        [line for line in plain.splitlines() if line.startswith("|")]
    )


def test_another_ending_is_refused_before_anything_is_read(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "planescope", "measure", "absent.pt", "--card", tmp_path / "a.txt"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.endswith("a.txt: the name must end in .md\n")


def test_what_a_study_names_marks_nothing_up_in_the_answers_to_the_claims():
    shown = claims._as_text("<img src=x>|a\x1b[2J](b)")
    assert shown == r"&lt;img src=x&gt;\|a\\x1b\[2J\](b)"
    plain = "lenet, against initialised: +0.42 (95 % interval -0.1 to 0.9, q = 4e-05)"
    assert claims._as_text(plain) == plain
