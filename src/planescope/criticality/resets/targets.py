"""Weights that layers are put back to: as they were asked for, and as they were found."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from planescope.checkpoints import read_contents, sharded
from planescope.checkpoints.locate import locate
from planescope.criticality.resets.record import FRESH
from planescope.criticality.resets.weights import in_parts_or_whole, state_of
from planescope.files.errors import UsageError
from planescope.measurement.source import LIBRARIES
from planescope.networks.build import load_pretrained
from planescope.networks.live.copies import plain_name
from planescope.networks.live.mapping import read_state_dict
from planescope.networks.live.module import unwrapped
from planescope.networks.load import beyond, fitting

if TYPE_CHECKING:
    from planescope.hyperplanes.layer import Tensor


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
    beyond : tuple of str
        Modules and tensors that are there and not in the network.
    """

    snapshot: int | str
    draw: int | None
    tensors: Mapping[str, Tensor]
    digest: Callable[[], str]
    odd: tuple[str, ...] = ()
    beyond: tuple[str, ...] = ()


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


def targets_of(states: Mapping[int | str, Any], module: nn.Module) -> tuple[Target, ...]:
    """Return the targets of what was asked for, by name."""
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
        return target_in(name, state, module)
    if isinstance(state, nn.Module):
        state = unwrapped(state).state_dict()
    if not isinstance(state, Mapping):
        raise UsageError(f"to={{{name!r}: ...}} is a {type(state).__name__}, not a state dict")
    # Shared out among processes: put together now, in one order by all of them.
    state = {key: t.full_tensor() if hasattr(t, "full_tensor") else t for key, t in state.items()}
    named = {plain_name(key): t for key, t in state.items() if isinstance(key, str)}
    given = in_parts_or_whole(read_state_dict(named), module)
    tensors, odd = fitting(given, module, f"snapshot {name!r}", partly=True)
    return Target(
        snapshot=name,
        draw=None,
        tensors=tensors,
        digest=functools.partial(digest_of, state),
        odd=odd,
        beyond=beyond(given, module),
    )


def target_in(name: int | str, path: str | os.PathLike[str], module: nn.Module) -> Target:
    """Return the weights of a file."""
    given = in_parts_or_whole(state_of(path), module)
    tensors, odd = fitting(given, module, str(path), partly=True)
    return Target(
        snapshot=name,
        draw=None,
        tensors=tensors,
        digest=functools.partial(_file_digest, path),
        odd=odd,
        beyond=beyond(given, module),
    )


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
