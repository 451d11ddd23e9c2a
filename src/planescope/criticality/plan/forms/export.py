"""Changed networks to files, under the names that the file they came from has."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from planescope.files.errors import OutputError, UsageError, one_line
from planescope.files.targets import NETWORKS
from planescope.files.writing import replacing, write_torch

if TYPE_CHECKING:
    import torch
    from torch import nn


def forms(source: str, /) -> tuple[str, ...]:
    """Return the suffixes that a file with the weights of another may have: of ONNX its own."""
    from planescope.criticality.sensitivity.job import onnx_file

    return NETWORKS if onnx_file(source) is None else (".onnx",)


def save_network(
    module: nn.Module,
    path: str | os.PathLike[str],
    /,
    *,
    like: str | os.PathLike[str] | None = None,
    architecture: str | nn.Module | None = None,
) -> None:
    """Write the state dict of a network; of one that came as ONNX, the file with its weights.

    Parameters
    ----------
    like : path, optional
        File that the network came from: its names and types are kept, and tensors in it that are
        none of the network's. Of a file that holds weights in parts the network's names are taken.
    architecture : str or torch.nn.Module, optional
        With which that file was read.

    Raises
    ------
    UsageError
        If the suffix is none of `files.targets.NETWORKS`.
    OutputError
        If the file cannot be written; nothing is left behind then.
    """
    from planescope.criticality.plan.forms.graphs import GraphNetwork

    if isinstance(module, GraphNetwork):
        module.save(path)
        return
    tensors = {n: t.detach().cpu().contiguous() for n, t in module.state_dict().items()}
    if like is not None:
        tensors = _as_in(tensors, like, architecture)
    suffix = os.fspath(path).rpartition(".")[2].lower()
    if f".{suffix}" not in NETWORKS:
        raise UsageError(
            f"{path}: the name must end in {', '.join(NETWORKS[:-1])} or {NETWORKS[-1]}"
        )
    with replacing(path) as draft:
        if suffix == "safetensors":
            from safetensors import SafetensorError
            from safetensors.torch import save_file

            try:  # copies: two names of one memory are refused
                save_file({name: t.clone() for name, t in tensors.items()}, draft)
            except SafetensorError as exc:
                raise OutputError(f"{path}: cannot be written: {one_line(exc)}") from exc
        else:
            write_torch(draft, tensors)


def _as_in(
    tensors: dict[str, torch.Tensor],
    like: str | os.PathLike[str],
    architecture: str | nn.Module | None,
) -> dict[str, torch.Tensor]:
    from planescope.criticality.resets.weights import state_of
    from planescope.networks import paper
    from planescope.networks.load import fitting, tensor_of

    state = state_of(like)
    if isinstance(architecture, str):
        ours = state if ":" in architecture else paper.match(architecture, state)
        own = ours.tensors
    elif architecture is not None:
        own = fitting(state.tensors, architecture, str(like))[0]
    else:
        own = state.tensors
    theirs = {id(tensor): name for name, tensor in state.tensors.items()}
    names = {key: theirs.get(id(tensor)) for key, tensor in own.items()}
    if any(name is None for name in names.values()) or not set(names) <= set(tensors):
        return tensors
    made = {name: tensor_of(tensor.read()) for name, tensor in state.tensors.items()}
    for key, name in names.items():
        assert name is not None  # noqa: S101
        made[name] = tensors[key].to(made[name].dtype)
    return made
