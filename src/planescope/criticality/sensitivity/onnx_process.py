"""A process of its own that runs the graph of an ONNX file, within bounds of memory and time."""

from __future__ import annotations

import contextlib
import json
import math
import os
import selectors
import struct
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planescope.criticality.sensitivity.onnx_server import PLAIN
from planescope.files.errors import RunError

Array = NDArray[Any]

# Seconds for a graph to be opened and for the first inputs to go through; later ones may take so
# many times what the slowest took before.
SECONDS, TIMES = 120.0, 20.0
# Bytes of the header of an answer; of onnxruntime itself, beside what a model takes.
MOST_HEADER, RUNTIME = 1 << 24, 3 << 30
_UNKNOWN_MEMORY = 8 << 30


class Process:
    """A process of its own that runs the graph of one model, within bounds of memory and time."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.memory = _bound()
        command = [sys.executable, "-P", str(Path(__file__).with_name("onnx_server.py"))]
        self._child = subprocess.Popen(  # noqa: S603
            [*command, str(self.memory)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._end = weakref.finalize(self, _end, self._child)

    def ask(
        self, header: Mapping[str, Any], arrays: Sequence[Array], seconds: float
    ) -> tuple[dict[str, Any], list[Array]]:
        """Send a request, and return its answer.

        Raises
        ------
        RunError
            If it takes longer than so many seconds, or memory runs out.
        ValueError
            If onnxruntime refuses; says why.
        """
        deadline = time.monotonic() + seconds
        whole = [np.ascontiguousarray(array) for array in arrays]
        listed = {**header, "arrays": [[str(a.dtype), list(a.shape)] for a in whole]}
        text = json.dumps(listed).encode()
        stdin = self._child.stdin
        assert stdin is not None  # noqa: S101
        try:
            stdin.write(struct.pack("<Q", len(text)) + text)
            for array in whole:
                stdin.write(array.reshape(-1).view(np.uint8).data)
            stdin.flush()
        except OSError as exc:
            raise self._died() from exc
        told, given = self._answer(deadline, seconds)
        if "error" in told:
            if told.get("memory"):
                raise self._ran_out()
            raise ValueError(str(told["error"]))
        return told, given

    def _answer(self, deadline: float, seconds: float) -> tuple[dict[str, Any], list[Array]]:
        (length,) = struct.unpack("<Q", self._read(8, deadline, seconds))
        if length > MOST_HEADER:
            raise self._odd()
        try:
            told = json.loads(self._read(length, deadline, seconds))
            arrays = []
            for dtype, shape in told["arrays"]:
                if dtype not in PLAIN or any(not 0 <= int(n) < 1 << 40 for n in shape):
                    raise self._odd()
                kind = np.dtype(dtype)
                size = math.prod(int(n) for n in shape) * kind.itemsize
                if size > self.memory:
                    raise self._ran_out()
                raw = self._read(size, deadline, seconds)
                arrays.append(np.frombuffer(raw, dtype=kind).reshape(shape))
        except (ValueError, KeyError, TypeError) as exc:
            raise self._odd() from exc
        return told, arrays

    def _read(self, size: int, deadline: float, seconds: float) -> bytearray:
        stdout = self._child.stdout
        assert stdout is not None  # noqa: S101
        raw = bytearray(size)
        at = 0
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while at < size:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    self._end()
                    raise RunError(
                        f"{self.path}: its graph ran for more than {seconds:.0f} s on one batch "
                        "and was stopped; give inputs in smaller batches, or fewer"
                    )
                part = os.read(stdout.fileno(), min(size - at, 1 << 24))
                if not part:
                    raise self._died()
                raw[at : at + len(part)] = part
                at += len(part)
        return raw

    def _died(self) -> RunError:
        code = self._child.wait()
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        return RunError(
            f"{self.path}: the process that ran its graph ended ({how}); it may have {_size(self)} "
            "of memory"
        )

    def _ran_out(self) -> RunError:
        return RunError(
            f"{self.path}: memory ran out while its graph ran, which may take {_size(self)}; give "
            "inputs in smaller batches"
        )

    def _odd(self) -> RunError:
        self._end()
        return RunError(f"{self.path}: the process that ran its graph gave no answer")


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    child.wait()


def _size(process: Process) -> str:
    return f"{process.memory / 2**30:.0f} GiB"


def _bound() -> int:
    """Return the bytes that a graph may take: half of the machine's memory."""
    try:
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        whole = 2 * _UNKNOWN_MEMORY
    return max(RUNTIME, whole // 2)
