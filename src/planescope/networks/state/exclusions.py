"""Tensors with the rank of a weight that are no layer, or not the weight that acts.

Each function gives a reason, half a sentence for a reader, or None.
"""

from __future__ import annotations

import functools
import math
import re
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping

import numpy as np

from planescope.hyperplanes.layer import Kind, Layer, Tensor

_RECURRENT_TORCH = re.compile(r"(^|[._/])weight_(ih|hh|hr)(_l\d+)?(_reverse)?$")
_ATTENTION = re.compile(r"(^|[._/])in_proj_weight$")
# The same with biases, and what quantisers and optimisers append.
_RECURRENT_PART = re.compile(r"(^|[._/])(weight|bias)_(ih|hh|hr)(?![A-Za-z0-9])")
_ATTENTION_PART = re.compile(r"(^|[./])(in|[qkv])_proj_(weight|bias)(?![A-Za-z0-9])")
_CELL = re.compile(
    r"(^|_)(conv)?_?(lstm|gru|rnn)s?(_?\d+)?$|(lstm|gru|rnn|simple)_?cell", re.IGNORECASE
)
_GATES = ({"hi", "hf", "hg", "ho"}, {"hr", "hz", "hn"})
_GATE = re.compile(r"[ih][ifgorzn]$")
_HEADS = {"query", "key", "value", "out"}
_DENSE = re.compile(r"dense|linear", re.IGNORECASE)
_EMBEDDING = re.compile(
    r"embed|(^|[._/])(wte|wpe|shared|tok|token|tokens|vocab|codebooks?|centroids|emb_params|"
    r"relative_attention_bias|quer(y|ies)_feat\w*|reference_points|pos|"
    r"pe|position|positional_encoding|rel_pos\w*|relative_position\w*|(\w+_)?emb\d*)$"
)
# A layer of an embedding, or behind it, is one whatever it stands in; patches are not looked up.
_PROJECTION = re.compile(r"proj|linear|dense|conv|mlp|patch|(^|_)fc")
# Of tables that are added, whatever their axes.
_TABLE = re.compile(r"(^|[._/])(abs_|rel_)?pos(ition(al)?)?_?(emb\w*|enc\w*|table|bias)?$")
_LONGEST = 256  # of kernels that sum over channels too
_SPREAD = re.compile(r"(^|[._/])(rho|(log_?)?(sigma|var|std))$")
_SCALE = re.compile(
    r"(^|[._/])(\w*norm(?!als?(_|$))\w*|ln_?\w{0,3}|[bg]n_?\d*|\w*(?<!up)(?<!down)scale\w*|gain|"
    r"gamma|affine|ls_?\d*|prelu\w*|rms\w*)$|(^|[./])in_?\d*$"
)
_STANDARDISED = re.compile(r"[Ss]tandardi[sz]ed_?[Cc]onv|StdConv|WSConv|[Ww]eight_?[Ss]tandard")
_PACKED = re.compile(r"(^|[._/])(qweight|weight_packed|packed_weight)$")
# Tensors beside a weight that leave it as it is.
_MEANS = ("mu", "mean", "loc")
_STATISTICS = ("running_mean", "moving_mean", "avg_mean", "_mean", ".mean")
_HARMLESS = frozenset(
    {"running_mean", "running_var", "num_batches_tracked", "scale", "zero_point", "total_ops"}
    | {"total_params", "input_scale", "output_scale", "k_scale", "v_scale", "act_scale"}
)

ONE_FILTER = "one fixed filter for every channel, as of a blur"
# What trainers keep for a weight beside it: moments, averages, gradients, earlier values.
_KEPT = re.compile(
    r"\w+_(momentum(_buffer)?|velocity|grad(ient)?s?|exp_avg(_sq)?|ema|averaged?|swa|prev(ious)?|"
    r"init(ial)?|backup|best)|exp_avg(_sq)?|momentum(_buffer)?|ema|velocity|grad"
)
UNCALLED = "forward never calls it, nor reads its weight"
INACTIVE = "it does not act: another copy of it does"
HEADS = "a dense layer of three axes, as of an attention: several linear maps in one"
RECURRENT = "a recurrent weight: it acts on its own output"
RECURRENT_LAYER = "a recurrent layer: its weights act on its own output too"
ATTENTION = "queries, keys and values of an attention: three linear maps in one"
BILINEAR = "a bilinear form: linear in each of two inputs, it has no hyperplanes in one"
EMBEDDING = "an embedding: its rows are looked up, they cut nothing"
_AFFINE = "a norm or a scale: its bias has its own shape, a value for each weight"


