"""What torch pickles, as inert records, to a state dict.

Both layouts of a torch file hold a pickle of the saved object and, beside it, the storages of its
tensors. This module knows the objects; the layouts say where a storage lies.
"""

from __future__ import annotations

import math
import re
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard

from planescope.checkpoints.arrays.raw import ITEM_SIZES, MAX_DIMENSIONS, read_array
from planescope.files.errors import CheckpointError
from planescope.files.pickles import Call, Global, Persistent
from planescope.hyperplanes.layer import Kind, Place, StateDict, Tensor, kind_of_convolution

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    import numpy as np

# Element types by the names of torch's storage classes. Quantised storages hold plain integers.
_STORAGES = {
    "BoolStorage": "bool",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "QInt8Storage": "int8",
    "QUInt8Storage": "uint8",
    "QInt32Storage": "int32",
    "UntypedStorage": "uint8",
}

_REBUILDS = frozenset(
    f"torch._utils._rebuild_{what}" for what in ("tensor", "tensor_v2", "tensor_v3", "qtensor")
)
# Their first argument is a tensor.
_WRAPPERS = frozenset(
    {
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "torch.nn.parameter.Parameter",
        "torch.nn.parameter.Buffer",
        "torch.autograd.variable.Variable",
    }
)
# Their first and third arguments are a function that makes a tensor and its arguments.
_SUBCLASSES = frozenset(
    {
        "torch._tensor._rebuild_from_type",
        "torch._tensor._rebuild_from_type_v2",
        "torch.tensor._rebuild_from_type",
    }
)
_MAX_WRAPPERS = 8

# A view may repeat elements of its storage (a stride of 0), but not turn one into a terabyte.
_MAX_REPEATED = 1 << 24

# Where people keep a state dict or a module, the likeliest first.
_ENTRIES = (
    *("model_state_dict", "state_dict", "model_state", "model", "net", "network", "module"),
    *("params", "params_ema", "ema", "model_ema", "ema_state_dict", "state_dict_ema", "ema_model"),
    *("student", "teacher", "weights"),
)
_OPTIMIZER = re.compile(r"optimi[sz]er|(?:^|_)optims?(?:_|$)", re.IGNORECASE)
_MAX_DEPTH = 4

# Characters of all dotted names in one file; modules that hold one another many times over would
# else have names without end.
_MAX_NAMES = 1 << 24

_CONVOLUTION = re.compile(r"Conv(Transpose)?([123])d$")
_CONVOLUTION_ATTRIBUTES = {"transposed", "kernel_size", "groups", "stride", "output_padding"}
_COMPILED = re.compile(r"(?:^|(?<=\.))_orig_mod\.")


@dataclass(frozen=True, slots=True)
class StorageId:
    """What a pickle tells of a storage.

    Attributes
    ----------
    count : int
        Elements of the storage; of its root where it is a view.
    view : tuple of int, optional
        First element and number of elements, where the storage is part of another (old files).
    """

    key: str
    dtype: str
    count: int
    view: tuple[int, int] | None

    @property
    def nbytes(self) -> int:
        """Bytes that the storage must have."""
        return self.count * ITEM_SIZES[self.dtype]


@dataclass(frozen=True, slots=True)
class Storage:
    """Bytes of the file: `size` of them from `begin()` on."""

    begin: Callable[[], int]
    size: int


@dataclass(frozen=True, slots=True)
class Storages:
    """The storages of one file; `find` raises `CheckpointError` for one that is not there.

    `named` gives what stands for a storage in a pickle the form of a persistent id.
    """

    path: Path
    find: Callable[[StorageId], Storage]
    big_endian: bool = False
    named: Callable[[object], object] = lambda stored: stored


def state_dict(value: object, storages: Storages) -> StateDict:
    """Find the state dict or module in what a torch file holds.

    A dictionary or module at the top comes first, then what lies under a customary name
    (``model_state_dict``), then the dictionary with the most tensors; never an optimizer's state.
    The prefixes of `torch.nn.DataParallel` and `torch.compile` are taken off the names.

    Raises
    ------
    CheckpointError
        If there is no state dict, or a tensor of it does not fit its storage.
    """
    found = min(_find(value, storages.path), key=_preference, default=None)
    if found is None:
        raise CheckpointError(
            f"{storages.path}: holds {_outline(value)}, and no tensors by name; "
            "save model.state_dict() instead"
        )
    tensors = {name: _tensor(raw, name, storages) for name, raw in found.tensors.items()}
    places = {at: _place(module, tensors.get(f"{at}weight")) for at, module in found.modules}
    clean = _without_prefixes(tensors)
    return StateDict(
        tensors={clean(name): tensor for name, tensor in tensors.items()},
        places={clean(at)[:-1]: place for at, place in places.items() if place},
        entry=".".join(found.path),
    )


