"""Inputs to run a network on: synthetic pictures, or the user's with labels or without.

To import this is to import torch.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from planescope.criticality.options import ResetOptions
from planescope.criticality.resets.engine.answers import Judge, picked
from planescope.criticality.resets.engine.devices import batch_size
from planescope.criticality.resets.engine.feed import Feed, feed_images, feed_loader
from planescope.criticality.sensitivity.record import Method
from planescope.criticality.synthetic import choose
from planescope.data.load import PLAIN, Files, Images, load
from planescope.data.loaders import Loader, call_loader, open_loader
from planescope.data.pictures import LEAST_SIDE, Bank
from planescope.data.roles import Batch
from planescope.files.bounds import check_bounds
from planescope.files.errors import CheckpointError, RunError, UsageError, one_line
from planescope.files.reading import size_of
from planescope.hyperplanes.layer import Kind, Layer
from planescope.networks.graph.file_graph import FileGraph

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from planescope.criticality.resets.engine.answers import Metric, Pick
    from planescope.data.load import DataOptions
    from planescope.data.roles import Unpack

# Sides of images to be tried where nobody tells one, the first that the network takes.
_SIDES = (32, 28, 64, 224, 96, 128, 227, 299)
# The largest array of inputs that is looked at.
_MOST_DIMENSIONS = 8
_NO_CLASSES = (
    "the network's outputs are no classes: layers are ranked by the relative change of its output, "
    "and there is no loss"
)


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """Options of the inputs, where the caller hands none over.

    Attributes
    ----------
    shape : tuple of int, optional
        Channels, height, width.
    mean, std : sequence of float
        What the inputs of the network have, a channel each; 0 and 1 where they are normalised.
    examples : int, optional
        Take the first so many of inputs handed over.
    seed : int
        Of synthetic pictures.
    """

    shape: tuple[int, ...] | None = None
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)
    examples: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.shape is not None and (len(self.shape) != 3 or min(self.shape) < 1):
            raise UsageError(
                f"input shape {','.join(map(str, self.shape))}: give channels, height and width"
            )
        check_bounds(self, {"examples": {"ge": 1}, "seed": {"ge": 0}})


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


def synthetic(
    module: nn.Module,
    layers: Sequence[Layer],
    options: InputOptions,
    pick: Pick | None,
    memory: int | None,
    /,
) -> Given:
    """Choose synthetic pictures for a network.

    Raises
    ------
    UsageError
        If the network takes no pictures, or gives all of them one answer.
    """
    device, dtype = _home(module)
    is_last = isinstance(module, FileGraph) and module.channels_last

    def turned(images: torch.Tensor) -> torch.Tensor:
        return images.permute(0, 2, 3, 1) if is_last else images

    def run(pictures: NDArray[Any]) -> torch.Tensor:
        with torch.inference_mode():
            output = module(
                turned(torch.from_numpy(np.ascontiguousarray(pictures)).to(device, dtype))
            )
        found: torch.Tensor = picked(output, pick)
        return found

    shape, assumed, output = _shape(run, module, layers, options)
    judge = Judge(pick=pick)
    bank = Bank(
        channels=shape[0], height=shape[1], width=shape[2], mean=options.mean, std=options.std,
        seed=options.seed,
    )  # fmt: skip
    judge.look_at(output, _unlabelled((output,), len(output)))
    chosen = choose(
        lambda pictures: judge.logits(run(pictures)).double().cpu().numpy(),
        bank,
        of_classes=judge.is_softmax,
    )
    images = torch.from_numpy(chosen.images)
    size = batch_size(module, turned(images[:1].to(device, dtype)), memory, device.type)

    def on(where: torch.device) -> Iterator[Batch]:
        for start in range(0, len(images), size):
            batch = turned(images[start : start + size].to(where, dtype))
            yield _unlabelled((batch,), len(batch))

    notes = []
    if not judge.is_softmax:
        notes.append(_NO_CLASSES)
    elif chosen.answers < judge.classes:
        notes.append(
            f"the network gives {chosen.answers} of its {judge.classes} classes to the synthetic "
            "inputs"
        )
    if assumed:
        notes.append(
            f"nobody told the size of the inputs: {'×'.join(map(str, shape))} was assumed; "
            "--input-shape C,H,W tells it"
        )
    name = f"synthetic pictures of {'×'.join(map(str, shape))}"
    feed = Feed(name, min(size, len(images)), len(images), on)
    return Given(
        feed=feed, judge=judge, method=Method.SYNTHETIC, shape=shape, assumed=assumed,
        sets=chosen.sets, notes=notes, example=next(on(device)),
    )  # fmt: skip


def _unlabelled(args: tuple[Any, ...], size: int) -> Batch:
    return Batch(args=args, kwargs={}, labels=None, raw=args, size=size)


def _home(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Return the device of a network and the dtype that it computes in."""
    held = next((p for p in module.parameters() if p.is_floating_point()), None)
    if held is None:
        return torch.device("cpu"), torch.float32
    return held.device, held.dtype


