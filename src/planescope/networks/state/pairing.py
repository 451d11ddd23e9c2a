"""The pairing of batch norms with layers where no graph tells: by names, and by order.

Names come first, since they say the same in every format. A rule of names, such as conv1 and bn1,
is believed where it fits by width wherever it can be applied in blocks of one depth; of a file in
the order of definition, also only where the norm was defined behind the layer.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from planescope.files.errors import UsageError, counted
from planescope.hyperplanes.layer import Layer, Norm, Pairing, Tensor

# How batch norms name their running mean and variance, scale and shift, and the epsilon that their
# framework takes by itself, which such files do not hold: PyTorch, Keras and TensorFlow, MXNet,
# Haiku, Chainer, PaddlePaddle, Flax, what was converted from Caffe for TensorFlow, Tensorpack.
NORMS = (
    ("running_mean", "running_var", "weight", "bias", 1e-5),
    ("moving_mean", "moving_variance", "gamma", "beta", 1e-3),
    ("moving_mean", "moving_var", "gamma", "beta", 1e-3),
    ("running_mean", "running_var", "gamma", "beta", 1e-5),
    ("avg_mean", "avg_var", "gamma", "beta", 2e-5),
    ("_mean", "_variance", "weight", "bias", 1e-5),
    ("mean", "var", "scale", "bias", 1e-5),
    ("mean", "variance", "scale", "offset", 1e-5),
    ("mean/EMA", "variance/EMA", "gamma", "beta", 1e-5),
)

_SEPARATORS = "./"
_MEANS = tuple({mean for mean, *_ in NORMS})
_AFFIX = r"(bn|norm|batch_?norm(alization)?|batch)"


# As converters name what has a norm within it.
_FOLDED = re.compile(r"batch_?norm|_bn_offset", re.IGNORECASE)


def folded_notes(names: Iterable[str], /) -> tuple[str, ...]:
    """Note norms that a converter put into weights, by names of layers' operations and operands."""
    if not any(map(_FOLDED.search, names)):
        return ()
    return (
        "batch norms were folded into weights and biases when the file was converted: what is "
        "measured is what convolution and norm cut together",
    )


def scaled_notes(layers: Sequence[str], /) -> tuple[str, ...]:
    """Note layers behind which a scale stands that may be a norm's; none where there are none."""
    if not layers:
        return ()
    return (
        f"behind {counted(len(layers), 'layer')} ({', '.join(layers[:5])}) stands a scale that the "
        "file does not tell to be a batch norm: measured without it",
    )


@dataclass(frozen=True, eq=False, slots=True)
class FoundNorm:
    """A batch norm of a file: its name, width, what makes it with an epsilon, and its usual one."""

    name: str
    width: int
    make: Callable[[float], Norm]
    eps: float
    at: int  # where in the file


@dataclass(frozen=True, kw_only=True)
class Norms:
    """The batch norms of a file.

    Attributes
    ----------
    found : mapping of str to FoundNorm
        By module name.
    broken : mapping of str to str
        Why others cannot be used.
    parts : frozenset of str
        Names of all tensors that belong to a norm.
    """

    found: Mapping[str, FoundNorm]
    broken: Mapping[str, str]
    parts: frozenset[str]


