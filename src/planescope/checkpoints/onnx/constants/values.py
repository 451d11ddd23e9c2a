"""Values of an ONNX graph that do not depend on the network's input, and what they are made of."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from enum import Enum, auto
from typing import NamedTuple

import numpy as np

from planescope.checkpoints.onnx import nodes
from planescope.checkpoints.onnx.constants.folding import REARRANGING, fold
from planescope.checkpoints.onnx.graph import Graph
from planescope.checkpoints.onnx.nodes import Name, Node
from planescope.checkpoints.onnx.tensors import tensor_at
from planescope.checkpoints.protobuf import Span
from planescope.files.errors import CheckpointError
from planescope.hyperplanes.layer import Tensor

_MAX_FOLDS = 64  # operators in a row on a constant
_MAX_PARTS = 4096  # tensors that are read for one, counted each time that they are

# Elements of what small tensors may be made into; larger ones into some times their own.
_MADE = 1 << 22
_TIMES = 4

# Elements of a constant that is looked at to see whether any is negative.
_MAX_LOOK = 1 << 16

# A shape, an axis, a factor: told apart by its values, not by where it lies.
_SMALL = 16


class Constant(NamedTuple):
    """A value that is stored, or made of stored ones.

    Attributes
    ----------
    root : hashable
        The same for values that hold the same elements with the axes in one order.
    names : tuple of str
        Its own, and of what it is made of, back to the stored tensors.
    stored : int
        Elements of the stored tensors.
    parts : int
        How many tensors are read when it is.
    """

    tensor: Tensor
    root: Hashable
    names: tuple[str, ...]
    stored: int
    parts: int = 1


def turned(root: Hashable, axes: Sequence[int]) -> Hashable:
    """Return the root of what has the same elements with the axes in another order."""
    match root:
        case (_Turn.AXES, tuple(before), base) if len(before) == len(axes):
            root, axes = base, [before[axis] for axis in axes]
    return root if list(axes) == sorted(axes) else (_Turn.AXES, tuple(axes), root)


class _Turn(Enum):
    AXES = auto()


class Constants:
    """The constants of a graph, each worked out when it is first asked for."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._found: dict[Name, Constant | None] = {}

    def of(self, name: Name | None) -> Constant | None:
        """Find a constant; None for what depends on the input, or is made in a way not followed."""
        return None if name is None else self._at(name, 0)

    def tensor(self, name: Name | None) -> Tensor | None:
        """Find the tensor of a constant."""
        found = self.of(name)
        return found.tensor if found else None

    def scalar(self, name: Name | None) -> float | None:
        """Read a constant of one element."""
        tensor = self.tensor(name)
        if tensor is None or math.prod(tensor.shape) != 1:
            return None
        return float(tensor.read().reshape(()))

    def is_non_negative(self, name: Name) -> bool:
        """Look whether no element of a constant is negative; False where that cannot be seen."""
        tensor = self.tensor(name)
        if tensor is None or math.prod(tensor.shape) > _MAX_LOOK:
            return False
        return bool((tensor.read() >= 0).all())

    def unfollowed(self, name: Name) -> str | None:
        """Name the operator at which a way back to stored tensors ends; None at no operator."""
        for _ in range(_MAX_FOLDS):
            node = self._graph.makers.get(name)
            if node is None:
                return None
            missing = [part for part in node.inputs if part and self.of(part) is None]
            if not missing:
                return node.op
            name = missing[0]
        return None

    def _at(self, name: Name, folds: int) -> Constant | None:
        if name not in self._found:
            self._found[name] = None  # until it is known, for nodes that feed themselves
            self._found[name] = self._made(name, folds)
        return self._found[name]

    def _made(self, name: Name, folds: int) -> Constant | None:
        graph = self._graph
        if name in graph.dynamic:
            return None
        if name in graph.stored:
            span = graph.stored[name]
            tensor = tensor_at(graph.wire, span)
            return Constant(tensor, span, (name.text,), math.prod(tensor.shape))
        if name in graph.sparse:
            return self._sparse(graph.sparse[name], name.text)
        node = graph.makers.get(name)
        if node is not None and node.op == "Constant":
            return self._constant(node, name.text)
        if node is None or folds == _MAX_FOLDS:
            return None
        return self._folded(node, name, folds)

    def _constant(self, node: Node, name: str) -> Constant | None:
        for field in node.sparse_tensors("sparse_value"):
            return self._sparse(field, name)
        tensor = nodes.constant(node)
        if tensor is None:
            return None
        (root, *_) = node.spans().values()
        return Constant(tensor, root, (name,), math.prod(tensor.shape))

    def _folded(self, node: Node, name: Name, folds: int) -> Constant | None:
        parts = [self._at(part, folds + 1) if part else None for part in node.inputs]
        missing = [n for n, part in enumerate(parts) if part is None and node.inputs[n]]
        if missing and not (node.op == "CastLike" and missing == [1]):  # of which the type is taken
            return None
        known = [part for part in parts if part is not None]
        stored, count = sum(part.stored for part in known), sum(part.parts for part in known)
        if not parts or parts[0] is None or count > _MAX_PARTS:
            return None
        output = node.outputs.index(name)
        tensor = fold(node, [part.tensor if part else None for part in parts], output)
        # A few bytes may claim to be repeated without end.
        if tensor is None or math.prod(tensor.shape) > max(_MADE, _TIMES * stored):
            return None
        root = parts[0].root
        if node.op == "Transpose":
            root = turned(root, node.integers("perm") or range(len(tensor.shape))[::-1])
        elif node.op not in REARRANGING:
            root = self._root(node, output, known)
        names = tuple(dict.fromkeys((name.text, *(n for part in known for n in part.names))))
        return Constant(tensor, root, names[:_MAX_FOLDS], stored, count)

    def _root(self, node: Node, output: int, parts: list[Constant]) -> Hashable:
        """Tell apart what an operator makes by the operator and what it is given."""
        wire = self._graph.wire
        attributes = tuple(
            wire.payload(span) if span[1] - span[0] < _MAX_LOOK else span
            for span in node.spans().values()
        )
        operands = (
            part.tensor.read().tobytes() if math.prod(part.tensor.shape) <= _SMALL else part.root
            for part in parts[1:]
        )
        return (node.op, output, attributes, parts[0].root, *operands)

    def _sparse(self, span: Span, name: str) -> Constant | None:
        """Describe a tensor of which the file lists the elements that are not 0."""
        wire = self._graph.wire
        values, indices = wire.find(span, 1), wire.find(span, 2)
        shape = tuple(
            n for part in wire.fields(span) if part.number == 3 for n in wire.integers(part)
        )
        if values is None or indices is None:
            return None
        held, where = tensor_at(wire, values.span), tensor_at(wire, indices.span)
        count, rank = math.prod(held.shape), len(shape)
        if where.shape not in ((count,), (count, rank)) or min(shape, default=0) < 0:
            raise CheckpointError(
                f"{wire.path}: the sparse tensor {name!r} lists {where.shape} places of {count} "
                "elements; the file is damaged, get it again"
            )
        if math.prod(shape) > max(_MADE, _TIMES * count):
            return None

        def read() -> np.ndarray:
            dense = np.zeros(shape, held.read().dtype)
            places = where.read().astype(np.int64)
            try:
                if places.ndim == 2:
                    places = np.ravel_multi_index(tuple(places.T), shape)
                dense.reshape(-1)[places] = held.read()
            except (ValueError, IndexError) as exc:
                raise CheckpointError(
                    f"{wire.path}: the sparse tensor {name!r} has an element outside its shape "
                    f"{shape}; the file is damaged, get it again"
                ) from exc
            return dense

        return Constant(Tensor(shape, held.dtype, read), span, (name,), count)
