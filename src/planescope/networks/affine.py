"""Weights of modules with a forward of their own: the linear map or convolution that they compute.

A class may standardise its weight, scale it, add parts of low rank to it, or keep it the other way
round. So its forward runs on a copy, in evaluation: what it hands to torch's one convolution or
product is the weight, where that gives the output; else the weight is recovered from impulses, and
held against other inputs. What is no affine map of its input has no such weight.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from planescope.hyperplanes.layer import Kind, Place, kind_of_convolution
from planescope.networks.copies import (
    base_layer,
    is_undrawn,
    own_tensors,
    stand_in,
    without_autocast,
)

# How far what a module gives may be from what its weight gives, by the type computed in.
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
# Sizes of the inputs on which a weight is tried: what clips, rounds or bends shows on some.
_SIZES = (100.0, 0.01, 1.0, 3.0)
# Multiplications that recovering a weight may take in float64; of more the module's own type.
_MOST_IN_DOUBLE = 1 << 31
# Values of impulses, or of what comes out of them, held at a time.
_MOST_VALUES = 1 << 24
# Taps of a kernel that is guessed from a shape, in each dimension.
_MOST_TAPS = 64
# Inputs that are tried to find one which a forward takes.
_MOST_INPUTS = 10

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}
_RELUS = {"relu", "relu_"}
_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}


class NotAffineError(Exception):
    """No weight explains what a module gives; the message is the reason for the table."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """The action of a weight: a linear map (no kernel), a convolution, or a transposed one.

    `padding` is what lies before the input in each dimension.
    """

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False

    @property
    def place(self) -> Place:
        """Return the layer's place as the form tells it."""
        if not self.kernel:
            return Place(kind=Kind.LINEAR, groups=1)
        kind = Kind.TRANSPOSED if self.transposed else kind_of_convolution(self.kernel)
        return Place(kind=kind, groups=self.groups)

    @property
    def extent(self) -> tuple[int, ...]:
        """Return the inputs from the first tap to the last, in each dimension."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True))


@dataclass(frozen=True, kw_only=True, eq=False)
class Acting:
    """The weight that acts, and how.

    Attributes
    ----------
    weight, bias : tensor
        As torch lays them out for the form.
    rectifies : bool
        Whether the module ends in a ReLU.
    handed : pair, or None
        Where the module hands the weight to torch: shape of an input, and which of its calls.
    is_direct : bool
        Whether it then acts on the input as it is, or padded.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    form: Form
    rectifies: bool = False
    handed: tuple[tuple[int, ...], int] | None = None
    is_direct: bool = False


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
    return bool(torch.allclose(_output(twin(x)), wanted, rtol=1e-6, atol=1e-9))


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
    dtype = next((t.dtype for t in held if t.dtype in _TOLERANCES), torch.float32)
    with torch.no_grad(), without_autocast(device), _drawing_nothing(device):
        if like is not None and like.handed is not None:
            shape, number = like.handed
            with contextlib.suppress(Exception):
                if (found := _Trial(module, shape, device, dtype).handed_again(number)) is not None:
                    return found
        for small, roomy in itertools.islice(_inputs(module, held), _MOST_INPUTS):
            for shape in dict.fromkeys((small, roomy)):
                one, handed = _Trial(module, shape, device, dtype), None
                with contextlib.suppress(Exception):  # forward is anybody's code
                    handed = one.handed_over()
                if handed is not None:
                    break
            if handed is not None and handed.is_direct:
                return handed
            with contextlib.suppress(Exception):
                if (found := _from_impulses(one)) is not None:
                    return found
            if handed is not None:  # it acts on what the module makes of its input
                return handed
    raise NotAffineError(
        f"its class {type(module).__name__} has a forward of its own, and what that gives is no "
        "affine map of one input with a weight that could be recovered"
    )


