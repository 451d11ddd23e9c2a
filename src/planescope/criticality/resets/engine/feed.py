"""Batches that cells are evaluated on: of a data set of planescope's, or of the user's.

To import this is to import torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from planescope.criticality.resets.engine.answers import picked
from planescope.criticality.resets.engine.devices import batch_size
from planescope.data.batches import batches
from planescope.data.load import Images
from planescope.data.loaders import Loader
from planescope.data.roles import Batch, moved
from planescope.files.errors import UsageError
from planescope.networks.answer import answer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from planescope.criticality.options import ResetOptions
    from planescope.criticality.resets.engine.answers import Judge
    from planescope.data.load import Files
    from planescope.data.roles import Unpack

    Data = Images | Files


@dataclass(eq=False)
class Feed:
    """Batches, and what is known of them beforehand.

    Attributes
    ----------
    name : str
        For tables.
    batch : int
        Examples of the first one.
    examples : int or None
        In all, where that is known.
    on : callable
        Gives all batches on a device, for each device once.
    preprocessing : str or None
        What is done to the inputs; None where they go to the network as they came.
    split : str or None
        ``"given"`` for what nobody says of whether it was trained on, ``"synthetic"`` for pictures
        that nobody was trained on.
    notes : list of str
    sets : mapping of str to array of int
        Of synthetic pictures: which make up each set.
    """

    name: str
    batch: int
    examples: int | None
    on: Callable[[torch.device], Iterator[Batch]]
    preprocessing: str | None = None
    split: str | None = None
    notes: list[str] = field(default_factory=list)
    sets: Mapping[str, NDArray[np.intp]] = field(default_factory=dict)


def feed_images(
    data: Data,
    module: nn.Module,
    judge: Judge,
    options: ResetOptions,
    kind: str,
    network: str,
    *,
    labelled: bool = True,
) -> Feed:
    """Feed a data set of planescope's, prepared as `planescope.data.load.load` says.

    Raises
    ------
    UsageError
        If the network does not take its images or, where `labelled`, has other classes.
    """
    _check_fit(module, data, network, judge, labelled=labelled)
    example = torch.zeros(1, *data.input_shape, device=_device_of(module))
    size = batch_size(module, example, options.memory, kind)
    judge.counts = data.labels.bincount(minlength=len(data.classes))

    def on(device: torch.device) -> Iterator[Batch]:
        for images, labels in batches(data, batch_size=size, device=device):
            raw = (images, labels)
            yield Batch(args=(images,), kwargs={}, labels=labels, raw=raw, size=len(labels))

    return Feed(
        data.name, min(size, len(data.labels)), len(data.labels), on, preprocessing_of(data)
    )


def preprocessing_of(data: Data, /) -> str:
    """Say what is done to the images of a data set before they enter a network."""
    mean, std = (" ".join(f"{x:.4g}" for x in values) for values in (data.mean, data.std))
    plain = not any(data.mean) and all(s == 1 for s in data.std)
    scaled = "scaled to [0, 1]" + ("" if plain else f", less mean {mean}, by std {std}")
    if isinstance(data, Images):
        size = "" if data.resize == "native" else f"; size: {data.resize}"
        return f"{scaled}{size}"
    return f"{scaled}; shorter side {data.size}, the middle {data.crop}×{data.crop} pixels"


def feed_loader(
    loader: Loader,
    module: nn.Module,
    judge: Judge,
    unpack: Unpack | None,
    devices: Sequence[torch.device],
) -> Feed:
    """Feed batches of the user's, which are read once.

    Raises
    ------
    UsageError
        If the network does not take them, or outputs and labels do not go together.
    """
    read = _checked(loader.batches(module, _device_of(module), unpack), judge)
    first = next(read)
    _look_at(module, first, judge, loader.name)
    judge.check(first)
    every = itertools.chain([first], read)
    if len(devices) > 1:  # several read the same ones, each at its pace
        kept = list(every)

        def on(device: torch.device) -> Iterator[Batch]:
            for batch in kept:
                args, kwargs, labels, raw = moved(
                    (batch.args, batch.kwargs, batch.labels, batch.raw), device
                )
                yield replace(batch, args=args, kwargs=kwargs, labels=labels, raw=raw)
    else:

        def on(device: torch.device) -> Iterator[Batch]:  # noqa: ARG001  it is the module's
            return iter(every)

    split = None if loader.has_splits else "given"
    return Feed(loader.name, first.size, loader.examples, on, split=split, notes=loader.notes)


def _checked(batches: Iterator[Batch], judge: Judge) -> Iterator[Batch]:
    for number, batch in enumerate(batches):
        if number:  # the first was looked at by itself
            judge.check(batch)
        yield batch


def _device_of(module: nn.Module) -> torch.device:
    held = itertools.chain(module.parameters(), module.buffers())
    return next((tensor.device for tensor in held), torch.device("cpu"))


def _look_at(module: nn.Module, batch: Batch, judge: Judge, name: str) -> None:
    output = answer(
        module,
        batch.args,
        batch.kwargs,
        name=f"{name}: the network",
        given=f"its batches as they come{_of_shape(batch)}",
    )
    judge.look_at(picked(output, judge.pick), batch)


def _of_shape(batch: Batch) -> str:
    rows = batch.args[0] if batch.args else None
    if not isinstance(rows, torch.Tensor) or rows.ndim < 2:
        return ""
    return f", inputs of {'×'.join(map(str, rows.shape[1:]))}"


def _check_fit(
    module: nn.Module, data: Data, network: str, judge: Judge, *, labelled: bool
) -> None:
    """Send an empty image through the network."""
    shape, classes = data.input_shape, len(data.classes)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and tensor.dtype is not torch.float32:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UsageError(
                f"{network} holds {name} as {kind}, and {data.name} is prepared in float32; give "
                "module.float()"
            )
    example = torch.zeros(1, *shape, device=_device_of(module))
    images = f"the images of {data.name}, {'×'.join(map(str, shape))}"
    out = answer(module, (example,), name=network, given=images)
    chosen = picked(out, judge.pick)
    found = tuple(getattr(chosen, "shape", ()))
    if labelled and found != (1, classes) and judge.metric is None:
        raise UsageError(
            f"{data.name} has {classes} classes, but {network} gives an output of shape {found} "
            f"for an image, not (1, {classes}); give the data that it was trained on"
        )
    labels = torch.zeros(1, dtype=torch.int64, device=example.device) if labelled else None
    raw = (example, labels)
    judge.look_at(chosen, Batch(args=(example,), kwargs={}, labels=labels, raw=raw, size=1))
