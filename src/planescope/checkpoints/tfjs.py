"""TensorFlow.js models: a `model.json`, which describes the network, and shards of its weights.

A layers model holds Keras' config, a graph model the operations of a TensorFlow graph. Weights may
be quantised. A manifest alone, as face-api.js keeps it, lists named arrays.
https://github.com/tensorflow/tfjs/blob/master/tfjs-core/src/io/types.ts
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from planescope.checkpoints.arrays.raw import DIGEST_BYTES, ITEM_SIZES, MAX_DIMENSIONS, decode
from planescope.checkpoints.keras.config import trace
from planescope.checkpoints.keras.entries import ConfigLayer
from planescope.checkpoints.keras.left_out import reason_for, reason_for_class
from planescope.checkpoints.keras.model import described_layers, is_known
from planescope.checkpoints.keras.variables import Variables
from planescope.checkpoints.safetensors import parse_object
from planescope.checkpoints.sharded import stays_inside
from planescope.checkpoints.tensorflow.graph import describe
from planescope.checkpoints.tensorflow.operations import Function, Operation, values_of
from planescope.files.errors import CheckpointError
from planescope.files.reading import open_binary, read_exactly
from planescope.hyperplanes.layer import Described, Skipped, StateDict, Tensor

if TYPE_CHECKING:
    from planescope.checkpoints.probe import Probe

NAME = "tfjs"

# The largest published ones have a few MB; parsed, JSON takes twenty times its bytes.
MAX_BYTES = 1 << 24

_DTYPES = {"float32": "float32", "float16": "float16", "int32": "int32", "bool": "bool"}
_QUANTISED = {"uint8": "uint8", "uint16": "uint16", "float16": "float16"}
# Names of DataType that attributes of operations use.
_TYPES = {
    "DT_FLOAT": 1, "DT_DOUBLE": 2, "DT_INT32": 3, "DT_UINT8": 4, "DT_STRING": 7, "DT_INT64": 9,
    "DT_BOOL": 10, "DT_BFLOAT16": 14, "DT_HALF": 19,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Shard:
    path: Path
    size: int


class _Weights:
    """The weights that a manifest lists, by name."""

    def __init__(self, path: Path, manifest: object) -> None:
        self.path = path
        self.tensors: dict[str, Tensor] = {}
        self.files: list[Path] = [path]
        for group in _list(manifest):
            self._add(_mapping(group))

    def _add(self, group: Mapping[str, Any]) -> None:
        shards = tuple(self._shard(name) for name in _list(group.get("paths")))
        total = sum(shard.size for shard in shards)
        self.files += [shard.path for shard in shards]
        begin = 0
        for spec in map(_mapping, _list(group.get("weights"))):
            name, shape = spec.get("name"), _shape_of(spec.get("shape"))
            quantised = _mapping(spec.get("quantization"))
            dtype = (
                _QUANTISED.get(str(quantised.get("dtype")))
                if quantised
                else _DTYPES.get(str(spec.get("dtype")))
            )
            if not isinstance(name, str) or dtype is None:
                raise CheckpointError(
                    f"{self.path}: weight {name!r:.80} is of type {spec.get('dtype')!r:.40}, whose "
                    "length is unknown here; convert the model again"
                )
            if shape is None:
                raise CheckpointError(f"{self.path}: weight {name!r:.80} has no possible shape")
            end = begin + math.prod(shape) * ITEM_SIZES[dtype]
            if end > total:
                raise CheckpointError(
                    f"{self.path}: weight {name!r:.80} ends at byte {end} of shards that have "
                    f"{total}; is their download complete?"
                )
            self.tensors[name] = _tensor(shards, begin, end, dtype, shape, quantised)
            begin = end

    def _shard(self, name: object) -> _Shard:
        if not isinstance(name, str) or not _is_inside(name):
            raise CheckpointError(
                f"{self.path}: names the shard {name!r:.80}, which is no file of its own folder; "
                "do not trust it, get it again from its author"
            )
        path = self.path.parent / name
        if not os.path.exists(path):  # noqa: PTH110 - of a name that is too long pathlib raises
            raise CheckpointError(
                f"{self.path}: its shard {name[:200]} is missing; put it beside model.json"
            )
        with open_binary(path) as file:
            return _Shard(path, os.fstat(file.fileno()).st_size)


# The names that face-api.js gives to what other files for TensorFlow call kernels.
_KERNELS = {
    "filters": "kernel",
    "depthwise_filter": "depthwise_kernel",
    "pointwise_filter": "pointwise_kernel",
}


def recognises(probe: Probe) -> bool:
    """Tell a JSON object with a manifest of weights, or a manifest by itself."""
    head = probe.head.lstrip()
    if not head.startswith((b"{", b"[")) or probe.size > MAX_BYTES:
        return False
    marks = (b'"weightsManifest"',) if head[:1] == b"{" else (b'"weights"', b'"paths"')
    whole = read_exactly(probe.path, 0, probe.size)
    return all(mark in whole for mark in marks)


def read(path: Path) -> StateDict | Described:
    """Describe the layers of a model; the arrays of a manifest that comes without one.

    Raises
    ------
    CheckpointError
        If the model or a shard is damaged or missing, or a shard lies outside the folder.
    """
    model = _parsed(path)
    weights = _Weights(path, model.get("weightsManifest"))
    topology = _mapping(model.get("modelTopology"))
    if not topology:
        return _arrays(weights.tensors)
    if "node" in topology:
        return _graph(path, topology, weights.tensors)
    config = topology.get("model_config", topology)
    try:
        described = trace(json.dumps(config))
    except (ValueError, RecursionError) as exc:
        raise CheckpointError(
            f"{path}: the model's config makes no sense ({exc}); is the download complete?"
        ) from exc
    return _layers(path, described, weights.tensors)


def _arrays(tensors: Mapping[str, Tensor]) -> StateDict:
    """Return named arrays, in the order of the manifest."""
    known: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        place, slash, last = name.rpartition("/")
        known[place + slash + _KERNELS.get(last, last)] = tensor
    note = "a manifest of weights without its network: layers are judged by names and shapes"
    return StateDict(tensors=known, note=note)


def files(path: Path) -> list[Path]:
    """List the description and the shards: all files that make the model."""
    return list(dict.fromkeys(_Weights(path, _parsed(path).get("weightsManifest")).files))


def shard_names(path: Path) -> list[str]:
    """Name the shards that a description lists, relative to its folder."""
    groups = map(_mapping, _list(_parsed(path).get("weightsManifest")))
    return [name for group in groups for name in _list(group.get("paths")) if _is_inside(name)]


def _is_inside(name: object) -> bool:
    return isinstance(name, str) and stays_inside(name)


def _parsed(path: Path) -> dict[str, Any]:
    with open_binary(path) as file:
        size = os.fstat(file.fileno()).st_size
    if size > MAX_BYTES:
        raise CheckpointError(f"{path}: {size} bytes are too long for a description of a model")
    text = read_exactly(path, 0, size)
    if text.lstrip().startswith(b"["):
        text = b'{"weightsManifest":' + text + b"}"
    return parse_object(text, f"{path}: the model")


def _number(value: object) -> float | None:
    """Return a number of JSON as a float; None for anything else."""
    try:
        return float(value) if isinstance(value, int | float) else None
    except OverflowError:
        return None


def _shape_of(value: object) -> tuple[int, ...] | None:
    """Return a list of JSON as a shape; None for anything else."""
    if not isinstance(value, list) or len(value) > MAX_DIMENSIONS:
        return None
    return tuple(value) if all(type(n) is int and n >= 0 for n in value) else None


def _tensor(
    shards: tuple[_Shard, ...],
    begin: int,
    end: int,
    dtype: str,
    shape: tuple[int, ...],
    quantised: Mapping[str, Any],
) -> Tensor:
    scale, least = _number(quantised.get("scale", 1)), _number(quantised.get("min", 0))
    is_integer = dtype in ("uint8", "uint16")
    known = scale is not None and least is not None

    def read() -> np.ndarray:
        values = decode(_bytes_of(shards, begin, end), dtype).reshape(shape)
        if not is_integer or scale is None or least is None:
            return values
        # As JavaScript computes it: in float64, rounded once.
        with np.errstate(all="ignore"):
            numbers: np.ndarray = (values.astype(np.float64) * scale + least).astype(np.float32)
        return numbers

    def digest() -> bytes:
        return _bytes_of(shards, begin, min(end, begin + DIGEST_BYTES)).tobytes()

    is_number = is_integer and known and quantised.get("original_dtype") != "int32"
    return Tensor(shape, "float32" if is_number else dtype, read, digest=digest)


def _bytes_of(shards: tuple[_Shard, ...], begin: int, end: int) -> np.ndarray:
    """Read a stretch of what the shards, one behind the other, hold."""
    raw = np.empty(end - begin, dtype=np.uint8)
    at = 0
    for shard in shards:
        first, last = max(begin - at, 0), min(end - at, shard.size)
        if first < last:
            piece = read_exactly(shard.path, first, last - first)
            into = at + first - begin
            raw[into : into + len(piece)] = np.frombuffer(piece, dtype=np.uint8)
        at += shard.size
    return raw


# Layers models.


class _Arrays:
    """Weights as the readers of Keras' variables ask for them."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        self.path = path
        self._tensors = tensors

    def tensor(self, key: str) -> Tensor:
        return self._tensors[key]


