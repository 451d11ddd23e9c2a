"""The surroundings of layers in a graph: what is added to their channels, and the norms behind.

To import this is to import torch.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence

import torch
from torch import fx, nn

from planescope.hyperplanes.layer import Layer
from planescope.networks.graph.surroundings import (
    User,
    has_norm_behind,
    is_coupled,
    last_layers,
)

_NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.InstanceNorm1d,
    nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip
# Where channels meet those of others one by one.
_JOINS = {
    operator.add, operator.iadd, operator.sub, operator.mul, operator.imul, operator.truediv,
    torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum,
}  # fmt: skip
_JOINING_METHODS = {"add", "add_", "sub", "sub_", "mul", "mul_", "div", "maximum", "minimum"}


class _Calls:
    """The graph of a traced module, whose nodes are its values."""

    def __init__(self, modules: Mapping[str, nn.Module], layers: Mapping[str, Layer]) -> None:
        self._modules, self._layers = modules, layers

    def layer(self, value: fx.Node, /) -> str | None:
        """Return the name of the layer that a node calls."""
        name = str(value.target)
        return name if value.op == "call_module" and name in self._layers else None

    def sources(self, value: fx.Node, /) -> list[fx.Node] | None:
        """Return the nodes that one takes from; None of an input of the network."""
        return None if value.op == "placeholder" else _live(value)

    def users(self, value: fx.Node, /) -> list[User[fx.Node]]:
        """Return the nodes that take from one."""
        return [self._user(node) for node in value.users]

    def _user(self, node: fx.Node) -> User[fx.Node]:
        name = self.layer(node)
        layer = None if name is None else self._layers[name]
        called = _JOINING_METHODS if node.op == "call_method" else _JOINS
        is_join = node.target in called and len(node.all_input_nodes) > 1
        return User(
            layer=name,
            is_depthwise=layer is not None
            and (layer.groups or 1) > 1
            and layer.weight.shape[1] == 1,
            joins=tuple(_live(node)) if is_join else (),
            is_norm=self._is_affine_norm(node),
            gives=(node,),
        )

    def _is_affine_norm(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            part = self._modules.get(str(node.target))
            return "Norm" in type(part).__name__ and getattr(part, "weight", None) is not None
        name = getattr(node.target, "__name__", "")
        return name.endswith("_norm") and len(node.all_input_nodes) > 1


def _live(node: fx.Node) -> list[fx.Node]:
    return [one for one in node.all_input_nodes if one.op != "get_attr"]


class Surroundings:
    """Facts of a graph about layers: whose output is the network's, whose channels are coupled.

    Attributes
    ----------
    outputs, coupled : set of str
        Names of layers.
    """

    def __init__(
        self, module: nn.Module, nodes: Sequence[fx.Node], layers: Sequence[Layer]
    ) -> None:
        self._modules = dict(module.named_modules())
        self._of: dict[str, list[fx.Node]] = {}
        for node in nodes:
            if node.op == "call_module":
                self._of.setdefault(str(node.target), []).append(node)
        named = {layer.name: layer for layer in layers}
        self._flow = _Calls(self._modules, named)
        ends = [node for node in nodes if node.op == "output"]
        self.outputs = last_layers(self._flow, ends) if nodes else {*list(named)[-1:]}
        self.coupled = {
            name
            for name, calls in self._of.items()
            if name in named and is_coupled(self._flow, name, calls)
        }
        self._norms: dict[str, int] = {}
        for layer in layers:
            if layer.norm is not None:
                self._norms[layer.norm.name] = self._norms.get(layer.norm.name, 0) + 1

    def leaves_norm(self, layer: Layer) -> bool:
        """Tell whether an affine norm behind the layer is not taken away with its filters."""
        calls = self._of.get(layer.name, [])
        return not self.norm(layer) and any(has_norm_behind(self._flow, call) for call in calls)

    def norm(self, layer: Layer) -> tuple[str, ...]:
        """Return the names of weight and bias of the affine norm that is this layer's alone."""
        name = self._norm_behind(layer)
        part = self._modules.get(name)
        if part is None:
            return ()
        size = layer.filters
        return tuple(
            f"{name}.{own}"
            for own in ("weight", "bias")
            if isinstance(getattr(part, own, None), torch.Tensor)
            and tuple(getattr(part, own).shape) == (size,)
        )

    def _norm_behind(self, layer: Layer) -> str:
        calls = self._of.get(layer.name, [])
        if len(calls) == 1 and len(calls[0].users) == 1:
            (user,) = calls[0].users
            name = str(user.target)
            is_norm = user.op == "call_module" and isinstance(self._modules.get(name), _NORMS)
            if is_norm and len(self._of[name]) == 1:
                return name
        if layer.norm is not None and self._norms[layer.norm.name] == 1:
            return layer.norm.name
        return ""
