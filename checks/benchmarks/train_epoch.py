"""An epoch of `planescope.training`, against the same number of steps on one prepared batch."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checks.benchmarks.processes import machine

if TYPE_CHECKING:
    import torch

    from planescope.training.config import RunConfig

BOUND = 1.10
ROUNDS = 7
STEPS = 100


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
