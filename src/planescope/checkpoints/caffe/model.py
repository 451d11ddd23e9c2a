"""Caffe's networks with their weights, ``.caffemodel``: the graph tells each layer's place."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from planescope.checkpoints.caffe.net import NEWEST, OLDER, OLDEST_TYPES, CaffeLayer, layers_of
from planescope.checkpoints.probe import Probe
from planescope.checkpoints.protobuf import BYTES, VARINT, Span, WireFile
from planescope.files.errors import CheckpointError
from planescope.hyperplanes.layer import (
    Described,
    Kind,
    Layer,
    Norm,
    Skipped,
    Tensor,
    kind_of_convolution,
)
from planescope.networks.graph.places import Node, Position, Role, follow
from planescope.networks.state.axes import filters_first
from planescope.networks.state.sharing import notes_of_calls

NAME = "caffe"

# Fields of a NetParameter, and their wire types; integers may be packed.
_NET = {1: BYTES, OLDER: BYTES, 3: BYTES, 5: VARINT, 6: BYTES, 7: VARINT, 8: BYTES, NEWEST: BYTES}
_INPUT_DIM = 4

_CONVOLUTIONS = ("Convolution", "DepthwiseConvolution", "ConvolutionDepthwise", "DepthwiseConv")
_WITH_WEIGHTS = (*_CONVOLUTIONS, "Deconvolution", "InnerProduct")
_NORM, _SCALE = "BatchNorm", "Scale"
_DEFAULT_EPS = 1e-5

_WORDS = {
    Role.NORM: ("BatchNorm", "BN"),
    Role.GATE: ("AbsVal", "BNLL", "Exp", "Sigmoid", "Softmax", "Threshold"),
    Role.IDENTITY: ("Dropout", "Split"),
    Role.VIEW: (
        *("Crop", "Flatten", "Im2col", "Interp", "LRN", "Padding", "Permute", "Pooling"),
        *("ROIPooling", "Reorg", "Reshape", "ShuffleChannel", "Slice", "SPP", "Tile", "Upsample"),
    ),
    Role.JOIN: ("Concat",),
    Role.SHIFT: ("Bias", "MVN"),
}
_ROLES = {word: role for role, words in _WORDS.items() for word in words}
_PRODUCT, _SUM, _MAXIMUM = range(3)  # of Eltwise


def recognises(probe: Probe) -> bool:
    """Tell a message with the fields of a network, a name at most once and layers among them.

    A protocol buffer has no magic; TensorFlow's graphs repeat the first field for each node.
    """
    if probe.head[:1] not in (b"\x0a", b"\x12", b"\x1a", b"\xa2"):
        return False
    numbers: Counter[int] = Counter()
    with WireFile(probe.path) as wire:
        try:
            for part in wire.fields(wire.span):
                numbers[part.number] += 1
                known = part.number == _INPUT_DIM or _NET.get(part.number) == part.wire
                if not known or numbers[1] > 1:
                    return False
                if part.number in (OLDER, NEWEST) and not _is_layer(wire, part.number, part.span):
                    return False
        except CheckpointError:
            pass
    return bool(numbers[OLDER] or numbers[NEWEST])


def _is_layer(wire: WireFile, form: int, span: Span) -> bool:
    """Tell a layer by the wire types of its first fields: its name, its type, what it reads."""
    wires: dict[int, int] = {}
    for part in wire.fields(span):
        wires.setdefault(part.number, part.wire)
    if form == NEWEST:
        return wires.get(1) == BYTES and wires.get(2) == BYTES
    if wires.get(5) == VARINT:
        return True
    inner = wire.find(span, 1)  # a layer of the oldest form; a graph of TensorFlow's is alike
    kind = wire.find(inner.span, 2) if inner is not None and inner.wire == BYTES else None
    return kind is not None and kind.wire == BYTES and wire.text(kind) in OLDEST_TYPES


def read(path: Path) -> Described:
    """Describe the layers of a network, in the order of its file, and what was left out.

    Raises
    ------
    CheckpointError
        If the file is damaged, or the weights of a layer are not what its type wants.
    """
    with WireFile(path) as wire:
        network = _Network(path, list(layers_of(wire)))
    network.build()
    positions = follow(network.nodes)
    return Described(
        layers=tuple(network.placed(name, positions[name]) for name in positions),
        skipped=tuple(network.skipped),
        notes=tuple(notes_of_calls(positions, network.biases)),
    )


@dataclass
class _Network:
    """Layers of a file to nodes of a graph, and those with weights to `Layer`."""

    path: Path
    listed: Sequence[CaffeLayer]
    nodes: list[Node] = field(default_factory=list)
    found: dict[str, Layer] = field(default_factory=dict)
    norms: dict[int, Norm] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    biases: dict[str, list[Tensor | None]] = field(default_factory=dict)  # of each call
    _values: dict[str, int] = field(default_factory=dict)  # node by the name of what it gives
    _shared: dict[str, str] = field(default_factory=dict)
    _names: Counter[str] = field(default_factory=Counter)

    def build(self) -> None:
        """Translate all layers."""
        for layer in self.listed:
            reads = tuple(self._value(name) for name in layer.bottoms)
            node = self._node(layer, reads)
            self.nodes.append(node)
            number = len(self.nodes) - 1
            if layer.type == _NORM:
                self._add_norm(layer, number)
            elif layer.type == _SCALE and len(layer.bottoms) == 1:
                self._add_scale(layer, reads[0])
            self._values.update(dict.fromkeys(layer.tops, number))

    def _value(self, name: str) -> int:
        """Return the number of the node that gives a value; else that of the network's input."""
        if name not in self._values:
            self.nodes.append(Node(role=Role.IMAGE))
            self._values[name] = len(self.nodes) - 1
        return self._values[name]

    def _node(self, layer: CaffeLayer, reads: tuple[int, ...]) -> Node:
        if not reads:
            return Node(role=Role.IMAGE)
        if layer.type in _WITH_WEIGHTS and layer.blobs:
            return Node(
                role=Role.LAYER,
                reads=reads,
                name=self._add_layer(layer),
                downsamples=layer.type != "Deconvolution"
                and max(layer.integers("convolution", 6, 13, 14), default=1) > 1,
            )
        if any(len(blob.shape) > 1 and min(blob.shape[:2]) > 1 for blob in layer.blobs):
            self._skip(layer.name, f"a layer of type {layer.type}, which holds weights of its own")
        strides = layer.integers("pooling", 3, 7, 8) if layer.type == "Pooling" else []
        return Node(role=_role(layer), reads=reads, downsamples=max(strides, default=1) > 1)

    def _skip(self, name: str, reason: str) -> None:
        self.skipped.append(Skipped(name=name, reason=reason))

    def _add_layer(self, layer: CaffeLayer) -> str:
        """Take in a layer with weights, unless its weights are those of another; give its name."""
        if layer.shared and layer.shared in self._shared:
            first = self._shared[layer.shared]
            self._skip(layer.name, f"the weights of {first} under another name; measured once")
            self.biases[first].append(_described(self.path, layer).bias)
            return first
        name = layer.name
        while self._names[name]:
            self._names[layer.name] += 1
            name = f"{layer.name}_{self._names[layer.name]}"
        self._names[name] = 1
        if layer.shared:
            self._shared[layer.shared] = name
        found = self.found[name] = replace(_described(self.path, layer), name=name)
        self.biases[name] = [found.bias]
        return name

    def _add_norm(self, layer: CaffeLayer, number: int) -> None:
        if len(layer.blobs) != 3 or math.prod(layer.blobs[2].shape) != 1:
            self._skip(layer.name, "a batch norm without the statistics that Caffe keeps")
            return
        mean, variance, factor = layer.blobs
        eps = next(iter(layer.numbers("batch_norm", 3)), _DEFAULT_EPS)
        self.norms[number] = Norm(
            name=layer.name,
            gamma=None,
            beta=None,
            mean=_divided(mean, factor),
            variance=_divided(variance, factor),
            eps=eps,
        )

    def _add_scale(self, layer: CaffeLayer, read: int) -> None:
        """Give a batch norm the scale and shift that Caffe keeps in a layer behind it."""
        norm = self.norms.get(read)
        affine = [_flat(blob) for blob in layer.blobs]
        if norm is None or not 1 <= len(affine) <= 2 or norm.gamma is not None:
            self._skip(layer.name, "a scale that stands behind no batch norm; it is not folded in")
        else:
            beta = affine[1] if len(affine) > 1 else None
            self.norms[read] = replace(norm, gamma=affine[0], beta=beta)

    def placed(self, name: str, position: Position) -> Layer:
        """Put a layer in its place, with its norm where that has its width."""
        layer = self.found[name]
        norm = None if position.norm is None else self.norms.get(position.norm)
        if norm is not None and any(
            part is not None and part.shape != (layer.filters,)
            for part in (norm.gamma, norm.beta, norm.mean, norm.variance)
        ):
            norm = None
        return replace(layer, stage=position.stage, input=position.input, norm=norm)