def holds_tensors(value: object, path: Path) -> bool:
    """Tell whether there is a state dict or module of torch's."""
    return bool(_find(value, path))


def storage_id(persistent: Persistent, where: str) -> StorageId:
    """Identity of a storage from its persistent id.

    Raises
    ------
    CheckpointError
        If the id does not have the form that torch writes, or its type is unknown.
    """
    match persistent.id:
        case ("storage", Global(name=kind), str(key), _, int(count), *rest) if 0 <= count < 1 << 63:
            pass
        case _:
            raise CheckpointError(f"{where}: a storage is not described as torch describes it")
    if kind not in _STORAGES:
        raise CheckpointError(
            f"{where}: a storage has the unknown type {kind[:100]!r}; convert the model to float32"
        )
    match rest:
        case [] | [None]:
            view = None
        case [(_, int(first), int(extent))] if 0 <= first <= first + extent <= count:
            view = (first, extent)
        case _:
            raise CheckpointError(f"{where}: the view of storage {key[:100]!r} is not inside it")
    return StorageId(key, _STORAGES[kind], count, view)


@dataclass(frozen=True, slots=True)
class _Found:
    """A dictionary or module with tensors: where it lies, and what is in it."""

    path: tuple[str, ...]
    tensors: dict[str, Call]
    others: int = 0  # entries that are no tensors
    modules: list[tuple[str, Call]] = field(default_factory=list)  # by name with a dot behind


def _preference(found: _Found) -> tuple[int, ...]:
    """Sort key: the least is taken."""
    if not found.path and (found.modules or len(found.tensors) > found.others):
        return (0,)
    if found.path and found.path[-1] in _ENTRIES:
        return (1, len(found.path), _ENTRIES.index(found.path[-1]))
    return (2, -len(found.tensors))


def _find(value: object, path: Path) -> list[_Found]:
    """All dictionaries and modules with tensors, but for those of optimizers."""
    found = []
    names = _Names(path)
    seen: set[int] = set()
    queue: deque[tuple[tuple[str, ...], object]] = deque([((), value)])
    while queue:
        where, value = queue.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if _is_module(value):
            found.append(_walk(value, where, names))
            continue
        entries = {key: entry for key, entry in _entries(value).items() if type(key) is str}
        if "param_groups" in entries:  # an optimizer's state
            continue
        tensors = {key: call for key, entry in entries.items() if (call := _rebuild(entry))}
        found.append(_Found(where, tensors, len(entries) - len(tensors)))
        if len(where) < _MAX_DEPTH:
            queue.extend(
                ((*where, key), entry)
                for key, entry in entries.items()
                if type(entry) in (dict, Call) and key not in tensors and not _OPTIMIZER.search(key)
            )
    return [each for each in found if each.tensors]


def _entries(value: object) -> Mapping[object, object]:
    """Items of a dictionary, or attributes of another object; empty where there are none."""
    if type(value) is dict:
        return value
    if type(value) is not Call:
        return {}
    if value.items:
        return value.items
    match value:
        case Call(args=([_, *_] as pairs,)) if _called(value) == "collections.OrderedDict":
            # As Python 2 wrote it.
            return {
                pair[0]: pair[1]
                for pair in pairs
                if type(pair) is list and len(pair) == 2 and type(pair[0]) is str
            }
    return value.state if type(value.state) is dict else {}


def _called(value: object) -> str:
    """Full name of the function or class that a record calls; "" where it has none."""
    if type(value) is not Call:
        return ""
    function = value.function
    match function:
        case Persistent(id=("module", Global() as function, *_)):
            pass  # the stream layout stores the source text with a class
        case Global(name="_reconstructor" | "__newobj__") if type(value.args) is tuple:
            function = value.args[0] if value.args else None
    return str(function) if type(function) is Global else ""


