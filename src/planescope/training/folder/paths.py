"""The folder of a training run: what is in it; nothing else knows its paths.

    config.yaml          what repeats the run
    network.json         where its layers stand in the network, which is then not built to be read
    environment.json     versions and device of each start
    metrics.csv          a row an epoch
    snapshots/           epoch-0000.safetensors and so on: weights, what they are in the metadata
    measurements.parquet every layer at every snapshot (.csv where pyarrow is missing)
    filters/             epoch-0000.safetensors and so on: cosine and offset of each filter
    last.ckpt            all that resuming needs, after the last epoch that was finished
    state.json           how it ended
    resets.json          what its layers, put back, cost; resets-progress.json keeps work on that
    relation.json        what scores tell of those costs, where `relate --out` wrote it here

Files are whole or absent: they are written in hidden folders ``.planescope-...`` first. Those of an
epoch are written before its `last.ckpt`; what a killed run wrote after that is cut off when it is
resumed.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from planescope.files.drafts import remove_drafts
from planescope.files.errors import CheckpointError, UsageError
from planescope.files.folders import (
    inside,
    make_inside,
    replacing_inside,
)
from planescope.files.locks import held, is_locked
from planescope.files.reading import read_text

ENVIRONMENT_SCHEMA = "planescope.environment/1"

SNAPSHOTS, FILTERS, _LOCK = "snapshots", "filters", ".lock"


class Folder:
    """The folder of a run by its path; whether it is there shows when something is asked for."""

    def __init__(self, path: str | os.PathLike[str], /) -> None:
        self.path = Path(path)

    @property
    def exists(self) -> bool:
        """Return whether the folder holds a run, of whatever state."""
        return self._part("config.yaml").is_file()

    @property
    def environments(self) -> tuple[dict[str, Any], ...]:
        """Read versions and device of each start of the run; empty before the first.

        Raises
        ------
        CheckpointError
            If environment.json is damaged.
        """
        path = self._part("environment.json")
        if not path.is_file():
            return ()
        try:
            return tuple(map(dict, json.loads(read_text(path))["starts"]))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as exc:
            raise CheckpointError(f"{path}: is damaged ({exc!r})") from exc

    @property
    def last_checkpoint(self) -> Path:
        """Return the path of all that resuming needs, once an epoch was finished."""
        return self._part("last.ckpt")

    @property
    def resets(self) -> Path:
        """Return the path of the latest resets of its layers, once there are some."""
        return self._part("resets.json")

    @property
    def relation(self) -> Path:
        """Return the path of the relation of scores and resets, if one was written there."""
        return self._part("relation.json")

    @property
    def resets_progress(self) -> Path:
        """Return the path of unfinished work on resets."""
        return self._part("resets-progress.json")

    @property
    def logs(self) -> Path:
        """Return the folder for loggers."""
        return self._part("logs")

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run, so that no other process trains it; a killed process lets go.

        Its folder is made, if it is not there: who is to make the run is settled by that too.

        Raises
        ------
        UsageError
            If another process holds it.
        OutputError
            If the folder cannot be made.
        """
        make_inside(self.path)
        # `status` of another process takes the lock for a moment.
        with held(self._part(_LOCK), timeout=1) as is_ours:
            if not is_ours:
                raise UsageError(f"{self.path}: another process is training this run")
            self.remove_drafts()
            yield

    def remove_drafts(self) -> None:
        """Remove what killed processes left half written; others' work is not touched."""
        for folder in ((), (SNAPSHOTS,), (FILTERS,)):
            remove_drafts(self._part(*folder))

    def save_environment(self, environment: Mapping[str, Any]) -> None:
        """Add what a start of the run had: versions, device."""
        starts: tuple[dict[str, Any], ...] = ()
        with contextlib.suppress(CheckpointError):  # a damaged one is begun anew
            starts = self.environments
        fields = {"schema": ENVIRONMENT_SCHEMA, "starts": [*starts, dict(environment)]}
        self._write("environment.json", json.dumps(fields, indent=2) + "\n")

    def _part(self, *names: str) -> Path:
        """Return the path of a part of the run, which lies in its folder and nowhere else."""
        return inside(self.path, *names)

    def _is_locked(self) -> bool:
        return is_locked(self._part(_LOCK))

    def _write(self, name: str, text: str) -> None:
        with replacing_inside(self.path, name) as draft:
            draft.write_text(text, encoding="utf-8", newline="\n")
