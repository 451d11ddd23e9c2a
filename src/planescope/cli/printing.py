"""Everything that the command line prints: text from files reaches a terminal as text alone.

A name may hold what moves the cursor, sets the window's title or turns the direction of writing;
it is shown with backslash escapes, as in the sentences of our errors.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from planescope.files.errors import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

# Wide enough for every column: a pipe has no edge at which to cut a name.
PIPE_WIDTH = 240


def say(line: str, /, *, err: bool = False) -> None:
    """Print a line; standard error is for what is no result, and may be full."""
    if err:
        with contextlib.suppress(OSError):
            print(printable(line), file=sys.stderr)
    else:
        print(printable(line))


def say_costs(
    schema: str,
    costs: Sequence[tuple[str, Any]],
    in_words: Callable[[Any], str],
    /,
    *,
    as_json: bool,
) -> None:
    """Print what calls would take, by their sources: a line each, or a record or a list of them."""
    if as_json:
        told = [{"schema": schema, "source": source, **vars(cost)} for source, cost in costs]
        say(json.dumps(told[0] if len(told) == 1 else told))
        return
    for _, cost in costs:
        say(in_words(cost))


def console(*, stderr: bool = False) -> Console:
    """Make a console for people; as wide as needed where there is no terminal."""
    stream: Any = _Heedless(sys.stderr) if stderr else sys.stdout
    # highlight and markup off: names come from files and are shown as they are.
    made: Console = _console_class()(
        file=stream if stderr else None,
        width=None if stream.isatty() else PIPE_WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
    )
    return made


class _Heedless:
    """Standard error, for what is no result: it may be full, or its terminal closed."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def table(**options: Any) -> Table:
    """Make an empty table whose cells are printed as text alone."""
    made: Table = _table_class()(**options)
    return made


def plain_table(*titles: str, left: tuple[str, ...] = ("score", "network", "layer", "")) -> Table:
    """Make an empty table; columns of the titles `left` hold text, the others numbers."""
    from rich import box

    made = table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in titles:
        made.add_column(title, justify="left" if title in left else "right", overflow="fold")
    return made


def _cleaned(piece: Any, *, lines: bool = False) -> Any:
    """Take control characters out of a text that is printed; `lines` keeps ends of lines."""
    from rich.text import Text

    if isinstance(piece, str):
        return _escaped(piece, lines=lines)
    if isinstance(piece, Text) and not piece.plain.isprintable():
        plain: Text = piece.blank_copy(_escaped(piece.plain, lines=lines))
        return plain
    return piece


def _escaped(text: str, *, lines: bool) -> str:
    return "\n".join(map(printable, text.split("\n"))) if lines else printable(text)


@functools.cache
def _console_class() -> Any:
    """Return a class made when it is needed: Rich costs a tenth of a second to import."""
    from rich.console import Console

    class SafeConsole(Console):
        def print(self, *objects: Any, **options: Any) -> None:
            super().print(*map(_cleaned, objects), **options)

        # What is printed within something else, as a column's title or a bar's text: our own
        # titles have two lines.
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(_escaped(text, lines=True), **options)

        def render(self, renderable: Any, options: Any = None) -> Any:
            return super().render(_cleaned(renderable, lines=True), options)

    return SafeConsole


@functools.cache
def _table_class() -> Any:
    from rich.table import Table

    class SafeTable(Table):
        def add_row(self, *cells: Any, **options: Any) -> None:
            super().add_row(*map(_cleaned, cells), **options)

    return SafeTable
