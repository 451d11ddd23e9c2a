"""Updates of `ps.Tracker`: against one pass over the weights they read, and against an epoch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from checks.benchmarks.processes import machine

BOUND = 3.0
EPOCH_SHARE = 0.01
ROUNDS = 30
EPOCH_STEPS = 391  # 50,000 images in batches of 128
TIMED_STEPS = 20


def in_turn(calls: Mapping[str, Callable[[], object]], device: str) -> dict[str, list[float]]:
    """Seconds of each call, in rounds of all of them; the first round is left out.

    On a CPU those of the processor, in all threads: another process does not lengthen them by as
    much. On a GPU those of the clock.
    """
    import torch

    clock = time.perf_counter if device == "cuda" else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS + 1):
        for name, call in calls.items():
            began = clock()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(clock() - began)
    return {name: times[1:] for name, times in seconds.items()}


def updater(model: Any, *, reads: bool = False, **options: Any) -> Callable[[], object]:
    """One update of a tracker that has seen the network before, when it was a step away."""
    import torch

    import planescope as ps

    tracker, steps = ps.Tracker(**options), iter(range(10**9))
    with torch.no_grad():
        weights = [parameter.clone() for parameter in model.parameters()]
        for parameter in model.parameters():
            parameter += 1e-4 * torch.randn_like(parameter)
        tracker.update(model, next(steps))
        for parameter, weight in zip(model.parameters(), weights, strict=True):
            parameter.copy_(weight)

    def update() -> None:
        tracker.update(model, next(steps))
        if reads:
            tracker.metrics()

    return update


def vgg19(device: str, threads: int) -> None:
    import torch

    from planescope.networks.build import build

    torch.set_num_threads(threads)
    model = build("vgg19", seed=0).to(device)
    weights = [m.weight for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    bounds = {"one Tracker update": BOUND, "the same without distances": BOUND}
    with torch.no_grad():
        seconds = in_turn(
            {
                "one pass, sum(w.square().sum())": lambda: sum(w.square().sum() for w in weights),
                "one Tracker update": updater(model),
                "the same without distances": updater(model, reference=None),
                "update, its statistics read": updater(model, reads=True),
            },
            device,
        )
    size = sum(w.numel() for w in weights) / 1e6
    counted = "wall time" if device == "cuda" else f"processor time, {threads} thread(s)"
    print(f"Tracker: VGG19's {size:.1f} million weights, {device}: {counted}, {ROUNDS} rounds")
    print(
        f"{'':34} {'median':>9} {'fastest':>9} {'ratio':>6} {'ratio of fastest':>17} {'bound':>6}"
    )
    one, *_ = seconds.values()
    for name, times in seconds.items():
        median, fastest = statistics.median(times), min(times)
        bound = f"{bounds[name]:.1f}" if name in bounds else ""
        print(
            f"{name:34} {median * 1e3:7.2f}ms {fastest * 1e3:7.2f}ms "
            f"{median / statistics.median(one):6.2f} {fastest / min(one):17.2f} {bound:>6}"
        )


def lenet_epoch() -> None:
    import torch

    import planescope as ps
    from planescope.networks.build import build

    torch.set_num_threads(1)
    model = build("lenet", seed=0)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images, labels = torch.randn(128, 3, 32, 32), torch.randint(0, 10, (128,))

    def step() -> None:
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()

    def steps() -> None:
        for _ in range(TIMED_STEPS):
            step()

    tracker = ps.Tracker()
    numbers = iter(range(10**9))

    def update() -> None:
        tracker.update(model, next(numbers))
        tracker.metrics()

    seconds = in_turn({"steps": steps, "update": update}, "cpu")
    epoch = statistics.median(seconds["steps"]) * EPOCH_STEPS / TIMED_STEPS
    update_seconds = statistics.median(seconds["update"])
    print(f"Tracker: LeNet on CIFAR-sized data, an epoch of {EPOCH_STEPS} steps of 128 images")
    print(
        f"epoch {epoch:.2f}s, update and its statistics {update_seconds * 1e3:.2f}ms: "
        f"{update_seconds / epoch:.3%} (bound {EPOCH_SHARE:.0%})"
    )


def main() -> None:
    import torch

    print(f"({machine()}, torch {torch.__version__})")
    # With several threads, torch's wait for one another at work, which counts as processor time.
    vgg19("cpu", 1)
    if torch.cuda.is_available():
        vgg19("cuda", torch.get_num_threads())
    lenet_epoch()
