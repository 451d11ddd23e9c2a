"""From the variables of one Keras layer to a `Layer`: kernels have their filters last."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import Enum, auto
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from planescope.hyperplanes.layer import Kind, Layer, Layout, Norm, Tensor, kind_of_convolution
from planescope.networks.state.axes import Axes, reordered

if TYPE_CHECKING:
    from planescope.checkpoints.keras.variables import Variables

_LORA = ("lora_kernel_a", "lora_kernel_b")

DEFAULT_EPS = 1e-3  # of Keras' batch norm


class Arrays(Protocol):
    """A file of named arrays."""

    path: Path

    def tensor(self, key: str, /) -> Tensor:
        """Describe the array of a name."""


class Form(Enum):
    """The layout of a kernel: these axes come behind its extents."""

    CONV = auto()  # channels / groups, filters
    TRANSPOSED = auto()  # filters, channels
    DEPTHWISE = auto()  # channels, filters of each channel
    SEPARABLE = auto()  # two kernels, a depthwise and a pointwise one
    DENSE = auto()  # inputs, outputs
    DENSE_INT8 = auto()  # the same in whole numbers, which a scale for each output divides


# Form and rank of the kernel, by the layer's class as Keras 3 writes it.
FORMS = {
    **{f"conv{n}d": (Form.CONV, n + 2) for n in (1, 2, 3)},
    **{f"conv{n}d_transpose": (Form.TRANSPOSED, n + 2) for n in (1, 2, 3)},
    **{f"depthwise_conv{n}d": (Form.DEPTHWISE, n + 2) for n in (1, 2)},
    **{f"separable_conv{n}d": (Form.SEPARABLE, n + 2) for n in (1, 2)},
    "dense": (Form.DENSE, 2),
}


def layers_of(
    file: Arrays,
    variables: Variables,
    form: Form,
    rank: int,
    groups: int | None = None,
    lora: float | None = None,
) -> list[Layer]:
    """Describe a layer of a known form; a separable convolution is two.

    Parameters
    ----------
    lora : float, optional
        Factor of the update of low rank that the file keeps beside the kernel.

    Returns
    -------
    list of Layer
        Empty if the variables do not have the form's shapes, or are no floating-point numbers.
    """
    names: tuple[str, ...] = ("kernel", "bias")
    if form is Form.SEPARABLE:
        names = ("depthwise_kernel", "pointwise_kernel", "bias")
    elif form is Form.DEPTHWISE and "depthwise_kernel" in variables.keys:  # Keras 2
        names = ("depthwise_kernel", "bias")
    keys = variables.named(names)
    if form is Form.DENSE_INT8:
        return _dense_int8(file, variables)
    kernels = [file.tensor(keys[name]) for name in names[:-1] if name in keys]
    bias = file.tensor(keys["bias"]) if "bias" in keys else None
    updates = [file.tensor(keys[name]) for name in _LORA if name in keys]
    if updates:
        if lora is None or len(updates) != 2 or len(kernels) != 1:
            return []
        kernels = [_updated(kernels[0], *updates, factor=lora)]
    if not all(tensor.is_floating for tensor in (*kernels, *([bias] if bias else []))):
        return []
    # A dense kernel has two axes, a convolution's has one to three extents besides.
    possible = rank == 2 if form is Form.DENSE else 3 <= rank <= 5
    if not possible or any(len(k.shape) != rank or 0 in k.shape for k in kernels):
        return []
    match kernels:
        case [depthwise, pointwise]:
            layers = [
                _layer(f"{variables.name}.depthwise", Form.DEPTHWISE, depthwise),
                _layer(f"{variables.name}.pointwise", Form.CONV, pointwise, bias, groups=1),
            ]
        case [kernel] if form is not Form.SEPARABLE:
            layers = [_layer(variables.name, form, kernel, bias, groups=groups)]
        case _:
            return []
    fits = bias is None or bias.shape == (layers[-1].filters,)
    return layers if fits else []


def einsum_of(
    file: Arrays, variables: Variables, filters: Sequence[int], summed: Sequence[int]
) -> list[Layer]:
    """Describe an Einstein sum that is one linear map, with the axes of its kernel.

    Returns
    -------
    list of Layer
        Empty if the variables do not have such shapes, or are no floating-point numbers.
    """
    keys = variables.named(("kernel", "bias"))
    if "kernel" not in keys:
        return []
    kernel, order = file.tensor(keys["kernel"]), (*filters, *summed)
    bias = file.tensor(keys["bias"]) if "bias" in keys else None
    if sorted(order) != list(range(len(kernel.shape))) or 0 in kernel.shape:
        return []
    outputs = tuple(kernel.shape[at] for at in filters)
    shape = (math.prod(outputs), math.prod(kernel.shape[at] for at in summed))
    # A bias for some of the axes of the filters is spread over the others.
    spread = (
        bias
        and (len(bias.shape) == len(outputs))
        and all(extent in (1, wanted) for extent, wanted in zip(bias.shape, outputs, strict=True))
    )
    if not kernel.is_floating or (bias is not None and not (bias.is_floating and spread)):
        return []

    def rows() -> np.ndarray:
        return np.asarray(kernel.read()).transpose(order).reshape(shape)

    def offsets() -> np.ndarray:
        return (
            np.broadcast_to(np.asarray(bias.read()), outputs).reshape(-1) if bias else np.array(())
        )

    weight = Tensor(shape, kernel.dtype, rows)
    own = None if bias is None else Tensor(shape[:1], bias.dtype, offsets)
    return [Layer(name=variables.name, kind=Kind.LINEAR, weight=weight, bias=own)]


def _updated(kernel: Tensor, one: Tensor, other: Tensor, *, factor: float) -> Tensor:
    """Add the update of low rank to a kernel."""

    def read() -> np.ndarray:
        stored: np.ndarray = kernel.read()
        with np.errstate(all="ignore"):
            return np.asarray(stored + np.float32(factor) * np.matmul(one.read(), other.read()))

    fits = (*one.shape[:-1], *other.shape[1:]) == kernel.shape and one.shape[-1:] == other.shape[:1]
    # A shape of no kernel: the caller refuses it with what the file holds.
    return Tensor(kernel.shape, kernel.dtype, read) if fits else Tensor((), kernel.dtype, read)


def _dense_int8(file: Arrays, variables: Variables) -> list[Layer]:
    """Describe a dense layer as Keras quantises it: kernel, bias if there is one, and scale."""
    numbered = len(variables.keys) > 2
    keys = variables.named(
        ("kernel", "bias", "kernel_scale") if numbered else ("kernel", "kernel_scale")
    )
    if not {"kernel", "kernel_scale"} <= keys.keys():
        return []
    kernel, scale = file.tensor(keys["kernel"]), file.tensor(keys["kernel_scale"])
    bias = file.tensor(keys["bias"]) if "bias" in keys else None
    if len(kernel.shape) != 2 or 0 in kernel.shape or kernel.dtype != "int8":
        return []
    filters = kernel.shape[1:]
    if scale.shape != filters or not scale.is_floating or (bias and bias.shape != filters):
        return []

    def read() -> np.ndarray:
        factors: np.ndarray = scale.read()
        steps: np.ndarray = kernel.read()
        # What is not finite is for the measurement to report, not for NumPy to warn of.
        with np.errstate(all="ignore"):
            return np.asarray(steps.astype(factors.dtype) / factors).T

    weight = Tensor(kernel.shape[::-1], scale.dtype, read)
    return [Layer(name=variables.name, kind=Kind.LINEAR, weight=weight, bias=bias)]


def _layer(
    name: str, form: Form, kernel: Tensor, bias: Tensor | None = None, groups: int | None = None
) -> Layer:
    *extents, channels, _ = kernel.shape
    if form is Form.DENSE:
        kind, groups = Kind.LINEAR, None
    elif form is Form.TRANSPOSED:
        kind, groups = Kind.TRANSPOSED, 1
    else:
        kind = kind_of_convolution(tuple(extents))
        groups = channels if form is Form.DEPTHWISE else groups
    axes = Axes(kind, Layout.LAST, depthwise=form is Form.DEPTHWISE)
    weight = reordered(kernel, axes)
    return Layer(name=name, kind=kind, weight=weight, bias=bias, groups=groups)


def norm_of(
    file: Arrays, name: str, keys: Mapping[str, str], width: int, eps: float = DEFAULT_EPS
) -> Norm | None:
    """Describe a batch norm; None unless `keys` are the variables of one over `width` channels."""
    parts = ("gamma", "beta", "moving_mean", "moving_variance")
    tensors = {part: file.tensor(keys[part]) for part in parts if part in keys}
    if any(tensor.shape != (width,) or not tensor.is_floating for tensor in tensors.values()):
        return None
    match tensors:
        case {"moving_mean": mean, "moving_variance": variance, **affine}:
            gamma, beta = affine.get("gamma"), affine.get("beta")
            return Norm(name=name, gamma=gamma, beta=beta, mean=mean, variance=variance, eps=eps)
    return None
