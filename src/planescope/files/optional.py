"""Import what is optional: a package, or a callable, which runs where the user consented to it.

A name that the user typed is consent. One that stands in a run, in a study's folder or in a saved
result is somebody else's until the user types it too, or trusts what is named there.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from planescope.files.errors import (
    MissingDependencyError,
    PlanescopeError,
    UsageError,
    nearest,
    one_line,
    own_place,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

Kind = Literal["network", "data"]

# Prefixes of what names no code of its own.
_KNOWN = {"network": ("torchvision:", "timm:"), "data": ("folder:", "noise:")}
# Factories of this package, by each name that a run may have for them.
_OURS = (
    "planescope.data.small:sklearn_digits",
    "planescope.training.small:sklearn_digits",  # as runs of earlier versions have it
)


def is_foreign(name: str, kind: Kind, /) -> bool:
    """Tell a callable of somebody's own from names that need no trust."""
    return ":" in name and not name.startswith(_KNOWN[kind]) and name not in _OURS


def consented(
    name: str, /, *, kind: Kind, where: object, trust: bool | str | Collection[str] = False
) -> str:
    """Return a name from a run, a study or a result, if what it names may run.

    Parameters
    ----------
    kind : {"network", "data"}
        What it is to be, and the option that it is typed with.
    where : object
        The file that has it, for the message.
    trust : bool, str or collection of str
        True for whatever is named; else the names that the user typed.

    Raises
    ------
    UsageError
        If it is code that the user did not consent to.
    """
    if not is_foreign(name, kind) or is_trusted(name, trust):
        return name
    raise UsageError(
        f"{where}: names {name} as its {kind}, code that would run; give --{kind} {name} if you "
        f"know it, or --trust to run what is named there (from Python: trust={name!r}, or True)"
    )


def is_trusted(name: str, trust: bool | str | Collection[str], /) -> bool:
    """Tell whether the user named this very thing, or trusts all that is named."""
    typed = typed_names(trust)
    return typed if isinstance(typed, bool) else name in typed


def typed_names(trust: bool | str | Collection[str], /) -> bool | frozenset[str]:
    """Return whether all is trusted or nothing, else the names that are.

    Raises
    ------
    UsageError
        If it is none of these: what is not understood is no consent.
    """
    if isinstance(trust, bool):
        return trust
    if isinstance(trust, str):
        return frozenset({trust})
    if isinstance(trust, Collection) and all(isinstance(name, str) for name in trust):
        return frozenset(trust)
    raise UsageError(f"trust={trust!r}: give True or False, or the names that may run")


def search_working_folder() -> None:
    """Put the working folder on the import path, behind all else, as ``--trust`` says."""
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)


# What pip is told where it is not '.[train]' that brings a package.
_INSTALLED_BY = {
    "timm": "timm", "torch_pruning": "torch-pruning", "onnx": "'.[onnx]'",
    "onnxruntime": "'.[onnx]'",
}  # fmt: skip


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
        wanted = _INSTALLED_BY.get(package, "'.[train]'")
        raise MissingDependencyError(f"{package} is not installed: pip install {wanted}") from exc


def find_callable(package: str, attribute: str, kind: str, others: str) -> Callable[..., Any]:
    """Import a callable that the user consented to; the working folder is searched too.

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
        named = package.removesuffix(".py").replace("/", ".").strip(".")
        hint = "" if named == package else f"; a module is named as for import, {named}:{attribute}"
        raise UsageError(
            f"no module {package!r} can be imported; a {kind} is {others} or "
            f"package.module:callable{hint}"
        ) from exc
    found: Callable[..., Any] | None = getattr(module, attribute, None)
    if not callable(found):
        raise UsageError(
            f"{package} has no callable {attribute!r}; {nearest(attribute, _callables(module))}"
        )
    return found


def call(name: str, function: Callable[..., Any], /, **options: Any) -> Any:
    """Call what a user named.

    Raises
    ------
    UsageError
        If it fails; its own error is the cause.
    """
    try:
        return function(**options)
    except (PlanescopeError, MemoryError):
        raise
    except Exception as exc:  # anybody's code
        place = own_place(exc)
        where = f" in code of its own, {place}" if place else ""
        raise UsageError(
            f"{name} fails{where}: {type(exc).__name__}: {one_line(exc)}; call it by itself to see "
            "why"
        ) from exc


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
