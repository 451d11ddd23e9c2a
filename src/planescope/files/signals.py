"""Signals that ask a command to end: it says so in a sentence, and leaves nothing half done.

SIGTERM and SIGHUP raise as Ctrl-C does. One that was ignored when the process began, as by nohup
or in the background of a shell, stays ignored; SIGUSR1 and others, by which schedulers have jobs
put back in their queue, are not touched.
"""

from __future__ import annotations

import contextlib
import gc
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

ENDING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
# Seconds in which a second signal does not disturb what the first one has begun to tidy up.
PATIENCE_S = 5.0

_received: int = signal.SIGINT
_came = False
_raised = -PATIENCE_S


def hear() -> None:
    """Let the signals that ask for an end raise KeyboardInterrupt, but those that are ignored."""
    for number in ENDING:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _interrupt)


@contextlib.contextmanager
def unheard_hang_up() -> Iterator[None]:
    """Keep the hang-up of a terminal from processes that are started within; it is heard after.

    A terminal tells all of its processes, and those that others still need would end of it.
    """
    if not hasattr(signal, "SIGHUP"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP,))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def is_ended() -> bool:
    """Tell whether such a signal came."""
    return _came


def deafen() -> None:
    """Let what is left of the process be: the interpreter ends as by the signal at a second one."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


def note(number: int, /) -> None:
    """Remember which signal it was."""
    global _received, _came
    _received, _came = number, True


def status() -> int:
    """Exit status of a command that a signal ended, as shells have it: 130, 143 or 129."""
    return 128 + _received


class _Interrupt(KeyboardInterrupt):
    """Ctrl-C, or what ends a command like it.

    Of KeyboardInterrupt itself the interpreter keeps that it went through `exec` or `eval` of a
    text, as in the making of a dataclass, and then ends by SIGINT whatever the command's status is.
    """


def be_patient() -> None:
    """Let a second signal not disturb what tidies up from now on."""
    global _raised
    _raised = time.monotonic()


def _interrupt(number: int, _: Any) -> None:
    if time.monotonic() - _raised < PATIENCE_S:
        return
    be_patient()
    note(number)
    raise _Interrupt


def leave_garbage() -> None:
    """Spare the last look for garbage, which takes two seconds once torch has trained.

    Triton from 3.9 on counts what is left of it then, and writes hundreds of lines.
    """
    if "triton._C.libtriton" not in sys.modules:
        gc.freeze()
