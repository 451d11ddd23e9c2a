"""What the graph of a torch module tells about its layers: stage, input, norm, the ReLU behind.

`forward` is run once on symbols (torch.fx), and what flows along the graph is followed in the
abstract: nothing is computed, and the module is left as it was. To import this is to import torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from enum import Enum, auto
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from planescope.hyperplanes.layer import Input, Kind, Place, kind_of_convolution

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class _Nature(Enum):
    """What is known of the values on an edge of the graph."""

    IMAGE = auto()
    RELU = auto()
    GATE = auto()  # not negative, but no ReLU's output: a sigmoid's for example
    NUMBER = auto()  # one that is written in the code and not negative
    CONSTANT = auto()  # any other number, a parameter, a buffer
    OTHER = auto()


_INPUTS = {_Nature.IMAGE: Input.IMAGE, _Nature.RELU: Input.RELU}

# Modules, functions and methods go by one name, in lower case and without underscores: nn.MaxPool2d
# and F.max_pool2d are both "maxpool2d", "relu" and the in-place "relu_" are both "relu".
_RELUS = {"relu", "relu6"}
_CLAMPS = {"hardtanh", "clamp", "clampmin", "clip"}
_GATES = {"sigmoid", "hardsigmoid", "softmax"}
# In evaluation these give what they get.
_IDENTITIES = {
    *("identity", "dropout", "dropout1d", "dropout2d", "dropout3d", "alphadropout"),
    *("stochasticdepth", "contiguous", "clone", "detach", "float", "half", "to"),
}
# These move values about; each stays what it is.
_VIEWS = {
    *("flatten", "unflatten", "view", "reshape", "squeeze", "unsqueeze", "permute", "transpose"),
    *("chunk", "split", "getitem", "narrow", "unbind", "expand", "repeat"),
    *("channelshuffle", "pixelshuffle", "pixelunshuffle"),
}
_PADS = {"pad", *(f"{how}pad{n}d" for how in ("zero", "constant") for n in (1, 2, 3))}
_RESIZES = {"interpolate", "upsample"}
_MAX_POOLS = {f"{how}maxpool{n}d" for how in ("", "adaptive") for n in (1, 2, 3)}
_AVERAGES = {f"{how}avgpool{n}d" for how in ("", "adaptive") for n in (1, 2, 3)} | {"mean"}
_STEPS = {f"{what}pool{n}d" for what in ("max", "avg") for n in (1, 2, 3)}
_SUMS = {"add", "cat", "concat", "stack", "maximum"}
_PRODUCTS = {"mul", "multiply", "div", "truediv"}

_KEEP_NATURE = _IDENTITIES | _VIEWS | _MAX_POOLS | _AVERAGES
# A ReLU behind these cuts where it would cut before them.
_COMMUTE_WITH_RELU = _IDENTITIES | _VIEWS | _MAX_POOLS

# Whoever asks for these does not read the values.
_METADATA = {"size", "dim", "numel", "shape", "ndim", "dtype", "device"}

_FUNCTIONAL_LAYERS = {
    **{f"conv{n}d": Kind.CONV for n in (1, 2, 3)},
    **{f"convtranspose{n}d": Kind.TRANSPOSED for n in (1, 2, 3)},
    "linear": Kind.LINEAR,
}


class _Value(NamedTuple):
    nature: _Nature
    stage: int


class _Norm(NamedTuple):
    name: str
    eps: float


@dataclass(frozen=True, eq=False, slots=True)
class _Step:
    """A node of the graph, with what it reads as the values are by then.

    `place` holds what the layer itself tells, where the step is one.
    """

    node: fx.Node
    operation: str
    module: nn.Module | None
    inputs: tuple[fx.Node, ...]
    layer: str | None = None
    place: Place | None = None
    norm: _Norm | None = None

    def option(self, name: str, position: int, default: Any = None) -> Any:
        """Value of an option, whether a module keeps it or a function is called with it."""
        if self.module is not None:
            return getattr(self.module, name, default)
        if len(self.node.args) > position:
            return self.node.args[position]
        return self.node.kwargs.get(name, default)

    @property
    def reads_values(self) -> bool:
        """Whether it takes what a tensor holds, not its shape or type alone."""
        attribute = self.node.args[1] if self.operation == "getattr" else self.operation
        return attribute not in _METADATA

    @property
    def rectifies(self) -> bool:
        """Whether it is a ReLU, or clamps like one."""
        if self.operation in _CLAMPS:
            least = self.option("min_val", 1, self.node.kwargs.get("min"))
            return isinstance(least, int | float) and least >= 0
        return self.operation in _RELUS

    @property
    def downsamples(self) -> bool:
        """Whether it is a pooling or a convolution with a stride."""
        if self.place is not None and self.place.kind in (Kind.CONV, Kind.POINTWISE):
            stride = self.option("stride", 3, 1)
        elif self.operation in _STEPS:
            stride = self.option("stride", 2) or self.option("kernel_size", 1)
        else:
            return False
        strides = stride if isinstance(stride, tuple | list) else (stride,)
        return any(isinstance(extent, int) and extent > 1 for extent in strides)


def place_of(module: nn.Module, /) -> Place | None:
    """What a module by itself tells: its kind and groups; None where it is no layer."""
    if isinstance(module, nn.Linear):
        return Place(kind=Kind.LINEAR, groups=1)
    if isinstance(module, _ConvTransposeNd):
        return Place(kind=Kind.TRANSPOSED, groups=module.groups)
    if isinstance(module, _ConvNd):
        return Place(kind=kind_of_convolution(tuple(module.kernel_size)), groups=module.groups)
    return None


def trace_places(module: nn.Module, /) -> dict[str, Place]:
    """Where the layers that `forward` calls stand, by name, in the order of the first call.

    A layer that is called several times has the stage of the first call, and of the rest what all
    calls agree on. The image, whatever is done to it, is in stage 0.

    Raises
    ------
    Exception
        Any that `forward` raises when it gets symbols for tensors, on control flow for example.
    """
    with _undisturbed(module), torch.no_grad():
        steps = list(_steps(_traced(module), module))
    values: dict[fx.Node, _Value] = {}
    users: dict[fx.Node, list[_Step]] = defaultdict(list)
    for step in steps:
        values[step.node] = _value(step, [values[node] for node in step.inputs])
        for node in step.inputs if step.reads_values else ():
            users[node].append(step)
    found: dict[str, Place] = {}
    for step in steps:
        if step.layer is not None and step.place is not None:
            place = _placed(step, step.place, values, users)
            found[step.layer] = _agreed(found.get(step.layer, place), place)
    return found


def trace_graph(module: nn.Module, /) -> tuple[fx.Graph, dict[str, Any]]:
    """What `forward` computes in evaluation, as a graph whose leaves are the layers.

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
    with _undisturbed(module), torch.no_grad():
        graph = _traced(module)
        targets = [node.target for node in graph.nodes if node.op == "get_attr"]
        return graph, {target: attrgetter(target)(module) for target in targets}