def _role(layer: CaffeLayer) -> Role:
    if layer.type == "ReLU":
        leaks = any(slope != 0 for slope in layer.numbers("relu", 1))
        return Role.OTHER if leaks else Role.RELU
    if layer.type == "Eltwise":
        if any(factor < 0 for factor in layer.numbers("eltwise", 2)):
            return Role.SHIFT
        kind = layer.integer("eltwise", 1, _SUM)
        return {_PRODUCT: Role.PRODUCT, _MAXIMUM: Role.MAXIMUM}.get(kind, Role.JOIN)
    if layer.type == _SCALE:
        return Role.PRODUCT if len(layer.bottoms) > 1 else Role.SHIFT
    if layer.type == "Power":
        plain = all(power == 1 for power in layer.numbers("power", 1))
        return Role.SHIFT if plain else Role.OTHER
    return _ROLES.get(layer.type, Role.OTHER)


def _described(path: Path, layer: CaffeLayer) -> Layer:
    """Describe a layer by its own arrays."""
    weight = layer.blobs[0]
    bias = _flat(layer.blobs[1]) if len(layer.blobs) > 1 else None
    groups = layer.integer("convolution", 5, 1)
    if layer.type == "InnerProduct":
        kind, groups = Kind.LINEAR, 1
        weight = _matrix(weight)
        if layer.integer("inner_product", 6, 0):
            weight = _turned(weight)
    elif layer.type == "Deconvolution":
        kind = Kind.TRANSPOSED
    else:
        kind = kind_of_convolution(weight.shape[2:])
    if len(weight.shape) < 2 or (kind is not Kind.LINEAR and len(weight.shape) < 3):
        raise _misfit(path, layer, weight)
    if kind is Kind.TRANSPOSED:
        if not groups or weight.shape[0] % groups:
            raise _misfit(path, layer, weight)
        weight = filters_first(weight, groups)
    if bias is not None and bias.shape != weight.shape[:1]:
        raise _misfit(path, layer, bias)
    return Layer(name=layer.name, kind=kind, weight=weight, bias=bias, groups=groups)


