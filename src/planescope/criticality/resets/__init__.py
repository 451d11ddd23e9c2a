"""Put layers of a trained network back to earlier weights, and see what it loses.

C. Zhang, S. Bengio, Y. Singer, *Are All Layers Created Equal?* (JMLR 23, 2022).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from planescope.criticality.resets.options import ResetOptions
from planescope.files.optional import required

if TYPE_CHECKING:
    from torch import nn

    from planescope.criticality.resets.record import Resets
    from planescope.data.load import Files, Images
    from planescope.training.run import Run

__all__ = ["ResetOptions", "reset_checkpoint", "reset_module", "reset_run"]

# (cells done, cells in all, name of what is reset)
OnCell = Callable[[int, int, str], None]
PLAIN = ResetOptions()


def reset_run(
    path: Run | str | os.PathLike[str],
    /,
    *,
    snapshots: Sequence[int] | None = None,
    unfinished: bool = False,
    trust: bool | str | Collection[str] = False,
    options: ResetOptions = PLAIN,
    on_cell: OnCell | None = None,
) -> Resets:
    """Put the layers of a run's last snapshot back to earlier ones.

    The result is written to the run, and so are finished cells as they come: broken off, the same
    call goes on where it was.

    Parameters
    ----------
    path : Run or path
        The run, or its folder.
    snapshots : sequence of int, optional
        Epochs; by default all before the last.
    unfinished : bool
        Take a run that is not finished, as far as it is.
    trust : bool, str or collection of str
        Callables that may run although only the run names them; True for all. Of a path.
    on_cell : callable, optional
        Called with (cells done, cells in all, name of what is reset), to show progress.

    Raises
    ------
    CheckpointError
        If there is no run, it has no such snapshot, or files are missing or damaged.
    UsageError
        If the run is not finished, or an option cannot be.
    NoLayersError
        If there is no such layer.
    OutputError
        If the run cannot be written to.
    RunError
        If memory ran out; finished cells are kept.
    """
    required("torch")
    from planescope.criticality.resets.table import reset
    from planescope.criticality.resets.trained import of_run
    from planescope.training.run import Run

    run = Run.open(path, trust=trust)
    subject = of_run(run, snapshots=snapshots, unfinished=unfinished, options=options)
    resets = reset(subject, options, on_cell)
    resets.save(run.resets)
    return resets


def reset_checkpoint(
    trained: str | os.PathLike[str],
    snapshots: Sequence[str | os.PathLike[str]] = (),
    /,
    *,
    network: str,
    data: str,
    data_path: str | os.PathLike[str] | None = None,
    keep: str | os.PathLike[str] | None = None,
    options: ResetOptions = PLAIN,
    on_cell: OnCell | None = None,
) -> Resets:
    """Put the layers of a checkpoint back to those of others.

    Parameters
    ----------
    trained, snapshots : path or str
        Checkpoints of torch networks, in whatever form `planescope.measure` reads.
    network : str
        As for `planescope.networks.build.build`.
    data, data_path
        As for `planescope.data.load.load`; only files of the split are needed.
    keep : path, optional
        File in which finished cells are kept: broken off, the same call goes on where it was.
    on_cell
        As in `reset_run`.

    Raises
    ------
    CheckpointError
        If a file is missing, damaged, or of another network.
    UsageError, NoLayersError, OutputError, RunError
        As `reset_run`.
    """
    required("torch")
    from planescope.criticality.resets.table import reset
    from planescope.criticality.resets.trained import of_checkpoint

    subject = of_checkpoint(
        trained,
        snapshots,
        network=network,
        data=data,
        data_path=data_path,
        keep=keep,
        options=options,
    )
    return reset(subject, options, on_cell)


def reset_module(
    module: nn.Module,
    snapshots: Mapping[int | str, Mapping[str, Any]],
    /,
    *,
    data: Images | Files,
    keep: str | os.PathLike[str] | None = None,
    options: ResetOptions = PLAIN,
    on_cell: OnCell | None = None,
) -> Resets:
    """Put the layers of a network in memory back to those of state dicts.

    Parameters
    ----------
    module : torch.nn.Module
        A classifier. It is copied, and left exactly as it is.
    snapshots : mapping of epoch or name to state dict
    data : Images or Files
        As `planescope.data.load.load` gives them.
    keep, on_cell
        As in `reset_checkpoint`.

    Raises
    ------
    CheckpointError
        If a state dict is of another network.
    UsageError
        As `reset_run`, and for fresh draws, which nobody can make of a module in memory.
    NoLayersError, OutputError, RunError
        As `reset_run`.
    """
    required("torch")
    from planescope.criticality.resets.table import reset
    from planescope.criticality.resets.trained import of_module

    return reset(
        of_module(module, snapshots, data=data, keep=keep, options=options), options, on_cell
    )