def find_norms(tensors: Mapping[str, Tensor], /) -> Norms:
    """Find whatever keeps a running mean and variance."""
    found: dict[str, FoundNorm] = {}
    broken: dict[str, str] = {}
    parts: set[str] = set()
    means = [(at, *item) for at, item in enumerate(tensors.items()) if item[0].endswith(_MEANS)]
    for at, name, mean in means:
        for mean_name, variance_name, gamma_name, beta_name, eps in NORMS:
            stem = name.removesuffix(mean_name)
            variance = tensors.get(stem + variance_name)
            if stem == name or variance is None or not _ends_name(stem, mean_name):
                continue
            of_weights = _beside_statistics(stem, tensors)
            names = (of_weights + gamma_name, of_weights + beta_name)
            gamma, beta = (tensors.get(part) for part in names)
            # Frameworks share the names of their statistics, and not those of scale and shift.
            if gamma is None and beta is None and _is_named_otherwise(stem, tensors, gamma_name):
                continue
            module = of_weights.rstrip("._/")
            if module in found or name in parts:
                continue
            parts |= {name, stem + variance_name, *(n for n in names if n in tensors)}
            held = [t for t in (mean, variance, gamma, beta) if t is not None]
            if len({t.shape for t in held}) > 1 or len(mean.shape) != 1:
                broken[module] = "its parts have different lengths"
                continue
            if any(t.dtype.startswith("complex") for t in held):  # which have no side
                broken[module] = "its parts are complex numbers"
                continue
            make = functools.partial(_norm, module, mean, variance, gamma, beta)
            found[module] = FoundNorm(module, mean.shape[0], make, eps, at)
    return Norms(found=found, broken=broken, parts=frozenset(parts))


def _ends_name(stem: str, last: str) -> bool:
    """Tell whether this separator stands before the last part of a name."""
    if last == "mean":  # too common a word, but where nothing else is before it
        return stem.endswith(tuple(_SEPARATORS))
    return not stem or stem.endswith((*_SEPARATORS, "_"))


def _is_named_otherwise(stem: str, tensors: Mapping[str, Tensor], gamma_name: str) -> bool:
    others = ("weight", "gamma", "scale")
    if gamma_name == "scale" and "batch_stats" not in stem:
        return True
    return any(stem + other in tensors for other in others if other != gamma_name)


