"""Weights that onnxruntime has put into the order of one processor (NCHWc).

Its last optimisation writes filters in blocks of 8 or 16, as wide as the vectors of the machine
that ran it, with filters of zeros where their number is no multiple. The file does not say how
wide: shapes tell, and where zeros stand.
https://github.com/microsoft/onnxruntime/blob/main/onnxruntime/core/optimizer/nchwc_transformer.cc
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from planescope.checkpoints.onnx.constants.arithmetic import mapped
from planescope.checkpoints.onnx.constants.values import Constants
from planescope.checkpoints.onnx.graph import Graph
from planescope.checkpoints.onnx.nodes import Name, Node
from planescope.hyperplanes.layer import Tensor

_DOMAIN = "com.microsoft.nchwc."
CONVOLUTION = f"{_DOMAIN}Conv"
_OUT = f"{_DOMAIN}ReorderOutput"

_WIDTHS = (8, 16)
_MAX_STEPS = 64  # from a convolution to where its channels are told
_MOST_READ = 8  # weights, to see where zeros stand

# How wide the blocks are, which is the same in all of a model; None where nothing tells.
_KNOWN: WeakKeyDictionary[Graph, int | None] = WeakKeyDictionary()


class Plain(NamedTuple):
    """A weight and a bias in ONNX's own order, without what was filled up."""

    weight: Tensor
    bias: Tensor | None
    groups: int


def plain(graph: Graph, constants: Constants, node: Node) -> Plain | None:
    """Put a convolution's weights back into the order (filters, channels / groups, *kernel).

    Returns
    -------
    Plain or None
        None where nothing in the model tells how wide the blocks are.

    Raises
    ------
    ValueError
        If the shapes are not those of blocks.
    """
    stored, bias = constants.tensor(node.input(1)), constants.tensor(node.input(2))
    if stored is None or len(stored.shape) != 4 or not stored.is_floating or 0 in stored.shape:
        raise ValueError("no weights of four axes")
    if bias is not None and bias.shape != stored.shape[:1]:
        raise ValueError(f"a bias of shape {bias.shape}")
    if graph not in _KNOWN:
        _KNOWN[graph] = _width(graph, constants)
    width = _KNOWN[graph]
    if width is None:
        return None
    ordered = _ordered(graph, node, stored, width)
    filters = _filters(graph, node, ordered, width)
    fed = _channels(graph, constants, node, ordered, width)
    shape = (filters, fed, *stored.shape[2:])
    weight = mapped(lambda values: values[:filters, :fed], ordered, shape=shape)
    if bias is not None:
        bias = mapped(lambda values: values[:filters], bias, shape=(filters,))
    groups = node.integer("group", 1)
    return Plain(weight, bias, filters if groups == stored.shape[0] else groups)


