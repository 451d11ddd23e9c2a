"""Weights recovered from a module's responses to impulses, and held against other inputs."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterator

import torch
from torch.nn import functional

from planescope.networks.live.trial import Acting, Form, Trial, per_dimension

# How far what a module gives may be from what its weight gives, by the type computed in.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
# Multiplications that recovering a weight may take in float64; of more the module's own type.
_MOST_IN_DOUBLE = 1 << 31
# Values of impulses, or of what comes out of them, held at a time.
_MOST_VALUES = 1 << 24
_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def from_impulses(trial: Trial) -> Acting | None:
    """Recover the weight, in float64 where the module can; None where no form explains it."""
    y = trial.run(trial.draw())
    if trial.shape[1:] and y.ndim != 1 + len(trial.shape):
        return None
    forms = list(_forms(trial))
    tries = [trial]
    if trial.dtype != torch.float64 and _cost(trial, y) <= _MOST_IN_DOUBLE:
        tries.insert(0, dataclasses.replace(trial, dtype=torch.float64))
    for one in tries:
        for form in forms:
            with contextlib.suppress(Exception):
                weight, bias = _recovered(one, form)
                if _explains(one, weight, bias, form):
                    return Acting(weight=weight, bias=bias, form=form, rectifies=one.rectifies)
    return None


def _cost(trial: Trial, y: torch.Tensor) -> int:
    return trial.shape[0] ** 2 * math.prod(trial.shape[1:]) * int(y.shape[1])


def _forms(trial: Trial) -> Iterator[Form]:
    """Yield the forms that the map may have.

    Those of the convolutions seen, widest first; what it tells.
    """
    dims, module = len(trial.shape) - 1, trial.module
    if dims == 0:
        yield Form()
        return
    forms = [form for form in trial.forms if len(form.kernel) == dims]
    told = {
        name: per_dimension(getattr(module, name, default), dims)
        for name, default in (("kernel_size", None), ("stride", 1), ("padding", 0), ("dilation", 1))
    }
    groups = getattr(module, "groups", 1)
    if not forms and all(value is not None for value in told.values()) and type(groups) is int:
        kernel, stride, padding, dilation = told.values()
        forms = [
            Form(
                kernel=kernel or (),
                stride=stride or (),
                padding=padding or (),
                dilation=dilation or (),
                groups=groups,
            )
        ]
    yield from sorted(dict.fromkeys(forms), key=lambda form: -math.prod(form.kernel))


def _recovered(trial: Trial, form: Form) -> tuple[torch.Tensor, torch.Tensor]:
    channels = trial.shape[0]
    if not form.kernel:
        bias = trial.run(_zeros(trial, 1, (channels,)))[0]
        rows = [
            trial.run(part) - bias
            for part in torch.eye(channels, device=trial.device, dtype=trial.dtype).split(
                max(1, _MOST_VALUES // max(channels, len(bias)))
            )
        ]
        return torch.cat(rows).t().contiguous(), bias
    return (_from_transposed if form.transposed else _from_convolution)(trial, form)


def _zeros(trial: Trial, count: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.zeros((count, *shape), device=trial.device, dtype=trial.dtype)


def _middle(form: Form) -> tuple[int, ...]:
    """Return the place of an impulse: away from the border by the padding, and by all taps."""
    return tuple(max(e - 1 - p, p + 1, 0) for e, p in zip(form.extent, form.padding, strict=True))


def _responses(
    trial: Trial, form: Form, at: tuple[int, ...], extents: tuple[int, ...]
) -> Iterator[tuple[int, torch.Tensor]]:
    """Return responses to an impulse in each channel of a group, in all groups, less the bias."""
    channels = trial.shape[0]
    per_group = channels // form.groups
    rest = trial.run(_zeros(trial, 1, (channels, *extents)))
    chunk = max(1, _MOST_VALUES // max(channels * math.prod(extents), rest.numel()))
    for first in range(0, per_group, chunk):
        count = min(chunk, per_group - first)
        x = _zeros(trial, count, (channels, *extents))
        for index in range(count):
            x[(index, slice(first + index, None, per_group), *at)] = 1
        for index, response in enumerate(trial.run(x) - rest):
            yield first + index, response


def _from_convolution(trial: Trial, form: Form) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the taps of a convolution, each read where an impulse comes out of it."""
    middle = _middle(form)
    extents = tuple(2 * p + s for p, s in zip(middle, form.stride, strict=True))
    bias = _bias(trial, extents)
    shape = (len(bias), trial.shape[0] // form.groups, *form.kernel)
    weight = torch.zeros(shape, device=trial.device, dtype=trial.dtype)
    for shift in itertools.product(*map(range, form.stride)):
        at = tuple(p + s for p, s in zip(middle, shift, strict=True))
        # An output of index q reads the impulse by the tap t with q stride + t dilation = at + pad.
        reads = [
            [
                (tap, (a + p - tap * d) // s)
                for tap in range(k)
                if (a + p - tap * d) % s == 0 and a + p - tap * d >= 0
            ]
            for a, p, d, s, k in zip(
                at, form.padding, form.dilation, form.stride, form.kernel, strict=True
            )
        ]
        for channel, response in _responses(trial, form, at, extents):
            for pairs in itertools.product(*reads):
                taps, outputs = zip(*pairs, strict=True)
                weight[(slice(None), channel, *taps)] = response[(slice(None), *outputs)]
    return weight, bias


def _from_transposed(trial: Trial, form: Form) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the taps of a transposed convolution: an impulse paints them all."""
    middle = tuple(-(-max(p, 1) // s) for p, s in zip(form.padding, form.stride, strict=True))
    extents = tuple(
        2 * m + 1 + -(-e // s) for m, e, s in zip(middle, form.extent, form.stride, strict=True)
    )
    rest = trial.run(_zeros(trial, 1, (trial.shape[0], *extents)))[0]
    bias = rest[(slice(None), *(size // 2 for size in rest.shape[1:]))]
    outputs, per_group = len(bias) // form.groups, trial.shape[0] // form.groups
    weight = _zeros(trial, trial.shape[0], (outputs, *form.kernel))
    window = tuple(
        slice(m * s - p, m * s - p + e, d)
        for m, s, p, e, d in zip(
            middle, form.stride, form.padding, form.extent, form.dilation, strict=True
        )
    )
    for channel, response in _responses(trial, form, middle, extents):
        painted = response[(slice(None), *window)].reshape(form.groups, outputs, *form.kernel)
        weight[channel::per_group] = painted
    return weight, bias


def _bias(trial: Trial, extents: tuple[int, ...]) -> torch.Tensor:
    rest = trial.run(_zeros(trial, 1, (trial.shape[0], *extents)))[0]
    return rest[(slice(None), *(size // 2 for size in rest.shape[1:]))]


def _explains(trial: Trial, weight: torch.Tensor, bias: torch.Tensor, form: Form) -> bool:
    """Check that weight and bias give what the module gives on other inputs."""
    x = trial.draw(8)
    y = trial.run(x)
    if not form.kernel:
        square = weight.shape[0] == weight.shape[1] > 1
        if square and not (weight - weight.diag().diag()).any():
            return False  # each value by itself: a scale, or what adds something
        wanted = x @ weight.t() + bias
    elif form.transposed:
        whole = _TRANSPOSED[len(form.kernel)](
            x, weight, bias, form.stride, 0, 0, form.groups, form.dilation
        )
        cut = [slice(p, None) for p in form.padding]
        wanted = whole[(..., *cut)]
        sizes = [min(a, b) for a, b in zip(wanted.shape[2:], y.shape[2:], strict=True)]
        wanted, y = (t[(..., *map(slice, sizes))] for t in (wanted, y))
    else:
        first = [-(-p // s) for p, s in zip(form.padding, form.stride, strict=True)]
        cut = [
            slice(q * s - p, None) for q, s, p in zip(first, form.stride, form.padding, strict=True)
        ]
        wanted = _CONVOLUTIONS[len(form.kernel)](
            x[(..., *cut)], weight, bias, form.stride, 0, form.dilation, form.groups
        )
        inner = [slice(q, q + n) for q, n in zip(first, wanted.shape[2:], strict=True)]
        y = y[(..., *inner)]
    if wanted.shape != y.shape or not wanted.numel() or not weight.any():
        return False
    error = (wanted - y).abs().flatten(1).amax(1)
    size = wanted.abs().flatten(1).amax(1)
    return bool((error <= TOLERANCES[trial.dtype] * size).all())
