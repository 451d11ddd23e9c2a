"""Entries of a Keras config: layers, wrappers and models, each with its class and options."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from planescope.hyperplanes.layer import Input

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
    "math.negative": "Negative",
    "math.multiply": "Multiply",
    "math.truediv": "TrueDivide",
    "math.divide": "TrueDivide",
    "math.maximum": "Maximum",
    "math.minimum": "Minimum",
}
_KERAS = re.compile(r"((tf_)?keras|tensorflow|builtins)(\.|$)")
NORM = re.compile(r"(Sync)?BatchNormalization(V[12])?")
_WRAPPER = re.compile(r"TimeDistributed|SpectralNormalization")


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Position:
    """The place of a layer, as in `Layer`, with the norm by its name, and notes on it."""

    stage: int | None
    input: Input
    norm: str | None
    notes: tuple[str, ...] = ()


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
        return not self.is_foreign and NORM.fullmatch(self.class_name) is not None

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
        policy = as_mapping(self.options.get("dtype"))
        mode = as_mapping(policy.get("config")).get("mode")
        return None if mode is None else str(mode)


def snake_case(class_name: str) -> str:
    """Name of a class as Keras 3 writes it into files: Conv2DTranspose is conv2d_transpose."""
    name = re.sub(r"\W+", "", class_name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def describe_entry(entry: Any, *, path: tuple[str, ...], slot: str) -> ConfigLayer:
    """Describe an entry of the config; a wrapper gives what it wraps, under its own name."""
    entry = as_mapping(entry)
    options = entry.get("config")
    # Until Keras 2.2.3 a Sequential's config was the list of its layers.
    options = {"layers": options} if isinstance(options, list) else as_mapping(options)
    class_name = str(entry.get("class_name"))
    inbound = as_list(entry.get("inbound_nodes"))
    if _WRAPPER.fullmatch(class_name):
        inner = describe_entry(options.get("layer"), path=path, slot=f"{slot}/layer")
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


def children_of(model: ConfigLayer) -> Iterator[ConfigLayer]:
    """Yield the layers that a model lists."""
    numbers: Counter[str] = Counter()
    for entry in map(as_mapping, as_list(model.options["layers"])):
        group = snake_case(str(entry.get("class_name")))
        number = f"_{numbers[group]}" if numbers[group] else ""
        numbers[group] += 1
        name = entry.get("name") or as_mapping(entry.get("config")).get("name")
        slot = f"{model.slot}/layers/{group}{number}".lstrip("/")
        yield describe_entry(entry, path=(*model.path, str(name)), slot=slot)


def leaves_of(model: ConfigLayer) -> Iterator[ConfigLayer]:
    """Yield the layers of a model and of those within it."""
    for layer in children_of(model):
        if layer.is_model:
            yield from leaves_of(layer)
        else:
            yield layer


def as_mapping(value: Any) -> dict[str, Any]:
    """Return an object of JSON; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """Return a list of JSON; an empty one for anything else."""
    return value if isinstance(value, list) else []
