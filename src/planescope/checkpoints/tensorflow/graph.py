"""From the operations of a TensorFlow graph to its layers, each in its place.

What an operation does to what flows through it is told by tables of TensorFlow's words; where it
leads, by the walk that all formats share (`planescope.networks.graph.places`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from planescope.checkpoints.onnx.constants.arithmetic import transposed
from planescope.checkpoints.tensorflow.folding import SILENT
from planescope.checkpoints.tensorflow.kernels import Form, filters_first, fits, kind_of
from planescope.checkpoints.tensorflow.library import inlined
from planescope.checkpoints.tensorflow.names import maker, readable, shortened, variable_module
from planescope.checkpoints.tensorflow.network import Network
from planescope.checkpoints.tensorflow.operations import Function, Operation
from planescope.checkpoints.tensorflow.values import Values
from planescope.checkpoints.tensorflow.words import (
    BEFORE_BIAS,
    EMBEDDINGS,
    FUSED_ROLES,
    INPUTS,
    LAYERS,
    LEFT_OUT,
    NEXT,
    NO_VALUES,
    NORMS,
    PLAIN,
    ROLES,
    STRIDED,
    TURNED,
    Use,
)
from planescope.files.errors import CheckpointError
from planescope.hyperplanes.layer import Described, Layer, Norm, Tensor
from planescope.networks.graph.places import Role
from planescope.networks.state import exclusions
from planescope.networks.state.pairing import folded_notes, scaled_notes


def describe(
    path: Path,
    operations: Iterable[Operation],
    functions: Iterable[Function],
    stored: Callable[[Operation], Tensor | None],
    seen: set[str] | None = None,
) -> Described:
    """Tell the layers of a graph.

    Parameters
    ----------
    functions : iterable of Function
        The library of functions that it may call.
    stored : callable
        What an operation that takes nothing holds; None for one that holds no numbers.
    seen : set of str, optional
        Names of stored weights whose layers were told before; those told now are added.

    Raises
    ------
    CheckpointError
        If the graph makes no sense.
    """
    whole = inlined(path, operations, functions)
    graph = _Graph(path, whole.operations, stored, set() if seen is None else seen)
    for runner, operation in whole.bodies:
        if operation.op in LAYERS or operation.op in LEFT_OUT:
            graph.leave_out(operation, f"within {runner}, a loop or branch, which is not followed")
    return graph.described()


class _Graph:
    def __init__(
        self,
        path: Path,
        operations: Iterable[Operation],
        stored: Callable[[Operation], Tensor | None],
        seen: set[str],
    ) -> None:
        self.path = path
        self._before = frozenset(seen)
        self._seen = seen
        self.values = Values(path, operations, stored)
        self.network = Network()
        self._numbers: dict[str, int] = {}
        self._absorbed: dict[str, Role] = {}  # operations that a layer has for its bias
        self._norms: dict[str, Norm] = {}  # by the last of the operations that they are made of
        self._scaled: list[str] = []

    def described(self) -> Described:
        order = self.values.order
        for operation in order:
            self.values.channels[operation.name] = self.values.known_channels(operation)
            self._numbers[operation.name] = self._add(operation)
        self.network.notes += scaled_notes(self._scaled)
        fused = (each for each in order if each.op in LAYERS and each.op not in PLAIN)
        self.network.notes += folded_notes(
            n for each in fused for n in (each.name, *each.inputs[1:])
        )
        return self.network.described()

    # One operation to nodes.

    def _add(self, operation: Operation) -> int:
        """Add an operation to the network; the number of the node that gives its value."""
        op, network = operation.op, self.network
        if not self.values.varies[operation.name]:
            name = operation.name
            return network.add(
                Role.CONSTANT, is_non_negative=lambda: self.values.is_non_negative(name)
            )
        if op in INPUTS:
            return network.add(Role.IMAGE)
        if op in NEXT:
            return network.add(Role.UNKNOWN)
        if op in LAYERS:
            return self._add_layer(operation, LAYERS[op])
        if op in LEFT_OUT and (op != "Einsum" or any(map(self.values.is_weight, operation.inputs))):
            self.leave_out(operation, LEFT_OUT[op])
        elif op in EMBEDDINGS and self.values.is_table(operation):
            reason = "an embedding: its rows are looked up, they cut nothing"
            self.leave_out(operation, reason)
            return network.add(Role.OTHER, self._reads(operation))
        reads = self._reads(operation)
        if operation.name in self._norms:
            return network.add_norm(self._norms[operation.name], reads)
        if operation.name in self._absorbed:
            return network.add(self._absorbed[operation.name], reads)
        if op in NORMS:
            return self._add_norm(operation, reads)
        return network.add(self._role(operation), reads, downsamples=_downsamples(operation))

    def _reads(self, operation: Operation) -> list[int]:
        """Return the numbers of the nodes that an operation reads, what it acts on first."""
        values = operation.inputs[NO_VALUES.get(operation.op, slice(None))]
        numbers = [self._numbers.get(maker(name)) for name in values]
        reads = [self.network.add(Role.UNKNOWN) if n is None else n for n in numbers]
        # A constant operand of a sum may be written first.
        if operation.op in ("Add", "AddV2", "Mul", "Maximum", "Minimum") and len(reads) == 2:
            reads.sort(key=lambda number: self.network.nodes[number].role is Role.CONSTANT)
        return reads

    def _role(self, operation: Operation) -> Role:
        if operation.op == "ClipByValue":
            least = self.values.scalar(operation.inputs[1]) if len(operation.inputs) > 1 else None
            return Role.RELU if least is not None and least >= 0 else Role.OTHER
        if operation.op == "PadV2":
            value = self.values.scalar(operation.inputs[2]) if len(operation.inputs) > 2 else None
            return Role.VIEW if value is not None and value >= 0 else Role.OTHER
        return ROLES.get(operation.op, Role.OTHER)

    def _add_norm(self, operation: Operation, reads: list[int]) -> int:
        # In training mode it takes the moments of the batch, and those that it stores do not act.
        if operation.flag("is_training", True):
            return self.network.add(Role.OTHER, reads[:1])
        norm = self._fused_norm(operation.name, operation.inputs[1:5], operation)
        if norm is None:
            return self.network.add(Role.OTHER, reads[:1])
        return self.network.add_norm(norm, reads[:1])

    def _fused_norm(self, name: str, inputs: tuple[str, ...], operation: Operation) -> Norm | None:
        parts = [found.tensor for found in map(self.values.constant, inputs) if found]
        if len(parts) != 4 or len({part.shape for part in parts}) != 1 or len(parts[0].shape) != 1:
            return None
        gamma, beta, mean, variance = parts
        eps = operation.number("epsilon", 1e-4)
        return Norm(name=shortened(name, "FusedBatchNorm"), gamma=gamma, beta=beta, mean=mean,
                    variance=variance, eps=eps)  # fmt: skip

    # Layers.

    def _add_layer(self, operation: Operation, use: Use) -> int:
        network = self.network
        inputs = operation.inputs
        if max(use.kernel, use.data) >= len(inputs):
            raise CheckpointError(
                f"{self.path}: {operation.op} {operation.name!r} has {len(inputs)} inputs; the "
                "file is damaged, get it again"
            )
        reads = [self._numbers.get(maker(inputs[use.data]), -1)]
        if reads == [-1]:
            reads = [network.add(Role.UNKNOWN)]
        down = _downsamples(operation)
        layer = self._layer(operation, use)
        if layer is None:
            number = network.add(Role.OTHER, reads, downsamples=down)
        else:
            found, root = layer
            self._seen.add(root)
            if root in self._before:
                number = network.add(Role.LAYER, reads, downsamples=down)
            else:
                number = network.add_layer(found, root, reads, downsamples=down)
        return self._add_fused(operation, number)

    def _layer(self, operation: Operation, use: Use) -> tuple[Layer, str] | None:
        """Describe the layer that an operation is; None for one that is left out."""
        value = operation.inputs[use.kernel]
        if self.values.varies.get(maker(value), False):
            # Two values that depend on the input are multiplied: no weights are.
            if operation.op not in ("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"):
                self.leave_out(operation, "its weights are computed from the network's input")
            elif self.values.constant(operation.inputs[use.data]):
                self.leave_out(operation, "a product with weights in front, on the left side")
            return None
        found = self.values.constant(value)
        if found is None:
            source = self.values.by_name.get(maker(value))
            what = "nothing in the file" if source is None else source.op
            self.leave_out(operation, f"its weights come out of {what}, which is not followed")
            return None
        kernel, root = found
        if root in self.values.looped:
            self.leave_out(operation, "a recurrent layer: its weights act within a loop")
            return None
        if not kernel.is_floating:
            self.leave_out(operation, exclusions.not_floating(kernel))
            return None
        if use.form is Form.DENSE and len(kernel.shape) == 2 and any(map(operation.flag, TURNED)):
            kernel = _turned(kernel)
        if use.form is Form.DENSE and len(kernel.shape) > 2:
            self.leave_out(operation, "a stack of matrices, one for each example or head")
            return None
        if not fits(use.form, kernel):
            raise CheckpointError(
                f"{self.path}: {operation.op} {operation.name!r} cannot have weights of shape "
                f"{kernel.shape}; the file is damaged, get it again"
            )
        weight = filters_first(kernel, use.form)
        self.values.channels[operation.name] = weight.shape[0]
        layer = Layer(
            name=variable_module(root) or readable(operation),
            kind=kind_of(use.form, kernel),
            weight=weight,
            bias=self._bias(operation, weight.shape[0]),
            groups=self._groups(operation, use, kernel),
        )
        return layer, root

    def _groups(self, operation: Operation, use: Use, kernel: Tensor) -> int | None:
        channels = self.values.channels.get(maker(operation.inputs[use.data]))
        match use.form:
            case Form.DEPTHWISE:
                return kernel.shape[-2]
            case Form.TRANSPOSED:
                return 1
            case Form.CONV if channels is not None:
                groups, rest = divmod(channels, kernel.shape[-2])
                return None if rest or not groups or kernel.shape[-1] % groups else groups
        return None

    def _bias(self, operation: Operation, filters: int) -> Tensor | None:
        """Find the bias of a layer, in it or behind it, and the norm behind both."""
        if operation.op.startswith(("_Fused", "Fused")):
            fused = operation.texts("fused_ops")
            if fused[:1] == ("BiasAdd",) and len(operation.inputs) > 2:
                return self.values.per_filter(operation.inputs[2], filters)
            return None
        value = operation.name
        bias = None
        reader = self.values.only_reader(value, BEFORE_BIAS)
        if reader is not None and reader.op in ("BiasAdd", "Add", "AddV2"):
            bias = self.values.operand(reader, filters)
            if bias is not None:
                self._absorbed[reader.name] = Role.IDENTITY
                value = reader.name
        self._find_scale(operation, value, filters)
        return bias

    def _find_scale(self, operation: Operation, value: str, filters: int) -> None:
        """Find a batch norm that is written out as a product and a sum; note another scale."""
        product = self.values.only_reader(value, BEFORE_BIAS)
        if product is None or product.op != "Mul" or len(product.inputs) != 2:
            return
        scales = [n for n in product.inputs if not self.values.varies.get(maker(n), True)]
        if len(scales) != 1 or self.values.operand(product, filters) is None:
            return
        total = self.values.only_reader(product.name, SILENT)
        shifts = [] if total is None or total.op not in ("Add", "AddV2", "Sub") else [
            n for n in total.inputs if not self.values.varies.get(maker(n), True)
        ]  # fmt: skip
        norm = None
        if len(shifts) == 1 and total is not None and total.op != "Sub":
            norm = self._written_out(product.name, scales[0], shifts[0], filters)
        if norm is None or total is None:
            self._scaled.append(readable(operation))
            return
        self._absorbed[product.name] = Role.IDENTITY
        self._norms[total.name] = norm

    def _written_out(self, name: str, scale: str, shift: str, filters: int) -> Norm | None:
        """Take apart scale = gamma / sqrt(variance + eps), shift = beta - mean * scale."""
        gamma_name, root = None, self.values.made_by(scale)
        if root is not None and root.op == "Mul" and len(root.inputs) == 2:
            one, other = map(self.values.made_by, root.inputs)
            if one is not None and one.op == "Rsqrt":
                gamma_name, root = root.inputs[1], one
            elif other is not None and other.op == "Rsqrt":
                gamma_name, root = root.inputs[0], other
        within = self.values.made_by(root.inputs[0]) if root and root.op == "Rsqrt" else None
        less = self.values.made_by(shift)
        if within is None or within.op not in ("Add", "AddV2") or less is None or less.op != "Sub":
            return None
        moved = self.values.made_by(less.inputs[1]) if len(less.inputs) == 2 else None
        if moved is None or moved.op != "Mul" or len(within.inputs) != 2:
            return None
        scaled = self.values.made_by(scale)
        means = [n for n in moved.inputs if self.values.made_by(n) is not scaled]
        eps = self.values.scalar(within.inputs[1])
        parts = [
            self.values.per_filter(each, filters)
            for each in (*means[:1], within.inputs[0], less.inputs[0])
        ]
        gamma = self.values.per_filter(gamma_name, filters) if gamma_name else None
        if len(parts) != 3 or None in parts or eps is None or (gamma_name and gamma is None):
            return None
        mean, variance, beta = (part for part in parts if part is not None)
        return Norm(name=shortened(name, "mul"), gamma=gamma, beta=beta, mean=mean,
                    variance=variance, eps=eps)  # fmt: skip

    def _add_fused(self, operation: Operation, number: int) -> int:
        """Add what an operation does behind its product: a norm, a sum, an activation."""
        network = self.network
        fused = operation.texts("fused_ops")
        arguments = list(operation.inputs[2:])
        for word in fused if operation.op.startswith(("_Fused", "Fused")) else ():
            if word == "BiasAdd":
                arguments = arguments[1:]
            elif word == "FusedBatchNorm":
                norm = self._fused_norm(operation.name, tuple(arguments[:4]), operation)
                arguments = arguments[4:]
                number = (
                    network.add(Role.OTHER, [number])
                    if norm is None
                    else network.add_norm(norm, [number])
                )
            elif word == "Add":
                other = self._numbers.get(maker(arguments[0])) if arguments else None
                also = network.add(Role.UNKNOWN) if other is None else other
                number, arguments = network.add(Role.JOIN, [number, also]), arguments[1:]
            else:
                number = network.add(FUSED_ROLES.get(word, Role.OTHER), [number])
        return number

    def leave_out(self, operation: Operation, reason: str) -> None:
        self.network.skip(readable(operation), reason)


def _turned(kernel: Tensor) -> Tensor:
    return transposed(kernel, (1, 0))


def _downsamples(operation: Operation) -> bool:
    strides = operation.integers("strides")
    return operation.op in STRIDED and max(strides, default=1) > 1
