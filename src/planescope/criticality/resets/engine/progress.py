"""The counts of cells while they are evaluated, kept so that interrupted work goes on."""

from __future__ import annotations

import base64
import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planescope.files.errors import CheckpointError
from planescope.files.reading import read_text
from planescope.files.writing import replacing

Array = NDArray[Any]

SCHEMA = "planescope.resets-progress/2"
# What was kept in another form is computed again.
_FORMER = "planescope.resets-progress/1"
# Not more often than this is the file written, and seldom enough to cost 2 % at most.
SAVE_EVERY_S = 1.0


@dataclass(eq=False)
class Tally:
    """Answers to the first examples, in their order.

    Attributes
    ----------
    examples : int
        How many were counted.
    columns : dict of str to list of arrays
        A value an example, by batches: ``right`` (whether its label has the largest output; of an
        example with several, the share), ``value`` (of the user's metric), ``agrees`` (whether the
        answer is the trained network's) and ``given`` (what that gives the answer).
    sums : dict of str to float
        Over examples: ``top5``, ``loss`` (cross-entropies), ``metric`` (of a metric without a value
        an example), ``divergence``, ``none`` (whether an output is not a number), ``positions``,
        where an example has several, and squares of ``changed`` outputs and of trained ones
        (``square``).
    """

    examples: int = 0
    columns: dict[str, list[Array]] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    right: int = 0

    def add(self, name: str, values: Array) -> None:
        """Add the values of some examples to a column."""
        self.columns.setdefault(name, []).append(values)
        if name == "right" and values.dtype == bool:
            self.right += int(values.sum())

    def column(self, name: str) -> Array | None:
        """Return the values of all examples counted, float64.

        None where there are none of the name.
        """
        parts = self.columns.get(name)
        return None if parts is None else np.concatenate(parts).astype(np.float64)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data: eight flags a byte, or the bytes of numbers."""
        columns = {name: _packed(np.concatenate(parts)) for name, parts in self.columns.items()}
        return {"examples": self.examples, "columns": columns, "sums": self.sums}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Tally:
        """Make a tally of what `to_dict` gave."""
        examples = int(data["examples"])
        tally = cls(examples=examples, sums={n: float(v) for n, v in data["sums"].items()})
        for name, kept in data["columns"].items():
            values = _unpacked(kept, examples)
            tally.add(name, values)
        return tally


def _packed(values: Array) -> dict[str, str]:
    if values.dtype == bool:
        return {"bool": np.packbits(values).tobytes().hex()}
    return {values.dtype.name: base64.b64encode(values.tobytes()).decode()}


def _unpacked(kept: dict[str, str], examples: int) -> Array:
    ((kind, text),) = kept.items()
    if kind == "bool":
        bits = np.frombuffer(bytes.fromhex(text), dtype=np.uint8)
        # Beyond the bits that there are, NumPy would fill up with zeros.
        if not 0 <= examples <= 8 * len(bits):
            raise ValueError("a tally has more examples than it holds")
        return np.unpackbits(bits, count=examples).astype(bool)
    if kind not in ("float32", "float64"):
        raise ValueError(f"a tally of {kind!r:.20}")
    values = np.frombuffer(base64.b64decode(text, validate=True), dtype=kind)
    if len(values) != examples:
        raise ValueError("a tally has another number of examples than it holds")
    return values


class Progress:
    """Tallies by name, kept in a file.

    The file holds those of other protocols (other data, other weights) too, which stay as they are.

    Parameters
    ----------
    path : Path or None
        None keeps nothing.
    protocol : str
        Whatever else decides what a tally of some name must be.

    Attributes
    ----------
    note : str
        How the tallies were counted, for the reader; "" where there is nothing to say.

    Raises
    ------
    CheckpointError
        If the file is damaged.
    """

    def __init__(self, path: Path | None, protocol: str) -> None:
        self._path, self._protocol = path, protocol
        self._lock = threading.Lock()
        self._saved = time.monotonic()
        held = {"protocols": {}} if path is None or not path.exists() else _read(path)
        try:
            self._all, self._notes = dict(held["protocols"]), dict(held.get("notes", {}))
            self.note = str(self._notes.get(protocol, ""))
            kept = self._all.get(protocol, {}).items()
            self._tallies = {name: Tally.from_dict(tally) for name, tally in kept}
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as exc:
            raise _damaged(path, exc) from exc

    def __getitem__(self, name: str) -> Tally:
        with self._lock:
            return self._tallies.setdefault(name, Tally())

    @property
    def is_kept(self) -> bool:
        """Return whether there is a file."""
        return self._path is not None

    @property
    def patience(self) -> float:
        """Return the seconds after which what was computed is to be counted, so that it is kept."""
        return 5 * SAVE_EVERY_S

    def save(self, *, now: bool = False) -> None:
        """Write the file, if that was not done a moment ago."""
        if self._path is None or not (now or time.monotonic() - self._saved > SAVE_EVERY_S):
            return
        with self._lock:
            began = time.monotonic()
            kept = {name: tally.to_dict() for name, tally in self._tallies.items()}
            data = {"schema": SCHEMA, "protocols": {**self._all, self._protocol: kept}}
            if self.note:
                self._notes[self._protocol] = self.note
            if self._notes:
                data["notes"] = self._notes
            with replacing(self._path) as draft:
                draft.write_text(json.dumps(data) + "\n", encoding="utf-8", newline="\n")
            # Seldom where it takes long.
            self._saved = time.monotonic() + 50 * (time.monotonic() - began)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(read_text(path))
        if data["schema"] == _FORMER:
            return {"protocols": {}}
        if data["schema"] != SCHEMA:
            raise ValueError(f"its schema is {data['schema']!r}")
        return dict(data)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as exc:
        raise _damaged(path, exc) from exc


def _damaged(path: Path | None, exc: Exception) -> CheckpointError:
    return CheckpointError(f"{path}: cannot be read ({exc}); remove it to begin the resets anew")
