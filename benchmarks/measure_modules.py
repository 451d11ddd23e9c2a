"""``ps.measure(module)`` against one pass over the same weights, as modules and layers grow."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from benchmarks.processes import machine


def _seconds(call: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    import torch

    import planescope as ps

    def chain(layers: int) -> torch.nn.Module:
        convolutions = (torch.nn.Conv2d(16, 16, 3) for _ in range(layers))
        return torch.nn.Sequential(*(m for conv in convolutions for m in (conv, torch.nn.ReLU())))

    def floor(module: torch.nn.Module) -> list[float]:
        weights = (m.weight.detach().flatten(1) for m in module if hasattr(m, "weight"))
        return [float(w.double().sum(1).mean() + w.square().sum(1).mean()) for w in weights]

    print(f"measure: live modules ({machine()}, torch {torch.__version__})")
    print(f"{'':32} {'planescope':>10} {'one pass':>10} {'ratio':>6} {'a layer':>9}")
    for layers in (250, 500, 1000, 2000):
        module = chain(layers)
        ours, bare = _seconds(lambda: ps.measure(module), 3), _seconds(lambda: floor(module), 3)
        title = f"{layers} layers of 2,304 weights"
        print(
            f"{title:32} {ours:9.3f}s {bare:9.3f}s {ours / bare:6.1f} {ours / layers * 1e3:7.3f}ms"
        )
    for mebibytes in (256, 512, 1024, 2048):
        filters = mebibytes * 2**20 // (4 * 9 * 4096)
        with torch.device("meta"):
            conv = torch.nn.Conv2d(4096, filters, 3)
        conv.to_empty(device="cpu")
        torch.nn.init.constant_(conv.weight, 0.5)
        torch.nn.init.zeros_(conv.bias)
        module = torch.nn.Sequential(conv)
        ours, bare = _seconds(lambda: ps.measure(module), 3), _seconds(lambda: floor(module), 3)
        title, gibibytes = f"one layer of {mebibytes} MiB", mebibytes / 1024
        print(
            f"{title:32} {ours:9.3f}s {bare:9.3f}s {ours / bare:6.1f} {ours / gibibytes:6.3f}s/GiB"
        )
