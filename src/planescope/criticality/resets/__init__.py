"""Put layers of a trained network back to other weights, and see what it loses.

C. Zhang, S. Bengio, Y. Singer, *Are All Layers Created Equal?* (JMLR 23, 2022).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from planescope.checkpoints.keras.live import refuse
from planescope.criticality.options import ResetOptions, Task
from planescope.criticality.resets.cost import Forecast
from planescope.criticality.resets.data import Own, open_data, synthetic_inputs
from planescope.files.errors import UsageError
from planescope.files.optional import required
from planescope.networks.live.module import unwrapped

if TYPE_CHECKING:
    from torch import nn

    from planescope.criticality.resets.engine.answers import Metric, Pick
    from planescope.criticality.resets.record import Resets
    from planescope.criticality.resets.targets import To
    from planescope.criticality.resets.trained import Subject
    from planescope.data.options import DataOptions
    from planescope.data.roles import Unpack
    from planescope.training.run import Run

__all__ = ["Forecast", "ResetOptions", "forecast", "reset"]

# (cells done, cells in all, name of what is reset)
OnCell = Callable[[int, int, str], None]
PLAIN = ResetOptions()

OWN: Final = Own()


def reset(
    model: nn.Module | Run | str | os.PathLike[str],
    /,
    *,
    to: Any = None,
    data: Any = OWN,
    metric: Metric | None = None,
    chance: float | None = None,
    unpack: Unpack | None = None,
    output: Pick | None = None,
    task: Task | None = None,
    groups: str | Iterable[str | Sequence[str]] = (),
    path: int | None = None,
    draws: int = 1,
    network: str | nn.Module | None = None,
    data_path: str | os.PathLike[str] | None = None,
    data_options: DataOptions | None = None,
    input_shape: Sequence[int] | None = None,
    keep: str | os.PathLike[str] | None = None,
    unfinished: bool = False,
    trust: bool | str | Collection[str] = False,
    options: ResetOptions = PLAIN,
    on_cell: OnCell | None = None,
    **choices: Any,
) -> Resets:
    """Put the layers of a network back to other weights, one at a time, and evaluate each.

    All is evaluated in one pass over the data. The network, its modes, hooks, buffers and gradients
    and all states of random numbers are left as they were.

    Parameters
    ----------
    model : torch.nn.Module, Run or path
        A network in memory (a LightningModule, a compiled or pruned one); a run, whose last
        snapshot is taken, and which gets the result; or a checkpoint, with `network`.
    to : mapping of name to state dict, module or file; file, or several; "fresh"; epochs
        What layers are put back to. A mapping names state dicts, modules or files; ``timm:NAME``
        and ``torchvision:NAME`` stand for published weights. Layers that are missing or of
        another shape there are left out, and a note names them. ``"fresh"`` draws by each module's
        own `reset_parameters`. Of a run also epochs, by default all before the last.
    data : DataLoader, Dataset, LightningDataModule, tensors, iterable of batches, str, or None
        Batches go to the network exactly as they come, on its device. A tensor is the input, a pair
        inputs and labels; of a dictionary ``labels`` or ``label`` are the labels, and the rest is
        given by name as far as `forward` takes it. A name is that of one of planescope's data sets
        (`planescope.data.load.load`), prepared as `Resets.preprocessing` says. A run has its own.
        Without labels only what needs none is told: `disagreement`, `expected_drop` and the like.
        None is synthetic pictures that the network is sure of: `disagreement`, the mean over sets
        of them, ranks layers, and nothing is expected (METHOD, section 7); a run does not get the
        result.
    metric : callable, optional
        Of outputs and batch; higher is better. It gives a value an example, or one for the batch,
        which has no interval then. By default the accuracy, where labels are classes.
    chance : float, optional
        What the metric is by chance; by default, of the accuracy, the share of the commonest label.
    unpack : callable, optional
        Gives inputs and labels (or None) of a batch. Inputs that are a tuple or a dictionary are
        the arguments of `forward`.
    output : str, int or callable, optional
        Picks what of the network's output is its answer.
    task : {"classification", "regression"}, optional
        Whether its outputs are scores of classes, whose largest is the answer, or values, of which
        the relative change is told. By default labels tell, else several outputs are taken for
        scores; a note says so where nothing but their shape told it.
    groups : iterable of sequences of str
        Layers that are put back together, a row each; of a text, those between its commas. A name
        may be that of a block, for all layers in it, or a regular expression of whole names.
    path : int, optional
        Go from the only state of `to` to the trained weights in so many steps (METHOD, section 7).
    draws : int
        How many `"fresh"` makes.
    network : str or torch.nn.Module, optional
        Of a checkpoint, or of a run that a Tracker wrote: a name as for
        `planescope.networks.build.build`, or a module, which is copied.
    data_path, data_options
        Of a data set by name: where its files lie, and how it is prepared. Of synthetic pictures
        `data_options` tells mean and std of the inputs that the network takes.
    input_shape : sequence of int, optional
        Channels, height and width of synthetic pictures, where no snapshot tells them.
    keep : path, optional
        File in which finished cells are kept: broken off, the same call goes on where it was. Of
        data by name alone; a run keeps them itself.
    unfinished : bool
        Take a run that is not finished, as far as it is.
    trust : bool, str or collection of str
        Callables that may run although only the run names them; True for all. Of a path.
    options : ResetOptions
    on_cell : callable, optional
        Called with (cells done, cells in all, name of what is reset), to show progress.
    **choices
        Attributes of `ResetOptions`, in place of those of `options`.

    Returns
    -------
    Resets

    Raises
    ------
    CheckpointError
        If a file is missing, damaged, or of another network.
    UsageError
        If an option is invalid, or the data do not fit the network.
    NoLayersError
        If there is no such layer.
    OutputError
        If the run, or what is kept, cannot be written.
    RunError
        If memory ran out; finished cells are kept.
    """
    required("torch")
    from planescope.criticality.resets import table
    from planescope.criticality.resets.engine.answers import Judge

    options = _options(options, groups, choices)
    judge = Judge(metric=metric, pick=output, task=task)
    with _asked(
        model, to, data, options, trust=trust,
        draws=draws, path=path, network=network, data_path=data_path,
        data_options=data_options, input_shape=input_shape, keep=keep, unfinished=unfinished,
    ) as (subject, run):  # fmt: skip
        resets = table.reset(subject, options, judge, on_cell, unpack=unpack, chance=chance)
    if run is not None and (
        isinstance(data, Own) or (data is not None and run.tracked is not None)
    ):
        resets.save(run.resets)
    return resets


def forecast(
    model: nn.Module | Run | str | os.PathLike[str],
    /,
    *,
    to: Any = None,
    data: Any = OWN,
    metric: Metric | None = None,
    unpack: Unpack | None = None,
    output: Pick | None = None,
    task: Task | None = None,
    groups: str | Iterable[str | Sequence[str]] = (),
    path: int | None = None,
    draws: int = 1,
    network: str | nn.Module | None = None,
    data_path: str | os.PathLike[str] | None = None,
    data_options: DataOptions | None = None,
    input_shape: Sequence[int] | None = None,
    unfinished: bool = False,
    trust: bool | str | Collection[str] = False,
    options: ResetOptions = PLAIN,
    **choices: Any,
) -> Forecast:
    """Tell what `reset` with the same arguments would evaluate, and how long that takes at most.

    The first batch of `data` is read.

    Raises
    ------
    CheckpointError, UsageError, NoLayersError, OutputError
        As `reset`.
    """
    required("torch")
    from planescope.criticality.resets import table
    from planescope.criticality.resets.engine.answers import Judge

    options = _options(options, groups, choices)
    judge = Judge(metric=metric, pick=output, task=task)
    with _asked(
        model, to, data, options, trust=trust,
        draws=draws, path=path, network=network, data_path=data_path,
        data_options=data_options, input_shape=input_shape, keep=None, unfinished=unfinished,
    ) as (subject, _):  # fmt: skip
        return table.forecast(subject, options, judge, unpack=unpack)


@contextlib.contextmanager
def _asked(
    model: Any,
    to: Any,
    data: Any,
    options: ResetOptions,
    *,
    trust: bool | str | Collection[str],
    draws: int,
    path: int | None,
    network: str | nn.Module | None,
    data_path: str | os.PathLike[str] | None,
    data_options: DataOptions | None,
    input_shape: Sequence[int] | None,
    keep: str | os.PathLike[str] | None,
    unfinished: bool,
) -> Iterator[tuple[Subject, Run | None]]:
    """Give the network, what it is put back to and its data, as asked for; and the run, if one is.

    Random states are as they were when the block ends.
    """
    from planescope.criticality.resets.targets import To
    from planescope.data.loaders import generators_of
    from planescope.networks.live.copies import same_random_states

    refuse(model, "reset", "export it to ONNX and use planescope sensitivity")
    run = _run(model, network, trust)
    if run is not None and run.fixed:
        raise UsageError(f"{run.path}: {run.fixed}")
    with same_random_states(*generators_of(data)):
        wanted = To.of(to, draws=draws, path=path, is_run=run is not None)
        opened: Any
        if data is None:
            opened = synthetic_inputs(model, run, input_shape, data_options, options)
        elif input_shape is not None:
            raise UsageError(
                "input_shape is of synthetic pictures (data=None); data have their own"
            )
        else:
            opened = open_data(data, data_path, data_options, network, options, run)
        yield _subject(model, run, wanted, opened, network, keep, options, unfinished), run


def _options(
    options: ResetOptions, groups: str | Iterable[str | Sequence[str]], choices: dict[str, Any]
) -> ResetOptions:
    several = (groups,) if isinstance(groups, str) else groups
    together = [one if isinstance(one, str) else ",".join(one) for one in several]
    known = {field.name for field in dataclasses.fields(ResetOptions)}
    for name in choices:
        if name not in known:
            raise TypeError(f"reset() has no parameter {name!r}")
    if isinstance(choices.get("devices"), str):
        choices = {**choices, "devices": (choices["devices"],)}
    more = {"together": (*options.together, *together)} if together else {}
    return dataclasses.replace(options, **{**more, **choices})


def _run(model: Any, network: Any, trust: bool | str | Collection[str]) -> Run | None:
    """Run that is meant; None where it is a module or a checkpoint."""
    from planescope.training.run import Run

    if isinstance(model, Run):
        return Run.open(model)
    if not isinstance(model, str | os.PathLike):
        return None
    if network is not None:
        name = network if isinstance(network, str) else None
        run = Run(model, network=name, trust=trust)
        return run if run.exists else None
    if Path(model).is_file():
        raise UsageError(f"{model}: a checkpoint does not tell its network; give network=")
    return Run.open(model, trust=trust)


def _subject(
    model: Any,
    run: Run | None,
    to: To,
    data: Any,
    network: Any,
    keep: str | os.PathLike[str] | None,
    options: ResetOptions,
    unfinished: bool,
) -> Subject:
    """Return the network that is reset, with its data."""
    from planescope.criticality.resets.engine.borrow import borrowed, unheeded_hooks
    from planescope.criticality.resets.trained import of_checkpoint, of_module, of_run

    if run is not None:
        if keep is not None:
            raise UsageError("a run keeps finished cells itself; leave out keep")
        own = None if isinstance(network, str) else network
        return of_run(run, to, data, network=own, unfinished=unfinished, options=options)
    if isinstance(model, str | os.PathLike):
        return of_checkpoint(model, to, data, network=network, keep=keep, options=options)
    if not isinstance(model, sys.modules["torch"].nn.Module):
        raise UsageError(
            f"cannot reset a {type(model).__name__}; give a module, a run, or a checkpoint with "
            "network="
        )
    whole = unwrapped(model)
    name = type(whole).__name__
    subject = of_module(borrowed(whole), to, data, name=name, keep=keep, options=options)
    return dataclasses.replace(subject, notes=unheeded_hooks(whole))
