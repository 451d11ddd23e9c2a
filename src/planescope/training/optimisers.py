"""Optimisers and schedules of the learning rate by the names that a config has for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.optim import lr_scheduler

if TYPE_CHECKING:
    from torch import nn

    from planescope.training.config import RunConfig


def optimiser(config: RunConfig, network: nn.Module, /) -> torch.optim.Optimizer:
    """Make the optimiser of a network's parameters."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimiser == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=config.momentum, weight_decay=decay)
    adam = torch.optim.AdamW if config.optimiser == "adamw" else torch.optim.Adam
    return adam(parameters, lr=rate, weight_decay=decay)


def schedule(
    config: RunConfig, optimizer: torch.optim.Optimizer, steps: int, /
) -> tuple[lr_scheduler.LRScheduler, str]:
    """Make the schedule, and say whether it goes by "epoch" or by "step".

    Parameters
    ----------
    steps : int
        Of an epoch.
    """
    match config.schedule:
        case "cosine":
            return lr_scheduler.CosineAnnealingLR(optimizer, config.epochs), "epoch"
        case "one-cycle":
            total = config.epochs * steps
            return lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total), "step"
        case "step":
            every = range(config.decay_every, config.epochs, config.decay_every)
            after = config.milestones or every
            return lr_scheduler.MultiStepLR(optimizer, list(after), config.decay), "epoch"
        case _:
            return lr_scheduler.ConstantLR(optimizer, factor=1.0), "epoch"
