"""Standard output that was closed before the command began.

A result that was to be printed is lost then, which is a failure. What a command prints beside the
files that it was to write is a summary, and goes nowhere.
"""

from __future__ import annotations

import io
from typing import Any, TextIO

import click

from planescope.files.errors import OutputError

# Options that name what is written, and those that ask for something to be printed.
_WRITTEN = ("out", "figure", "filters", "table", "page", "card", "curves")
_PRINTED = ("as_json", "dry_run", "show_status")


def closed_output() -> TextIO:
    """Make a stream in place of standard output that takes summaries alone."""
    raw: Any = _Closed()  # typeshed asks for the methods of a buffer, of which few are used
    return io.TextIOWrapper(raw, encoding="utf-8", write_through=True)


class _Closed(io.RawIOBase):
    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 1

    def write(self, data: Any, /) -> int:
        if not _is_summary():
            raise OutputError("standard output: is closed, and what was to be printed is lost")
        return len(memoryview(data))


def _is_summary() -> bool:
    """Tell whether the command that runs writes its result into a file; a study always does."""
    context = click.get_current_context(silent=True)
    if context is None or any(context.params.get(name) for name in _PRINTED):
        return False
    return context.info_name == "study" or any(context.params.get(name) for name in _WRITTEN)
