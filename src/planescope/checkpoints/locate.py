"""From what a user names, a path, a folder or a model on the hub, to the one file to read."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import stat
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from planescope.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# The names under which Hugging Face keeps one and the same model, the one to read first.
TWINS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "tf_model.h5",
)

_MODEL = re.compile(
    r"[^.].*\.(safetensors|index\.json|pt|pth|bin|tar|ckpt|onnx|keras|h5|npz)", re.IGNORECASE
)
# What trainers leave beside a model, under a model's suffix.
_COMPANION = re.compile(r"(training_args|optimi[sz]er|scheduler|scaler|rng_state)\w*\.(bin|pth?)")

_SHOWN = 5


def locate(target: str | os.PathLike[str]) -> Path:
    """Find the checkpoint that a user names.

    Parameters
    ----------
    target : str or path
        A file; a folder that holds one model; or ``hf:OWNER/NAME[@REVISION][/FILE]``, which is
        downloaded into the cache of the Hugging Face client unless it is there.

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
    path = Path(name)
    try:
        if stat.S_ISDIR(path.stat().st_mode):
            return path / _model_in(path)
    except FileNotFoundError:
        raise CheckpointError(_missing(path)) from None
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the name
        reason = getattr(exc, "strerror", None) or exc
        raise CheckpointError(f"{path}: cannot be read: {reason}; give another file") from exc
    return path


def models_among(names: Iterable[str]) -> list[str]:
    """Tell by their names which files hold models; twins count once."""
    models = [name for name in names if _is_model(PurePosixPath(name).name)]
    twins = [name for name in TWINS if name in models]
    return [name for name in models if name not in twins[1:]]


def _is_model(name: str) -> bool:
    return bool(_MODEL.fullmatch(name)) and not _COMPANION.fullmatch(name)


def only_model(models: Sequence[str], names: Sequence[str], where: str) -> str:
    """Take the one model there is.

    Parameters
    ----------
    models, names : sequence of str
        The models, and all the files among which they were looked for.
    where : str
        Where they lie; with a slash and a name behind it, a target for `locate`.

    Raises
    ------
    CheckpointError
        If there is none or several; it lists what there is.
    """
    if not models:
        found = f"only {listing(names)}" if names else "it is empty"
        raise CheckpointError(f"{where}: holds no model, {found}; give a model's file")
    if len(models) > 1:
        raise CheckpointError(
            f"{where}: holds {len(models)} models, {listing(models)}; "
            f"give one of them, as in {where}/{models[0]}"
        )
    return models[0]


def listing(names: Sequence[str]) -> str:
    """Name the first few, and count the rest."""
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest


def _model_in(folder: Path) -> str:
    from planescope.checkpoints.sharded import shard_names

    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    shards = {
        shard
        for name in names
        if name.endswith(".index.json")
        for shard in shard_names(folder / name)
    }
    models = models_among(name for name in names if name not in shards)
    return only_model(models, names, str(folder))


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
    return f"{path}: no such file or folder; {hint}"
