"""The layouts of TensorFlow's weights, and how filters are brought to the front."""

from __future__ import annotations

from enum import Enum, auto

import numpy as np

from planescope.hyperplanes.layer import Kind, Tensor, kind_of_convolution


class Form(Enum):
    """The layout of a kernel: these axes come behind its extents."""

    CONV = auto()  # channels / groups, filters
    TRANSPOSED = auto()  # filters, channels
    DEPTHWISE = auto()  # channels, filters of each channel
    DENSE = auto()  # inputs, outputs


def kind_of(form: Form, kernel: Tensor) -> Kind:
    """Tell the kind of layer that a kernel makes."""
    if form is Form.DENSE:
        return Kind.LINEAR
    return Kind.TRANSPOSED if form is Form.TRANSPOSED else kind_of_convolution(kernel.shape[:-2])


def fits(form: Form, kernel: Tensor) -> bool:
    """Tell whether a kernel has the dimensions of its form, and numbers."""
    rank = len(kernel.shape)
    possible = rank == 2 if form is Form.DENSE else 3 <= rank <= 5
    return possible and 0 not in kernel.shape


def filters_first(kernel: Tensor, form: Form) -> Tensor:
    """Bring the filters of a kernel to the front, its channels next."""
    *extents, first, second = kernel.shape
    axes = (-2, -1) if form in (Form.TRANSPOSED, Form.DEPTHWISE) else (-1, -2)
    shape = {
        Form.TRANSPOSED: (first, second, *extents),
        # The filters of a channel stand together, as in its output.
        Form.DEPTHWISE: (first * second, 1, *extents),
    }.get(form, (second, first, *extents))

    def read() -> np.ndarray:
        stored: np.ndarray = kernel.read()
        return np.moveaxis(stored, axes, (0, 1)).reshape(shape)

    return Tensor(shape, kernel.dtype, read)