def of_name(name: str, /) -> str | None:
    """Say by its name why a tensor that no known layer has is not measured."""
    if _RECURRENT_TORCH.search(name):
        return RECURRENT
    if _ATTENTION.search(name):
        return ATTENTION
    if _PACKED.search(name):
        return "its weights are packed in a few bits each; save the model dequantised"
    return None


def of_part(name: str, /) -> str | None:
    """Say why what is computed with a tensor of torch's is no layer, by its name in a graph."""
    if _RECURRENT_PART.search(name):
        return RECURRENT_LAYER
    return ATTENTION if _ATTENTION_PART.search(name) else None


def recurrent(modules: Iterable[str], tensors: Mapping[str, Tensor], /) -> set[str]:
    """Find modules whose weights act on their own output, by Keras', Flax' and TensorFlow's names.

    A layer within a network that is called so is no cell: of PyTorch's names the last part counts.
    """
    modules = list(modules)
    children: defaultdict[str, set[str]] = defaultdict(set)
    for module in modules:
        parent, _, last = split(module)
        children[parent].add(last)
    cells = {parent for parent, held in children.items() if any(g <= held for g in _GATES)}
    kernels = [name.removesuffix(":0") for name in tensors if "recurrent_kernel" in name]
    keras = {
        name.removesuffix("recurrent_kernel")[:-1]
        for name in kernels
        if name.endswith(tuple(f"{s}recurrent_kernel" for s in "./_"))
    }
    is_cell = functools.cache(lambda part: bool(_CELL.search(part)))
    found = set()
    for module in modules:
        parent, _, last = split(module)
        is_gate = parent in cells and bool(_GATE.fullmatch(last))
        is_torch = f"{module}.weight" in tensors or f"{module}/weight" in tensors
        above = [last] if is_torch else module.replace("/", ".").split(".")
        if is_gate or module in keras or any(map(is_cell, above)):
            found.add(module)
    return found


def of_heads(shapes: Mapping[str, tuple[int, ...]], /) -> set[str]:
    """Return the dense layers whose weights have three axes.

    Those of an attention's heads, for example.

    Flax keeps (in, heads, depth) and, behind them, (heads, depth, out).

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Of the weights, by module.
    """
    children: defaultdict[str, set[str]] = defaultdict(set)
    for module in shapes:
        parent, _, last = split(module)
        children[parent].add(last)
    found = set()
    for module, shape in shapes.items():
        parent, _, last = split(module)
        is_head = last in _HEADS and len(children[parent] & _HEADS) > 1
        if len(shape) == 3 and (is_head or _DENSE.match(last)):
            found.add(module)
    return found


def split(name: str, /) -> tuple[str, str, str]:
    """Return what stands before the last separator of a name, it, and what stands behind it."""
    at = max(name.rfind("."), name.rfind("/"))
    return (name[: max(at, 0)], name[at] if at >= 0 else "", name[at + 1 :])


def of_bias(shape: tuple[int, ...], bias: Tensor, /) -> str | None:
    """Say why a weight with this bias is no layer; None where the bias has one value a filter."""
    if bias.shape == shape and len(shape) > 1:
        return _AFFINE
    if sum(extent != 1 for extent in bias.shape) > 1:
        extents = "×".join(map(str, bias.shape))
        return f"its bias has the shape {extents}, where a layer has one value a filter"
    if not bias.is_floating:
        return f"its bias is stored as {bias.dtype}; convert it to floating point"
    return None


def not_floating(weight: Tensor, /) -> str:
    """Say that a weight is stored in whole numbers, or complex ones."""
    if weight.dtype.startswith("complex"):
        return f"its weights are stored as {weight.dtype}: complex numbers cut no real space"
    return f"its weights are stored as {weight.dtype}; save the model dequantised"


