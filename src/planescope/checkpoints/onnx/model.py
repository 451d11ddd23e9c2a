"""ONNX models: a graph that tells each layer's place, its norm and what it reads.

The file is walked in place and no weight is read (the onnx package would hold all of it).
"""

from __future__ import annotations

import math
import operator
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from planescope.checkpoints.onnx.behind import Deed, Met, is_scaled, met, per_filter, untold
from planescope.checkpoints.onnx.constants.arithmetic import mapped
from planescope.checkpoints.onnx.constants.values import Constants
from planescope.checkpoints.onnx.graph import Graph
from planescope.checkpoints.onnx.nodes import Node
from planescope.checkpoints.onnx.operators import left_out, weights_of
from planescope.checkpoints.onnx.origins import adapted_by, no_layer
from planescope.checkpoints.onnx.tensors import tensor_at
from planescope.checkpoints.onnx.weights import Weights, channels, readable
from planescope.checkpoints.onnx.words import steps
from planescope.checkpoints.protobuf import BYTES, VARINT, WireFile
from planescope.files.errors import CheckpointError
from planescope.hyperplanes.layer import Described, Kind, Layer, Norm, Skipped, Tensor
from planescope.networks.graph.places import Position, follow
from planescope.networks.state import adapters, exclusions
from planescope.networks.state.layout import named
from planescope.networks.state.pairing import folded_notes
from planescope.networks.state.sharing import notes_of_calls, notes_of_widths

if TYPE_CHECKING:
    from pathlib import Path

    from planescope.checkpoints.probe import Probe

NAME = "onnx"

# Fields of a ModelProto, and their wire types.
_IR_VERSION, _GRAPH, _FUNCTION = 1, 7, 25
_MODEL = {1: VARINT, 5: VARINT} | dict.fromkeys((2, 3, 4, 6, 7, 8, 14, 20, 25, 26), BYTES)

# As frameworks name the weights of a module, and what quantisers append to that.
_WEIGHT_NAME = re.compile(r"(.+)\.weight(_Transposed)?(_quantized|_DequantizeLinear_Output)?")


def recognises(probe: Probe) -> bool:
    """Return whether the file is one message with the fields of an ONNX model, a graph among them.

    A protocol buffer has no magic. One that ends early is taken for a model where it begins as all
    writers begin them, so that it can be called truncated rather than unknown.
    """
    numbers: list[int] = []
    with WireFile(probe.path) as wire:
        try:
            for part in wire.fields(wire.span):
                if _MODEL.get(part.number, part.wire if numbers else None) != part.wire:
                    return False
                numbers.append(part.number)
        except CheckpointError:
            return numbers[:1] == [_IR_VERSION]
    return _GRAPH in numbers


def read(path: Path) -> Described:
    """Describe the layers of a model, in the order of its graph, and what was left out.

    Raises
    ------
    CheckpointError
        If the file is damaged, or the data of a layer are not where it says.
    """
    with WireFile(path) as wire:
        graph = graph_in(wire)
        constants = Constants(graph)
        return described(graph, constants, layers_in(graph, constants))


def graph_in(wire: WireFile) -> Graph:
    """Read the graph of a model, but for its weights.

    Raises
    ------
    CheckpointError
        If there is none, or it is damaged.
    """
    parts = list(wire.fields(wire.span))
    graphs = [part.span for part in parts if part.number == _GRAPH]
    if not graphs:
        raise CheckpointError(f"{wire.path}: holds no graph; is it an ONNX model?")
    functions = [part.span for part in parts if part.number == _FUNCTION]
    return Graph(wire, graphs, functions)


# Nodes that are layers, the names of their layers, and what was left out.
Listed = tuple[dict[Node, Weights], dict[Node, str], list[Skipped]]


def layers_in(graph: Graph, constants: Constants) -> Listed:
    """Find the nodes that are layers, the names of their layers, and what was left out."""
    found: dict[Node, Weights] = {}
    skipped: list[Skipped] = []
    for node in graph.nodes:
        weights = weights_of(graph, constants, node)
        module, reason = "", None
        if isinstance(weights, Weights):
            told = None
            if weights.kind is Kind.LINEAR:
                told = no_layer(constants, node, weights.parts)
            if told is None:
                found[node] = weights
                continue
            module, reason = told
        else:
            reason = weights or left_out(graph, constants, node)
        if reason:
            skipped.append(Skipped(name=module or readable(node), reason=reason))
    for node in _of_attentions(found):
        del found[node]
        skipped.append(Skipped(name=readable(node), reason=exclusions.ATTENTION))
    # Of a module that runs several times, or has several products, once.
    return found, _names(found), list(dict.fromkeys(skipped))


