"""The config of a Keras model, read: its layers, and the place of each in the network.

Both generations are read, functional and sequential, models within models, wrappers and the
operations between layers. Nothing is built: the config is JSON, and stays so.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

from planescope.hyperplanes.layer import Input
from planescope.networks import places
from planescope.networks.places import Node, Role, follow

# A model called twice within a model called twice, and so on, doubles each time.
MAX_CALLS = 20_000

# Keras 2 has one class for all operations on tensors (x + y, tf.nn.relu); Keras 3's names for them.
_TF_FUNCTIONS = {
    "nn.relu": "Relu",
    "nn.relu6": "Relu6",
    "nn.softmax": "Softmax",
    "nn.sigmoid": "Sigmoid",
    "math.sigmoid": "Sigmoid",
    "identity": "Identity",
    "cast": "Cast",
    "concat": "Concatenate",
    "stack": "Stack",
    "reshape": "Reshape",
    "transpose": "Transpose",
    "squeeze": "Squeeze",
    "expand_dims": "ExpandDims",
    "math.reduce_mean": "Mean",
    "math.reduce_max": "Max",
    "math.reduce_sum": "Sum",
    "__operators__.add": "Add",
    "__operators__.getitem": "GetItem",
    "math.add": "Add",
    "math.subtract": "Subtract",
    "math.multiply": "Multiply",
    "math.truediv": "TrueDivide",
    "math.divide": "TrueDivide",
    "math.maximum": "Maximum",
    "math.minimum": "Minimum",
}

_KERAS = re.compile(r"((tf_)?keras|tensorflow|builtins)(\.|$)")

_NORM = re.compile(r"(Sync)?BatchNormalization(V[12])?")
_WRAPPER = re.compile(r"TimeDistributed|SpectralNormalization")
_LAYER = re.compile(r"(Depthwise|Separable)?Conv[123]D(Transpose)?|Dense|EinsumDense")
_DOWNSAMPLING = re.compile(r"(Max|Average)Pooling[123]D|(Depthwise|Separable)?Conv[123]D")

# Classes of layers, and of operations between them, in the words of `planescope.networks.places`.
_WORDS = (
    (Role.NORM, _NORM.pattern),
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
    (Role.JOIN, r"Concatenate|Add|Average|Minimum|Stack"),
    (Role.PRODUCT, r"Multiply|(True)?Divide"),
    (Role.MAXIMUM, r"Maximum"),
    (
        Role.SHIFT,
        r"Subtract|Rescaling|Normalization|Resizing|Resize|CenterCrop|Random\w+|Pad",
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


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Position:
    """The place of a layer, as in `Layer`, with the norm by its name."""

    stage: int | None
    input: Input
    norm: str | None


@dataclass(frozen=True, kw_only=True, eq=False)
class ConfigLayer:
    """A layer as the config describes it.

    Attributes
    ----------
    path : tuple of str
        Its name, behind those of the models that it is in.
    slot : str
        Group of its variables in a Keras 3 file: snake-cased classes, numbered within each model.
    inbound : list
        What it is called on, a node a call, as the config has it.
    is_foreign : bool
        Its class is not one of Keras, whatever it is called.
    position : Position or None
        None where it is never called.
    """

    path: tuple[str, ...]
    slot: str
    class_name: str
    options: dict[str, Any]
    inbound: list[Any]
    is_foreign: bool = False
    position: Position | None = None

    @property
    def name(self) -> str:
        """Return the path with dots."""
        return ".".join(self.path)

    @property
    def is_model(self) -> bool:
        """Return whether it holds layers itself."""
        return "layers" in self.options

    @property
    def is_norm(self) -> bool:
        """Return whether it is a batch norm."""
        return not self.is_foreign and _NORM.fullmatch(self.class_name) is not None

    @property
    def kind(self) -> str:
        """Return its class as Keras 3 writes it into files; "" where that is not one of Keras."""
        return "" if self.is_foreign else snake_case(self.class_name)

    @property
    def lora(self) -> float | None:
        """Return the factor of its update of low rank; None where it has none."""
        rank, alpha = self.options.get("lora_rank"), self.options.get("lora_alpha")
        if not isinstance(rank, int) or rank < 1:
            return None
        return alpha / rank if isinstance(alpha, int | float) else 1.0

    @property
    def einsum(self) -> tuple[list[int], list[int]] | None:
        """Give the axes of the kernel that are filters, and those that are summed over.

        None where it is no Einstein sum, or one of several linear maps.
        """
        terms, _, out = str(self.options.get("equation")).replace(" ", "").partition("->")
        fed, _, term = terms.partition(",")
        out = out.replace("...", "")
        filters = [at for at, axis in enumerate(term) if axis in out and axis not in fed]
        summed = [at for at, axis in enumerate(term) if axis in fed and axis not in out]
        is_plain = len(filters) + len(summed) == len(set(term)) == len(term)
        ends = out.endswith("".join(term[at] for at in filters))
        is_one = self.kind == "einsum_dense" and self.lora is None and self.quantisation is None
        return (filters, summed) if is_one and is_plain and ends and filters and summed else None

    @property
    def quantisation(self) -> str | None:
        """Return the quantisation of its weights (``"int8"``), or None."""
        policy = _mapping(self.options.get("dtype"))
        mode = _mapping(policy.get("config")).get("mode")
        return None if mode is None else str(mode)


def trace(text: str | bytes) -> list[ConfigLayer]:
    """Layers of a model in the order of its config, those of models within it in their places.

    A config that lists no layers, as a subclassed model's, gives none.

    Raises
    ------
    ValueError
        If `text` is not JSON, or the layers call one another in a circle or too often.
    RecursionError
        If it nests too deeply.
    """
    root = _described(json.loads(text), path=(), slot="")
    if not root.is_model:
        return []
    calls = _Calls()
    given = calls.add(root, None)
    calls.nodes.append(Node(role=Role.OTHER, reads=tuple(given)))
    found = follow(calls.nodes)
    return [
        replace(layer, position=calls.position(found[layer.name]) if layer.name in found else None)
        for layer in _leaves(root)
    ]


def snake_case(class_name: str) -> str:
    """Name of a class as Keras 3 writes it into files: Conv2DTranspose is conv2d_transpose."""
    name = re.sub(r"\W+", "", class_name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _described(entry: Any, *, path: tuple[str, ...], slot: str) -> ConfigLayer:
    """Describe an entry of the config; a wrapper gives what it wraps, under its own name."""
    entry = _mapping(entry)
    options = entry.get("config")
    # Until Keras 2.2.3 a Sequential's config was the list of its layers.
    options = {"layers": options} if isinstance(options, list) else _mapping(options)
    class_name = str(entry.get("class_name"))
    inbound = _list(entry.get("inbound_nodes"))
    if _WRAPPER.fullmatch(class_name):
        inner = _described(options.get("layer"), path=path, slot=f"{slot}/layer")
        return replace(inner, inbound=inbound)
    class_name = _TF_FUNCTIONS.get(str(options.get("function")), class_name)
    return ConfigLayer(
        path=path,
        slot=slot,
        class_name=class_name,
        options=options,
        inbound=inbound,
        is_foreign=_is_foreign(entry),
    )


def _is_foreign(entry: dict[str, Any]) -> bool:
    """Tell classes of a user's own; older files tell them only where they are registered."""
    module, registered = entry.get("module"), entry.get("registered_name")
    names = (str(entry.get("class_name")), str(registered or ""))
    if any(">" in name for name in names):
        return True
    return bool(module) and not is_of_keras(str(module))


