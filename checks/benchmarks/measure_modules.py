"""``ps.measure(module)`` against one pass over the same weights, as modules and layers grow."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

import planescope as ps
from checks.benchmarks.processes import machine


def _seconds(call: Callable[[], object], repeats: int = 3) -> float:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _chain(layers: int) -> torch.nn.Module:
    convolutions = (torch.nn.Conv2d(16, 16, 3) for _ in range(layers))
    return torch.nn.Sequential(*(m for conv in convolutions for m in (conv, torch.nn.ReLU())))


def _one_layer(mebibytes: int) -> torch.nn.Module:
    with torch.device("meta"):
        conv = torch.nn.Conv2d(4096, mebibytes * 2**20 // (4 * 9 * 4096), 3)
    conv.to_empty(device="cpu")
    torch.nn.init.constant_(conv.weight, 0.5)
    torch.nn.init.zeros_(conv.bias)
    return torch.nn.Sequential(conv)


def _one_pass(module: torch.nn.Module) -> list[float]:
    weights = (m.weight.detach().flatten(1) for m in module if hasattr(m, "weight"))
    return [float(w.double().sum(1).mean() + w.square().sum(1).mean()) for w in weights]


def _print_costs(title: str, module: torch.nn.Module, units: float, unit: str) -> None:
    ours = _seconds(lambda: ps.measure(module))
    bare = _seconds(lambda: _one_pass(module))
    print(f"{title:32} {ours:9.3f}s {bare:9.3f}s {ours / bare:6.1f} {ours / units:8.4f}s/{unit}")


def main() -> None:
    print(f"measure: live modules ({machine()}, torch {torch.__version__})")
    print(f"{'':32} {'planescope':>10} {'one pass':>10} {'ratio':>6} {'cost':>10}")
    for layers in (250, 500, 1000, 2000):
        _print_costs(f"{layers} layers of 2,304 weights", _chain(layers), layers, "layer")
    for mebibytes in (256, 512, 1024, 2048):
        _print_costs(
            f"one layer of {mebibytes} MiB", _one_layer(mebibytes), mebibytes / 1024, "GiB"
        )
