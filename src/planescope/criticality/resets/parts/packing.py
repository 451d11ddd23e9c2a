"""Convolutions one behind the other in the order that oneDNN computes in, on a CPU.

Between two convolutions torch puts images into its own order and back, which costs about as much as
the activation and the pooling that lie there. A chain from the inputs on is spared that, and the
activation is done by the convolution.

oneDNN's activation makes 0 of what is no number. So a chain is packed only where nothing in it can
be that: where the largest input, times what each layer multiplies it by at most, stays in range.
Whether the bits are the same is found by trying, as in `layouts`. Its price is this module; with
`pixels` and `layouts` it takes LeNet on digits, 24 cells of 1,000 examples, from 2.4 s of a core to
2.1, and 26 cells of VGG16 from 16.2 s to 15.8. To import this is to import torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.utils.weak import WeakIdKeyDictionary

from planescope.criticality.resets.parts.layouts import FEW_CHANNELS

# Well below the largest float32: sums are rounded on their way.
IN_RANGE = 1e37
# Layers that give nothing larger than what they are given.
_BOUNDED = (nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Dropout, nn.Identity)


class Chain:
    """Layers one behind the other from the inputs on, and those of them that are packed.

    Parameters
    ----------
    nodes : sequence of torch.fx.Node
    modules : mapping of str to torch.nn.Module
        By name.
    """

    def __init__(self, nodes: Sequence[fx.Node], modules: Mapping[str, nn.Module], /) -> None:
        self._modules = modules
        self._gains: dict[str, float] = {}
        # Of weights that take their place, as long as these are there.
        self._others = WeakIdKeyDictionary()
        self.candidates: list[fx.Node] = []
        self.packed: set[fx.Node] = set()
        self._largest = 1.0
        before = nodes[0]
        for node in nodes[1:]:
            module: Any = modules.get(str(node.target)) if node.op == "call_module" else None
            if node.all_input_nodes != [before] or len(before.users) != 1:
                break
            if _is_plain(module):
                self._gains[str(node.target)] = _gain(module.weight, module.bias)
            elif not isinstance(module, _BOUNDED):
                break
            self.candidates.append(node)
            before = node

    def look_at(self, inputs: torch.Tensor, /) -> None:
        """Note how large inputs are."""
        if self.packed:
            self._largest = max(self._largest, largest(inputs))

    def is_in_range(self, tensors: Mapping[str, torch.Tensor], /) -> bool:
        """Return whether all values are numbers, with some weights replaced."""
        bound = self._largest
        for name, gain in self._gains.items():
            weight, bias = (tensors.get(f"{name}.{part}") for part in ("weight", "bias"))
            module: Any = self._modules[name]
            if weight is not None or bias is not None:
                weight = module.weight if weight is None else weight
                bias = module.bias if bias is None else bias
                gain = self._gain_of(weight, bias)
            bound *= gain
        return bound < IN_RANGE

    def _gain_of(self, weight: torch.Tensor, bias: torch.Tensor | None) -> float:
        of_bias = self._others.setdefault(weight, WeakIdKeyDictionary())
        key = weight if bias is None else bias
        if key not in of_bias:
            of_bias[key] = _gain(weight, bias)
        return float(of_bias[key])

    def pack(self, values: torch.Tensor, /) -> None:
        """Choose the convolutions with the same bits, and what lies between them.

        Parameters
        ----------
        values : torch.Tensor
            Inputs, of the size that batches will have. What is packed is what was tried.
        """
        start = max(1.0, largest(values))
        if not math.prod(self._gains.values(), start=start) < IN_RANGE:
            return
        for node in self.candidates:
            module = self._modules[str(node.target)]
            right = module(values.clone() if isinstance(module, nn.ReLU) else values)
            if self._may_pack(node):
                right = torch.relu(right) if self._is_fused(node) else right
                if self._is_same(node, values, right):
                    self.packed.add(node)
            values = right

    def _is_same(self, node: fx.Node, values: torch.Tensor, wanted: torch.Tensor) -> bool:
        try:
            return bool(torch.equal(dense(self.run(node, values, {})), wanted))
        # Another build of torch, or no memory for both ways at once: the plain way needs less.
        except (RuntimeError, AttributeError):
            return False

    def _may_pack(self, node: fx.Node) -> bool:
        module: Any = self._modules[str(node.target)]
        if _is_plain(module):
            # oneDNN works on 16 channels at once; filling up would cost more than is gained.
            return module.out_channels % FEW_CHANNELS == 0 and self._is_fused(node)
        return type(module) in (nn.ReLU, nn.MaxPool2d) and node.all_input_nodes[0] in self.packed

    def _is_fused(self, node: fx.Node) -> bool:
        """Return whether it is a convolution that does the activation behind it."""
        users = list(node.users)
        module = self._modules.get(str(users[0].target)) if len(users) == 1 else None
        return _is_plain(self._modules[str(node.target)]) and type(module) is nn.ReLU

    def run(self, node: fx.Node, images: torch.Tensor, own: Mapping[str, torch.Tensor], /) -> Any:
        """Return the output of a packed node, itself packed."""
        module: Any = self._modules[str(node.target)]
        packed = images if images.is_mkldnn else images.contiguous().to_mkldnn()
        if isinstance(module, nn.ReLU):
            return packed  # the convolution has done it
        if isinstance(module, nn.MaxPool2d):
            return module(packed)
        weight, bias = own.get("weight", module.weight), own.get("bias", module.bias)
        return torch.ops.mkldnn._convolution_pointwise(
            packed, weight, bias, module.padding, module.stride, module.dilation, module.groups,
            "relu", [], "",
        )  # fmt: skip


def _is_plain(module: Any) -> bool:
    """Return whether it is a convolution and nothing else."""
    return (
        type(module) is nn.Conv2d
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


def largest(values: torch.Tensor, /) -> float:
    """Return the largest magnitude.

    Infinite where a value is no number, which a comparison would lose.
    """
    found = float(values.abs().amax())
    return found if math.isfinite(found) else math.inf


def _gain(weight: torch.Tensor, bias: torch.Tensor | None) -> float:
    """Return how much larger than an input above 1 an output can be."""
    sums = weight.detach().abs().flatten(1).sum(1)
    if bias is not None:
        sums = sums + bias.detach().abs()
    return max(1.0, float(sums.amax())) if bool(torch.isfinite(sums).all()) else math.inf


def dense(value: Any, /) -> Any:
    """Return a value in torch's own order."""
    return value.to_dense() if isinstance(value, torch.Tensor) and value.is_mkldnn else value
