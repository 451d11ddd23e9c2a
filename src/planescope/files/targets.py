"""The files that are written: what their names may end in, and whether they can be, beforehand."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from planescope.files.errors import OutputError, UsageError

# By what is in them; the suffix chooses the form.
TABLES = (".json", ".csv", ".parquet")
FILTERS = (".npz", ".csv", ".parquet")
NETWORKS = (".safetensors", ".pt", ".pth")
FIGURES = (".pdf", ".svg", ".png")
FILMS = (".gif", ".mp4")
PAGES = (".html", ".htm")
CARDS = (".md",)

# What tells the folder of a run, and of a study: anybody may have filled them.
_RUN_OR_STUDY = (("config.yaml", "snapshots"), ("study.yaml", "runs"))


def followed(target: Path) -> Path:
    """Follow a link, so that it stays one; refuse what is neither a file nor absent.

    A link within a run or a study is a stranger's, not the user's, and is refused too.
    """
    for folder in target.parents:
        if any(all((folder / part).exists() for part in parts) for parts in _RUN_OR_STUDY):
            _refuse_link(folder, target)
    with contextlib.suppress(FileNotFoundError):
        mode = target.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise OSError("it is no regular file; give another name")
    return Path(os.path.realpath(target)) if target.is_symlink() else target


def _refuse_link(folder: Path, target: Path) -> None:
    below = target
    while below != folder:
        if below.is_symlink():
            raise OSError(f"{below} is a link within {folder}; remove it, or give another name")
        below = below.parent


def check_target(target: str | os.PathLike[str], suffixes: Iterable[str]) -> str:
    """Return the suffix of an output file, which chooses its form.

    Looked at before long work begins.

    Raises
    ------
    UsageError
        If it is none of `suffixes`.
    OutputError
        If the target is a folder or a device, or its own folder does not exist or may not be
        written.
    """
    path = Path(target)
    *others, last = suffixes
    if path.suffix.lower() not in (*others, last):
        forms = f"{', '.join(others)} or {last}" if others else last
        raise UsageError(f"{target}: the name must end in {forms}")
    if path.is_dir():
        raise OutputError(f"{target}: is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise OutputError(f"{target}: the folder {path.parent} does not exist; make it first")
    try:
        folder = followed(path).parent
    except OSError as exc:
        raise OutputError(f"{target}: cannot be written: {exc.strerror or exc}") from exc
    if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{target}: the folder {folder} may not be written; give another")
    return path.suffix.lower()


def check_apart(target: str | os.PathLike[str] | None, *sources: str | os.PathLike[str]) -> None:
    """Refuse to write what a command reads: the trained network would be lost.

    Raises
    ------
    UsageError
        If the target is one of the sources.
    """
    if target is None or not Path(target).exists():
        return
    for source in map(Path, sources):
        if source.exists() and source.samefile(target):
            raise UsageError(f"{target}: is the network that is read; name another file")


def check_targets(*pairs: tuple[str | os.PathLike[str] | None, Iterable[str]]) -> None:
    """Look at all files that a command is to write, each with its suffixes; None is not wanted.

    Raises
    ------
    UsageError, OutputError
        As `check_target`.
    """
    for target, suffixes in pairs:
        if target is not None:
            check_target(target, suffixes)
