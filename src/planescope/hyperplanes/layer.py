"""The weights of one layer, however they were stored.

A `Layer` is a description: its name, shape and place in the network are known, its values are read
when asked for, so that nothing holds two layers' weights at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal

# Whatever array_api_compat takes: NumPy, torch, JAX, CuPy. No library names a common base.
Array = Any


# Distance from 1 to the next number, by the first part of a type's name.
_EPS = {"float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7, "float8": 2.0**-3}


class Kind(StrEnum):
    """The kind of a layer; the paper measures `CONV` alone."""

    CONV = "conv"  # kernel larger than 1 in some dimension; grouped and depthwise ones too
    POINTWISE = "pointwise"  # a convolution whose kernel is 1 everywhere
    TRANSPOSED = "transposed"
    LINEAR = "linear"

    @property
    def words(self) -> str:
        """Return the words for such a layer in a sentence."""
        return _KINDS[self]


# What a user may ask for; its words are those of `Kind`.
KindName = Literal["conv", "pointwise", "transposed", "linear", "all"]

_KINDS = {
    Kind.CONV: "convolution",
    Kind.POINTWISE: "1x1 convolution",
    Kind.TRANSPOSED: "transposed convolution",
    Kind.LINEAR: "linear layer",
}


class Input(StrEnum):
    """The input of a layer. The theory speaks of layers behind a ReLU."""

    IMAGE = "image"  # the network's own input, perhaps padded or normalised
    RELU = "relu"  # lies in the positive orthant: a ReLU's output, perhaps pooled
    OTHER = "other"
    UNKNOWN = "unknown"  # no graph tells


class Layout(StrEnum):
    """The axis of a stored weight that has the filters."""

    FIRST = "filters-first"  # (out, in / groups, *kernel), as PyTorch keeps them
    LAST = "filters-last"  # (*kernel, in / groups, out), as Keras and Flax do
    AROUND = "channels-last"  # (out, *kernel, in / groups), as MLX does


class Pairing(StrEnum):
    """The evidence for the norm behind a layer."""

    GRAPH = "graph"
    NAMES = "names"
    ORDER = "order"  # of the tensors in the file, which torch writes as modules were defined
    GIVEN = "given"  # by the user


class View(StrEnum):
    """The hyperplanes that are measured (METHOD, section 4)."""

    RAW = "raw"  # the convolution's own, as in the paper
    EFFECTIVE = "effective"  # those that convolution, batch norm and ReLU cut together


@dataclass(frozen=True, eq=False, slots=True)
class Tensor:
    """A stored array, not yet read.

    `read()` gives an array of `shape`: NumPy from a file (bfloat16 and float8 widened to float32,
    exactly), the live tensor from a module. `dtype` is the stored type as NumPy and ml_dtypes name
    it (``"float32"``, ``"bfloat16"``, ``"float8_e4m3fn"``, ``"int64"``).
    `identity`, where there is one, is equal for two tensors that are one and the same; `digest`
    gives what is equal for equal contents, cheaply, of a file whose tensors cannot share memory.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Array]
    identity: Hashable = None
    digest: Callable[[], Hashable] | None = None

    @property
    def eps(self) -> float:
        """Return the distance from 1 to the next number of the stored type.

        Of integers, float32's.
        """
        if self.dtype.startswith("float8_e5m2"):
            return 2.0**-2
        return _EPS.get(self.dtype.partition("_")[0], 2.0**-23)

    @property
    def is_floating(self) -> bool:
        """Return whether the stored type is a floating-point one, of any width."""
        return "float" in self.dtype

    @property
    def is_real(self) -> bool:
        """Return whether the stored type is one of real numbers, whole ones and bits among them."""
        return self.is_floating or self.dtype.lstrip("u").startswith(("int", "bool"))


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
    eps_assumed: bool = False  # its framework's own, which the file does not hold


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
    pairing : Pairing or None
        What told the norm; None is a graph. Where names or order did, the order convolution, norm,
        ReLU is assumed.
    aliases : tuple of str
        Other names under which the same weight stands.
    """

    name: str
    kind: Kind
    weight: Tensor
    bias: Tensor | None = None
    groups: int | None = None
    stage: int | None = None
    input: Input = Input.UNKNOWN
    norm: Norm | None = None
    pairing: Pairing | None = None
    aliases: tuple[str, ...] = ()

    @property
    def norm_assumed(self) -> bool:
        """Return whether no graph showed the norm."""
        return self.pairing in (Pairing.NAMES, Pairing.ORDER)

    @property
    def filters(self) -> int:
        """Return the number of filters, degenerate ones included."""
        return self.weight.shape[0]

    @property
    def fan_in(self) -> int:
        """Return the weights of one filter, d."""
        return math.prod(self.weight.shape[1:])

    @property
    def kernel(self) -> tuple[int, ...]:
        """Return the extent in each dimension; () for a linear layer."""
        return self.weight.shape[2:]


def joint_digest(tensors: Sequence[Tensor], /) -> Callable[[], Hashable] | None:
    """Return the digest of what is computed of tensors alone; None where one of them has none."""
    digests = [tensor.digest for tensor in tensors if tensor.digest is not None]
    if len(digests) != len(tensors):
        return None
    return digests[0] if len(digests) == 1 else lambda: tuple(digest() for digest in digests)


def with_tensors(layer: Layer, change: Callable[[Tensor], Tensor], /) -> Layer:
    """Return the layer with each of its tensors, those of its norm too, put through a function."""

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
    """The place of a layer in its network, which a graph tells and a state dict does not."""

    kind: Kind
    stage: int | None = None
    input: Input = Input.UNKNOWN
    groups: int | None = None
    norm: str | None = None  # name of the batch norm that follows at once
    eps: float | None = None  # of that norm
    layout: Layout | None = None  # where the class of a module tells


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
    notes : tuple of str
        More of these.
    skipped : tuple of Skipped
        What looks like a layer and is none that can be measured, as far as the file itself tells.
    reasons : mapping of str to str
        By module name: why its weight makes no layer, as the module's class tells.
    norm_eps : mapping of str to float
        Epsilon of norms by module name, where the file holds it.
    """

    tensors: Mapping[str, Tensor]
    places: Mapping[str, Place] = field(default_factory=dict)
    in_order: bool = True
    entry: str = ""
    note: str = ""
    notes: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    norm_eps: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Described:
    """The layers of a file that knows its network, and what looks like one and is left out."""

    layers: tuple[Layer, ...]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Structure:
    """Plain data on a network's layers that a live network tells and its weights' file does not.

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
        """Tell whether places were recorded; if not, the note says why."""
        return bool(self.names)


def kind_of_convolution(kernel: tuple[int, ...]) -> Kind:
    """Tell a pointwise convolution from a spatial one by its kernel."""
    return Kind.CONV if any(extent > 1 for extent in kernel) else Kind.POINTWISE
