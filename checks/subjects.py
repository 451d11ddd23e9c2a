"""Networks that the tests of taking away ask, each with the inputs that it is asked with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

import planescope as ps
from checks import cifar, imagenet, resnets
from planescope.criticality.sensitivity.network import open_network
from planescope.criticality.sensitivity.record import Sensitivity
from planescope.data.batches import batches
from planescope.data.load import Files, Images
from planescope.data.sets.published import KNOWN
from planescope.training.split import load_split

LAYERS, LAYERS_OF_IMAGENET = 20, 12
# Labelled test images that tell the truth; unlabelled ones, of the training set; labels on few.
TRUTH, UNLABELLED, FEW = 5000, 400, (100, 30, 10)
POOL = 10_000
# Of the thousand pictures of ImageNet; the last hundred are the labelled ones.
TRUTH_OF_IMAGENET, UNLABELLED_OF_IMAGENET = 600, 300
# Of the inputs that are moved until they have the statistics of the batch norms (ZeroQ).
DISTILLED, DISTILLED_OF_IMAGENET, STEPS, RATE = 64, 16, 100, 0.1

Labelled = tuple[torch.Tensor, torch.Tensor]


class Subject(NamedTuple):
    """A network and what it is asked with.

    `pool` has images without labels, in an order that was drawn, of which the first are taken.
    """

    module: nn.Module
    shape: tuple[int, int, int]
    pool: torch.Tensor
    truth: Labelled
    few: Labelled
    layers: int = LAYERS
    distilled: int = DISTILLED
    chance: float = 0.1

    @property
    def unlabelled(self) -> torch.Tensor:
        """Return the inputs without labels."""
        return self.pool[:UNLABELLED]

    @property
    def has_norms(self) -> bool:
        """Tell whether there are statistics to move inputs to."""
        return any(isinstance(module, nn.BatchNorm2d) for module in self.module.modules())

    def chosen(self) -> list[str]:
        """Return the layers that are looked at, in the order of the network."""
        every = [layer.name for layer in ps.measure(self.module).layers]
        places = np.linspace(0, len(every) - 1, min(self.layers, len(every)))
        return [every[place] for place in places.round().astype(int)]

    def save(self, path: Path, ways: Any, data: Any, **options: Any) -> None:
        """Write what inputs say of ways, unless it is there."""
        if path.is_file():
            return
        found = ps.sensitivity(
            self.module, ways=ways, data=data, layers=",".join(self.chosen()),
            **({} if "metric" in options else {"chance": self.chance}), **options,
        )  # fmt: skip
        if isinstance(found, Sensitivity):  # no dry run
            found.save(path)
        print(path, flush=True)


def subject(name: str, weights: Path, data: Path) -> Subject:
    """Load a network, channels last (the same numbers but for rounding, sooner), and its inputs."""
    run = ps.Run(weights / name)
    if run.exists and run.config.data != "cifar10":
        made = _of_run(run, data)
    elif run.exists:  # its inputs are prepared as it was trained
        known = KNOWN["cifar10"]
        made = _of_cifar(open_network(run, None).module, data, known.mean, known.std)
    elif name in imagenet.NETWORKS:
        made = _of_imagenet(name, weights, data)
    else:
        made = _of_cifar(resnets.load(name, weights), data, resnets.MEAN, resnets.STD)
    made.module.to(memory_format=torch.channels_last)
    return made


def _of_cifar(
    module: nn.Module, data: Path, mean: Sequence[float], std: Sequence[float]
) -> Subject:
    x, labels = cifar.images(data, ["test_batch"], mean, std)
    pool, _ = cifar.images(data, ["data_batch_5"], mean, std)
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(0))
    few = (x[-max(FEW) :], labels[-max(FEW) :])
    return Subject(module, (3, 32, 32), pool[order], (x[:TRUTH], labels[:TRUTH]), few)


def _of_run(run: ps.Run, data: Path) -> Subject:
    """Take the inputs of a run's own data: the truth of those that validate, the pool of others."""
    config = run.config.model_copy(update={"data_path": data})
    (x, labels), (pool, _) = (
        _together(load_split(config, split)) for split in ("val", "train")
    )  # fmt: skip
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(0))
    few = (x[-max(FEW) :], labels[-max(FEW) :])
    shape = (x.shape[1], x.shape[2], x.shape[3])
    module = open_network(run, None).module
    chance = 1 / int(labels.max() + 1)
    return Subject(
        module, shape, pool[order[:POOL]], (x[:TRUTH], labels[:TRUTH]), few, chance=chance
    )


def _together(split: Images | Files) -> Labelled:
    images, labels = zip(*batches(split, batch_size=1000), strict=True)
    return torch.cat(images), torch.cat(labels)


def _of_imagenet(name: str, weights: Path, data: Path) -> Subject:
    x, labels = imagenet.images(name, data)
    parts = (TRUTH_OF_IMAGENET, UNLABELLED_OF_IMAGENET, max(FEW))
    (true_x, pool, few_x), (true, _, few) = x.split(parts), labels.split(parts)
    return Subject(
        imagenet.load(name, weights), (3, imagenet.SIDE, imagenet.SIDE), pool, (true_x, true),
        (few_x, few), LAYERS_OF_IMAGENET, DISTILLED_OF_IMAGENET, 1 / imagenet.CLASSES,
    )  # fmt: skip


def distilled(module: nn.Module, count: int, shape: Sequence[int]) -> torch.Tensor:
    """Move noise until its activations have the mean and variance of each batch norm.

    Cai et al. (2020), section 3.1; our own code.
    """
    torch.manual_seed(0)
    pixels = torch.randn(count, *shape, requires_grad=True)
    wanted: list[torch.Tensor] = []

    def hook(norm: Any, args: Any, _output: Any) -> None:
        given = args[0]
        mean, var = given.mean((0, 2, 3)), given.var((0, 2, 3), unbiased=False)
        off = (mean - norm.running_mean).square().sum()
        wanted.append(off + (var.sqrt() - norm.running_var.sqrt()).square().sum())

    hooks = [
        m.register_forward_hook(hook) for m in module.modules() if isinstance(m, nn.BatchNorm2d)
    ]
    steps = torch.optim.Adam([pixels], lr=RATE)
    for _ in range(STEPS):
        wanted.clear()
        module(pixels)
        steps.zero_grad()
        torch.stack(wanted).sum().backward()
        steps.step()
    for one in hooks:
        one.remove()
    return pixels.detach()
