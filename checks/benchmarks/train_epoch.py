"""An epoch of `planescope.training`, against the same number of steps on one prepared batch.

And on a CPU, each in a process of its own, against an epoch as it was before: float32 in torch's
own order of memory, and large blocks of it given back at each step.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checks.benchmarks.processes import machine

if TYPE_CHECKING:
    import torch
    from torch import nn

    from planescope.training.config import RunConfig

BOUND = 1.05
ROUNDS = 7
STEPS = 100
# Of the epochs that are compared with those of before.
FEW_STEPS, FEW_ROUNDS = 20, 3


def cifar_like(examples: int = 64 * STEPS) -> tuple[Any, Any]:
    """Noise of CIFAR's size; a config names this function as its data."""
    import numpy as np

    rng = np.random.default_rng(0)

    def part(count: int) -> tuple[Any, Any]:
        images = rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
        return images, np.arange(count) % 10

    return part(examples), part(10)


def cifar_like_large() -> tuple[Any, Any]:
    """The same for large batches."""
    return cifar_like(512 * STEPS)


def cifar_like_small() -> tuple[Any, Any]:
    """The same for large networks on a CPU."""
    return cifar_like(64 * FEW_STEPS)


def lenet(in_channels: int, classes: int, **_: Any) -> nn.Module:
    """Build LeNet as somebody's own network, whose order of memory is left as it is."""
    from planescope.networks.build import build

    return build("lenet", in_channels=in_channels, classes=classes, seed=0)


def half_vgg11(in_channels: int, classes: int, **_: Any) -> nn.Module:
    """Build VGG11 at half its width likewise."""
    from planescope.networks.build import build

    return build("vgg11", in_channels=in_channels, classes=classes, width=0.5, seed=0)


# What was done before, and what a precision does now; least times faster that each is to be.
OWN = {"lenet": ("lenet", 1.0), "half_vgg11": ("vgg11", 0.5)}
FASTER = {("lenet", "auto"): 1.3, ("half_vgg11", "32-true"): 1.2, ("half_vgg11", "auto"): 2.0}


def print_epoch(name: str, how: str) -> None:
    """Print an epoch's seconds of the clock and of the processor, the first epoch left out."""
    from planescope.training.config import RunConfig
    from planescope.training.loop import train
    from planescope.training.memory import keep_memory

    network, width = OWN[name]
    config = RunConfig(
        data="checks.benchmarks.train_epoch:cifar_like_small", batch_size=64, epochs=3,
        learning_rate=1e-4, snapshots_until=0, snapshots_every=1000, accelerator="cpu", threads=1,
        network=f"checks.benchmarks.train_epoch:{name}" if how == "before" else network,
        width=1.0 if how == "before" else width,
        precision="32-true" if how == "before" else how,
    )  # fmt: skip
    if how != "before":
        keep_memory()
    began: list[tuple[float, float]] = []

    def progress(done: int, _total: int, _text: str) -> None:
        if done % FEW_STEPS == 1:
            began.append((time.perf_counter(), time.process_time()))

    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder) / "run", progress=progress)
    wall, cpu = (end - start for start, end in zip(began[1], began[2], strict=True))
    print(wall, cpu)


def _print_before_and_now() -> None:
    code = (
        "import sys; from checks.benchmarks.train_epoch import print_epoch as p; p(*sys.argv[1:])"
    )
    print(f"an epoch of {FEW_STEPS} steps, times faster than before: clock, processor, bound")
    for name in OWN:
        runs: dict[str, list[tuple[float, float]]] = {}
        for _ in range(FEW_ROUNDS):
            for how in ("before", "32-true", "auto"):
                command = [sys.executable, "-c", code, name, how]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                wall, cpu = map(float, done.stdout.split()[-2:])
                runs.setdefault(how, []).append((wall, cpu))
        for how in ("32-true", "auto"):
            pairs = list(zip(runs["before"], runs[how], strict=True))
            wall, cpu = (statistics.median(a[i] / b[i] for a, b in pairs) for i in (0, 1))
            bound = FASTER.get((name, how))
            print(f"{name:20} {how:>8} {wall:6.2f} {cpu:6.2f} {bound or '':>6}", flush=True)


def _ratios(config: RunConfig) -> tuple[list[float], list[float]]:
    """Seconds of each epoch and of as many steps without one, in turn, the first left out."""
    import torch

    from planescope.training.loop import train

    bare = _BareSteps(config)
    epochs: list[float] = []
    steps: list[float] = []
    began = 0.0

    def progress(done: int, _total: int, _text: str) -> None:
        nonlocal began
        batch = (done - 1) % STEPS
        if batch not in (0, STEPS - 1):
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if batch:
            epochs.append(now - began)
            steps.append(bare.run(STEPS - 1))
        # From the end of the first step: what an epoch begins with does not grow with its length.
        began = now

    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder) / "run", progress=progress)
    return epochs[1:], steps[1:]


class _BareSteps:
    """The loop that nobody can do without, on a batch that is there already."""

    def __init__(self, config: RunConfig) -> None:
        import torch

        from planescope.networks.build import build
        from planescope.training.optimisers import optimiser

        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._half = config.precision == "bf16-mixed"
        network = build(config.network, seed=0)
        self._network = network.to(self._device, memory_format=torch.channels_last)
        self._optimiser = optimiser(config, self._network)
        generator = torch.Generator().manual_seed(0)
        shape = (config.batch_size, 3, 32, 32)
        self._inputs = torch.randn(shape, generator=generator).to(self._device)
        self._labels = torch.arange(config.batch_size, device=self._device) % 10

    def run(self, steps: int) -> float:
        import torch

        self._network.train()
        began = time.perf_counter()
        with torch.random.fork_rng():
            for _ in range(steps):
                self._optimiser.zero_grad()
                self._loss().backward()
                self._optimiser.step()
        if self._device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def _loss(self) -> torch.Tensor:
        import torch
        from torch.nn.functional import cross_entropy

        with torch.autocast(self._device, torch.bfloat16, enabled=self._half):
            return cross_entropy(self._network(self._inputs), self._labels)


def main() -> None:
    import torch

    from planescope.training.config import RunConfig

    base = RunConfig(
        data="checks.benchmarks.train_epoch:cifar_like",
        augment=True,
        epochs=ROUNDS + 1,
        learning_rate=1e-4,
        snapshots_until=0,
        snapshots_every=1000,
    )
    cases = {"LeNet, batches of 64": base}
    if torch.cuda.is_available():
        large = "checks.benchmarks.train_epoch:cifar_like_large"
        cases["VGG19, bf16, batches of 512"] = base.but(
            {"network": "vgg19", "precision": "bf16-mixed", "batch_size": 512, "data": large}
        )
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"train: an epoch of {STEPS} steps ({machine()}, torch {torch.__version__}, {device})")
    print(f"{'':32} {'epoch':>8} {'steps':>8} {'ratio':>6} {'range':>11} {'bound':>6}")
    for title, config in cases.items():
        epochs, steps = _ratios(config)
        ratios = [ours / bare for ours, bare in zip(epochs, steps, strict=True)]
        print(
            f"{title:32} {statistics.median(epochs):7.3f}s {statistics.median(steps):7.3f}s "
            f"{statistics.median(ratios):6.2f} {min(ratios):5.2f}-{max(ratios):.2f} {BOUND:6.2f}"
        )
    if not torch.cuda.is_available():
        _print_before_and_now()
