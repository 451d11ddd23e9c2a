"""Linear layers that read one pixel several times, as VGG's first does of small images.

Its average pooling makes 7 × 7 pixels of the one that is left of 32 × 32. Weights that multiply the
same value can be added up before, which is a 49th of the work and rounds differently: so it is done
on a GPU alone, where batches of another size round differently too. There it spares VGG16 23 % of
the multiply-adds of a pass (101 of 433 million). Its price is this module. To import this is to
import torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn.functional import linear


@dataclass(frozen=True, kw_only=True, eq=False)
class Spread:
    """The modules between which pixels are spread.

    Attributes
    ----------
    averages : set of torch.fx.Node
        Poolings that may leave a single pixel as it is, since nothing else reads it.
    linears : set of torch.fx.Node
        The layers that read it.
    """

    averages: set[fx.Node] = field(default_factory=set)
    linears: set[fx.Node] = field(default_factory=set)


def find(nodes: Sequence[fx.Node], modules: Mapping[str, nn.Module], /) -> Spread:
    """Return the linear layers behind a flattened average, which nothing else reads."""
    spread = Spread()
    for node in nodes:
        chain = [node]
        while len(chain) < 3 and len(chain[-1].users) == 1:
            chain.append(next(iter(chain[-1].users)))
        if len(chain) < 3:
            continue
        average, flat, last = chain
        of_average, of_last = (_module(one, modules) for one in (average, last))
        is_plain = _is_plain(of_average, nn.AdaptiveAvgPool2d) and _is_plain(of_last, nn.Linear)
        if is_plain and _flattens(flat, modules):
            spread.averages.add(average)
            spread.linears.add(last)
    return spread


def run(layer: Any, own: Mapping[str, torch.Tensor], pixel: torch.Tensor, /) -> torch.Tensor:
    """Apply a linear layer to values of which each stands for several that are the same.

    Parameters
    ----------
    layer : torch.nn.Linear
    own : mapping of str to torch.Tensor
        What takes the place of its weight and bias.
    pixel : torch.Tensor, shape (examples, channels)
        Of `in_features` / `channels` pixels that are the same.
    """
    weight, bias = own.get("weight", layer.weight), own.get("bias", layer.bias)
    return linear(pixel, weight.view(len(weight), pixel.shape[1], -1).sum(2), bias)


def _module(node: fx.Node, modules: Mapping[str, nn.Module]) -> Any:
    return modules.get(str(node.target)) if node.op == "call_module" else None


def _is_plain(module: Any, kind: type[nn.Module]) -> bool:
    hooked = ("_forward_hooks", "_forward_pre_hooks")
    return type(module) is kind and not any(getattr(module, hooks) for hooks in hooked)


def _flattens(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Return whether it flattens all but the examples."""
    module = _module(node, modules)
    if type(module) is nn.Flatten:
        return (module.start_dim, module.end_dim) == (1, -1)
    is_function = node.op == "call_function" and node.target is torch.flatten
    is_method = node.op == "call_method" and node.target == "flatten"
    return (is_function or is_method) and node.args[1:] == (1,) and not node.kwargs
