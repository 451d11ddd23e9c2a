"""Arrays of frameworks that keep filters on the last axis, in PyTorch's order."""

from __future__ import annotations

import numpy as np

_BIASES = {"kernel": "bias", "w": "b", "W": "b"}


def filters_first(arrays):
    """(*kernel, in, out) as (out, in, *kernel), under the names that PyTorch gives."""
    found = dict(arrays)
    for name, values in arrays.items():
        module, _, ending = name.rpartition(".")
        is_paddle = ending == "weight" and values.ndim == 2
        if values.ndim > 1 and (ending in _BIASES or is_paddle):
            del found[name]
            # Flax has the inputs of a transposed convolution before its outputs, and PyTorch too.
            front = (-2, -1) if "ConvTranspose" in module else (-1, -2)
            found[f"{module}.weight"] = np.moveaxis(values, front, (0, 1))
            bias = f"{module}.{_BIASES.get(ending, 'bias')}"
            if bias in arrays:
                found[f"{module}.bias"] = found.pop(bias)
    return found
