"""Operations of ATen in the words of `networks.graph.places`, and their arguments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from planescope.networks.graph import views
from planescope.networks.graph.places import Role
from planescope.networks.state import exclusions

_WORDS = {
    Role.RELU: {"relu", "relu_", "relu6", "relu6_"},
    Role.GATE: {
        *("sigmoid", "sigmoid_", "hardsigmoid", "hardsigmoid_", "softmax", "_softmax", "softplus"),
        *("exp", "abs", "sqrt", "rsqrt", "gt", "ge", "lt", "le", "eq", "ne", "logical_not"),
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
        *("reshape_as", "view_as"),
        *("rot90", "index", "index_select", "gather", "unfold", "im2col", "pixel_shuffle"),
        *("pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "mean", "sum", "amax"),
        *("amin", "cumsum", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
        *("upsample_bilinear2d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d"),
        *(f"{how}{what}_pool{n}d" for how in ("", "adaptive_") for what in ("max", "avg")
          for n in (1, 2, 3)),
        *(f"max_pool{n}d_with_indices" for n in (1, 2, 3)),
        *(f"{how}_pad{n}d" for how in ("reflection", "replication") for n in (1, 2, 3)),
    },
    Role.JOIN: {"add", "add_", "cat", "concat", "stack", "hstack", "vstack"},
    Role.PRODUCT: {"mul", "mul_", "div", "div_"},
    Role.MAXIMUM: {"maximum"},
    Role.MINIMUM: {"minimum"},
    Role.SHIFT: {"sub", "sub_", "rsub", "neg", "neg_", "negative", "upsample_bicubic2d"},
}  # fmt: skip
ROLES = {word: role for role, words in _WORDS.items() for word in words}

# By the numbers of ScalarType in the schema.
DTYPES = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32",
    8: "float64", 10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16", 28: "uint16",
    29: "float8_e4m3fn", 30: "float8_e5m2", 31: "float8_e4m3fnuz", 32: "float8_e5m2fnuz",
}  # fmt: skip

# Tensors of one number, and which that is.
FILLED = {"zeros": 0.0, "ones": 1.0, "full": 0.0}
# How they call their bounds.
CLAMPS = {
    **dict.fromkeys(("hardtanh", "hardtanh_"), ("min_val", "max_val")),
    **dict.fromkeys(("clamp", "clamp_", "clip", "clamp_min", "clamp_max"), ("min", "max")),
}
NORMS = {
    *("batch_norm", "native_batch_norm", "_native_batch_norm_legit_no_training"),
    *("_native_batch_norm_legit", "cudnn_batch_norm"),
}
CONVOLUTIONS = {
    *("convolution", "_convolution"),
    *(f"conv{turned}{n}d" for turned in ("", "_transpose") for n in (1, 2, 3)),
}
PRODUCTS = {"linear", "addmm", "mm", "matmul", "bmm", "baddbmm"}
# Others that multiply by weights.
LEFT_OUT = {
    **dict.fromkeys(
        (
            *("lstm", "gru", "rnn_tanh", "rnn_relu"),
            *("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell", "mkldnn_rnn_layer"),
        ),
        exclusions.RECURRENT_LAYER,
    ),
    **dict.fromkeys(("bilinear", "_trilinear"), exclusions.BILINEAR),
    **dict.fromkeys(("embedding", "embedding_bag", "_embedding_bag"), exclusions.EMBEDDING),
    **dict.fromkeys(
        ("_native_multi_head_attention", "_transformer_encoder_layer_fwd"), exclusions.ATTENTION
    ),
    "einsum": "a product that an equation describes; it is not read",
}
# These do with a tensor of weights what they do with any other: a sum with positions, a choice.
HARMLESS = {
    *("add", "sub", "mul", "div", "pow", "cat", "stack", "where", "index", "select", "slice"),
    *("lerp", "addcmul", "eq", "ne", "lt", "le", "gt", "ge", "neg", "max", "min", "norm"),
    *("linalg_vector_norm", "_weight_norm", "_weight_norm_interface", "sym_size", "masked_fill"),
    *("prelu", "_prelu_kernel", "layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm"),
}

# What a weight may go through before it acts.
FLIPS = {"t", "permute", "transpose", "numpy_T", "mT", "adjoint"}
KEEPS = {"detach", "alias", "lift_fresh_copy", "clone", "contiguous"}
SPREADS = {"expand", "view", "_unsafe_view", "reshape"}


def names(argument: Any) -> Iterator[str]:
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


def integers(argument: Any) -> list[int]:
    """Return the integers that an argument is; none where it is something else."""
    if not isinstance(argument, dict):
        return []
    value = argument.get("as_ints", argument.get("as_int", []))
    values = value if isinstance(value, list) else [value]
    return [each for each in values if type(each) is int]


def numeral(argument: Any) -> float | None:
    """Return the number that an argument is; None where it is something else."""
    if not isinstance(argument, dict):
        return None
    value = argument.get("as_float", argument.get("as_int"))
    return float(value) if isinstance(value, (int, float)) else None


def of_peft(node: Mapping[str, Any]) -> list[str]:
    """Name the module that an operation was written in, where its class is one of peft's."""
    stack: str = node.get("metadata", {}).get("nn_module_stack", "")
    path, _, kind = stack.rpartition(";")[2].rpartition(",")
    return [path.rpartition(",")[2]] if kind.startswith("peft.tuners.") else []


