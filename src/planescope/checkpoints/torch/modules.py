"""Pickled modules and modules of TorchScript, as inert records, to tensors and their places."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard

from planescope.checkpoints.torch.tensors import called, packed, rebuild, unreadable
from planescope.files.errors import CheckpointError
from planescope.files.pickles import Call
from planescope.hyperplanes.layer import Kind, Layout, Place, Tensor, kind_of_convolution

if TYPE_CHECKING:
    from pathlib import Path

# Characters of all dotted names in one file; modules that hold one another many times over would
# else have names without end.
_MAX_NAMES = 1 << 24

# Classes whose weight acts as it is stored: torch's own, and those that only pad.
_CONVOLUTION = re.compile(
    r"torch\.nn\.(modules\.conv|quantized\.modules\.conv)\.Conv(Transpose)?([123])d|"
    r"torch\.nn\.utils\.parametrize\.ParametrizedConv(Transpose)?([123])d|"
    r"(mmcv\.cnn\.bricks\.wrappers|detectron2\.layers\.wrappers)\.Conv(Transpose)?([123])d|"
    r"timm\.(models\.)?layers\.conv2d_same\.Conv()(2)dSame|"
    r"efficientnet_(?:pytorch|lite_pytorch)\.utils\.Conv()(2)d(?:Static|Dynamic)SamePadding"
)
_LINEAR = re.compile(
    r"torch\.nn\.modules\.linear\.(Linear|NonDynamicallyQuantizableLinear)|"
    r"torch\.nn\.utils\.parametrize\.ParametrizedLinear|"
    r"mmcv\.cnn\.bricks\.wrappers\.Linear|timm\.(models\.)?layers\.linear\.Linear"
)
_LINEAR_LAST = re.compile(r"transformers\.(pytorch_utils|modeling_utils)\.Conv1D")
_NO_LAYERS = (
    (re.compile(r"Embedding(Bag)?$"), "an embedding: its rows are looked up, they cut nothing"),
    (re.compile(r"(Norm(\dd)?|PReLU)$"), "a norm or an activation, by its class"),
    (re.compile(r"Bilinear$"), "a bilinear map: it multiplies two inputs"),
)
_MANGLED = re.compile(r"^__torch__\.|___torch_mangle_\d+\.")


def is_module(value: object) -> TypeGuard[Call]:
    """Tell pickled `torch.nn.Module`s and modules of a TorchScript archive from other records."""
    if type(value) is not Call or type(value.state) is not dict:
        return False
    return {"_modules", "_parameters"} <= value.state.keys() or called(value).startswith(
        "__torch__."
    )


def entries(value: object) -> Mapping[object, object]:
    """Return the items of a dictionary, or attributes of another object.

    Empty where there are none.
    """
    if type(value) is dict:
        return value
    if type(value) is not Call:
        return {}
    if value.items:
        return value.items
    match value:
        case Call(args=([_, *_] as pairs,)) if called(value) == "collections.OrderedDict":
            # As Python 2 wrote it.
            return {
                pair[0]: pair[1]
                for pair in pairs
                if type(pair) is list and len(pair) == 2 and type(pair[0]) is str
            }
    return value.state if type(value.state) is dict else {}


@dataclass(frozen=True, slots=True)
class Found:
    """A dictionary or module with tensors: where it lies, and what is in it.

    Attributes
    ----------
    others : int
        Entries that are no tensors.
    modules : list
        By name with a dot behind.
    unread : dict of str to str
        Why what stands under a name, and is to be a tensor, cannot be had.
    has_names : bool
        Whether names are more than places in a list.
    """

    path: tuple[str, ...]
    tensors: dict[str, Call]
    others: int = 0
    modules: list[tuple[str, Call]] = field(default_factory=list)
    unread: dict[str, str] = field(default_factory=dict)
    has_names: bool = True

    def take(self, name: str, value: object) -> bool:
        """Keep a value that is a tensor, or holds the packed ones of a layer."""
        if (call := rebuild(value)) is not None:
            self.tensors[name] = call
        elif (pair := _packed_under(name, value)) is not None:
            module = re.sub(r"(^|\.)_packed_params(\._packed_params)?$", "", name)
            prefix = f"{module}." if module else ""
            self.tensors[f"{prefix}weight"] = pair[0]
            if pair[1] is not None:
                self.tensors[f"{prefix}bias"] = pair[1]
        elif (reason := _unread(name, value)) is not None:
            self.unread[name] = reason
        else:
            return False
        return True


def _packed_under(name: str, value: object) -> tuple[Call, Call | None] | None:
    return packed(value) if name.rpartition(".")[2] == "_packed_params" else None


def _unread(name: str, value: object) -> str | None:
    last = name.rpartition(".")[2]
    if last == "_packed_params" and type(value) in (tuple, Call) and not is_module(value):
        return "a quantised layer, packed in a way that is not known; dequantise the model"
    if last == "param" and "_all_weight_values" in name:
        return "a quantised recurrent layer: it acts on its own output"
    return unreadable(value)


class Names:
    """Makes dotted names, as many as `_MAX_NAMES` allows for a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.left = _MAX_NAMES

    def extend(self, prefix: str, name: str) -> str:
        """Put a name behind a prefix."""
        self.left -= len(prefix) + len(name) + 1
        if self.left < 0:
            raise CheckpointError(
                f"{self.path}: the names of all modules together are longer than {_MAX_NAMES} "
                "characters; save model.state_dict() instead"
            )
        return prefix + name


