"""NumPy's arrays among the records of a pickle to tensors.

Arrays are pickled by calls of functions of NumPy, JAX, joblib and others, and within torch's and
Paddle's own. Each call is a record here; this module knows what the call would give, and takes the
bytes from where they lie in the file.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from planescope.checkpoints.arrays.raw import (
    ITEM_SIZES,
    MAX_DIMENSIONS,
    decode,
    stored_tensor,
)
from planescope.files.errors import CheckpointError
from planescope.files.pickles import Call, Global, Stretch, read_pickle, stretch_bytes
from planescope.files.reading import read_exactly
from planescope.hyperplanes.layer import Tensor

_RECONSTRUCT = frozenset(f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core"))
_FROM_BUFFER = frozenset(f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core"))

# Of JAX, under the names that it had over the years: (function, arguments, state, further state) of
# a NumPy array.
_DEVICE_ARRAYS = frozenset(
    {
        "jax._src.array._reconstruct_array",
        "jax._src.device_array.reconstruct_device_array",
        "jax.interpreters.xla._reconstruct_device_array",
    }
)
# Their first argument is an array, or an array behind a name.
_WRAPPERS = frozenset(
    {
        "cupy._core.core.array",
        "cupy.core.core.array",
        "theano.sandbox.cuda.type.CudaNdarray_unpickler",
    }
)
JOBLIB = "joblib.numpy_pickle.NumpyArrayWrapper"

_MAX_WRAPPERS = 4

# Many arrays may share bytes, but a file that claims more in all than this many times its own size
# would keep us busy without end.
_MAX_CLAIM = 64


@dataclass
class Arrays:
    """The arrays of one file.

    Attributes
    ----------
    path : Path
    size : int
        Bytes of the file.
    """

    path: Path
    size: int
    _made: dict[int, Tensor] = field(default_factory=dict)
    _kept: list[Call] = field(default_factory=list)  # so that no other object takes its identity
    _claimed: int = 0

    def tensor(self, record: Call, where: str) -> Tensor | None:
        """Describe an array of numbers; None for another record.

        One record gives one tensor, under however many names it stands.

        Raises
        ------
        CheckpointError
            If it is damaged, or its elements are no plain numbers.
        """
        call = unwrapped(record)
        if call is None:
            return None
        if id(call) not in self._made:
            array = _described(call, f"{self.path}: array {where[:200]!r}")
            if array is None:
                return None
            self._claimed += array.nbytes
            if self._claimed > _MAX_CLAIM * self.size:
                raise CheckpointError(
                    f"{self.path}: its arrays claim far more than the {self.size} bytes of the "
                    "file; refused as a bomb"
                )
            self._made[id(call)] = array.tensor(self.path)
            self._kept.append(call)
        return self._made[id(call)]


def called(value: object) -> str:
    """Return the full name of the function or class that a record calls; "" where it has none."""
    if type(value) is not Call:
        return ""
    function, args = value.function, value.args
    # How protocols 0 and 1 make an object of a class.
    match function, args:
        case Global(module="copy_reg" | "copyreg", name="_reconstructor"), (Global() as cls, *_):
            return str(cls)
    return str(function) if type(function) is Global else ""


def unwrapped(record: object) -> Call | None:
    """Unwrap the call that gives an array; None where a record gives none."""
    for _ in range(_MAX_WRAPPERS):
        name = called(record)
        match name, record:
            case _, Call() if name in _RECONSTRUCT or name in _FROM_BUFFER or name == JOBLIB:
                return record
            case _, Call(args=(function, args, state, *_)) if name in _DEVICE_ARRAYS:
                record = Call(function, args, state)
            case _, Call(args=(inner, *_)) if name in _WRAPPERS:
                record = inner
            # How Paddle writes a tensor with its name, and one without: what these would evaluate
            # to is plain, and they are not evaluated.
            case "builtins.tuple" | "__builtin__.tuple", Call(args=((str(), Call() as inner),)):
                record = inner
            case "builtins.eval" | "__builtin__.eval", Call(args=(b"data" | "data", dict() as d)):
                record = d.get("data", d.get(b"data"))
            case _:
                return None
    return None


def objects_of(record: Call) -> list[object] | object | None:
    """Return objects of an array of Python objects, or the only one of an array without dimensions.

    None where the record is no such array.
    """
    if called(record) not in _RECONSTRUCT:
        return None
    match record.state:
        case (int(), tuple() as shape, Call() as dtype, _, list() as objects) if (
            _type_code(dtype)[:1] == "O"
        ):
            return objects[0] if shape == () and len(objects) == 1 else objects
    return None


def is_matrix(record: object) -> bool:
    """Tell the record of an array of numbers with two axes or more, as a weight has."""
    match unwrapped(record):
        case Call(state=(int(), tuple() as shape, Call() as dtype, *_)):
            return len(shape) > 1 and _type_code(dtype)[:1] == "f"
    return False


def joblib_bytes(record: Call, at: int, data: mmap.mmap) -> Stretch | None:
    """Tell where the bytes lie that joblib writes behind the record of an array."""
    if called(record) != JOBLIB or type(record.state) is not dict:
        return None
    shape, dtype = record.state.get("shape"), record.state.get("dtype")
    if type(dtype) is not Call:
        return None
    if _type_code(dtype)[:1] == "O":  # what follows is a pickle of its own
        return Stretch(at, read_pickle(data, at, where="joblib", stretches=True).end - at)
    width = ITEM_SIZES.get(_dtype(dtype, "joblib")[0], 0)
    if record.state.get("numpy_array_alignment_bytes") is not None:
        padding = data[at] if at < len(data) else 0
        at += 1 + padding
    return Stretch(at, width * math.prod(_shape(shape, "joblib")))


@dataclass(frozen=True, slots=True)
class _Array:
    dtype: str
    shape: tuple[int, ...]
    columns_first: bool
    big_endian: bool
    values: bytes | Stretch

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_SIZES[self.dtype]

    @property
    def strides(self) -> tuple[int, ...] | None:
        if not self.columns_first:
            return None
        return tuple(math.prod(self.shape[:axis]) for axis in range(len(self.shape)))

    def tensor(self, path: Path) -> Tensor:
        values = self.values
        if type(values) is Stretch and values.form == "bytes":
            return stored_tensor(
                path,
                values.begin,
                self.dtype,
                self.shape,
                strides=self.strides,
                big_endian=self.big_endian,
            )

        def read() -> np.ndarray:
            raw = values if isinstance(values, bytes) else _unescaped(path, values)
            if len(raw) != self.nbytes:
                raise CheckpointError(
                    f"{path}: an array of shape {self.shape} has {len(raw)} bytes; "
                    "is the download complete?"
                )
            flat = decode(np.frombuffer(raw, np.uint8), self.dtype, big_endian=self.big_endian)
            return flat.reshape(self.shape, order="F" if self.columns_first else "C")

        return Tensor(self.shape, self.dtype, read)


def _unescaped(path: Path, stretch: Stretch) -> bytes:
    """Return the bytes that the stream writes as text."""
    raw = read_exactly(path, stretch.begin, stretch.length)
    try:
        return stretch_bytes(raw, stretch.form)
    except ValueError as exc:
        raise CheckpointError(f"{path}: an array is damaged ({exc})") from exc


def _described(call: Call, where: str) -> _Array | None:
    """Describe an array, checked against the bytes that are there; None for one of no numbers."""
    name = called(call)
    dtype: object
    match call:
        case Call(args=(values, Call() as dtype, shape, order, *_)) if name in _FROM_BUFFER:
            columns_first = order in ("F", b"F")
        case Call(state=(int(), shape, Call() as dtype, columns_first, values)):
            pass
        case Call(state=dict() as state, elements=[Stretch() as values]) if name == JOBLIB:
            shape, dtype = state.get("shape"), state.get("dtype")
            columns_first = state.get("order") in ("F", b"F")
        case _:
            raise CheckpointError(f"{where} is not described as NumPy describes it")
    if type(dtype) is not Call:
        raise CheckpointError(f"{where} is not described as NumPy describes it")
    if _type_code(dtype)[:1] in ("O", "S", "U", "V", "M", "m"):
        return None
    kind, big_endian = _dtype(dtype, where)
    described = _Array(kind, _shape(shape, where), bool(columns_first), big_endian, _bytes(values))
    _check(described, where)
    return described


def _bytes(values: object) -> bytes | Stretch:
    """Return the bytes of an array from the record that would give them."""
    match values:
        case Call(args=(text, "latin1" | "latin-1" | b"latin1")) if (
            called(values) == "_codecs.encode"
        ):
            values = _latin(text) if isinstance(text, str) else text
        case Call(args=()) if called(values) in ("builtins.bytes", "__builtin__.bytes"):
            return b""
        case Call(args=(inner,)) if called(values) == "builtins.bytearray":
            return _bytes(inner)
    return values if isinstance(values, (bytes, Stretch)) else b""


def _latin(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return b""  # refused for its length


def _check(array: _Array, where: str) -> None:
    values = array.values
    held = len(values) if isinstance(values, bytes) else values.length
    # Text has at most as many bytes of values as of its own.
    exact = isinstance(values, bytes) or values.form == "bytes"
    if held < array.nbytes or (exact and held != array.nbytes):
        raise CheckpointError(
            f"{where} claims {array.dtype} values of shape {array.shape}, but has {held} bytes; "
            "is the download complete?"
        )


def _type_code(dtype: Call) -> str:
    """Return the code of an element type, as ``f4``; of an extension type its name."""
    match dtype:
        case Call(args=(str(code), *_)):
            return code
        case Call(args=(bytes(code), *_)):
            return code.decode(errors="replace")
        case Call(args=(Global(name=name), *_)):
            return name
    return ""


# As dtypes are pickled, without the order of bytes.
_KINDS = {"f": "float", "i": "int", "u": "uint", "c": "complex"}


def _dtype(dtype: Call, where: str) -> tuple[str, bool]:
    """Name of an element type, and whether the highest byte comes first."""
    code = _type_code(dtype)
    state = dtype.state if type(dtype.state) is tuple else ()
    order = state[1] if len(state) > 1 else "<"
    name = "bool" if code == "b1" else code
    if code[:1] in _KINDS and code[1:].isdecimal() and len(code) < 4:
        name = f"{_KINDS[code[0]]}{8 * int(code[1:])}"
    fields = any(part is not None for part in state[2:5])
    if called(dtype) != "numpy.dtype" or name not in ITEM_SIZES or fields:
        raise CheckpointError(
            f"{where} has elements of type {code[:40]!r}, which are no plain numbers; leave it out"
        )
    return name, order in (">", b">")


def _shape(shape: object, where: str) -> tuple[int, ...]:
    if type(shape) is int:  # joblib's and Paddle's for one dimension
        shape = (shape,)
    if (
        type(shape) is not tuple
        or len(shape) > MAX_DIMENSIONS
        or not all(type(extent) is int and 0 <= extent < 1 << 59 for extent in shape)
        or math.prod(extent or 1 for extent in shape) >= 1 << 59
    ):
        raise CheckpointError(f"{where} claims an impossible shape; is the download complete?")
    return shape
