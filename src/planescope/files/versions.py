"""What a run was made with, beyond its config."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import planescope

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "numpy", "safetensors", "pydantic")


def environment(device: str, /) -> dict[str, Any]:
    """Versions, machine and device; the git revision where planescope runs from a checkout."""
    import torch

    is_cuda = device.startswith("cuda")
    return {
        "planescope": planescope.__version__,
        "revision": _revision(Path(planescope.__file__).parents[2]),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
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
