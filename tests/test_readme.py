"""The README's commands do what it says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.M | re.S)


@pytest.fixture
def clone(tmp_path):
    """A folder that looks like a clone, in which the commands may write."""
    for folder in ("tests/parity", "studies"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    return tmp_path


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_shell_commands_run(clone):
    (block,) = blocks("sh")
    lines = block.splitlines()
    assert len(lines) == 8
    for line in lines:
        program, *args = shlex.split(line, comments=True)
        assert program == "planescope"
        run([sys.executable, "-m", "planescope", *args], clone)
    assert {"lenet.pdf", "lenet.csv", "run", "resets.pdf", "report.html"} <= {
        path.name for path in clone.iterdir()
    }


def test_the_python_lines_run(clone):
    measuring, tracking = blocks("python")
    assert "6 of 6 layers are biased" in run([sys.executable, "-c", measuring], clone)
    assert (clone / "lenet.pdf").exists()
    assert run([sys.executable, "-c", tracking], clone).count("\n") == 1 + 3 * 2


@pytest.mark.parametrize("block", blocks("text"), ids=["measure", "reset"])
def test_the_shown_table_is_what_is_printed(clone, block):
    command, _, shown = block.partition("\n")
    printed = run([sys.executable, "-m", *shlex.split(command.removeprefix("$ "))], clone)
    trimmed = "\n".join(line.rstrip() for line in printed.splitlines())
    assert shown.rstrip() == trimmed.rstrip()


def test_what_it_links_to_is_there():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
