"""Layers that a graph calls as functions, with weights that it holds or computes on the way."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from planescope.hyperplanes.layer import Kind, Place, Tensor, kind_of_convolution
from planescope.networks.live.copies import without_autocast
from planescope.networks.live.mapping import named_tensor
from planescope.networks.live.plain import plain

FUNCTIONAL_LAYERS = {
    **{f"conv{n}d": Kind.CONV for n in (1, 2, 3)},
    **{f"convtranspose{n}d": Kind.TRANSPOSED for n in (1, 2, 3)},
    "linear": Kind.LINEAR,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Functional:
    """A layer that is called as a function.

    Attributes
    ----------
    name : str
        Of its parameter, without `.weight`; with the step's name behind it where the weight is
        computed from that.
    parameter : str
        Full name of the parameter that the weight is, or is computed from.
    sources : tuple of str
        Full names of all parameters that the weight is computed from.
    tensors : dict of str to Tensor
        `weight`, as torch lays it out, and `bias` where there is one.
    """

    name: str
    parameter: str
    sources: tuple[str, ...]
    place: Place
    tensors: dict[str, Tensor]


def place_of(module: nn.Module, /) -> Place | None:
    """Return kind and groups of a module by itself; None for what is not a layer."""
    if isinstance(module, nn.Linear):
        return Place(kind=Kind.LINEAR, groups=1)
    if isinstance(module, _ConvTransposeNd):
        return Place(kind=Kind.TRANSPOSED, groups=module.groups)
    if isinstance(module, _ConvNd):
        return Place(kind=kind_of_convolution(tuple(module.kernel_size)), groups=module.groups)
    return None


def find_functional(graph: fx.Graph, root: nn.Module, /) -> dict[fx.Node, Functional]:
    """Find the steps of a graph that are layers with weights which do not depend on the input."""
    found: dict[fx.Node, Functional] = {}
    alike: dict[tuple[str, str], str] = {}
    parameters = dict(root.named_parameters())
    for node in graph.nodes:
        if (call := _call(node)) is not None and (held := _held(node, call, root, parameters)):
            # The same weight, computed the same way, is one layer wherever it is called.
            key = (_spelled(call.weight), str(held.place))
            found[node] = dataclasses.replace(held, name=alike.setdefault(key, held.name))
    return found


def name_of(node: fx.Node, /) -> str:
    """Name what a node of a graph calls as a function; of an operator of ATen without its form."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target.overloadpacket.__name__)
    return str(getattr(node.target, "__name__", node.target))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Call:
    """A call of a layer as a function; of a product the weight is turned round."""

    kind: Kind
    weight: Any
    bias: Any
    groups: Any = 1
    is_turned: bool = False


def _call(node: fx.Node) -> _Call | None:
    if node.op != "call_function":
        return None
    word = name_of(node).lower().replace("_", "")
    if word in FUNCTIONAL_LAYERS:
        kind = FUNCTIONAL_LAYERS[word]
        weight, bias = _argument(node, 1, "weight"), _argument(node, 2, "bias")
        groups = 1 if kind is Kind.LINEAR else (_argument(node, 6, "groups") or 1)
        return _Call(kind=kind, weight=weight, bias=bias, groups=groups)
    # What `run_decompositions` makes of them.
    if word == "convolution" and len(node.args) == 9:
        kind = Kind.TRANSPOSED if node.args[6] else Kind.CONV
        return _Call(kind=kind, weight=node.args[1], bias=node.args[2], groups=node.args[8])
    if word == "addmm" and len(node.args) == 3 and not node.kwargs:
        return _product(node.args[2], node.args[0])
    if word == "mm" and len(node.args) == 2:
        product = _product(node.args[1], None)
        # What is added to it may be a bias.
        return None if product.is_turned or any(map(_adds, node.users)) else product
    return None


def _product(weight: Any, bias: Any) -> _Call:
    turns = isinstance(weight, fx.Node) and name_of(weight) in ("permute", "t", "transpose")
    inner = weight.all_input_nodes if turns else []
    if len(inner) == 1 and inner[0].op == "get_attr":
        return _Call(kind=Kind.LINEAR, weight=inner[0], bias=bias)
    return _Call(kind=Kind.LINEAR, weight=weight, bias=bias, is_turned=True)


def _adds(node: fx.Node) -> bool:
    return name_of(node).lower().strip("_") in ("add", "iadd", "sub")


def _argument(node: fx.Node, position: int, name: str) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name)


def _held(
    node: fx.Node, call: _Call, root: nn.Module, parameters: dict[str, nn.Parameter]
) -> Functional | None:
    weight, bias, kind = call.weight, call.bias, call.kind
    sources = list(_sources(weight))
    named = [source for source in sources if source in parameters]
    if not named or None in sources or None in list(_sources(bias) if bias is not None else ()):
        return None
    parameter = max(named, key=lambda name: parameters[name].numel())
    ways = {"weight": (weight, call.is_turned), "bias": (bias, False)}
    try:
        tensors = {
            part: named_tensor(
                f"{parameter}.{part}", functools.partial(_evaluated, value, root, turned=turned)
            )
            for part, (value, turned) in ways.items()
            if value is not None
        }
    except Exception:  # what the code calls there may not run by itself
        return None
    if kind is Kind.CONV:
        kind = kind_of_convolution(tensors["weight"].shape[2:])
    place, owner = Place(kind=kind, groups=call.groups), parameter.removesuffix(".weight")
    is_itself = isinstance(weight, fx.Node) and weight.op == "get_attr" and not call.is_turned
    return Functional(
        name=owner if is_itself and _fits(root, owner, place) else f"{parameter}@{node.name}",
        parameter=parameter,
        sources=tuple(named),
        place=place,
        tensors=tensors,
    )


def _fits(root: nn.Module, owner: str, place: Place) -> bool:
    """Tell whether the module that holds a weight, if it is a layer, is one of the same place."""
    own = place_of(dict(root.named_modules()).get(owner, root))
    return own is None or own == place


def _sources(value: Any) -> Iterator[str | None]:
    """Yield the names of what a value is computed from.

    None of what is no parameter, buffer or constant.
    """
    waiting, seen = [value], set()
    while waiting:
        node = waiting.pop()
        if not isinstance(node, fx.Node) or node in seen:
            continue
        seen.add(node)
        if node.op == "get_attr":
            yield str(node.target)
        elif node.op in ("call_function", "call_method"):
            waiting += node.all_input_nodes
        else:
            yield None


def _spelled(value: Any) -> str:
    """Spell out how a value is computed, the same for the same computation."""
    if isinstance(value, fx.Node):
        parts = ", ".join(map(_spelled, (*value.args, *value.kwargs.values())))
        return f"{value.target}({parts})"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_spelled, value))}]"
    return repr(value)


def _evaluated(value: fx.Node, root: nn.Module, *, turned: bool) -> torch.Tensor:
    """Compute a value of the graph from what the network holds now; of a product turned round."""
    known: dict[fx.Node, Any] = {}

    def of(node: fx.Node) -> Any:
        if node not in known:
            known[node] = computed(node)
        return known[node]

    def computed(node: fx.Node) -> Any:
        if node.op == "get_attr":
            held = attrgetter(str(node.target))(root)
            return plain(str(node.target), held.detach()) if hasattr(held, "detach") else held
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), of)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        target: Any = node.target
        return target(*args, **kwargs)

    device = next((p.device for p in root.parameters()), torch.device("cpu"))
    with torch.no_grad(), without_autocast(device):
        result: torch.Tensor = of(value)
        return result.detach().t() if turned else result.detach()
