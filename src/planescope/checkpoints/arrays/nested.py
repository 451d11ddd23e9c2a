"""Dictionaries of tensors, nested or flat, to a state dict: which part of them is the network.

Flax, Haiku, Paddle, Detectron2, Lasagne and many scripts keep a network as a tree of dictionaries
and lists whose leaves are arrays; the path to an array is its name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from planescope.checkpoints.choose import listing
from planescope.files.errors import CheckpointError, UsageError
from planescope.hyperplanes.layer import StateDict, Tensor
from planescope.networks.state.jax_forms import HAIKU_MEAN, with_plain_norms
from planescope.networks.state.stored import WEIGHTS

Tree: TypeAlias = "Tensor | dict[str, Tree]"

# Far beyond any network; a tree that shares its parts could else have names without end.
MAX_DEPTH = 64
_MAX_NAMES = 1 << 24
_MAX_TENSORS = 1 << 18

# Where people keep a network, the likeliest first.
_ENTRIES = (
    *("model_state_dict", "state_dict", "model_state", "model", "net", "network", "module"),
    *("params", "param values", "parameters", "variables", "blobs", "weights", "arg_params"),
    *("params_ema", "ema", "model_ema", "ema_params", "ema_state_dict", "ema_model", "target"),
)
# What Flax and Haiku keep beside the parameters, of the same modules.
_COLLECTIONS = ("batch_stats", "state", "net_state", "model_state", "aux_params", "norm_stats")
_PARAMETERS = ("params", "arg_params")

# What an optimiser keeps of each weight has the weight's shape, and is no layer.
_OPTIMIZER = re.compile(
    r"optimi[sz]er|(?:^|_)(?:optims?|opt_state|momentum|momenta|velocity|updater)(?:_|$)",
    re.IGNORECASE,
)
_SLOT = re.compile(
    r"(_momentum|_velocity|/Momentum|/Adam(_1)?|/RMSProp(_1)?"
    # Of Paddle's optimisers.
    r"|_(moment[12]?|(moment[12]?_)?max|velocity|inf_norm|mean_(square|grad)|momentum"
    r"|_?avg_squared_(grad|update)|beta[12]_pow_acc)_\d+)$"
)
# The best that an early stop of scikit-learn's saw, beside the weights that act.
_BEST = ("_best_coefs", "_best_intercepts")
# Tables of pandas: their columns by type.
_BLOCK = re.compile(r"block\d+_values")


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A part of a file that is a network."""

    entry: tuple[str, ...]
    trees: list[dict[str, Tree]]
    others: list[str] = field(default_factory=list)


def state_dict(tree: dict[str, Tree], path: Path, *, entry: str | None = None) -> StateDict:
    """Find the network in a tree of tensors, and name its tensors by their paths.

    `entry` names the part to take, with dots between the keys on the way to it. The order is taken
    for that of definition unless it is that of the alphabet: JAX and HDF5 sort what goes through.

    Raises
    ------
    CheckpointError
        If there is no tensor, or their names are beyond reason.
    """
    part = _network(tree) if entry is None else _part(tree, entry, path)
    tensors: dict[str, Tensor] = {}
    left = _MAX_NAMES
    for branch in part.trees:
        for name, tensor in _leaves(branch, ()):
            left -= len(name) + 1
            if left < 0 or len(tensors) >= _MAX_TENSORS:
                raise CheckpointError(
                    f"{path}: holds more tensors, or longer names of them, than any network; "
                    "is it damaged?"
                )
            tensors.setdefault(name, tensor)
    if not tensors and tree:
        raise CheckpointError(
            f"{path}: holds no weights, but what an optimiser or a table keeps; give the file of "
            "the weights"
        )
    if not tensors:
        raise CheckpointError(
            f"{path}: holds no arrays by name; save a dictionary of them, or "
            "numpy.savez(file, **arrays)"
        )
    beside = f"{listing(part.others)}: holds arrays too and was not measured" if part.others else ""
    return StateDict(
        tensors=_separated(_with_biases(with_plain_norms(tensors))),
        in_order=_is_in_order(part.trees[0]),
        entry=".".join(part.entry),
        note=beside,
    )


_BIASES = re.compile(r"(^|[._])(bias(es)?|intercepts?_?|bs?)$", re.IGNORECASE)


def _with_biases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join a list of weights with the one list of biases beside it, as scikit-learn keeps them."""
    lists: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        listed, _, number = name.rpartition(".")
        if listed and number.isdecimal():
            lists.setdefault(listed, {})[number] = tensor
    renamed: dict[str, str] = {}
    for listed, weights in lists.items():
        beside = [
            other
            for other, biases in lists.items()
            if other.rpartition(".")[0] == listed.rpartition(".")[0]
            and _BIASES.search(other)
            and biases.keys() == weights.keys()
            and all(len(b.shape) == 1 and b.shape[0] in weights[n].shape for n, b in biases.items())
        ]
        if len(beside) == 1 and all(len(weight.shape) > 1 for weight in weights.values()):
            for number in weights:
                renamed[f"{listed}.{number}"] = f"{listed}.{number}.W"
                renamed[f"{beside[0]}.{number}"] = f"{listed}.{number}.b"
    return {renamed.get(name, name): tensor for name, tensor in tensors.items()}


# conv1_w, conv1_weight: how Caffe2, MXNet and Lasagne name what others call conv1.weight.
_ENDING = re.compile(
    r"(.+)_(w|b|W|weight|bias|kernel|weights|biases|gamma|beta|moving_mean|moving_var|"
    r"running_mean|running_var)$"
)


def _separated(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Set a dot before the last part of names that have an underscore there, where all have."""
    if any(name.rpartition(".")[2] in WEIGHTS for name in tensors):
        return tensors
    parted = {_ENDING.sub(r"\1.\2", name): tensor for name, tensor in tensors.items()}
    told = any(name.rpartition(".")[2] in WEIGHTS for name in parted)
    return parted if told and len(parted) == len(tensors) else tensors


