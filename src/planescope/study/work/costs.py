"""The cost of a run before it is made: its operations, divided by how many a device does.

Convolutions and linear layers alone are counted, a multiplication and an addition for each weight
at each position; a training step costs three times what the forward pass does. Runs that were made
tell better: a study scales these estimates by what its runs until now took.
Its price is this module, and that it knows the paper's networks alone: torch counts those of any,
and takes two seconds to import before `--dry-run` says a word.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planescope.networks.operations import (
    AveragePool,
    Convolution,
    Flatten,
    Linear,
    MaxPool,
)
from planescope.networks.paper import NETWORKS, smallest_image

if TYPE_CHECKING:
    from planescope.study.spec import Spec


@dataclass(frozen=True)
class Device:
    """Operations that it does a second on such networks, and seconds that any step takes."""

    name: str
    flops: float
    step: float
    start: float


# One thread: LeNet, VGG11 and MLP on digits, on a shared x86-64 machine of 2 cores. The GPU's are
# assumed: half of the float32 peak of an A100 (19.5 TFLOP/s), some sixty kernels a step.
THREAD = Device("one thread of a CPU at 40 GFLOP/s", 40e9, 3e-3, 2.0)
GPU = Device("one GPU at 10 TFLOP/s, half an A100's peak in float32", 10e12, 3e-3, 10.0)


@dataclass(frozen=True)
class _Size:
    channels: int
    pixels: int
    train: int
    val: int
    classes: int


_SIZES = {
    "digits": _Size(1, 28, 4000, 1000, 10),
    "mnist": _Size(1, 28, 60_000, 10_000, 10),
    "fashion-mnist": _Size(1, 28, 60_000, 10_000, 10),
    "cifar10": _Size(3, 32, 50_000, 10_000, 10),
    "cifar100": _Size(3, 32, 50_000, 10_000, 100),
    "svhn": _Size(3, 32, 73_257, 26_032, 10),
    "imagenet": _Size(3, 224, 1_281_167, 50_000, 1000),
}


def seconds_of(
    spec: Spec, device: Device = THREAD, /, *, steps: Collection[str] | None = None
) -> float | None:
    """Return the seconds that a run takes on a device; None of networks and data not known here.

    Parameters
    ----------
    steps : collection of str, optional
        What is still to be made of it; by default all that the study makes.
    """
    wanted = spec.make if steps is None else steps
    size, network = _SIZES.get(spec.get("data").removeprefix("noise:")), spec.get("network")
    if size is None or network not in NETWORKS:
        return None
    share = (spec.get("classes") or size.classes) / size.classes
    train, val = size.train * share, size.val * share
    if spec.get("validation") != "given":
        val = train * spec.get("validation_share")
        train -= val
    train = spec.get("examples") or train
    forward = forward_flops(
        network, channels=size.channels, pixels=_pixels(spec, size), width=spec.get("width"),
        classes=spec.get("classes") or size.classes,
    )  # fmt: skip
    seconds, images = device.start, 0.0
    if "train" in wanted:
        seconds += spec.get("epochs") * train / spec.get("batch_size") * device.step
        images += spec.get("epochs") * (3 * train + val)
    if "reset" in wanted:
        reset = dict(spec.reset)
        evaluated = val if reset["split"] == "val" else train
        images += _resets(spec) * min(evaluated, reset["subset"] or evaluated)
    return float(seconds + images * forward / device.flops)


def _resets(spec: Spec) -> float:
    """Return the passes through the whole network that its resets come to.

    Half of it for each, on average.
    """
    operations = NETWORKS[spec.get("network")].operations
    kinds = [type(operation) for operation in operations]
    layers = kinds.count(Convolution) or kinds.count(Linear)
    reset = dict(spec.reset)
    kept, epochs = spec.get("snapshots_until"), spec.get("epochs")
    snapshots = 1 + min(kept, epochs) + max(0, epochs - kept) // spec.get("snapshots_every")
    if reset["snapshots"] is not None:
        snapshots = min(snapshots, len(reset["snapshots"]))
    return float((snapshots + reset["draws"]) * layers / 2)


def _pixels(spec: Spec, size: _Size) -> int:
    match spec.get("resize"):
        case "224" | "112-in-224":
            return 224
        case "pad-32":
            return 32
    needed = smallest_image(spec.get("network"))
    return 32 if size.pixels < needed <= 32 else size.pixels


def forward_flops(
    network: str, /, *, channels: int, pixels: int, width: float = 1.0, classes: int
) -> float:
    """Return the operations of one image's way through one of the paper's networks."""
    total, size, inputs = 0, pixels, channels
    for operation in NETWORKS[network].operations:
        match operation:
            case Convolution(filters=filters, kernel=kernel, stride=stride, padding=padding):
                size = (size + 2 * padding - kernel) // stride + 1
                outputs = max(1, round(filters * width))
                total += inputs * outputs * kernel**2 * size**2
                inputs = outputs
            case MaxPool(kernel=kernel, stride=stride):
                size = (size - kernel) // stride + 1
            case AveragePool(size=size):
                pass
            case Flatten():
                inputs *= size**2
            case Linear(filters=filters):
                outputs = classes if filters is None else max(1, round(filters * width))
                total += inputs * outputs
                inputs = outputs
    return 2.0 * total


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Hours of one device for some runs, and how many of them nothing is known of."""

    device: str
    hours: float
    runs: int
    unknown: int


def estimate(
    specs: Iterable[Spec], device: Device, /, left: Mapping[str, Collection[str]] | None = None
) -> Estimate:
    """Estimate the time of runs together on one device.

    Parameters
    ----------
    left : mapping of name to collection of str, optional
        What is still to be made of a run; by default all that the study makes.
    """
    steps = left or {}
    seconds = [seconds_of(spec, device, steps=steps.get(spec.name)) for spec in specs]
    known = [s for s in seconds if s is not None]
    return Estimate(
        device=device.name,
        hours=sum(known) / 3600,
        runs=len(seconds),
        unknown=len(seconds) - len(known),
    )
