"""Import what is optional: a package, or a callable of the user's own."""

from __future__ import annotations

import contextlib
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planescope.files.errors import MissingDependencyError, UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType


def required(package: str) -> ModuleType:
    """Import an optional package.

    Raises
    ------
    MissingDependencyError
        If it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as exc:
        if exc.name != package:
            raise  # it is there, what it imports is not: its own message is the useful one
        wanted = "timm" if package == "timm" else "'planescope[train]'"
        raise MissingDependencyError(f"{package} is not installed: pip install {wanted}") from exc


def find_callable(package: str, attribute: str, kind: str, others: str) -> Callable[..., Any]:
    """Import a callable; modules in the working folder are found too.

    Parameters
    ----------
    kind : str
        What it is to be, for the message: ``"network"``.
    others : str
        What else could have been given instead, for the message.

    Raises
    ------
    UsageError
        If there is no such module, or it has no such callable. What fails inside the module keeps
        its own error.
    """
    try:
        with _working_folder_last():
            module = importlib.import_module(package)
    except (ModuleNotFoundError, ValueError) as exc:  # ValueError: an empty name
        name = getattr(exc, "name", None) or package
        if package != name and not package.startswith(f"{name}."):
            raise  # the module is there, what it imports is not
        raise UsageError(
            f"no module {package!r} can be imported; a {kind} is {others} or "
            "package.module:callable"
        ) from exc
    found: Callable[..., Any] | None = getattr(module, attribute, None)
    if not callable(found):
        raise UsageError(
            f"{package} has no callable {attribute!r}; {nearest(attribute, _callables(module))}"
        )
    return found


def _callables(module: ModuleType) -> list[str]:
    return [name for name, value in vars(module).items() if callable(value)]


@contextlib.contextmanager
def _working_folder_last() -> Iterator[None]:
    """Let the working folder be searched, behind all else: nothing there may hide a library."""
    folder = str(Path.cwd())
    if folder in sys.path:
        yield
        return
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
