"""What a killed process left is removed by the next one, and never what a living one works in."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from planescope.files.drafts import LOCK, draft_prefix, scratch
from planescope.files.writing import replacing

WRITER = """
import sys
from pathlib import Path
from planescope.files.writing import replacing
with replacing(sys.argv[1]) as draft:
    draft.write_text("half")
    (draft.parent / ".tmpLibrary").write_text("a library's own draft")
    print(flush=True)
    sys.stdin.read()
"""
SCRATCH = """
import sys, tempfile
tempfile.tempdir = sys.argv[1]
from planescope.files.drafts import scratch
with scratch() as folder:
    (folder / "draw").write_text("half")
    print(flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def working(code: str, target: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the middle of its work; it ends it when its input is closed."""
    with subprocess.Popen(
        [sys.executable, "-c", code, target], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        yield process


def killed(code: str, target: Path) -> None:
    with working(code, target) as process:
        process.kill()


def write(target: Path) -> None:
    with replacing(target) as draft:
        draft.write_text("whole")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_killed_writer_leaves_the_old_file_and_the_next_one_removes_its_draft(tmp_path):
    target = tmp_path / "a.json"
    target.write_text("old")
    killed(WRITER, target)
    assert target.read_text() == "old"
    (left,) = tmp_path.glob(f"{draft_prefix(target)}*")
    assert names(left) == [LOCK, ".tmpLibrary", "a.json"]
    write(target)
    assert names(tmp_path) == ["a.json"]
    assert target.read_text() == "whole"


def test_a_draft_of_another_file_is_left_alone(tmp_path):
    killed(WRITER, tmp_path / "a.json")
    write(tmp_path / "b.json")
    assert len(names(tmp_path)) == 2


def test_two_living_writers_do_not_disturb_each_other(tmp_path):
    target = tmp_path / "a.json"
    with working(WRITER, target) as other:
        write(target)
        assert target.read_text() == "whole"
        _, talk = other.communicate()
        assert (other.returncode, talk) == (0, None)
    assert target.read_text() == "half"  # that one was the last
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    "left",
    [
        pytest.param([], id="killed-before-the-lock"),
        pytest.param([LOCK], id="killed-before-writing-or-while-it-was-removed"),
        pytest.param([LOCK, "a.json", ".tmpLibrary"], id="killed-while-writing"),
    ],
)
def test_whatever_the_moment_nothing_stays(tmp_path, left):
    target = tmp_path / "a.json"
    folder = tmp_path / f"{draft_prefix(target)}a_b0c1d2"
    folder.mkdir()
    for name in left:
        (folder / name).write_text("")
    write(target)
    assert names(tmp_path) == ["a.json"]


def test_a_link_of_such_a_name_is_not_followed(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / LOCK).write_text("")
    target = tmp_path / "a.json"
    (tmp_path / f"{draft_prefix(target)}a_b0c1d2").symlink_to(tmp_path / "kept")
    write(target)
    assert names(tmp_path / "kept") == [LOCK]


@pytest.mark.parametrize(
    ("name", "holds"),
    [
        pytest.param("{draft}a_b0c1d2", ["a.json"], id="without-our-lock"),
        pytest.param("{draft}a_b0c1d2", [".lock", "config.yaml"], id="a-run"),
        pytest.param("{draft}mine", [LOCK, "a.json"], id="another-name"),
        pytest.param("planescope-scratch-", [LOCK, "a"], id="no-name"),
        pytest.param("planescope-lenet_mlp", [".lock", "config.yaml"], id="a-run-like-scratch"),
        pytest.param("planescope-scratch-of-mine", [LOCK, "a"], id="longer-than-scratch"),
    ],
)
def test_a_folder_of_the_users_own_is_never_removed(tmp_path, monkeypatch, name, holds):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    target = tmp_path / "a.json"
    folder = tmp_path / name.format(draft=draft_prefix(target))
    folder.mkdir()
    for held in holds:
        (folder / held).write_text("")
    write(target)
    with scratch():
        pass
    assert names(folder) == sorted(holds)


def test_scratch_of_a_killed_process_is_removed_and_that_of_a_living_one_stays(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    killed(SCRATCH, tmp_path)
    (left,) = tmp_path.iterdir()
    assert names(left) == [LOCK, "draw"]
    with working(SCRATCH, tmp_path) as other, scratch() as mine:
        assert not left.exists()
        assert len(names(tmp_path)) == 2
        assert names(mine) == [LOCK]
        other.communicate()
        assert names(tmp_path) == [mine.name]
    assert names(tmp_path) == []
