"""Hold all that names a version to the same one, before a tag and at the build of one.

    python -m checks.release 0.2.0             before the tag: nothing is uncommitted, no such tag
    python -m checks.release 0.2.0 --tagged    at the build: the commit has the tag

The package has it in ``planescope.__version__``, the changelog as a dated heading with nothing left
under `Unreleased`, and CITATION.cff as ``version`` and ``date-released``.
"""

from __future__ import annotations

import argparse
import datetime
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


def faults(version: str, root: Path = ROOT) -> Iterator[str]:
    """Say, in sentences, what in a folder of sources does not name a version."""
    if re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", version) is None:
        yield f"{version!r} is no version; give one such as 0.2.0 or 0.2.0rc1"
        return
    own = _found(r'^__version__ = "(.+)"$', root / "src/planescope/__init__.py")
    if own != version:
        yield f"src/planescope/__init__.py: __version__ is {own}; set it to {version}"
    changes = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    dated = re.search(
        rf"^## {re.escape(version)} - (\d{{4}}-\d{{2}}-\d{{2}})$", changes, re.MULTILINE
    )
    if dated is None:
        yield f'CHANGELOG.md: has no heading "## {version} - YYYY-MM-DD"; date the release'
    unreleased = re.search(r"^## Unreleased\n(.*?)(?=^## |\Z)", changes, re.MULTILINE | re.DOTALL)
    if unreleased is not None and unreleased[1].strip():
        yield f"CHANGELOG.md: changes are left under Unreleased; move them under {version}"
    cited = _found(r'^version: "?([^"\n]+)"?$', root / "CITATION.cff")
    if cited != version:
        yield f"CITATION.cff: version is {cited}; set it to {version}"
    date = _found(r'^date-released: "?([\d-]+)"?$', root / "CITATION.cff")
    if dated is not None and date != dated[1]:
        yield f"CITATION.cff: date-released is {date}; the changelog says {dated[1]}"
    if dated is not None and not _is_past(dated[1]):
        yield f"CHANGELOG.md: {dated[1]} is no day that has come"


def faults_of_git(version: str, root: Path = ROOT, *, tagged: bool) -> Iterator[str]:
    """Say what of the repository's state is against a release."""
    tag = f"v{version}"
    if tagged:
        if tag not in _git(root, "tag", "--points-at", "HEAD").split():
            yield f"the commit has no tag {tag}"
        return
    if _git(root, "status", "--porcelain"):
        yield "the working tree has changes; commit them"
    if _git(root, "tag", "--list", tag):
        yield f"there is a tag {tag}; a version is released once"


def _found(pattern: str, path: Path) -> str | None:
    found = re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)
    return None if found is None else found[1]


def _is_past(day: str) -> bool:
    try:
        return datetime.date.fromisoformat(day) <= datetime.datetime.now(datetime.UTC).date()
    except ValueError:
        return False


def _git(root: Path, *args: str) -> str:
    return subprocess.run(  # noqa: S603  git, of a user who releases
        ["git", *args],  # noqa: S607
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


def main() -> int:
    """Print what is against the release; status 1 where anything is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("version")
    parser.add_argument("--tagged", action="store_true", help="at the build of the tag")
    args = parser.parse_args()
    found = [*faults(args.version), *faults_of_git(args.version, tagged=args.tagged)]
    for sentence in found:
        print(sentence, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
