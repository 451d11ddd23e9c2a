"""One run of a study: what it is called, its config, and what is made of it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from planescope.training.config import RunConfig

Step = Literal["train", "measure", "reset", "relate"]

DEFAULTS: Mapping[str, Any] = {
    name: field.default for name, field in RunConfig.model_fields.items()
}

# Fields that say where a run finds its data and how it is watched, not what becomes of it: the run
# is the same under the same name. A change of threads changes the last bits alone.
_WHERE = frozenset({"data_path", "download", "workers", "loggers", "threads"})
_DIGITS = 12  # of 16 values: two of 100,000 runs share them once in 50,000 studies


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """One run of a study, seed included; it goes to a worker as it is.

    Attributes
    ----------
    name : str
        Follows from the config alone: the same run has it in every study.
    settings : tuple of (field, value)
        Where its config departs from the default.
    make : tuple of {"train", "measure", "reset", "relate"}
        What is made of it.
    reset : tuple of (field, value)
        How its layers are put back.
    """

    name: str
    settings: tuple[tuple[str, Any], ...]
    make: tuple[Step, ...]
    reset: tuple[tuple[str, Any], ...]

    @property
    def config(self) -> RunConfig:
        """Return the config that the run is trained with."""
        return RunConfig(**dict(self.settings))

    def get(self, field: str, /) -> Any:
        """Return the value of one field of its config."""
        return dict(self.settings).get(field, DEFAULTS[field])


def name_of(config: Mapping[str, Any], /) -> str:
    """Name of a run: what one looks for first, and a digest of all that decides about it.

    Parameters
    ----------
    config : mapping
        All fields of a `RunConfig`, checked.
    """
    decides = {
        field: value
        for field, value in sorted(config.items())
        if field not in _WHERE and value != DEFAULTS[field]
    }
    digest = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:_DIGITS]
    return "-".join((*_said(config), f"s{config['seed']}", digest))


def _said(config: Mapping[str, Any]) -> list[str]:
    parts = [_plain(config["network"])]
    if config["width"] != DEFAULTS["width"]:
        parts.append(f"w{config['width']:g}")
    parts.append(_plain(config["data"]))
    if config["classes"] is not None:
        parts.append(f"c{config['classes']}")
    if config["labels"] != DEFAULTS["labels"]:
        parts.append(f"{config['labels']}-labels")
    if config["label_noise"]:
        parts.append(f"n{config['label_noise']:g}")
    if config["shuffle_pixels"]:
        parts.append("shuffled")
    if config["centred"]:
        parts.append("centred")
    return parts


def _plain(text: str) -> str:
    """Reduce a text to what a file may be called on any system."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-.")[-40:] or "x"
