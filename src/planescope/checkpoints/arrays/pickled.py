"""Plain pickles of named arrays: ``.pkl``, ``.npy``, ``.ckpt``, ``.pdparams``, joblib's.

Flax, Haiku, JAX, Paddle, Detectron2, Caffe2, Lasagne and many scripts of NumPy save a network as a
pickled dictionary of arrays. Nothing in it is executed: the calls that would make the arrays are
recognised, and the bytes are taken from where they lie.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from planescope.checkpoints.arrays.ndarrays import Arrays, called, joblib_bytes, objects_of
from planescope.checkpoints.arrays.nested import MAX_DEPTH, Tree, of_sequence, state_dict
from planescope.checkpoints.arrays.npz import read_header
from planescope.checkpoints.arrays.raw import ITEM_SIZES
from planescope.checkpoints.probe import HEAD_BYTES, Probe, probe
from planescope.checkpoints.torch import objects as torch_objects
from planescope.checkpoints.torch.stream import embedded_storage
from planescope.files.errors import CheckpointError
from planescope.files.pickles import Call, Key, Persistent, Stretch, read_pickle
from planescope.files.reading import open_binary
from planescope.hyperplanes.layer import StateDict, Tensor

NAME = "pickle"

_NPY = b"\x93NUMPY"
# How a dictionary, a list, a tuple or an object begins where the protocol, 0 or 1, is not told.
_OLD = re.compile(
    rb"\(dp\d|\(lp\d|\(d\.|\}q|\]q|\(i?c?[a-z_][\w.]*\n[A-Za-z_]\w*\n|c[a-z_][\w.]*\n[A-Za-z_]\w*\n"
)


def recognises(probe: Probe) -> bool:
    """Tell a pickle of any protocol, bare or within a single array of NumPy's."""
    head = probe.head
    if head.startswith(_NPY):
        return b"O'" in head[:HEAD_BYTES]
    return (head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")) or bool(
        _OLD.match(head)
    )


def read(path: Path, *, entry: str | None = None) -> StateDict:
    """Describe the arrays of a pickle by their names; no values are read.

    Raises
    ------
    CheckpointError
        If the pickle or an array in it is damaged, or holds no arrays by name.
    """
    begin = 0
    head = probe(path).head
    if head.startswith(_NPY):
        begin, _ = read_header(f"{path}: the array", head)
    with open_binary(path) as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (ValueError, OSError) as exc:
            raise CheckpointError(f"{path}: cannot be read: {exc}") from exc
        with data:
            return _described(path, data, begin, entry)


def _described(path: Path, data: mmap.mmap, begin: int, entry: str | None) -> StateDict:
    def behind(record: Call, at: int) -> Stretch | None:
        return joblib_bytes(record, at, data)

    value = read_pickle(
        data, begin, where=str(path), raw_strings=True, stretches=True, behind=behind
    ).value
    if torch_objects.holds_tensors(value, path):
        return torch_objects.state_dict(value, _TorchStorages(path, data).storages(), entry)
    found = of_arrays(value, path, len(data), entry)
    if found is None:
        raise CheckpointError(f"{path}: {_outline(value)}")
    return found


def of_arrays(value: object, path: Path, size: int, entry: str | None) -> StateDict | None:
    """Describe the arrays of NumPy's in what a pickle holds; None where there are none.

    Raises
    ------
    CheckpointError
        If one is damaged, or has no name.
    """
    tree = _Trees(Arrays(path, size)).of(value, ())
    if isinstance(tree, Tensor):
        raise CheckpointError(
            f"{path}: a single array without a name; save the weights of all layers with "
            "numpy.savez(file, **{name: array, ...})"
        )
    return state_dict(tree, path, entry=entry) if tree else None


