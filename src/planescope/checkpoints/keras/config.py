"""What a Keras model's config tells: which layers there are, and where each stands in the network.

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

# A model called twice within a model called twice, and so on, doubles each time.
MAX_CALLS = 20_000

# Keras 2 has one class for all operations on tensors (x + y, tf.nn.relu); Keras 3's names for them.
_TF_FUNCTIONS = {
    "nn.relu": "Relu",
    "nn.relu6": "Relu6",
    "concat": "Concatenate",
    "__operators__.add": "Add",
    "math.add": "Add",
    "math.subtract": "Subtract",
    "math.multiply": "Multiply",
    "math.truediv": "TrueDivide",
}

_NORM = re.compile(r"(Sync)?BatchNormalization(V[12])?")
_WRAPPER = re.compile(r"TimeDistributed|SpectralNormalization")
_ACTIVATED = re.compile(r"(Depthwise|Separable)?Conv[123]D(Transpose)?|Dense")
_DOWNSAMPLING = re.compile(r"(Max|Average)Pooling[123]D|(Depthwise|Separable)?Conv[123]D")
_INERT = re.compile(
    r"(Spatial|Gaussian|Alpha)?Dropout([123]D)?|GaussianNoise|ActivityRegularization|Identity"
)
# What lies in the positive orthant stays there, and an image stays an image.
_PASSING = re.compile(
    r"(Global)?(Max|Average)Pooling[123]D|(ZeroPadding|Cropping|UpSampling)[123]D"
    r"|Flatten|Reshape|Permute|RepeatVector|Masking"
)
_JOINING = re.compile(r"Concatenate|Add|Average|Maximum")
_PREPARING = re.compile(
    r"Rescaling|Normalization|Resizing|CenterCrop|Random\w+|Add|Subtract|Multiply|(True)?Divide"
)

_Node = tuple[str, int]  # a layer of a functional model, and which of its calls


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Position:
    """Where a layer stands: as in `Layer`, with the norm by its name."""

    stage: int
    input: Input
    norm: str | None
    relu_follows: bool


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
    position : Position or None
        None where it is never called.
    """

    path: tuple[str, ...]
    slot: str
    class_name: str
    options: dict[str, Any]
    inbound: list[Any]
    position: Position | None = None

    @property
    def name(self) -> str:
        """The path with dots."""
        return ".".join(self.path)

    @property
    def is_model(self) -> bool:
        """Whether it holds layers itself."""
        return "layers" in self.options

    @property
    def is_norm(self) -> bool:
        """Whether it is a batch norm."""
        return _NORM.fullmatch(self.class_name) is not None


@dataclass(frozen=True, eq=False, slots=True)
class _Call:
    layer: ConfigLayer
    inputs: list[int]  # the calls whose outputs it takes


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
    calls.add(root, None)
    positions = _positions(calls.made)
    return [replace(layer, position=positions.get(layer.name)) for layer in _leaves(root)]


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
        path=path, slot=slot, class_name=class_name, options=options, inbound=inbound
    )


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
    """The network as a list of calls, each behind those whose outputs it takes."""

    def __init__(self) -> None:
        self.made: list[_Call] = []
        self._count = 0

    def add(self, layer: ConfigLayer, inputs: list[int] | None) -> list[int]:
        """Call a layer on the outputs of earlier calls (None: it starts the network)."""
        self._count += 1
        if self._count > MAX_CALLS:
            raise ValueError(f"its layers are called more than {MAX_CALLS} times")
        if layer.is_model:
            functional = "input_layers" in layer.options
            return self._functional(layer, inputs) if functional else self._chain(layer, inputs)
        if inputs is not None and (_is_inert(layer) or layer.class_name == "InputLayer"):
            return inputs
        self.made.append(_Call(layer, inputs or []))
        return [len(self.made) - 1]

    def _chain(self, model: ConfigLayer, inputs: list[int] | None) -> list[int]:
        if inputs is None:
            inputs = self.add(_described({"class_name": "InputLayer"}, path=(), slot=""), None)
        for layer in _children(model):
            inputs = self.add(layer, inputs)
        return inputs

    def _functional(self, model: ConfigLayer, inputs: list[int] | None) -> list[int]:
        nodes: dict[_Node, tuple[ConfigLayer, list[tuple[_Node, int]]]] = {}
        for layer in _children(model):
            for index, call in enumerate(layer.inbound or [[]]):
                # In Keras 2 a model's first call is the one that it was built with.
                built = int(layer.is_model and isinstance(call, list))
                nodes[layer.path[-1], index + built] = layer, list(_references(call))

        entrances = [node for node, _ in _references(model.options["input_layers"])]
        outputs = {node: [fed] for node, fed in zip(entrances, inputs or [], strict=False)}
        sources = {key: [node for node, _ in references] for key, (_, references) in nodes.items()}
        try:
            order = list(TopologicalSorter(sources).static_order())
        except CycleError as exc:
            raise ValueError("its layers call one another in a circle") from exc
        for key in order:
            if key in nodes and key not in outputs:
                layer, references = nodes[key]
                outputs[key] = self.add(layer, _taken(outputs, references) or None)
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
    """Calls behind the references; those that the config does not hold are left out."""
    return [
        call for node, output in references for call in outputs.get(node, [])[output : output + 1]
    ]


