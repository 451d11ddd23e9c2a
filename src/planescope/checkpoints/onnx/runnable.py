"""A model whose layers can be run with other weights: where those are fed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from planescope.hyperplanes.layer import Layer, Skipped, Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Slot:
    """A tensor as operators read it.

    Attributes
    ----------
    places : tuple of (str, int)
        The operators, by a value that each gives, and the number of their input.
    tensor : Tensor
        What they read there, in the layout in which they read it.
    """

    places: tuple[tuple[str, int], ...]
    tensor: Tensor


@dataclass(frozen=True, kw_only=True)
class Call:
    """An operator with a layer's weights: what it reads and gives, and how a kernel moves.

    Attributes
    ----------
    op : str
    reads, gives : str
        Values; what it gives is with the layer's bias.
    strides, dilations, pads : tuple of int
        Of a convolution as ONNX writes them; empty where they are not given.
    auto_pad : str
    """

    op: str
    reads: str
    gives: str
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Replaceable:
    """A layer whose weights can be fed.

    Attributes
    ----------
    layer : Layer
    weight : Slot
    bias : Slot or None
    norm : tuple of Slot
        Scale and shift of the norm that belongs to the layer alone.
    takes_filters : bool
        Whether all that belongs to a filter can be fed: a bias that another operator adds cannot.
    is_output, is_coupled : bool
    leaves_norm : bool
        Whether a norm behind it has a scale and shift that are not taken with its filters.
    sizes : tuple of str
        Values whose sizes tell at how many positions the layer is applied.
    calls : tuple of Call
    mean : Slot or None
        Running mean of the batch norm that belongs to the layer alone.
    """

    layer: Layer
    weight: Slot
    bias: Slot | None
    norm: tuple[Slot, ...]
    takes_filters: bool
    is_output: bool
    is_coupled: bool
    leaves_norm: bool
    sizes: tuple[str, ...]
    calls: tuple[Call, ...]
    mean: Slot | None


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input of a network: its name, its type, and its extents, None where they are free."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Runnable:
    """A model that can be run with other weights.

    Attributes
    ----------
    layers : tuple of Layer
        All, in the order of the graph.
    replaceable : tuple of Replaceable
    skipped : tuple of Skipped
        What was left out, or cannot be replaced.
    inputs : tuple of Port
    outputs : tuple of str
    external : mapping of str to Tensor
        Stored tensors of the model's own graph whose data lie in files beside it.
    """

    layers: tuple[Layer, ...]
    replaceable: tuple[Replaceable, ...]
    skipped: tuple[Skipped, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[str, ...]
    external: Mapping[str, Tensor] = field(default_factory=dict)