def _shape(
    run: Any, module: nn.Module, layers: Sequence[Layer], options: InputOptions
) -> tuple[tuple[int, int, int], bool, torch.Tensor]:
    """Size of the inputs, whether it is a guess, and what the network gives for two of them."""
    channels, sides = _channels(layers), _SIDES
    told = options.shape or _configured(module)
    if told is not None:
        wanted, assumed = [(int(told[0]), int(told[1]), int(told[2]))], False
    else:
        first = layers[0] if layers else None
        if first is not None and first.kind is Kind.LINEAR:
            flat = _of_flat(first.fan_in)
            wanted, assumed = ([flat] if flat else []), True
        else:
            wanted, assumed = [(channels, side, side) for side in sides], True
    reason = "its first layer is no convolution and no square picture has so many inputs"
    for shape in wanted:
        try:
            if min(shape[1:]) < LEAST_SIDE:
                raise ValueError(f"pictures have {LEAST_SIDE} pixels a side or more")
            output = run(np.zeros((2, *shape), dtype=np.float32))
        except RunError:
            raise
        except Exception as exc:  # forward is anybody's code, and takes one size alone
            reason = one_line(exc)
            continue
        return shape, assumed, output
    sizes = "×".join(map(str, wanted[0])) if len(wanted) == 1 else "of any usual size"
    raise UsageError(
        f"the network takes no pictures {sizes} ({reason}); give --input-shape C,H,W, or inputs of "
        "its own by --inputs"
    )


def _channels(layers: Sequence[Layer]) -> int:
    first = next((layer for layer in layers if layer.kind is not Kind.LINEAR), None)
    if first is None:
        return 3
    return first.weight.shape[1] * (first.groups or 1)


def _configured(module: nn.Module) -> tuple[int, int, int] | None:
    """Return what the graph of a file, or timm's or torchvision's own configuration says."""
    if isinstance(module, FileGraph) and module.picture_shape is not None:
        return module.picture_shape
    for name in ("pretrained_cfg", "default_cfg"):
        config = getattr(module, name, None)
        size = config.get("input_size") if isinstance(config, Mapping) else None
        if size is not None and len(size) == 3:
            return int(size[0]), int(size[1]), int(size[2])
    if type(module).__module__.startswith("torchvision.models"):
        return 3, 224, 224
    return None


