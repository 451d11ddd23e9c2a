"""The graph of an exported program: operations of ATen to layers in their places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from planescope.checkpoints.torch.aten import (
    CLAMPS,
    CONVOLUTIONS,
    FILLED,
    FLIPS,
    HARMLESS,
    KEEPS,
    LEFT_OUT,
    NORMS,
    PRODUCTS,
    ROLES,
    inlined,
    integers,
    names,
    numeral,
    of_peft,
    view_of,
)
from planescope.checkpoints.torch.export_weights import (
    Weights,
    layer_of,
    module_of_part,
)
from planescope.hyperplanes.layer import Kind, Layer, Norm, Skipped, Tensor
from planescope.networks.graph.places import Node, Position, Role, clamped, follow, is_even
from planescope.networks.graph.views import RANKS
from planescope.networks.state import adapters, exclusions
from planescope.networks.state.sharing import notes_of_calls, notes_of_widths

_DEFAULT_EPS = 1e-5


def described(
    program: Mapping[str, Any], tensors: Mapping[str, Tensor], /
) -> tuple[list[Layer], list[Skipped], list[str]]:
    """Give the layers of a program in the order of its graph, what was left out, and notes.

    Raises
    ------
    KeyError, TypeError, AttributeError, IndexError, ValueError
        If the program is not what the schema says.
    """
    module = program["graph_module"]
    values = module["graph"].get("tensor_values", {})
    network = _Network(tensors, {name: len(value["sizes"]) for name, value in values.items()})
    for spec in module["signature"]["input_specs"]:
        network.add_input(spec)
    for node in inlined(module["graph"]["nodes"]):
        network.add(node)
    positions = follow(network.nodes)
    layers = [network.placed(name, position) for name, position in positions.items()]
    adapted = adapters.of_adapted(layers, network.read, network.beside)
    network.skipped += [Skipped(name=name, reason=why) for name, why in adapted.items()]
    layers = [layer for layer in layers if layer.name not in adapted]
    # A table that is a layer's weight too is measured there.
    skipped = [
        one
        for one in dict.fromkeys(network.skipped)
        if one.reason != exclusions.EMBEDDING or one.name not in positions
    ]
    wider = [x.name for x in layers if x.norm is None and positions[x.name].norm in network.norms]
    return layers, skipped, [*notes_of_calls(positions, {}), *notes_of_widths(wider)]


@dataclass
class _Network:
    """The part of the graph that has been read."""

    tensors: Mapping[str, Tensor]
    ranks: Mapping[str, int]  # of values
    nodes: list[Node] = field(default_factory=list)
    found: dict[str, Layer] = field(default_factory=dict)
    norms: dict[int, Norm] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    read: set[str] = field(default_factory=set)  # names of tensors that operations read
    beside: set[str] = field(default_factory=set)  # modules of peft's that act themselves
    _values: dict[str, int] = field(default_factory=dict)
    _weights: Weights = field(init=False)
    _constant: list[bool] = field(default_factory=list)  # of each node, whether no input reaches it
    _biases: dict[str, str] = field(default_factory=dict)  # names of those of the layers
    _products: set[str] = field(default_factory=set)  # layers by hand: what is added is a bias
    _sources: dict[str, str] = field(default_factory=dict)  # the largest tensor behind a value

    def __post_init__(self) -> None:
        self._weights = Weights(self.tensors)

    def _append(self, node: Node) -> int:
        is_fed = node.role in (Role.IMAGE, Role.UNKNOWN)
        self._constant.append(not is_fed and all(self._constant[at] for at in node.reads))
        self.nodes.append(node)
        return len(self.nodes) - 1

    def add_input(self, spec: Mapping[str, Any]) -> None:
        """Take in a parameter, a buffer, a constant or an input of the program."""
        ((kind, content),) = spec.items()
        argument = content["arg"]
        name = argument.get("name") or argument.get("as_tensor", {}).get("name")
        if type(name) is not str:
            return
        if kind == "user_input":
            self._values[name] = self._append(Node(role=Role.IMAGE))
            return
        self._values[name] = self._append(Node(role=Role.CONSTANT))
        stored = content.get("parameter_name") or content.get("buffer_name")
        if type(stored) is str and stored in self.tensors:
            self._weights.add(name, stored)
            self._sources[name] = stored

    def add(self, node: Mapping[str, Any]) -> None:
        """Take in an operation."""
        library, _, rest = node["target"].removeprefix("torch.ops.").partition(".")
        word = rest.partition(".")[0] if library == "aten" else ""
        arguments = {
            each["name"] or str(place): each["arg"] for place, each in enumerate(node["inputs"])
        }
        outputs = [name for each in node["outputs"] for name in names(each)]
        reads = tuple(
            self._values[name]
            for argument in arguments.values()
            for name in names(argument)
            if name in self._values
        )
        step = self._bias_of(word, arguments) or self._step(word, arguments, reads, outputs)
        if word in NORMS:
            self._add_norm(arguments, len(self.nodes))
        number = self._append(step)
        behind = [
            self._sources[name]
            for argument in arguments.values()
            for name in names(argument)
            if name in self._sources
        ]
        self.read.update(behind)
        if len(reads) > 1 and word in (*PRODUCTS, "add", "mul", "einsum"):
            self.beside.update(of_peft(node))
        for name in outputs:
            self._values[name] = number
            if behind:
                self._sources[name] = max(behind, key=lambda held: prod(self.tensors[held].shape))
        source = self._sources.get(outputs[0]) if outputs else None
        self._weights.follow(word, arguments, outputs, source)

    def _step(
        self,
        word: str,
        arguments: Mapping[str, Any],
        reads: tuple[int, ...],
        outputs: list[str],
    ) -> Node:
        # What no input reaches is arithmetic on weights, and no layer.
        is_fed = not all(self._constant[at] for at in reads)
        if is_fed and (word in CONVOLUTIONS or word in PRODUCTS):
            layer = self._layer(word, arguments, outputs)
            is_strided = max(integers(arguments.get("stride")), default=1) > 1
            if layer is not None:
                fed = arguments["mat1" if word == "addmm" else _first(word)]
                return Node(
                    role=Role.LAYER,
                    reads=tuple(self._values[name] for name in names(fed)),
                    name=layer.name,
                    downsamples=layer.kind is not Kind.TRANSPOSED and is_strided,
                    is_last=layer.kind is Kind.LINEAR,
                )
            if word in CONVOLUTIONS and is_strided and "transpose" not in word:
                return Node(role=Role.OTHER, reads=reads, downsamples=True)  # one that is left out
        held = self._matrices(arguments)
        if is_fed and word in LEFT_OUT:
            self._skip([_module(held[0])] if held else outputs, LEFT_OUT[word])
        elif held and self._is_unknown(word, reads):
            self._skip([_module(held[0])], f"an operation ({word}) that is not known reads it")
        if any("as_graph" in argument for argument in arguments.values()):
            for name in dict.fromkeys(map(_module, held)) or outputs[:1]:
                self._skip([name], "in a branch or loop of the program, whose graph is not read")
            return Node(role=Role.UNKNOWN)
        if is_fed and not word and held:
            self._skip(outputs, "an operation of another library, which reads weights")
        if word in NORMS:
            mean = self._weights.of(arguments.get("running_mean"))
            rank = next(
                (self.ranks[n] for n in names(arguments.get("input")) if n in self.ranks), 0
            )
            name = "" if mean is None else mean.name
            ranks = (rank,) if rank else RANKS
            return Node(role=Role.NORM, reads=reads[:1], name=name, ranks=ranks)
        return self._plain(word, arguments, reads)

    def _plain(self, word: str, arguments: Mapping[str, Any], reads: tuple[int, ...]) -> Node:
        """Translate an operation without weights."""
        if word in CLAMPS:
            least, most = (numeral(arguments.get(name)) for name in CLAMPS[word])
            return self._clamp(least, most, reads)
        if word in ("constant_pad_nd", "pad"):
            filler = numeral(arguments.get("value"))
            role = Role.VIEW if filler is None or filler >= 0 else Role.OTHER
            return Node(role=role, reads=reads[:1])
        if word == "threshold":
            given = [numeral(arguments.get(name)) for name in ("threshold", "value")]
            cuts = all(number is not None and number >= 0 for number in given)
            return Node(role=Role.RELU if cuts else Role.OTHER, reads=reads[:1])
        if word == "square" or (word == "pow" and is_even(numeral(arguments.get("exponent")))):
            return Node(role=Role.PRODUCT, reads=reads[:1] * 2)
        if word in FILLED and not reads:
            value = numeral(arguments.get("fill_value")) if word == "full" else FILLED[word]
            filled = value is not None and value >= 0
            return Node(role=Role.CONSTANT, is_non_negative=lambda: filled)
        role = ROLES.get(word, Role.OTHER)
        if role is Role.VIEW or role is Role.IDENTITY:
            strides = integers(arguments.get("stride")) or integers(arguments.get("kernel_size"))
            steps = "pool" in word and "adaptive" not in word and max(strides, default=1) > 1
            # A table of which the input chooses rows is no constant.
            is_table = bool(reads) and self._constant[reads[0]]
            view = view_of(word, arguments)
            reads = reads if is_table else reads[:1]
            return Node(role=role, reads=reads, downsamples=steps, view=view)
        if role is Role.JOIN and (numeral(arguments.get("alpha")) or 1) < 0:
            role = Role.SHIFT
        other = numeral(arguments.get("other"))
        if other is not None:
            positive = other >= 0
            reads = (
                *reads,
                self._append(Node(role=Role.CONSTANT, is_non_negative=lambda: positive)),
            )
        return Node(role=role, reads=reads)

    def _clamp(self, least: float | None, most: float | None, reads: tuple[int, ...]) -> Node:
        role, bound = clamped(least, most)
        if bound is None:
            return Node(role=role, reads=reads[:1])
        constant = Node(role=Role.CONSTANT, is_non_negative=lambda: bound >= 0)
        return Node(role=role, reads=(*reads[:1], self._append(constant)))

    def _skip(self, outputs: list[str], reason: str) -> None:
        self.skipped.append(Skipped(name=outputs[0] if outputs else "?", reason=reason))

    def _bias_of(self, word: str, arguments: Mapping[str, Any]) -> Node | None:
        """Take a sum for the bias of a product before it, or of a layer, where that has it."""
        if word != "add" or numeral(arguments.get("alpha")) not in (None, 1):
            return None
        given = [name for key in ("self", "other") for name in names(arguments.get(key))]
        bias = next(filter(None, map(self._weights.named, given)), None)
        numbers = [self._values[name] for name in given if name in self._values]
        number = next((n for n in numbers if self.nodes[n].role is not Role.CONSTANT), None)
        if bias is None or number is None:
            return None
        at = number
        while self.nodes[at].role is Role.VIEW:
            at = self.nodes[at].reads[0]
        layer = self.found.get(self.nodes[at].name)
        if layer is None or layer.bias is not None:
            return None
        if bias.name != f"{layer.name}.bias" and layer.name not in self._products:
            return None
        if bias.tensor.shape != (layer.filters,):
            return None
        self.found[layer.name] = replace(layer, bias=bias.tensor)
        return Node(role=Role.IDENTITY, reads=(number,))

    def _matrices(self, arguments: Mapping[str, Any]) -> list[str]:
        """Name the weights of two axes or more that an operation reads."""
        read = [name for argument in arguments.values() for name in names(argument)]
        found = list(filter(None, map(self._weights.named, read)))
        return [one.name for one in found if sum(n > 1 for n in one.tensor.shape) > 1]

    def _is_unknown(self, word: str, reads: tuple[int, ...]) -> bool:
        """Tell whether an operation may multiply a value by a weight, in a way that is not read."""
        known = word.removesuffix("_") in HARMLESS or word in CONVOLUTIONS or word in PRODUCTS
        known |= word in ROLES or word in FLIPS or word in KEEPS or word in NORMS
        return bool(word) and not known and not all(self._constant[at] for at in reads)

    def _layer(self, word: str, arguments: Mapping[str, Any], outputs: list[str]) -> Layer | None:
        """Describe the layer that an operation is; None where its weights cannot be had."""
        key = {"addmm": "mat2", "mm": "mat2", "matmul": "other", "bmm": "mat2"}.get(word, "weight")
        argument = arguments.get(key)
        weight = self._weights.of(argument)
        if weight is None:
            # Of two values that both come from the input nothing is a weight.
            made = [self._values[name] for name in names(argument) if name in self._values]
            if key == "weight" or (made and self._constant[made[0]]):
                known = [self._sources[n] for n in names(argument) if n in self._sources]
                where = [module_of_part(name) for name in known] or outputs
                self._skip(where, f"a layer ({word}) whose weights the program computes")
            elif left := self._matrices(arguments):
                self._skip([_module(left[0])], f"a product ({word}) with its weight on the left")
            return None
        if reason := exclusions.of_part(weight.name):
            self._skip([_module(weight.name)], reason)
            return None
        own = arguments.get("self" if word == "addmm" else "bias")
        bias = self._weights.of(own)
        if bias is None and word != "addmm" and any(names(own)):
            self._skip([_module(weight.name)], f"a layer ({word}) whose bias the program computes")
            return None
        layer = layer_of(word, arguments, weight, bias)
        if layer is None:
            self._skip(outputs, f"an operation ({word}) with a weight that is no layer's")
            return None
        if (layer.groups or 1) > 1 and exclusions.is_one_filter(layer.weight):
            self._skip([layer.name], exclusions.ONE_FILTER)
            return None
        layer = self._named_apart(layer)
        first = self.found.setdefault(layer.name, layer)
        if word in ("matmul", "mm", "bmm"):
            self._products.add(layer.name)
        told = "" if bias is None else bias.name
        if first is layer:
            self._biases[layer.name] = told
        elif self._biases[layer.name] != told:
            self._skip(
                [_module(told) if told else layer.name],
                f"the weight of {layer.name} with another bias; measured once, with "
                f"{self._biases[layer.name] or 'none'}",
            )
        return layer

    def _named_apart(self, layer: Layer) -> Layer:
        """Name a layer that has the weights of another and is of another form, as a decoder's."""
        name, count = layer.name, 1
        while (known := self.found.get(name)) is not None and (
            (known.kind, known.weight.shape) != (layer.kind, layer.weight.shape)
        ):
            count += 1
            name = f"{layer.name}_{count}"
        return layer if count == 1 else replace(layer, name=name)

    def _add_norm(self, arguments: Mapping[str, Any], number: int) -> None:
        weights = {
            part: self._weights.of(arguments.get(part))
            for part in ("weight", "bias", "running_mean", "running_var")
        }
        parts = {part: weight.tensor for part, weight in weights.items() if weight is not None}
        mean = weights["running_mean"]
        if mean is None or "running_var" not in parts:
            return
        eps = numeral(arguments.get("eps"))
        self.norms[number] = Norm(
            name=mean.name.rpartition(".")[0] or mean.name,
            gamma=parts.get("weight"),
            beta=parts.get("bias"),
            mean=parts["running_mean"],
            variance=parts["running_var"],
            eps=_DEFAULT_EPS if eps is None else eps,
        )

    def placed(self, name: str, position: Position) -> Layer:
        """Put a layer in its place, with its norm where that has its width."""
        layer = self.found[name]
        norm = None if position.norm is None else self.norms.get(position.norm)
        width = (layer.filters,)
        parts = () if norm is None else (norm.gamma, norm.beta, norm.mean, norm.variance)
        if any(part is not None and part.shape != width for part in parts):
            norm = None
        return replace(layer, stage=position.stage, input=position.input, norm=norm)


def _module(name: str) -> str:
    """Return the name of the module that keeps a parameter."""
    return name.rpartition(".")[0] or name


def _first(word: str) -> str:
    """Return the name of the argument that an operation acts on."""
    return "self" if word in ("mm", "matmul", "bmm") else "input"
