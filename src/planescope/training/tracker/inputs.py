"""The inputs on which a Tracker measures: taken once, before the training, and kept."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler

from planescope.data.loaders import BATCH, call_loader, is_indexed, of_module, open_loader
from planescope.files.errors import UsageError

# How deep in a data set a generator of its own is looked for.
_DEPTH = 4
_TENSORS = "give tensors, or a list of batches"


def take(data: Any, /, *, has_unpack: bool = False) -> list[Any]:
    """Take the batches that are used of `data`; it and all random generators stay as they are.

    Raises
    ------
    UsageError
        If there are none, or they can be read only once.
    """
    held = getattr(data, "dataset", data)
    with _unmoved(held), torch.random.fork_rng():
        batches = list(_batches(data))
        if not batches:
            raise UsageError("data= has no batch")
        if not has_unpack:
            for batch in batches:
                _check(batch)
        return batches


def _check(batch: Any) -> None:
    """Refuse a batch that holds no inputs, before the training."""
    parts = batch.values() if isinstance(batch, Mapping) else [batch]
    if isinstance(batch, tuple | list):
        inputs = batch[0] if batch else None
        parts = inputs.values() if isinstance(inputs, Mapping) else [inputs]
    if not any(isinstance(part, torch.Tensor | np.ndarray) for part in parts):
        raise UsageError(
            f"data= has a batch of type {type(batch).__name__} without tensors; give tensors, "
            "tuples that begin with one, dictionaries of them, or unpack="
        )


def _batches(data: Any) -> Iterable[Any]:
    if isinstance(data, str):
        return _named(data)
    if callable(getattr(data, "val_dataloader", None)):
        data = of_module(data, "val", type(data).__name__)
    if isinstance(data, torch.Tensor | np.ndarray | tuple | Mapping):
        return [data]
    if isinstance(data, list):
        return data
    if hasattr(data, "dataset") and hasattr(data, "collate_fn"):
        return islice(_loader(data), 1)
    if isinstance(data, IterableDataset):
        return islice(DataLoader(_twice_readable(data), batch_size=BATCH), 1)
    if is_indexed(data):
        return islice(open_loader(data).source, 1)
    kind = type(data).__name__
    if not isinstance(data, Iterable):
        raise UsageError(f"data= has the type {kind}, which holds no batches; {_TENSORS}")
    if hasattr(data, "__next__"):
        raise UsageError(f"data= is a {kind}, which can be read only once; {_TENSORS}")
    return islice(data, 1)


def _named(name: str) -> Iterable[Any]:
    """Load the first validation examples of a data set by name, as planescope trains on them."""
    called = call_loader(name, "val")
    if called is not None:
        return _batches(called)
    from planescope.data.batches import validation

    return islice(validation(name, batch_size=BATCH), 1)


def _loader(theirs: Any) -> DataLoader[Any]:
    """Return a loader of our own over the same data set.

    Theirs may draw, and give its examples away.
    """
    dataset = theirs.dataset
    sampler = getattr(theirs, "batch_sampler", None)
    size = theirs.batch_size or getattr(sampler, "batch_size", None)
    options: dict[str, Any] = {"batch_size": size, "collate_fn": theirs.collate_fn}
    if isinstance(dataset, IterableDataset):
        return DataLoader(_twice_readable(dataset), **options)
    in_order = isinstance(getattr(theirs, "sampler", None), SequentialSampler)
    generator = torch.Generator().manual_seed(0)
    return DataLoader(dataset, shuffle=not in_order, generator=generator, **options)


def _twice_readable(dataset: IterableDataset[Any]) -> IterableDataset[Any]:
    try:
        own = copy.deepcopy(dataset)
    except Exception:  # what cannot be copied, as a stream, raises what it likes
        own = dataset
    if own is dataset or hasattr(dataset, "__next__"):
        kind = type(dataset).__name__
        raise UsageError(f"data= loads from a {kind}, which can be read only once; {_TENSORS}")
    return own


@contextlib.contextmanager
def _unmoved(dataset: Any) -> Iterator[None]:
    """Leave the generators of Python, of NumPy, and those that a data set keeps, as they were."""
    pythons, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002
    kept = [(generator, _state(generator)) for generator in _generators(dataset, _DEPTH)]
    try:
        yield
    finally:
        random.setstate(pythons)
        np.random.set_state(numpys)  # noqa: NPY002
        for generator, state in kept:
            _put_back(generator, state)


def _generators(held: Any, depth: int) -> Iterator[Any]:
    if isinstance(
        held, torch.Generator | random.Random | np.random.Generator | np.random.RandomState
    ):
        yield held
    elif depth and isinstance(held, list | tuple):
        if len(held) <= 64:  # transforms; what is longer are examples
            for part in held:
                yield from _generators(part, depth - 1)
    elif depth and hasattr(held, "__dict__"):
        for part in list(vars(held).values()):
            yield from _generators(part, depth - 1)


def _state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator | np.random.RandomState):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    return generator.bit_generator.state


def _put_back(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator | np.random.RandomState):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.bit_generator.state = state