def _misfit(path: Path, layer: CaffeLayer, tensor: Tensor) -> CheckpointError:
    return CheckpointError(
        f"{path}: {layer.type} {layer.name[:200]!r} cannot have an array of shape {tensor.shape}; "
        "the file is damaged, get it again"
    )


def _flat(tensor: Tensor) -> Tensor:
    return Tensor((math.prod(tensor.shape),), tensor.dtype, lambda: tensor.read().reshape(-1))


def _matrix(tensor: Tensor) -> Tensor:
    """Return the weights of a linear layer, which Caffe once kept in four dimensions."""
    if tensor.shape[:-2] != (1,) * len(tensor.shape[:-2]) or len(tensor.shape) < 2:
        return tensor
    shape = tensor.shape[-2:]
    return Tensor(shape, tensor.dtype, lambda: tensor.read().reshape(shape))


def _turned(tensor: Tensor) -> Tensor:
    return Tensor(tensor.shape[::-1], tensor.dtype, lambda: tensor.read().T)


def _divided(total: Tensor, factor: Tensor) -> Tensor:
    """Divide what Caffe keeps as sums by the number beside them."""

    def read() -> np.ndarray:
        count = factor.read().reshape(-1)[0]
        values: np.ndarray = total.read().reshape(-1)
        return values / count if count else np.zeros_like(values)

    return Tensor((math.prod(total.shape),), total.dtype, read)
