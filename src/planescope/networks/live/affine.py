"""Weights of modules with a forward of their own: the linear map or convolution that they compute.

A class may standardise its weight, scale it, add parts of low rank to it, or keep it the other way
round. So its forward runs on a copy, in evaluation: what it hands to torch's one convolution or
product is the weight, where that gives the output; else the weight is recovered from impulses, and
held against other inputs. What is no affine map of its input has no such weight.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from planescope.hyperplanes.layer import Place
from planescope.networks.live.copies import (
    base_layer,
    is_undrawn,
    own_tensors,
    same_random_states,
    stand_in,
    without_autocast,
)
from planescope.networks.live.impulses import TOLERANCES, from_impulses
from planescope.networks.live.trial import Acting, Trial, per_dimension, tensor_given

# Taps of a kernel that is guessed from a shape, in each dimension.
_MOST_TAPS = 64
# Inputs that are tried to find one which a forward takes.
_MOST_INPUTS = 10


class NotAffineError(Exception):
    """No weight explains what a module gives; the message is the reason for the table."""


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """A module that a graph need not look into.

    Attributes
    ----------
    place, stride
        Of a layer.
    eps : float or None
        Of a norm; `behind` names those of its parts that act on what it gives.
    rectifies : bool
        Whether it ends in a ReLU.
    """

    place: Place | None = None
    stride: Any = 1
    eps: float | None = None
    behind: tuple[str, ...] = ()
    rectifies: bool = False


def frozen_norm(module: nn.Module, /) -> Leaf | None:
    """Recognise a norm that scales and shifts each channel by what it holds, whatever its class.

    It is one if it has a running mean and variance and gives what they say; parts called `drop` and
    `act` may stand behind it.
    """
    held = {**module._parameters, **module._buffers}
    mean, variance = held.get("running_mean"), held.get("running_var")
    if mean is None or variance is None or mean.ndim != 1 or mean.shape != variance.shape:
        return None
    behind = tuple(part for part in ("drop", "act") if module._modules.get(part) is not None)
    eps = getattr(module, "eps", getattr(module, "epsilon", 1e-5))
    with torch.no_grad(), without_autocast(mean.device), contextlib.suppress(Exception):
        twin = stand_in(module, dtype=torch.float64)
        twin._modules.update({part: nn.Identity() for part in behind})
        for dims in (2, 1, 3, 0):
            with contextlib.suppress(Exception):
                if _normalises(twin, mean, dims, float(eps)):
                    return Leaf(eps=float(eps), behind=behind)
    return None


def _normalises(twin: nn.Module, mean: torch.Tensor, dims: int, eps: float) -> bool:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((4, len(mean), *[3] * dims), generator=generator, dtype=torch.float64)
    x = x.to(mean.device)
    held = {**twin._parameters, **twin._buffers}
    scale, shift = held.get("weight"), held.get("bias")
    wanted = functional.batch_norm(
        x, held["running_mean"], held["running_var"], scale, shift, eps=eps
    )
    return bool(torch.allclose(tensor_given(twin(x)), wanted, rtol=1e-6, atol=1e-9))


def solve(module: nn.Module, /, *, like: Acting | None = None) -> Acting:
    """Find the weight and bias that act when a module runs in evaluation.

    Generators and the module stay as they are; its forward runs on copies of what it holds.

    Parameters
    ----------
    like : Acting, optional
        What was found in the same module before, which is then looked for first.

    Raises
    ------
    NotAffineError
        If what it gives is no affine map of one input, or the input cannot be guessed.
    """
    held = own_tensors(module)
    if any(is_undrawn(tensor) for tensor in held):
        raise NotAffineError("it has no values yet, or they lie on the meta device")
    device = next((t.device for t in held if t.device.type != "cpu"), torch.device("cpu"))
    dtype = next((t.dtype for t in held if t.dtype in TOLERANCES), torch.float32)
    with torch.no_grad(), without_autocast(device), same_random_states():
        if like is not None and like.handed is not None:
            shape, number = like.handed
            with contextlib.suppress(Exception):
                if (found := Trial(module, shape, device, dtype).handed_again(number)) is not None:
                    return found
        for small, roomy in itertools.islice(_inputs(module, held), _MOST_INPUTS):
            for shape in dict.fromkeys((small, roomy)):
                one, handed = Trial(module, shape, device, dtype), None
                with contextlib.suppress(Exception):  # forward is anybody's code
                    handed = one.handed_over()
                if handed is not None:
                    break
            if handed is not None and handed.is_direct:
                return handed
            with contextlib.suppress(Exception):
                if (found := from_impulses(one)) is not None:
                    return found
            if handed is not None:  # it acts on what the module makes of its input
                return handed
    raise NotAffineError(
        f"its class {type(module).__name__} has a forward of its own, and what that gives is no "
        "affine map of one input with a weight that could be recovered"
    )


# --- inputs


def _inputs(
    module: nn.Module, held: Sequence[torch.Tensor]
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield the shapes of one input that the forward may take, channels then positions.

    Small, and roomy.
    """
    seen, base = set(), base_layer(module)
    for channels, dims in _guesses(base, held):
        small, roomy = ((channels, *_positions(base, held, dims, size)) for size in (1, 2))
        if channels > 0 and small not in seen:
            seen.add(small)
            yield small, roomy


def _guesses(module: nn.Module, held: Sequence[torch.Tensor]) -> Iterator[tuple[int, int]]:
    """Yield the channels and dimensions that an input may have, the likeliest first."""
    groups = getattr(module, "groups", 1)
    groups = groups if isinstance(groups, int) else 1
    told = getattr(module, "in_features", getattr(module, "in_channels", None))
    ranked = sorted(held, key=lambda tensor: -tensor.numel())
    dims = _told_dims(module)
    if isinstance(told, int):
        for tensor in ranked:
            yield told, max(tensor.ndim - 2, 0) if dims is None else dims
        yield told, 0 if dims is None else dims
    for tensor in ranked:
        shape = tuple(tensor.shape)
        if len(shape) == 2:
            yield shape[1], 0
            yield shape[0], 0
        elif 3 <= len(shape) <= 5:
            yield shape[1] * groups, len(shape) - 2
            yield shape[0], len(shape) - 2
            if len(shape) == 5:  # several filter banks in one
                yield shape[2] * groups, 2


def _told_dims(module: nn.Module) -> int | None:
    kernel = getattr(module, "kernel_size", None)
    if isinstance(kernel, tuple):
        return len(kernel)
    last = type(module).__name__.lower()[-2:]
    return int(last[0]) if last in ("1d", "2d", "3d") else None


def _positions(
    module: nn.Module, held: Sequence[torch.Tensor], dims: int, size: int
) -> tuple[int, ...]:
    """Return the extents with two outputs each, or with several that no border touches."""
    if dims == 0:
        return ()
    kernels = [tuple(t.shape[-dims:]) for t in held if t.ndim >= dims + 2]
    taps = per_dimension(getattr(module, "kernel_size", None), dims)
    if taps is None:
        taps = tuple(map(max, zip(*kernels, strict=True))) if kernels else (3,) * dims
    dilation = per_dimension(getattr(module, "dilation", 1), dims) or (1,) * dims
    stride = per_dimension(getattr(module, "stride", 1), dims) or (1,) * dims
    return tuple(
        size * (d * (min(k, _MOST_TAPS) - 1) + 1 + s)
        for k, d, s in zip(taps, dilation, stride, strict=True)
    )
