"""Versions of planescope and of what it runs on, and how much of that there is."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

PAGE_PACKAGES = ("numpy", "plotly")
TRAINING_PACKAGES = (
    "torch",
    "torchvision",
    "pytorch-lightning",
    "numpy",
    "safetensors",
    "pydantic",
)


def version() -> str:
    """Return the version of planescope that is installed."""
    return importlib.metadata.version("planescope")


def cores() -> int:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def environment(device: str, /) -> dict[str, Any]:
    """Return the versions, machine and device.

    The git revision where planescope runs from a checkout.
    """
    import torch

    is_cuda = device.startswith("cuda")
    return {
        "planescope": version(),
        "revision": _revision(Path(__file__).parents[3]),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in TRAINING_PACKAGES},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if is_cuda else platform.machine(),
        "cuda": torch.version.cuda if is_cuda else None,
        "threads": torch.get_num_threads(),
    }


def _revision(checkout: Path) -> str | None:
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def made_by(command: str | None, /) -> dict[str, str]:
    """Return the versions, and the command if there was one."""
    made = {"planescope": version(), "Python": platform.python_version()}
    made |= {name: importlib.metadata.version(name) for name in PAGE_PACKAGES if _installed(name)}
    return made | ({} if command is None else {"command": command})


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
