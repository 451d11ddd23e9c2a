"""The graph of an exported program: operations of ATen to layers in their places."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from planescope.hyperplanes.layer import Kind, Layer, Norm, Skipped, Tensor, kind_of_convolution
from planescope.networks.graph.places import Node, Position, Role, follow
from planescope.networks.state.axes import filters_first

_WORDS = {
    Role.RELU: {"relu", "relu_", "relu6", "relu6_"},
    Role.GATE: {
        *("sigmoid", "sigmoid_", "hardsigmoid", "hardsigmoid_", "softmax", "_softmax", "softplus"),
        *("exp", "abs", "square", "sqrt", "rsqrt"),
    },
    Role.IDENTITY: {
        *("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "clone"),
        *("contiguous", "detach", "detach_", "alias", "lift_fresh_copy", "to", "_to_copy"),
        *("type_as", "native_dropout"),
    },
    Role.VIEW: {
        *("flatten", "view", "_unsafe_view", "reshape", "squeeze", "unsqueeze", "permute", "t"),
        *("transpose", "movedim", "swapaxes", "chunk", "split", "split_with_sizes", "unbind"),
        *("select", "slice", "narrow", "expand", "expand_as", "repeat", "tile", "roll", "flip"),
        *("rot90", "index", "index_select", "gather", "unfold", "im2col", "pixel_shuffle"),
        *("pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "mean", "sum", "amax"),
        *("amin", "cumsum", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
        *("upsample_bilinear2d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d"),
        *(f"{how}{what}_pool{n}d" for how in ("", "adaptive_") for what in ("max", "avg")
          for n in (1, 2, 3)),
        *(f"max_pool{n}d_with_indices" for n in (1, 2, 3)),
        *(f"{how}_pad{n}d" for how in ("reflection", "replication") for n in (1, 2, 3)),
    },
    Role.JOIN: {"add", "add_", "cat", "concat", "stack", "hstack", "vstack", "minimum"},
    Role.PRODUCT: {"mul", "mul_", "div", "div_"},
    Role.MAXIMUM: {"maximum"},
    Role.SHIFT: {"sub", "sub_", "rsub", "upsample_bicubic2d"},
}  # fmt: skip
_ROLES = {word: role for role, words in _WORDS.items() for word in words}

_CLAMPS = {"hardtanh": "min_val", "hardtanh_": "min_val", "clamp": "min", "clamp_min": "min"}
_NORMS = {
    *("batch_norm", "native_batch_norm", "_native_batch_norm_legit_no_training"),
    *("_native_batch_norm_legit", "cudnn_batch_norm"),
}
_CONVOLUTIONS = {
    *("convolution", "_convolution"),
    *(f"conv{turned}{n}d" for turned in ("", "_transpose") for n in (1, 2, 3)),
}
_PRODUCTS = {"linear", "addmm", "mm", "matmul", "bmm", "baddbmm"}
# Others that multiply by weights.
_LEFT_OUT = {
    "lstm": "a recurrent layer: its weights act on its own output",
    "gru": "a recurrent layer: its weights act on its own output",
    "rnn_tanh": "a recurrent layer: its weights act on its own output",
    "rnn_relu": "a recurrent layer: its weights act on its own output",
    "bilinear": "a bilinear form, no linear layer",
    "einsum": "a product that an equation describes; it is not read",
}

_FLIPS = {"t", "permute", "transpose"}
_KEEPS = {"detach", "alias", "lift_fresh_copy", "clone", "contiguous"}
_DEFAULT_EPS = 1e-5
# Behind the name of a module: the part that it keeps, or computes another from.
_PART = re.compile(r"(\.parametrizations\..*|\.[^.]*)$")


@dataclass(frozen=True, slots=True)
class _Weight:
    """A parameter as an operation meets it: a matrix turned or not."""

    name: str
    turned: bool = False


def described(
    program: Mapping[str, Any], tensors: Mapping[str, Tensor], /
) -> tuple[list[Layer], list[Skipped]]:
    """Give the layers of a program in the order of its graph, and what was left out.

    Raises
    ------
    KeyError, TypeError, AttributeError, IndexError, ValueError
        If the program is not what the schema says.
    """
    module = program["graph_module"]
    network = _Network(tensors)
    for spec in module["signature"]["input_specs"]:
        network.add_input(spec)
    for node in module["graph"]["nodes"]:
        network.add(node)
    positions = follow(network.nodes)
    layers = [network.placed(name, position) for name, position in positions.items()]
    return layers, network.skipped


@dataclass
class _Network:
    """The part of the graph that has been read."""

    tensors: Mapping[str, Tensor]
    nodes: list[Node] = field(default_factory=list)
    found: dict[str, Layer] = field(default_factory=dict)
    norms: dict[int, Norm] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    _values: dict[str, int] = field(default_factory=dict)
    _weights: dict[str, _Weight] = field(default_factory=dict)
    _sources: dict[str, str] = field(default_factory=dict)  # the largest tensor behind a value

    def _append(self, node: Node) -> int:
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
            self._weights[name] = _Weight(stored)
            self._sources[name] = stored

    def add(self, node: Mapping[str, Any]) -> None:
        """Take in an operation."""
        library, _, rest = node["target"].removeprefix("torch.ops.").partition(".")
        word = rest.partition(".")[0] if library == "aten" else ""
        arguments = {each["name"]: each["arg"] for each in node["inputs"]}
        outputs = [name for each in node["outputs"] for name in _names(each)]
        reads = tuple(
            self._values[name]
            for argument in arguments.values()
            for name in _names(argument)
            if name in self._values
        )
        step = self._step(word, arguments, reads, outputs)
        if word in _NORMS:
            self._add_norm(arguments, len(self.nodes))
        number = self._append(step)
        behind = [
            self._sources[name]
            for argument in arguments.values()
            for name in _names(argument)
            if name in self._sources
        ]
        for name in outputs:
            self._values[name] = number
            if behind:
                self._sources[name] = max(behind, key=lambda held: prod(self.tensors[held].shape))
        self._follow_weight(word, arguments, outputs)

    def _step(
        self,
        word: str,
        arguments: Mapping[str, Any],
        reads: tuple[int, ...],
        outputs: list[str],
    ) -> Node:
        if word in _CONVOLUTIONS or word in _PRODUCTS:
            layer = self._layer(word, arguments, outputs)
            if layer is not None:
                fed = arguments["mat1" if word == "addmm" else _first(word)]
                return Node(
                    role=Role.LAYER,
                    reads=tuple(self._values[name] for name in _names(fed)),
                    name=layer.name,
                    downsamples=layer.kind is not Kind.TRANSPOSED
                    and max(_integers(arguments.get("stride")), default=1) > 1,
                )
        if word in _LEFT_OUT:
            self._skip(outputs, _LEFT_OUT[word])
        elif not word and any(self._is_matrix(argument) for argument in arguments.values()):
            self._skip(outputs, "an operation of another library, which reads weights")
        if any("as_graph" in argument for argument in arguments.values()):
            self._skip(outputs, "a branch or loop of the program, whose own graph is not read")
            return Node(role=Role.UNKNOWN)
        if word in _NORMS:
            return Node(role=Role.NORM, reads=reads[:1])
        return self._plain(word, arguments, reads)

    def _plain(self, word: str, arguments: Mapping[str, Any], reads: tuple[int, ...]) -> Node:
        """Translate an operation without weights."""
        if word in _CLAMPS:
            least = _number(arguments.get(_CLAMPS[word]))
            role = Role.RELU if least is not None and least >= 0 else Role.OTHER
            return Node(role=role, reads=reads[:1])
        if word in ("constant_pad_nd", "pad"):
            filler = _number(arguments.get("value"))
            role = Role.VIEW if filler is None or filler >= 0 else Role.OTHER
            return Node(role=role, reads=reads[:1])
        role = _ROLES.get(word, Role.OTHER)
        if role is Role.VIEW or role is Role.IDENTITY:
            strides = _integers(arguments.get("stride")) or _integers(arguments.get("kernel_size"))
            steps = "pool" in word and "adaptive" not in word and max(strides, default=1) > 1
            return Node(role=role, reads=reads[:1], downsamples=steps)
        if role is Role.JOIN and (_number(arguments.get("alpha")) or 1) < 0:
            role = Role.SHIFT
        number = _number(arguments.get("other"))
        if number is not None:
            positive = number >= 0
            reads = (
                *reads,
                self._append(Node(role=Role.CONSTANT, is_non_negative=lambda: positive)),
            )
        return Node(role=role, reads=reads)

    def _skip(self, outputs: list[str], reason: str) -> None:
        self.skipped.append(Skipped(name=outputs[0] if outputs else "?", reason=reason))

    def _weight(self, argument: Any) -> _Weight | None:
        return next(
            (self._weights[name] for name in _names(argument) if name in self._weights), None
        )

    def _is_matrix(self, argument: Any) -> bool:
        weight = self._weight(argument)
        return weight is not None and len(self.tensors[weight.name].shape) > 1

    def _layer(self, word: str, arguments: Mapping[str, Any], outputs: list[str]) -> Layer | None:
        """Describe the layer that an operation is; None where its weights cannot be had."""
        key = {"addmm": "mat2", "mm": "mat2", "matmul": "other", "bmm": "mat2"}.get(word, "weight")
        argument = arguments.get(key)
        weight = self._weight(argument)
        if weight is None:
            # Of two values that both come from the input nothing is a weight.
            made = [self._values[name] for name in _names(argument) if name in self._values]
            if key == "weight" or (made and self._is_constant(made[0])):
                known = [self._sources[n] for n in _names(argument) if n in self._sources]
                where = [_PART.sub("", name) or name for name in known] or outputs
                self._skip(where, f"a layer ({word}) whose weights the program computes")
            return None
        own = arguments.get("self" if word == "addmm" else "bias")
        bias = self._weight(own)
        if bias is None and word != "addmm" and any(_names(own)):
            name = weight.name.removesuffix(".weight")
            self._skip([f"{name}.bias"], "a bias that the program computes; it is not in the table")
        layer = _described(word, arguments, weight, self.tensors, bias)
        if layer is None:
            self._skip(outputs, f"an operation ({word}) with a weight that is no layer's")
            return None
        if layer.name not in self.found:
            self.found[layer.name] = layer
        return layer

    def _is_constant(self, number: int) -> bool:
        """Return whether a value is made of constants alone."""
        pending = [number]
        seen: set[int] = set()
        while pending:
            at = pending.pop()
            if at in seen:
                continue
            seen.add(at)
            node = self.nodes[at]
            if node.role in (Role.IMAGE, Role.UNKNOWN):
                return False
            pending.extend(node.reads)
        return True

    def _add_norm(self, arguments: Mapping[str, Any], number: int) -> None:
        weights = {
            part: self._weight(arguments.get(part))
            for part in ("weight", "bias", "running_mean", "running_var")
        }
        parts = {
            part: self.tensors[weight.name]
            for part, weight in weights.items()
            if weight is not None
        }
        mean = weights["running_mean"]
        if mean is None or "running_var" not in parts:
            return
        eps = _number(arguments.get("eps"))
        self.norms[number] = Norm(
            name=mean.name.rpartition(".")[0] or mean.name,
            gamma=parts.get("weight"),
            beta=parts.get("bias"),
            mean=parts["running_mean"],
            variance=parts["running_var"],
            eps=_DEFAULT_EPS if eps is None else eps,
        )

    def _follow_weight(self, word: str, arguments: Mapping[str, Any], outputs: list[str]) -> None:
        """Know a weight again behind operations that turn or copy it."""
        weight = self._weight(arguments.get("self"))
        if weight is None or len(outputs) != 1:
            return
        if word in _KEEPS:
            self._weights[outputs[0]] = weight
        elif word in _FLIPS and len(self.tensors[weight.name].shape) == 2:
            dims = _integers(arguments.get("dims"))
            if word != "permute" or [dim % 2 for dim in dims] == [1, 0]:
                self._weights[outputs[0]] = replace(weight, turned=not weight.turned)

    def placed(self, name: str, position: Position) -> Layer:
        """Put a layer in its place, with its norm where that has its width."""
        layer = self.found[name]
        norm = None if position.norm is None else self.norms.get(position.norm)
        width = (layer.filters,)
        parts = () if norm is None else (norm.gamma, norm.beta, norm.mean, norm.variance)
        if any(part is not None and part.shape != width for part in parts):
            norm = None
        return replace(layer, stage=position.stage, input=position.input, norm=norm)


def _described(
    word: str,
    arguments: Mapping[str, Any],
    weight: _Weight,
    tensors: Mapping[str, Tensor],
    bias: _Weight | None,
) -> Layer | None:
    """Describe a layer by the operation and its weights; None where these do not fit it."""
    tensor = tensors[weight.name]
    groups = next(iter(_integers(arguments.get("groups"))), 1)
    if not tensor.is_floating or 0 in tensor.shape or groups < 1:
        return None
    turned = "transpose" in word or arguments.get("transposed", {}).get("as_bool") is True
    if word in _CONVOLUTIONS:
        if not 3 <= len(tensor.shape) <= 5 or (turned and tensor.shape[0] % groups):
            return None
        kind = Kind.TRANSPOSED if turned else kind_of_convolution(tensor.shape[2:])
        tensor = filters_first(tensor, groups) if turned else tensor
    else:
        # A product has its matrix as (in, out), `linear` as (out, in).
        if len(tensor.shape) != 2:
            return None
        kind, groups = Kind.LINEAR, 1
        if weight.turned is (word == "linear"):
            tensor = _transposed(tensor)
    found = None if bias is None else tensors[bias.name]
    return Layer(
        name=weight.name.removesuffix(".weight"),
        kind=kind,
        weight=tensor,
        bias=found if found is not None and found.shape == tensor.shape[:1] else None,
        groups=groups,
    )


def _transposed(tensor: Tensor) -> Tensor:
    return Tensor(tensor.shape[::-1], tensor.dtype, lambda: tensor.read().T, None, tensor.digest)


def _first(word: str) -> str:
    """Return the name of the argument that an operation acts on."""
    return "self" if word in ("mm", "matmul", "bmm") else "input"


def _names(argument: Any) -> Iterator[str]:
    """Yield the names of the tensors in an argument or output."""
    if not isinstance(argument, dict):
        return
    for key, value in argument.items():
        if key == "as_tensor":
            yield value["name"]
        elif key in ("as_tensors", "as_optional_tensors"):
            for each in value:
                name = each.get("name") or each.get("as_tensor", {}).get("name")
                if type(name) is str:
                    yield name


def _integers(argument: Any) -> list[int]:
    if not isinstance(argument, dict):
        return []
    value = argument.get("as_ints", argument.get("as_int", []))
    values = value if isinstance(value, list) else [value]
    return [each for each in values if type(each) is int]


def _number(argument: Any) -> float | None:
    if not isinstance(argument, dict):
        return None
    value = argument.get("as_float", argument.get("as_int"))
    return float(value) if isinstance(value, (int, float)) else None
