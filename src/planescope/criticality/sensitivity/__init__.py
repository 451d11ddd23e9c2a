"""Sensitivity: the cost of other weights in a layer, with labels, without, or without data.

METHOD, section 7: a cell is a layer and what stands in for its weights. On inputs of the user's
with labels the cost is measured, without labels the network's own probabilities estimate it, and
with nothing at all synthetic pictures rank layers and ways.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from planescope.criticality.options import InputOptions, Task
from planescope.criticality.replacements import Ways, read_ways
from planescope.files.optional import required
from planescope.hyperplanes.layer import Kind

if TYPE_CHECKING:
    from torch import nn

    from planescope.criticality.resets.engine.answers import Metric, Pick
    from planescope.criticality.sensitivity.record import Sensitivity
    from planescope.data.options import DataOptions
    from planescope.data.roles import Unpack
    from planescope.training.run import Run

__all__ = ["Cost", "sensitivity"]

OnCell = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of a call, told beforehand.

    Attributes
    ----------
    layers, cells : int
        A cell is a layer and what stands in for its weights; of noise each draw is one.
    inputs : int or None
        Inputs that each cell is evaluated on; None where nobody knows before the last batch.
    seconds : float or None
        About; what comes before a layer is computed once for all its cells, so that it is less.
    """

    layers: int
    cells: int
    inputs: int | None
    seconds: float | None


def sensitivity(
    model: nn.Module | Run | str | os.PathLike[str],
    /,
    *,
    ways: Ways | None = None,
    data: Any = None,
    network: str | nn.Module | None = None,
    labelled: bool = True,
    metric: Metric | None = None,
    chance: float | None = None,
    unpack: Unpack | None = None,
    output: Pick | None = None,
    task: Task | None = None,
    kinds: Iterable[Kind | str] | str = (),
    layers: str | None = None,
    input_shape: Sequence[int] | None = None,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    examples: int | None = None,
    data_path: str | os.PathLike[str] | None = None,
    data_options: DataOptions | None = None,
    split: str = "val",
    device: str = "auto",
    memory: int | None = None,
    seed: int = 0,
    trust: bool | str | Collection[str] = False,
    dry_run: bool = False,
    on_cell: OnCell | None = None,
) -> Sensitivity | Cost:
    """Find what it costs a network to prune, thin, factor or quantise each layer alone.

    The network is left as it was. With nothing but the network, synthetic pictures rank layers and
    ways (`score`); with inputs without labels the network's own probabilities tell the loss to be
    expected; with labels, or a metric, the loss is measured.

    Parameters
    ----------
    model : torch.nn.Module, Run or path
        A network in memory; a run, whose last snapshot is taken; ``timm:NAME`` or
        ``torchvision:NAME``; or a checkpoint, with `network`.
    ways : str, sequence of str, mapping of str to callable, or None
        ``"prune:0.9,filters:0.5,rank:0.25,bits:3,noise:0.5"`` (METHOD, section 7). A callable takes
        a weight as the network holds it and gives another of its shape. None is a short ladder of
        the first four.
    data : DataLoader, Dataset, tensors, path of a .npy file, folder, name, or None
        As `planescope.reset` takes it; batches go to the network as they come. None is synthetic.
    network : str or torch.nn.Module, optional
        Of a checkpoint, as `planescope.reset` takes it.
    labelled : bool
        Whether labels of `data`, where there are any, may be looked at.
    metric, chance, unpack, output, task
        As `planescope.reset` takes them.
    kinds : iterable of {"conv", "pointwise", "transposed", "linear"}, or "all"
        By default convolutions with a kernel larger than 1, or linear layers where there are none.
    layers : str, optional
        Names or regular expressions, commas between.
    input_shape : sequence of int, optional
        Channels, height and width of synthetic pictures; else what the network's configuration or
        first linear layer tells, else an assumption, which the result says.
    mean, std : sequence of float
        Of the inputs that the network takes, a channel each or one for all, for synthetic pictures.
    examples : int, optional
        Take the first so many inputs of `data`.
    data_path, data_options, split
        Of data by name: where they lie, how they are prepared, and which part is taken.
    device : str
        As torch calls it; by default where the module is, or a GPU where there is one.
    memory : int, optional
        Bytes for what is kept between steps.
    seed : int
        Of synthetic pictures.
    trust : bool, str or collection of str
        Callables that may run although only a run names them.
    dry_run : bool
        Tell what it would take, and do nothing else.
    on_cell : callable, optional
        Called with (cells done, cells in all, name of the layer), to show progress.

    Returns
    -------
    Sensitivity, or Cost where `dry_run`

    Raises
    ------
    UsageError
        If a way is not understood, an option is invalid, or the inputs do not fit the network.
    CheckpointError
        If a file is missing, damaged, or of another network.
    NoLayersError
        If there is no such layer.
    RunError
        If memory ran out.
    """
    wanted = read_ways(ways)  # before anything is loaded
    required("torch")
    from planescope.criticality.sensitivity.job import Job

    job = Job.open(
        model, network, kinds=kinds, layers=layers, device=device, memory=memory, trust=trust,
        input_options=InputOptions(
            shape=None if input_shape is None else tuple(input_shape), mean=tuple(mean),
            std=tuple(std), examples=examples, seed=seed,
        ),
    )  # fmt: skip
    with job.undisturbed(data):
        job.take(
            data, labelled=labelled, metric=metric, pick=output, task=task,
            unpack=unpack, split=split, data_path=data_path, data_options=data_options,
        )  # fmt: skip
        if dry_run:
            return job.cost(wanted)
        return job.sensitivity(wanted, chance=chance, on_cell=on_cell)