def _rebuild(value: object) -> Call | None:
    """Unwrap the call that rebuilds a tensor; None where a value is no tensor."""
    for _ in range(_MAX_WRAPPERS):
        called = _called(value)
        match value:
            case Call() if called in _REBUILDS:
                return value
            case Call(args=(inner, *_)) if called in _WRAPPERS:
                value = inner
            case Call(args=(function, _, args, *_)) if called in _SUBCLASSES:
                value = Call(function, args)
            case _:
                return None
    return None


def _tensor(call: Call, name: str, storages: Storages) -> Tensor:
    """Describe a tensor, checked against its storage."""
    where = f"{storages.path}: tensor {name[:200]!r}"
    if _called(call) == "torch._utils._rebuild_qtensor":
        return _dequantised(call, where, storages)
    return _view(call, where, storages)


def _view(call: Call, where: str, storages: Storages) -> Tensor:
    """Describe the view of a storage; a quantised tensor comes as its integers."""
    stored = storages.named(call.args[0]) if type(call.args) is tuple and call.args else None
    match call.args:
        case (_, int(offset), tuple(shape), tuple(strides), *rest) if type(stored) is Persistent:
            identity = storage_id(stored, where)
        case _:
            raise CheckpointError(f"{where} is not described as torch describes it")
    dtype = identity.dtype
    if _called(call) == "torch._utils._rebuild_tensor_v3":
        dtype = rest[2].name if len(rest) > 2 and type(rest[2]) is Global else ""
    if dtype not in ITEM_SIZES:
        raise CheckpointError(
            f"{where} has the unknown type {dtype[:100]!r}; convert it to float32"
        )
    storage = storages.find(identity)
    _check_view(where, offset, shape, strides, storage.size // ITEM_SIZES[dtype])

    def read() -> np.ndarray:
        return read_array(
            storages.path,
            storage.begin() + offset * ITEM_SIZES[dtype],
            dtype,
            shape,
            strides=None if _is_c_order(shape, strides) else strides,
            big_endian=storages.big_endian,
        )

    return Tensor(shape, dtype, read)


def _check_view(
    where: str, offset: int, shape: tuple[Any, ...], strides: tuple[Any, ...], count: int
) -> None:
    """Raise unless a view of a storage with `count` elements lies inside it."""
    if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
        raise CheckpointError(f"{where} has {len(shape)} dimensions and {len(strides)} strides")
    if not all(type(n) is int and 0 <= n < 1 << 63 for n in (offset, *shape, *strides)):
        raise CheckpointError(f"{where} has a shape, stride or offset that is no size")
    extent = sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + 1
    if offset + (extent if all(shape) else 0) > count:
        raise CheckpointError(
            f"{where} ends at element {offset + extent} of a storage that has {count}; "
            "is the download complete?"
        )
    # Of an empty shape too: NumPy refuses dimensions whose product is beyond all addresses.
    if math.prod(max(n, 1) for n in shape) > max(count, _MAX_REPEATED):
        raise CheckpointError(
            f"{where} repeats the {count} elements of its storage to a shape of {shape}; "
            "save a contiguous copy"
        )


def _is_c_order(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    step = 1
    for n, stride in zip(reversed(shape), reversed(strides), strict=True):
        if n != 1 and stride != step:
            return False
        step *= n
    return True


def _dequantised(call: Call, where: str, storages: Storages) -> Tensor:
    """Describe the real numbers of a quantised tensor: ``(q - zero point) * scale``."""
    raw = _view(call, where, storages)
    match call.args[4:5] if isinstance(call.args, tuple) else ():
        case ((Global(name="per_tensor_affine"), float(scale), int(zero)),) if (
            abs(scale) < 1e38 and abs(zero) < 1 << 31
        ):

            def read() -> np.ndarray:
                import numpy as np

                # Torch rounds the scale of a whole tensor, but not those of channels.
                return _scaled(raw.read(), np.float32(scale), zero)

        case ((Global(name="per_channel_affine"), Call() as scales, Call() as zeros, int(axis)),):
            by_channel = [_view(each, where, storages) for each in (scales, zeros)]
            if axis < 0 or any(each.shape != raw.shape[axis : axis + 1] for each in by_channel):
                raise CheckpointError(f"{where} has scales of another shape than its axis {axis}")

            def read() -> np.ndarray:
                column = (-1,) + (1,) * (len(raw.shape) - 1 - axis)
                return _scaled(raw.read(), *(each.read().reshape(column) for each in by_channel))

        case _:
            raise CheckpointError(f"{where} is quantised in an unknown way; dequantise the model")
    return Tensor(raw.shape, "float32", read)


def _scaled(integers: np.ndarray, scale: Any, zero: Any) -> np.ndarray:
    import numpy as np

    # What is not finite is for the measurement to report, not for NumPy to warn of.
    with np.errstate(all="ignore"):
        numbers: np.ndarray = (integers.astype(np.float64) - zero) * scale
        return numbers.astype(np.float32)


def _is_module(value: object) -> TypeGuard[Call]:
    """Whether a record is a pickled `torch.nn.Module` or a module of a TorchScript archive."""
    if type(value) is not Call or type(value.state) is not dict:
        return False
    return {"_modules", "_parameters"} <= value.state.keys() or _called(value).startswith(
        "__torch__."
    )


class _Names:
    """Makes dotted names, as many as `_MAX_NAMES` allows for a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.left = _MAX_NAMES

    def extend(self, prefix: str, name: str) -> str:
        self.left -= len(prefix) + len(name) + 1
        if self.left < 0:
            raise CheckpointError(
                f"{self.path}: the names of all modules together are longer than {_MAX_NAMES} "
                "characters; save model.state_dict() instead"
            )
        return prefix + name


def _walk(root: Call, path: tuple[str, ...], names: _Names) -> _Found:
    """All tensors of a module and of those in it; one that is shared has all of its names."""
    found = _Found(path, {}, modules=[])
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
            if type(key) is str and (call := _rebuild(value)):
                found.tensors[names.extend(prefix, key)] = call
        below = [
            (names.extend(prefix, f"{key}."), child)
            for key, child in children.items()
            if type(key) is str and _is_module(child) and id(child) not in inside
        ]
        stack.extend(reversed(below))
    return found


def _members(module: Call) -> tuple[Mapping[Any, Any], Mapping[Any, Any]]:
    """Parameters and buffers of a module, and the modules in it."""
    state: dict[object, object] = module.state  # type: ignore[assignment]
    if "_modules" not in state:  # TorchScript keeps all in one
        return state, state
    own = {**_entries(state.get("_parameters")), **_entries(state.get("_buffers"))}
    return own, _entries(state["_modules"])


def _place(module: Call, weight: Tensor | None) -> Place | None:
    """Tell a layer's kind by the class or attributes of its pickled module."""
    if weight is None:
        return None
    attributes: dict[object, object] = module.state  # type: ignore[assignment]
    name = _called(module).rpartition(".")[2]
    dimensions = len(weight.shape) - 2
    if dimensions == 0 and name.endswith("Linear"):
        return Place(kind=Kind.LINEAR)
    named = _CONVOLUTION.search(name)
    if named is None and not attributes.keys() >= _CONVOLUTION_ATTRIBUTES:
        return None
    if dimensions < 1 or (named and int(named[2]) != dimensions):
        return None
    groups = attributes.get("groups")
    transposed = attributes.get("transposed") is True or bool(named and named[1])
    return Place(
        kind=Kind.TRANSPOSED if transposed else kind_of_convolution(weight.shape[2:]),
        groups=groups if type(groups) is int and groups > 0 else None,
    )


def _without_prefixes(names: Iterable[str]) -> Callable[[str], str]:
    """Take off what `torch.compile` (anywhere) and `DataParallel` (on all names) put before names.

    Names stay as they are where two of them would become one.
    """
    names = list(names)
    parallel = all(_COMPILED.sub("", name).startswith("module.") for name in names)

    def clean(name: str) -> str:
        return _COMPILED.sub("", name).removeprefix("module." if parallel else "")

    return clean if len({clean(name) for name in names}) == len(names) else str


def _outline(value: object) -> str:
    """Say in a few words what a file without a state dict holds."""
    if _rebuild(value):
        return "a single tensor"
    if type(value) is dict:
        keys = [repr(key[:40]) for key in value if type(key) is str]
        return "a dictionary of " + (", ".join(keys[:5]) or "nothing that has a name")
    if type(value) is Call:
        return f"an object of {_called(value)[:100] or 'no known class'}"
    return f"a {type(value).__name__}"
