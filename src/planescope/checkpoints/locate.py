"""From what a user names, a path, a folder or a model on the hub, to the one file to read."""

from __future__ import annotations

import contextlib
import difflib
import itertools
import os
import stat
from pathlib import Path

from planescope.checkpoints.choose import (
    DISTRIBUTED,
    folder_of_another_format,
    listing,
    models_among,
    only_model,
)
from planescope.files.errors import CheckpointError, published

_MOST_FOLDERS = 1000  # in which models are looked for that a folder does not hold itself


def locate(target: str | os.PathLike[str]) -> Path:
    """Find the checkpoint that a user names.

    Parameters
    ----------
    target : str or path
        A file; a folder that holds one model; or ``hf:OWNER/NAME[@REVISION][/FILE]``, which is
        downloaded into the cache of the Hugging Face client unless it is there; or the
        ``https://`` address of a file. Of large safetensors and torch files there only the bytes
        are fetched that are read.

    Raises
    ------
    CheckpointError
        If there is no such file, no one model in the folder, or it cannot be read.
    """
    name = os.fsdecode(target)
    if name == "-":
        raise CheckpointError("-: a model is not read from standard input; give its file")
    if name.startswith("hf:"):
        from planescope.checkpoints.hub import download

        return download(name)
    if name.startswith(("https://", "http://")):
        from planescope.checkpoints.ranges import locate_url

        return locate_url(name)
    path = Path(name)
    try:
        if stat.S_ISDIR(path.stat().st_mode):
            return path / _model_in(path)
    except FileNotFoundError:
        # TensorFlow names a checkpoint by what its files begin with.
        if (index := path.with_name(f"{path.name}.index")).is_file():
            return index
        raise CheckpointError(_missing(path)) from None
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the name
        reason = getattr(exc, "strerror", None) or exc
        raise CheckpointError(f"{path}: cannot be read: {reason}; give another file") from exc
    if path.suffix == ".distcp" or (path.name == ".metadata" and [*path.parent.glob("*.distcp")]):
        raise CheckpointError(f"{path}: is a part of {DISTRIBUTED}")
    return path


def locate_each(target: str) -> list[str]:
    """Name every model in a folder, in the order of their names; of anything else, itself.

    Raises
    ------
    CheckpointError
        If the folder holds no model.
    """
    folder = Path(target)
    if not folder.is_dir():
        return [target]
    models, names = _models_in(folder)
    if not models:
        only_model(models, names, target)  # raises, with what there is
    return [str(folder / name) for name in models]


def _model_in(folder: Path) -> str:
    models, names = _models_in(folder)
    return only_model(models, names, str(folder))


def _models_in(folder: Path) -> tuple[list[str], list[str]]:
    """Return the files that hold models, and all files."""
    from planescope.checkpoints.sharded import shard_names

    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    shards = {
        shard
        for name in names
        if name.endswith(".index.json")
        for shard in shard_names(folder / name)
    }
    models = models_among(name for name in names if name not in shards)
    if not models and (
        what := folder_of_another_format({entry.name for entry in folder.iterdir()})
    ):
        raise CheckpointError(f"{folder}: {what}")
    if not models and (below := _models_below(folder)):
        raise CheckpointError(
            f"{folder}: holds no model, but its folders hold {listing(below)}; give one of these"
        )
    return models, names


def _models_below(folder: Path) -> list[str]:
    """List models in folders of a folder."""
    found = [
        Path(where, name).relative_to(folder).as_posix()
        for where, _, names in itertools.islice(os.walk(folder), _MOST_FOLDERS)
        for name in names
    ]
    return sorted(models_among(found))


def _missing(path: Path) -> str:
    """Say that a path does not exist, and which it may have been meant to be."""
    if path.is_symlink():
        return f"{path}: is a link to a file that is gone; give the file itself"
    part = path
    while not part.parent.is_dir() and part != part.parent:
        part = part.parent
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = [entry.name for entry in part.parent.iterdir()]
    close = difflib.get_close_matches(part.name, names, n=1)
    hint = f"did you mean {part.parent / close[0]}?" if close else "check the path"
    return f"{path}: no such file or folder; {hint}{published(str(path))}"
