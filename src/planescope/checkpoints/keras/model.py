"""Keras files, of Keras 2 and 3: `.keras`, and whole models or bare weights in `.h5`.

Where the file holds the model's config, that tells the layers and their places. What it does not
account for is judged by the names that Keras gives and by shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from planescope.checkpoints.hdf5 import BLOCKS, Hdf5, Window
from planescope.checkpoints.hdf5_bytes import MAGIC
from planescope.checkpoints.keras.config import trace
from planescope.checkpoints.keras.entries import ConfigLayer, Position
from planescope.checkpoints.keras.layers import (
    DEFAULT_EPS,
    FORMS,
    Arrays,
    Form,
    einsum_of,
    layers_of,
    norm_of,
)
from planescope.checkpoints.keras.left_out import reason_for, reason_for_class, reason_for_names
from planescope.checkpoints.keras.variables import Variables, Weights, weights_of
from planescope.checkpoints.probe import Probe, probe
from planescope.files.errors import CheckpointError, counted
from planescope.files.zips import Archive
from planescope.hyperplanes.layer import Described, Input, Layer, Norm, Pairing, Skipped
from planescope.networks.state.layout import named

NAME = "keras"

CONFIG_BYTES = 1 << 24  # the largest of Keras' own networks take a few MB
INFLATED_BYTES = 1 << 31

# How weights may be quantised: not at all, or to whole numbers with a scale.
_MODES = (None, "int8")

_JUDGED = (
    "{} within classes that are not of Keras: judged by the names and shapes of their variables"
)

_WEIGHTS = "model.weights.h5"
_CONFIG = "config.json"

# Their kernels have the shape of a dense layer's or of a 1-D convolution's.
_FOREIGN = {"embedding", "einsum_dense", "p_re_lu"}
_ATTENTION = re.compile(r"attention|einsum|/(query|key|value|output)(_dense)?/")

_TELLING_KERNELS = {"pointwise_kernel": Form.SEPARABLE, "depthwise_kernel": Form.DEPTHWISE}
_TELLING_WORDS = {"transpose": Form.TRANSPOSED, "depthwise": Form.DEPTHWISE}


def recognises(probe: Probe) -> bool:
    """Tell HDF5, behind a block of the user's perhaps, and zip archives with Keras' weights."""
    return any(probe.head.startswith(MAGIC, at) for at in BLOCKS) or _WEIGHTS in probe.zip_names


def read(path: Path) -> Described:
    """Describe the layers of a Keras file, and what was left out.

    Raises
    ------
    CheckpointError
        If the file is damaged, wants another file opened, or is not Keras'.
    """
    window, config = _locate(path)
    with Hdf5(window) as file:
        if config is None:
            config = next(iter(file.texts("", "model_config") or []), None)
        described = [] if config is None else _described(path, config)
        return describe(
            file, described, weights_of(file), missing="its weights are not in the file"
        )


def describe(
    file: Arrays, described: Sequence[ConfigLayer], weights: Weights, *, missing: str
) -> Described:
    """Describe the layers of a config with their weights, then those that it does not tell of.

    Parameters
    ----------
    missing : str
        Why a layer of the config that has no weights is left out.
    """
    owned = {
        layer.name: replace(variables, name=layer.name)
        for layer in described
        if is_known(layer) and (variables := weights.of(layer))
    }
    skipped = list(_left_out(file, described, owned, weights, missing))
    accounted = {variables.group for variables in owned.values()} | _accounted(described, weights)
    rest = [variables for variables in weights.layers if variables.group not in accounted]
    in_order = not (weights.numbered or described)
    judged = list(_judged_layers(file, rest, in_order=in_order))
    notes = [note for layer in described if layer.position for note in layer.position.notes]
    notes += [_JUDGED.format(counted(len(judged), "layer"))] if judged and described else []
    paired = {layer.norm.name for layer in judged if layer.norm is not None}
    if loose := [one.name for one in rest if _is_norm(one) and one.name not in paired]:
        notes.append(
            f"batch norms that were paired with no layer: {named(loose)} (the whole model, as "
            "model.save writes it, tells which stands where)"
        )
    return Described(
        layers=(*described_layers(file, described, owned), *judged),
        skipped=(*skipped, *_unjudged(file, rest)),
        notes=tuple(notes),
    )


def _is_norm(variables: Variables) -> bool:
    """Tell a batch norm by its variables, or by the name that Keras gives it."""
    return "moving_mean" in variables.keys or "batch_normalization" in variables.group[-1]


def _locate(path: Path) -> tuple[Window, str | bytes | None]:
    """Find the HDF5 file in `path`, and the config where that lies beside it."""
    look = probe(path)
    if not look.zip_names:
        return Window(path, 0, look.size), None
    archive = Archive(path)
    if _WEIGHTS not in archive.members:
        raise CheckpointError(f"{path}: a zip archive without {_WEIGHTS}; is it a .keras file?")
    config = archive.read(_CONFIG, limit=CONFIG_BYTES) if _CONFIG in archive.members else None
    if archive.is_stored(_WEIGHTS):
        size = archive.members[_WEIGHTS].file_size
        return Window(path, archive.offset(_WEIGHTS), size), config
    inflated = archive.read(_WEIGHTS, limit=INFLATED_BYTES)
    return Window(path, 0, len(inflated), inflated), config


def _described(path: Path, config: str | bytes) -> list[ConfigLayer]:
    if len(config) > CONFIG_BYTES:
        raise CheckpointError(f"{path}: the model's config has {len(config)} bytes, far too many")
    try:
        return trace(config)
    except (ValueError, RecursionError) as exc:
        raise CheckpointError(
            f"{path}: the model's config makes no sense ({exc}); is the download complete?"
        ) from exc


def is_known(layer: ConfigLayer, /) -> bool:
    """Return whether the class says what the variables are."""
    return layer.is_norm or _is_measured(layer)


def _is_measured(layer: ConfigLayer) -> bool:
    """Return whether layers of this class are hyperplanes of ours."""
    return layer.kind in FORMS or layer.einsum is not None


def _accounted(described: Sequence[ConfigLayer], weights: Weights) -> set[tuple[str, ...]]:
    """Return the groups of the layers that are left out, those within a class of Keras too."""
    groups: set[tuple[str, ...]] = set()
    for layer in described:
        if layer.is_foreign and (variables := weights.own(layer)):
            groups.add(variables.group)
        elif not layer.is_foreign and not is_known(layer):
            groups.update(variables.group for variables in weights.within(layer))
    return groups


def _left_out(
    file: Arrays,
    described: Sequence[ConfigLayer],
    owned: Mapping[str, Variables],
    weights: Weights,
    missing: str,
) -> Iterator[Skipped]:
    """Name the layers of a config that are not measured though they have weights, and say why."""
    saved = {(one.path[-1], one.class_name): one.name for one in described if one.name in owned}
    for layer in described:
        reason: str | None = None
        if _is_measured(layer) and layer.name in owned:
            if layer.quantisation not in _MODES:
                reason = f"its weights are quantised ({layer.quantisation}) in a way not read"
        elif _is_measured(layer):
            other = saved.get((layer.path[-1], layer.class_name))
            shared = f"the weights of {other} under another name; measured once, there"
            reason = missing if other is None else shared
        elif layer.is_foreign:
            held = weights.own(layer)
            if held is not None and _has_weights(file, held):
                reason = reason_for_class(layer.class_name)
        elif any(_has_weights(file, held) for held in weights.within(layer)):
            reason = reason_for(layer.kind)
        if reason is not None:
            yield Skipped(name=layer.name, reason=reason)


def _has_weights(file: Arrays, variables: Variables) -> bool:
    shapes = (file.tensor(key).shape for key in variables.keys.values())
    return any(sum(extent > 1 for extent in shape) > 1 for shape in shapes)


def _unjudged(file: Arrays, rest: Sequence[Variables]) -> Iterator[Skipped]:
    """Name what no config describes and names and shapes do not tell."""
    for variables in rest:
        if _has_weights(file, variables) and not _judged(file, variables):
            shapes = [file.tensor(key).shape for key in variables.keys.values()]
            reason = reason_for_names((variables.name.rpartition(".")[2], *variables.group), shapes)
            if reason is not None:
                yield Skipped(name=variables.name, reason=reason)


def described_layers(
    file: Arrays, described: Sequence[ConfigLayer], owned: Mapping[str, Variables]
) -> Iterator[Layer]:
    """Give the layers that the config tells, each in its place."""
    by_name = {layer.name: layer for layer in described}
    for layer in described:
        variables = owned.get(layer.name)
        # A layer that two models share is saved with the first of them.
        if variables is None or not _is_measured(layer) or layer.quantisation not in _MODES:
            continue
        layers = _layers_of(file, layer, variables)
        if not layers:
            stored = {file.tensor(key).dtype for key in variables.keys.values()}
            raise CheckpointError(
                f"{file.path}: the config calls {layer.name!r} a {layer.class_name}, but "
                f"{', '.join(variables.keys.values())}, of {' and '.join(sorted(stored))}, cannot "
                "be its weights; save the model again, in floating point"
            )
        if layer.position is not None:
            layers = _placed(layers, layer.position)
            norm = by_name.get(layer.position.norm or "")
            if norm is not None and norm.name in owned:
                paired = _described_norm(file, norm, owned[norm.name], layers[-1].filters)
                layers[-1] = replace(layers[-1], norm=paired)
        yield from layers


def _layers_of(file: Arrays, layer: ConfigLayer, variables: Variables) -> list[Layer]:
    if layer.einsum is not None:
        return einsum_of(file, variables, *layer.einsum)
    form, rank = FORMS[layer.kind]
    groups = layer.options.get("groups", 1)
    return layers_of(
        file,
        variables,
        Form.DENSE_INT8 if layer.quantisation else form,
        rank,
        groups if isinstance(groups, int) else None,
        layer.lora,
    )


def _placed(layers: Sequence[Layer], position: Position) -> list[Layer]:
    """Set the place of a layer, which is two where it is a separable convolution."""
    placed = [replace(layer, stage=position.stage, input=Input.OTHER) for layer in layers]
    placed[0] = replace(placed[0], input=position.input)
    return placed


def _described_norm(
    file: Arrays, norm: ConfigLayer, variables: Variables, width: int
) -> Norm | None:
    affine = (("gamma", "scale"), ("beta", "center"))
    names = [name for name, option in affine if norm.options.get(option, True)]
    keys = variables.named([*names, "moving_mean", "moving_variance"])
    eps = norm.options.get("epsilon")
    return norm_of(file, norm.name, keys, width, eps if isinstance(eps, float) else DEFAULT_EPS)


def _judged_layers(file: Arrays, rest: Sequence[Variables], *, in_order: bool) -> Iterator[Layer]:
    """Give the layers that names and shapes tell; with norms, if the file keeps an order."""
    for index, variables in enumerate(rest):
        layers = _judged(file, variables)
        norms = ["moving_mean" in after.keys for after in rest[index + 1 : index + 3]]
        # Two norms in a row are those of two branches, and which is whose cannot be told.
        if in_order and layers and norms in ([True], [True, False]):
            after = rest[index + 1]
            norm = norm_of(file, after.name, after.keys, layers[-1].filters)
            layers[-1] = replace(
                layers[-1], norm=norm, pairing=None if norm is None else Pairing.ORDER
            )
        yield from layers


def _judged(file: Arrays, variables: Variables) -> list[Layer]:
    """Describe a layer by what Keras calls it, else by its variables; [] if it is not measured."""
    for name in (variables.group[-1], variables.name.rpartition(".")[2]):
        stem = re.sub(r"_\d+$", "", name)
        if stem in FORMS:
            return layers_of(file, variables, *FORMS[stem])
        if stem in _FOREIGN:
            return []
    return _judged_by_shape(file, variables)


def _judged_by_shape(file: Arrays, variables: Variables) -> list[Layer]:
    keys = variables.keys
    for kernel, form in _TELLING_KERNELS.items():
        if kernel in keys:
            return layers_of(file, variables, form, len(file.tensor(keys[kernel]).shape))
    key = keys.get("kernel", keys.get("0"))
    if key is None or not (keys.keys() <= {"kernel", "bias"} or keys.keys() <= {"0", "1"}):
        return []
    rank = len(file.tensor(key).shape)
    name = f"/{'/'.join(variables.group)}/{variables.name}/".lower()
    # A number alone may be a table of embeddings or positions.
    table = rank < 4 and keys.keys() == {"0"}
    if table or (rank == 3 and _ATTENTION.search(name)):
        return []
    told = [form for word, form in _TELLING_WORDS.items() if word in name]
    # Where no word tells, the width of the bias shows which axis has the filters.
    forms = told or [Form.CONV, Form.TRANSPOSED, Form.DEPTHWISE] if rank > 2 else [Form.DENSE]
    fitting = (layers_of(file, variables, form, rank) for form in forms)
    return next(filter(None, fitting), [])
