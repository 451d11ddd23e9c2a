"""What is counted while cells are evaluated, and kept so that broken-off work goes on."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planescope.files.errors import CheckpointError
from planescope.files.reading import read_text
from planescope.files.writing import replacing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Flags = NDArray[np.bool_]

SCHEMA = "planescope.resets-progress/1"
# Not more often than this is the file written, and seldom enough to cost 2 % at most.
SAVE_EVERY_S = 1.0


@dataclass(eq=False)
class Tally:
    """Answers to the first examples, in their order.

    Attributes
    ----------
    right : bytearray
        An example a byte: whether its label has the largest output.
    top5 : int
        Examples whose label is among the five largest outputs.
    loss : float
        Sum of the cross-entropies, taken by batches.
    none : int
        Examples for which the outputs were not all numbers; they count as wrong.
    """

    right: bytearray = field(default_factory=bytearray)
    top5: int = 0
    loss: float = 0.0
    none: int = 0

    @property
    def examples(self) -> int:
        """How many were counted."""
        return len(self.right)

    @property
    def flags(self) -> Flags:
        """Whether each answer was right."""
        import numpy as np

        return np.frombuffer(bytes(self.right), dtype=np.bool_)

    def add(self, right: bytes, top5: int, loss: float, none: int = 0) -> None:
        """Count a batch."""
        self.right += right
        self.top5 += top5
        self.loss += loss
        self.none += none

    def to_dict(self) -> dict[str, Any]:
        """Plain data; eight examples a byte."""
        import numpy as np

        bits = np.packbits(self.flags).tobytes().hex()
        return {
            "examples": self.examples,
            "right": bits,
            "top5": self.top5,
            "loss": self.loss,
            "none": self.none,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Tally:
        """Tally from what `to_dict` gave."""
        import numpy as np

        bits = np.frombuffer(bytes.fromhex(data["right"]), dtype=np.uint8)
        # Beyond the bits that there are, NumPy would fill up with zeros.
        if not 0 <= data["examples"] <= 8 * len(bits):
            raise ValueError("a tally has more examples than it holds")
        right = np.unpackbits(bits, count=data["examples"]).tobytes()
        return cls(
            right=bytearray(right),
            top5=int(data["top5"]),
            loss=float(data["loss"]),
            none=int(data["none"]),
        )


class Progress:
    """Tallies by name, kept in a file.

    The file holds those of other protocols (other data, other weights) too, which stay as they are.

    Parameters
    ----------
    path : Path or None
        None keeps nothing.
    protocol : str
        Whatever else decides what a tally of some name must be.

    Raises
    ------
    CheckpointError
        If the file is damaged.
    """

    def __init__(self, path: Path | None, protocol: str) -> None:
        self._path, self._protocol = path, protocol
        self._lock = threading.Lock()
        self._saved = time.monotonic()
        self._all = {} if path is None or not path.exists() else _read(path)
        try:
            kept = self._all.get(protocol, {}).items()
            self._tallies = {name: Tally.from_dict(tally) for name, tally in kept}
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as exc:
            raise _damaged(path, exc) from exc

    def __getitem__(self, name: str) -> Tally:
        with self._lock:
            return self._tallies.setdefault(name, Tally())

    def save(self, *, now: bool = False) -> None:
        """Write the file, if that was not done a moment ago."""
        if self._path is None or not (now or time.monotonic() - self._saved > SAVE_EVERY_S):
            return
        with self._lock:
            began = time.monotonic()
            kept = {name: tally.to_dict() for name, tally in self._tallies.items()}
            data = {"schema": SCHEMA, "protocols": {**self._all, self._protocol: kept}}
            with replacing(self._path) as draft:
                draft.write_text(json.dumps(data) + "\n", encoding="utf-8")
            # Seldom where it takes long.
            self._saved = time.monotonic() + 50 * (time.monotonic() - began)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(read_text(path))
        if data["schema"] != SCHEMA:
            raise ValueError(f"its schema is {data['schema']!r}")
        return dict(data["protocols"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as exc:
        raise _damaged(path, exc) from exc


def _damaged(path: Path | None, exc: Exception) -> CheckpointError:
    return CheckpointError(f"{path}: cannot be read ({exc}); remove it to begin the resets anew")
