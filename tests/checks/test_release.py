"""A version is released where the package, the changelog and the citation name the same one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from checks.release import faults, faults_of_git
from planescope import __version__
from planescope.cli.about import about

ROOT = Path(__file__).parents[2]
FILES = ("src/planescope/__init__.py", "CHANGELOG.md", "CITATION.cff")


@pytest.fixture
def sources(tmp_path):
    """Our own files, made ready for a release of the version that they have."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    change(
        tmp_path, "CHANGELOG.md", "## Unreleased", f"## Unreleased\n\n## {__version__} - 2026-01-02"
    )
    change(tmp_path, "CITATION.cff", "type: software", "type: software\ndate-released: 2026-01-02")
    return tmp_path


def change(root, name, old, new):
    text = (root / name).read_text(encoding="utf-8")
    assert old in text
    (root / name).write_text(text.replace(old, new, 1), encoding="utf-8")


def test_files_that_agree_are_released(sources):
    assert list(faults(__version__, sources)) == []


def test_our_own_files_wait_only_for_the_date():
    """What is developed differs from a release by the changelog's heading and no more."""
    assert {each.partition(":")[0] for each in faults(__version__)} <= {
        "CHANGELOG.md", "CITATION.cff",
    }  # fmt: skip
    assert not any("version is" in each for each in faults(__version__))


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("src/planescope/__init__.py", f'"{__version__}"', '"9.9.9"', "__version__ is 9.9.9"),
        ("CITATION.cff", f"version: {__version__}", "version: 9.9.9", "version is 9.9.9"),
        ("CITATION.cff", "2026-01-02", "2026-01-03", "date-released is 2026-01-03"),
        ("CHANGELOG.md", "2026-01-02", "9999-01-02", "no day that has come"),
        ("CHANGELOG.md", "2026-01-02", "2026-13-02", "no day that has come"),
        ("CHANGELOG.md", f"## {__version__} - ", "## 9.9.9 - ", "has no heading"),
        ("CHANGELOG.md", "## Unreleased\n", "## Unreleased\n\n- one more\n", "are left"),
    ],
)
def test_what_disagrees_is_named(sources, name, old, new, said):
    change(sources, name, old, new)
    assert any(each.startswith(name) and said in each for each in faults(__version__, sources))


@pytest.mark.parametrize("version", ["", "v0.1.0", "0.1", "0.1.0; rm -rf ~", "0.1.0-alpha"])
def test_what_is_no_version_is_refused(version):
    assert "is no version" in next(faults(version))


def test_a_version_is_tagged_once_and_from_what_is_committed(sources):
    def git(*args):
        subprocess.run(
            ["git", "-c", "user.name=n", "-c", "user.email=n@n", *args], cwd=sources, check=True,  # noqa: S607
            capture_output=True,
        )  # fmt: skip

    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    assert list(faults_of_git("1.0.0", sources, tagged=False)) == []
    assert list(faults_of_git("1.0.0", sources, tagged=True)) == ["the commit has no tag v1.0.0"]
    git("tag", "v1.0.0")
    assert list(faults_of_git("1.0.0", sources, tagged=True)) == []
    assert "released once" in next(faults_of_git("1.0.0", sources, tagged=False))
    (sources / "more").touch()
    assert "has changes" in next(faults_of_git("1.0.1", sources, tagged=False))


def test_about_names_versions_and_no_paths():
    lines = about().splitlines()
    assert lines[0] == f"planescope {__version__}"
    assert any(line.startswith("numpy ") for line in lines)
    assert "/" not in "".join(lines)
    assert str(Path.home()) not in about()
