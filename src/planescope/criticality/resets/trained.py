"""What resets are made of: a trained network, weights to put back, and examples; from any source.

To import this is to import torch.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from planescope.checkpoints import read_contents, sharded
from planescope.checkpoints.locate import locate
from planescope.criticality.resets.record import RAND
from planescope.data.load import DataOptions, Resize, load
from planescope.files.errors import CheckpointError, OutputError, UsageError, one_line
from planescope.hyperplanes.layer import StateDict, Tensor
from planescope.networks.copies import deep_copy
from planescope.networks.load import build_like, load_network
from planescope.networks.module import read_state_dict, unwrapped
from planescope.networks.paper import NETWORKS, smallest_image
from planescope.networks.parametrisations import resolved
from planescope.training.loop import load_split
from planescope.training.run import Run, State

if TYPE_CHECKING:
    from planescope.criticality.resets.options import ResetOptions
    from planescope.data.load import Files, Images

# Batch norm counts batches under this name; no output depends on it.
COUNTER = "num_batches_tracked"


@dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """Weights that layers can be put back to.

    Attributes
    ----------
    snapshot, draw
        As in a cell of the result.
    tensors : mapping of str to Tensor
        By the names of the trained network; read when they are needed.
    digest : callable
        Gives what tells these weights from others.
    """

    snapshot: int | str
    draw: int | None
    tensors: Mapping[str, Tensor]
    digest: Callable[[], str]


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A trained network, what it can be put back to, and what it is evaluated on.

    Attributes
    ----------
    source, network : str
        Where it comes from, and what it is called.
    module : torch.nn.Module
        In evaluation mode, on the CPU; nobody else's.
    targets : tuple of Target
    data : Images or Files
    fresh : callable or None
        Gives the network with freshly drawn weights, by seed; None where nobody can.
    keep : Path or None
        File in which finished work is kept.
    """

    source: str
    network: str
    module: nn.Module
    targets: tuple[Target, ...]
    data: Images | Files
    fresh: Callable[[int], nn.Module] | None
    keep: Path | None


def of_run(
    run: Run,
    /,
    *,
    snapshots: Sequence[int] | None,
    unfinished: bool,
    options: ResetOptions,
) -> Subject:
    """Last snapshot of a run, and earlier ones; `planescope.reset_run` says what is raised."""
    path, config, status = run.path, run.config, run.status
    network, data = run.consented("network"), run.consented("data")
    # Nobody asked for a download, which would write where the run says.
    config = config.but({"network": network, "data": data, "download": False})
    if status.state is not State.FINISHED and not unfinished:
        raise UsageError(
            f"{path}: the run is not finished but {status.state}; let it finish, or take it as it "
            "is with --unfinished"
        )
    files = run.snapshots
    epochs = _epochs(path, list(files), snapshots, drawn=options.draws > 0)
    trained = files[max(files)]
    state = _state(trained)
    module = load_network(network, state)
    return Subject(
        source=str(path),
        network=network,
        module=module,
        targets=tuple(_target(epoch, files[epoch], module) for epoch in epochs),
        data=load_split(config, options.split),
        fresh=lambda seed: build_like(network, state, seed=seed),
        keep=run.resets_progress,
    )


def _epochs(
    path: str | os.PathLike[str],
    epochs: Sequence[int],
    wanted: Sequence[int] | None,
    *,
    drawn: bool,
) -> Sequence[int]:
    """Epochs that layers are put back to."""
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
    snapshots: Sequence[str | os.PathLike[str]],
    /,
    *,
    network: str,
    data: str,
    data_path: str | os.PathLike[str] | None,
    keep: str | os.PathLike[str] | None,
    options: ResetOptions,
) -> Subject:
    """Checkpoints of one network; `planescope.reset_checkpoint` says what is raised."""
    if not snapshots and not options.draws:
        raise UsageError("there is nothing to put layers back to; give --snapshot or --rand")
    state = resolved(_state(trained))
    try:
        module = load_network(network, state)
    except CheckpointError as exc:
        raise CheckpointError(f"{trained}: {exc}") from exc
    part = functools.partial(
        load, data, split=options.split, path=None if data_path is None else Path(data_path)
    )
    images = part()
    least = smallest_image(network) if network in NETWORKS else 1
    if min(images.input_shape[1:]) < least <= 32:
        images = part(options=DataOptions(resize=Resize.PAD_32))
    names = [Path(snapshot).name for snapshot in snapshots]
    if len(set(names)) < len(names):
        names = [str(snapshot) for snapshot in snapshots]
    return Subject(
        source=str(trained),
        network=network,
        module=module,
        targets=tuple(
            _target(name, path, module) for name, path in zip(names, snapshots, strict=True)
        ),
        data=images,
        fresh=lambda seed: build_like(network, state, seed=seed),
        keep=None if keep is None else Path(keep),
    )


