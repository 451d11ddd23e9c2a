"""Hold planescope's trained accuracy against the user's own loop, on real images.

    PLANESCOPE_DATA=FOLDER python -m checks.own.trained

FOLDER holds CIFAR-10 (``cifar-10-batches-py``) and Fashion-MNIST (``FashionMNIST/raw``) as
torchvision lays them out. A small ResNet is trained in plain PyTorch with its own normalisation;
then the same accuracy is asked from Python, by a DataLoader and a Dataset, and from the command
line. All must be the same count of right answers, and cells those of load, evaluate, restore.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import datasets, transforms

import planescope as ps

ROOT = "PLANESCOPE_DATA"
BATCH = 125
STEPS = 80
# Channels, and the moments that a user would have found in a tutorial.
KINDS = {
    "cifar10": (3, (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
    "fashion": (1, (0.286,), (0.353,)),
}


class Cifar10(Dataset[Any]):
    """The published images, whatever program packed them into files."""

    def __init__(self, root: str, *, train: bool, transform: Any) -> None:
        names = [f"data_batch_{n}" for n in range(1, 6)] if train else ["test_batch"]
        folder = Path(root) / "cifar-10-batches-py"
        # Files of the user's own.
        packed = [pickle.loads((folder / n).read_bytes(), encoding="bytes") for n in names]
        pixels = np.concatenate([batch[b"data"] for batch in packed])
        self.images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        self.labels = [label for batch in packed for label in batch[b"labels"]]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return an image, prepared, and its label."""
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add both ways."""
        inner = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(inner + self.shortcut(x))


class ResNet(nn.Module):
    """A convolution, three blocks and a linear layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        self.blocks = nn.Sequential(Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def data_of(kind: str, *, train: bool) -> Dataset[Any]:
    """Return the user's own data set, normalised as the user likes."""
    _, mean, std = KINDS[kind]
    prepare = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    made = Cifar10 if kind == "cifar10" else datasets.FashionMNIST
    return made(os.environ[ROOT], train=train, transform=prepare)


def loader_of(kind: str) -> DataLoader[Any]:
    """Return the loader on which the user evaluates."""
    return DataLoader(data_of(kind, train=False), batch_size=BATCH)


# What the command line calls, without arguments.
cifar10, fashion = (functools.partial(loader_of, kind) for kind in KINDS)
cifar10_network, fashion_network = (functools.partial(ResNet, KINDS[kind][0]) for kind in KINDS)


def trained(kind: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Train a network in the plain way; with its weights at the start."""
    torch.manual_seed(0)
    network = ResNet(KINDS[kind][0])
    start = copy.deepcopy(network.state_dict())
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    some = Subset(data_of(kind, train=True), range(STEPS * BATCH))
    for x, y in DataLoader(some, batch_size=BATCH, shuffle=True):
        optimiser.zero_grad()
        functional.cross_entropy(network(x), y).backward()
        optimiser.step()
    return network, start


@torch.no_grad()
def right(network: nn.Module, loader: DataLoader[Any]) -> int:
    """Count right answers as everybody does."""
    network.eval()
    return sum(int((network(x).argmax(1) == y).sum()) for x, y in loader)


def on_command_line(kind: str, folder: Path) -> dict[str, Any]:
    """Return the JSON of the command, of checkpoints in a folder."""
    command = [sys.executable, "-m", "planescope", "reset", "--json"]
    files = ["--trained", str(folder / "trained.pt"), "--snapshot", str(folder / "start.pt")]
    own = ["--network", f"{__name__}:{kind}_network", "--data", f"{__name__}:{kind}"]
    more = ["--layers", "stem"]
    made = subprocess.run([*command, *files, *own, *more], check=True, stdout=subprocess.PIPE)
    return json.loads(made.stdout)


def check(kind: str) -> None:
    """Train, then compare."""
    began = time.perf_counter()
    network, start = trained(kind)
    loader = loader_of(kind)
    own = right(network, loader)
    examples = len(loader.dataset)
    network.train()  # as a user's loop leaves it
    from_loader = ps.reset(network, to={"start": start}, data=loader, kinds="all")
    assert network.training
    from_set = ps.reset(network, to={"start": start}, data=loader.dataset, layers="stem")
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        torch.save(network.state_dict(), folder / "trained.pt")
        torch.save(start, folder / "start.pt")
        command = on_command_line(kind, folder)
    told = {
        "DataLoader": from_loader.trained.value,
        "Dataset": from_set.trained.value,
        "command line": command["trained"]["value"],
    }
    for way, value in told.items():
        assert value == own / examples, (kind, way, value, own)
    worst = 0
    for cell in from_loader.cells:
        changed = copy.deepcopy(network)
        back = {n: w for n, w in start.items() if n.startswith(f"{cell.layer}.")}
        changed.load_state_dict({**changed.state_dict(), **back})
        count = right(changed, loader)
        worst = max(worst, abs(count - round(cell.value * examples)))
    seconds = time.perf_counter() - began
    print(
        f"{kind}: the loop counts {own} of {examples} right, and so do {', '.join(told)}; "
        f"{len(from_loader.cells)} cells "
        f"differ from the plain loop by at most {worst} ({seconds:.0f} s)",
        flush=True,
    )
    assert worst == 0


if __name__ == "__main__":
    from checks.own import trained as module  # the command line knows it by this name

    for each in sys.argv[1:] or KINDS:
        module.check(each)
