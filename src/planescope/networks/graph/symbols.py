"""Torch modules run once on symbols for tensors, with their layers as leaves of the graph."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import fx, nn

from planescope.networks.graph.functional import place_of
from planescope.networks.graph.step import QUANTISATION
from planescope.networks.live.affine import Leaf


def is_frozen_norm(module: nn.Module, /) -> bool:
    """Tell batch norms whose parameters are buffers, as detectors have them."""
    is_named = re.fullmatch(r"FrozenBatchNorm(2d)?", type(module).__name__) is not None
    held = module._buffers.keys()
    return is_named and not module._modules and {"running_mean", "running_var"} <= held


def graph_of(module: nn.Module, leaves: Mapping[nn.Module, Leaf], /) -> fx.Graph:
    """Trace `forward` with its options as they are when left out.

    Raises
    ------
    Exception
        Any that `forward` raises when it gets symbols for tensors.
    """
    return _Tracer(module, leaves).trace(module, _defaults(module))


class _Tracer(fx.Tracer):  # type: ignore[misc]
    # A buffer that forward changes in place is then a symbol too, and its values stay.
    proxy_buffer_attributes = True

    def __init__(self, root: nn.Module, leaves: Mapping[nn.Module, Leaf]) -> None:
        super().__init__()
        self._leaves = leaves
        tensors = chain(root.named_parameters(), root.named_buffers())
        self._names = {id(tensor): name for name, tensor in tensors}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # What was scripted is called by torch's own interpreter, and takes no symbols.
        is_ours = m in self._leaves or isinstance(m, torch.jit.ScriptModule)
        is_ours = is_ours or type(m).__module__.startswith(QUANTISATION)
        is_ours = is_ours or place_of(m) is not None or is_frozen_norm(m)
        return is_ours or super().is_leaf_module(m, module_qualified_name)

    def path_of_module(self, mod: nn.Module) -> str:
        try:
            return str(super().path_of_module(mod))
        except NameError:
            # A slice of a Sequential is another one, of the same members.
            if type(mod) is nn.Sequential:
                return type(mod).__name__
            raise

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        if isinstance(m, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = m.module  # without devices that is all that is called
            return self.call_module(inner, inner.forward, args, kwargs)
        result = super().call_module(m, forward, args, kwargs)
        leaf = self._leaves.get(m)
        for part in leaf.behind if leaf is not None else ():
            result = getattr(m, part)(result)
        return torch.relu(result) if leaf is not None and leaf.rectifies else result

    def getattr(self, _attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        # The base class searches all parameters at each access, which is quadratic.
        name = self._names.get(id(attr_val)) if isinstance(attr_val, torch.Tensor) else None
        if name is None:
            return attr_val
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]


def _defaults(module: nn.Module) -> dict[str, Any]:
    """Return the options of forward as they are when left out.

    A symbol in place of None would be no None.
    """
    parameters = inspect.signature(type(module).forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}
