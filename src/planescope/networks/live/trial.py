"""Runs of a module's forward on a copy, and the operands that it hands to torch meanwhile."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from planescope.hyperplanes.layer import Kind, Place, kind_of_convolution
from planescope.networks.live.copies import (
    stand_in,
)

# Sizes of the inputs on which a weight is tried: what clips, rounds or bends shows on some.
_SIZES = (100.0, 0.01, 1.0, 3.0)
_RELUS = {"relu", "relu_"}
_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}


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


def per_dimension(value: Any, dims: int) -> tuple[int, ...] | None:
    """Return a size for each dimension, where one or all are given; else None."""
    if isinstance(value, int):
        return (value,) * dims
    if isinstance(value, tuple | list) and len(value) == dims:
        return tuple(int(v) for v in value)
    return None


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
class Trial:
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
            y = tensor_given(twin(x))
        y = seen.before_relu(y)
        self.rectifies = seen.rectifies
        return y, seen.calls

    def handed_over(self) -> Acting | None:
        """Return the weight and bias of the one convolution or product that makes the output.

        Else None.
        """
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


def tensor_given(given: Any) -> torch.Tensor:
    """Return the one tensor that a forward gives."""
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
    own = per_dimension(list(padding), dims) or (padding[0],) * dims
    before = (
        own
        if transposed or len(more) != dims
        else tuple(p + max(m, 0) for p, m in zip(own, more, strict=True))
    )
    return Form(
        kernel=tuple(weight.shape[2:]),
        stride=per_dimension(list(stride), dims) or (stride[0],) * dims,
        padding=before,
        dilation=per_dimension(list(dilation), dims) or (dilation[0],) * dims,
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
