"""The parts of resets: a trained network, weights to reset to, and examples; from any source.

To import this is to import torch.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from planescope.checkpoints import read_contents, sharded
from planescope.checkpoints.locate import locate
from planescope.criticality.resets.record import FRESH, RAND
from planescope.criticality.sensitivity.inputs import InputOptions
from planescope.data.loaders import Loader
from planescope.files.errors import CheckpointError, OutputError, UsageError, one_line
from planescope.hyperplanes.layer import StateDict, Tensor
from planescope.measurement.source import LIBRARIES
from planescope.networks.build import load_pretrained
from planescope.networks.copies import deep_copy
from planescope.networks.load import build_like, load_network, tensor_of
from planescope.networks.module import read_state_dict, unwrapped
from planescope.networks.paper import NETWORKS, smallest_image
from planescope.networks.parametrisations import resolved
from planescope.training.loop import load_split
from planescope.training.run import Run, State

if TYPE_CHECKING:
    from planescope.criticality.resets.options import ResetOptions
    from planescope.data.load import Files, Images

    Data = Images | Files | Loader | InputOptions

# Batch norm counts batches under this name; no output depends on it.
COUNTER = "num_batches_tracked"

NOTHING = "there is nothing to put layers back to; give to= (--snapshot, --fresh or --rand)"


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
    odd : tuple of str
        Why some tensors of the network are missing, in sentences.
    """

    snapshot: int | str
    draw: int | None
    tensors: Mapping[str, Tensor]
    digest: Callable[[], str]
    odd: tuple[str, ...] = ()


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
    """Last snapshot of a run, and earlier ones; `planescope.reset` says what is raised."""
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
    module = load_network(name, state) if network is None else _copied(network, state)
    if network is not None and options.draws:
        raise UsageError('nobody knows the initialiser of a network in memory; give to="fresh"')
    by_steps = run.unit == "step"
    return Subject(
        source=str(path),
        network=name,
        module=module,
        targets=(
            # Before the first step is before the first epoch.
            *(_target(f"step {n}" if by_steps and n else n, files[n], module) for n in epochs),
            *_targets(to.states, module),
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


@dataclass(frozen=True, kw_only=True)
class To:
    """Weights that layers are put back to, as they were asked for.

    Attributes
    ----------
    epochs : tuple of int or None
        Of a run; None where nothing was asked for, which stands for all.
    states : dict of str to object
        State dicts, modules, paths, or names of published weights, by name.
    fresh : int
        Draws by each module's own `reset_parameters`.
    path : int or None
        Steps from one of these to the trained weights.
    """

    epochs: tuple[int, ...] | None = None
    states: Mapping[int | str, Any] = field(default_factory=dict)
    fresh: int = 0
    path: int | None = None

    @classmethod
    def of(cls, to: Any, *, draws: int, path: int | None, is_run: bool) -> To:
        """Read what a user gave as `to`.

        Raises
        ------
        UsageError
            If it cannot be read so.
        """
        epochs: list[int] = []
        states: dict[int | str, Any] = {}
        fresh, nothing = 0, to is None
        if isinstance(to, Mapping):
            if any(isinstance(value, torch.Tensor) for value in to.values()):
                raise UsageError('a state dict as to= needs a name: to={"init": state_dict}')
            states, to = dict(to), ()
        one = isinstance(to, str | os.PathLike | int | nn.Module)
        for each in () if to is None else (to,) if one else to:
            if isinstance(each, bool) or not isinstance(each, str | os.PathLike | int):
                raise UsageError(
                    f'to= has a {type(each).__name__}; give it a name: to={{"init": ...}}'
                )
            if isinstance(each, int) and is_run:
                epochs.append(each)
            elif isinstance(each, int):
                raise UsageError(f"to={each}: epochs are those of a run; give state dicts or files")
            elif each == FRESH:
                fresh = draws
            else:
                states[_short(each, to)] = each
        if path is not None and (path < 1 or fresh or len(states) + len(epochs) != 1):
            raise UsageError("a path of 1 step or more goes from one state, given by to=")
        return cls(epochs=None if nothing else tuple(epochs), states=states, fresh=fresh, path=path)


def _short(name: str | os.PathLike[str], every: Any) -> str:
    """Name of a file; its whole path where two files have the same."""
    names = [] if isinstance(every, str | os.PathLike) else [Path(str(one)).name for one in every]
    short = Path(name).name
    return str(name) if names.count(short) > 1 or str(name).startswith(LIBRARIES) else short


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
        targets=_targets(to.states, module),
        data=data,
        fresh=lambda seed: build_like(str(network), state, seed=seed),
        keep=None if keep is None else Path(keep),
        redrawn=to.fresh,
        path=to.path,
    )


def with_weights(
    network: str | nn.Module, state: StateDict, path: str | os.PathLike[str], /
) -> nn.Module:
    """Return a network, built by its name or copied, with the weights of a file's state dict.

    Raises
    ------
    CheckpointError
        If they are of another network.
    """
    try:
        return load_network(network, state) if isinstance(network, str) else _copied(network, state)
    except CheckpointError as exc:
        raise CheckpointError(f"{path}: {exc}") from exc


def _copied(network: nn.Module, state: StateDict) -> nn.Module:
    module = deep_copy(unwrapped(network)).cpu().eval()
    tensors, odd = fitting(state.tensors, module, "it")
    if odd:
        raise CheckpointError(odd[0])
    own = module.state_dict()
    held = {name: tensor_of(tensors[name].read()) for name in own if name in tensors}
    module.load_state_dict(held, strict=False)
    return module


def smallest_of(network: str | nn.Module, /) -> int:
    """Return the smallest images that a network takes, where that is known; else 1."""
    return smallest_image(network) if isinstance(network, str) and network in NETWORKS else 1


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
        targets=_targets(to.states, module),
        data=data,
        fresh=None,
        keep=None if keep is None else Path(keep),
        redrawn=to.fresh,
        path=to.path,
        stays=True,
    )


