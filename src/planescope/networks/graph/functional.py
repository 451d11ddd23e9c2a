"""Layers that a graph calls as functions, with weights that it holds or computes on the way."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Container, Iterator
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
from planescope.networks.state import exclusions

FUNCTIONAL_LAYERS = {
    **{f"conv{n}d": Kind.CONV for n in (1, 2, 3)},
    **{f"convtranspose{n}d": Kind.TRANSPOSED for n in (1, 2, 3)},
    "linear": Kind.LINEAR,
}

# Of a matrix all of these do the same.
_TURNS = {"permute", "t", "transpose", "numpy_T", "getattr T", "getattr mT"}
_MADE = "_tensor_constant"  # as torch.fx calls what `forward` makes and nothing keeps
_SPATIAL = {Kind.POINTWISE: Kind.CONV}


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
        `weight`, as torch lays it out, and `bias` where there is one; empty of a module that
        computes its weight from parts.
    is_fixed : bool
        Whether no parameter is in the weight: nothing trains it.
    """

    name: str
    parameter: str
    sources: tuple[str, ...]
    place: Place
    tensors: dict[str, Tensor]
    is_fixed: bool = False


def place_of(module: nn.Module, /) -> Place | None:
    """Return kind and groups of a module by itself; None for what is not a layer."""
    if isinstance(module, nn.Linear):
        return Place(kind=Kind.LINEAR, groups=1)
    if isinstance(module, _ConvTransposeNd):
        return Place(kind=Kind.TRANSPOSED, groups=module.groups)
    if isinstance(module, _ConvNd):
        return Place(kind=kind_of_convolution(tuple(module.kernel_size)), groups=module.groups)
    return None


@dataclass(frozen=True, kw_only=True, eq=False)
class Functions:
    """The steps of a graph that are layers, and those whose weights cannot be had, with why."""

    layers: dict[fx.Node, Functional]
    left_out: dict[str, str]


def find_functional(graph: fx.Graph, root: nn.Module, /) -> Functions:
    """Find the steps of a graph that are layers with weights which do not depend on the input."""
    found, left_out = {}, {}
    alike: dict[tuple[str, str], str] = {}  # names of what is computed alike, each of one
    known = _matrices(graph, root)
    for node in graph.nodes:
        if (call := _call(node)) is None:
            continue
        held = _parametrised(call, root) or _held(node, call, root, known)
        if held is not None and held.is_fixed and exclusions.is_one_filter(held.tensors["weight"]):
            left_out[held.name] = exclusions.ONE_FILTER
        elif held is not None:
            # The same weight, computed the same way, is one layer wherever it is called.
            key = (_spelled(call.weight), f"{held.place}{call.is_turned}")
            if key not in alike:
                is_taken = held.name in alike.values()
                alike[key] = f"{held.parameter}@{node.name}" if is_taken else held.name
            found[node] = dataclasses.replace(held, name=alike[key])
        elif call.is_layer:
            name, why = _why_not(node, call, known)
            left_out[name] = why
    return Functions(layers=found, left_out=left_out)


def _matrices(graph: fx.Graph, root: nn.Module) -> dict[str, torch.Tensor]:
    """Find what may be a weight: parameters, and fixed tensors of two axes or more."""
    found: dict[str, torch.Tensor] = dict(root.named_parameters())
    for node in graph.nodes:
        target = str(node.target)
        is_kept = node.op == "get_attr" and not target.startswith(_MADE)
        held = attrgetter(target)(root) if is_kept else None
        if isinstance(held, torch.Tensor) and sum(extent > 1 for extent in held.shape) > 1:
            found.setdefault(target, held)
    return found


def _why_not(node: fx.Node, call: _Call, known: Container[str]) -> tuple[str, str]:
    """Name a layer whose weight cannot be had, and say why."""
    word, weight = name_of(node), call.weight
    if isinstance(weight, fx.Node) and weight.op == "get_attr":
        return str(weight.target), f"a fixed weight of {word}, which is no parameter"
    sources = (source for source in _sources(weight) if source in known)
    name = next(sources, None) or node.name
    return name, f"the network computes the weights of this {word} as it runs"


