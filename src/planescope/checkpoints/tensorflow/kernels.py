"""The layouts of TensorFlow's weights, and how filters are brought to the front."""

from __future__ import annotations

from enum import Enum, auto

from planescope.hyperplanes.layer import Kind, Layout, Tensor, kind_of_convolution
from planescope.networks.state.axes import Axes, reordered


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
    axes = Axes(kind_of(form, kernel), Layout.LAST, depthwise=form is Form.DEPTHWISE)
    return reordered(kernel, axes)
