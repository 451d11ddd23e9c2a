"""Many sources measured at once, by processes: with the results, order and errors of one.

Two threads take as long as one: what a layer costs are short calls of NumPy, and Python between
them. The processes are started as on every system, by a command: none is forked, beside the
threads of NumPy's BLAS. multiprocessing would spare some lines, but starts its own by a command
whose import path begins with the working folder, which may be anybody's.

The price are these lines, and for each process 0.3 s of a core and the memory of a measurement:
50 MiB and the largest layer. 100 VGG19 take 3.3 s in place of 4.8 on two cores.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from planescope.files.errors import RunError
from planescope.measurement.measure import measure
from planescope.measurement.record import Measurement

# Seconds of work that is left for which a process more is started.
WORTH_S = 1.0

# The import path is ours, whatever stands in the working folder.
_CODE = "import sys; sys.path[:] = sys.argv[1:]; from planescope.measurement import processes; "
_CODE += "processes.serve()"


def measure_all(
    sources: Sequence[str],
    /,
    *,
    on_layer: Callable[[int, int, str], None] | None = None,
    most: int | None = None,
    **options: Any,
) -> list[Measurement]:
    """Measure sources as `measure` does, one after the other; by several processes where it pays.

    That is where all are on this machine, no data go through them, and there are seconds of work
    left after the first.

    Parameters
    ----------
    on_layer : callable, optional
        As for `measure`; it hears of the sources that this process measures.
    most : int, optional
        Processes at most, this one among them; by default the cores that it may use.
    **options
        As for `measure`.

    Raises
    ------
    PlanescopeError
        As `measure` of the first source that cannot be measured.
    RunError
        If a process dies, as one that takes too much memory does.
    """
    from planescope.files.results.versions import cores

    shared = _Shared(sources, options)
    most = (cores() if most is None else most) if _is_here(sources, options) else 1
    helpers: list[_Helper] = []
    began = time.monotonic()
    try:
        while (number := shared.claim()) is not None:
            try:
                result: Measurement | Exception = measure(
                    sources[number], on_layer=on_layer, **options
                )
            except Exception as exc:
                result = exc
            shared.settle(number, result)
            if not helpers:
                left = (time.monotonic() - began) / (number + 1) * len(shared.waiting)
                count = min(most - 1, len(shared.waiting), int(left / WORTH_S))
                helpers += _started(count, shared)
        # In their order, so that the first that fails is that of one process.
        return [
            result.result() or measure(source, on_layer=on_layer, **options)
            for source, result in zip(sources, shared.results, strict=True)
        ]
    finally:
        for helper in helpers:
            helper.end()


class _Shared:
    """The sources that nobody has claimed yet, and what became of the others.

    A result of None is of one that failed in another process, or that nobody needs any more:
    whoever asks for it all the same measures it himself, and meets its error.
    """

    def __init__(self, sources: Sequence[str], options: dict[str, Any]) -> None:
        self.sources, self.options = sources, options
        self.waiting = deque(range(len(sources)))
        self.results: list[Future[Measurement | None]] = [Future() for _ in sources]

    def claim(self) -> int | None:
        """Take the next source; None where there is none."""
        try:
            return self.waiting.popleft()
        except IndexError:
            return None

    def settle(self, number: int, result: Measurement | Exception | None) -> None:
        """Set down what became of a source; where it failed, leave those that nobody has begun."""
        if isinstance(result, Measurement):
            self.results[number].set_result(result)
            return
        while (other := self.claim()) is not None:
            self.results[other].set_result(None)
        if result is None:
            self.results[number].set_result(None)
        else:
            self.results[number].set_exception(result)


class _Helper(threading.Thread):
    """A process that measures, and the thread that hands it sources and takes the results."""

    def __init__(self, shared: _Shared) -> None:
        super().__init__(daemon=True)
        self._shared = shared
        flags = ["-P", "-X", f"utf8={sys.flags.utf8_mode}", *["-B"] * sys.dont_write_bytecode]
        # Ctrl-C is for us, who end it.
        group: Any = {"process_group": 0} if os.name == "posix" else {"creationflags": 0x200}
        self._child = subprocess.Popen(  # noqa: S603
            [sys.executable or "", *flags, "-c", _CODE, *map(str, sys.path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **group,
        )  # fmt: skip

    def run(self) -> None:
        claimed: deque[int] = deque()
        try:
            self._send(self._shared.options)
            self._receive()  # it is there; where it cannot be, the others do its work
            self._claim(claimed)
            while claimed:
                # It has the next one before it is through with this one, and never waits.
                self._claim(claimed)
                measured = self._receive()
                self._shared.settle(claimed.popleft(), measured)
        except Exception:
            # It died, or told what nobody understands; nobody may wait for it.
            self._child.kill()
            for number in claimed:
                self._shared.settle(number, self._death(number))

    def _claim(self, claimed: deque[int]) -> None:
        if (number := self._shared.claim()) is not None:
            claimed.append(number)
            self._send(self._shared.sources[number])

    def _send(self, value: object) -> None:
        assert self._child.stdin is not None  # noqa: S101
        pickle.dump(value, self._child.stdin)
        self._child.stdin.flush()

    def _receive(self) -> Measurement | None:
        assert self._child.stdout is not None  # noqa: S101
        measured: Measurement | None = pickle.load(self._child.stdout)  # noqa: S301
        return measured

    def _death(self, number: int) -> RunError:
        code = self._child.wait()
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        return RunError(
            f"{self._shared.sources[number]}: the process that was to measure it ended ({how}), "
            "perhaps for want of memory; measure it alone"
        )

    def end(self) -> None:
        """End the process, whatever it does."""
        self._child.kill()
        self._child.wait()
        self.join()
        for pipe in (self._child.stdin, self._child.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]


def _started(count: int, shared: _Shared) -> list[_Helper]:
    """Start so many processes, or as many as the system gives."""
    helpers = []
    with contextlib.suppress(OSError):
        for _ in range(count):
            helpers.append(_Helper(shared))  # noqa: PERF401
    for helper in helpers:
        helper.start()
    return helpers


def _is_here(sources: Sequence[str], options: dict[str, Any]) -> bool:
    """Tell whether all that is read are files of this machine that any process sees as this one."""
    names = [*sources, *filter(None, [options.get("init")])]
    own = ("/dev/", "/proc/")
    return (
        options.get("data") is None
        and ":" not in str(options.get("network"))  # whose code is to be built and traced
        and all(Path(name).exists() and not os.path.abspath(name).startswith(own) for name in names)  # noqa: PTH100
    )


def serve() -> None:
    """Measure what the process asks for that started this one, until it goes."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    asked: SimpleQueue[str] = SimpleQueue()
    options = pickle.load(sys.stdin.buffer)  # noqa: S301
    threading.Thread(target=_hear, args=(asked,), daemon=True).start()
    answer = pickle.dumps(None)
    while True:
        with contextlib.suppress(BrokenPipeError):
            answers.write(answer)
            answers.flush()
        source = asked.get()
        try:
            answer = pickle.dumps(measure(source, **options))
        except Exception:
            # Who asked measures it again: the error is then the same, to its last cause.
            answer = pickle.dumps(None)


def _hear(asked: SimpleQueue[str]) -> None:
    """Take in what is asked; once nobody is there to ask, end in the middle of whatever is done."""
    with contextlib.suppress(EOFError):
        while True:
            asked.put(pickle.load(sys.stdin.buffer))  # noqa: S301
    os._exit(0)
