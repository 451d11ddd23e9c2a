"""Constants that meet what a layer of an ONNX graph gives or reads, next to it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from planescope.checkpoints.onnx.constants.arithmetic import mapped, reshaped
from planescope.checkpoints.onnx.constants.values import Constants
from planescope.checkpoints.onnx.graph import SILENT, Graph
from planescope.checkpoints.onnx.nodes import Name, Node
from planescope.checkpoints.onnx.quantised import scaled
from planescope.checkpoints.onnx.words import axes_of, saturates
from planescope.hyperplanes.layer import Tensor

# Last extents of a constant that has one element for each filter; None where no such one can be
# told from others.
Tail = tuple[int, ...] | None

_MAX_STEPS = 16  # of those that follow one another
_ROUNDING = ("DequantizeLinear", "QuantizeLinear")
# Behind these a scale is a part of the normalisation.
_NORMALISING = frozenset(
    ("Div", "LpNormalization", "Pow", "Reciprocal", "ReduceSum", "Sqrt", "Sub")
)
_VIEWS = ("Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


class Deed(Enum):
    """The deed of a constant, or of a step without one."""

    ADDS = auto()
    TAKES = auto()
    SCALES = auto()
    TURNS = auto()  # the negative of what came, perhaps added to a constant


@dataclass(frozen=True, kw_only=True)
class Met:
    """A step that joins a constant to what a layer gives, or turns it round.

    Attributes
    ----------
    before : tuple of Node
        Steps between the one before it and this one, which round or rearrange.
    tail : tuple of int or None
        As `Tail`, where it stands.
    """

    node: Node
    deed: Deed
    constant: Tensor | None
    tail: Tail
    before: tuple[Node, ...] = ()

    def each(self, filters: int) -> Tensor | None:
        """Return the constant as shape (filters,), if that is how it meets them."""
        constant = self.constant
        if constant is None:
            return None
        if self.is_single:
            return mapped(lambda one: one.reshape(1).repeat(filters), constant, shape=(filters,))
        found = None if self.tail is None else per_filter(constant, self.tail)
        return found if found is not None and found.shape == (filters,) else None

    @property
    def is_single(self) -> bool:
        """Tell whether the constant is one number."""
        return self.constant is not None and math.prod(self.constant.shape) == 1

    @property
    def is_quiet(self) -> bool:
        """Tell whether no hyperplane moves: all outputs are scaled by one positive number."""
        if self.deed is not Deed.SCALES or not self.is_single or self.constant is None:
            return False
        return bool(self.constant.read().reshape(()) > 0)


def met(
    graph: Graph, constants: Constants, value: Name, tail: Tail, rank: int | None = None
) -> Iterator[Met]:
    """Yield what meets a value one after another, until something else reads it.

    Parameters
    ----------
    tail : tuple of int or None
        Of `value`.
    rank : int, optional
        How many axes `value` has, where that is known.
    """
    before: list[Node] = []
    for _ in range(_MAX_STEPS):
        node = graph.only_user(value)
        if node is None:
            return
        if node.op.removeprefix("com.microsoft.") in _ROUNDING:
            if node.input(0) is None or saturates(constants, node):
                return
            before.append(node)
        elif node.op in _VIEWS:
            tail, rank = _viewed(constants, node, tail, rank)
            before.append(node)
        elif (found := _joined(constants, node)) is not None:
            deed, constant = found
            yield Met(node=node, deed=deed, constant=constant, tail=tail, before=tuple(before))
            before = []
            if rank is not None and constant is not None:
                rank = max(rank, len(constant.shape))
        else:
            return
        value = node.output


def _joined(constants: Constants, node: Node) -> tuple[Deed, Tensor | None] | None:
    """Tell what a step does with a constant; None where it does anything else."""
    if node.op == "Neg":
        return Deed.TURNS, None
    if node.op == "com.microsoft.QLinearAdd":
        constant = _dequantised(constants, node)
        return None if constant is None else (Deed.ADDS, constant)
    if node.op not in _DEEDS or len(node.inputs) != 2:
        return None
    given = [constants.tensor(name) for name in node.inputs]
    deed = _DEEDS[node.op]
    match given:
        case (None, Tensor() as constant):
            return deed, constant
        # A constant that is divided is an activation like any other.
        case (Tensor() as constant, None) if node.op != "Div":
            return (Deed.TURNS if deed is Deed.TAKES else deed), constant
    return None


_DEEDS = {
    "Add": Deed.ADDS,
    "Sum": Deed.ADDS,
    "Sub": Deed.TAKES,
    "Mul": Deed.SCALES,
    "Div": Deed.SCALES,
}


def _dequantised(constants: Constants, node: Node) -> Tensor | None:
    """Find the constant operand of a quantised sum, as the numbers that it stands for."""
    for first in (0, 3):
        steps, scale, zero = (constants.tensor(node.input(first + number)) for number in range(3))
        if steps is not None and scale is not None and math.prod(scale.shape) == 1:
            flat = reshaped(steps, (math.prod(steps.shape),))
            return reshaped(scaled(flat, scale, zero), steps.shape)
    return None


def _viewed(
    constants: Constants, node: Node, tail: Tail, rank: int | None
) -> tuple[Tail, int | None]:
    """Follow the filters through a step that rearranges what comes out."""
    if tail is None:
        return None, None
    match node.op:
        case "Transpose":
            axes = node.integers("perm")
            full = (1,) * (len(axes) - len(tail)) + tail
            if not axes or sorted(axes) != list(range(len(full))):
                return None, None
            return _short([full[axis] for axis in axes]), len(axes)
        case "Squeeze" | "Unsqueeze":
            return _with_axes(node, axes_of(constants, node), tail, rank)
        case "Reshape":
            return _in_shape(constants.tensor(node.input(1)), tail)
    return None, None


def _with_axes(
    node: Node, axes: Sequence[int], tail: tuple[int, ...], rank: int | None
) -> tuple[Tail, int | None]:
    """Take axes out, or put new ones in."""
    is_new = node.op == "Unsqueeze"
    if rank is None or rank < len(tail) or not axes:
        return None, None
    after = rank + len(axes) if is_new else rank
    if any(not -after <= axis < after for axis in axes):
        return None, None
    places = sorted({axis % after for axis in axes})
    full = [*(1,) * (rank - len(tail)), *tail]
    if is_new:
        for place in places:
            full.insert(place, 1)
    elif any(full[place] != 1 for place in places):
        return None, None
    else:
        full = [extent for place, extent in enumerate(full) if place not in places]
    return _short(full), len(full)


def _in_shape(shape: Tensor | None, tail: tuple[int, ...]) -> tuple[Tail, int | None]:
    """Find the filters in another shape: they stay last where its last extents hold them all."""
    if shape is None or shape.is_floating or math.prod(shape.shape) > _MAX_STEPS:
        return None, None
    wanted = _integers(shape)
    for count in range(1, len(wanted) + 1):
        last = wanted[-count:]
        if min(last) > 0 and math.prod(last) == math.prod(tail) and tail[-1] != 1:
            return last, len(wanted)
    return None, len(wanted)


def _integers(tensor: Tensor) -> tuple[int, ...]:
    return tuple(int(n) for n in tensor.read().reshape(-1))


def _short(full: Sequence[int]) -> tuple[int, ...]:
    """Leave out the extents of 1 in front."""
    first = next((place for place, extent in enumerate(full) if extent != 1), len(full) - 1)
    return tuple(full[first:])


def per_filter(tensor: Tensor, tail: tuple[int, ...]) -> Tensor | None:
    """Return a tensor as shape (filters,), if it would be spread over the outputs in that way."""
    if tensor.shape[-len(tail) :] != tail or math.prod(tensor.shape) != math.prod(tail):
        return None
    return reshaped(tensor, (math.prod(tail),))


def untold(steps: Sequence[Met]) -> dict[Deed, bool]:
    """Tell what steps do that is in no table: which deeds, and whether all are one number each."""
    told: dict[Deed, bool] = {}
    loud = [step for step in steps if not step.is_quiet]
    for step in loud:
        deed = Deed.ADDS if step.deed is Deed.TAKES else step.deed
        told[deed] = told.get(deed, True) and step.is_single
    return told


def is_scaled(graph: Graph, constants: Constants, layer: Node) -> bool:
    """Tell whether a constant scales each input of a layer that a layer or activation gives.

    So do adapters (IA3), and quantisers that smooth what they round. The scale of a normalisation
    is another thing, and the image is the image whatever is done to it.
    """
    value = next((name for name in layer.inputs if name in graph.dynamic), None)
    maker = _maker(graph, value)
    if maker is None or maker.op not in ("Mul", "Div"):
        return False
    fed = [name for name in maker.inputs if name in graph.dynamic]
    fixed = [constants.tensor(name) for name in maker.inputs if name not in graph.dynamic]
    if len(fed) != 1 or not fixed or fixed[0] is None or math.prod(fixed[0].shape) < 2:
        return False
    return _is_no_norm(graph, _maker(graph, fed[0]))


def _maker(graph: Graph, value: Name | None) -> Node | None:
    """Find the node that makes a value, but for what only rearranges it."""
    for _ in range(_MAX_STEPS):
        node = None if value is None else graph.makers.get(value)
        if node is None or (node.op not in SILENT and node.op not in _VIEWS):
            return node
        value = node.input(0)
    return None


def _is_no_norm(graph: Graph, node: Node | None) -> bool:
    if node is None or node.op in _NORMALISING or "Norm" in node.op:
        return False
    # The last step of many: what is normalised, times one over its length.
    factors = [_maker(graph, name) for name in node.inputs] if node.op == "Mul" else []
    return not any(factor is not None and factor.op in _NORMALISING for factor in factors)