def _traced(module: nn.Module) -> fx.Graph:
    return _Tracer(module).trace(module, _defaults(module))


class _Tracer(fx.Tracer):  # type: ignore[misc]
    # A buffer that forward changes in place is then a symbol too, and its values stay.
    proxy_buffer_attributes = True

    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        tensors = chain(root.named_parameters(), root.named_buffers())
        self._names = {id(tensor): name for name, tensor in tensors}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return place_of(m) is not None or super().is_leaf_module(m, module_qualified_name)

    def getattr(self, _attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        # The base class searches all parameters at each access, which is quadratic.
        name = self._names.get(id(attr_val)) if isinstance(attr_val, torch.Tensor) else None
        if name is None:
            return attr_val
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]


def _defaults(module: nn.Module) -> dict[str, Any]:
    """Options of forward as they are when left out: a symbol in place of None would be no None."""
    parameters = inspect.signature(type(module).forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@contextlib.contextmanager
def _undisturbed(root: nn.Module) -> Iterator[None]:
    """Evaluation mode without hooks; afterwards all modules hold again what they held."""
    kept = [(vars(module), dict(vars(module))) for module in root.modules()]
    held = [value for _, before in kept for value in before.values()]
    dicts = [(value, dict(value)) for value in held if isinstance(value, dict)]
    lists = [(value, list(value)) for value in held if isinstance(value, list)]
    try:
        for attributes, _ in kept:
            attributes.update(training=False, _compiled_call_impl=None)
            attributes.update({name: OrderedDict() for name in _HOOKS})
        yield
    finally:
        for values, as_before in lists:
            values[:] = as_before
        for mapping, before in chain(dicts, kept):
            for key in mapping.keys() - before.keys():
                del mapping[key]
            mapping.update(before)


def _steps(graph: fx.Graph, root: nn.Module) -> Iterator[_Step]:
    modules, parameters = dict(root.named_modules()), dict(root.named_parameters())
    latest: dict[fx.Node, fx.Node] = {}  # what an in-place operation made of a value

    def now(node: fx.Node) -> fx.Node:
        while node in latest:
            node = latest[node]
        return node

    for node in graph.nodes:
        module = modules[node.target] if node.op == "call_module" else None
        inputs = tuple(now(argument) for argument in node.all_input_nodes)
        name = _called(node, module)
        step = _Step(node, name.lower().replace("_", ""), module, inputs)
        yield _recognised(step, parameters)
        if inputs and _is_in_place(step, name):
            latest[inputs[0]] = node


def _called(node: fx.Node, module: nn.Module | None) -> str:
    if not node.op.startswith("call"):
        return ""
    target = node.target if module is None else type(module)
    return str(getattr(target, "__name__", target))


def _is_in_place(step: _Step, name: str) -> bool:
    if step.module is not None:
        return getattr(step.module, "inplace", False) is True
    return step.node.kwargs.get("inplace") is True or (
        name.endswith("_") and not name.endswith("__")
    )


def _recognised(step: _Step, parameters: Mapping[str, nn.Parameter]) -> _Step:
    """The step with what it tells where it is a layer or a batch norm."""
    if step.module is not None:
        if (place := place_of(step.module)) is not None:
            return dataclasses.replace(step, layer=step.node.target, place=place)
        if isinstance(step.module, _BatchNorm) and step.module.running_mean is not None:
            return dataclasses.replace(step, norm=_Norm(step.node.target, step.module.eps))
    elif step.operation in _FUNCTIONAL_LAYERS:
        return _functional_layer(step, parameters)
    elif step.operation == "batchnorm" and (mean := _attribute(step.option("running_mean", 1))):
        norm = _Norm(mean.removesuffix(".running_mean"), step.option("eps", 7, 1e-5))
        return dataclasses.replace(step, norm=norm)
    return step


def _functional_layer(step: _Step, parameters: Mapping[str, nn.Parameter]) -> _Step:
    kind, groups = _FUNCTIONAL_LAYERS[step.operation], step.option("groups", 6, 1)
    weight = _attribute(step.option("weight", 1))
    if weight is None or weight not in parameters or weight.rpartition(".")[2] != "weight":
        return dataclasses.replace(step, place=Place(kind=kind))  # computed, or a fixed filter
    if kind is Kind.CONV:
        kind = kind_of_convolution(tuple(parameters[weight].shape[2:]))
    place = Place(kind=kind, groups=groups)
    return dataclasses.replace(step, layer=weight.removesuffix(".weight"), place=place)


def _attribute(argument: object) -> str | None:
    """Name of the parameter or buffer that an argument is."""
    if isinstance(argument, fx.Node) and argument.op == "get_attr":
        return str(argument.target)
    return None


def _value(step: _Step, given: list[_Value]) -> _Value:
    stage = max((value.stage for value in given), default=0)
    if given and given[0].nature is not _Nature.IMAGE:
        stage += step.downsamples
    return _Value(_nature(step, [value.nature for value in given]), stage)


def _nature(step: _Step, given: list[_Nature]) -> _Nature:
    if step.node.op == "placeholder":
        return _Nature.IMAGE
    if step.node.op == "get_attr":
        return _Nature.CONSTANT
    if step.rectifies:
        return _Nature.RELU
    if step.operation in _GATES:
        return _Nature.GATE
    if step.operation in _SUMS | _PRODUCTS | {"sub"}:
        return _combined(step, given)
    keeps = step.operation in _KEEP_NATURE or (
        (step.operation in _PADS and (step.option("value", 3) or 0) >= 0)
        or (step.operation in _RESIZES and step.option("mode", 3, "nearest") != "bicubic")
    )
    # A norm over the image normalises it: it has not been through a layer yet.
    if given and (keeps or (step.norm is not None and given[0] is _Nature.IMAGE)):
        return given[0]
    return _Nature.OTHER


def _combined(step: _Step, given: list[_Nature]) -> _Nature:
    """What a sum, a product, a quotient, a difference or a concatenation is."""
    numbers = (a for a in step.node.args if isinstance(a, int | float))
    found = {*given, *(_Nature.NUMBER if a >= 0 else _Nature.CONSTANT for a in numbers)}
    if _Nature.IMAGE in found and found <= {_Nature.IMAGE, _Nature.NUMBER, _Nature.CONSTANT}:
        return _Nature.IMAGE
    beside_relu = {_Nature.RELU, _Nature.NUMBER}
    if step.operation in _PRODUCTS:
        beside_relu |= {_Nature.GATE}
    if _Nature.RELU in found and found <= beside_relu and step.operation != "sub":
        return _Nature.RELU
    return _Nature.OTHER


def _placed(
    step: _Step,
    place: Place,
    values: Mapping[fx.Node, _Value],
    users: Mapping[fx.Node, list[_Step]],
) -> Place:
    behind = _norm_behind(step, users)
    norm = None if behind is None else behind.norm
    return dataclasses.replace(
        place,
        stage=values[step.node].stage,
        input=_INPUTS.get(values[step.inputs[0]].nature, Input.OTHER),
        norm=None if norm is None else norm.name,
        eps=None if norm is None else norm.eps,
        relu_follows=_relu_behind(step if behind is None else behind, users),
    )


def _norm_behind(step: _Step, users: Mapping[fx.Node, list[_Step]]) -> _Step | None:
    """The batch norm that alone reads what the layer gives."""
    while len(readers := users[step.node]) == 1:
        (step,) = readers
        if step.norm is not None:
            return step
        if step.operation not in _IDENTITIES:
            break
    return None


def _relu_behind(step: _Step, users: Mapping[fx.Node, list[_Step]]) -> bool:
    seen, reached = set(), [step]
    while reached:
        for reader in users[reached.pop().node]:
            if reader.rectifies:
                return True
            if reader.operation in _COMMUTE_WITH_RELU and reader.node not in seen:
                seen.add(reader.node)
                reached.append(reader)
    return False


def _agreed(first: Place, again: Place) -> Place:
    """One place of a layer that is called several times."""
    same_norm = first.norm == again.norm
    return dataclasses.replace(
        first,
        input=first.input if first.input is again.input else Input.OTHER,
        norm=first.norm if same_norm else None,
        eps=first.eps if same_norm else None,
        relu_follows=first.relu_follows and again.relu_follows,
    )