def view_of(word: str, arguments: Mapping[str, Any]) -> views.View | None:
    """Return how an operation moves axes; None where that cannot be told."""
    given = {name: integers(argument) for name, argument in arguments.items()}

    def only(name: str, default: int) -> int:
        return (given.get(name) or [default])[0]

    match word:
        case "flatten":
            return views.flattened(only("start_dim", 0), only("end_dim", -1))
        case "transpose" | "swapaxes" if len(given) == 3:
            return views.swapped(*(numbers[0] for numbers in list(given.values())[1:]))
        case "permute":
            return views.permuted(given.get("dims", []))
        case "unsqueeze":
            return views.with_axis(only("dim", 0))
        case "squeeze" if len(given.get("dim", [])) == 1:
            return views.without_axis(only("dim", 0))
        case "view" | "_unsafe_view" | "reshape":
            return views.of_shape(extents(arguments.get("size", arguments.get("shape"))))
    return None


def extents(argument: Any) -> list[int | None]:
    """Return the extents of a shape; None for each that is not known."""
    if not isinstance(argument, dict):
        return []
    told = argument.get("as_ints", argument.get("as_sym_ints"))
    if not isinstance(told, list):
        return []
    plain = [each.get("as_int") if isinstance(each, dict) else each for each in told]
    return [each if type(each) is int else None for each in plain]


# Operations that run one graph of their own once, in some mode; others branch or repeat.
_MODES = ("set_grad_enabled", "autocast", "invoke_subgraph", "checkpoint", "strict_mode")


def inlined(nodes: Sequence[Mapping[str, Any]], /, scope: str = "") -> Iterator[Mapping[str, Any]]:
    """Yield the operations of a graph, those of graphs that run once within it in their places."""
    for number, node in enumerate(nodes):
        arguments = [each["arg"] for each in node["inputs"]]
        graphs = [arg["as_graph"]["graph"] for arg in arguments if "as_graph" in arg]
        if len(graphs) != 1 or not any(mode in node["target"] for mode in _MODES):
            yield node
            continue
        (graph,) = graphs
        after = arguments[1 + next(i for i, arg in enumerate(arguments) if "as_graph" in arg) :]
        given = [name for argument in after for name in names(argument)]
        inner = f"{scope}{number}/"
        known = {name: f"{inner}{name}" for name in _made(graph["nodes"])}
        entered = [name for each in graph["inputs"] for name in names(each)]
        known |= dict(zip(entered, given, strict=False))
        within = [_renamed(each, known) for each in graph["nodes"]]
        yield from inlined(within, inner)
        left = [known.get(name, name) for each in graph["outputs"] for name in names(each)]
        wanted = [name for each in node["outputs"] for name in names(each)]
        for one, other in zip(left, wanted, strict=False):
            argument = {"name": "self", "arg": {"as_tensor": {"name": one}}}
            yield {
                "target": "torch.ops.aten.alias.default",
                "inputs": [argument],
                "outputs": [{"as_tensor": {"name": other}}],
            }


def _made(nodes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    return (name for node in nodes for each in node["outputs"] for name in names(each))


def _renamed(node: Mapping[str, Any], known: Mapping[str, str]) -> Mapping[str, Any]:
    inputs = [{**each, "arg": _with_names(each["arg"], known)} for each in node["inputs"]]
    return {**node, "inputs": inputs, "outputs": _with_names(node["outputs"], known)}


def _with_names(value: Any, known: Mapping[str, str]) -> Any:
    """Give the values in an argument their new names; a graph within keeps those of its own."""
    if isinstance(value, list):
        return [_with_names(each, known) for each in value]
    if not isinstance(value, dict) or "as_graph" in value:
        return value
    return {
        key: known.get(each, each)
        if key == "name" and isinstance(each, str)
        else _with_names(each, known)
        for key, each in value.items()
    }
