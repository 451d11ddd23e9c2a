"""Predict, without labels, which layers are critical when they are put back to the initialisation.

METHOD, section 7. With inputs of the network's own kind its own probabilities tell the loss to be
expected; with the initialisation and nothing else, pictures that the network is sure of rank its
layers; the weights alone do not tell.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planescope.criticality.options import InputOptions, Task
from planescope.criticality.prediction.record import LayerPrediction, Method, Prediction
from planescope.files.errors import CheckpointError, UsageError
from planescope.files.folders import inside
from planescope.files.optional import required
from planescope.hyperplanes.layer import Kind

if TYPE_CHECKING:
    from torch import nn

    from planescope.criticality.resets.engine.answers import Pick
    from planescope.criticality.sensitivity import Cost
    from planescope.data.options import DataOptions
    from planescope.data.roles import Unpack
    from planescope.measurement.record import Measurement
    from planescope.training.run import Run

__all__ = ["LayerPrediction", "Method", "Prediction", "predict_critical"]

OnCell = Callable[[int, int, str], None]


def predict_critical(
    model: nn.Module | Run | Measurement | str | os.PathLike[str],
    /,
    *,
    init: Any = None,
    network: str | nn.Module | None = None,
    data: Any = None,
    chance: float | None = None,
    unpack: Unpack | None = None,
    output: Pick | None = None,
    task: Task | None = None,
    kinds: Iterable[Kind | str] | str = (),
    layers: str | None = None,
    input_shape: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
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
) -> Prediction | Cost:
    """Predict for each layer whether the network loses much when it is put back where it started.

    No label is looked at, and the network is left as it was.

    Parameters
    ----------
    model : torch.nn.Module, Run, Measurement or path
        A network in memory; a run, whose last snapshot is taken and put back to its first; or a
        checkpoint. A Measurement, and whatever else `planescope.measure` takes, has weights alone.
    init : state dict, torch.nn.Module or path, optional
        The initialisation that this very network started from, or ``timm:NAME`` or
        ``torchvision:NAME`` for published weights. A fresh draw is another question: put back to
        one, nearly every layer is critical. Without it layers have their agreement, which does not
        tell critical ones, and no verdict.
    network : str or torch.nn.Module, optional
        Of a checkpoint, as `planescope.reset` takes it.
    data : DataLoader, Dataset, tensors, path of a .npy file, folder, name, or None
        Inputs, as `planescope.sensitivity` takes them; labels among them are not looked at. None
        is synthetic.
    chance : float, optional
        The share of the commonest label, where that is known; by default 1/classes.
    unpack, output, task
        As `planescope.reset` takes them.
    kinds : iterable of {"conv", "pointwise", "transposed", "linear"}, or "all"
        By default convolutions with a kernel larger than 1, or linear layers where there are none.
    layers, input_shape, mean, std, examples, data_path, data_options, split, device, memory, seed
        As `planescope.sensitivity` takes them.
    trust : bool, str or collection of str
        Callables that may run although only a run names them.
    dry_run : bool
        Tell what it would take, and do nothing else.
    on_cell : callable, optional
        Called with (cells done, cells in all, name of the layer), to show progress.

    Returns
    -------
    Prediction, or Cost where `dry_run`

    Raises
    ------
    UsageError
        If an option is invalid, the inputs do not fit the network or are all alike, or the network
        equals its initialisation.
    CheckpointError
        If a file is missing, damaged, or of another network.
    NoLayersError
        If there is no such layer.
    RunError
        If memory ran out.
    """
    if init is None:
        init = _of_run(model, trust)
    if init is None:
        told = {
            "data": data, "chance": chance, "unpack": unpack, "output": output,
            "task": task,
            "input_shape": input_shape, "mean": mean, "std": std, "examples": examples,
            "data_path": data_path, "data_options": data_options, "dry_run": dry_run or None,
        }  # fmt: skip
        given = [name for name, value in told.items() if value is not None]
        if given:
            raise UsageError(
                f"{given[0]} needs init=, what the layers are put back to (--init): from the "
                "weights alone no network is run"
            )
        from planescope.criticality.prediction.weights import of_weights

        return of_weights(model, network=network, kinds=kinds, layers=layers)
    required("torch")
    from planescope.criticality.prediction.restored import open_start, predicted
    from planescope.criticality.sensitivity.job import Job

    job = Job.open(
        model, network, kinds=kinds, layers=layers, device=device, memory=memory, trust=trust,
        input_options=InputOptions(
            shape=None if input_shape is None else tuple(input_shape),
            mean=(0.0,) if mean is None else tuple(mean), std=(1.0,) if std is None else tuple(std),
            examples=examples, seed=seed,
        ),
    )  # fmt: skip
    start = open_start(init, job)
    with job.undisturbed(data):
        job.take(
            data, labelled=False, metric=None, pick=output, task=task,
            unpack=unpack, split=split, data_path=data_path, data_options=data_options,
        )  # fmt: skip
        if dry_run:
            left = len(job.parts) - len(start.skipped)
            return job.cost_of(left, left)
        return predicted(job, start, chance=chance, on_cell=on_cell)


def _of_run(model: Any, trust: Any) -> Path | None:
    """Return the initialisation that a run has kept; None of what is no run.

    Raises
    ------
    CheckpointError
        If the run has kept none.
    """
    if isinstance(model, str | os.PathLike):
        if not inside(model, "config.yaml").is_file():
            return None
    elif "planescope.training.run" not in sys.modules:  # there is no Run then, and it takes long
        return None
    from planescope.training.run import Run

    run = Run.found(model, trust=trust)
    if run is None:
        return None
    files = run.snapshots
    if 0 not in files:
        raise CheckpointError(
            f"{run.path}: has no snapshot of epoch 0; give its initialisation by --init (init=)"
        )
    return files[0]