def _targets(states: Mapping[int | str, Any], module: nn.Module) -> tuple[Target, ...]:
    return tuple(target_of(name, state, module) for name, state in states.items())


def target_of(name: int | str, state: Any, module: nn.Module, /) -> Target:
    """Return the weights of a state dict, a module, a file, or published ones.

    Raises
    ------
    CheckpointError
        If a file is missing or damaged, or they are of another network.
    UsageError
        If it is none of these.
    """
    if isinstance(state, str) and state.startswith(LIBRARIES):
        state = load_pretrained(state)
    if isinstance(state, str | os.PathLike):
        return _target(name, state, module)
    if isinstance(state, nn.Module):
        state = unwrapped(state).state_dict()
    if not isinstance(state, Mapping):
        raise UsageError(f"to={{{name!r}: ...}} is a {type(state).__name__}, not a state dict")
    tensors, odd = fitting(
        _in_parts_or_whole(read_state_dict(state), module),
        module,
        f"snapshot {name!r}",
        partly=True,
    )
    return Target(
        snapshot=name,
        draw=None,
        tensors=tensors,
        digest=functools.partial(digest_of, state),
        odd=odd,
    )


def stepped(subject: Subject, /) -> tuple[Target, ...]:
    """Targets, or the steps from the only one to the trained weights (METHOD, section 7: path)."""
    if subject.path is None:
        return subject.targets
    (first,), steps = subject.targets, subject.path
    own = subject.module.state_dict()
    return tuple(
        replace(
            first,
            snapshot=f"path:{step}/{steps}",
            tensors={
                name: replace(
                    tensor, read=functools.partial(_between, tensor, own[name], step, steps)
                )
                for name, tensor in first.tensors.items()
                if name in own
            },
            digest=functools.partial(_step_digest, first, step, steps),
        )
        for step in range(steps + 1)
    )


def _between(start: Tensor, end: torch.Tensor, step: int, steps: int) -> torch.Tensor:
    """Return W0 + k/K (W - W0), the ends exactly."""
    if step == steps:
        return end.detach()
    begin = tensor_of(start.read()).to(end.device, end.dtype)
    if step == 0 or not end.is_floating_point():
        return begin
    return begin + (step / steps) * (end.detach() - begin)


def _step_digest(target: Target, step: int, steps: int) -> str:
    return f"{target.digest()} {step}/{steps}"