def of_module(
    module: nn.Module,
    snapshots: Mapping[int | str, Mapping[str, Any]],
    /,
    *,
    data: Images | Files,
    keep: str | os.PathLike[str] | None,
    options: ResetOptions,
) -> Subject:
    """Network in memory, copied; `planescope.reset_module` says what is raised."""
    if options.draws:
        raise UsageError("a network in memory cannot be drawn anew; give draws as snapshots")
    if not snapshots:
        raise UsageError("there is nothing to put layers back to; give a snapshot")
    whole = unwrapped(module)
    own = _copied(whole).cpu().eval()
    return Subject(
        source=type(whole).__name__,
        network=type(whole).__name__,
        module=own,
        targets=tuple(
            Target(
                snapshot=name,
                draw=None,
                tensors=_fitting(read_state_dict(state).tensors, own, f"snapshot {name!r}"),
                digest=functools.partial(digest_of, state),
            )
            for name, state in snapshots.items()
        ),
        data=data,
        fresh=None,
        keep=None if keep is None else Path(keep),
    )


def _copied(module: nn.Module) -> nn.Module:
    """A copy of a network with torch's own hooks alone: nothing of the user's is called."""
    try:
        own = deep_copy(module)
    except Exception as exc:  # a lock, an open file: a module holds whatever its class likes
        raise UsageError(
            f"{type(module).__name__} cannot be copied ({one_line(exc)}); give a network that "
            "copy.deepcopy takes"
        ) from exc
    for part in own.modules():
        for name in _HOOKS:
            held = getattr(part, name, {})
            for key in [k for k, hook in held.items() if not _is_of_torch(hook)]:
                del held[key]
    return own


_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)  # fmt: skip


def _is_of_torch(hook: Any) -> bool:
    """Whether a hook is one by which torch computes a weight."""
    inner = getattr(hook, "hook", hook)  # torch wraps some
    owner = getattr(inner, "__self__", inner)
    modules = (getattr(inner, "__module__", ""), type(owner).__module__)
    return any(str(name).startswith("torch.nn.") for name in modules)


def drawn(subject: Subject, options: ResetOptions, folder: Path, /) -> list[Target]:
    """Fresh draws of the network, in files of `folder`: all of them together may be large.

    Raises
    ------
    UsageError
        As `planescope.networks.build.build`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    targets = []
    for draw in range(options.draws):
        assert subject.fresh is not None  # noqa: S101  the subjects without one refuse draws
        seed = int(np.random.SeedSequence([options.seed, draw]).generate_state(1)[0])
        path = folder / f"draw-{draw}.safetensors"
        weights = subject.fresh(seed).state_dict()
        try:
            save_file({name: w.contiguous().clone() for name, w in weights.items()}, path)
        except (OSError, SafetensorError) as exc:
            raise OutputError(f"{folder}: a draw cannot be written: {one_line(exc)}") from exc
        tensors = _fitting(_state(path).tensors, subject.module, f"draw {draw}")
        digest = functools.partial(str, seed)
        targets.append(Target(snapshot=RAND, draw=draw, tensors=tensors, digest=digest))
    return targets


def _state(path: str | os.PathLike[str]) -> StateDict:
    _, contents = read_contents(locate(path))
    if not isinstance(contents, StateDict):
        raise CheckpointError(f"{path}: holds a graph, not the state dict of a torch network")
    return contents


def _target(name: int | str, path: str | os.PathLike[str], module: nn.Module) -> Target:
    state = _state(path)
    if not module.state_dict().keys() <= state.tensors.keys():
        state = resolved(state)  # the network has whole weights that the file has in parts
    return Target(
        snapshot=name,
        draw=None,
        tensors=_fitting(state.tensors, module, str(path)),
        digest=functools.partial(_file_digest, path),
    )


def _fitting(tensors: Mapping[str, Tensor], module: nn.Module, path: str) -> Mapping[str, Tensor]:
    """The same tensors by the names of a network, which they are all to have."""
    own = {name: t.shape for name, t in module.state_dict().items() if not name.endswith(COUNTER)}
    first = next(iter(own), "")
    prefix = next((key.removesuffix(first) for key in tensors if key.endswith(f".{first}")), "")
    if first not in tensors:  # within a wrapper, whose name goes before
        tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    for name, shape in own.items():
        layer, found = name.removesuffix(".weight"), tensors.get(name)
        if found is None:
            raise CheckpointError(f"{path}: is of another network: it has no {layer}")
        if found.shape != tuple(shape):
            raise CheckpointError(
                f"{path}: is of another network: {layer} has shape {_size(found.shape)} there, "
                f"{_size(shape)} in the trained one"
            )
    extra = [name for name in tensors if name not in own and not name.endswith(COUNTER)]
    if extra:
        raise CheckpointError(
            f"{path}: is of another network: it has {extra[0].removesuffix('.weight')} of shape "
            f"{_size(tensors[extra[0]].shape)}, which the trained one has not"
        )
    return tensors


def _size(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _file_digest(name: str | os.PathLike[str]) -> str:
    path = locate(name)
    form, _ = read_contents(path)
    digest = hashlib.sha256()
    for file in sharded.files(path) if form == sharded.NAME else [path]:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def digest_of(tensors: Mapping[str, Any], /) -> str:
    """Digest of tensors in memory and their names."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode(errors="surrogateescape"))
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            values = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(values.view(torch.uint8).numpy())
    return digest.hexdigest()
