"""From outputs to what is counted of them: a metric with labels, and what needs none.

To import this is to import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from planescope.criticality.options import Task
from planescope.data.roles import described
from planescope.files.errors import UsageError, counted, one_line
from planescope.networks.paper import is_known

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from planescope.criticality.resets.engine.progress import Tally
    from planescope.data.roles import Batch

# Picks from what a network gives: a name or position of a part, or a function.
Pick = str | int | Callable[[Any], Any]
# From outputs and the whole batch to a value an example, or one of the batch; higher is better.
Metric = Callable[[Any, Any], Any]

# Parts of a network's output that are its answer, by the names that libraries give them.
ANSWERS = ("logits", "out")
# What is said of a network that ends in a softmax of its own.
PROBABILITIES = "the network gives probabilities, which were taken as such"
# What tells that outputs are no scores.
_VALUES = 'task="regression" (--task) if they are values'
# Names of networks that are classifiers.
_CLASSIFIERS = ("timm:", "torchvision:")


def picked(output: Any, pick: Pick | None, /) -> Any:
    """Find the answer in what a network gives.

    Raises
    ------
    UsageError
        If it is not plain which part that is, or there is no such part.
    """
    if callable(pick):
        return pick(output)
    if pick is not None:
        try:
            if isinstance(output, torch.Tensor):
                raise TypeError  # a number would be that of an example
            return output[pick]
        except (KeyError, IndexError, TypeError):
            raise UsageError(f"output={pick!r}: the network gives {described(output)}") from None
    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, Mapping):
        for name in ANSWERS:
            if name in output:
                return output[name]
        parts = list(output.values())
    else:
        parts = list(output) if isinstance(output, tuple | list) else []
    if len(parts) == 1 and isinstance(parts[0], torch.Tensor):
        return parts[0]
    raise UsageError(
        f"the network gives {described(output)}; say by output= which part is its answer"
    )


@dataclass(eq=False)
class Judge:
    """The counts that are taken of a network's outputs.

    Attributes
    ----------
    metric : callable or None
        The user's; None counts right answers where there are labels.
    pick : str, int or callable, optional
        Finds the answer in what the network gives.
    task : {"classification", "regression"}, optional
        Whether outputs are scores of classes, or values; None goes by labels, else by their shape.
    is_told : bool
        Whether more than the shape of the outputs says that they are scores of classes.
    """

    metric: Metric | None = None
    pick: Pick | None = None
    task: Task | None = None
    is_told: bool = False
    # Settled by the first batch.
    counts_right: bool = False
    is_softmax: bool = False
    by_example: bool = True
    gives_probabilities: bool = False
    classes: int = 0
    shape: tuple[int, ...] = ()
    # Of each label; with several positions an example, in shares of an example.
    counts: torch.Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse a task that there is not.

        Raises
        ------
        UsageError
            With those that there are.
        """
        if self.task is not None and self.task not in get_args(Task):
            raise UsageError(f"task={self.task!r}: give one of {', '.join(get_args(Task))}")

    @property
    def name(self) -> str | None:
        """Return the name of the metric, or None."""
        if self.metric is not None:
            name = str(getattr(self.metric, "__name__", type(self.metric).__name__))
            return "metric" if name == "<lambda>" else name
        return "accuracy" if self.counts_right else None

    def look_at(self, output: torch.Tensor, batch: Batch) -> None:
        """Settle what there is to count, from the first batch.

        Raises
        ------
        UsageError
            If outputs and labels do not go together.
        """
        if not isinstance(output, torch.Tensor):
            raise UsageError(
                f"the network gives {described(output)}; say by output= what its answer is"
            )
        if output.shape[:1] != (batch.size,):
            raise UsageError(
                f"the network gives an output of shape {tuple(output.shape)} for a batch of "
                f"{counted(batch.size, 'example')}; say by output= what has a row an example"
            )
        labels = batch.labels
        self.shape = tuple(output.shape)
        self.classes = output.shape[1] if output.ndim > 1 else 1
        of_classes = self.task != "regression" and (
            self.task == "classification" or labels is None or are_classes(labels)
        )
        self.is_softmax = output.ndim > 1 and self.classes > 1 and of_classes
        if self.task == "classification" and not self.is_softmax:
            raise UsageError(
                f"task='classification' (--task): outputs of shape {self.shape} are no scores of "
                "two classes or more; leave it out"
            )
        self.gives_probabilities = self.is_softmax and _are_probabilities(output)
        self.is_told |= self.is_softmax and labels is not None
        if self.metric is not None or labels is None:
            return
        if self.task == "regression":
            raise UsageError(
                "task='regression' (--task): there are no right answers to count; give metric=, or "
                "the data as inputs without labels (--inputs, labelled=False)"
            )
        wanted = (output.shape[0], *output.shape[2:])
        if not (self.is_softmax and tuple(labels.shape) == wanted):
            is_tensor = isinstance(labels, torch.Tensor)
            shown = f"{labels.dtype} {tuple(labels.shape)}" if is_tensor else described(labels)
            raise UsageError(
                f"labels are {shown} and outputs {tuple(output.shape)}: right answers cannot be "
                "counted; give metric=, a function of outputs and batch, or inputs without labels "
                "(--inputs)"
            )
        self.counts_right = True

    def heed(self, module: Any, built_by: Any = None, classes: int | None = None, /) -> None:
        """Note what else tells that outputs are scores of classes.

        Parameters
        ----------
        module : torch.nn.Module
        built_by : str or torch.nn.Module, optional
            A name of its architecture.
        classes : int, optional
            Of the data.
        """
        is_classifier = isinstance(built_by, str) and (
            is_known(built_by) or built_by.startswith(_CLASSIFIERS)
        )
        own = getattr(module, "num_classes", None)
        self.is_told |= is_classifier or (self.classes > 1 and self.classes in (own, classes))

    def check(self, batch: Batch) -> None:
        """Count the labels of a batch.

        Raises
        ------
        UsageError
            If there is a label that no output stands for.
        """
        if not self.counts_right:
            return
        labels = batch.labels.flatten()
        least, most = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
        if least < 0 or most >= self.classes:
            raise UsageError(
                f"there are labels from {least} to {most}, but the network has {self.classes} "
                "outputs an example; give the data that it was trained on, or metric="
            )
        counts = labels.long().bincount(minlength=self.classes).cpu()
        if batch.labels.ndim > 1:
            counts = counts.double() * batch.size / labels.numel()
        self.counts = counts if self.counts is None else self.counts + counts

    @property
    def chance(self) -> float | None:
        """Share of the commonest label; 1/classes where there is none (METHOD, section 7)."""
        if self.counts is not None:
            return float(self.counts.max()) / float(self.counts.sum())
        return 1 / self.classes if self.is_softmax else None

    @property
    def notes(self) -> tuple[str, ...]:
        """Say what is taken for classes, and for probabilities, where that is not plain."""
        if not self.is_softmax:
            return ()
        is_plain = self.task == "classification" or self.is_told or self.counts_right
        found = [told_positions(self.shape, is_plain=is_plain)]
        if self.gives_probabilities:
            found.append(PROBABILITIES)
        elif not is_plain and not found[0]:
            found.append(
                f"the {self.classes} outputs are taken for scores of {self.classes} classes; give "
                f"{_VALUES}"
            )
        return tuple(filter(None, found))

    def logits(self, output: torch.Tensor) -> torch.Tensor:
        """Return outputs whose softmax is the network's answer, in float32.

        Of a network that ends in a softmax of its own they are the logarithms.
        """
        wide = output.float()
        return (
            wide.clamp_min(torch.finfo(wide.dtype).tiny).log() if self.gives_probabilities else wide
        )

    def judge(
        self,
        tally: Tally,
        outputs: Sequence[torch.Tensor],
        references: Sequence[torch.Tensor],
        batches: Sequence[Batch],
    ) -> None:
        """Count the outputs of some batches, beside those of the trained network.

        The device is waited for.
        """
        for batch, output in zip(batches, outputs, strict=True):
            if self.metric is not None:
                self._measure(tally, output, batch)
            tally.examples += batch.size
        sizes = [batch.size for batch in batches]
        if len({tuple(output.shape[1:]) for output in outputs}) == 1:  # fewer calls are quicker
            outputs, references = ([torch.cat(list(parts))] for parts in (outputs, references))
            labels = [torch.cat([b.labels for b in batches])] if self.counts_right else [None]
            several = [sizes]
        else:
            labels = [batch.labels if self.counts_right else None for batch in batches]
            several = [[size] for size in sizes]
        for output, reference, right, own in zip(outputs, references, labels, several, strict=True):
            self._count(tally, output, reference, right, own)

    @property
    def _called(self) -> str:
        """Return what a message calls the user's metric."""
        return "metric=" if self.name == "metric" else f"metric {self.name}"

    def _measure(self, tally: Tally, output: torch.Tensor, batch: Batch) -> None:
        """Apply the user's metric."""
        assert self.metric is not None  # noqa: S101
        found = self.metric(output, batch.raw)
        try:
            values = torch.as_tensor(found).detach().to("cpu", torch.float64)
        except (TypeError, ValueError, RuntimeError) as exc:
            raise UsageError(
                f"{self._called} gives {described(found)} ({one_line(exc)}); it is to give a "
                "value an example, or one for the batch"
            ) from exc
        if values.shape == (batch.size,):
            tally.add("value", values.numpy())
        elif values.ndim == 0:
            self.by_example = False
            tally.sums["metric"] = tally.sums.get("metric", 0.0) + float(values) * batch.size
        else:
            raise UsageError(
                f"{self._called} gives {tuple(values.shape)} for a batch of {batch.size}; it "
                "is to give a value an example, or one for the batch"
            )

    def _count(
        self,
        tally: Tally,
        output: torch.Tensor,
        reference: torch.Tensor,
        labels: torch.Tensor | None,
        sizes: Sequence[int],
    ) -> None:
        logits, trained = self.logits(output), self.logits(reference)
        columns = {
            "changed": _by_example((logits - trained).double().square()).sum(1),
            "square": _by_example(trained.double().square()).sum(1),
            "none": _by_example(logits.isnan()).any(1).double(),
        }
        if self.is_softmax:
            # An output that is no number is no answer.
            answers = logits.argmax(1)
            if answers.ndim > 1:
                each = columns["none"].new_tensor(answers[0].numel())
                columns["positions"] = each.expand(len(answers))
            is_number = ~logits.isnan().any(1)
            best, before = logits.log_softmax(1), trained.log_softmax(1)
            p = before.exp()
            columns["divergence"] = over_positions((p * (before - best)).sum(1))
            agrees = (answers == trained.argmax(1)) & is_number
            given = p.gather(1, answers.unsqueeze(1)).squeeze(1) * is_number
            tally.add("agrees", _host(agrees))
            tally.add("given", _host(given))
            if labels is not None:
                tally.add("right", _host((answers == labels) & is_number))
                five = logits.topk(min(5, self.classes), dim=1).indices
                columns["top5"] = over_positions((five == labels.unsqueeze(1)).any(1) & is_number)
                of_labels = cross_entropy(logits, labels.long(), reduction="none")
                columns["loss"] = over_positions(of_labels)
        # By batches, whichever go together: sums are then the same to the last bit.
        starts = np.cumsum([0, *sizes[:-1]])
        sums = np.add.reduceat(torch.stack(list(columns.values())).cpu().numpy(), starts, axis=1)
        for name, values in zip(columns, sums.tolist(), strict=True):
            for value in values:
                tally.sums[name] = tally.sums.get(name, 0.0) + value


