"""Resetting all layers to five snapshots, a cell: against the plain script, and a bare pass.

The plain script goes through a loader over the data set for each cell, as published code does. The
bare pass sends data that lie prepared in memory through the network once. The counts of both ways
are compared. Processor seconds with one thread, so that other work on the machine counts for
little; and the clock, with all threads.
"""

from __future__ import annotations

import pickle
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.processes import machine
from planescope.resets import Resets
from planescope.resetting import ResetOptions, reset_checkpoint
from planescope.training.networks import build

SNAPSHOTS = 5
BATCH = 256
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
# Ratios that are promised: plain script, bare pass.
BOUNDS = {"lenet": (6.0, 1.8), "vgg16": (None, 1.8)}
EXAMPLES = {"lenet": 10_000, "vgg16": 256}


class Cifar(Dataset[tuple[torch.Tensor, int]]):
    """The file as torchvision's data set reads it, one image at a time."""

    def __init__(self, path: Path) -> None:
        batch = pickle.loads(path.read_bytes())  # noqa: S301  our own, from a moment ago
        self.images = batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        self.labels = batch[b"labels"]
        self.transform = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def write_cifar(folder: Path, examples: int) -> Path:
    """Random images in CIFAR-10's own file."""
    rng = np.random.default_rng(0)
    batch = {
        b"data": rng.integers(0, 256, (examples, 3072), dtype=np.uint8),
        b"labels": rng.integers(0, 10, examples).tolist(),
    }
    path = folder / "test_batch"
    path.write_bytes(pickle.dumps(batch))
    return path


def layers_of(network: nn.Module) -> list[str]:
    return [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def plain_cell(
    network: nn.Module, layer: str, snapshot: dict[str, torch.Tensor], data: Cifar
) -> tuple[int, int, float]:
    """Load, evaluate all, restore."""
    trained = {name: value.clone() for name, value in network.state_dict().items()}
    own = {name: value for name, value in snapshot.items() if name.startswith(f"{layer}.")}
    network.load_state_dict({**trained, **own})
    right = top5 = 0
    loss = 0.0
    with torch.no_grad():
        for images, labels in DataLoader(data, batch_size=BATCH):
            logits = network(images)
            loss += float(cross_entropy(logits, labels, reduction="sum"))
            best = logits.topk(5).indices == labels[:, None]
            right, top5 = right + int(best[:, 0].sum()), top5 + int(best.sum())
    network.load_state_dict(trained)
    return right, top5, loss / len(data)


def bare_pass(network: nn.Module, batches: Sequence[torch.Tensor]) -> None:
    with torch.no_grad():
        for batch in batches:
            network(batch)


@dataclass(frozen=True)
class Cost:
    """Seconds: of the processor, and of the clock."""

    cpu: float
    wall: float


def cost(call: Callable[[], object], repeats: int = 3) -> Cost:
    """Least of some repeats, after one that is not counted."""
    runs = []
    for count in range(repeats + 1):
        cpu, wall = time.process_time(), time.perf_counter()
        call()
        if count or repeats == 1:
            runs.append((time.process_time() - cpu, time.perf_counter() - wall))
    return Cost(min(cpu for cpu, _ in runs), min(wall for _, wall in runs))


def compare(name: str, threads: int) -> None:
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        data = Cifar(write_cifar(folder, EXAMPLES[name]))
        states = [build(name, seed=seed).state_dict() for seed in range(SNAPSHOTS + 1)]
        paths = [folder / f"epoch-{seed}.pt" for seed in range(SNAPSHOTS + 1)]
        for path, state in zip(paths, states, strict=True):
            torch.save(state, path)
        network = build(name, seed=0).eval()
        layers = layers_of(network)
        found: list[Resets] = []

        def ours() -> None:
            options = ResetOptions(kinds="all", devices=("cpu",))
            found.append(
                reset_checkpoint(
                    paths[0], paths[1:], network=name, data="cifar10", data_path=folder,
                    options=options,
                )
            )  # fmt: skip

        slow = EXAMPLES[name] * (name != "lenet") > 0
        shared = cost(ours, repeats=1 if slow else 2)
        cells = len(found[-1].cells)
        batches = torch.stack([image for image, _ in data]).split(BATCH)
        bare = cost(lambda: bare_pass(network, batches), repeats=2)
        plain = cost(lambda: plain_cell(network, layers[0], states[1], data), repeats=2)
        for layer in layers[:: max(1, len(layers) // 3)]:
            right, top5, loss = plain_cell(network, layer, states[1], data)
            cell = found[-1].at(layer, paths[1].name)[0]
            assert round(cell.top1 * cell.examples) == right, (layer, cell, right)
            assert round(cell.top5 * cell.examples) == top5, (layer, cell, top5)
            assert cell.loss is not None
            assert abs(cell.loss - loss) < 1e-5 * loss
    _print(name, threads, cells, shared, plain, bare)


def _print(name: str, threads: int, cells: int, shared: Cost, plain: Cost, bare: Cost) -> None:
    for clock in ("cpu", "wall"):
        each = getattr(shared, clock) / cells
        ratios = [getattr(other, clock) / each for other in (plain, bare)]
        line = f"{name:8} {threads:>3} {clock:>5} {cells:>4} {each:9.3f}s"
        for other, ratio, bound in zip((plain, bare), ratios, BOUNDS[name], strict=True):
            wanted = "" if bound is None else f"{bound:.1f}"
            line += f" {getattr(other, clock):9.3f}s {ratio:6.1f} {wanted:>5}"
        print(line)


def main() -> None:
    print(f"resets: seconds a cell ({machine()}, torch {torch.__version__})")
    print(
        f"{'':8} {'thr':>3} {'':>5} {'cell':>4} {'planescope':>10} {'plain':>10} {'ratio':>6} "
        f"{'bound':>5} {'bare':>10} {'ratio':>6} {'bound':>5}"
    )
    for name in BOUNDS:
        for threads in (1, torch.get_num_threads()):
            compare(name, threads)
