"""From the inert records of a tensor that torch pickled to the tensor, as its loader reads it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from planescope.checkpoints.arrays.raw import ITEM_SIZES, MAX_DIMENSIONS, read_array
from planescope.files.errors import CheckpointError
from planescope.files.pickles import Call, Global, Persistent
from planescope.hyperplanes.layer import Tensor

if TYPE_CHECKING:
    from pathlib import Path

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
    f"torch._utils._rebuild_{what}"
    for what in ("tensor", "tensor_v2", "tensor_v3", "qtensor", "sparse_tensor")
)
# What else gives a tensor, and why its values cannot be had.
_SPARSE_BLOCKS = ("torch.sparse_bsr", "torch.sparse_bsc")
_UNREADABLE = {
    "torch._utils._rebuild_meta_tensor_no_storage": "on the meta device, where it has no values",
    "torch._utils._rebuild_wrapper_subclass": "a tensor of a class of its own, without its values",
    "torch._utils._rebuild_device_tensor_from_numpy": "stored as an array of another library",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
}
# Their first argument is a tensor.
_WRAPPERS = frozenset(
    {
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "torch.nn.parameter.Parameter",
        "torch.nn.parameter.Buffer",
        "torch.autograd.variable.Variable",
        "torch._utils._rebuild_device_tensor_from_cpu_tensor",
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


@dataclass(frozen=True, slots=True)
class StorageId:
    """A storage, as a pickle describes it.

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
        """Return the bytes that the storage must have."""
        return self.count * ITEM_SIZES[self.dtype]


@dataclass(frozen=True, slots=True)
class Storage:
    """Bytes of the file: `size` of them from `begin()` on."""

    begin: Callable[[], int]
    size: int


@dataclass(frozen=True, slots=True)
class Storages:
    """The storages of one file.

    Attributes
    ----------
    find : callable
        Raises `CheckpointError` for a storage that is not there.
    constants : callable, optional
        Gives those of a class of TorchScript by its full name.
    named : callable
        Gives what stands for a storage in a pickle the form of a persistent id.
    """

    path: Path
    find: Callable[[StorageId], Storage]
    big_endian: bool = False
    constants: Callable[[str], Mapping[str, float]] | None = None
    named: Callable[[object], object] = lambda stored: stored


def storage_id(persistent: Persistent, where: str) -> StorageId:
    """Return the identity of a storage from its persistent id.

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


def called(value: object, /) -> str:
    """Return the full name of the function or class that a record calls; "" where it has none."""
    if type(value) is not Call:
        return ""
    function = value.function
    match function:
        case Persistent(id=("module", Global() as function, *_)):
            pass  # the stream layout stores the source text with a class
        case Global(name="_reconstructor" | "__newobj__") if type(value.args) is tuple:
            function = value.args[0] if value.args else None
    return str(function) if type(function) is Global else ""


def rebuild(value: object) -> Call | None:
    """Unwrap the call that rebuilds a tensor; None where a value is no tensor."""
    for _ in range(_MAX_WRAPPERS):
        function = called(value)
        match value:
            case Call() if function in _REBUILDS:
                return None if _is_in_blocks(value) else value
            case Call(args=(inner, *_)) if function in _WRAPPERS:
                value = inner
            case Call(args=(maker, _, args, *_)) if function in _SUBCLASSES:
                value = Call(maker, args)
            case _:
                return None
    return None


def _is_in_blocks(value: Call) -> bool:
    match value.args:
        case (Call(args=(str(layout), *_)), *_):
            return layout in _SPARSE_BLOCKS
    return False


def read_tensor(call: Call, name: str, storages: Storages) -> Tensor:
    """Describe a tensor, checked against its storage."""
    where = f"{storages.path}: tensor {name[:200]!r}"
    match called(call):
        case "torch._utils._rebuild_qtensor":
            return _dequantised(call, where, storages)
        case "torch._utils._rebuild_sparse_tensor":
            return _dense(call, where, storages)
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
    if called(call) == "torch._utils._rebuild_tensor_v3":
        dtype = rest[2].name if len(rest) > 2 and type(rest[2]) is Global else ""
    if dtype not in ITEM_SIZES:
        raise CheckpointError(
            f"{where} has the unknown type {dtype[:100]!r}; convert it to float32"
        )
    storage = storages.find(identity)
    _check_view(where, offset, shape, strides, storage.size // ITEM_SIZES[dtype])

    is_negated, is_conjugated = (_has_bit(rest, bit) for bit in ("neg", "conj"))

    def read() -> np.ndarray:
        array = read_array(
            storages.path,
            storage.begin() + offset * ITEM_SIZES[dtype],
            dtype,
            shape,
            strides=None if _is_c_order(shape, strides) else strides,
            big_endian=storages.big_endian,
        )
        array = array.conj() if is_conjugated else array
        return -array if is_negated else array

    order = "C" if _is_c_order(shape, strides) else strides
    same = (str(storages.path), identity.key, identity.view, offset, order, is_negated)
    return Tensor(shape, dtype, read, same)


def _has_bit(rest: list[Any], bit: str) -> bool:
    """Tell whether a tensor's metadata ask for its values to be negated or conjugated."""
    metadata = rest[-1] if rest else None
    items = metadata.items if type(metadata) is Call else metadata
    return type(items) is dict and items.get(bit) is True


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


