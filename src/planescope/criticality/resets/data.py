"""The data that a network is evaluated on, as they are gone through."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planescope.criticality.options import InputOptions, ResetOptions
from planescope.data.load import Files, Images, load
from planescope.data.options import PLAIN, DataOptions, Resize, check_unprepared
from planescope.files.errors import UsageError
from planescope.training.folder.snapshots import input_shape_of

if TYPE_CHECKING:
    from torch import nn

    from planescope.data.loaders import Loader
    from planescope.training.run import Run


class Own:
    """The mark of a run's own validation examples."""

    def __repr__(self) -> str:
        return "the run's own"


def open_data(
    data: Any,
    data_path: str | os.PathLike[str] | None,
    data_options: DataOptions | None,
    network: str | nn.Module | None,
    options: ResetOptions,
    run: Run | None,
) -> Images | Files | Loader | None:
    """Return the data as they are gone through; None for a run's own."""
    from planescope.criticality.resets.weights import smallest_of
    from planescope.data.loaders import call_loader, open_loader

    if isinstance(data, Own):
        if run is not None and run.tracked is not None and run.named_data is not None:
            own = run.named_data
            return open_data(own, data_path, data_options, network, options, run)
        if run is None or run.tracked is not None:
            who = "" if run is None else f"{run.path}: a Tracker followed it and knows no data; "
            raise UsageError(
                f"{who}give data= (--data), what the network is evaluated on: a DataLoader, a "
                "Dataset, tensors, the name of a data set, or package.module:callable"
            )
        return None
    if isinstance(data, Images | Files):
        return data
    if isinstance(data, str):
        called = call_loader(data, options.split)
        if called is not None:
            given = open_loader(
                called, split=options.split, subset=options.subset, seed=options.seed
            )
            given.name = data
            check_unprepared(data_options, data)
            return given
    if isinstance(data, str):
        name = run.named_network if run is not None else network
        wanted = data_options or PLAIN
        where = None if data_path is None else Path(data_path)
        found = load(data, split=options.split, path=where, options=wanted)
        least = 1 if name is None else smallest_of(name)
        if data_options is None and min(found.input_shape[1:]) < least <= 32:
            padded = dataclasses.replace(wanted, resize=Resize.PAD_32)
            found = load(data, split=options.split, path=where, options=padded)
        return found
    check_unprepared(data_options, type(data).__name__)
    return open_loader(data, split=options.split, subset=options.subset, seed=options.seed)


def synthetic_inputs(
    model: Any,
    run: Run | None,
    shape: Sequence[int] | None,
    data_options: DataOptions | None,
    options: ResetOptions,
) -> InputOptions:
    """Return what is told of the synthetic pictures that a network is to be evaluated on."""
    files = () if run is None else tuple(run.snapshots.values())
    named = model if run is None and isinstance(model, str | os.PathLike) else None
    path = files[-1] if files else named
    if shape is None and path is not None and Path(path).is_file():
        shape = input_shape_of(path)
    told = data_options or PLAIN
    if dataclasses.replace(told, mean=(), std=()) != dataclasses.replace(PLAIN, mean=(), std=()):
        raise UsageError("of synthetic pictures mean and std can be told, and input_shape")
    for value, what in ((options.subset, "a subset"), (options.tolerance, "a tolerance")):
        if value is not None:
            raise UsageError(f"{what} is of examples; synthetic pictures are chosen as they are")
    return InputOptions(
        shape=None if shape is None else tuple(shape),
        mean=told.mean or (0.0,),
        std=told.std or (1.0,),
        seed=options.seed,
    )
