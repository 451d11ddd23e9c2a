"""Updates of `ps.Tracker`: against one pass over the weights they read, and against an epoch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.processes import machine

ROUNDS = 30
EPOCH_STEPS = 391  # 50,000 images in batches of 128
TIMED_STEPS = 20


def in_turn(calls: Mapping[str, Callable[[], object]], device: str) -> dict[str, list[float]]:
    """Seconds of each call, in rounds of all of them; the first round is left out."""
    import torch

    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - began)
    return {name: times[1:] for name, times in seconds.items()}


def updater(model: Any, **options: Any) -> Callable[[], object]:
    """One update of a tracker that has seen the network before."""
    import planescope as ps

    tracker, steps = ps.Tracker(**options), iter(range(10**9))
    tracker.update(model, next(steps))
    return lambda: tracker.update(model, next(steps))


def vgg19(device: str) -> None:
    import torch

    from planescope.training.networks import build

    model = build("vgg19", seed=0).to(device)
    weights = [m.weight for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    with torch.no_grad():
        seconds = in_turn(
            {
                "one pass, sum(w.square().sum())": lambda: sum(w.square().sum() for w in weights),
                "update, statistics alone": updater(model, reference=None),
                "update with distances": updater(model),
            },
            device,
        )
    size = sum(w.numel() for w in weights) / 1e6
    print(f"Tracker: VGG19's {size:.1f} million weights on {device}, {ROUNDS} rounds in turn")
    print(f"{'':34} {'median':>9} {'fastest':>9} {'ratio':>6} {'ratio of fastest':>17}")
    one, *_ = seconds.values()
    for name, times in seconds.items():
        median, fastest = statistics.median(times), min(times)
        print(
            f"{name:34} {median * 1e3:7.2f}ms {fastest * 1e3:7.2f}ms "
            f"{median / statistics.median(one):6.2f} {fastest / min(one):17.2f}"
        )


def lenet_epoch() -> None:
    import torch

    import planescope as ps
    from planescope.training.networks import build

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
        f"{update_seconds / epoch:.3%}"
    )


def main() -> None:
    import torch

    torch.set_num_threads(2)
    print(f"({machine()}, torch {torch.__version__}, 2 threads)")
    vgg19("cpu")
    if torch.cuda.is_available():
        vgg19("cuda")
    lenet_epoch()