def _of_attentions(found: Mapping[Node, Weights]) -> list[Node]:
    """Find products of torch's attention: it runs its `out_proj` itself, which others call."""
    scopes = {node: readable(node) for node in found}
    last = {
        node: scope
        for node, scope in scopes.items()
        if f"{scope}.out_proj" == _module(found[node].names)
    }
    return [
        node
        for node, scope in scopes.items()
        if scope in last.values() and node not in last and found[node].kind is Kind.LINEAR
    ]


def described(graph: Graph, constants: Constants, listed: Listed) -> Described:
    """Describe what `layers_in` gave: layers in the order of the graph, and what was left out."""
    found, names, skipped = listed
    behind = [part for weights in found.values() for part in weights.parts]
    nodes, norms = steps(graph, constants, names, set(behind))
    first = {name: node for node, name in reversed(names.items())}
    further: dict[str, list[Met]] = {}
    for node, name in names.items():
        further.setdefault(name, []).extend(found[node].further)
    layers, wider = [], list[str]()
    positions = follow(nodes)
    biases: dict[str, list[Tensor | None]] = {}
    for node, name in names.items():
        biases.setdefault(name, []).append(found[node].bias)
    for name, position in positions.items():
        weights = found[first[name]]
        norm = None
        if position.norm is not None:
            norm, steps_behind = _norm(graph, constants, norms[position.norm], weights.weight)
            further[name] += steps_behind
            wider += [name] if norm is None else []
        layers.append(_layer(name, weights, position, norm))
    beside = list(_beside(graph, constants, found))
    adapted = adapters.of_adapted(layers, _read_names(graph), beside)
    skipped = [*skipped, *(Skipped(name=name, reason=why) for name, why in adapted.items())]
    told = (name for node, held in found.items() for name in (readable(node), *held.names))
    return Described(
        layers=tuple(layer for layer in layers if layer.name not in adapted),
        skipped=(*skipped, *_shared(found, names), *_unread(graph, set(names.values()))),
        notes=(
            *folded_notes(told),
            *_without_effect(graph, names),
            *notes_of_calls(positions, biases),
            *notes_of_widths(wider),
            *_scaled_before(graph, constants, names, adapted),
            *_untold({name: met for name, met in further.items() if name not in adapted}),
        ),
    )


def _scaled_before(
    graph: Graph, constants: Constants, names: Mapping[Node, str], adapted: Container[str]
) -> Iterator[str]:
    """Note layers before which constants act that are in no table."""
    found = [
        name
        for node, name in names.items()
        if name not in adapted and is_scaled(graph, constants, node)
    ]
    if found:
        yield (
            f"before {named(list(dict.fromkeys(found)))} a constant scales each input, as an "
            "adapter or a learned scale does; it is not in the table"
        )


def _read_names(graph: Graph) -> Iterator[str]:
    unread = set(graph.unread())
    return (name.text for name in graph.stored if name not in unread)


def _beside(graph: Graph, constants: Constants, layers: Container[Node]) -> Iterator[str]:
    """Name the modules in which constants without a name act on a value, but in layers."""
    for node in graph.nodes:
        if node.op not in _ACTS or node in layers:
            continue
        values = [name for name in node.inputs if name is not None]
        fixed = [name for name in values if name not in graph.dynamic]
        if not fixed or len(fixed) == len(values):
            continue
        # What has a name of the network's own is in no adapter, or its name tells.
        nameless = [n for n in fixed if n not in graph.stored or "." not in n.text]
        told = [constants.tensor(name) for name in nameless]
        if any(tensor is None or math.prod(tensor.shape) > 1 for tensor in told):
            yield adapted_by(node) or re.sub(rf"\.{node.op}(_\d+)?$", "", readable(node))


def _unread(graph: Graph, layers: Container[str]) -> Iterator[Skipped]:
    """Tell the stored tensors that look like weights and that no operator reads."""
    for name in graph.unread():
        try:
            tensor = tensor_at(graph.wire, graph.stored[name])
        except CheckpointError:  # of no account where nothing reads it
            continue
        module = _module((name.text,)) or name.text
        if sum(extent > 1 for extent in tensor.shape) > 1 and module not in layers:
            yield Skipped(name=module, reason="a stored tensor that no operator of the graph reads")


def _without_effect(graph: Graph, names: Mapping[Node, str]) -> Iterator[str]:
    """Note layers of which nothing reaches an output of the network."""
    acting = graph.acting()
    if acting and (idle := set(names.values()) - {names[node] for node in acting & names.keys()}):
        listed = [name for name in dict.fromkeys(names.values()) if name in idle]
        yield f"what {named(listed)} gives reaches no output of the network"


