"""The variables of a Keras file, by layer.

Keras 3 (and the last of Keras 2) numbers a layer's variables, in groups that are named after
classes: ``layers/conv2d_1/vars/0``. Keras 2 names them, and keeps the order of the layers beside
them: ``stem/stem/kernel:0``.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planescope.checkpoints.probe import AnotherFormatError
from planescope.files.errors import CheckpointError

if TYPE_CHECKING:
    from planescope.checkpoints.hdf5 import Hdf5
    from planescope.checkpoints.keras.entries import ConfigLayer

# Keras 1 wrote "block1_conv1_W_1:0", and called a variance "std"; its weights are still in use.
_KERAS_1 = re.compile(r"(?!lora_).*_(W|b|gamma|beta|running_mean|running_std)(_\d+)?")
_SINCE_KERAS_2 = {
    "W": "kernel",
    "b": "bias",
    "running_mean": "moving_mean",
    "running_std": "moving_variance",
}

# What Keras 3 and Keras 2.13 call the list of a model's layers.
_LISTS = ("layers", "_layer_checkpoint_dependencies")


@dataclass(frozen=True, kw_only=True)
class Variables:
    """The variables of one layer.

    Attributes
    ----------
    group : tuple of str
        Where the file keeps them.
    name : str
        Of the layer, with dots behind those of the models that it is in.
    keys : mapping of str to str
        Datasets, by the variable's name ("kernel") or number ("0").
    """

    group: tuple[str, ...]
    name: str
    keys: Mapping[str, str]

    def named(self, names: Sequence[str]) -> dict[str, str]:
        """Return the datasets by name; `names` are those of numbered variables."""
        of_number = {str(number): name for number, name in enumerate(names)}
        return {of_number.get(name, name): key for name, key in self.keys.items()}


@dataclass(frozen=True, kw_only=True)
class Weights:
    """All variables of a file.

    Attributes
    ----------
    layers : list of Variables
    numbered : bool
        Variables have numbers, and the order of the layers is lost.
    """

    layers: list[Variables]
    numbered: bool

    def of(self, layer: ConfigLayer) -> Variables | None:
        """Find the variables of a layer that the config describes."""
        path = layer.path
        if self.numbered:
            places = [tuple(layer.slot.split("/"))]
        else:
            # Of the models around a layer, some versions write all and some only the outermost.
            places = [(path[0], *path[depth:]) for depth in range(1, max(len(path), 2))]
        for place in places:
            found = self._by_place.get(place, [])
            # A wrapper may keep something beside the layer, as the vector of a spectral norm.
            if len(found) > 1:
                found = [variables for variables in found if "kernel" in variables.keys]
            if len(found) == 1:
                return found[0]
        return None

    def own(self, layer: ConfigLayer) -> Variables | None:
        """Find the variables of a layer that may hold others, without those of the others."""
        found = self.of(layer)
        is_part = found is not None and not self.numbered and found.group[-1] != layer.path[-1]
        return None if is_part else found

    def within(self, layer: ConfigLayer) -> list[Variables]:
        """Find all variables of a layer, those of the parts that it is made of too."""
        if self.numbered:
            return self._within.get(tuple(layer.slot.split("/")), [])
        return self._within.get((layer.path[0], layer.path[-1]), [])

    @functools.cached_property
    def _within(self) -> dict[tuple[str, ...], list[Variables]]:
        found = defaultdict(list)
        for variables in self.layers:
            group = variables.group
            if self.numbered:
                places = {group[:end] for end in range(1, len(group) + 1)}
            else:
                places = {(group[0], part) for part in group}
            for place in places:
                found[place].append(variables)
        return found

    @functools.cached_property
    def _by_place(self) -> dict[tuple[str, ...], list[Variables]]:
        found = defaultdict(list)
        for variables in self.layers:
            top, *folders = variables.group
            ends = range(1) if self.numbered else range(len(folders) + 1)
            for end in ends:
                found[top, *folders[end:]].append(variables)
        return found


def weights_of(file: Hdf5) -> Weights:
    """List the variables of all layers, those of the optimizer apart.

    Raises
    ------
    CheckpointError
        If the file is damaged, or no Keras wrote it.
    """
    groups = file.groups(without="optimizer")
    named = list(_named(file, groups))
    weights = Weights(layers=named or list(_numbered(file, groups)), numbered=not named)
    if not weights.layers:
        raise AnotherFormatError(
            f"{file.window.path}: an HDF5 file, but without weights as Keras keeps them; "
            "save the model with Keras, or its weights with numpy.savez"
        )
    return weights


def _numbered(file: Hdf5, groups: Mapping[str, list[str]]) -> Iterator[Variables]:
    @functools.cache
    def label(group: str) -> str | None:
        """Name of the layer in a group; None for a list of layers, or for what a wrapper wraps."""
        last = group.rpartition("/")[2]
        if last in (*_LISTS, "layer"):
            return None
        written = file.texts(f"{group}/vars", "name") if f"{group}/vars" in groups else None
        return next(iter(written or []), last)

    for path in sorted(groups, key=_natural):
        group, _, last = path.rpartition("/")
        if last != "vars" or not group or not groups[path]:
            continue
        parts = group.split("/")
        names = [label("/".join(parts[: end + 1])) for end in range(len(parts))]
        yield Variables(
            group=tuple("layers" if part in _LISTS else part for part in parts),
            name=".".join(name for name in names if name is not None),
            keys={name: f"{path}/{name}" for name in groups[path]},
        )


def _natural(path: str) -> list[tuple[str, int]]:
    """Sort key that puts conv2d_2 before conv2d_10."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D+)(\d{0,9})", path)]


