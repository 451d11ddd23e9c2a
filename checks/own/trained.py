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
from checks.architectures import resnet8_16
from planescope.data.sets.files import read_cifar

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
        # Not torchvision's reader: it refuses files that other programs packed.
        images, labels = read_cifar([folder / name for name in names])
        self.images = np.asarray(images).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        self.labels = np.asarray(labels).tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return an image, prepared, and its label."""
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


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
cifar10_network, fashion_network = (
    functools.partial(resnet8_16, KINDS[kind][0], 10) for kind in KINDS
)


def trained(kind: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Train a network in the plain way; with its weights at the start."""
    torch.manual_seed(0)
    network = resnet8_16(KINDS[kind][0], 10)
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
    more = ["--layers", "^conv1$"]
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
    from_set = ps.reset(network, to={"start": start}, data=loader.dataset, layers="^conv1$")
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
