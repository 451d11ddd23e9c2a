"""The command line: one file a command; each parses, calls the library, prints.

Exit status: 0 done, 1 a run that failed, 2 wrong usage or input, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys


def main() -> None:
    """Run the command that ``sys.argv`` names, and end the process with its status."""
    for stream in (sys.stdout, sys.stderr):
        # A layer's name may hold what the terminal's encoding does not.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Threads that wait by spinning make a small network ten times slower where the processors are
    # shared. It is read once, when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from planescope.cli.app import app
    from planescope.errors import PlanescopeError

    try:
        app()
    except PlanescopeError as exc:
        # Names come from files: a line break in one must not look like a second message.
        message = " ".join(str(exc).splitlines())
        print(f"planescope: {message}", file=sys.stderr)
        raise SystemExit(exc.status) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        # The reader of our output went away, as `head` does; the interpreter must not flush again.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
