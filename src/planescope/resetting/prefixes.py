"""A network in two parts: what comes before a layer, and what follows with other weights in it.

`forward` as a graph (torch.fx) is run node by node, so that it can be left before a layer and gone
on with from there, several times, by the same calls in the same order. A network without a graph
is run as a whole each time. No parameter of the module is ever written. To import this is to
import torch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import fx, nn
from torch.fx.node import map_aggregate, map_arg

from planescope.tracing import trace_graph

if TYPE_CHECKING:
    Tensors = Mapping[str, torch.Tensor]
    # Values that are still needed, by what computes them.
    Values = dict[Any, Any]


class Splittable(Protocol):
    """A network that can be left before a step, and gone on with from there."""

    def first_use(self, names: Collection[str]) -> int:
        """Step before which the named parameters and buffers play no part."""

    def begin(self, inputs: torch.Tensor) -> Values:
        """Values before step 0."""

    def advance(self, values: Values, start: int, stop: int) -> None:
        """Replace the values before step `start` by those before step `stop`."""

    def finish(self, values: Values, start: int, tensors: Tensors) -> torch.Tensor:
        """Output from the values before step `start`, with some parameters and buffers replaced.

        `values` stays as it is, but what it holds may be changed in place; see `Cut.changes`.
        """


class Whole:
    """A network that has no graph: every output is computed from the inputs on."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def first_use(self, names: Collection[str]) -> int:  # noqa: ARG002
        """Nothing is known to come before."""
        return 0

    def begin(self, inputs: torch.Tensor) -> Values:
        """The inputs alone."""
        return {"inputs": inputs}

    def advance(self, values: Values, start: int, stop: int) -> None:
        """There is one step, and no way to stop before it."""

    def finish(self, values: Values, start: int, tensors: Tensors) -> torch.Tensor:  # noqa: ARG002
        """Run the network."""
        return _called(self._module, tensors, (values["inputs"],), {})


class Traced:
    """A network by its graph; a step is a node.

    Raises
    ------
    Exception
        As `planescope.tracing.trace_graph`.
    """

    def __init__(self, module: nn.Module) -> None:
        graph, self._attributes = trace_graph(module)
        self._nodes = list(graph.nodes)
        self._modules = {name: _quick(part) for name, part in module.named_modules()}
        last = {argument: node for node in self._nodes for argument in node.all_input_nodes}
        # What nobody reads is let go as soon as it is there; the last node is the output.
        self._dying = [
            [value for value in (node, *node.all_input_nodes) if last.get(value, node) is node]
            for node in self._nodes[:-1]
        ]

    def first_use(self, names: Collection[str]) -> int:
        """Index of the first node that reads one of them."""
        uses = (i for i, node in enumerate(self._nodes) if any(_reads(node, n) for n in names))
        return next(uses, len(self._nodes) - 1)

    def begin(self, inputs: torch.Tensor) -> Values:
        """The inputs alone."""
        return {self._nodes[0]: inputs}

    def advance(self, values: Values, start: int, stop: int) -> None:
        """Run some nodes; a value is let go after its last use."""
        self._run(values, start, stop, {})

    def finish(self, values: Values, start: int, tensors: Tensors) -> torch.Tensor:
        """Run all nodes that are left."""
        rest = dict(values)
        output = self._nodes[-1]
        self._run(rest, start, len(self._nodes) - 1, tensors)
        result: torch.Tensor = self._value(output, rest, tensors)
        return result

    def _run(self, values: Values, start: int, stop: int, tensors: Tensors) -> None:
        for index in range(max(start, 1), stop):
            node = self._nodes[index]
            values[node] = self._value(node, values, tensors)
            for value in self._dying[index]:
                del values[value]

    def _value(self, node: fx.Node, values: Values, tensors: Tensors) -> Any:
        args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
        target: Any = node.target
        match node.op:
            case "call_module":
                own = {
                    name.removeprefix(f"{target}."): tensor
                    for name, tensor in tensors.items()
                    if _reads(node, name)
                }
                return _called(self._modules[target], own, args, kwargs)
            case "call_method":
                return getattr(args[0], target)(*args[1:], **kwargs)
            case "call_function":
                return target(*args, **kwargs)
            case "get_attr":
                return tensors[target] if target in tensors else self._attributes[target]
        return args[0]  # the output, or an option of forward with its default


