"""Weights of a checkpoint's file, in a network that is built or copied for them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from planescope.checkpoints import read_contents
from planescope.checkpoints.locate import locate
from planescope.files.errors import CheckpointError
from planescope.hyperplanes.layer import StateDict, Tensor
from planescope.networks.graph.trace import remembered
from planescope.networks.live.copies import deep_copy, without_wrappers
from planescope.networks.live.module import unwrapped
from planescope.networks.load import fitting, load_network, tensor_of
from planescope.networks.paper import smallest_image
from planescope.networks.state.parametrisations import resolved

if TYPE_CHECKING:
    from torch import nn


def with_weights(
    network: str | nn.Module, state: StateDict, path: str | os.PathLike[str], /
) -> nn.Module:
    """Return a network, built by its name or copied, with the weights of a file's state dict.

    Raises
    ------
    CheckpointError
        If they are of another network.
    """
    if not isinstance(network, str):
        return copied(network, state, str(path))
    try:
        return remembered(load_network(network, state))
    except CheckpointError as exc:
        raise CheckpointError(f"{path}: {exc}") from exc


def copied(network: nn.Module, state: StateDict, path: str, /) -> nn.Module:
    """Return a copy of a network, on the CPU, with the weights of a state dict."""
    module = without_wrappers(deep_copy(unwrapped(network))).cpu().eval()
    tensors, odd = fitting(state.tensors, module, path)
    if odd:
        raise CheckpointError(odd[0])
    own = module.state_dict()
    held = {name: tensor_of(tensors[name].read()) for name in own if name in tensors}
    module.load_state_dict(held, strict=False)
    return remembered(module)


def smallest_of(network: str | nn.Module, /) -> int:
    """Return the smallest images that a network takes, where that is known; else 1."""
    return smallest_image(network) if isinstance(network, str) else 1


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


def in_parts_or_whole(state: StateDict, module: nn.Module) -> Mapping[str, Tensor]:
    """Return the tensors as they are, or with whole weights where a network has those."""
    if not module.state_dict().keys() <= state.tensors.keys():
        state = resolved(state)
    return state.tensors