def name_of(node: fx.Node, /) -> str:
    """Name what a node of a graph calls as a function; of an operator of ATen without its form."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target.overloadpacket.__name__)
    return str(getattr(node.target, "__name__", node.target))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Call:
    """A call of a layer as a function; of a product the weight is turned round.

    `is_layer` tells convolutions and linear layers from products, which may be of any two values.
    """

    kind: Kind
    weight: Any
    bias: Any
    groups: Any = 1
    is_turned: bool = False
    is_layer: bool = True


def _call(node: fx.Node) -> _Call | None:
    word = name_of(node).lower().replace("_", "")
    if node.op == "call_function" and word in FUNCTIONAL_LAYERS:
        kind = FUNCTIONAL_LAYERS[word]
        weight, bias = _argument(node, 1, "weight"), _argument(node, 2, "bias")
        groups = 1 if kind is Kind.LINEAR else (_argument(node, 6, "groups") or 1)
        return _Call(kind=kind, weight=weight, bias=bias, groups=groups)
    # What `run_decompositions` makes of them.
    if word == "convolution" and len(node.args) == 9:
        kind = Kind.TRANSPOSED if node.args[6] else Kind.CONV
        return _Call(kind=kind, weight=node.args[1], bias=node.args[2], groups=node.args[8])
    if node.op not in ("call_function", "call_method") or node.kwargs:
        return None
    if word == "addmm" and len(node.args) == 3:
        return _product(node.args[1], node.args[2], node.args[0])
    if word in ("matmul", "mm") and len(node.args) == 2:
        return _product(node.args[0], node.args[1], _added(node))
    return None


def _product(value: Any, weight: Any, bias: Any) -> _Call | None:
    """Tell a product of what comes from the input, on the left, by what does not."""
    if None not in _sources(value):
        return None
    turns = isinstance(weight, fx.Node) and _name_with_attribute(weight) in _TURNS
    inner = weight.all_input_nodes if turns else []
    is_straight = len(inner) == 1 and inner[0].op == "get_attr"
    return _Call(
        kind=Kind.LINEAR,
        weight=inner[0] if is_straight else weight,
        bias=bias,
        is_turned=not is_straight,
        is_layer=False,
    )


def _name_with_attribute(node: fx.Node) -> str:
    name = name_of(node)
    return f"{name} {node.args[1]}" if name == "getattr" else name


def _added(node: fx.Node) -> fx.Node | None:
    """Find the parameter that alone is added to what a step gives."""
    users = list(node.users)
    if len(users) != 1 or name_of(users[0]).lower().strip("_") not in ("add", "iadd"):
        return None
    others = [each for each in users[0].all_input_nodes if each is not node]
    is_given = len(others) == 1 and others[0].op == "get_attr" and not users[0].kwargs
    return others[0] if is_given else None


def _parametrised(call: _Call, root: nn.Module) -> Functional | None:
    """Recognise the weight of a module that computes it from parts, as weight norm does."""
    weight = call.weight
    if not isinstance(weight, fx.Node) or weight.op != "call_module" or weight.args:
        return None
    owner, _, attribute = str(weight.target).partition(".parametrizations.")
    module = dict(root.named_modules()).get(owner)
    if attribute != "weight" or module is None or call.is_turned:
        return None
    own = place_of(module)
    if own is None or own.groups != call.groups or _SPATIAL.get(own.kind, own.kind) != call.kind:
        return None
    return Functional(name=owner, parameter=f"{owner}.weight", sources=(), place=own, tensors={})


def _argument(node: fx.Node, position: int, name: str) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name)


def _held(
    node: fx.Node, call: _Call, root: nn.Module, known: dict[str, torch.Tensor]
) -> Functional | None:
    weight, bias, kind = call.weight, call.bias, call.kind
    sources = list(_sources(weight))
    named = [source for source in sources if source in known]
    trained = [source for source in named if isinstance(known[source], nn.Parameter)]
    if not named or None in sources or None in list(_sources(bias) if bias is not None else ()):
        return None
    parameter = max(trained or named, key=lambda name: known[name].numel())
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
    if not call.is_layer:
        if len(tensors["weight"].shape) != 2:
            return None
        if "bias" in tensors and tensors["bias"].shape != tensors["weight"].shape[:1]:
            del tensors["bias"]
    if kind is Kind.CONV:
        kind = kind_of_convolution(tensors["weight"].shape[2:])
    place, owner = Place(kind=kind, groups=call.groups), parameter.removesuffix(".weight")
    is_itself = isinstance(weight, fx.Node) and weight.op == "get_attr"
    return Functional(
        name=owner if is_itself and _fits(root, owner, call, place) else f"{parameter}@{node.name}",
        parameter=parameter,
        sources=tuple(named),
        place=place,
        tensors=tensors,
        is_fixed=not trained,
    )


def _fits(root: nn.Module, owner: str, call: _Call, place: Place) -> bool:
    """Tell whether the module that holds a weight, if it is a layer, is one of the same place."""
    own = place_of(dict(root.named_modules()).get(owner, root))
    return own is None or (own == place and not call.is_turned)


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
