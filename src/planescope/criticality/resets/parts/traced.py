"""A network by its graph, run node by node, so that it can be left before a layer."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_arg

from planescope.criticality.resets.parts import pixels
from planescope.criticality.resets.parts.inputs import Inputs, Tensors, Values
from planescope.criticality.resets.parts.layouts import (
    Stretch,
    channels_together,
    stretches,
)


class Traced:
    """A network by its graph; a step is a node.

    Parameters
    ----------
    module : torch.nn.Module
        In evaluation mode.
    trace : Trace
        Of it.
    batch : Inputs
        Batches of that size, on a CPU, go the fastest way that gives the same bits.
    """

    def __init__(self, module: nn.Module, trace: Trace, batch: Inputs) -> None:
        self._attributes, self._nodes = trace.attributes, trace.nodes
        self.steps = len(self._nodes) - 1  # the last is the output
        modules = dict(module.named_modules())
        self._plain = modules
        self._modules = {name: _quick(part) for name, part in modules.items()}
        last = {argument: node for node in self._nodes for argument in node.all_input_nodes}
        # What nobody reads is let go as soon as it is there; the last node is the output.
        self._dying = [
            [value for value in (node, *node.all_input_nodes) if last.get(value, node) is node]
            for node in self._nodes[:-1]
        ]
        # Nodes whose images have the channels of a pixel together; whether the next one has, too.
        self._together: dict[fx.Node, bool] = {}
        self._spread = pixels.Spread()
        self._size = batch.size
        images = batch.images
        if images is not None and images.device.type == "cpu":
            same = self._same_bits(batch, stretches(self._nodes, modules))
            self._keep_together(stretches(same, modules))

    def _keep_together(self, found: Iterable[Stretch]) -> None:
        for stretch in found:
            self._together |= {node: node is not stretch[-1] for node in stretch}

    def hasten(self) -> None:
        """Go ways from now on that round differently.

        On a GPU batches of another size do so too; in 16 bits every value is rounded anyway.
        """
        modules = self._plain
        self._keep_together(stretches(self._nodes, modules, most=math.inf))
        self._spread = pixels.find(self._nodes, modules)

    def _width(self, node: fx.Node) -> int:
        layer: Any = self._plain[str(node.target)]
        return int(layer.in_features)

    def _same_bits(self, batch: Inputs, candidates: Iterable[Stretch]) -> list[fx.Node]:
        """Return the nodes that give the same values where the channels of a pixel are together."""
        values, position = self.begin(batch.copied()), 0
        same = []
        for node in itertools.chain.from_iterable(candidates):
            start = self._nodes.index(node)
            self.advance(values, position, start, {})
            position = start
            call, images = self._modules[str(node.target)], values[node.all_input_nodes[0]]
            if torch.equal(call(images.clone()), call(channels_together(images.clone()))):
                same.append(node)
        return same

    def uses(self, names: Collection[str]) -> tuple[int, int]:
        """Return the indices of the first node that reads one, and of the one behind the last."""
        found = [node for node in self._nodes if any(_reads(node, name) for name in names)]
        if not found:
            return self.steps, self.steps
        # A tensor that is read by itself is used by whatever is given it.
        users = [user for node in found if node.op == "get_attr" for user in node.users]
        last = max(map(self._nodes.index, [found[-1], *users]))
        return self._nodes.index(found[0]), last + 1

    def begin(self, inputs: Inputs) -> Values:
        """Return the inputs alone, by the parameters of forward that they are given to."""
        places = [node for node in self._nodes if node.op == "placeholder"]
        by_name = {str(node.target): node for node in places}
        given = dict(zip(places, inputs.args, strict=False))
        if len(inputs.args) > len(places) or not inputs.kwargs.keys() <= by_name.keys():
            raise TypeError("its graph takes other inputs")
        return given | {by_name[name]: value for name, value in inputs.kwargs.items()}

    def finish(self, values: Values, start: int, tensors: Tensors) -> Any:
        """Run all nodes that are left."""
        rest = dict(values)
        self.advance(rest, start, self.steps, tensors)
        return self._value(self._nodes[-1], rest, tensors)

    def advance(self, values: Values, start: int, stop: int, tensors: Tensors) -> None:
        """Run some nodes; a value is let go after its last use."""
        for index in range(start, stop):
            node = self._nodes[index]
            if node.op != "placeholder" or node not in values:
                values[node] = self._value(node, values, tensors)
            for value in self._dying[index]:
                del values[value]

    def _value(self, node: fx.Node, values: Values, tensors: Tensors) -> Any:
        target: Any = node.target
        args, kwargs = map_arg((node.args, node.kwargs), lambda one: values[one])
        match node.op:
            case "call_module":
                own = _own(node, tensors)
                if node in self._spread.averages and args[0].shape[-2:] == (1, 1):
                    return args[0]
                if node in self._spread.linears and args[0].shape[1] != self._width(node):
                    return pixels.run(self._plain[target], own, args[0])
                if node in self._together and len(args[0]) % self._size == 0:
                    images = channels_together(args[0])
                    output = called(self._modules[target], own, (images,), kwargs)
                    return output if self._together[node] else output.contiguous()
                return called(self._modules[target], own, args, kwargs)
            case "call_method":
                return getattr(args[0], target)(*args[1:], **kwargs)
            case "call_function":
                return target(*args, **kwargs)
            case "get_attr":
                return tensors[target] if target in tensors else self._attributes[target]
            case "placeholder" if not args:
                raise TypeError(f"forward wants {target}, too")
        return args[0]  # the output, or an option of forward with its default


def _reads(node: fx.Node, name: str) -> bool:
    target = str(node.target)
    if node.op == "call_module":
        return name.startswith(f"{target}.")
    return node.op == "get_attr" and target == name


def _own(node: fx.Node, tensors: Tensors) -> dict[str, torch.Tensor]:
    """Return the tensors of a module, by its own names."""
    return {
        name.removeprefix(f"{node.target}."): tensor
        for name, tensor in tensors.items()
        if _reads(node, name)
    }


def called(call: Callable[..., Any], tensors: Tensors, args: Any, kwargs: Any) -> Any:
    """Call what a node names, with other tensors in place of its own where there are some."""
    if not tensors:
        return call(*args, **kwargs)
    return torch.func.functional_call(call, dict(tensors), args, kwargs)


def _quick(module: nn.Module) -> nn.Module | Callable[..., Any]:
    """Return the module, or what computes the same values in a tenth of the time."""
    if module._forward_hooks or module._forward_pre_hooks:
        return module
    if type(module) is nn.AdaptiveAvgPool2d:
        return functools.partial(_averaged, module)
    if type(module) is not nn.MaxPool2d:
        return module
    sizes = (module.kernel_size, module.stride, module.padding, module.dilation)
    halves = all(size in (n, (n, n)) for size, n in zip(sizes, (2, 2, 0, 1), strict=True))
    return _halved if halves and not module.ceil_mode and not module.return_indices else module


def _averaged(module: nn.AdaptiveAvgPool2d, images: torch.Tensor) -> torch.Tensor:
    """Return the averages, of which those of a single pixel are that pixel."""
    size = module.output_size
    if images.shape[-2:] != (1, 1) or not isinstance(size, int | tuple) or None in _pair(size):
        result: torch.Tensor = module(images)
        return result
    return images.expand(*images.shape[:-2], *_pair(size)).contiguous()


def _pair(size: Any) -> tuple[Any, ...]:
    return size if isinstance(size, tuple) else (size, size)


def _halved(images: torch.Tensor) -> torch.Tensor:
    """Return the largest of each 2 × 2 pixels.

    On a CPU torch would look for their positions too.
    """
    if images.device.type != "cpu":
        return nn.functional.max_pool2d(images, 2)
    height, width = images.shape[-2] // 2 * 2, images.shape[-1] // 2 * 2
    rows = torch.maximum(images[..., 0:height:2, :], images[..., 1:height:2, :])
    return torch.maximum(rows[..., 0:width:2], rows[..., 1:width:2])


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """The graph of a network.

    Attributes
    ----------
    nodes : list of torch.fx.Node
        Empty where the network has no graph.
    attributes : dict of str to object
        What its ``get_attr`` nodes stand for.
    problem : str
        Why the network has no graph; "" where it has one.
    """

    nodes: list[fx.Node]
    attributes: dict[str, Any]
    problem: str = ""
