"""The parts that all figures share: sizes on paper, style, colours, and their files."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, ParamSpec

from planescope.files.errors import UsageError
from planescope.files.writing import write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

P = ParamSpec("P")

# What a user's style sheet lays over ours.
_OVER: ContextVar[Mapping[str, Any]] = ContextVar("over", default=MappingProxyType({}))

# A name of `WIDTHS`, or inches.
Width = Literal["column", "page"] | float
WIDTHS = {"column": 3.35, "page": 6.9}
NARROWEST, WIDEST = 2.5, 30.0
MOST_STYLE_BYTES = 1 << 20

# Of a title, for letters of the usual width.
SIGNS_AN_INCH, LONGEST_TITLE = 17, 40

# Okabe and Ito's palette, which colour-blind readers tell apart. A colour says to which side: the
# normals face away from the positive orthant (pi <= 0) or toward it. Grey is what chance gives.
AWAY, TOWARD = "#D55E00", "#0072B2"
NEUTRAL, CHANCE, FAINT = "#333333", "#C8C8C8", "#E4E4E4"

# Without what would make two files of one figure differ.
_METADATA: dict[str, dict[str, None]] = {
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
    "png": {},
}


def canvas(
    width: Width, height: float, *, layout: Literal["constrained"] | None = "constrained"
) -> Figure:
    """Make an empty figure, outside pyplot's state; sizes in inches.

    Raises
    ------
    UsageError
        If `width` is invalid.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(inches(width), height), layout=layout)


def inches(width: Width) -> float:
    """Return the width in inches, from a name or a number.

    Raises
    ------
    UsageError
        If it is neither "column", "page" nor a number of inches that a figure can have.
    """
    given = WIDTHS.get(width) if isinstance(width, str) else width
    if not isinstance(given, (int, float)) or not NARROWEST <= given <= WIDEST:
        raise UsageError(
            f"width {width!r}: give 'column', 'page' or inches from {NARROWEST} to {WIDEST}"
        )
    return float(given)


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in our style, whatever the user's settings are, and leave those as they were."""

    @functools.wraps(draw)
    def in_style(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with our_style():
            figure = draw(*args, **kwargs)
            # Ticks take the settings of the moment of the first drawing, and the layout is found.
            figure.draw_without_rendering()
        # A layout that stays makes every file of the figure the same.
        figure.set_layout_engine("none")
        return figure

    return in_style


def save(figure: Figure, path: str | os.PathLike[str], /) -> None:
    """Write a figure; the suffix chooses .pdf, .svg or .png (300 dpi).

    The same figure gives the same bytes each time. Fonts are embedded in PDF as TrueType; SVG holds
    text as outlines, so that it looks the same without the font.

    Raises
    ------
    UsageError
        If the suffix is none of these.
    OutputError
        If the file cannot be written; nothing is left behind then.
    """

    def writer(form: str) -> Callable[[Path], None]:
        def draft(path: Path) -> None:
            # Into memory first: on a full disk Matplotlib's PDF writer ends in errors of its own.
            drawn = io.BytesIO()
            with our_style():
                figure.savefig(drawn, format=form, metadata=_METADATA[form])
            path.write_bytes(drawn.getbuffer())

        return draft

    write(path, {f".{form}": writer(form) for form in _METADATA})


def shown(name: str, longest: int = 30) -> str:
    """Name as a figure shows it: one line, its middle left out where it is long."""
    line = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in name)
    if len(line) <= longest:
        return line
    head = (longest - 1) // 2
    return f"{line[:head]}…{line[head + 1 - longest :]}"


def fitted(name: str, width: float, rest: str = "") -> str:
    """Name and the rest of a title, in so many inches."""
    room = int(SIGNS_AN_INCH * width) - len(rest)
    return shown(name, max(12, min(room, LONGEST_TITLE))) + rest


@contextlib.contextmanager
def style(path: str | os.PathLike[str] | None, /) -> Iterator[None]:
    """Lay a Matplotlib style sheet of your own over ours, for the time of a block.

    What it does not name stays as planescope has it; a copy of ``planescope.mplstyle``, which lies
    beside this module, is a place to begin.

    Parameters
    ----------
    path : path or None
        The file; None changes nothing.

    Raises
    ------
    UsageError
        If it cannot be read, or has a key or a value that Matplotlib does not know.
    """
    token = _OVER.set(_OVER.get() if path is None else _read_style(Path(path)))
    try:
        yield
    finally:
        _OVER.reset(token)


def _read_style(path: Path) -> dict[str, Any]:
    import matplotlib as mpl

    if not path.is_file():  # Matplotlib would look for it on the network
        raise UsageError(f"{path}: no such style sheet; give the path of an .mplstyle file")
    if path.stat().st_size > MOST_STYLE_BYTES:
        raise UsageError(f"{path}: is too large for a Matplotlib style sheet; is it the right one?")
    told: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("matplotlib")
    # Of unknown keys it only logs; a sheet that is half understood is not the user's style.
    logger.addHandler(listener)
    try:
        found = mpl.rc_params_from_file(path, fail_on_error=True, use_default_template=False)
    except (OSError, ValueError) as exc:
        raise UsageError(f"{path}: is no Matplotlib style sheet: {_line(exc)}") from exc
    finally:
        logger.removeHandler(listener)
    if told:
        raise UsageError(f"{path}: is no Matplotlib style sheet: {_line(told[0])}")
    return {key: found[key] for key in found}


def _line(message: object) -> str:
    """Return the first line of a message."""
    return str(message).strip().partition("\n")[0]


@contextlib.contextmanager
def our_style() -> Iterator[None]:
    """Set Matplotlib as all figures have it, for the time of a block."""
    import matplotlib.style

    ours: list[Path | dict[str, Any]] = [
        Path(__file__).with_name("planescope.mplstyle"),
        dict(_OVER.get()),
    ]
    # From the defaults on: a user's own settings (TeX, grids, sizes) must not change a figure.
    with matplotlib.style.context(ours, after_reset=True), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes, which is no one's mistake.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield
