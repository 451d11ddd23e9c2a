"""A network in two parts: what comes before a layer, and what follows with other weights in it.

`forward` as a graph (torch.fx) is run node by node, so that it can be left before a layer and gone
on with from there, several times, by the same calls in the same order. Behind the layer the batches
of several snapshots go on as one. A network without a graph is run as a whole each time. No
parameter of the module is ever written. To import this is to import torch.
"""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import fx, nn
from torch.fx.node import map_aggregate, map_arg

from planescope.criticality.resets import pixels
from planescope.criticality.resets.layouts import Stretch, channels_together, stretches
from planescope.criticality.resets.packing import Chain, dense
from planescope.networks.trace import trace_graph

if TYPE_CHECKING:
    Tensors = Mapping[str, torch.Tensor]
    # Values that are still needed, by what computes them.
    Values = dict[Any, Any]


class Splittable(Protocol):
    """A network that can be left before a step, and gone on with from there."""

    steps: int

    def uses(self, names: Collection[str]) -> tuple[int, int]:
        """Steps before which, and from which on, the named tensors play no part."""

    def begin(self, inputs: Inputs) -> Values:
        """Return the values before step 0."""

    def advance(self, values: Values, start: int, stop: int, tensors: Tensors) -> None:
        """Replace the values before step `start` by those before step `stop`.

        Some parameters and buffers are replaced by `tensors` on the way.
        """

    def finish(self, values: Values, start: int, tensors: Tensors) -> Any:
        """Output from the values before step `start`, with some parameters and buffers replaced.

        `values` stays as it is, but what it holds may be changed in place; see `Cut.changes`.
        """


class Whole:
    """A network that has no graph: every output is computed from the inputs on."""

    steps = 1

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def uses(self, names: Collection[str]) -> tuple[int, int]:  # noqa: ARG002
        """Nothing is known to come before or behind."""
        return 0, self.steps

    def begin(self, inputs: Inputs) -> Values:
        """Return the inputs alone."""
        return {"args": inputs.args, "kwargs": dict(inputs.kwargs)}

    def advance(self, values: Values, start: int, stop: int, tensors: Tensors) -> None:
        """There is one step, and no way to stop before it."""

    def finish(self, values: Values, start: int, tensors: Tensors) -> Any:  # noqa: ARG002
        """Run the network."""
        return _called(self._module, tensors, values["args"], values["kwargs"])


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
        self._chain = Chain(self._nodes, modules)
        images = batch.images
        is_plain = images is not None and images.device.type == "cpu"
        if images is not None and is_plain and not torch.is_autocast_enabled("cpu"):
            self._chain.pack(images)
            loose = [node for node in self._nodes if node not in self._chain.packed]
            same = self._same_bits(batch, stretches(loose, modules))
            self._keep_together(stretches(same, modules))

    def _keep_together(self, found: Iterable[Stretch]) -> None:
        for stretch in found:
            self._together |= {node: node is not stretch[-1] for node in stretch}

    def hasten(self) -> None:
        """Go ways from now on that round differently, where batches of another size do so too."""
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
            call, images = self._modules[str(node.target)], dense(values[node.all_input_nodes[0]])
            if torch.equal(call(images.clone()), call(channels_together(images.clone()))):
                same.append(node)
        return same

    def uses(self, names: Collection[str]) -> tuple[int, int]:
        """Indices of the first node that reads one of them, and of the one behind the last."""
        found = [node for node in self._nodes if any(_reads(node, name) for name in names)]
        if not found:
            return self.steps, self.steps
        # A tensor that is read by itself is used by whatever is given it.
        users = [user for node in found if node.op == "get_attr" for user in node.users]
        last = max(map(self._nodes.index, [found[-1], *users]))
        return self._nodes.index(found[0]), last + 1

    def begin(self, inputs: Inputs) -> Values:
        """Return the inputs alone, by the parameters of forward that they are given to."""
        if self._chain.packed and inputs.images is not None:
            self._chain.look_at(inputs.images)
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
        packs = bool(self._chain.packed) and self._chain.is_in_range(tensors)
        for index in range(start, stop):
            node = self._nodes[index]
            if node.op != "placeholder" or node not in values:
                values[node] = self._value(node, values, tensors, packs=packs)
            for value in self._dying[index]:
                del values[value]

    def _value(
        self, node: fx.Node, values: Values, tensors: Tensors, *, packs: bool = False
    ) -> Any:
        target: Any = node.target
        if packs and node in self._chain.packed:
            images = values[node.all_input_nodes[0]]
            if len(images) % self._size == 0:
                return self._chain.run(node, images, _own(node, tensors))
        args, kwargs = map_arg((node.args, node.kwargs), lambda one: dense(values[one]))
        match node.op:
            case "call_module":
                own = _own(node, tensors)
                if node in self._spread.averages and args[0].shape[-2:] == (1, 1):
                    return args[0]
                if node in self._spread.linears and args[0].shape[1] != self._width(node):
                    return pixels.run(self._plain[target], own, args[0])
                if node in self._together and len(args[0]) % self._size == 0:
                    images = channels_together(args[0])
                    output = _called(self._modules[target], own, (images,), kwargs)
                    return output if self._together[node] else output.contiguous()
                return _called(self._modules[target], own, args, kwargs)
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


def _called(call: Callable[..., Any], tensors: Tensors, args: Any, kwargs: Any) -> Any:
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
    """Largest of each 2 × 2 pixels; on a CPU torch would look for their positions too."""
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


def trace(module: nn.Module, /) -> Trace:
    """Look for the graph of a network on its device.

    While torch.fx traces, it replaces what every module of the process does when it is called: no
    other thread may run a network.
    """
    try:
        graph, attributes = trace_graph(module)
    except Exception as exc:  # forward is anybody's code and does anything when it is given symbols
        return Trace(nodes=[], attributes={}, problem=_named(exc))
    return Trace(nodes=list(graph.nodes), attributes=attributes)


