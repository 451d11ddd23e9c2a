"""The divergence of a changed network's answers from those of the whole one.

To import this is to import torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from planescope.criticality.options import Task
from planescope.criticality.resets.engine.answers import Judge, Pick, are_classes, picked
from planescope.data.roles import Batch
from planescope.files.errors import UsageError


@dataclass(eq=False)
class Yardstick:
    """Answers of the whole network on some inputs.

    Attributes
    ----------
    batches : list of Batch
    answers : list of tensor
        Its log-probabilities; as they are where they are no classes.
    of_classes : bool
    pick : str, int or callable, optional
        Finds the answer in what a network gives.
    judge : Judge
        It has looked at the first answers.
    scale : float
        Mean over the examples of the squared norm of `answers`, of which changes are relative.
    """

    batches: Sequence[Batch]
    answers: list[torch.Tensor]
    of_classes: bool
    pick: Pick | None
    judge: Judge
    scale: float

    @classmethod
    def of(
        cls,
        whole: nn.Module,
        batches: Sequence[Batch],
        pick: Pick | None = None,
        /,
        *,
        labelled: bool = False,
        task: Task | None = None,
        architecture: Any = None,
    ) -> Yardstick:
        """Run the whole network; with labels that are no classes its outputs are none.

        Parameters
        ----------
        labelled : bool
            Whether labels may be looked at.
        task : {"classification", "regression"}, optional
            Tells whether outputs are scores of classes, in place of labels and shapes.
        architecture : str or torch.nn.Module, optional
            That the network was built by.

        Raises
        ------
        UsageError
            If its answer cannot be found, or is no number.
        """
        judge = Judge(pick=pick, task=task)
        answers = [answer(whole, batch, pick) for batch in batches]
        for one, batch in zip(answers, batches, strict=True):
            if not isinstance(one, torch.Tensor) or one.shape[:1] != (batch.size,):
                raise UsageError(
                    "the reference gives no tensor with a row an example; say by output= which "
                    "part of what it gives is its answer"
                )
            if not bool(one.isfinite().all()):
                raise UsageError("the reference gives NaN or an infinity on these inputs")
        judge.look_at(answers[0], dataclasses.replace(batches[0], labels=None))
        judge.heed(whole, architecture)
        labels = batches[0].labels if labelled else None
        judge.is_told |= are_classes(batches[0].labels)
        of_classes = judge.is_softmax and (task is not None or not _are_values(labels))
        if of_classes:
            answers = [judge.logits(one).log_softmax(1) for one in answers]
        scale = float(torch.cat([_squares(one) for one in answers]).mean().clamp(min=1e-30))
        return cls(batches, answers, of_classes, pick, judge, scale)

    @property
    def notes(self) -> tuple[str, ...]:
        """Say what is taken for classes, and for probabilities, where that is not plain."""
        return self.judge.notes if self.of_classes else ()

    @property
    def name(self) -> str:
        """Return the name of the quantity that is compared."""
        return "divergence" if self.of_classes else "relative change"

    def of_examples(self, module: nn.Module) -> torch.Tensor:
        """Give what is compared for each example, in float64; infinite where no number is given."""
        return self.compared(self.asked(module))

    def asked(self, module: nn.Module) -> list[torch.Tensor]:
        """Run a network; give its answers as they come, a tensor a batch."""
        return [answer(module, batch, self.pick) for batch in self.batches]

    def compared(self, answers: Sequence[torch.Tensor]) -> torch.Tensor:
        """Compare answers with those of the whole network, by examples."""
        pairs = zip(answers, self.answers, strict=True)
        return torch.cat([self.between(given, whole) for given, whole in pairs])

    def between(self, given: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        """Compare answers of one batch, by examples."""
        if self.of_classes:
            logs = self.judge.logits(given).log_softmax(1)
            found = (whole.exp() * (whole - logs)).double().sum(1)
        else:
            found = _squares(given - whole) / self.scale
        found = found.flatten(1).mean(1) if found.ndim > 1 else found
        return torch.where(found.isnan(), torch.inf, found)

    def value(self, module: nn.Module) -> float:
        """Give the mean over the examples."""
        return float(self.of_examples(module).mean())


def answer(module: nn.Module, batch: Batch, pick: Pick | None) -> torch.Tensor:
    """Run a network on a batch and take its answer."""
    with torch.no_grad():
        given: torch.Tensor = picked(module(*batch.args, **batch.kwargs), pick)
    return given


def is_less(one: torch.Tensor, other: torch.Tensor, /, *, errors: float = 2) -> bool:
    """Tell whether a mean over examples is lower by some standard errors of the pairs."""
    off = one - other
    if not bool(off.isfinite().all()):
        return bool(one.mean() < other.mean())
    return bool(off.mean() + errors * off.std(correction=0) / len(off) ** 0.5 < 0)


def _squares(answers: torch.Tensor) -> torch.Tensor:
    return answers.double().square().reshape(len(answers), -1).sum(1)


def _are_values(labels: Any) -> bool:
    return isinstance(labels, torch.Tensor) and labels.is_floating_point()
