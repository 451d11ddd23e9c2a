"""Loggers of a run, by name: csv, tensorboard, wandb, mlflow."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from planescope.files.errors import (
    MissingDependencyError,
)
from planescope.files.folders import refuse_ways_out
from planescope.training.run import Run

# Loggers whose packages do not come with planescope[train].
APART = ("wandb", "mlflow")


@contextlib.contextmanager
def begin_loggers(names: Sequence[str], run: Run) -> Iterator[list[Any]]:
    """Give loggers by name; a run of wandb's that they began ends with them.

    Else the next training of this process would go on in it, and its file would not be whole.
    """
    wandb: Any = sys.modules.get("wandb")
    outer = None if wandb is None else wandb.run  # somebody else's, in which ours is logged then
    if names:
        refuse_ways_out(run.path, "logs")
    made = [_logger(name, run) for name in names]
    exit_code = 1
    try:
        yield made
        exit_code = 0
    finally:
        if "wandb" in names and outer is None:
            import_module("wandb").finish(exit_code=exit_code)


def _logger(name: str, run: Run) -> Any:
    from pytorch_lightning import loggers

    try:
        match name:
            case "csv":
                made: Any = loggers.CSVLogger(run.logs, name="csv")
            case "tensorboard":
                made = loggers.TensorBoardLogger(run.logs, name="tensorboard")
            case "wandb":
                made = loggers.WandbLogger(
                    name=run.path.name, save_dir=run.logs, project="planescope"
                )
            case _:
                made = loggers.MLFlowLogger(
                    "planescope", run_name=run.path.name, **_mlflow_places(run.logs / "mlflow")
                )
    except ModuleNotFoundError as exc:
        raise MissingDependencyError(f"the logger {name} needs it: pip install {name}") from exc
    return made


def _mlflow_places(folder: Path) -> dict[str, str]:
    """Return where mlflow writes: to the server that the environment names, else below the run."""
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return {"tracking_uri": uri}
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    # A data base in a file: from mlflow 3 on, folders of plain files are refused.
    database = f"sqlite:///{(folder / 'mlflow.db').as_posix()}"
    return {"tracking_uri": database, "artifact_location": folder.as_uri()}
