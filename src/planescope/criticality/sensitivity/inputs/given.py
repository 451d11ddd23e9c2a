"""Inputs that a user hands over, with labels or without.

To import this is to import torch.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from planescope.criticality.options import InputOptions, ResetOptions
from planescope.criticality.resets.engine.answers import Judge, picked
from planescope.criticality.resets.engine.feed import Feed, feed_images, feed_loader
from planescope.criticality.sensitivity.inputs.rows import home_of, read_rows
from planescope.criticality.sensitivity.inputs.watched import Watched
from planescope.criticality.sensitivity.record import Method
from planescope.data.load import Files, Images, load
from planescope.data.loaders import Loader, call_loader, open_loader
from planescope.data.options import PLAIN, check_unprepared
from planescope.data.roles import Batch
from planescope.data.sets.sources import NAMES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from planescope.data.options import DataOptions
    from planescope.data.roles import Unpack

NO_CLASSES = (
    "the network's outputs are no classes: layers are ranked by the relative change of its output, "
    "and there is no loss"
)


@dataclass(eq=False)
class Given:
    """Inputs, ready to go through the network.

    Attributes
    ----------
    feed : Feed
    judge : Judge
        It has looked at the first batch.
    method : Method
    shape : tuple of int or None
        Of one input.
    assumed : bool
        Whether nobody told its size.
    sets : mapping of str to array of int
        Of synthetic inputs: which make up each set.
    notes : list of str
    watched : Watched or None
        Of inputs handed over: looks at them on the way.
    example : Batch or None
        The first batch, where it is at hand.
    """

    feed: Feed
    judge: Judge
    method: Method
    shape: tuple[int, ...] | None
    assumed: bool = False
    sets: Mapping[str, NDArray[np.intp]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    watched: Watched | None = None
    example: Batch | None = None

    @property
    def first(self) -> Batch:
        """Return the first batch, which is given again with the others."""
        return next(self.feed.on(torch.device("cpu"))) if self.example is None else self.example


def handed_over(
    data: Any,
    module: nn.Module,
    options: InputOptions,
    *,
    labelled: bool,
    judge: Judge,
    unpack: Unpack | None,
    data_path: str | os.PathLike[str] | None,
    data_options: DataOptions | None,
    resets: ResetOptions,
    network: str,
) -> Given:
    """Open what a user handed over; its labels, where there are any, count where `labelled`.

    Raises
    ------
    UsageError
        If the network does not take the inputs, or all of them are alike.
    CheckpointError
        If a file is missing or damaged.
    """
    device, _ = home_of(module)
    notes: list[str] = []
    classes = None
    if isinstance(data, str | os.PathLike) and str(data).endswith(".npy"):
        check_unprepared(data_options, str(data))
        rows, notes = read_rows(data, module)
        source = _opened(rows, data_path, data_options, resets, labelled=labelled)
        if isinstance(source, Loader):
            source.name = str(data)
    else:
        source = _opened(data, data_path, data_options, resets, labelled=labelled)
    if isinstance(source, Images | Files):
        if options.examples is not None:
            source = source.take(torch.arange(min(options.examples, len(source.labels))))
        feed = feed_images(source, module, judge, resets, device.type, network, labelled=labelled)
        if not labelled:
            judge = Judge(pick=judge.pick, task=judge.task)
            feed = _without_labels(feed, module, judge, device)
        classes = len(source.classes) or None
    else:
        if options.examples is not None:
            source = dataclasses.replace(
                source, source=_First(source.source, options.examples, source.name)
            )
            source.examples = None
        if not labelled:
            unpack = _inputs_alone(unpack)
        feed = feed_loader(source, module, judge, unpack, [device])
    judge.heed(module, network, classes)
    is_measured = labelled and judge.name is not None
    method = Method.MEASURED if is_measured else Method.UNLABELLED
    if not judge.is_softmax and not is_measured:
        notes.append(NO_CLASSES)
    watched = Watched(feed)
    first = watched.first(device)
    images = first.args[0] if first.args else None
    shape = tuple(images.shape[1:]) if isinstance(images, torch.Tensor) else None
    return Given(
        feed=dataclasses.replace(feed, on=watched.on), judge=judge, method=method, shape=shape,
        notes=notes, watched=watched, example=first,
    )  # fmt: skip


def _opened(
    data: Any,
    data_path: str | os.PathLike[str] | None,
    data_options: DataOptions | None,
    options: ResetOptions,
    *,
    labelled: bool,
) -> Images | Files | Loader:
    if isinstance(data, Images | Files):
        check_unprepared(data_options, data.name)
        return data
    data = of_folder(data)
    if isinstance(data, str):
        called = call_loader(data, options.split)
        if called is not None:
            check_unprepared(data_options, data)
            found = open_loader(called, split=options.split)
            found.name = data
            return found
    if isinstance(data, str):
        where = None if data_path is None else Path(data_path)
        wanted = data_options or PLAIN
        return load(data, split=options.split, path=where, options=wanted, labelled=labelled)
    check_unprepared(data_options, type(data).__name__)
    return open_loader(data, split=options.split)


def of_folder(data: Any, /) -> Any:
    """Return data, a path of a folder under the name that data in a folder have.

    A data set's own name comes before a folder of that name, as a study of it has.
    """
    is_path = isinstance(data, str) and data not in NAMES and Path(data).is_dir()
    if is_path or isinstance(data, os.PathLike):
        return f"folder:{os.fspath(data)}"
    return data


def _inputs_alone(unpack: Unpack | None) -> Any:
    """Return an `unpack` that gives no labels."""
    if unpack is None:
        return _without_label
    return lambda raw: (unpack(raw)[0], None)


def _without_label(raw: Any) -> tuple[Any, None]:
    if isinstance(raw, Mapping):
        return {k: v for k, v in raw.items() if k not in ("labels", "label")}, None
    if isinstance(raw, tuple | list) and len(raw) <= 2:
        return raw[0], None
    return raw, None


def _without_labels(feed: Feed, module: nn.Module, judge: Judge, device: torch.device) -> Feed:
    own = feed.on

    def on(where: torch.device) -> Iterator[Batch]:
        for batch in own(where):
            yield dataclasses.replace(batch, labels=None)

    first = next(on(device))
    with torch.inference_mode():
        judge.look_at(picked(module(*first.args, **first.kwargs), judge.pick), first)
    return dataclasses.replace(feed, on=on)


class _First:
    """The first examples of batches."""

    def __init__(self, batches: Any, examples: int, name: str) -> None:
        self._batches, self._examples, self._name = batches, examples, name

    def __iter__(self) -> Iterator[Any]:
        left = self._examples
        for raw in self._batches:
            size = _size_of(raw)
            yield raw if size <= left else _cut(raw, left)
            left -= size
            if left <= 0:
                return


def _size_of(raw: Any) -> int:
    if isinstance(raw, Mapping):
        return _size_of(next(iter(raw.values())))
    return _size_of(raw[0]) if isinstance(raw, tuple | list) else len(raw)


def _cut(raw: Any, size: int) -> Any:
    if isinstance(raw, Mapping):
        return {key: _cut(value, size) for key, value in raw.items()}
    if isinstance(raw, tuple | list):
        return type(raw)(_cut(value, size) for value in raw)
    return raw[:size]