def _layers(path: Path, described: list[ConfigLayer], tensors: Mapping[str, Tensor]) -> Described:
    by_module: dict[str, dict[str, str]] = {}
    for name in tensors:
        module, _, last = name.removesuffix(":0").rpartition("/")
        by_module.setdefault(module, {})[last] = name
    owned: dict[str, Variables] = {}
    taken: set[str] = set()
    for layer in described:
        place = _module_of(layer, by_module)
        if place is not None:
            owned[layer.name] = Variables(
                group=tuple(place.split("/")), name=layer.name, keys=by_module[place]
            )
            taken.add(place)
    layers = described_layers(_Arrays(path, tensors), described, owned)
    skipped = _rest(described, owned, tensors, by_module, taken)
    return Described(layers=tuple(layers), skipped=tuple(skipped))


def _module_of(layer: ConfigLayer, by_module: Mapping[str, Any]) -> str | None:
    """Find the variables of a layer: under its path, or its own name where models lie around it."""
    for start in range(len(layer.path)):
        name = "/".join(layer.path[start:])
        if name in by_module:
            return name
    # Before a name may stand the whole model's.
    ends = [name for name in by_module if name.endswith(f"/{layer.path[-1]}")]
    return ends[0] if len(ends) == 1 else None


def _rest(
    described: list[ConfigLayer],
    owned: Mapping[str, Variables],
    tensors: Mapping[str, Tensor],
    by_module: Mapping[str, Mapping[str, str]],
    taken: set[str],
) -> Iterator[Skipped]:
    """Tell of what has weights and is no layer here."""
    for layer in described:
        if layer.name not in owned:
            if is_known(layer) and not layer.is_norm:
                yield Skipped(name=layer.name, reason="its weights are not in the manifest")
            continue
        if is_known(layer):
            continue
        if any(len(tensors[key].shape) > 1 for key in owned[layer.name].keys.values()):
            told = (
                reason_for_class(layer.class_name) if layer.is_foreign else reason_for(layer.kind)
            )
            if told is not None:
                yield Skipped(name=layer.name, reason=told)
    for module, keys in by_module.items():
        shapes = [tensors[key].shape for key in keys.values()]
        if module not in taken and any(len(shape) > 1 for shape in shapes):
            reason = "weights of no layer that the model's config lists"
            yield Skipped(name=module or "/".join(keys), reason=reason)


