"""``planescope --about``: what a report of a fault should say of the machine."""

from __future__ import annotations

import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version

from planescope import __version__

# Whose files and networks it takes, where they are installed.
_NEIGHBOURS = ("jax", "keras", "lightning", "onnx", "onnxruntime", "timm", "transformers")


def about() -> str:
    """Return the versions of planescope, Python, the system and what planescope uses.

    Nothing is imported for it, and it holds no paths, no names of machines and no settings.
    """
    libc = " ".join(part for part in platform.libc_ver() if part)
    system = [platform.system(), platform.release(), platform.machine(), libc]
    lines = [
        f"planescope {__version__}",
        f"{platform.python_implementation()} {platform.python_version()}",
        " ".join(part for part in system if part),
        *(f"{name} {_version(name) or 'not installed'}" for name in _packages()),
        *(f"{name} {found}" for name in _NEIGHBOURS if (found := _version(name))),
    ]
    return "\n".join(lines)


def _packages() -> list[str]:
    """Return what planescope uses, with all its extras, as its own metadata list it."""
    try:
        needed = requires("planescope") or []
    except PackageNotFoundError:  # run from its sources
        return []
    names = {re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in needed}
    return sorted(names - {"planescope"}, key=str.lower)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