def redrawn(
    subject: Subject, names: Collection[str], options: ResetOptions, folder: Path, /
) -> list[Target]:
    """Draws by the own `reset_parameters` of the modules that hold some tensors, in files.

    A module without one, or whose weight it does not reach (a pruned or normed one's parts), is
    not among the tensors of the target.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    targets = []
    for draw in range(subject.redrawn):
        seed = int(np.random.SeedSequence([options.seed, draw]).generate_state(1)[0])
        drawn: dict[str, torch.Tensor] = {}
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            for owner, part in subject.module.named_modules():
                own = [
                    f"{owner}.{name}" if owner else name
                    for name, _ in part.named_parameters(recurse=False)
                ]
                own += [
                    f"{owner}.{name}" if owner else name
                    for name, _ in part.named_buffers(recurse=False)
                ]
                if any(name in names for name in own):
                    drawn |= _redrawn(owner, part)
        path = folder / f"fresh-{draw}.safetensors"
        try:
            save_file(drawn, path)
        except (OSError, SafetensorError) as exc:
            raise OutputError(f"{folder}: a draw cannot be written: {one_line(exc)}") from exc
        targets.append(
            Target(
                snapshot=FRESH,
                draw=draw,
                tensors=state_of(path).tensors if drawn else {},
                digest=functools.partial(str, seed),
                odd=("its modules have no reset_parameters that draws their weights",),
            )
        )
    return targets


def _redrawn(owner: str, part: nn.Module) -> dict[str, torch.Tensor]:
    """Tensors of a module once its own `reset_parameters` has drawn them; none where it did not."""
    if not callable(getattr(part, "reset_parameters", None)):
        return {}
    own: Any = deep_copy(part).cpu()
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    own.reset_parameters()
    after = own.state_dict()
    weights = [name for name in after if name == "weight" or "weight" not in after]
    if (
        "weight" in after
        and torch.equal(after["weight"], before["weight"])
        and after["weight"].ndim > 1
    ):
        return {}
    if not weights:
        return {}
    prefix = f"{owner}." if owner else ""
    return {f"{prefix}{name}": tensor.contiguous().clone() for name, tensor in after.items()}


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
        tensors, _ = fitting(state_of(path).tensors, subject.module, f"draw {draw}")
        digest = functools.partial(str, seed)
        targets.append(Target(snapshot=RAND, draw=draw, tensors=tensors, digest=digest))
    return targets


def state_of(path: str | os.PathLike[str], /) -> StateDict:
    """Read the state dict of a file.

    Raises
    ------
    CheckpointError
        If it cannot be read, or holds a graph.
    """
    _, contents = read_contents(locate(path))
    if not isinstance(contents, StateDict):
        raise CheckpointError(f"{path}: holds a graph, not the state dict of a torch network")
    return contents


def _target(name: int | str, path: str | os.PathLike[str], module: nn.Module) -> Target:
    tensors, odd = fitting(
        _in_parts_or_whole(state_of(path), module), module, str(path), partly=True
    )
    return Target(
        snapshot=name,
        draw=None,
        tensors=tensors,
        digest=functools.partial(_file_digest, path),
        odd=odd,
    )


def _in_parts_or_whole(state: StateDict, module: nn.Module) -> Mapping[str, Tensor]:
    """Tensors as they are, or with whole weights where a network has those."""
    if not module.state_dict().keys() <= state.tensors.keys():
        state = resolved(state)
    return state.tensors


def fitting(
    tensors: Mapping[str, Tensor], module: nn.Module, path: str, /, *, partly: bool = False
) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
    """Give the tensors that have the shapes of a network's, by its names, which all must be there.

    With them, in sentences, those of another shape; `partly`, also what is missing, where half of
    the network's or more is there: a start that had another head.

    Raises
    ------
    CheckpointError
        If one is missing, or is none of the network's.
    """
    own = {
        name: held.shape
        for name, held in module.state_dict().items()
        if not name.endswith(COUNTER) and hasattr(held, "shape")  # a module may keep what it likes
    }
    tensors = _named_alike(tensors, own)
    odd: dict[str, str] = {}
    for name, shape in own.items():
        layer, found = name.removesuffix(".weight"), tensors.get(name)
        if found is None:
            odd[name] = f"{path}: is of another network: it has no {layer}"
        elif found.shape != tuple(shape):
            odd[name] = (
                f"{path}: is of another network: {layer} has shape {_size(found.shape)} there, "
                f"{_size(shape)} in the trained one"
            )
    missing = [name for name in odd if name not in tensors]
    partly = partly and bool(odd) and 2 * len(odd) <= len(own)
    if missing and not partly:
        raise CheckpointError(odd[missing[0]])
    extra = [name for name in tensors if name not in own and not name.endswith(COUNTER)]
    if extra and not partly:
        raise CheckpointError(
            f"{path}: is of another network: it has {extra[0].removesuffix('.weight')} of shape "
            f"{_size(tensors[extra[0]].shape)}, which the trained one has not"
        )
    fitting = {name: tensor for name, tensor in tensors.items() if name in own and name not in odd}
    return fitting, tuple(odd.values())


def _named_alike(tensors: Mapping[str, Tensor], own: Iterable[str]) -> Mapping[str, Tensor]:
    """Tensors without the name of a wrapper before theirs, or with that of the network's own."""
    names = list(own)
    first = next(iter(names), "")
    if first in tensors:
        return tensors
    prefix = next((key.removesuffix(first) for key in tensors if key.endswith(f".{first}")), "")
    if prefix:
        return {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    parts = first.split(".")
    for count in range(1, len(parts)):
        outer, inner = ".".join(parts[:count]) + ".", ".".join(parts[count:])
        if inner in tensors and all(name.startswith(outer) for name in names):
            return {f"{outer}{key}": tensor for key, tensor in tensors.items()}
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
    """Return the digest of tensors in memory and their names."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode(errors="surrogateescape"))
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            values = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(values.view(torch.uint8).numpy())
    return digest.hexdigest()
