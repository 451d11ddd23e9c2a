"""The config of a Keras model, read: its layers, and the place of each in the network.

Both generations are read, functional and sequential, models within models, wrappers and the
operations between layers. Nothing is built: the config is JSON, and stays so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

from planescope.checkpoints.keras.entries import (
    NORM,
    ConfigLayer,
    Position,
    as_list,
    as_mapping,
    children_of,
    describe_entry,
    leaves_of,
)
from planescope.networks.graph import places
from planescope.networks.graph.places import Node, Role, follow
from planescope.networks.state.sharing import notes_of_calls

# A model called twice within a model called twice, and so on, doubles each time.
MAX_CALLS = 20_000


_LAYER = re.compile(r"(Depthwise|Separable)?Conv[123]D(Transpose)?|Dense|EinsumDense")
_DOWNSAMPLING = re.compile(r"(Max|Average)Pooling[123]D|(Depthwise|Separable)?Conv[123]D")

# Classes of layers, and of operations between them, in the words of `networks.graph.places`.
_WORDS = (
    (Role.NORM, NORM.pattern),
    (Role.LAYER, _LAYER.pattern),
    (
        Role.IDENTITY,
        r"(Spatial|Gaussian|Alpha)?Dropout([123]D)?|GaussianNoise|ActivityRegularization|Identity"
        r"|Cast|StopGradient|Copy",
    ),
    (Role.RELU, r"Relu6?"),
    (Role.GATE, r"Sigmoid|HardSigmoid|Softmax|Softplus|Exp|Abs(olute)?|Square|Sqrt|Rsqrt"),
    (
        Role.VIEW,
        r"((Global|Adaptive)?(Max|Average)|Max|Average)Pool(ing[123]D)?"
        r"|(ZeroPadding|Cropping)[123]D|UpSampling[123]D|Flatten|Reshape|Permute|RepeatVector"
        r"|Masking|Transpose|GetItem|SlicingOpLambda|Squeeze|ExpandDims|Mean|Max|Amax|Min|Amin|Sum"
        r"|BroadcastTo|Repeat|Tile|Split|Flip|Roll|Swapaxes|Moveaxis|Ravel|Take",
    ),
    (Role.JOIN, r"Concatenate|Add|Average|Stack"),
    (Role.PRODUCT, r"Multiply|(True)?Divide"),
    (Role.MAXIMUM, r"Maximum"),
    (Role.MINIMUM, r"Minimum"),
    (
        Role.SHIFT,
        r"Neg(ative)?|Subtract|Rescaling|Normalization|Resizing|Resize|CenterCrop|Random\w+|Pad",
    ),
)
_ROLES = tuple((role, re.compile(pattern)) for role, pattern in _WORDS)
_ARITHMETIC = re.compile(r"Add|Subtract|Multiply|(True)?Divide|Maximum|Minimum")

# Activations by name, linear left out.
_ACTIVATIONS = {
    **dict.fromkeys(("relu", "relu6"), Role.RELU),
    **dict.fromkeys(("sigmoid", "hard_sigmoid", "softmax", "softplus", "exponential"), Role.GATE),
    "linear": Role.IDENTITY,
}

_Node = tuple[str, int]  # a layer of a functional model, and which of its calls


def trace(text: str | bytes) -> list[ConfigLayer]:
    """List the layers of a model as its config does, those of models within it in their places.

    A config that lists no layers, as a subclassed model's, gives none.

    Raises
    ------
    ValueError
        If `text` is not JSON, or the layers call one another in a circle or too often.
    RecursionError
        If it nests too deeply.
    """
    root = describe_entry(json.loads(text), path=(), slot="")
    if not root.is_model:
        return []
    calls = _Calls()
    given = calls.add(root, None)
    calls.nodes.append(Node(role=Role.OTHER, reads=tuple(given)))
    found = follow(calls.nodes)
    return [
        replace(layer, position=calls.position(layer.name, found[layer.name]))
        if layer.name in found
        else layer
        for layer in leaves_of(root)
    ]


class _Calls:
    """The network as a list of nodes, each behind those whose outputs it takes."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._norms: dict[int, str] = {}
        self._count = 0

    def add(
        self, layer: ConfigLayer, inputs: list[int] | None, operands: Sequence[float] = ()
    ) -> list[int]:
        """Call a layer on the outputs of earlier calls (None: it starts the network).

        Parameters
        ----------
        operands : sequence of float
            Numbers that it computes with besides.
        """
        self._count += 1
        if self._count > MAX_CALLS:
            raise ValueError(f"its layers are called more than {MAX_CALLS} times")
        if layer.is_model:
            functional = "input_layers" in layer.options
            return self._functional(layer, inputs) if functional else self._chain(layer, inputs)
        if layer.class_name == "InputLayer":
            return [self._put(Node(role=Role.IMAGE))] if inputs is None else inputs
        role = _role(layer)
        if len(inputs or ()) == 1 and not operands and _ARITHMETIC.fullmatch(layer.class_name):
            operands = (-1.0,)  # the other operand is not told, and may be negative
        numbers = [self._put(_number(value)) for value in operands]
        last = self._put(
            Node(
                role=role,
                reads=(*(inputs or ()), *numbers),
                name=layer.name if role in (Role.LAYER, Role.NORM) else "",
                downsamples=_downsamples(layer),
            )
        )
        if role is Role.NORM:
            self._norms[last] = layer.name
        fused = _fused_activation(layer)
        if fused is not None:
            last = self._put(Node(role=_role(fused), reads=(last,)))
        return [last]

    def position(self, layer: str, found: places.Position) -> Position:
        """Put the name of the norm in the place of its number."""
        norm = None if found.norm is None else self._norms[found.norm]
        notes = tuple(notes_of_calls({layer: found}, {}))
        return Position(stage=found.stage, input=found.input, norm=norm, notes=notes)

    def _put(self, node: Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1

    def _chain(self, model: ConfigLayer, inputs: list[int] | None) -> list[int]:
        if inputs is None:
            inputs = [self._put(Node(role=Role.IMAGE))]
        for layer in children_of(model):
            inputs = self.add(layer, inputs)
        return inputs

    def _functional(self, model: ConfigLayer, inputs: list[int] | None) -> list[int]:
        nodes: dict[_Node, tuple[ConfigLayer, Any]] = {}
        for layer in children_of(model):
            for index, call in enumerate(layer.inbound or [[]]):
                # In Keras 2 a model's first call is the one that it was built with.
                built = int(layer.is_model and isinstance(call, list))
                nodes[layer.path[-1], index + built] = layer, call

        entrances = [node for node, _ in _references(model.options["input_layers"])]
        outputs = {node: [fed] for node, fed in zip(entrances, inputs or [], strict=False)}
        sources = {key: [node for node, _ in _references(call)] for key, (_, call) in nodes.items()}
        try:
            order = list(TopologicalSorter(sources).static_order())
        except CycleError as exc:
            raise ValueError("its layers call one another in a circle") from exc
        for key in order:
            if key in nodes and key not in outputs:
                layer, call = nodes[key]
                is_arithmetic = _ARITHMETIC.fullmatch(layer.class_name)
                numbers = sorted(_numbers(call))[:1] if is_arithmetic else []
                taken = _taken(outputs, _references(call))
                outputs[key] = self.add(layer, taken or None, numbers)
        return _taken(outputs, _references(model.options.get("output_layers")))


def _references(value: Any) -> Iterator[tuple[_Node, int]]:
    """Find the tensors that a node names, each by its call and which output of that it is.

    Keras 2 writes ``["conv", 0, 0, {keywords}]``, Keras 3 an object around ``["conv", 0, 0]``.
    """
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            yield from _references(as_mapping(value.get("config")).get("keras_history"))
            return
        value = list(value.values())
    match value:
        case [str(name), int(index), int(output), *rest]:
            yield (name, index), output
            value = rest
    for item in as_list(value):
        if isinstance(item, list | dict):
            yield from _references(item)


def _taken(outputs: dict[_Node, list[int]], references: Iterable[tuple[_Node, int]]) -> list[int]:
    """Return the calls behind the references; those that the config does not hold are left out."""
    return [
        call for node, output in references for call in outputs.get(node, [])[output : output + 1]
    ]


def _numbers(value: Any) -> Iterator[float]:
    """Find the numbers that a call is given besides tensors; of arrays each element."""
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            return
        # Keras 3 calls by arguments, Keras 2 by keywords; a name or an axis is no operand.
        value = [item for key, item in value.items() if key in ("args", "kwargs", *_OPERANDS)]
    match value:
        case [str(), int(), int(), *rest]:
            value = rest
    if isinstance(value, int | float):
        yield value
    for item in as_list(value):
        yield from _numbers(item)


_OPERANDS = ("x", "y", "x1", "x2", "config", "value")


def _number(value: float) -> Node:
    return Node(role=Role.CONSTANT, is_non_negative=lambda: value >= 0)


def _role(layer: ConfigLayer) -> Role:
    """Return the role of a layer in the network."""
    options = layer.options
    if layer.is_foreign:
        return Role.OTHER
    match layer.class_name:
        case "Activation":
            return _ACTIVATIONS.get(_activation_name(layer), Role.OTHER)
        case "ReLU":
            least = options.get("threshold") or 0
            is_one = not options.get("negative_slope") and isinstance(least, int | float)
            return Role.RELU if is_one and least >= 0 else Role.OTHER
        case "ThresholdedReLU":
            return Role.RELU
        case "Clip":
            least = options.get("x_min")
            return Role.RELU if isinstance(least, int | float) and least >= 0 else Role.OTHER
        case "Rescaling" if _keeps_sign(options.get("scale"), options.get("offset", 0)):
            return Role.VIEW
        case "UpSampling2D" if re.match("bicubic|lanczos", str(options.get("interpolation"))):
            return Role.SHIFT
    return next((role for role, words in _ROLES if words.fullmatch(layer.class_name)), Role.OTHER)


def _keeps_sign(*factors: object) -> bool:
    """Tell whether numbers, or lists of them, are all there and none is negative."""
    given = [
        each for factor in factors for each in (factor if isinstance(factor, list) else [factor])
    ]
    return all(isinstance(each, int | float) and each >= 0 for each in given)


def _downsamples(layer: ConfigLayer) -> bool:
    if not _DOWNSAMPLING.fullmatch(layer.class_name):
        return False
    strides = layer.options.get("strides") or layer.options.get("pool_size")
    extents = strides if isinstance(strides, list) else [strides]
    return any(isinstance(extent, int) and extent > 1 for extent in extents)


def _fused_activation(layer: ConfigLayer) -> ConfigLayer | None:
    """Return the activation within a convolution or dense layer, as a layer of its own.

    None if linear.
    """
    if layer.is_foreign or not _LAYER.fullmatch(layer.class_name):
        return None
    spec = layer.options.get("activation")
    entry = {"class_name": "Activation", "config": {"activation": spec}}
    if isinstance(spec, dict) and spec.get("class_name") != "function":
        entry = spec
    activation = describe_entry(entry, path=(), slot="")
    return None if _role(activation) is Role.IDENTITY else activation


def _activation_name(layer: ConfigLayer) -> str:
    spec = layer.options.get("activation")
    return str(spec.get("config") if isinstance(spec, dict) else spec or "linear")