def _named(file: Hdf5, groups: Mapping[str, list[str]]) -> Iterator[Variables]:
    base = "model_weights/" if "model_weights" in groups else ""
    for layer in _names(file, base.rstrip("/"), "layer_names"):
        weights = _names(file, f"{base}{layer}", "weight_names") if base + layer in groups else []
        folders: dict[str, dict[str, str]] = {}
        for weight in weights:
            folder, _, variable = weight.rpartition("/")
            group = f"{base}{layer}/{folder}".rstrip("/")
            if variable not in groups.get(group, ()):
                raise CheckpointError(
                    f"{file.window.path}: lists the weight {weight!r} of layer {layer!r}, "
                    "but does not hold it; is the download complete?"
                )
            folders.setdefault(folder, {})[_since_keras_2(variable)] = f"{group}/{variable}"
        for folder, keys in folders.items():
            within = _within(layer, folder, alone=len(folders) == 1)
            yield Variables(
                group=(layer, *filter(None, folder.split("/"))),
                name=".".join([layer, *within]),
                keys=keys,
            )


def _names(file: Hdf5, group: str, attribute: str) -> list[str]:
    """Read a list of names; one that is too long for an attribute continues in numbered ones."""
    names = file.texts(group, attribute)
    if names is not None:
        return names
    parts = (file.texts(group, f"{attribute}{number}") for number in itertools.count())
    return list(itertools.chain.from_iterable(iter(lambda: next(parts), None)))


def _within(layer: str, folder: str, *, alone: bool) -> list[str]:
    """Return the path of a layer below the one of the whole model that it is in.

    Empty for that itself.
    """
    # Before it may stand the name of the whole model.
    _, _, rest = f"/{folder}/".rpartition(f"/{layer}/")
    within = [part for part in rest.split("/") if part]
    # The first TensorFlow renamed what it had built before: conv1/conv1_7/kernel:0.
    return [] if alone and within and within[-1].startswith(layer) else within


def _since_keras_2(variable: str) -> str:
    name = re.sub(r":\d+$", "", variable)
    old = _KERAS_1.fullmatch(name)
    return _SINCE_KERAS_2.get(old[1], old[1]) if old else name
