"""Synthetic pictures for a network, of a size that it takes.

To import this is to import torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from planescope.criticality.options import InputOptions
from planescope.criticality.resets.engine.answers import Judge, picked
from planescope.criticality.resets.engine.devices import batch_size
from planescope.criticality.resets.engine.feed import Feed
from planescope.criticality.sensitivity.inputs.given import NO_CLASSES, Given
from planescope.criticality.sensitivity.inputs.rows import home_of
from planescope.criticality.sensitivity.record import Method
from planescope.criticality.synthetic import choose
from planescope.data.pictures import LEAST_SIDE, Bank
from planescope.data.roles import Batch
from planescope.files.errors import RunError, UsageError, one_line
from planescope.hyperplanes.layer import Kind, Layer
from planescope.networks.graph.file_graph import FileGraph

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Sides of images to be tried where nobody tells one, the first that the network takes.
_SIDES = (32, 28, 64, 224, 96, 128, 227, 299)


def synthetic(
    module: nn.Module,
    layers: Sequence[Layer],
    options: InputOptions,
    judge: Judge,
    memory: int | None,
    /,
) -> Given:
    """Choose synthetic pictures for a network.

    Raises
    ------
    UsageError
        If the network takes no pictures, or gives all of them one answer.
    """
    device, dtype = home_of(module)
    is_last = isinstance(module, FileGraph) and module.channels_last

    def turned(images: torch.Tensor) -> torch.Tensor:
        return images.permute(0, 2, 3, 1) if is_last else images

    def run(pictures: NDArray[Any]) -> torch.Tensor:
        with torch.inference_mode():
            output = module(
                turned(torch.from_numpy(np.ascontiguousarray(pictures)).to(device, dtype))
            )
        found: torch.Tensor = picked(output, judge.pick)
        return found

    shape, assumed, output = _shape(run, module, layers, options)
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
        notes.append(NO_CLASSES)
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


def _shape(
    run: Any, module: nn.Module, layers: Sequence[Layer], options: InputOptions
) -> tuple[tuple[int, int, int], bool, torch.Tensor]:
    """Find the size of the inputs, whether it is a guess, and what two of them give."""
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
    """Return the square picture of 3 channels or 1 with so many numbers."""
    for channels in (3, 1):
        side = math.isqrt(inputs // channels)
        if channels * side * side == inputs:
            return channels, side, side
    return None