def _of_flat(inputs: int) -> tuple[int, int, int] | None:
    """The square picture of 3 channels or 1 with so many numbers."""
    for channels in (3, 1):
        side = math.isqrt(inputs // channels)
        if channels * side * side == inputs:
            return channels, side, side
    return None


def handed_over(
    data: Any,
    module: nn.Module,
    options: InputOptions,
    *,
    labelled: bool,
    metric: Metric | None,
    pick: Pick | None,
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
    judge = Judge(metric=metric, pick=pick)
    device, _ = _home(module)
    notes: list[str] = []
    if isinstance(data, str | os.PathLike) and str(data).endswith(".npy"):
        rows, notes = read_rows(data, module)
        source = _opened(rows, data_path, data_options, resets)
        if isinstance(source, Loader):
            source.name = str(data)
    else:
        source = _opened(data, data_path, data_options, resets)
    if isinstance(source, Images | Files):
        if options.examples is not None:
            source = source.take(torch.arange(min(options.examples, len(source.labels))))
        feed = feed_images(source, module, judge, resets, device.type, network, labelled=labelled)
        if not labelled:
            judge = Judge(pick=pick)
        feed = feed if labelled else _without_labels(feed, module, judge, device)
    else:
        if options.examples is not None:
            source = dataclasses.replace(
                source, source=_First(source.source, options.examples, source.name)
            )
            source.examples = None
        if not labelled:
            unpack = _inputs_alone(unpack)
        feed = feed_loader(source, module, judge, unpack, [device])
    is_measured = labelled and judge.name is not None
    method = Method.MEASURED if is_measured else Method.UNLABELLED
    if not judge.is_softmax and not is_measured:
        notes.append(_NO_CLASSES)
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
) -> Images | Files | Loader:
    if isinstance(data, Images | Files):
        return data
    if isinstance(data, os.PathLike) or (isinstance(data, str) and Path(data).is_dir()):
        data = f"folder:{os.fspath(data)}"
    if isinstance(data, str):
        called = call_loader(data, options.split)
        if called is not None:
            found = open_loader(called, split=options.split)
            found.name = data
            return found
    if isinstance(data, str):
        where = None if data_path is None else Path(data_path)
        return load(data, split=options.split, path=where, options=data_options or PLAIN)
    return open_loader(data, split=options.split)


def read_rows(path: str | os.PathLike[str], module: nn.Module, /) -> tuple[torch.Tensor, list[str]]:
    """Read a NumPy file of inputs for a network, and say where that computes in another dtype.

    Raises
    ------
    CheckpointError, UsageError
        As `read_array`.
    """
    array, (_, dtype) = read_array(path), _home(module)
    own = str(dtype).removeprefix("torch.")
    is_own = str(array.dtype) == own
    notes = [] if is_own else [f"inputs are {array.dtype}, cast to the network's {own}"]
    return torch.from_numpy(array).to(dtype), notes


def read_array(path: str | os.PathLike[str], /) -> NDArray[Any]:
    """Read a NumPy file of inputs, N × one input, floats of any width; nothing is unpickled.

    Raises
    ------
    CheckpointError
        If it is missing or damaged.
    UsageError
        If it holds no floats, or no inputs.
    """
    size_of(Path(path))
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as exc:
        raise CheckpointError(f"{path}: cannot be read as a NumPy file ({one_line(exc)})") from exc
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        kind = getattr(array, "dtype", type(array).__name__)
        raise UsageError(f"{path}: holds {kind}, not floats; scale them first")
    if not 2 <= array.ndim <= _MOST_DIMENSIONS or 0 in array.shape:
        raise UsageError(
            f"{path}: has shape {'×'.join(map(str, array.shape)) or 'of a number'}; give N × one "
            "input"
        )
    if array.dtype.itemsize > 8 or not array.dtype.isnative:
        array = array.astype(np.float64)
    return np.array(array)


def _inputs_alone(unpack: Unpack | None) -> Any:
    """An `unpack` that gives no labels."""
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


class Alike:
    """Tells of inputs that go by whether all are alike, example by example."""

    def __init__(self) -> None:
        self._one: torch.Tensor | None = None
        self._are, self._examples = True, 0

    def look_at(self, batch: Batch) -> None:
        """Hold the first input of a batch, where it has a row an example, against those before."""
        self._examples += batch.size
        rows = batch.args[0] if batch.args else None
        if not self._are or not isinstance(rows, torch.Tensor) or len(rows) != batch.size:
            self._are = False
            return
        if self._one is None:
            self._one = rows[0].clone()
        self._are = rows.shape[1:] == self._one.shape and bool((rows == self._one).all())

    def refuse(self, name: str) -> None:
        """Refuse inputs that were all alike.

        Raises
        ------
        UsageError
            If they were, and more than one.
        """
        if self._are and self._examples > 1:
            raise UsageError(f"{name}: all inputs are alike, which tell nothing of layers")


def check_finite(batch: Batch, name: str, /) -> None:
    """Refuse inputs that hold a number which is none.

    Raises
    ------
    UsageError
        If one does.
    """
    for value in (*batch.args, *batch.kwargs.values()):
        is_number = isinstance(value, torch.Tensor) and value.is_floating_point()
        if is_number and not bool(value.isfinite().all()):
            raise UsageError(f"{name}: an input holds NaN or an infinity; leave it out")


class Watched:
    """Batches of a feed as they come, looked at on the way: all are numbers, and not all alike."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._batches: Iterator[Batch] | None = None
        self.seen = Alike()

    def first(self, device: torch.device) -> Batch:
        """Return the first batch, which is given again by `on`."""
        batches = self._feed.on(device)
        batch = next(batches)
        self._batches = itertools.chain([batch], batches)
        return batch

    def on(self, device: torch.device) -> Iterator[Batch]:
        """Give all batches; once, or as often as the feed does."""
        batches, self._batches = self._batches or self._feed.on(device), None
        self.seen = Alike()
        for batch in batches:
            check_finite(batch, self._feed.name)
            self.seen.look_at(batch)
            yield batch


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
