"""Folders of runs and studies, which anybody may have filled: what is ours in them stays in them.

A link below the root that a user gave could lead what we write, remove or read anywhere. The root
itself may be a link: the user named it. Who changes a folder while a command works in it is
trusted.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from planescope.files.errors import CheckpointError, OutputError
from planescope.files.writing import replacing

Root = str | os.PathLike[str]


def inside(root: Root, /, *parts: str) -> Path:
    """Return the path of a part of a folder, which need not be there.

    Parameters
    ----------
    root : path
        As the user gave it.
    *parts : str
        Names, one a level.

    Raises
    ------
    CheckpointError
        If a part is a link, or its name leads elsewhere.
    """
    path = Path(root)
    for part in parts:
        if part in ("", ".", "..") or "\0" in part or Path(part).name != part:
            raise CheckpointError(f"{path}: {part!r} is no name of a file in it; correct the name")
        path /= part
        if _is_link(path):
            raise CheckpointError(
                f"{path}: is a link, and what is read or written here must lie in {root} itself; "
                "put what it leads to in its place"
            )
    return path


def make_inside(root: Root, /, *parts: str) -> Path:
    """Make a folder, and those above it.

    Raises
    ------
    CheckpointError
        As `inside`.
    OutputError
        If it cannot be made.
    """
    folder = inside(root, *parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise OutputError(f"{folder}: cannot be made: {exc.strerror or exc}") from exc
    return folder


@contextlib.contextmanager
def replacing_inside(root: Root, /, *parts: str, beside: Path | None = None) -> Iterator[Path]:
    """Give a path to write to, as `planescope.files.writing.replacing` does.

    Raises
    ------
    CheckpointError
        As `inside`.
    OutputError
        If the file cannot be written.
    """
    with replacing(inside(root, *parts), beside=beside) as draft:
        yield draft


def remove_inside(root: Root, /, *parts: str) -> None:
    """Remove a file, where it is there.

    Raises
    ------
    CheckpointError
        As `inside`.
    """
    inside(root, *parts).unlink(missing_ok=True)


def names_inside(root: Root, /, *parts: str) -> tuple[str, ...]:
    """Return the names of what lies in a folder, in order; () where it is not there.

    Raises
    ------
    CheckpointError
        As `inside`.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return tuple(sorted(path.name for path in inside(root, *parts).iterdir()))
    return ()


def place_of(path: str | os.PathLike[str], /) -> str:
    """Return where a path leads; a name that no file can have, and a loop of links, to itself."""
    try:
        return os.path.realpath(path)
    except ValueError:  # NUL in a name, as in a record of somebody else's
        return os.fspath(path)


def is_same_place(one: str | os.PathLike[str], other: str | os.PathLike[str], /) -> bool:
    """Tell whether two paths lead to one place."""
    return place_of(one) == place_of(other)


def refuse_ways_out(root: Root, /, *parts: str) -> None:
    """Refuse a folder in which others write, if a link anywhere below it leads out of the root.

    Raises
    ------
    CheckpointError
        With the link.
    """
    base = os.path.realpath(root)
    for folder, folders, files in os.walk(inside(root, *parts)):
        for name in (*folders, *files):
            path = Path(folder, name)
            if _is_link(path) and Path(base) not in Path(os.path.realpath(path)).parents:
                raise CheckpointError(f"{path}: is a link that leads out of {root}; remove it")


def _is_link(path: Path) -> bool:
    """Tell a link, or a junction of Windows; what cannot be looked at cannot be opened either."""
    try:
        return path.is_symlink() or bool(getattr(os.path, "isjunction", lambda _: False)(path))
    except (OSError, ValueError):
        return False
