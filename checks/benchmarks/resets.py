"""Resetting all layers to five snapshots, a cell: against the plain script, and a bare pass.

The plain script goes through a loader over the data set for each cell, as published code does. The
bare pass sends data that lie prepared in memory through the network once. The counts of both ways
are compared: on a CPU they are the same, on a GPU batches of another size may round differently.
In bfloat16 the counts are compared with those of the script in bfloat16, in which answers on the
edge may flip; the times with the script as it is published, in float32, and with a bare pass in
bfloat16.
Processor seconds with one thread, so that other work on the machine counts for little; and the
clock, with all threads; on a GPU, the clock alone.
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

from checks.benchmarks.processes import machine
from planescope.criticality.resets import ResetOptions, reset
from planescope.criticality.resets.record import Resets
from planescope.networks.build import build
from planescope.training.precision import Precision, fitting_precision

SNAPSHOTS = 5
BATCH = 256
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
# Ratios that are promised: plain script, bare pass.
BOUNDS: dict[tuple[str, str, Precision], tuple[float | None, float | None]] = {
    ("lenet", "cuda", "32-true"): (30.0, None),
    ("vgg16", "cuda", "32-true"): (30.0, None),
    ("vgg16", "cuda", "bf16-mixed"): (60.0, None),
    ("lenet", "cpu", "32-true"): (10.0, 1.8),
    ("lenet", "cpu", "bf16-mixed"): (10.0, None),
    ("vgg16", "cpu", "32-true"): (None, 1.8),
    ("vgg16", "cpu", "bf16-mixed"): (None, None),
    ("torchvision:resnet18", "cpu", "32-true"): (2.5, None),
}
EXAMPLES = {("vgg16", "cpu"): 256, ("torchvision:resnet18", "cpu"): 256}
MOST_EXAMPLES = 10_000
TOLERANCE = 0.02
# Answers that may differ between kernels of two kinds, a cell of 10,000 examples; and the share by
# which the cross entropy may.
DIFFERENCES = {
    ("cpu", "32-true"): (0, 1e-5),
    ("cpu", "bf16-mixed"): (200, 1e-2),
    ("cuda", "32-true"): (10, 1e-3),
    ("cuda", "bf16-mixed"): (200, 1e-2),
}


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


def in_short(device: str, precision: str) -> torch.autocast:
    """Compute in bfloat16 where a precision says so."""
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-mixed")


def plain_cell(
    network: nn.Module,
    layer: str,
    snapshot: dict[str, torch.Tensor],
    data: Cifar,
    precision: str = "32-true",
) -> tuple[int, int, float]:
    """Load, evaluate all, restore."""
    device = next(network.parameters()).device
    trained = {name: value.clone() for name, value in network.state_dict().items()}
    own = {name: value for name, value in snapshot.items() if name.startswith(f"{layer}.")}
    network.load_state_dict({**trained, **own})
    right = top5 = 0
    loss = 0.0
    with torch.no_grad():
        for batch in DataLoader(data, batch_size=BATCH):
            images, labels = (part.to(device) for part in batch)
            with in_short(device.type, precision):
                logits = network(images).float()
            loss += float(cross_entropy(logits, labels, reduction="sum"))
            best = logits.topk(5).indices == labels[:, None]
            # In bfloat16 two outputs may be the same: the answer is the first of them.
            right += int((logits.argmax(1) == labels).sum())
            top5 += int(best.sum())
    network.load_state_dict(trained)
    return right, top5, loss / len(data)


def bare_pass(network: nn.Module, batches: Sequence[torch.Tensor]) -> None:
    with torch.no_grad():
        for batch in batches:
            network(batch)
    if batches[0].is_cuda:
        torch.cuda.synchronize()


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


def compare(name: str, device: str, precision: Precision, threads: int) -> None:
    torch.set_num_threads(threads)
    examples = EXAMPLES.get((name, device), MOST_EXAMPLES)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        data = Cifar(write_cifar(folder, examples))
        states = [build(name, seed=seed).state_dict() for seed in range(SNAPSHOTS + 1)]
        paths = [folder / f"epoch-{seed}.pt" for seed in range(SNAPSHOTS + 1)]
        for path, state in zip(paths, states, strict=True):
            torch.save(state, path)
        network = build(name, seed=0).eval().to(device)
        layers = layers_of(network)
        found: list[Resets] = []
        ends_early = ""

        def ours() -> None:
            found.append(
                reset(
                    paths[0], to=paths[1:], network=name, data="cifar10", data_path=folder,
                    kinds="all", devices=(device,), precision=precision,
                )
            )  # fmt: skip

        is_slow = (name, device) in EXAMPLES
        shared = cost(ours, repeats=1 if is_slow else 2)
        cells = len(found[-1].cells)
        batches = torch.stack([image for image, _ in data]).to(device).split(BATCH)
        with in_short(device, precision):
            bare = cost(lambda: bare_pass(network, batches), repeats=2)
        plain = cost(lambda: plain_cell(network, layers[0], states[1], data), repeats=2)
        allowed, share = DIFFERENCES[device, precision]
        for layer in layers[:: max(1, len(layers) // 3)]:
            right, top5, loss = plain_cell(network, layer, states[1], data, precision)
            cell = found[-1].at(layer, paths[1].name)[0]
            assert abs(round(cell.top1 * cell.examples) - right) <= allowed, (layer, cell, right)
            assert abs(round(cell.top5 * cell.examples) - top5) <= allowed, (layer, cell, top5)
            assert cell.cross_entropy is not None
            assert abs(cell.cross_entropy - loss) < share * loss
        if precision == "32-true":
            ends_early = _with_tolerance(paths, name, folder, device, found[-1])
    for clock in ("cpu", "wall") if device == "cpu" else ("wall",):
        each = getattr(shared, clock) / cells
        line = f"{name:20} {precision:>10} {device:>4} {threads:>3} {clock:>5} {cells:>4}"
        line += f" {each:9.4f}s"
        for other, bound in zip((plain, bare), BOUNDS[name, device, precision], strict=True):
            wanted = "" if bound is None else f"{bound:.1f}"
            seconds = getattr(other, clock)
            line += f" {seconds:9.3f}s {seconds / each:6.1f} {wanted:>5}"
        print(line, flush=True)
    if ends_early:
        print(ends_early, flush=True)


def _with_tolerance(
    paths: Sequence[Path], name: str, folder: Path, device: str, whole: Resets
) -> str:
    """Return the line of cells that end as soon as their accuracy is known to `TOLERANCE`."""
    options = ResetOptions(kinds="all", devices=(device,), tolerance=TOLERANCE)
    early: list[Resets] = []

    def again() -> None:
        early.append(
            reset(
                paths[0], to=paths[1:], network=name, data="cifar10", data_path=folder,
                options=options,
            )
        )  # fmt: skip

    spent = cost(again, repeats=1)
    taken = sum(cell.examples for cell in early[-1].cells)
    of = sum(cell.examples for cell in whole.cells)
    each = spent.cpu if device == "cpu" else spent.wall
    return (
        f"{name:31} {device:>4}     --tolerance {TOLERANCE}: {taken / of:.0%} of the examples, "
        f"{each / len(early[-1].cells):.4f}s a cell"
    )


def main() -> None:
    print(f"resets: seconds a cell ({machine()}, torch {torch.__version__})")
    print(
        f"{'':31} {'on':>4} {'thr':>3} {'':>5} {'cell':>4} {'planescope':>10} {'plain':>10} "
        f"{'ratio':>6} {'bound':>5} {'bare':>10} {'ratio':>6} {'bound':>5}"
    )
    most = torch.get_num_threads()
    fitting = fitting_precision("cpu")
    for name, device, precision in BOUNDS:
        if device == "cpu" and precision in ("32-true", fitting):
            for threads in sorted({1, most}):
                compare(name, device, precision, threads)
        elif device == "cuda" and torch.cuda.is_available():
            compare(name, device, precision, most)