class _TorchStorages:
    """Storages of torch tensors in a plain pickle: each is a torch file of its own, within it."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data = path, data
        self._found: dict[int, tuple[Persistent, int, int]] = {}

    def storages(self) -> torch_objects.Storages:
        return torch_objects.Storages(self.path, self._find, named=self._named)

    def _named(self, stored: object) -> object:
        """Return the persistent id of a storage, with its place in the file for a key."""
        match stored:
            case Call(args=(Stretch(begin=begin, form="bytes"),)) if (
                called(stored) == "torch.storage._load_from_bytes"
            ):
                pass
            case Call(args=(Call() as text, *_)) if called(text) == "_codecs.encode":
                raise CheckpointError(
                    f"{self.path}: holds torch's tensors in a pickle of protocol 2, as text; save "
                    "it by torch.save(model.state_dict(), file), or by pickle with protocol=4"
                )
            case _:
                return stored
        if begin not in self._found:
            self._found[begin] = embedded_storage(self.path, self.data, begin)
        match self._found[begin][0].id:
            case ("storage", kind, _, location, count, *rest):
                return Persistent(("storage", kind, str(begin), location, count, *rest))
        return stored

    def _find(self, storage: torch_objects.StorageId) -> torch_objects.Storage:
        _, begin, size = self._found[int(storage.key)]
        first, count = storage.view or (0, storage.count)
        width = ITEM_SIZES[storage.dtype]
        if size < storage.nbytes:
            raise CheckpointError(f"{self.path}: a storage is shorter than its tensors need")
        return torch_objects.Storage(lambda: begin + first * width, count * width)


# What they keep of each weight has its shape, and is no layer.
_OPTIMIZERS = ("optax.", "flax.optim.", "jax.example_libraries.optimizers.")

# What holds one array and nothing else is that array.
_BOXES = frozenset({"value", "raw_value", "_value", "data", "array"})


@dataclass
class _Trees:
    """Makes trees of tensors of the records of a pickle."""

    arrays: Arrays
    _made: dict[int, Tree | None] = field(default_factory=dict)

    def of(self, value: object, path: tuple[str, ...]) -> Tree | None:
        """Make the tree of a record; None where there is no array in it."""
        if type(value) not in (dict, list, tuple, Call):
            return None
        if id(value) not in self._made:
            self._made[id(value)] = None  # what holds itself ends here
            self._made[id(value)] = self._of(value, path)
        return self._made[id(value)]

    def _of(self, value: object, path: tuple[str, ...]) -> Tree | None:
        if len(path) > MAX_DEPTH:
            raise CheckpointError(
                f"{self.arrays.path}: nests more than {MAX_DEPTH} deep; save a dictionary of "
                "named arrays alone"
            )
        if type(value) is Call:
            if called(value).startswith(_OPTIMIZERS):
                return None
            tensor = self.arrays.tensor(value, ".".join(path))
            if tensor is not None:
                return tensor
            objects = objects_of(value)
            if objects is not None:
                return self.of(objects, path)
        if isinstance(value, (list, tuple)):
            return of_sequence(
                [self.of(each, (*path, str(index))) for index, each in enumerate(value)]
            )
        held = {
            name: tree
            for key, each in _entries(value)
            if (name := _name(key)) is not None and (tree := self.of(each, (*path, name)))
        }
        if type(value) is Call and len(held) == 1 and held.keys() <= _BOXES:
            return next(iter(held.values()))
        return held


def _entries(value: object) -> Iterable[tuple[object, object]]:
    """Return the items of a dictionary, or attributes of another object."""
    if type(value) is dict:
        return value.items()
    if type(value) is not Call:
        return ()
    if value.items:
        return value.items.items()
    match value:
        case Call(args=(dict() as items,)):  # FrozenDict, FlatMap
            return items.items()
        # As Python 2 wrote an OrderedDict.
        case Call(args=([_, *_] as pairs,)) if called(value).startswith("collections."):
            return [
                (each[0], each[1])
                for each in pairs
                if isinstance(each, (list, tuple)) and len(each) == 2
            ]
        case Call(state=dict() as state):
            return state.items()
        case Call(state=(_, dict() as slots)):
            return slots.items()
        case Call(args=tuple() as args):  # a namedtuple, whose fields have no names here
            return [(str(index), each) for index, each in enumerate(args)]
    return ()


def _name(key: object) -> str | None:
    """Name of an entry; numbers are names too."""
    if type(key) is Key:
        key = key.value
    if type(key) is bytes:
        return key.decode(errors="backslashreplace")
    return str(key) if type(key) in (str, int) else None


def _outline(value: object) -> str:
    """Say what a pickle without arrays holds, and what to save instead."""
    instead = "save a dictionary of its arrays, {name: array, ...}, or by numpy.savez"
    name = called(value)[:100]
    if name.partition(".")[0] == "torch":
        instead = "save it by torch.save(model.state_dict(), file)"
    held = f"an object of {name}" if name else f"a {type(value).__name__}"
    return f"is a pickle of {held}, without arrays by name; {instead}"
