"""The parts of resets: a trained network, weights to reset to, and examples; from any source.

To import this is to import torch.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from planescope.criticality.options import InputOptions
from planescope.criticality.resets.targets import Target, To, target_in, targets_of
from planescope.criticality.resets.weights import copied, state_of, with_weights
from planescope.data.loaders import Loader
from planescope.files.errors import CheckpointError, UsageError
from planescope.networks.graph.trace import remembered
from planescope.networks.load import build_like, load_network
from planescope.networks.state.parametrisations import resolved
from planescope.training.folder.status import State
from planescope.training.run import Run
from planescope.training.split import load_split

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from torch import nn

    from planescope.criticality.options import ResetOptions
    from planescope.data.load import Files, Images

    Data = Images | Files | Loader | InputOptions


NOTHING = "there is nothing to put layers back to; give to= (--snapshot, --fresh or --rand)"


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A trained network, what it can be put back to, and what it is evaluated on.

    Attributes
    ----------
    source, network : str
        Where it comes from, and what it is called.
    module : torch.nn.Module
        In evaluation mode; nobody else's.
    targets : tuple of Target
    data : Images, Files, Loader or InputOptions
        The last are of synthetic pictures.
    fresh : callable or None
        Gives the network as its own initialiser draws it, by seed; None where nobody can.
    keep : Path or None
        File in which finished work is kept.
    redrawn : int
        Draws by each module's own `reset_parameters`.
    path : int or None
        Steps from the only target to the trained weights.
    stays : bool
        Evaluate where the module is, unless another device is asked for.
    notes : tuple of str
        What of the network is not as its owner runs it.
    """

    source: str
    network: str
    module: nn.Module
    targets: tuple[Target, ...]
    data: Data
    fresh: Callable[[int], nn.Module] | None
    keep: Path | None
    redrawn: int = 0
    path: int | None = None
    stays: bool = False
    notes: tuple[str, ...] = ()


def of_run(
    run: Run,
    to: To,
    data: Data | None,
    /,
    *,
    network: nn.Module | None = None,
    unfinished: bool,
    options: ResetOptions,
) -> Subject:
    """Return the last snapshot of a run, and earlier ones.

    `planescope.reset` says what is raised.
    """
    path, status = run.path, run.status
    name = run.about.network if network is not None else name_of(run)
    examples: Callable[[], Data]
    if data is None:
        # Nobody asked for a download, which would write where the run says.
        config = run.config.but({"network": name, "download": False})
        config = config.but({"data": run.consented("data")})
        examples = functools.partial(load_split, config, options.split)
    else:
        given = data

        def examples() -> Data:
            return given

    if run.tracked is None and status.state is not State.FINISHED and not unfinished:
        raise UsageError(
            f"{path}: the run is not finished but {status.state}; let it finish, or take it as it "
            "is with --unfinished"
        )
    files = run.snapshots
    drawn = options.draws > 0 or to.fresh > 0 or bool(to.states)
    epochs = _epochs(path, list(files), to.epochs, drawn=drawn)
    trained = files[max(files)]
    state = state_of(trained)
    module = (
        remembered(load_network(name, state)) if network is None else
        copied(network, state, str(path))
    )  # fmt: skip
    if network is not None and options.draws:
        raise UsageError('nobody knows the initialiser of a network in memory; give to="fresh"')
    by_steps = run.unit == "step"
    return Subject(
        source=str(path),
        network=name,
        module=module,
        targets=(
            # Before the first step is before the first epoch.
            *(target_in(f"step {n}" if by_steps and n else n, files[n], module) for n in epochs),
            *targets_of(to.states, module),
        ),
        data=examples(),
        fresh=lambda seed: build_like(name, state, seed=seed),
        keep=None if isinstance(data, Loader | InputOptions) else run.resets_progress,
        redrawn=to.fresh,
        path=to.path,
    )


def name_of(run: Run, /) -> str:
    """Return the name that a run's network is built by.

    Raises
    ------
    UsageError
        If only its class is known, or the name is of code that nobody consented to.
    """
    if run.named_network is None:
        raise UsageError(
            f"{run.path}: a Tracker followed this training, and knows of its network only the "
            "class; give network= (--network package.module:callable)"
        )
    return run.consented("network")


def last_of(run: Run, network: str | nn.Module | None, /) -> tuple[Path, str | nn.Module]:
    """Return the last snapshot of a run, and what its network is built by, or copied from.

    Raises
    ------
    CheckpointError
        If there is no snapshot yet.
    UsageError
        As `name_of`, where `network` is None.
    """
    if run.fixed:
        raise UsageError(f"{run.path}: {run.fixed}")
    files = run.snapshots
    if not files:
        raise CheckpointError(f"{run.path}: has no snapshot yet")
    return files[max(files)], name_of(run) if network is None else network


def _epochs(
    path: str | os.PathLike[str],
    epochs: Sequence[int],
    wanted: Sequence[int] | None,
    *,
    drawn: bool,
) -> Sequence[int]:
    """Return the epochs that layers are put back to."""
    there = f"there are {', '.join(map(str, epochs))}" if epochs else "there are none yet"
    if not epochs or (wanted is None and 0 not in epochs and not drawn):
        raise CheckpointError(
            f"{path}: has no snapshot of epoch 0; {there}, which --snapshot chooses from"
        )
    for epoch in wanted or ():
        if epoch not in epochs:
            raise CheckpointError(f"{path}: has no snapshot of epoch {epoch}; {there}")
    if len(epochs) < 2 and not drawn:
        raise CheckpointError(
            f"{path}: its only snapshot is of epoch {epochs[0]}; train it before its layers are "
            "put back"
        )
    return epochs[:-1] if wanted is None else sorted(set(wanted))


def of_checkpoint(
    trained: str | os.PathLike[str],
    to: To,
    data: Data,
    /,
    *,
    network: str | nn.Module,
    keep: str | os.PathLike[str] | None,
    options: ResetOptions,
) -> Subject:
    """Return the checkpoints of one network; `planescope.reset` says what is raised."""
    if not to.states and not options.draws and not to.fresh:
        raise UsageError(NOTHING)
    state = resolved(state_of(trained))
    name = network if isinstance(network, str) else type(network).__name__
    module = with_weights(network, state, trained)
    if options.draws and not isinstance(network, str):
        raise UsageError('nobody knows the initialiser of a network in memory; give to="fresh"')
    return Subject(
        source=str(trained),
        network=name,
        module=module,
        targets=targets_of(to.states, module),
        data=data,
        fresh=lambda seed: build_like(str(network), state, seed=seed),
        keep=None if keep is None else Path(keep),
        redrawn=to.fresh,
        path=to.path,
    )


def of_module(
    module: nn.Module,
    to: To,
    data: Data,
    /,
    *,
    name: str,
    keep: str | os.PathLike[str] | None,
    options: ResetOptions,
) -> Subject:
    """Return the network in memory, borrowed; `planescope.reset` says what is raised."""
    if options.draws:
        raise UsageError('nobody knows the initialiser of a network in memory; give to="fresh"')
    if not to.states and not to.fresh:
        raise UsageError(NOTHING)
    return Subject(
        source=name,
        network=name,
        module=module,
        targets=targets_of(to.states, module),
        data=data,
        fresh=None,
        keep=None if keep is None else Path(keep),
        redrawn=to.fresh,
        path=to.path,
        stays=True,
    )