def _beside_statistics(stem: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the name of the scale: Flax keeps statistics in a tree of their own."""
    if "batch_stats" not in stem:
        return stem
    candidates = (stem.replace("batch_stats", "params"), re.sub(r"batch_stats[./]", "", stem))
    held = (c for c in candidates if f"{c}scale" in tensors or f"{c}bias" in tensors)
    return next(held, candidates[0])


def _norm(
    name: str, mean: Tensor, variance: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float
) -> Norm:
    return Norm(name=name, gamma=gamma, beta=beta, mean=mean, variance=variance, eps=eps)


def pair(
    layers: Sequence[Layer],
    norms: Mapping[str, FoundNorm],
    order: Mapping[str, int] | None,
    given: Mapping[str, str | None],
    /,
) -> dict[str, tuple[FoundNorm, Pairing]]:
    """Pair layers with the norms behind them.

    Parameters
    ----------
    layers : sequence of Layer
    norms : mapping of str to FoundNorm
    order : mapping of str to int, or None
        Where in the file each module begins, if that is the order of definition.
    given : mapping of str to str or None
        Norms by layer as the user says; None or "" is no norm.

    Returns
    -------
    dict
        Norm and what told it, by the layer's name.

    Raises
    ------
    UsageError
        If a layer or norm that is given does not exist, or they have different widths.
    """
    pairs = {name: (norm, Pairing.GIVEN) for name, norm in _given(layers, norms, given)}
    open_layers = [layer for layer in layers if layer.name not in given]
    taken = {norm.name for norm, _ in pairs.values()}
    free = {name: norm for name, norm in norms.items() if name not in taken}
    for layer, norm in _by_name(open_layers, free, order):
        pairs[layer] = (norm, Pairing.NAMES)
    if order is not None:
        taken = {norm.name for norm, _ in pairs.values()}
        for layer, norm in _by_order(open_layers, norms, order):
            if layer not in pairs and norm.name not in taken:
                pairs[layer] = (norm, Pairing.ORDER)
    return pairs


def _given(
    layers: Sequence[Layer], norms: Mapping[str, FoundNorm], given: Mapping[str, str | None]
) -> Iterator[tuple[str, FoundNorm]]:
    known = {layer.name: layer for layer in layers}
    for name, norm_name in given.items():
        if name not in known:
            raise UsageError(f"--norms: there is no layer {name!r}{_near(name, known)}")
        if not norm_name:
            continue
        if norm_name not in norms:
            raise UsageError(
                f"--norms: there is no batch norm {norm_name!r}{_near(norm_name, norms)}"
            )
        norm, filters = norms[norm_name], known[name].filters
        if norm.width != filters:
            raise UsageError(
                f"--norms: {norm_name} has {norm.width} values, and {name} has {filters} filters"
            )
        yield name, norm


def _near(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.0)
    return f"; the nearest are {', '.join(close)}" if close else "; there are none"


def norms_beside(norms: Mapping[str, FoundNorm], /) -> Callable[[str], set[int]]:
    """Return the widths of the norms that by its name stand beside a layer, as a function of it.

    Whether one fits is not asked: this is to tell how the weight of the layer lies.
    """
    index = _Index(norms)

    def widths(layer: str) -> set[int]:
        told = [(rule[0], norm) for rule, norm in index.candidates(layer) if rule[0] != "shift"]
        sure = {norm.width for rule, norm in told if rule in _SURE}
        return sure or {norm.width for _, norm in told}

    return widths


_Rule = tuple[str, ...]
_Claim = tuple[Layer, FoundNorm]
_SURE = ("affix", "inside")


def _by_name(
    layers: Sequence[Layer], norms: Mapping[str, FoundNorm], order: Mapping[str, int] | None
) -> Iterator[tuple[str, FoundNorm]]:
    claims: defaultdict[_Rule, list[_Claim]] = defaultdict(list)
    index = _Index(norms)
    for layer in layers:
        for rule, norm in index.candidates(layer.name):
            claims[rule].append((layer, norm))
    fits = {rule: all(_fits(*claim, order) for claim in held) for rule, held in claims.items()}
    believed: list[tuple[bool, Layer, FoundNorm]] = []
    for rule, held in claims.items():
        # conv1 and bn2, as where norms stand before their layers: then conv1 and bn1 do not fit.
        if rule[0] == "shift" and fits.get(("twin", *rule[1:]), True):
            continue
        if fits[rule]:
            believed += [(rule[0] in _SURE, *claim) for claim in held]
    # stem and stem_bn: a norm that has the name of one layer is no other's.
    named = {norm.name for is_sure, _, norm in believed if is_sure}
    believed = [each for each in believed if each[0] or each[2].name not in named]
    # conv1, fc1 and one bn1: what two claim is nobody's.
    of_layer = Counter(layer.name for _, layer, _ in believed)
    of_norm = Counter(norm.name for _, _, norm in believed)
    for _, layer, norm in believed:
        if of_layer[layer.name] == of_norm[norm.name] == 1:
            yield layer.name, norm


def _fits(layer: Layer, norm: FoundNorm, order: Mapping[str, int] | None) -> bool:
    is_behind = order is None or layer.name not in order or order[layer.name] < norm.at
    return norm.width == layer.filters and is_behind


class _Index:
    """Norms by all but one part of their names, and what a layer's name makes of them."""

    def __init__(self, norms: Mapping[str, FoundNorm]) -> None:
        self.norms = norms
        # Blocks of a network repeat the names of their parts.
        self.rule = functools.cache(_rule)
        self.alike: defaultdict[tuple[object, ...], list[tuple[str, FoundNorm]]] = defaultdict(list)
        self.below: defaultdict[str, list[FoundNorm]] = defaultdict(list)
        for name, norm in norms.items():
            parts = _parts(name)
            for at, part in enumerate(parts):
                self.alike[(at, *parts[:at], None, *parts[at + 1 :])].append((part, norm))
            self.below[_joined(parts[:-1])].append(norm)
        self.at = {_parts(name): norm for name, norm in norms.items()}

    def candidates(self, layer: str) -> Iterator[tuple[_Rule, FoundNorm]]:
        """Yield the norms that by some rule, which names the depth too, stand behind the layer."""
        parts = _parts(layer)
        if len(inside := self.below[_joined(parts)]) == 1:
            yield ("inside", str(len(parts)), _parts(inside[0].name)[-1]), inside[0]
        for at, part in enumerate(parts):
            where = f"{at} of {len(parts)}"
            for other, norm in self.alike[(at, *parts[:at], None, *parts[at + 1 :])]:
                if (rule := self.rule(part, other, is_last=at == len(parts) - 1)) is not None:
                    yield (rule[0], where, *rule[1:]), norm
        # A member of a sequence that holds the layer, and a norm for the next member.
        *outer, member, last = ("", *parts)
        if member.isdecimal() and not self.below[_joined(parts[:-1])]:
            behind = self.at.get((*outer[1:], str(int(member) + 1)))
            if behind is not None:
                yield ("behind", str(len(parts)), *_words(last)[:1]), behind


def _rule(layer: str, norm: str, *, is_last: bool) -> _Rule | None:
    """Tell how one part of a norm's name follows from that of a layer's, the others being equal."""
    if layer.isdecimal() and norm.isdecimal():
        return ("next",) if is_last and int(norm) == int(layer) + 1 else None
    (words, digits), (other_words, other_digits) = _words(layer), _words(norm)
    affix = re.fullmatch(rf"({re.escape(layer)})?_?{_AFFIX}_?({re.escape(layer)})?", norm)
    if affix and (affix[1] or affix[4]):
        return ("affix", norm.replace(layer, "{}", 1))
    if words == other_words:
        return None
    if digits == other_digits:
        return ("twin", words, other_words)
    if (
        digits
        and len(digits) == len(other_digits)
        and digits[:-1] == other_digits[:-1]
        and int(other_digits[-1]) == int(digits[-1]) + 1
    ):
        return ("shift", words, other_words)
    return None


def _words(part: str) -> tuple[str, list[str]]:
    """Split a part of a name into its words and its numbers."""
    part = re.sub(r"(conv(olution)?)[123]d", r"\1", part, flags=re.IGNORECASE)
    numbers = re.findall(r"\d+", part)
    # Keras calls its layers conv2d, conv2d_1, conv2d_2.
    return re.sub(r"_?\d+", "#", part).strip("#"), numbers


def _parts(name: str) -> tuple[str, ...]:
    return tuple(name.replace("/", ".").split("."))


def _joined(parts: Sequence[str]) -> str:
    return "/".join(parts)


def _by_order(
    layers: Sequence[Layer], norms: Mapping[str, FoundNorm], order: Mapping[str, int]
) -> Iterator[tuple[str, FoundNorm]]:
    """Pair each layer with the norm that is defined next, if the width is right."""
    known = {layer.name: layer for layer in layers}
    told = sorted(
        [*(name for name in known if name in order), *norms],
        key=lambda name: norms[name].at if name in norms else order[name],
    )
    runs = [list(run) for _, run in itertools.groupby(told, norms.__contains__)]
    for before, behind in itertools.pairwise(runs):
        # conv1, conv2, bn1, bn2: then the order of definition is not that of use.
        if before[0] in norms or (len(before) > 1 and len(behind) > 1):
            continue
        layer, norm = known[before[-1]], norms[behind[0]]
        if norm.width == layer.filters and not _is_apart(layer.name, norm.name):
            yield layer.name, norm


def _is_apart(layer: str, norm: str) -> bool:
    """Return whether names say that something stands between a layer and the norm defined next.

    They are of blocks apart, the layer's is one of several before the norm, or they are members of
    one sequence whose numbers leave a gap.
    """
    ours, theirs = _parts(layer), _parts(norm)
    depth = min(len(ours), len(theirs)) - 1
    if ours[:depth] != theirs[:depth]:
        return True
    inner = ours[len(theirs) - 1 : -1]
    if not theirs[-1].isdecimal() and any(map(str.isdecimal, inner)):
        return True
    if ours[:-1] != theirs[:-1] or not (ours[-1].isdecimal() and theirs[-1].isdecimal()):
        return False
    return int(theirs[-1]) != int(ours[-1]) + 1