def walk(root: Call, path: tuple[str, ...], names: Names) -> Found:
    """Return all tensors of a module and of those in it.

    One that is shared has all of its names.
    """
    found = Found(path, {}, modules=[])
    inside: set[int] = set()  # the modules above: one within itself would never end
    stack: list[tuple[str | None, Call]] = [("", root)]
    while stack:
        prefix, module = stack.pop()
        if prefix is None:
            inside.remove(id(module))
            continue
        inside.add(id(module))
        stack.append((None, module))
        found.modules.append((prefix, module))
        own, children = _members(module)
        for key, value in own.items():
            if type(key) is str:
                found.take(names.extend(prefix, key), value)
        below = [
            (names.extend(prefix, f"{key}."), child)
            for key, child in children.items()
            if type(key) is str and is_module(child) and id(child) not in inside
        ]
        stack.extend(reversed(below))
    return found


def _members(module: Call) -> tuple[Mapping[Any, Any], Mapping[Any, Any]]:
    """Return the parameters and buffers of a module, and the modules in it."""
    state: dict[object, object] = module.state  # type: ignore[assignment]
    if "_modules" not in state:  # TorchScript keeps all in one
        return state, state
    own = {**entries(state.get("_parameters")), **entries(state.get("_buffers"))}
    if "_packed_params" in state:
        own["_packed_params"] = state["_packed_params"]
    return own, entries(state["_modules"])


def class_of(module: Call, /) -> str:
    """Return the full name of a module's class, without what TorchScript adds."""
    return _MANGLED.sub("", called(module))


def place(
    module: Call, weight: Tensor | None, constants: Mapping[str, float], /
) -> Place | str | None:
    """Tell a layer's place by the class of its pickled module.

    Returns
    -------
    Place, or the reason why its weight makes no layer, or None where it has none
    """
    if weight is None or len(weight.shape) < 2:
        return None
    name = class_of(module)
    if _LINEAR_LAST.fullmatch(name):
        return Place(kind=Kind.LINEAR, layout=Layout.LAST)
    if len(weight.shape) == 2 and _LINEAR.fullmatch(name):
        return Place(kind=Kind.LINEAR)
    if _CONVOLUTION.fullmatch(name):
        groups = dict(_attributes(module), **constants).get("groups")
        is_transposed = "ConvTranspose" in name
        return Place(
            kind=Kind.TRANSPOSED if is_transposed else kind_of_convolution(weight.shape[2:]),
            groups=groups if type(groups) is int and groups > 0 else None,
        )
    for pattern, reason in _NO_LAYERS:
        if pattern.search(name):
            return reason
    if re.search(r"(^|\.)quantized\.", name) or name.startswith("torch.nn.modules."):
        return None
    if re.search(r"(^|\.)qat\.", name):
        return "trained for few bits: the weight that acts is rounded first; convert the model"
    return of_own_class(module)


def of_own_class(module: Call, /) -> str:
    """Return the reason why what a class holds that is not known is no layer."""
    return (
        f"of the class {class_of(module)[:100] or 'of no name'}, which may use its weight in a way "
        "of its own; give the live module or an ONNX export"
    )


def quantised(module: Call, /) -> str | None:
    """Say why the weight of a quantised layer is not there; None for other classes."""
    name = class_of(module)
    if not re.search(r"(^|\.)(quantized|qat)\.", name):
        return None
    if re.search(r"(LSTM|GRU|RNN)(Cell)?$", name):
        return "a quantised recurrent layer: it acts on its own output"
    if re.search(r"(Conv(Transpose)?|Linear|Embedding)\w*$", name):
        return "a quantised layer, packed in a way that is not known; dequantise the model"
    return None


def epsilon(module: Call, constants: Mapping[str, float], /) -> float | None:
    """Return the epsilon of a batch norm that the module or the code of its class holds."""
    value = constants.get("eps", _attributes(module).get("eps"))
    return value if type(value) is float and 0.0 <= value < 1e3 else None


def _attributes(module: Call) -> dict[str, Any]:
    state = module.state if type(module.state) is dict else {}
    return {key: value for key, value in state.items() if type(key) is str}