def is_of_keras(module: str) -> bool:
    """Tell a module of Keras' own by its name."""
    return _KERAS.match(module) is not None


def _children(model: ConfigLayer) -> Iterator[ConfigLayer]:
    numbers: Counter[str] = Counter()
    for entry in map(_mapping, _list(model.options["layers"])):
        group = snake_case(str(entry.get("class_name")))
        number = f"_{numbers[group]}" if numbers[group] else ""
        numbers[group] += 1
        name = entry.get("name") or _mapping(entry.get("config")).get("name")
        slot = f"{model.slot}/layers/{group}{number}".lstrip("/")
        yield _described(entry, path=(*model.path, str(name)), slot=slot)


def _leaves(model: ConfigLayer) -> Iterator[ConfigLayer]:
    for layer in _children(model):
        if layer.is_model:
            yield from _leaves(layer)
        else:
            yield layer


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
                name=layer.name if role is Role.LAYER else "",
                downsamples=_downsamples(layer),
            )
        )
        if role is Role.NORM:
            self._norms[last] = layer.name
        fused = _fused_activation(layer)
        if fused is not None:
            last = self._put(Node(role=_role(fused), reads=(last,)))
        return [last]

    def position(self, found: places.Position) -> Position:
        """Put the name of the norm in the place of its number."""
        norm = None if found.norm is None else self._norms[found.norm]
        return Position(stage=found.stage, input=found.input, norm=norm)

    def _put(self, node: Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1

    def _chain(self, model: ConfigLayer, inputs: list[int] | None) -> list[int]:
        if inputs is None:
            inputs = [self._put(Node(role=Role.IMAGE))]
        for layer in _children(model):
            inputs = self.add(layer, inputs)
        return inputs

    def _functional(self, model: ConfigLayer, inputs: list[int] | None) -> list[int]:
        nodes: dict[_Node, tuple[ConfigLayer, Any]] = {}
        for layer in _children(model):
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
            yield from _references(_mapping(value.get("config")).get("keras_history"))
            return
        value = list(value.values())
    match value:
        case [str(name), int(index), int(output), *rest]:
            yield (name, index), output
            value = rest
    for item in _list(value):
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
    for item in _list(value):
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
        case "UpSampling2D" if re.match("bicubic|lanczos", str(options.get("interpolation"))):
            return Role.SHIFT
    return next((role for role, words in _ROLES if words.fullmatch(layer.class_name)), Role.OTHER)


def _downsamples(layer: ConfigLayer) -> bool:
    if not _DOWNSAMPLING.fullmatch(layer.class_name):
        return False
    strides = layer.options.get("strides") or layer.options.get("pool_size")
    extents = strides if isinstance(strides, list) else [strides]
    return any(isinstance(extent, int) and extent > 1 for extent in extents)


def _fused_activation(layer: ConfigLayer) -> ConfigLayer | None:
    """Activation within a convolution or dense layer, as a layer of its own; None if linear."""
    if layer.is_foreign or not _LAYER.fullmatch(layer.class_name):
        return None
    spec = layer.options.get("activation")
    entry = {"class_name": "Activation", "config": {"activation": spec}}
    if isinstance(spec, dict) and spec.get("class_name") != "function":
        entry = spec
    activation = _described(entry, path=(), slot="")
    return None if _role(activation) is Role.IDENTITY else activation


def _activation_name(layer: ConfigLayer) -> str:
    spec = layer.options.get("activation")
    return str(spec.get("config") if isinstance(spec, dict) else spec or "linear")


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
