"""The precision of computing, and the one that fits a device."""

from __future__ import annotations

from typing import Any, Literal

# What a network computes in, by Lightning's names; its weights are kept in 32 bits in all of them.
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]

# Instructions that multiply matrices of bfloat16; without them a CPU is slower so than in float32.
_BFLOAT16 = ("avx512_bf16", "amx_bf16")


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