def _dense(call: Call, where: str, storages: Storages) -> Tensor:
    """Describe a sparse tensor with its zeros, by coordinates or by compressed rows or columns."""
    layout, (indices, values, size) = _sparse_parts(call, where, storages)
    shape = size.args[0] if type(size) is Call and type(size.args) is tuple and size.args else size
    if type(shape) is not tuple or not all(type(n) is int and 0 <= n < 1 << 31 for n in shape):
        raise CheckpointError(f"{where} is sparse, of an impossible size")
    if math.prod(shape) > max(_MAX_REPEATED, 64 * math.prod(values.shape)):
        raise CheckpointError(f"{where} is sparse, of {math.prod(shape)} elements; save it dense")

    def read() -> np.ndarray:
        found, places = np.zeros(shape, values.read().dtype), [each.read() for each in indices]
        if layout != "torch.sparse_coo":
            starts, across = places
            along = np.repeat(np.arange(len(starts) - 1), np.diff(starts).clip(0))
            places = [(along, across) if layout == "torch.sparse_csr" else (across, along)]
        where_to = tuple(places[0])
        ends = zip(where_to, shape, strict=True)
        if any(len(at) and not (at.min() >= 0 and at.max() < end) for at, end in ends):
            raise CheckpointError(f"{where} is sparse, with elements outside its size")
        np.add.at(found, where_to, values.read())
        return found

    return Tensor(shape, values.dtype, read)


def _sparse_parts(
    call: Call, where: str, storages: Storages
) -> tuple[str, tuple[list[Tensor], Tensor, object]]:
    damaged = CheckpointError(f"{where} is sparse in an unknown way; save it dense")
    match call.args:
        case (Call(args=(str(layout),)), tuple(parts)):
            pass
        case _:
            raise damaged
    count = {"torch.sparse_coo": 1, "torch.sparse_csr": 2, "torch.sparse_csc": 2}.get(layout, 0)
    made = [each for part in parts[: count + 1] if (each := rebuild(part)) is not None]
    if not count or len(parts) < count + 2 or len(made) < count + 1:
        raise damaged
    *indices, values = [_view(each, where, storages) for each in made]
    size = parts[count + 1]
    fits = len(values.shape) == 1 and not any(each.is_floating for each in indices)
    if count == 1:
        fits = fits and len(indices[0].shape) == 2 and indices[0].shape[1] == values.shape[0]
    else:
        fits = fits and indices[1].shape == values.shape and len(indices[0].shape) == 1
    if not fits:
        raise damaged
    return layout, (indices, values, size)


def packed(value: object, /) -> tuple[Call, Call | None] | None:
    """Return weight and bias of a quantised linear layer, packed as torch's operators take them."""
    if type(value) is Call and (called(value) == "torch.ScriptObject" or "Linear" in called(value)):
        value = value.state if value.state is not None else value.args
    if type(value) is tuple and value and type(value[0]) is tuple:  # with its class behind
        value = value[0]
    match value:
        case (weight, bias, *_) if (made := rebuild(weight)) is not None:
            return made, rebuild(bias)
    return None


def unreadable(value: object, /) -> str | None:
    """Say why a value that stands for a tensor cannot be read; None where it stands for none."""
    if type(value) is not Call:
        return None
    function = called(value)
    if function in _WRAPPERS and type(value.args) is tuple and value.args:
        return unreadable(value.args[0])
    if _is_in_blocks(value):
        return "its weight is sparse by blocks; save it dense"
    if function in _UNREADABLE:
        return f"its weight is {_UNREADABLE[function]}"
    if function in _SUBCLASSES or function.endswith("Tensor"):
        kind = function.rpartition(".")[2]
        if function in _SUBCLASSES and type(value.args) is tuple and len(value.args) > 1:
            kind = str(value.args[1]).rpartition(".")[2]
        return f"its weight is stored as a {kind[:60]}; save it as a plain tensor"
    return None


def _scaled(integers: np.ndarray, scale: Any, zero: Any) -> np.ndarray:
    # What is not finite is for the measurement to report, not for NumPy to warn of.
    with np.errstate(all="ignore"):
        numbers: np.ndarray = (integers.astype(np.float64) - zero) * scale
        return numbers.astype(np.float32)
