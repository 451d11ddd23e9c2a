"""The task that Lightning trains: steps, data by batches, and random numbers by the epoch."""

from __future__ import annotations

import functools
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.nn.functional import cross_entropy

from planescope.data.batches import batches
from planescope.files.errors import RunError, StoppedError
from planescope.training.folder.metrics import EpochMetrics
from planescope.training.optimisers import optimiser, schedule

if TYPE_CHECKING:
    from torch import nn

    from planescope.data.batches import Batches
    from planescope.data.load import Files, Images
    from planescope.training.config import RunConfig

# A look at the loss waits for the device, so it is not taken at each step.
LOOK_EVERY = 100


@dataclass(frozen=True, eq=False)
class Data:
    """The training and the validation examples."""

    train: Images | Files
    val: Images | Files


class _Tally:
    """Loss and correct answers over batches; kept on the device until they are asked for."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(3, device=device)

    def add(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        # Outputs that are not numbers are no answer, though argmax takes them for the largest.
        correct = ((logits.argmax(1) == labels) & ~logits.isnan().any(1)).sum()
        self.sums[0].add_(loss, alpha=len(labels))
        self.sums[1].add_(correct)
        self.sums[2].add_(len(labels))


class Task(pl.LightningModule):
    """Classification by a network, as a config says.

    Whatever is random in an epoch - order, augmentation, dropout - comes from generators that are
    seeded anew when it begins, from the config's seed, the epoch and the rank of the process. A run
    that is resumed after an epoch hence needs no generator's state to end with the same bits.

    Parameters
    ----------
    network : torch.nn.Module
        Is trained in place.
    """

    def __init__(self, network: nn.Module, config: RunConfig, data: Data) -> None:
        super().__init__()
        self.network = network
        self.stopping = False  # set it to stop after the batch
        self._config, self._data = config, data
        self._shuffle = torch.Generator()
        self._began = time.monotonic()
        self._learning_rate: float | None = None
        self._loss, self._examples = torch.zeros(()), 0  # summed over the epoch's batches
        self._tallies: list[_Tally] = []

    @functools.cached_property
    def _train_batches(self) -> Batches:
        data, config = self._data.train, self._config
        return batches(
            data,
            batch_size=config.batch_size,
            shuffle=self._shuffle,
            augment=data.augment,
            # A batch norm cannot normalise one example.
            drop_last=len(data.labels) // self.trainer.world_size % config.batch_size == 1,
            **self._placement(),
        )

    def train_dataloader(self) -> Batches:
        """Return the batches of the training examples, prepared on this process's device."""
        return self._train_batches

    def val_dataloader(self) -> list[Batches]:
        """Return batches of the validation examples and, where asked for, of the training ones."""
        parts = [self._data.val, *([self._data.train] if self._config.train_accuracy else [])]
        size = self._config.batch_size
        return [batches(part, batch_size=size, **self._placement()) for part in parts]

    def _placement(self) -> dict[str, Any]:
        trainer = self.trainer
        return {
            "device": trainer.strategy.root_device,
            "shard": (trainer.global_rank, trainer.world_size),
            "workers": self._config.workers,
        }

    def transfer_batch_to_device(self, batch: Any, device: torch.device, index: int) -> Any:  # noqa: ARG002
        """Leave a batch where it was prepared."""
        return batch

    def configure_optimizers(self) -> dict[str, Any]:
        """Return the optimiser and schedule by the config."""
        steps = len(self._train_batches)
        made = optimiser(self._config, self.network)
        scheduler, interval = schedule(self._config, made, steps)
        return {
            "optimizer": made,
            "lr_scheduler": {"scheduler": scheduler, "interval": interval},
        }

    def on_train_epoch_start(self) -> None:
        """Seed what is random in the epoch."""
        self._began = time.monotonic()
        self._learning_rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self._loss, self._examples = torch.zeros((), device=self.device), 0
        seed, epoch = self._config.seed, self.current_epoch
        # The order is one for all processes, which share it; dropout is each one's own.
        self._shuffle.manual_seed(_derived(seed, epoch))
        _seed_all(_derived(seed, epoch, 1 + self.global_rank))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        """Return the mean cross-entropy of a batch."""
        if self.stopping:
            raise StoppedError("interrupted")
        inputs, labels = batch
        loss = cross_entropy(self.network(inputs), labels)
        self._loss.add_(loss.detach(), alpha=len(labels))
        self._examples += len(labels)
        if index % LOOK_EVERY == LOOK_EVERY - 1:
            self._must_be_finite(*self._summed(self._loss[None]))
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        """Project the filters where the config says so."""
        self.centre()

    @torch.no_grad()
    def centre(self) -> None:
        """Take its mean off each filter, where the config says so: its projection is then 0."""
        for weight in self._centred:
            weight.sub_(weight.flatten(1).mean(1).view(-1, *(1,) * (weight.dim() - 1)))

    @functools.cached_property
    def _centred(self) -> list[torch.Tensor]:
        if not self._config.centred:
            return []
        kinds = torch.nn.modules.conv._ConvNd, torch.nn.Linear
        found: list[list[torch.Tensor]] = [
            [m.weight for m in self.network.modules() if isinstance(m, kind)] for kind in kinds
        ]
        # The last linear layer gives the classes: no ReLU cuts behind it.
        return found[0] or found[1][:-1]

    def on_validation_epoch_start(self) -> None:
        """Begin to count anew."""
        self._tallies = [_Tally(self.device) for _ in range(1 + self._config.train_accuracy)]

    def validation_step(
        self,
        batch: tuple[torch.Tensor, torch.Tensor],
        index: int,  # noqa: ARG002
        dataloader_idx: int = 0,
    ) -> None:
        """Count the correct answers of a batch."""
        inputs, labels = batch
        logits = self.network(inputs)
        self._tallies[dataloader_idx].add(cross_entropy(logits, labels), logits, labels)

    def metrics(self, epoch: int) -> EpochMetrics:
        """Return the metrics of the epoch over all processes; all of them must call it.

        Raises
        ------
        RunError
            If a loss is not finite.
        """
        val, *train = (self._summed(tally.sums) for tally in self._tallies)
        trained = self._summed(torch.stack((self._loss, self._loss.new_tensor(self._examples))))
        train_loss = trained[0] / trained[1] if trained[1] else None
        for loss in (train_loss, val[0]):
            self._must_be_finite(loss)
        return EpochMetrics(
            epoch=epoch,
            train_loss=train_loss,
            train_accuracy=train[0][1] / train[0][2] if train else None,
            val_loss=val[0] / val[2],
            val_accuracy=val[1] / val[2],
            learning_rate=self._learning_rate,
            seconds=round(time.monotonic() - self._began, 3),
        )

    def _summed(self, sums: torch.Tensor) -> list[float]:
        """Return the sums over all processes."""
        strategy = self.trainer.strategy
        total = strategy.reduce(sums.to(strategy.root_device, copy=True), reduce_op="sum")
        return [float(value) for value in total.cpu()]

    def _must_be_finite(self, loss: float | None) -> None:
        if loss is not None and not abs(loss) < float("inf"):
            raise RunError(
                f"the loss is no longer finite in epoch {self.current_epoch + 1}; what was saved "
                "before is kept; try a lower --learning-rate"
            )


def _seed_all(seed: int) -> None:
    """Seed every global generator that a network may draw from."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  the legacy generator is the global one
    torch.manual_seed(seed)


def _derived(seed: int, *stream: int) -> int:
    """Return a seed for one use, of 32 bits, as NumPy's legacy generator wants."""
    return int(np.random.SeedSequence([seed, *stream]).generate_state(1)[0])