def _reads(node: fx.Node, name: str) -> bool:
    target = str(node.target)
    if node.op == "call_module":
        return name.startswith(f"{target}.")
    return node.op == "get_attr" and target == name


def _called(call: Callable[..., Any], tensors: Tensors, args: Any, kwargs: Any) -> Any:
    if not tensors:
        return call(*args, **kwargs)
    return torch.func.functional_call(call, dict(tensors), args, kwargs)


def _quick(module: nn.Module) -> nn.Module | Callable[..., Any]:
    """The module, or what computes the same values in a tenth of the time."""
    if type(module) is not nn.MaxPool2d or module._forward_hooks or module._forward_pre_hooks:
        return module
    sizes = (module.kernel_size, module.stride, module.padding, module.dilation)
    halves = all(size in (n, (n, n)) for size, n in zip(sizes, (2, 2, 0, 1), strict=True))
    return _halved if halves and not module.ceil_mode and not module.return_indices else module


def _halved(images: torch.Tensor) -> torch.Tensor:
    """Largest of each 2 × 2 pixels; on a CPU torch would look for their positions too."""
    if images.device.type != "cpu":
        return nn.functional.max_pool2d(images, 2)
    height, width = images.shape[-2] // 2 * 2, images.shape[-1] // 2 * 2
    rows = torch.maximum(images[..., 0:height:2, :], images[..., 1:height:2, :])
    return torch.maximum(rows[..., 0:width:2], rows[..., 1:width:2])


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What it takes to leave a network before a step.

    Attributes
    ----------
    live_bytes : int
        Of the values that are kept for one example.
    changes : bool
        Whether going on changes them in place, so that a second time needs a copy.
    """

    live_bytes: int
    changes: bool


def split(module: nn.Module, example: torch.Tensor, /) -> tuple[Splittable, str]:
    """Prepare a network, which is in evaluation mode, to be left before any layer.

    Parameters
    ----------
    example : torch.Tensor, shape (1, channels, height, width)
        Something that the network takes.

    Returns
    -------
    network : Splittable
    note : str
        Why the network has to be run as a whole each time; "" where it has not.
    """
    try:
        traced = Traced(module)
        with torch.inference_mode():
            output = traced.finish(traced.begin(example.clone()), 0, {})
            same = torch.equal(output, module(example.clone()))
    except Exception as exc:  # forward is anybody's code and does anything when it is given symbols
        reason = f"{type(exc).__name__}: {str(exc).partition(chr(10))[0]}"
    else:
        if same:
            return traced, ""
        reason = "it gives another output"
    return Whole(module), (
        f"the graph of {type(module).__name__} cannot be run by parts ({reason}): the whole "
        "network was run for each cell"
    )


def survey(network: Splittable, example: torch.Tensor, starts: Iterable[int], /) -> dict[int, Cut]:
    """Find what it takes to leave a network before some steps."""
    cuts: dict[int, Cut] = {}
    # Not in inference mode, where tensors do not count how often they were changed.
    with torch.no_grad():
        values, position = network.begin(example.clone()), 0
        for start in sorted(set(starts)):
            network.advance(values, position, start)
            position = start
            held = tensors_in(values)
            before = [tensor._version for tensor in held]
            network.finish(values, start, {})
            changes = before != [tensor._version for tensor in held]
            storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in held}
            live = sum(storage.nbytes() for storage in storages.values())
            cuts[start] = Cut(live_bytes=live, changes=changes)
    return cuts


def tensors_in(values: Values, /) -> list[torch.Tensor]:
    """All tensors that values hold, also within tuples, lists and dicts."""
    found: list[torch.Tensor] = []

    def look(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            found.append(value)
        return value

    map_aggregate(tuple(values.values()), look)
    return found


def copied(values: Values, /) -> Values:
    """The same values in memory of their own; what shared memory still does."""
    return dict(zip(values, copy.deepcopy(list(values.values())), strict=True))