# By these an adapter acts before or behind the layer that it changes.
_ACTS = ("Einsum", "MatMul", "Mul")

# Of what is done behind a layer by constants: to all filters alike, and to each.
_DONE = {
    (Deed.SCALES, False): "a constant scales each filter, as a frozen norm that was exported; it "
    "is not in the table, and turns round where it is negative",
    (Deed.SCALES, True): "one negative constant scales all filters; it is not in the table, and "
    "turns them round",
    (Deed.ADDS, False): "a constant is added that is not in the table: beside a bias, behind a "
    "scale, or another one at each place",
    (Deed.ADDS, True): "one constant is added to all filters beside their bias or scale; it is not "
    "in the table",
    (Deed.TURNS, False): "what comes out is turned round; the table has the filters as stored",
}


def _untold(further: Mapping[str, Sequence[Met]]) -> Iterator[str]:
    """Note layers behind which constants act that are in no table."""
    listed: dict[tuple[Deed, bool], list[str]] = {}
    for name, behind in further.items():
        for deed, is_single in untold(behind).items():
            listed.setdefault((deed, is_single and deed is not Deed.TURNS), []).append(name)
    for done, sentence in _DONE.items():
        if done in listed:
            yield f"behind {named(listed[done])} {sentence}"


def _layer(name: str, weights: Weights, position: Position, norm: Norm | None) -> Layer:
    return Layer(
        name=name,
        kind=weights.kind,
        weight=weights.weight,
        bias=weights.bias,
        groups=weights.groups,
        stage=position.stage,
        input=position.input,
        norm=norm,
    )


def _norm(
    graph: Graph, constants: Constants, node: Node, weight: Tensor
) -> tuple[Norm | None, list[Met]]:
    """Describe the batch norm that a node is, with a scale behind it that is part of it.

    What else constants do behind it comes second.
    """
    parts = [constants.of(name) for name in node.inputs[1:5]]
    tensors = [part.tensor for part in parts if part]
    tail = channels(weight)
    behind = list(met(graph, constants, node.output, tail, len(weight.shape)))
    # The norm of a linear layer over sequences may stand on another axis.
    if [tensor.shape for tensor in tensors] != [weight.shape[:1]] * 4:
        return None, behind
    gamma, beta, mean, variance = tensors
    # Caffe has the affine part as a layer of its own.
    if (factor := _joined(behind, "Mul", tail)) is not None:
        gamma, beta = (mapped(operator.mul, part, factor) for part in (gamma, beta))
    if (summand := _joined(behind, "Add", tail)) is not None:
        beta = mapped(operator.add, beta, summand)
    norm = Norm(
        name=(parts[0] and _module(parts[0].names)) or readable(node),
        gamma=gamma,
        beta=beta,
        mean=mean,
        variance=variance,
        eps=node.number("epsilon", 1e-5),
    )
    return norm, behind


def _joined(behind: list[Met], op: str, tail: tuple[int, ...]) -> Tensor | None:
    """Take the first step, if it joins one number for each filter to what a norm gives."""
    if not behind or behind[0].node.op != op or behind[0].before or behind[0].constant is None:
        return None
    found = per_filter(behind[0].constant, tail)
    if found is not None:
        del behind[0]
    return found


def _names(found: Mapping[Node, Weights]) -> dict[Node, str]:
    """Name each layer; nodes with the same weights are one layer, and have one name."""
    taken: Counter[str] = Counter()
    of_root: dict[object, str] = {}
    names = {}
    for node, weights in found.items():
        if weights.root not in of_root:
            wanted = _module(weights.names) or readable(node)
            name = wanted
            while taken[name]:
                taken[wanted] += 1
                name = f"{wanted}_{taken[wanted]}"
            taken[name] = 1
            of_root[weights.root] = name
        names[node] = of_root[weights.root]
    return names


def _shared(found: Mapping[Node, Weights], names: Mapping[Node, str]) -> Iterator[Skipped]:
    """Tell the other names of layers whose weights are used several times."""
    told, used = set(names.values()), set()
    for node, weights in found.items():
        name = names[node]
        for other in (_module(weights.names), readable(node)) if name in used else ():
            if other is not None and other not in told:
                told.add(other)
                reason = f"the weights of {name} under another name; measured once, there"
                yield Skipped(name=other, reason=reason)
        used.add(name)


def _module(names: Iterable[str]) -> str | None:
    """Name of the module that weights belong to, where one of their names tells."""
    matches = (_WEIGHT_NAME.fullmatch(name) for name in names)
    return next((match[1] for match in matches if match), None)
