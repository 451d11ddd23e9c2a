"""The surroundings of layers in a graph: what is added to their channels, and the norms behind.

To import this is to import torch.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import fx, nn

from planescope.hyperplanes.layer import Layer

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
        self._layers = {layer.name: layer for layer in layers}
        self.outputs = self._outputs(nodes) if nodes else {layers[-1].name} if layers else set()
        self.coupled = {name for name in self._of if name in self._layers and self._couples(name)}
        self._norms: dict[str, int] = {}
        for layer in layers:
            if layer.norm is not None:
                self._norms[layer.norm.name] = self._norms.get(layer.norm.name, 0) + 1

    def _is_layer(self, node: fx.Node) -> bool:
        return node.op == "call_module" and str(node.target) in self._layers

    def _outputs(self, nodes: Sequence[fx.Node]) -> set[str]:
        found, seen, left = set(), set(), [node for node in nodes if node.op == "output"]
        while left:
            node = left.pop()
            if node in seen:
                continue
            seen.add(node)
            if self._is_layer(node):
                found.add(str(node.target))
            else:
                left += node.all_input_nodes
        return found

    def _couples(self, name: str) -> bool:
        """Tell whether channels meet others, or go on one by one, before the next layer."""
        left, seen = [user for node in self._of[name] for user in node.users], set()
        while left:
            node = left.pop()
            if node in seen:
                continue
            seen.add(node)
            if self._is_layer(node):
                layer = self._layers[str(node.target)]
                if layer.groups and layer.groups > 1 and layer.weight.shape[1] == 1:
                    return True
                continue
            if self._is_join(node) and not all(
                self._is_of(one, name) for one in node.all_input_nodes
            ):
                return True
            left += node.users
        return False

    def _is_join(self, node: fx.Node) -> bool:
        called = _JOINING_METHODS if node.op == "call_method" else _JOINS
        return node.target in called and len(node.all_input_nodes) > 1

    def _is_of(self, node: fx.Node, name: str) -> bool:
        """Tell whether a value follows from one layer's output alone, as the gate of a SiLU."""
        left, seen = [node], set()
        while left:
            one = left.pop()
            if one in seen or one.op == "get_attr":
                continue
            seen.add(one)
            if one.op == "placeholder" or self._is_layer(one):
                if str(one.target) != name:
                    return False
                continue
            left += one.all_input_nodes
        return True

    def leaves_norm(self, layer: Layer) -> bool:
        """Tell whether an affine norm behind the layer is not taken away with its filters."""
        if self.norm(layer):
            return False
        for call in self._of.get(layer.name, []):
            node = call
            while len(node.users) == 1:
                (node,) = node.users
                if self._is_layer(node) or self._is_join(node):
                    break
                if self._is_affine_norm(node):
                    return True
        return False

    def _is_affine_norm(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            part = self._modules.get(str(node.target))
            return "Norm" in type(part).__name__ and getattr(part, "weight", None) is not None
        name = getattr(node.target, "__name__", "")
        return name.endswith("_norm") and len(node.all_input_nodes) > 1

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