# Graph models.


def _graph(path: Path, topology: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Described:
    operations = [_operation(node) for node in _list(topology.get("node"))]
    library = _mapping(topology.get("library"))
    functions = [_function(each) for each in _list(library.get("function"))]

    def stored(operation: Operation) -> Tensor | None:
        return tensors.get(operation.name) if operation.op in ("Const", "VarHandleOp") else None

    try:
        return describe(path, operations, functions, stored)
    except RecursionError as exc:
        raise CheckpointError(f"{path}: its operations lie too deep; refused") from exc


def _operation(node: object) -> Operation:
    told = _mapping(node)
    attributes = {
        str(name): _attribute(_mapping(value)) for name, value in _mapping(told.get("attr")).items()
    }
    inputs = values_of(str(name) for name in _list(told.get("input")))
    return Operation(str(told.get("op", "")), str(told.get("name", "")), inputs, attributes)


def _function(told: object) -> Function:
    function = _mapping(told)
    signature = _mapping(function.get("signature"))

    def names(of: str) -> tuple[str, ...]:
        return tuple(str(_mapping(each).get("name")) for each in _list(signature.get(of)))

    returned = _mapping(function.get("ret"))
    outputs = {name: str(returned[name]) for name in names("outputArg") if name in returned}
    operations = tuple(_operation(node) for node in _list(function.get("nodeDef")))
    return Function(str(signature.get("name")), names("inputArg"), outputs, operations)


def _attribute(value: Mapping[str, Any]) -> Any:
    if "list" in value:
        return [
            _scalar(kind, each)
            for kind, values in _mapping(value["list"]).items()
            for each in _list(values)
        ]
    for kind, each in value.items():
        return _scalar(kind, each)
    return None


def _scalar(kind: str, value: Any) -> Any:
    try:
        match kind:
            case "s":
                return base64.b64decode(str(value), validate=True)
            case "i":
                return int(value)
            case "f":
                return float(value)
            case "b":
                return bool(value)
            case "type":
                return _TYPES.get(str(value), 0)
            case "shape":
                return [int(_mapping(each).get("size", 0)) for each in _list(value.get("dim"))]
            case "func":
                return str(_mapping(value).get("name")).encode()
    except (ValueError, TypeError, OverflowError, AttributeError, binascii.Error):
        return None
    return None


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
