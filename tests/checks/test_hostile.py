"""An attacker's faults before every command: a short run, and that the harness sees each of them.

The long run is ``python -m checks.reliability hostile``; its figures are in docs/reliability.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from checks.fuzz import trees
from checks.reliability import hostile
from checks.reliability.odd import Ended
from checks.reliability.starting import Place
from planescope.files import folders

pytestmark = pytest.mark.skipif(os.name == "nt", reason="forks and links as POSIX has them")


def test_a_short_run_finds_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "checks.reliability", "hostile", "--quick"],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(hostile.SWEEPS)
    assert all(line.endswith(" cases, 0 fell") for line in lines)


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        pytest.param("ran", "", "code ran", id="code"),
        pytest.param("stdout", "a\x1b[2J", "standard output holds '\\x1b'", id="terminal"),
        pytest.param("stderr", "a\u202e", "stderr holds '\\u202e'", id="direction"),
        pytest.param("work/a.html", "<p>\x07", "a.html holds '\\x07'", id="page"),
        pytest.param("work/a.csv", "a,b\n1,=HYPERLINK(1)", "a.csv holds a formula", id="table"),
        pytest.param("work/drawn/a.csv", "=HYPERLINK(1)", "a.csv holds a formula", id="figures"),
    ],
)
def test_a_planted_fault_is_seen(tmp_path: Path, file: str, text: str, problem: str) -> None:
    (tmp_path / "work" / "drawn").mkdir(parents=True)
    for stream in ("stdout", "stderr"):
        (tmp_path / stream).touch()
    ended = Ended(status=0, complained="")
    assert list(hostile.found_in(Place(tmp_path), ended)) == []
    (tmp_path / file).write_text(text, encoding="utf-8")
    assert list(hostile.found_in(Place(tmp_path), ended)) == [problem]


def test_the_fuzzer_sees_a_link_that_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ((_, files),) = trees.link_seeds()
    for case in range(3):
        trees_fall(tmp_path, case, files)
    monkeypatch.setattr(folders, "_is_link", lambda _: False)
    assert any(trees_fall(tmp_path, case, files) for case in range(3, 30))


def trees_fall(folder: Path, case: int, files: dict[str, bytes]) -> bool:
    try:
        trees.links(folder, case, files)
    except trees.PlanescopeError:
        return False
    except AssertionError as exc:
        assert "outside of" in str(exc)  # noqa: PT017
        return True
    return False
