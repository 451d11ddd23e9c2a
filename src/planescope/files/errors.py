"""Everything that a user can cause to go wrong, by what they can do about it.

A message is one sentence: what is wrong, where, and what to do. The command line prints it and ends
with `status`: 2 for wrong usage or input, 1 for a run that failed.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

# Beyond it the middle is left out: a file may have given a name of a megabyte.
MAX_MESSAGE = 1000


class PlanescopeError(Exception):
    """Base of all errors that planescope raises on purpose.

    The message is one line that any terminal can print, whatever names a file has put into it:
    line ends, escape sequences and half surrogate pairs come as backslash escapes.
    """

    status = 2

    def __init__(self, message: object = "") -> None:
        text = str(message)
        if len(text) > MAX_MESSAGE:
            text = f"{text[: MAX_MESSAGE // 2]} ... {text[-MAX_MESSAGE // 3 :]}"
        super().__init__(printable(text))


class UsageError(PlanescopeError):
    """An option or argument that is invalid; give another."""


class CheckpointError(PlanescopeError):
    """A file that is missing, damaged or not what it claims; get it again or give another."""


class NoLayersError(PlanescopeError):
    """Nothing to measure with these options; choose other kinds or names."""


class OutputError(PlanescopeError):
    """A result that cannot be written; give another place."""


class MissingDependencyError(PlanescopeError):
    """An optional package is not installed; the message says which to install."""


class RunError(PlanescopeError):
    """A training run that failed; what it had saved is kept."""

    status = 1


class StoppedError(RunError):
    """A training run that was asked to stop, as by Ctrl-C; it can be resumed."""

    status = 130


def one_line(exc: BaseException, /) -> str:
    """Join the lines of a library's error, for a sentence of ours."""
    return " ".join(str(exc).split()) or type(exc).__name__


def counted(number: int, noun: str, /) -> str:
    """Return a number with what it counts, which agree: ``1 layer``, ``2 layers``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


# The hub holds weights; what network they are of is code.
OF_THE_HUB = (
    "of a model on the Hugging Face hub give package.module:callable, a function that returns it "
    "as transformers builds it"
)


def published(name: str, /, *, as_network: bool = False) -> str:
    """Say how a published network of that name would be given; "" where none has such a name.

    `as_network` is of what is to be built, not of a file to be read.
    """
    has_suffix = os.path.splitext(name)[1][1:].isalpha()  # noqa: PTH122  no file
    if re.fullmatch(r"[A-Za-z][\w.-]*/[A-Za-z][\w.-]*", name) and not has_suffix:
        return (
            f"; {OF_THE_HUB}" if as_network else f"; a model on the Hugging Face hub is hf:{name}"
        )
    if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", name):
        return (
            "; code of your own is no checkpoint: give the file of its weights, and "
            f"--network {name} (from Python the module itself)"
        )
    if re.fullmatch(r"[a-z][a-z0-9_]*\d[a-z0-9_]*(\.\w+)?", name):
        return f"; a published network is torchvision:{name} or timm:{name}"
    return ""


def nearest(name: str, known: Collection[str], /) -> str:
    """Name the known names that are most like one that is unknown, for the end of a sentence."""
    return f"the nearest are {', '.join(difflib.get_close_matches(name, known, cutoff=0.0))}"


def own_place(exc: BaseException, /) -> str:
    """Return the place of an error, ``file, line N``, if its code is no library's and not ours.

    A fault in a library's code says that a network does not take its inputs.
    """
    frames = traceback.extract_tb(exc.__traceback__)
    if not frames:
        return ""
    file = Path(frames[-1].filename)
    torch = getattr(sys.modules.get("torch"), "__file__", None) or __file__
    libraries = {Path(__file__).parents[1], Path(torch).parent}
    if not _INSTALLED.isdisjoint(file.parts) or not libraries.isdisjoint(file.parents):
        return ""
    return f"{file}, line {frames[-1].lineno}"


# Folders in which packages are installed.
_INSTALLED = {"site-packages", "dist-packages"}


def printable(text: str, /) -> str:
    """Return text that any terminal or page can show, on one line.

    What controls a terminal or turns the direction of writing, line ends and half surrogate pairs
    come as backslash escapes.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
