"""Names from files reach a terminal, a spreadsheet and a page as text, and as nothing else."""

from __future__ import annotations

import contextlib
import csv
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import planescope as ps
from planescope.cli.printing import console
from planescope.files.errors import PlanescopeError, printable
from planescope.files.writing import as_cell, from_cell, write_csv

# The window's title, the screen, C1 of one byte, NUL, bidi, line separators, a second message.
SIGNS = {
    "title": "\x1b]0;owned\x07",
    "clear": "\x1b[2J",
    "c1": "\x9b2J",
    "bidi": "\u202e",
    "isolate": "\u2066",
    "separator": "\u2028",
    "line": "\nplanescope: all is well",
    "return": "\rhidden",
    "delete": "\x7f",
}


def on_a_terminal(arguments: list[str], folder: Path) -> str:
    """What a command writes to a terminal of its own."""
    pty = pytest.importorskip("pty")
    child, master = pty.fork()
    if child == 0:  # pragma: no cover
        os.chdir(folder)
        os.environ["TERM"] = "xterm-256color"
        os.execv(sys.executable, [sys.executable, "-m", "planescope", *arguments])
    written = b""
    while True:
        try:
            part = os.read(master, 1 << 16)
        except OSError:  # how Linux says that the other side is gone
            break
        if not part:
            break
        written += part
    os.close(master)
    os.waitpid(child, 0)
    return written.decode("utf-8", "replace")


# What Rich itself writes: colours, and the cursor of its progress.
OURS = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[hl]|\x1b\[[0-9]*[AK]|\x1b\[1?[AG]|\r\n")


@pytest.mark.parametrize("sign", SIGNS.values(), ids=SIGNS)
def test_names_of_layers_and_of_files_are_text_on_a_terminal(tmp_path: Path, sign: str) -> None:
    name = f"conv{sign}end"
    folder = tmp_path / f"folder{sign}"
    folder.mkdir()
    file = folder / "net.npz"
    weights = np.random.default_rng(0).normal(size=(8, 3, 3, 3))
    np.savez(file, **{f"{name}.weight": weights, "other.weight": weights})
    shown = on_a_terminal(["measure", str(file)], tmp_path)
    assert "conv" in shown
    assert "folder" in shown
    left = OURS.sub("\n", shown)
    for found in left.split("\n"):
        assert found.isprintable(), repr(found)
    assert "all is well" not in [line[12:] for line in left.split("\n")]


@pytest.mark.parametrize("command", ["predict", "status", "report"])
def test_sentences_too(tmp_path: Path, command: str) -> None:
    shown = on_a_terminal([command, f"no\x1b[2J\u202e{command}\nplanescope: fine"], tmp_path)
    assert "\\x1b[2J\\u202e" in shown
    assert all(line.isprintable() for line in OURS.sub("\n", shown).split("\n"))


@given(st.text())
def test_what_is_printed_is_one_printable_line(text: str) -> None:
    assert printable(text).isprintable()
    assert printable(printable(text)) == printable(text)
    assert (printable(text) == text) is text.isprintable()
    assert str(PlanescopeError(text)).isprintable()


@given(st.text(alphabet="'=+-@\t\r\n＝＋－＠a1", max_size=6) | st.text())
def test_a_cell_is_no_formula_and_is_read_back(text: str) -> None:
    cell = as_cell(text)
    assert from_cell(cell) == text
    assert cell[:1] not in tuple("=+-@\t\r\n＝＋－＠")


def test_numbers_stay_numbers_in_tables(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "a.csv", {"name": ["=1+1", "-x", "'=x", "a"], "@value": [-1.5, -2, 0, None]}
    )
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["name", "'@value"], ["'=1+1", "-1.5"], ["'-x", "-2"], ["''=x", "0"], ["a", ""],
    ]  # fmt: skip


def test_measure_writes_no_formula(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(8, 3, 3, 3))
    name = '=HYPERLINK("http://a","b")'
    ps.measure({f"{name}.weight": weights}).save(tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [from_cell(row["layer"]) for row in rows] == [name]
    assert rows[0]["layer"].startswith("'=")


def test_a_table_of_a_run_reads_names_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from report_runs import make_run

    import planescope.training.run as runs

    monkeypatch.setattr(runs, "find_spec", lambda _: None)  # no pyarrow
    run = make_run(tmp_path / "run", names=("=a", "-b", "'@c"))
    assert (run.path / "measurements.csv").is_file()
    assert [layer.name for layer in run.measured_layers[0]] == ["=a", "-b", "'@c"]


def test_a_terminal_that_was_closed_ends_no_command(monkeypatch):
    """A bar that is drawn there must not end a training, nor cost a signal its status."""
    ours, theirs = os.openpty()
    stream = os.fdopen(theirs, "w", encoding="utf-8")
    monkeypatch.setattr(sys, "stderr", stream)
    bar = console(stderr=True)
    os.close(ours)
    with pytest.raises(OSError):  # noqa: PT011
        os.write(theirs, b"x")
    bar.print("one of three")
    with contextlib.suppress(OSError):  # what it kept to write
        stream.close()
