"""Filters that a plan removed, taken out of the network: it gets smaller, and answers the same.

To import this is to import torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from planescope.criticality.plan.fit.holding import weight_of
from planescope.files.errors import RunError, UsageError, one_line
from planescope.files.optional import required
from planescope.networks.graph.file_graph import FileGraph
from planescope.networks.live.copies import deep_copy

# How far answers may be off, of the largest.
_NEAR = 1e-3


def thinned(module: nn.Module, layers: Iterable[str], example: Any, /) -> nn.Module:
    """Take out filters that are 0, with what is coupled to them, by Torch-Pruning.

    Parameters
    ----------
    module : torch.nn.Module
    layers : iterable of str
        Layers whose filters are taken out.
    example : torch.Tensor
        Inputs that the network takes, by which its parts are told.

    Returns
    -------
    torch.nn.Module
        A smaller copy, which answers to `example` as the network does.

    Raises
    ------
    UsageError
        If the network is the graph of a file.
    RunError
        If the network is none that Torch-Pruning takes apart, or would answer otherwise.
    MissingDependencyError
        If torch-pruning is not installed.
    """
    pruning = required("torch_pruning")
    if isinstance(module, FileGraph):
        raise UsageError("the graph of a file cannot be taken apart; plan the network it is of")
    whole = deep_copy(module).eval()
    made = deep_copy(whole)
    with torch.no_grad():
        wanted = whole(example)
    try:
        for layer in layers:
            _take_out(pruning, made, layer, example)
        with torch.no_grad():
            given = made(example)
    except Exception as exc:  # a network is anybody's code, and so is what takes it apart
        raise RunError(f"Torch-Pruning does not take it apart ({one_line(exc)})") from exc
    limit = _NEAR * float(wanted.abs().max())
    if not float((given - wanted).abs().max()) <= limit:
        raise RunError(
            "without its removed filters the network answers otherwise: something behind them "
            "makes a value of nothing"
        )
    return made


def _take_out(pruning: Any, module: nn.Module, name: str, example: Any) -> None:
    layer = module.get_submodule(name)
    gone = (weight_of(layer).flatten(1) == 0).all(1).nonzero()[:, 0].tolist()
    if not gone:
        return
    graph = pruning.DependencyGraph().build_dependency(module, example_inputs=example)
    is_linear = isinstance(layer, nn.Linear)
    cut = pruning.prune_linear_out_channels if is_linear else pruning.prune_conv_out_channels
    group = graph.get_pruning_group(layer, cut, idxs=gone)
    if not graph.check_pruning_group(group):
        raise ValueError(f"of {name} nothing would be left")
    group.prune()