def _part(tree: dict[str, Tree], entry: str, path: Path) -> _Part:
    """Take the part of a tree that a user names."""
    found: Tree = tree
    rest = entry
    while rest and isinstance(found, dict):
        keys = [key for key in found if rest == key or rest.startswith(f"{key}.")]
        starts = (f"{rest}.", f"{rest}/")
        if not keys and any(key.startswith(starts) for key in found):  # what names begin with
            found = {k[len(rest) + 1 :]: each for k, each in found.items() if k.startswith(starts)}
            break
        if not keys:
            near = difflib.get_close_matches(rest, found, n=3, cutoff=0.0)
            raise UsageError(
                f"{path}: has no entry {entry!r}; near it are {', '.join(near) or 'none'}"
            )
        key = max(keys, key=len)  # a key may itself have dots
        found, rest = found[key], rest[len(key) + 1 :]
    if isinstance(found, Tensor):
        raise UsageError(f"{path}: the entry {entry!r} is a single array; give one that holds some")
    return _Part(entry=(entry,), trees=[found])


def _network(tree: dict[str, Tree]) -> _Part:
    """Descend to the part that holds the network, where the names on the way say so."""
    entry: list[str] = []
    others: list[str] = []
    match tree:
        # Haiku's transform gives parameters and state as a pair, and an optimiser's comes third.
        case {"0": dict() as first, "1": dict() as second} if any(
            HAIKU_MEAN.fullmatch(name) for name, _ in _leaves(second, ())
        ):
            return _Part(entry=("0",), trees=[first, second])
    while True:
        branches = {
            key: branch
            for key, branch in tree.items()
            if isinstance(branch, dict) and not _OPTIMIZER.search(key) and _weights(branch)
        }
        loose = any(_is_weight(key, each) for key, each in tree.items())
        named = [key for key in _ENTRIES if key in branches]
        # Beside a part of another name, these words are names of modules.
        if loose or not named or set(branches) - {*_ENTRIES, *_COLLECTIONS}:
            return _Part(entry=tuple(entry), trees=[_without_optimizer(tree)], others=others)
        chosen = named[0]
        for key in _PARAMETERS:
            chosen = key if key in branches else chosen
        entry.append(chosen)
        beside = [
            branch
            for key in _COLLECTIONS
            if chosen in _PARAMETERS and isinstance(branch := tree.get(key), dict)
        ]
        others += [
            ".".join([*entry[:-1], key])
            for key in branches
            if key != chosen and not any(branches[key] is each for each in beside)
        ]
        if beside:
            return _Part(entry=tuple(entry), trees=[branches[chosen], *beside], others=others)
        tree = branches[chosen]


def _without_optimizer(tree: dict[str, Tree]) -> dict[str, Tree]:
    return {key: each for key, each in tree.items() if not _OPTIMIZER.search(key)}


def _is_weight(key: str, tree: Tree) -> bool:
    return isinstance(tree, Tensor) and len(tree.shape) > 1 and not _SLOT.search(key)


def _weights(tree: Mapping[str, Tree]) -> bool:
    """Return whether there is a tensor of two dimensions or more in a tree."""
    seen: set[int] = set()
    pending: list[Mapping[str, Tree]] = [tree]
    while pending:
        branch = pending.pop()
        if id(branch) in seen:
            continue
        seen.add(id(branch))
        for key, each in branch.items():
            if _is_weight(key, each):
                return True
            if isinstance(each, dict):
                pending.append(each)
    return False


def _is_in_order(tree: dict[str, Tree]) -> bool:
    names = [name for name, _ in _leaves(tree, ())]
    # Sorted key by key, or as whole paths: "a-b.x" comes before "a.x" there.
    return names not in (sorted(names), sorted(names, key=lambda name: name.split(".")))


def _leaves(tree: Tree, path: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    if isinstance(tree, Tensor):
        if not _SLOT.search(path[-1]):
            yield ".".join(path), tree
        return
    match tree:
        # A weight and its bias, as a pair of arrays.
        case {"0": Tensor(shape=(_, _, *_)) as weight, "1": Tensor(shape=(_,)) as bias} if (
            path and len(tree) == 2
        ):
            tree = {"W": weight, "b": bias}
    for key, each in tree.items():
        is_best = key in _BEST and "coefs_" in tree
        if not is_best and not (_BLOCK.fullmatch(key) and "axis1" in tree):
            yield from _leaves(each, (*path, key))


def of_sequence(values: Sequence[Tree | None]) -> dict[str, Tree]:
    """Name the elements of a sequence by their numbers."""
    # What holds no tensor is left out: shared many times over, it would take for ever to walk.
    return {str(index): value for index, value in enumerate(values) if value}
