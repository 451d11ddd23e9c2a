"""The weights of one layer, however they were stored.

A `Layer` is a description: its name, shape and place in the network are known, its values are read
when asked for, so that nothing holds two layers' weights at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

# Whatever array_api_compat takes: NumPy, torch, JAX, CuPy. No library names a common base.
Array = Any


class Kind(StrEnum):
    """What a layer is; the paper measures `CONV` alone."""

    CONV = "conv"  # kernel larger than 1 in some dimension; grouped and depthwise ones too
    POINTWISE = "pointwise"  # a convolution whose kernel is 1 everywhere
    TRANSPOSED = "transposed"
    LINEAR = "linear"


class Input(StrEnum):
    """What feeds a layer. The theory speaks of layers behind a ReLU."""

    IMAGE = "image"  # the network's own input, perhaps padded or normalised
    RELU = "relu"  # lies in the positive orthant: a ReLU's output, perhaps pooled
    OTHER = "other"
    UNKNOWN = "unknown"  # no graph tells


class View(StrEnum):
    """Which hyperplanes are measured (METHOD, section 4)."""

    RAW = "raw"  # the convolution's own, as in the paper
    EFFECTIVE = "effective"  # those that convolution, batch norm and ReLU cut together


@dataclass(frozen=True, eq=False, slots=True)
class Tensor:
    """A stored array, not yet read.

    `read()` gives an array of `shape`: NumPy from a file (bfloat16 and float8 widened to float32,
    exactly), the live tensor from a module. `dtype` is the stored type as NumPy and ml_dtypes name
    it (``"float32"``, ``"bfloat16"``, ``"float8_e4m3fn"``, ``"int64"``).
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Array]

    @property
    def is_floating(self) -> bool:
        """Whether the stored type is a floating-point one, of any width."""
        return "float" in self.dtype


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Norm:
    """The batch norm behind a layer: gamma, beta, mean and variance, each of shape (filters,).

    `gamma` and `beta` are None where the norm has no affine parameters (then 1 and 0).
    """

    name: str
    gamma: Tensor | None
    beta: Tensor | None
    mean: Tensor
    variance: Tensor
    eps: float


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Layer:
    """One layer of hyperplanes.

    Attributes
    ----------
    name : str
        Name of its module (``features.0``), without ``.weight``.
    weight : Tensor, shape (filters, channels / groups, *kernel)
        Filters first, whichever framework wrote it. A linear layer has no kernel dimensions.
    bias : Tensor or None, shape (filters,)
    kernel : tuple of int
        Extent of the kernel in each dimension; () for a linear layer.
    groups : int or None
        None where the file does not tell.
    stage : int or None
        Number of downsampling steps before the layer; None without a graph.
    norm : Norm or None
        The batch norm that follows.
    norm_assumed : bool
        The norm was paired by name, order and width, and the order convolution, norm, ReLU is
        assumed; a graph did not show it.
    relu_follows : bool or None
        Whether a ReLU stands behind the layer (and its norm); None without a graph.
    """

    name: str
    kind: Kind
    weight: Tensor
    bias: Tensor | None = None
    groups: int | None = None
    stage: int | None = None
    input: Input = Input.UNKNOWN
    norm: Norm | None = None
    norm_assumed: bool = False
    relu_follows: bool | None = None

    @property
    def filters(self) -> int:
        """Number of filters, degenerate ones included."""
        return self.weight.shape[0]

    @property
    def fan_in(self) -> int:
        """Weights of one filter, d."""
        return math.prod(self.weight.shape[1:])

    @property
    def kernel(self) -> tuple[int, ...]:
        """Extent in each dimension; () for a linear layer."""
        return self.weight.shape[2:]


def with_tensors(layer: Layer, change: Callable[[Tensor], Tensor], /) -> Layer:
    """The layer with each of its tensors, those of its norm too, put through a function."""

    def changed(tensor: Tensor | None) -> Tensor | None:
        return tensor and change(tensor)

    norm = layer.norm and replace(
        layer.norm,
        gamma=changed(layer.norm.gamma),
        beta=changed(layer.norm.beta),
        mean=change(layer.norm.mean),
        variance=change(layer.norm.variance),
    )
    return replace(layer, weight=change(layer.weight), bias=changed(layer.bias), norm=norm)


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A layer that was left out, and why: a result too."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a layer stands in its network: what a graph tells and a state dict does not."""

    kind: Kind
    stage: int | None = None
    input: Input = Input.UNKNOWN
    groups: int | None = None
    norm: str | None = None  # name of the batch norm that follows at once
    eps: float | None = None  # of that norm
    relu_follows: bool | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class StateDict:
    """Named tensors, and what is known beyond their names and shapes.

    Attributes
    ----------
    tensors : mapping of str to Tensor
        By full name (``features.0.weight``), in the order of the file.
    places : mapping of str to Place
        By module name (``features.0``); what a graph or a pickled module tells. Empty for a bare
        state dict. A layer that is missing here is judged by names and shapes.
    in_order : bool
        Whether the order of `tensors` is that of definition, as torch keeps it; safetensors and
        npz do not.
    entry : str
        Where in the file the state dict was found (``"model_state_dict"``); "" for all of it.
    note : str
        What a reader of the result should know, such as why no graph could be traced; else "".
    skipped : tuple of Skipped
        What looks like a layer, and whoever read the file knows that it is none.
    """

    tensors: Mapping[str, Tensor]
    places: Mapping[str, Place] = field(default_factory=dict)
    in_order: bool = True
    entry: str = ""
    note: str = ""
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Described:
    """The layers of a file that knows its network, and what looks like one and is left out."""

    layers: tuple[Layer, ...]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What a live network tells of its layers and a file of its weights does not, as plain data.

    Attributes
    ----------
    network : str
        What the network is called.
    names : tuple of str
        Of its tensors, in the order of definition.
    places : dict of str to Place
        As in a `StateDict`.
    note : str
        As in a `StateDict`.
    """

    network: str
    names: tuple[str, ...]
    places: dict[str, Place]
    note: str = ""

    @property
    def known(self) -> bool:
        """Whether anything was recorded; else no layer has a place, and the note says why."""
        return bool(self.names)


def kind_of_convolution(kernel: tuple[int, ...]) -> Kind:
    """Tell a pointwise convolution from a spatial one by its kernel."""
    return Kind.CONV if any(extent > 1 for extent in kernel) else Kind.POINTWISE