def _positions(calls: Sequence[_Call]) -> dict[str, Position]:
    """Where each layer stands; of a shared one, what is so in all of its calls."""
    behind: list[list[_Call]] = [[] for _ in calls]
    for call in calls:
        for source in call.inputs:
            behind[source].append(call)
    after = {id(call): consumers for call, consumers in zip(calls, behind, strict=True)}

    values: list[Input] = []
    stages: list[int] = []
    positions: dict[str, Position] = {}
    for call in calls:
        fed = [values[source] for source in call.inputs]
        stage = max((stages[source] for source in call.inputs), default=0)
        # The image, whatever is done to it, is in stage 0.
        stage += _common(fed) not in (Input.IMAGE, Input.UNKNOWN) and _downsamples(call.layer)
        stages.append(stage)
        values.append(_output(call.layer, fed))
        norm, relu = _followers(call, after)
        here = Position(stage=stage, input=_common(fed), norm=norm, relu_follows=relu)
        positions[call.layer.name] = _merged(positions.get(call.layer.name, here), here)
    return positions


def _followers(call: _Call, after: dict[int, list[_Call]]) -> tuple[str | None, bool]:
    """Name of the norm that takes a layer's output at once, and whether a ReLU does behind both."""
    fused = _fused_activation(call.layer)
    if fused is not None:
        return None, _is_relu(fused)  # a norm then stands behind the activation
    norm = None
    match after[id(call)]:
        case [only] if only.layer.is_norm:
            norm, call = only.layer.name, only
    return norm, any(_is_relu(follower.layer) for follower in after[id(call)])


def _merged(one: Position, other: Position) -> Position:
    return replace(
        one,
        input=_common([one.input, other.input]),
        norm=one.norm if one.norm == other.norm else None,
        relu_follows=one.relu_follows or other.relu_follows,
    )


def _output(layer: ConfigLayer, fed: Sequence[Input]) -> Input:
    """What a layer's output is to the next one, from what it is fed."""
    fused = _fused_activation(layer)
    if _is_relu(layer) or (fused is not None and _is_relu(fused)):
        return Input.RELU
    if layer.class_name == "InputLayer":
        return Input.IMAGE
    common = _common(fed)
    # x + constant is an Add of one tensor: it keeps an image, but may leave the orthant.
    joins = _JOINING.fullmatch(layer.class_name) and len(fed) > 1
    if joins or _PASSING.fullmatch(layer.class_name):
        return common
    prepares = common is Input.IMAGE and _PREPARING.fullmatch(layer.class_name)
    return Input.IMAGE if prepares else Input.OTHER


def _common(values: Sequence[Input]) -> Input:
    distinct = set(values)
    if not distinct:
        return Input.UNKNOWN
    return distinct.pop() if len(distinct) == 1 else Input.OTHER


def _downsamples(layer: ConfigLayer) -> bool:
    if not _DOWNSAMPLING.fullmatch(layer.class_name):
        return False
    strides = layer.options.get("strides") or layer.options.get("pool_size")
    extents = strides if isinstance(strides, list) else [strides]
    return any(isinstance(extent, int) and extent > 1 for extent in extents)


def _fused_activation(layer: ConfigLayer) -> ConfigLayer | None:
    """Activation within a convolution or dense layer, as a layer of its own; None if linear."""
    if not _ACTIVATED.fullmatch(layer.class_name):
        return None
    spec = layer.options.get("activation")
    entry = {"class_name": "Activation", "config": {"activation": spec}}
    if isinstance(spec, dict) and spec.get("class_name") != "function":
        entry = spec
    activation = _described(entry, path=(), slot="")
    return None if _is_inert(activation) else activation


def _activation_name(layer: ConfigLayer) -> str:
    spec = layer.options.get("activation")
    return str(spec.get("config") if isinstance(spec, dict) else spec or "linear")


def _is_inert(layer: ConfigLayer) -> bool:
    if layer.class_name == "Activation":
        return _activation_name(layer) == "linear"
    return _INERT.fullmatch(layer.class_name) is not None


def _is_relu(layer: ConfigLayer) -> bool:
    match layer.class_name:
        case "Activation":
            return _activation_name(layer) in ("relu", "relu6")
        case "ReLU":
            return not (layer.options.get("negative_slope") or layer.options.get("threshold"))
        case name:
            return name in ("Relu", "Relu6")


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
