"""The abilities of the processor at hand: how it keeps memory, and its precision."""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any, Literal

# What a network computes in, by Lightning's names; its weights are kept in 32 bits in all of them.
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]

# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# Above any activation of a batch; glibc before 2.35 takes no more than 32 MiB for the second.
_LARGE, _LARGE_ONCE = 1 << 30, 32 << 20
# Instructions that multiply matrices of bfloat16; without them a CPU is slower so than in float32.
_BFLOAT16 = ("avx512_bf16", "amx_bf16")


@functools.cache
def keep_memory() -> bool:
    """Let this process keep the large blocks that it frees, instead of giving them back.

    A training step frees all that it took, and takes as much again; glibc returns each large block
    to the system, which then clears every page anew. It changes the whole process, so that only
    processes of our own call it: commands, and the workers of a study.

    Returns
    -------
    bool
        Whether the C library took it; only glibc does.
    """
    if os.name != "posix" or "glibc" not in _libc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    large = mallopt(_MMAP_THRESHOLD, _LARGE) or mallopt(_MMAP_THRESHOLD, _LARGE_ONCE)
    return bool(large and mallopt(_TRIM_THRESHOLD, _LARGE))


def _libc() -> str:
    """Return the name and version of the C library, as the system states them."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):  # another C library has no such name
        return ""


def fitting_precision(accelerator: str, /) -> Precision:
    """Choose the precision in which a device computes fastest with weights of 32 bits.

    Parameters
    ----------
    accelerator : {"auto", "cpu", "cuda"}
        As in a config.
    """
    import torch

    if accelerator != "cpu" and torch.cuda.is_available():
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # From torch 2.9 or so on; before, nothing tells.
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        has_bfloat16 = any(capabilities.get(name, False) for name in _BFLOAT16)
    return "bf16-mixed" if has_bfloat16 else "32-true"