def of_weight(module: str, weight: Tensor, ending: str, outputs: int | None, /) -> str | None:
    """Say why a weight makes no layer, by its name, type and shape.

    Parameters
    ----------
    outputs : int or None
        Length of its bias.
    """
    shape, name = weight.shape, module.lower()
    # The projection of a patch or time embedding is a layer, and has a bias; a table has none.
    # What a whole embedding is called tells of its parts, and not of theirs.
    own = ".".join(re.split(r"[./]", name)[-2:])
    is_table = _EMBEDDING.search(own) and not _PROJECTION.search(split(name)[2])
    is_added = shape[0] == 1 and _TABLE.search(name)
    if outputs is None and ((len(shape) <= 3 and is_table) or is_added):
        return EMBEDDING.replace(":", " by its name:")
    if not weight.is_floating:
        return not_floating(weight)
    if 0 in shape:
        return "it has no weights"
    if len(shape) > 2 and _STANDARDISED.search(module):
        return "by its name it standardises its weights when it runs; give the module or ONNX"
    if outputs is None and _SCALE.search(name) and not _is_kernel(shape):
        return "a norm or a scale, by its name, and without a bias for each filter"
    if shape[0] == 1 and len(shape) == 2 and outputs == shape[1] != 1 and ending == "weight":
        return "of shape (1, n), with n biases: a scale as likely as a layer of one input"
    if len(shape) == 3 and "bilinear" in name:
        return "a bilinear map: it multiplies two inputs"
    if len(shape) == 3 and re.search(r"(^|[._/])experts?([._/]|$)", name):
        return "the weights of several experts in one"
    is_stack = len(shape) == 3 and outputs is None and ending == "weight"
    if is_stack and shape[1] > 1 and shape[2] > _LONGEST:
        return f"three axes with {shape[2]} last, no kernel's: several linear maps in one"
    if len(shape) == 5 and outputs is None and len(set(shape[2:])) == 3:
        return "five axes of as many extents, which are no kernel's: several linear maps in one"
    if len(shape) == 5 and shape[0] == 1 and shape[2] > max(shape[3:]):
        return "a modulated weight: it is scaled anew for each input"
    return None


def _is_kernel(shape: tuple[int, ...]) -> bool:
    """Tell a convolution by its shape: a scale has an extent for channels, or is one for all."""
    return len(shape) > 3 and shape[0] > 1 and sum(extent > 1 for extent in shape) > 1


def of_standardised(
    layers: Iterable[Layer], tensors: Mapping[str, Tensor], known: Container[str], /
) -> Iterator[str]:
    """Say where a class may standardise its weights, of which a state dict holds nothing.

    Such convolutions have no bias, and a norm without statistics of its own behind them. Beside
    batch norms they would be centred without; nobody has been seen to do both.
    """
    if any(name.endswith(_STATISTICS) for name in tensors):
        return
    scales = {
        tensor.shape
        for name, tensor in tensors.items()
        if name.endswith((".weight", ".scale")) and f"{split(name)[0]}.bias" in tensors
    }
    open_to = [
        layer
        for layer in layers
        if layer.kind in (Kind.CONV, Kind.POINTWISE) and layer.name not in known
    ]
    bare = [layer for layer in open_to if layer.bias is None and (layer.filters,) in scales]
    if len(bare) * 2 > len(open_to):
        yield (
            f"{len(bare)} convolutions without a bias stand beside norms that keep no statistics: "
            "some networks of this form (BiT, ViT hybrids) standardise their weights when they "
            "run, which a state dict does not tell; measured is what is stored (the module or "
            "--network settles it)"
        )


_MAX_LOOK = 1 << 16  # elements of a weight that is looked at


def is_one_filter(weight: Tensor, /) -> bool:
    """Tell a filter that acts alike on each channel: of shape (filters, 1, *kernel), all the same.

    What is trained, or drawn, differs from channel to channel.
    """
    filters, *rest = weight.shape or (0,)
    size = math.prod(rest)
    if len(rest) < 2 or rest[0] != 1 or filters < 2 or size < 2 or filters * size > _MAX_LOOK:
        return False
    if not weight.is_floating:
        return False
    values = np.asarray(weight.read()).reshape(filters, size)
    return bool((values == values[0]).all() and values[0].any())


def is_harmless(last: str, tensor: Tensor, weight: Tensor, /, *, is_quantised: bool) -> bool:
    """Tell whether a tensor beside a weight leaves it as it is.

    Of torch's quantised modules scale and zero point are those of what comes out, one number each.

    Parameters
    ----------
    is_quantised : bool
        Whether both of them stand there.
    """
    if last in ("scale", "zero_point") and (
        max(tensor.shape, default=1) > 1 or weight.dtype.startswith("float8") or not is_quantised
    ):
        return False
    if _KEPT.fullmatch(last) and tensor.shape in (weight.shape, ()):
        return True
    return last in _HARMLESS or last.startswith(("_extra_state", "activation_post"))


def of_spread(module: str, modules: Container[str], /) -> str | None:
    """Say that a weight is the spread about another, from which weights are drawn."""
    match = _SPREAD.search(module)
    if match is None or not any(f"{module[: match.start(2)]}{m}" in modules for m in _MEANS):
        return None
    return "the spread of weights that are drawn anew in each run; their mean is measured"


def of_siblings(names: Iterable[str], /) -> str | None:
    """Say that what stands beside a weight may change it.

    Parameters
    ----------
    names : iterable of str
        Last parts of the names of the module's other tensors, the harmless ones left out.
    """
    first = next(iter(names), None)
    if first is None:
        return None
    return f"beside its weight stands {first}, which may change it; give the module or ONNX"
