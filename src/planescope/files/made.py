"""What a page says of how it was made."""

from __future__ import annotations

import importlib.metadata
import platform

import planescope

PACKAGES = ("numpy", "plotly")


def made_by(command: str | None, /) -> dict[str, str]:
    """Versions, and the command if there was one."""
    made = {"planescope": planescope.__version__, "Python": platform.python_version()}
    made |= {name: importlib.metadata.version(name) for name in PACKAGES if _installed(name)}
    return made | ({} if command is None else {"command": command})


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
