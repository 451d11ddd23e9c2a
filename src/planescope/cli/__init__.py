"""The command line: one file a command; each parses, calls the library, prints.

Exit status: 0 done, 1 a run that failed, 2 wrong usage or input; 130, 143 and 129 where SIGINT,
SIGTERM or SIGHUP ended it.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import io
import os
import sys
from typing import TYPE_CHECKING

from planescope.files import signals

if TYPE_CHECKING:
    import click


def main() -> None:
    """Run the command that ``sys.argv`` names, and end the process with its status."""
    signals.hear()
    _prepare_streams()
    # Threads that wait by spinning make a small network ten times slower where the processors are
    # shared. It is read once, when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    atexit.register(signals.leave_garbage)
    status = _run()
    if signals.is_ended():
        signals.deafen()
    raise SystemExit(status)


def _prepare_streams() -> None:
    from planescope.cli.streams import closed_output  # click, only once signals are heard

    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The next file to be opened must not take its place. Who closed standard error wants
            # nothing of it; a result that has no other way out than standard output is a failure.
            os.open(os.devnull, os.O_WRONLY if number else os.O_RDONLY)
            own = open(number, "w" if number else "r", closefd=False)  # noqa: SIM115
            setattr(sys, name, closed_output() if name == "stdout" else own)
    for stream in (sys.stdout, sys.stderr):
        # A layer's name may hold what the terminal's encoding does not.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _run() -> int:
    """Run the command, say in a sentence what went wrong, and give the exit status."""
    import click

    from planescope.cli.app import app
    from planescope.files.errors import PlanescopeError, StoppedError

    out = sys.stdout
    try:
        status = app(prog_name="planescope", standalone_mode=False)
        sys.stdout.flush()  # at the end of the process nobody would say what is wrong with it
    except PlanescopeError as exc:
        return _say(str(exc), signals.status() if isinstance(exc, StoppedError) else exc.status)
    except click.ClickException as exc:
        return _say_usage(exc)
    except (click.Abort, KeyboardInterrupt):  # click makes the one of the other
        return _say("interrupted", signals.status())
    except (BrokenPipeError, SystemExit) as exc:
        # The reader of our output went away, as `head` does. Where click saw it, it put something
        # else in place of the stream, and would end with 1, as Rich would.
        gone = isinstance(exc, BrokenPipeError) or isinstance(exc.__context__, BrokenPipeError)
        if not gone and sys.stdout is out:
            raise
        _drop_output()
        return 0
    except OSError as exc:
        if signals.is_ended():  # a terminal that was closed takes no last words
            return _say("interrupted", signals.status())
        # What no reader and no writer of ours foresaw: a file that is gone, a right that was taken.
        return _say(f"{_place(exc)}: {exc.strerror or exc}", 2)
    except MemoryError as exc:
        return _say(f"memory ran out ({exc})" if str(exc) else "memory ran out", 1)
    return status if isinstance(status, int) else 0


def _say(sentence: str, status: int) -> int:
    from planescope.cli.printing import say

    # Names come from files: a line break in one must not look like a second message.
    say(f"planescope: {' '.join(sentence.splitlines())}", err=True)
    return status


def _say_usage(error: click.ClickException) -> int:
    message = error.format_message()
    if "\n" in message:  # the help itself, where no command was given
        error.show()
        return error.exit_code
    ctx = getattr(error, "ctx", None)
    command = "planescope" if ctx is None else ctx.command_path
    message = message.replace(". Did you mean", "; did you mean").rstrip(".")
    return _say(f"{message} (see {command} --help)", error.exit_code)


def _place(error: OSError) -> str:
    if error.filename is not None:
        return os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
    # Files of ours that cannot be written are named by `replacing`; what is left is the output.
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF):
        _drop_output()
        return "standard output"
    return "the system"


def _drop_output() -> None:
    """Let what is still to be printed go nowhere; the interpreter would fail on it once more."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
