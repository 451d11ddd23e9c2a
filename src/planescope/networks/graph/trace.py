"""The graph of a torch module, and what it tells of its layers: stage, input, norm.

`forward` is run once on symbols (torch.fx), and what flows along the graph is followed in the
abstract: nothing is computed, and the module is left as it was. To import this is to import torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase

from planescope.hyperplanes.layer import Kind, Place
from planescope.networks.graph.functional import (
    FUNCTIONAL_LAYERS,
    Functional,
    Functions,
    find_functional,
    name_of,
    place_of,
)
from planescope.networks.graph.places import Node, Position, Role, follow
from planescope.networks.graph.step import LIKE_ANOTHER, Step, StepNorm
from planescope.networks.graph.symbols import graph_of, is_frozen_norm
from planescope.networks.graph.usage import Usage, usage_of
from planescope.networks.graph.views import RANKS
from planescope.networks.live.affine import Leaf
from planescope.networks.live.copies import same_random_states
from planescope.networks.state.sharing import notes_of_biases, notes_of_calls

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


_NO_LEAVES: Mapping[nn.Module, Leaf] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True, eq=False)
class Traced:
    """Places of layers by name, layers called as functions, what is used, and what to say of it."""

    places: dict[str, Place]
    functional: dict[str, Functional]
    left_out: dict[str, str]
    usage: Usage
    notes: tuple[str, ...]


def trace_places(module: nn.Module, /) -> dict[str, Place]:
    """Find where the layers that `forward` calls stand, by name, in the order of the first call.

    Raises
    ------
    Exception
        As `trace`.
    """
    return trace(module, _NO_LEAVES, {}).places


def trace(
    module: nn.Module, leaves: Mapping[nn.Module, Leaf], names: Mapping[str, str], /
) -> Traced:
    """Find where the layers that `forward` calls stand, in the order of the first call.

    `leaves` are modules that are looked at from without, beside torch's own layers; `names` gives
    layers that go by another's name. A layer that is called several times has the stage of the
    first call, and of the rest what all calls agree on. The image, whatever is done to it, is in
    stage 0.

    Raises
    ------
    Exception
        Any that `forward` raises when it gets symbols for tensors, on control flow for example.
    """
    with _undisturbed(module), torch.no_grad(), same_random_states():
        graph = _traced(module, leaves)
        functions, usage = find_functional(graph, module), usage_of(graph, module)
        steps = list(_steps(graph, module, leaves, names, functions.layers))
    nodes, norms = _nodes(steps)
    positions = follow(nodes)
    # Of a layer that is called several times the first call tells the kind.
    kinds = {step.layer: step.place for step in reversed(steps) if step.layer and step.place}
    return Traced(
        places={
            name: _placed(kinds[name], position, norms) for name, position in positions.items()
        },
        functional={held.name: held for held in functions.layers.values()},
        left_out=functions.left_out,
        usage=usage,
        notes=(*notes_of_calls(positions, {}), *notes_of_biases(_with_others(steps, functions))),
    )


def _with_others(steps: Sequence[Step], functions: Functions) -> list[str]:
    """Name the modules whose weight a function is given too, without the bias or with another."""
    called = {step.layer: step.module for step in steps if step.layer and step.module is not None}
    found = []
    for held in functions.layers.values():
        module = called.get(held.name)
        if module is not None and held.tensors:
            has_bias = getattr(module, "bias", None) is not None
            found += [held.name] if has_bias != ("bias" in held.tensors) else []
    return list(dict.fromkeys(found))


def trace_usage(module: nn.Module, leaves: Mapping[nn.Module, Leaf], /, *, training: bool) -> Usage:
    """Find what `forward` uses, in training or in evaluation.

    Raises
    ------
    Exception
        As `trace`.
    """
    with _undisturbed(module, training=training), torch.no_grad():
        return usage_of(graph_of(module, leaves), module)


def trace_graph(module: nn.Module, /) -> tuple[fx.Graph, dict[str, Any]]:
    """Trace `forward` in evaluation as a graph whose leaves are the layers.

    Returns
    -------
    graph : torch.fx.Graph
    attributes : dict of str to object
        What the graph's ``get_attr`` nodes stand for, by target: parameters and buffers as they
        are, and constants that `forward` made.

    Raises
    ------
    Exception
        As `trace_places`.
    """
    with _undisturbed(module), torch.no_grad(), same_random_states():
        graph = _traced(module)
        targets = [node.target for node in graph.nodes if node.op == "get_attr"]
        return graph, {target: attrgetter(target)(module) for target in targets}


# Graphs of networks that nobody else has, and what `forward` made for them, by device and type.
_Kept = dict[tuple[torch.device, torch.dtype] | None, tuple[fx.Graph, dict[str, Any]]]
_REMEMBERED: WeakKeyDictionary[nn.Module, _Kept] = WeakKeyDictionary()


def remembered(module: nn.Module, /) -> nn.Module:
    """Have a network traced once from now on: nobody else has it, and its parts stay."""
    _REMEMBERED.setdefault(module, {})
    return module


def _traced(module: nn.Module, leaves: Mapping[nn.Module, Leaf] = _NO_LEAVES) -> fx.Graph:
    kept = None if leaves else _REMEMBERED.get(module)
    if kept is None:
        return graph_of(module, leaves)
    first = next(module.parameters(), None)
    key = None if first is None else (first.device, first.dtype)
    if key not in kept:
        graph = graph_of(module, leaves)
        targets = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
        made = targets & vars(module).keys()  # tensors that forward makes are put there
        kept[key] = graph, {name: vars(module)[name] for name in made}
    graph, constants = kept[key]
    vars(module).update(constants)
    return graph


# By the end of the norm's name.
_NORM_RANKS = {"1d": (2, 3), "2d": (4,), "3d": (5,)}
_MAX_LOOK = 1 << 16  # elements of a buffer that is looked at to see whether any is negative

# Of the copies of FrozenBatchNorm2d that keep none of their own (DETR's, for example).
_FROZEN_EPS = 1e-5


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@contextlib.contextmanager
def _undisturbed(root: nn.Module, *, training: bool = False) -> Iterator[None]:
    """Evaluate without hooks within a block; afterwards all modules hold what they held."""
    kept = [(vars(module), dict(vars(module))) for module in root.modules()]
    held = [value for _, before in kept for value in before.values()]
    dicts = [(value, dict(value)) for value in held if isinstance(value, dict)]
    lists = [(value, list(value)) for value in held if isinstance(value, list)]
    try:
        for attributes, _ in kept:
            attributes.update(training=training, _compiled_call_impl=None)
            attributes.update({name: OrderedDict() for name in _HOOKS})
        yield
    finally:
        for values, as_before in lists:
            values[:] = as_before
        for mapping, before in chain(dicts, kept):
            for key in mapping.keys() - before.keys():
                del mapping[key]
            mapping.update(before)


def _steps(
    graph: fx.Graph,
    root: nn.Module,
    leaves: Mapping[nn.Module, Leaf],
    names: Mapping[str, str],
    functional: Mapping[fx.Node, Functional],
) -> Iterator[Step]:
    modules = dict(root.named_modules())
    latest: dict[fx.Node, fx.Node] = {}  # what an in-place operation made of a value

    def now(node: fx.Node) -> fx.Node:
        while node in latest:
            node = latest[node]
        return node

    for node in graph.nodes:
        module = modules[node.target] if node.op == "call_module" else None
        inputs = tuple(now(argument) for argument in node.all_input_nodes)
        name = _called(node, module)
        held = attrgetter(node.target)(root) if node.op == "get_attr" else None
        operation = name.lower().replace("_", "")
        leaf = None if module is None else leaves.get(module)
        step = Step(node, operation, module, inputs, constant=held, leaf=leaf)
        step = _recognised(step, functional)
        yield dataclasses.replace(step, layer=step.layer and names.get(step.layer, step.layer))
        if inputs and _is_in_place(step, name):
            latest[inputs[0]] = node


def _called(node: fx.Node, module: nn.Module | None) -> str:
    if not node.op.startswith("call"):
        return ""
    return name_of(node) if module is None else type(module).__name__


def _is_in_place(step: Step, name: str) -> bool:
    if step.module is not None:
        return getattr(step.module, "inplace", False) is True
    return step.node.kwargs.get("inplace") is True or (
        name.endswith("_") and not name.endswith("__")
    )


def _recognised(step: Step, functional: Mapping[fx.Node, Functional]) -> Step:
    """Return the step with what it tells where it is a layer or a batch norm."""
    if step.leaf is not None:
        eps = step.leaf.eps
        norm = None if eps is None else StepNorm(step.node.target, eps)
        layer = step.node.target if step.leaf.place is not None else None
        return dataclasses.replace(step, layer=layer, place=step.leaf.place, norm=norm)
    if step.module is not None:
        if (place := place_of(step.module)) is not None:
            return dataclasses.replace(step, layer=step.node.target, place=place)
        if isinstance(step.module, _NormBase) and step.module.running_mean is not None:
            return dataclasses.replace(step, norm=StepNorm(step.node.target, step.module.eps))
        if is_frozen_norm(step.module):
            eps = getattr(step.module, "eps", _FROZEN_EPS)
            return dataclasses.replace(step, norm=StepNorm(step.node.target, eps))
    elif (held := functional.get(step.node)) is not None:
        # A product that a bias is added to takes that first, and what it acts on next.
        inputs = step.inputs[1:] + step.inputs[:1] if step.operation == "addmm" else step.inputs
        return dataclasses.replace(step, layer=held.name, place=held.place, inputs=inputs)
    elif step.operation in FUNCTIONAL_LAYERS:
        # Its weight is made of the input, or is a constant of the code.
        return dataclasses.replace(step, place=Place(kind=FUNCTIONAL_LAYERS[step.operation]))
    elif (norm := _norm_called(step)) is not None:
        return dataclasses.replace(step, norm=norm)
    return step


def _norm_called(step: Step) -> StepNorm | None:
    """Return the batch norm that a function is given the parts of, in the order of its kind."""
    is_decomposed = step.operation == "nativebatchnormlegitnotraining"
    if step.operation != "batchnorm" and not is_decomposed:
        return None
    is_operator = isinstance(step.node.target, torch._ops.OpOverload)
    mean = _attribute(step.option("running_mean", 3 if is_operator else 1))
    eps = step.option("eps", 6 if is_decomposed else 7, 1e-5)
    return None if mean is None else StepNorm(mean.removesuffix(".running_mean"), eps)


def _attribute(argument: object) -> str | None:
    """Name of the parameter or buffer that an argument is."""
    if isinstance(argument, fx.Node) and argument.op == "get_attr":
        return str(argument.target)
    return None


def _nodes(steps: Sequence[Step]) -> tuple[list[Node], dict[int, StepNorm]]:
    """Translate what torch was asked for; with the norms by the numbers of their nodes."""
    nodes: list[Node] = []
    norms: dict[int, StepNorm] = {}
    numbers: dict[fx.Node, int] = {}
    for step in steps:
        inputs = step.inputs[:1] if step.operation in LIKE_ANOTHER else step.inputs
        reads = tuple(numbers[node] for node in inputs) * (2 if step.squares else 1)
        for operand in step.operands:
            reads += (len(nodes),)
            nodes.append(_number(operand))
        numbers[step.node] = len(nodes)
        if step.norm is not None:
            norms[len(nodes)] = step.norm
        nodes.append(_node(step, reads))
    return nodes, norms


def _number(value: float) -> Node:
    return Node(role=Role.CONSTANT, is_non_negative=lambda: value >= 0)


def _node(step: Step, reads: tuple[int, ...]) -> Node:
    if step.node.op == "placeholder":
        return Node(role=Role.IMAGE)
    if step.node.op == "get_attr":
        return Node(role=Role.CONSTANT, is_non_negative=lambda: _is_non_negative(step.constant))
    if not step.reads_values:
        return Node(role=Role.CONSTANT, is_non_negative=lambda: True)
    if step.place is not None:
        name = step.layer or ""
        return Node(
            role=Role.LAYER,
            reads=reads,
            name=name,
            downsamples=step.downsamples,
            is_last=step.place.kind is Kind.LINEAR,
        )
    name = "" if step.norm is None else step.norm.name
    role, downsamples = step.role, step.downsamples
    view = step.view if role is Role.VIEW else None
    ranks = _NORM_RANKS.get(step.operation[-2:], RANKS) if step.norm is not None else RANKS
    return Node(role=role, reads=reads, name=name, downsamples=downsamples, view=view, ranks=ranks)


def _is_non_negative(constant: object) -> bool:
    """Look at a buffer; what is trained may become negative."""
    if not isinstance(constant, torch.Tensor) or isinstance(constant, nn.Parameter):
        return False
    return not constant.is_meta and constant.numel() <= _MAX_LOOK and bool((constant >= 0).all())


def _placed(place: Place, position: Position, norms: Mapping[int, StepNorm]) -> Place:
    norm = None if position.norm is None else norms[position.norm]
    return dataclasses.replace(
        place,
        stage=position.stage,
        input=position.input,
        norm=None if norm is None else norm.name,
        eps=None if norm is None else norm.eps,
    )