def _ordered(graph: Graph, node: Node, stored: Tensor, width: int) -> Tensor:
    """Return what is stored with its filters first, those of zeros among them."""
    filters, fed, *kernel = stored.shape
    inner = 1 if _has_whole_channels(graph, node, stored, width) else width
    if filters % width or fed % inner:
        raise ValueError(f"shape {stored.shape} is not in blocks of {width}")

    def read(values: np.ndarray) -> np.ndarray:
        blocks = values.reshape(filters // width, fed // inner, *kernel, inner, width)
        return blocks.transpose(0, 5, 1, 4, 2, 3).reshape(filters, fed, *kernel)

    return mapped(read, stored)


def _has_whole_channels(graph: Graph, node: Node, stored: Tensor, width: int) -> bool:
    """Tell whether the channels of a filter are in no blocks: of an image, and one at a time."""
    if node.integer("group", 1) > 1:
        return stored.shape[1] == 1
    # An image of fewer channels than a block is read as it stands.
    return stored.shape[1] < width and not _is_blocked(graph, node)


def _is_blocked(graph: Graph, node: Node) -> bool:
    """Tell whether what a convolution reads is in blocks."""
    value = node.input(0)
    maker = None if value is None else graph.makers.get(value)
    return maker is not None and maker.op.startswith(_DOMAIN) and maker.op != _OUT


def _width(graph: Graph, constants: Constants) -> int | None:
    """Tell how wide the blocks are, by shapes and by where zeros stand."""
    found = []
    for node in graph.nodes:
        stored = constants.tensor(node.input(1)) if node.op == CONVOLUTION else None
        if stored is None or len(stored.shape) != 4 or 0 in stored.shape:
            continue
        found.append((node, stored))
        is_fed_in_blocks = _is_blocked(graph, node) and node.integer("group", 1) == 1
        if stored.shape[0] % 16 or (is_fed_in_blocks and stored.shape[1] % 16):
            return 8
        told = _told(graph, node.output)
        if told is not None and stored.shape[0] - told >= 8:
            return 16
    # Filters of zeros stand at the end in the right order alone.
    for node, stored in [each for each in found if _may_be_filled(each[0])][:_MOST_READ]:
        ending = []
        for width in _WIDTHS:
            try:
                used = _used(_ordered(graph, node, stored, width), 0)
            except ValueError:
                continue
            last = int(used[-1]) if len(used) else -1
            if len(used) == last + 1 and 0 < stored.shape[0] - len(used) < width:
                ending.append(width)
        if len(ending) == 1:
            return ending[0]
    return None


def _may_be_filled(node: Node) -> bool:
    """Tell whether filters of zeros may stand at the end: their bias has a name of its own then."""
    return len(node.input_texts) < 3 or node.input_texts[2].startswith("reorder")


def _zeros(tensor: Tensor, axis: int) -> int:
    """Count the filters, or channels of all filters, at the end that are nothing but zeros."""
    used = _used(tensor, axis)
    return tensor.shape[axis] - (int(used[-1]) + 1 if len(used) else 0)


def _used(tensor: Tensor, axis: int) -> np.ndarray:
    """Number the filters, or channels, that are not nothing but zeros."""
    others = tuple(other for other in range(len(tensor.shape)) if other != axis)
    return np.flatnonzero((tensor.read() != 0).any(axis=others))


def _filters(graph: Graph, node: Node, ordered: Tensor, width: int) -> int:
    """Tell how many filters are the network's own."""
    filters = ordered.shape[0]
    told = _told(graph, node.output)
    if told is not None and 0 <= filters - told < width:
        return told
    zeros = _zeros(ordered, 0) if _may_be_filled(node) else 0
    return filters - zeros if zeros < width else filters


def _channels(graph: Graph, constants: Constants, node: Node, ordered: Tensor, width: int) -> int:
    """Tell how many channels of a filter are the network's own."""
    fed = ordered.shape[1]
    if node.integer("group", 1) > 1 or not _is_blocked(graph, node):
        return fed
    for maker in _before(graph, node.input(0)):
        known = None
        if maker.op == _OUT:
            known = maker.integer("channels", 0)
        elif maker.op == CONVOLUTION:
            stored = constants.tensor(maker.input(1))
            if stored is not None and len(stored.shape) == 4 and 0 not in stored.shape:
                known = _filters(graph, maker, _ordered(graph, maker, stored, width), width)
        if known is not None:
            return known if 0 <= fed - known < width else fed
    zeros = _zeros(ordered, 1)
    return fed - zeros if zeros < width else fed


def _before(graph: Graph, value: Name | None) -> Iterator[Node]:
    """Yield what made a value, as far as each step keeps the channels of the one before."""
    for _ in range(_MAX_STEPS):
        maker = None if value is None else graph.makers.get(value)
        if maker is None:
            return
        yield maker
        if maker.op.rpartition(".")[2] not in _KEEPING:
            return
        value = maker.input(0)


_KEEPING = (
    *("AveragePool", "BatchNormalization", "Clip", "GlobalAveragePool", "GlobalMaxPool"),
    *("HardSigmoid", "LeakyRelu", "MaxPool", "Relu", "ReorderInput", "Sigmoid", "Tanh", "Upsample"),
)


def _told(graph: Graph, value: Name) -> int | None:
    """Find how many channels a value has, where it, or what keeps them, leaves the blocks."""
    left, seen = [value], {value}
    while left and len(seen) < _MAX_STEPS:
        value = left.pop()
        for user in graph.users.get(value, ()):
            if user.op == _OUT:
                return user.integer("channels", 0) or None
            # A sum that a convolution takes in has as many channels as what it gives.
            keeps = user.op.startswith(_DOMAIN) and user.op != CONVOLUTION
            if (keeps or user.input(3) == value) and user.output not in seen:
                seen.add(user.output)
                left.append(user.output)
    return None