def told_positions(shape: Sequence[int], /, *, is_plain: bool = True) -> str:
    """Say what of outputs of a shape is taken for classes, and what for positions of an example."""
    if len(shape) < 3:
        return ""
    other = "" if is_plain else f"; give {_VALUES}"
    return (
        f"outputs of {'×'.join(map(str, shape[1:]))} are taken for {shape[1]} classes at each of "
        "several positions; shares are means over the positions of an example, then over examples "
        f"(output= can move classes to the front){other}"
    )


def over_positions(values: torch.Tensor, /) -> torch.Tensor:
    """Return the values of examples, float64; of an example with several positions, their mean."""
    wide = values.double()
    return wide.flatten(1).mean(1) if wide.ndim > 1 else wide


def _by_example(values: torch.Tensor) -> torch.Tensor:
    """Return a row an example, of outputs that are one number each too."""
    return values.reshape(len(values), -1)


def _host(values: torch.Tensor) -> NDArray[Any]:
    """Return the values of examples on the host.

    Of an example with several positions, their mean.
    """
    array: NDArray[Any] = (over_positions(values) if values.ndim > 1 else values).cpu().numpy()
    return array


def _are_probabilities(output: torch.Tensor) -> bool:
    """Tell whether outputs lie in [0, 1] and sum to 1 over the classes, as those of a softmax."""
    wide = output.detach().double()
    if not bool(((wide >= 0) & (wide <= 1 + 1e-4)).all()):
        return False
    return bool(((wide.sum(1) - 1).abs() < 1e-2 / 4).all())


def are_classes(labels: Any, /) -> bool:
    """Return whether labels are whole numbers, as those of classes."""
    is_tensor = isinstance(labels, torch.Tensor)
    return is_tensor and not (labels.is_floating_point() or labels.is_complex())