@contextlib.contextmanager
def _drawing_nothing(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


# --- inputs


def _inputs(
    module: nn.Module, held: Sequence[torch.Tensor]
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Shapes of one input that the forward may take, channels then positions: small, and roomy."""
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
    taps = _each(getattr(module, "kernel_size", None), dims)
    if taps is None:
        taps = tuple(map(max, zip(*kernels, strict=True))) if kernels else (3,) * dims
    dilation = _each(getattr(module, "dilation", 1), dims) or (1,) * dims
    stride = _each(getattr(module, "stride", 1), dims) or (1,) * dims
    return tuple(
        size * (d * (min(k, _MOST_TAPS) - 1) + 1 + s)
        for k, d, s in zip(taps, dilation, stride, strict=True)
    )


def _each(value: Any, dims: int) -> tuple[int, ...] | None:
    if isinstance(value, int):
        return (value,) * dims
    if isinstance(value, tuple | list) and len(value) == dims:
        return tuple(int(v) for v in value)
    return None


# --- what is handed to torch


@dataclass(frozen=True, eq=False)
class _Call:
    name: str
    args: tuple[Any, ...]
    output: torch.Tensor
    version: int

    @property
    def is_untouched(self) -> bool:
        """Tell whether the output is still as the module gave it."""
        return bool(self.output._version == self.version)

    def is_like(self, other: _Call) -> bool:
        """Return whether the other run of the same forward gave it the same operands."""
        return self.name == other.name and all(
            a.shape == b.shape and torch.equal(a, b)
            for a, b in zip(self.args, other.args, strict=True)
            if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
        )


class _Calls(TorchDispatchMode):  # type: ignore[misc]
    """The convolutions and products that run meanwhile, and what the last ReLU was given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self.rectifies = False
        self._relu: tuple[torch.Tensor, torch.Tensor] | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        given = args[0].clone() if name in _RELUS else None
        output = func(*args, **(kwargs or {}))
        if given is not None:
            self._relu = (given, output)
        if name == "convolution" or name in _PRODUCTS:
            self.calls.append(_Call(name, tuple(args), output, output._version))
        return output

    def before_relu(self, output: torch.Tensor) -> torch.Tensor:
        """Return the input of the ReLU that made an output, or the output itself."""
        if self._relu is not None and self._relu[1].data_ptr() == output.data_ptr():
            self.rectifies = self._relu[0].shape == output.shape
            return self._relu[0] if self.rectifies else output
        return output


@dataclass(eq=False)
class _Trial:
    """A module, and inputs of one shape and type that it may take."""

    module: nn.Module
    shape: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.forms: list[Form] = []
        self.rectifies = False

    def draw(self, count: int = 4) -> torch.Tensor:
        """Return the inputs of several sizes."""
        x = torch.randn((count, *self.shape), generator=self.generator, dtype=torch.float64)
        sizes = torch.tensor(_SIZES, dtype=torch.float64).repeat(-(-count // len(_SIZES)))[:count]
        return (x * sizes.reshape(-1, *[1] * len(self.shape))).to(self.device, self.dtype)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        """Give what the module gives, before the ReLU where one ends it."""
        return self._watched(x)[0]

    def _watched(self, x: torch.Tensor) -> tuple[torch.Tensor, list[_Call]]:
        # A copy for each run: what a forward changes, as observers do, must not add up.
        wide = self.dtype if self.dtype == torch.float64 else None
        twin = stand_in(self.module, dtype=wide)
        with _Calls() as seen:
            y = _output(twin(x))
        y = seen.before_relu(y)
        self.rectifies = seen.rectifies
        return y, seen.calls

    def handed_over(self) -> Acting | None:
        """Weight and bias of the one convolution or product that makes the output; else None."""
        x, z = self.draw(2), self.draw(2)
        (y, calls), (_, again) = self._watched(x), self._watched(z)
        self.forms = [_form(call, x) for call in calls if call.name == "convolution"]
        if len(calls) != len(again):
            return None
        pairs = zip(calls, again, strict=True)
        of_inputs = [index for index, (one, two) in enumerate(pairs) if not one.is_like(two)]
        if len(of_inputs) != 1:
            return None
        (number,) = of_inputs
        found, other = self._whole(x, y, calls[number]), _operands(again[number], z)
        if found is None or other is None or not _are_equal(found, other):
            return None
        return dataclasses.replace(found, handed=(self.shape, number))

    def handed_again(self, number: int) -> Acting | None:
        """Return the same of a module in which it was found before."""
        x = self.draw(1)
        y, calls = self._watched(x)
        found = self._whole(x, y, calls[number])
        return found and dataclasses.replace(found, handed=(self.shape, number))

    def _whole(self, x: torch.Tensor, y: torch.Tensor, call: _Call) -> Acting | None:
        """Return the operands of a call, if its output is what the module gives."""
        if call.output.numel() != y.numel() or not torch.equal(
            call.output.reshape(-1), y.reshape(-1)
        ):
            return None
        # A clamp would not show where nothing is below 0, with zero weights for example.
        is_itself = y.data_ptr() == call.output.data_ptr() and call.is_untouched
        if not (self.rectifies or is_itself) and bool((y >= 0).all()):
            return None
        found = _operands(call, x)
        return found and dataclasses.replace(found, rectifies=self.rectifies)


def _are_equal(one: Acting, other: Acting) -> bool:
    return all(
        (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
        for a, b in ((one.weight, other.weight), (one.bias, other.bias))
    )


def _output(given: Any) -> torch.Tensor:
    if isinstance(given, tuple | list) and len(given) == 1:
        given = given[0]
    if not isinstance(given, torch.Tensor):
        raise TypeError("its forward gives no tensor")
    return given


def _form(call: _Call, x: torch.Tensor) -> Form:
    """Return the form of a convolution, whose own input may have been padded before."""
    given, weight, _, stride, padding, dilation, transposed, _, groups = call.args
    dims = weight.ndim - 2
    more = [(a - b) // 2 for a, b in zip(given.shape[2:], x.shape[2:], strict=False)]
    own = _each(list(padding), dims) or (padding[0],) * dims
    before = (
        own
        if transposed or len(more) != dims
        else tuple(p + max(m, 0) for p, m in zip(own, more, strict=True))
    )
    return Form(
        kernel=tuple(weight.shape[2:]),
        stride=_each(list(stride), dims) or (stride[0],) * dims,
        padding=before,
        dilation=_each(list(dilation), dims) or (dilation[0],) * dims,
        groups=groups,
        transposed=transposed,
    )


def _operands(call: _Call, x: torch.Tensor) -> Acting | None:
    """Return the weight and bias of a call whose input has the channels of the module's."""
    if call.name == "convolution":
        given, weight, bias = call.args[:3]
        if given.ndim != x.ndim or given.shape[1] != x.shape[1]:
            return None
        direct = _is_within(x, given)
        return Acting(weight=weight.clone(), bias=bias, form=_form(call, x), is_direct=direct)
    if call.name not in ("mm", "addmm") or x.ndim != 2:
        return None
    *bias, given, weight = call.args[:3] if call.name == "addmm" else call.args[:2]
    plain = bool(bias) and bias[0].shape == weight.shape[1:]
    if given.shape != x.shape or (bias and not plain):
        return None
    return Acting(
        weight=weight.t().clone(),
        bias=bias[0] if bias else None,
        form=Form(),
        is_direct=torch.equal(given, x),
    )


def _is_within(x: torch.Tensor, padded: torch.Tensor) -> bool:
    """Return whether an input is in the middle of another, which is padded about evenly."""
    more = [a - b for a, b in zip(padded.shape[2:], x.shape[2:], strict=True)]
    if min(more, default=0) < 0:
        return False
    starts = itertools.product(*(sorted({m // 2, m - m // 2}) for m in more))
    return any(
        torch.equal(
            padded[(..., *(slice(s, s + n) for s, n in zip(start, x.shape[2:], strict=True)))], x
        )
        for start in starts
    )


# --- impulses


def _from_impulses(trial: _Trial) -> Acting | None:
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


def _cost(trial: _Trial, y: torch.Tensor) -> int:
    return trial.shape[0] ** 2 * math.prod(trial.shape[1:]) * int(y.shape[1])


def _forms(trial: _Trial) -> Iterator[Form]:
    """Forms that the map may have: those of the convolutions seen, widest first; what it tells."""
    dims, module = len(trial.shape) - 1, trial.module
    if dims == 0:
        yield Form()
        return
    forms = [form for form in trial.forms if len(form.kernel) == dims]
    told = {
        name: _each(getattr(module, name, default), dims)
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


def _recovered(trial: _Trial, form: Form) -> tuple[torch.Tensor, torch.Tensor]:
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


def _zeros(trial: _Trial, count: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.zeros((count, *shape), device=trial.device, dtype=trial.dtype)


def _middle(form: Form) -> tuple[int, ...]:
    """Return the place of an impulse: away from the border by the padding, and by all taps."""
    return tuple(max(e - 1 - p, p + 1, 0) for e, p in zip(form.extent, form.padding, strict=True))


def _responses(
    trial: _Trial, form: Form, at: tuple[int, ...], extents: tuple[int, ...]
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


def _from_convolution(trial: _Trial, form: Form) -> tuple[torch.Tensor, torch.Tensor]:
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


def _from_transposed(trial: _Trial, form: Form) -> tuple[torch.Tensor, torch.Tensor]:
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


def _bias(trial: _Trial, extents: tuple[int, ...]) -> torch.Tensor:
    rest = trial.run(_zeros(trial, 1, (trial.shape[0], *extents)))[0]
    return rest[(slice(None), *(size // 2 for size in rest.shape[1:]))]


def _explains(trial: _Trial, weight: torch.Tensor, bias: torch.Tensor, form: Form) -> bool:
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
    return bool((error <= _TOLERANCES[trial.dtype] * size).all())
