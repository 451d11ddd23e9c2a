"""Whatever a user hands over to batches, which go to a network exactly as they come.

A DataLoader, a Dataset, a LightningDataModule, the dictionaries of Hugging Face's data sets,
tensors, or anything that yields batches. Nothing is normalised, cropped or cast. What can be gone
through once only is read once. To import this is to import torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset

from planescope.data.roles import Batch, Reader, Unpack, left_note, moved
from planescope.files.errors import UsageError, counted, one_line
from planescope.files.optional import call, find_callable, is_foreign

# Examples of a batch, where a data set is batched here and nothing says how many.
BATCH = 64


@dataclass(eq=False)
class Loader:
    """Batches of a user's.

    Attributes
    ----------
    source : iterable
        Gives the batches as the user has them.
    name : str
        For tables.
    examples : int or None
        In all, where that is known beforehand.
    notes : list of str
        What a reader should know.
    has_splits : bool
        Whether it is of a split that was asked for.
    """

    source: Iterable[Any]
    name: str
    examples: int | None = None
    notes: list[str] = field(default_factory=list)
    has_splits: bool = False

    def batches(
        self, module: nn.Module, device: torch.device, unpack: Unpack | None = None
    ) -> Iterator[Batch]:
        """Give all batches, on a device.

        Raises
        ------
        UsageError
            If there is none, or it is not plain what in a batch is what.
        """
        reader = Reader(module, unpack)
        count = 0
        for raw in self.source:
            batch = reader.read(moved(raw, device))
            if batch.size:  # one without examples tells nothing
                yield batch
                count += 1
        if not count:
            raise UsageError(f"{self.name}: gives no batch")
        if reader.left and (note := left_note(reader.left)) not in self.notes:
            self.notes.append(note)


def open_loader(
    data: Any,
    /,
    *,
    split: str = "val",
    batch: int = BATCH,
    subset: int | None = None,
    seed: int = 0,
) -> Loader:
    """Find the batches in what a user handed over.

    Parameters
    ----------
    data
        A DataLoader or any other iterable of batches; a Dataset, of torch or Hugging Face; a
        LightningDataModule; a tensor or an array of inputs; a pair or a dictionary of these with a
        row an example.
    split : {"val", "train"}
        Of a LightningDataModule.
    batch : int
        Examples of a batch, where batches are made here.
    subset : int, optional
        Take so many examples at random; of what has examples by number alone.
    seed : int
        Of that choice.

    Raises
    ------
    UsageError
        If it is nothing of the kind, or the subset cannot be taken.
    """
    name = _name(data)
    if callable(getattr(data, f"{split}_dataloader", None)):
        loader = open_loader(of_module(data, split, name), subset=subset, seed=seed)
        return replace(loader, name=name, has_splits=True)
    if isinstance(data, np.ndarray | torch.Tensor):
        data = _Rows(data)
    elif isinstance(data, tuple) and len(data) == 2 and all(map(_has_rows, data)):
        data = _Rows(tuple(data))
    elif isinstance(data, Mapping):
        data = _of_mapping(data, name)
    if isinstance(data, DataLoader):
        return _of_dataloader(data, name, subset)
    if is_indexed(data):
        return _of_dataset(data, name, batch, subset, seed)
    if subset is not None:
        raise UsageError(
            f"{name}: a subset is taken of a data set, whose examples have numbers; take it where "
            "the batches are made"
        )
    if isinstance(data, IterableDataset):
        data = DataLoader(data, batch_size=batch)
    if isinstance(data, str) or not isinstance(data, Iterable):
        raise UsageError(
            f"cannot take batches from a {name}; give a DataLoader, a Dataset, a "
            "LightningDataModule, tensors, the name of a data set, or anything that yields batches"
        )
    return Loader(data, name)


def call_loader(name: str, split: str, /) -> Any:
    """Call what ``package.module:callable`` names, and take from it what is to be evaluated on.

    Returns
    -------
    object or None
        What `open_loader` takes; None of what `planescope.data.load.load` prepares: a data set by
        name, a folder, or a pair of images as bytes, to train and to validate on.

    Raises
    ------
    UsageError
        If there is no such callable, or it wants arguments.
    """
    if not is_foreign(name, "data"):
        return None
    module, _, attribute = name.partition(":")
    function = find_callable(module, attribute, "data set", "one that is known, folder:PATH")
    try:
        inspect.signature(function).bind()
    except TypeError as exc:
        raise UsageError(
            f"data {name!r} is called without arguments, but wants some ({one_line(exc)}); name a "
            "function without"
        ) from exc
    except ValueError:  # some of C have no signature
        pass
    found = call(f"data {name!r}", function)
    if found is None:
        raise UsageError(
            f"data {name!r} returns nothing; it must return a DataLoader, a Dataset, or two of "
            "them, to train and to validate on"
        )
    is_pair = isinstance(found, tuple | list) and len(found) == 2 and not all(map(_has_rows, found))
    if not is_pair:
        return found
    part = found[split != "train"]
    return None if _is_bytes(part) else part


def _is_bytes(part: Any) -> bool:
    """Return whether examples are images as bytes, which no network takes as they are."""
    if isinstance(part, tuple) and len(part) == 2:
        first = part[0]
    elif is_indexed(part) and not isinstance(part, DataLoader) and len(part):
        first = part[0]
        first = first[0] if isinstance(first, tuple | list) and len(first) else first
    else:
        return False
    is_image = hasattr(first, "getbands")  # PIL's
    return is_image or str(getattr(first, "dtype", "")).rpartition(".")[2] == "uint8"


def _name(data: Any) -> str:
    kind = type(data).__name__
    dataset = getattr(data, "dataset", None) if isinstance(data, DataLoader) else None
    return kind if dataset is None else f"{kind} of {type(dataset).__name__}"


def _has_rows(part: Any) -> bool:
    return isinstance(part, np.ndarray | torch.Tensor) and part.ndim > 0


def generators_of(data: Any, /) -> list[torch.Generator]:
    """Find the generators of a DataLoader and its samplers."""
    holders = [data, *(getattr(data, name, None) for name in ("sampler", "batch_sampler"))]
    holders.append(getattr(holders[-1], "sampler", None))
    found = [getattr(one, "generator", None) for one in holders]
    return list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())


def is_indexed(data: Any) -> bool:
    """Return whether it is a data set, whose examples have numbers."""
    is_set = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    return is_set and not isinstance(data, str | bytes | list | tuple | Mapping)


def of_module(data: Any, split: str, name: str) -> Any:
    """Return the loader of a LightningDataModule, prepared and set up as its trainer would."""
    for method, args in (("prepare_data", ()), ("setup", ("fit",))):
        if callable(getattr(data, method, None)):
            getattr(data, method)(*args)
    loader = getattr(data, f"{split}_dataloader")()
    if isinstance(loader, list | tuple) and len(loader) == 1:
        loader = loader[0]
    if isinstance(loader, list | tuple | Mapping) or loader is None:
        raise UsageError(
            f"{name}: its {split}_dataloader gives {len(loader) if loader else 'no'} loaders; give "
            "the one that is meant"
        )
    return loader


def _of_mapping(data: Mapping[str, Any], name: str) -> Any:
    if data and all(map(_has_rows, data.values())):
        return _Rows(dict(data))
    raise UsageError(
        f"a {name} of {', '.join(map(str, list(data)[:4]))} has no examples; give one of its parts"
    )


def _of_dataloader(loader: DataLoader[Any], name: str, subset: int | None) -> Loader:
    if subset is not None:
        raise UsageError(f"{name}: take the subset where the DataLoader is made, or give a Dataset")
    try:
        examples: int | None = len(loader.dataset)
    except (TypeError, AttributeError, NotImplementedError):
        examples = None
    sampler = loader.sampler
    if examples is not None and (hasattr(sampler, "__len__") and len(sampler) != examples):
        examples = None
    notes = []
    if loader.drop_last and examples is not None and loader.batch_size:
        left = examples % loader.batch_size
        examples -= left
        if left:
            notes.append(
                f"the DataLoader drops its last, smaller batch: {counted(left, 'example')} "
                f"{'was' if left == 1 else 'were'} not looked at"
            )
    if loader.batch_sampler is None or type(loader.batch_sampler).__name__ != "BatchSampler":
        examples = None
    return Loader(loader, name, examples, notes)


def _of_dataset(data: Any, name: str, batch: int, subset: int | None, seed: int) -> Loader:
    total = len(data)
    if not total:
        raise UsageError(f"{name}: has no examples")
    if subset is not None:
        if subset > total:
            raise UsageError(f"a subset of {subset}: {name} has {counted(total, 'example')}")
        order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:subset]
        data, total = Subset(data, order.sort().values.tolist()), subset
    # Its own generator: else each pass would draw from torch's global one.
    loader = DataLoader(data, batch_size=batch, generator=torch.Generator())
    return Loader(_Collated(loader, name), name, total)


class _Collated:
    """A loader made here, whose data set may hold what cannot be joined to batches."""

    def __init__(self, loader: DataLoader[Any], name: str) -> None:
        self._loader, self._name = loader, name

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._loader
        except (TypeError, RuntimeError) as exc:
            if "default_collate" not in str(exc) and "stack expects" not in str(exc):
                raise
            raise UsageError(
                f"{self._name}: its examples cannot be joined to batches ({one_line(exc)}); have "
                "it give tensors of one size, or give a DataLoader with a collate_fn"
            ) from exc


class _Rows:
    """Tensors with a row an example, as a data set."""

    def __init__(self, parts: Any) -> None:
        several = (
            parts.values() if isinstance(parts, dict) else
            parts if isinstance(parts, tuple) else (parts,)
        )  # fmt: skip
        sizes = {len(part) for part in several}
        if len(sizes) != 1:
            raise UsageError(f"tensors of {' and '.join(map(str, sorted(sizes)))} rows do not go "
                             "together; give a row an example")  # fmt: skip
        self._parts, (self._size,) = parts, sizes

    def __len__(self) -> int:
        return int(self._size)

    def __getitem__(self, index: int) -> Any:
        if isinstance(self._parts, dict):
            return {name: part[index] for name, part in self._parts.items()}
        if isinstance(self._parts, tuple):
            return tuple(part[index] for part in self._parts)
        return self._parts[index]