def _named(exc: Exception) -> str:
    return f"{type(exc).__name__}: {str(exc).partition(chr(10))[0]}"


def split(module: nn.Module, traced: Trace, batch: Inputs, /) -> tuple[Splittable, str]:
    """Prepare a network, which is in evaluation mode, to be left before any layer.

    Parameters
    ----------
    traced : Trace
        Of the module.
    batch : Inputs
        Of the size that batches will have.

    Returns
    -------
    network : Splittable
    note : str
        Why the network has to be run as a whole each time; "" where it has not.
    """
    reason = traced.problem or _options(module, batch)
    if not reason:
        try:
            with torch.inference_mode():
                network, example = Traced(module, traced, batch), batch.example
                output = network.finish(network.begin(example.copied()), 0, {})
                own = example.copied()
                if _is_same(output, module(*own.args, **own.kwargs)):
                    if batch.device.type == "cuda":
                        network.hasten()
                    return network, ""
            reason = "it gives another output"
        except Exception as exc:  # a graph may be of one size of images, or of one of several ways
            reason = _named(exc)
    return Whole(module), (
        f"the graph of {type(module).__name__} cannot be run by parts ({reason}): the whole "
        "network was run for each cell"
    )


def _options(module: nn.Module, inputs: Inputs) -> str:
    """Say why a graph that has options of forward at their defaults cannot take the inputs."""
    signature = inspect.signature(module.forward)
    given = signature.bind_partial(*inputs.args, **inputs.kwargs).arguments
    parameters = signature.parameters.values()
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    odd = [
        p.name
        for p in parameters
        if p.name in given and (p.default is not p.empty or p.kind in several)
    ]
    return f"forward is given its option {odd[0]}" if odd else ""


def _is_same(one: Any, other: Any) -> bool:
    """Return whether two outputs are the same, part by part."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and bool(torch.equal(one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_is_same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return one is None and other is None


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """The arguments that a network is called with for one batch.

    Attributes
    ----------
    args, kwargs
        Of forward.
    size : int
        Examples.
    device : torch.device
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    size: int
    device: torch.device

    @classmethod
    def of(cls, images: torch.Tensor) -> Inputs:
        """Return the inputs of a network that takes one tensor."""
        return cls(args=(images,), kwargs={}, size=len(images), device=images.device)

    @property
    def images(self) -> torch.Tensor | None:
        """Return the only input, where it is a tensor with a row an example."""
        (*parts,) = (*self.args, *self.kwargs.values())
        is_one = len(parts) == 1 and isinstance(parts[0], torch.Tensor)
        return parts[0] if is_one and len(parts[0]) == self.size else None

    @property
    def example(self) -> Inputs:
        """Return the first example; the whole batch where it cannot be told from the others."""
        images = self.images
        if images is None:
            return self
        one = images[:1]
        kwargs = dict.fromkeys(self.kwargs, one)
        return replace(self, args=(one,) if self.args else (), kwargs=kwargs, size=1)

    def copied(self) -> Inputs:
        """Return the same in memory of their own."""
        args, kwargs = copy.deepcopy((self.args, dict(self.kwargs)))
        return replace(self, args=args, kwargs=kwargs)


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The point at which a network is left, and what that needs.

    Attributes
    ----------
    live_bytes : list of int
        By step: of the values that are kept for one example before it.
    changes : dict of int to bool
        Whether going on from a step changes what was kept in place, so that a second time needs a
        copy.
    output_bytes : int
        Of what the network gives for one example.
    """

    live_bytes: list[int]
    changes: dict[int, bool]
    output_bytes: int


def survey(network: Splittable, example: Inputs, starts: Collection[int], /) -> Survey:
    """Find what it takes to leave a network before some steps."""
    live: list[int] = []
    changes: dict[int, bool] = {}
    # Not in inference mode, where tensors do not count how often they were changed.
    with torch.no_grad():
        values = network.begin(example.copied())
        for step in range(network.steps + 1):
            held = tensors_in(values)
            storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in held}
            live.append(sum(storage.nbytes() for storage in storages.values()) // example.size)
            if step in starts:
                before = [tensor._version for tensor in held]
                network.finish(values, step, {})
                changes[step] = before != [tensor._version for tensor in held]
            if step < network.steps:
                network.advance(values, step, step + 1, {})
        output = network.finish(values, network.steps, {}) if network.steps > 1 else None
        if output is None:
            output = network.finish(network.begin(example.copied()), 0, {})
    given = sum(tensor.nbytes for tensor in tensors_in({"": output})) // example.size
    return Survey(live_bytes=live, changes=changes, output_bytes=given)


def tensors_in(values: Values, /) -> list[torch.Tensor]:
    """Return all tensors that values hold, also within tuples, lists and dicts."""
    found: list[torch.Tensor] = []

    def look(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            found.append(value)
        return value

    map_aggregate(tuple(values.values()), look)
    return found


def copied(values: Values, /) -> Values:
    """Return the same values in memory of their own; what shared memory still does."""
    own = [dense(value) for value in values.values()]
    return dict(zip(values, copy.deepcopy(own), strict=True))


def stacked(several: Sequence[Values], size: int, /) -> Values:
    """Return the values of several batches of a size as if they were one.

    Whether a network treats that as several is another question, to be tried.
    """
    joined: Values = {}
    for key, value in several[0].items():
        first = dense(value)
        is_batch = isinstance(first, torch.Tensor) and first.shape[:1] == (size,)
        joined[key] = torch.cat([dense(values[key]) for values in several]) if is_batch else first
    return joined
