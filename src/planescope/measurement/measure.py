"""From whatever a user has - a path, a name, a module, arrays - to its measurement."""

from __future__ import annotations

import math
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from planescope.checkpoints import files, read_contents
from planescope.checkpoints.locate import locate
from planescope.files.errors import CheckpointError, NoLayersError, UsageError
from planescope.files.reading import size_of
from planescope.hyperplanes.layer import (
    Described,
    Kind,
    Layer,
    Layout,
    Skipped,
    StateDict,
    Structure,
    View,
)
from planescope.measurement.assemble import Observed, measure_layers
from planescope.measurement.record import Measurement, Source
from planescope.networks.layers import Hints, describe
from planescope.networks.layout import Wanted
from planescope.networks.parametrisations import resolved
from planescope.networks.sharing import shared

if TYPE_CHECKING:
    import torch

E = TypeVar("E", bound=StrEnum)

DEFAULT_KINDS = (Kind.CONV,)

# A small file may repeat or pack weights, but not claim more filters than this.
MAX_FILTERS = 1 << 22

# Names of networks whose weights come with a library, not from a file.
LIBRARIES = ("torchvision:", "timm:")

_NAMED = {
    Kind.CONV: "convolution",
    Kind.POINTWISE: "1x1 convolution",
    Kind.TRANSPOSED: "transposed convolution",
    Kind.LINEAR: "linear layer",
}


@dataclass(frozen=True, kw_only=True)
class Found:
    """The layers of a network of every kind, before any is chosen or read."""

    source: Source
    layers: tuple[Layer, ...]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()


def measure(
    x: Any,
    /,
    *,
    view: View | str = View.RAW,
    kinds: Iterable[Kind | str] | str = DEFAULT_KINDS,
    layers: str | None = None,
    transposed: str | None = None,
    layout: str | Sequence[str] = (),
    norms: Mapping[str, str | None] | Sequence[str] = (),
    eps: float | None = None,
    entry: str | None = None,
    network: str | Structure | None = None,
    init: Any = None,
    data: str | Iterable[Any] | None = None,
    data_path: str | os.PathLike[str] | None = None,
    on_layer: Callable[[int, int, str], None] | None = None,
) -> Measurement:
    """Measure the hyperplanes of a network.

    Parameters
    ----------
    x : path, str, torch.nn.Module, keras.Model, or mapping of str to arrays
        A checkpoint file, a folder with one model, ``hf:OWNER/NAME[@REVISION][/FILE]``,
        ``torchvision:NAME``, ``timm:NAME``, a live module or Keras model (on any backend), a state
        dict, or named NumPy arrays.
        A module is left exactly as it is.
    view : {"raw", "effective"}
        The convolutions' own hyperplanes, as in the paper, or those that convolution and batch norm
        cut together (METHOD, section 4).
    kinds : iterable of {"conv", "pointwise", "transposed", "linear"}, or "all"
        Which layers; by default convolutions with a kernel larger than 1, as in the paper.
    layers : str, optional
        Regular expression; only layers in whose name it is found.
    transposed : str, optional
        Regular expression of the layers that are transposed convolutions, where only a state dict
        is known.
    layout : str or sequence of str
        Where the weights of a state dict have their filters, if names, biases and shapes do not
        tell or mislead: ``"filters-first"``, as PyTorch has them, or ``"filters-last"``, as Keras
        and Flax; ``"REGEX=filters-last"`` for layers in whose name the expression is found.
    norms : mapping of str to str or None, or sequence of "LAYER=NORM"
        The batch norm behind a layer of a state dict, by names; None, or nothing behind the sign,
        is none.
    eps : float, optional
        Epsilon of the batch norms of a state dict, which does not hold it.
    entry : str, optional
        Which of several state dicts in a file, as ``"ema"``.
    network : str or Structure, optional
        One of the paper's networks (``lenet``, ``vgg16_bn``, ...), or with torch any that
        `planescope.networks.build.build` takes; it then tells stages, inputs and norms of a
        state dict. Or what a run recorded of them, `planescope.training.run.Run.structure`.
    init : same as `x`, optional
        The network at initialisation; gives the distances `l2` and `linf`.
    data : str or iterable, optional
        Measures centre and activation rate of each layer (METHOD, section 4): the name of a data
        set (``digits``, ``cifar10``, ...), whose validation examples are taken, or batches of
        inputs. Needs torch, and a module or `network`.
    data_path : path, optional
        Where the files of the data set lie.
    on_layer : callable, optional
        Called with (layers done, layers in all, name of the next one), to show progress.

    Returns
    -------
    Measurement

    Raises
    ------
    UsageError
        If an option cannot be.
    CheckpointError
        If the checkpoint cannot be read, or does not match `network` or `init`.
    NoLayersError
        If no layer is left to measure; the message says which kinds there are.
    MissingDependencyError
        If an optional package is needed; the message says which.
    """
    view = choice(View, view, "view")
    chosen = chosen_kinds(kinds)
    pattern = compiled(layers, "layers")
    hints = hints_of(transposed=transposed, layout=layout, norms=norms, eps=eps)
    found = find(x, hints=hints, network=network, entry=entry)
    measured, left_out = select(found, chosen, pattern)
    refuse_claims(found.source, measured)
    initial = None
    if init is not None:
        began = find(init, hints=hints, network=network)
        initial = {name: layer for layer in began.layers for name in (*layer.aliases, layer.name)}
    notes = [*found.notes, *_norm_notes(measured, view)]
    observed = None
    if data is not None:
        observed = _observe(_runnable(x, network), measured, data, data_path)
        notes.append("centre and activation rate were measured from data")
    return measure_layers(
        measured,
        source=found.source,
        view=view,
        initial=initial,
        observed=observed,
        skipped=(*left_out, *found.skipped),
        notes=notes,
        on_layer=on_layer,
    )


def hints_of(
    *,
    transposed: str | None = None,
    layout: str | Sequence[str] = (),
    norms: Mapping[str, str | None] | Sequence[str] = (),
    eps: float | None = None,
) -> Hints:
    """Read what a user says of a file, as `measure` takes it.

    Raises
    ------
    UsageError
        If an option cannot be.
    """
    layouts = [layout] if isinstance(layout, str) else layout
    if not isinstance(norms, Mapping):
        halves = [pair.rpartition("=") for pair in norms]
        if wrong := next(
            (pair for pair, half in zip(norms, halves, strict=True) if not half[1]), None
        ):
            raise UsageError(f"--norms {wrong!r}: give LAYER=NORM, or LAYER= for none")
        norms = {name: norm or None for name, _, norm in halves}
    if eps is not None and not (0.0 <= eps < math.inf):
        raise UsageError(f"--eps {eps}: give a number that is not negative, as 1e-5")
    axes = Wanted(
        layouts=[_layout(text) for text in layouts],
        transposed=compiled(transposed, "transposed"),
    )
    return Hints(axes=axes, norms=norms, eps=eps)


def _layout(text: str) -> tuple[re.Pattern[str] | None, Layout]:
    pattern, _, name = text.rpartition("=")
    return compiled(pattern or None, "layout"), choice(Layout, name, "layout")


def find(
    x: Any,
    /,
    *,
    hints: Hints | None = None,
    network: str | Structure | None = None,
    entry: str | None = None,
) -> Found:
    """Find the layers of whatever `measure` takes; their weights stay unread.

    Raises
    ------
    UsageError, CheckpointError, MissingDependencyError
        As `measure`.
    """
    source, contents = _contents(x, entry)
    if isinstance(contents, Described):
        if network is not None:
            raise UsageError(
                f"{source.path}: a {source.format} file knows its own network; leave out --network"
            )
        layers, joined = shared(contents.layers)
        return Found(
            source=source,
            layers=tuple(layers),
            skipped=contents.skipped,
            notes=(*contents.notes, *joined),
        )
    if network is not None:
        contents = _placed(network, resolved(contents), source)
    found = describe(contents, hints)
    notes = [f"measured the state dict found at {contents.entry!r}"] if contents.entry else []
    if contents.note:
        notes.append(contents.note)
    notes += [*contents.notes, *_part_notes(source), *found.notes]
    return Found(
        source=source,
        layers=found.layers,
        skipped=found.skipped,
        notes=tuple(notes),
    )


def _part_notes(source: Source) -> list[str]:
    """Say that a file by its name is a part of a model."""
    if match := re.search(r"-0*(\d+)-of-0*(\d+)\.\w+$", source.path):
        if match[2] != "1":
            return [
                f"part {match[1]} of {match[2]} of a model, by its name: measure the index beside "
                "it (.index.json), or the folder, for all of its layers"
            ]
    elif re.search(r"(mp_rank|tp_rank|zero_pp_rank|__\d+)_?\d*", Path(source.path).name):
        return ["by its name a part of a model that is cut over several processes; join them first"]
    return []


def _contents(x: Any, entry: str | None = None) -> tuple[Source, StateDict | Described]:
    if isinstance(x, (str, os.PathLike)):
        name = os.fspath(x)
        if name.startswith(LIBRARIES):
            from planescope.networks.build import load_pretrained

            return _module_contents(load_pretrained(name), name)
        path = locate(name)
        form, contents = read_contents(path, entry=entry)
        if name.startswith(("https://", "http://")):
            from planescope.checkpoints.ranges import public_name

            name = public_name(name)
        return Source(path=name, format=form, bytes=_bytes(path, form)), contents
    if entry is not None:
        raise UsageError("--entry chooses within a file; give the state dict itself")
    # On one of its backends a Keras model is a torch module too.
    if _is_keras(x):
        from planescope.checkpoints.keras.live import read_model

        return Source(path=x.name, format="keras model", bytes=None), read_model(x)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.nn.Module):
        return _module_contents(x, type(x).__name__)
    if isinstance(x, Mapping):
        from planescope.networks.module import read_state_dict

        source = Source(path=type(x).__name__, format="state dict", bytes=None)
        return source, read_state_dict(x)
    raise UsageError(
        f"cannot measure a {type(x).__name__}; give a path, a torch module, a Keras model or a "
        "mapping of arrays"
    )


def _is_keras(x: Any) -> bool:
    if sys.modules.keys().isdisjoint(("keras", "tf_keras")):
        return False
    from planescope.checkpoints.keras.live import is_model

    return is_model(x)


def _placed(network: str | Structure, state: StateDict, source: Source) -> StateDict:
    """The state dict with what the network tells of each layer's place."""
    if isinstance(network, Structure):
        return _as_recorded(network, state, source)
    try:
        if ":" not in network:
            from planescope.networks import paper as networks

            return networks.match(network, state)
        from planescope.networks.load import load_network
        from planescope.networks.module import read_module

        return read_module(load_network(network, state))
    except CheckpointError as exc:
        raise CheckpointError(f"{source.path}: {exc}") from exc


def _as_recorded(structure: Structure, state: StateDict, source: Source) -> StateDict:
    """The state dict with what was recorded when its network was built; nothing else is guessed."""
    tensors = dict(state.tensors)
    if not structure.known:  # nothing is known: names would pair norms, and names may deceive
        tensors = {
            k: v for k, v in tensors.items() if not k.endswith(("running_mean", "moving_mean"))
        }
        return replace(state, tensors=tensors, in_order=False, note=structure.note)
    for name, place in structure.places.items():
        tensor = tensors.get(f"{name}.weight", tensors.get(name))
        rank = 0 if tensor is None else len(tensor.shape)
        if rank and (rank < 2 or (place.kind is Kind.LINEAR) != (rank == 2)):
            raise CheckpointError(
                f"{source.path}: {name} is no {_NAMED[place.kind]} there, as network.json of its "
                "run has it; do they belong together?"
            )
        if place.groups is not None and place.groups < 1:
            raise CheckpointError(f"{source.path}: network.json of its run gives {name} no groups")
    ordered = [name for name in structure.names if name in tensors]
    ordered += [name for name in tensors if name not in set(structure.names)]
    return replace(
        state,
        tensors={name: tensors[name] for name in ordered},
        places=structure.places,
        in_order=True,
        note=structure.note,
    )


def _runnable(x: Any, network: str | Structure | None) -> torch.nn.Module:
    """The network as a module that data can go through."""
    if isinstance(x, str) and x.startswith(LIBRARIES):
        from planescope.networks.build import load_pretrained

        return load_pretrained(x)
    if _is_keras(x):
        raise UsageError(
            f"{x.name}: data go through torch modules, not through Keras models; leave out data"
        )
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.nn.Module):
        return x
    source, contents = _contents(x)
    if not isinstance(network, str) or not isinstance(contents, StateDict):
        raise UsageError(
            f"{source.path}: data go through a network, not through a file; say which by --network"
        )
    from planescope.networks.load import load_network

    return load_network(network, resolved(contents))


def _observe(
    module: torch.nn.Module,
    layers: Sequence[Layer],
    data: str | Iterable[Any],
    path: str | os.PathLike[str] | None,
) -> Mapping[str, Observed]:
    from planescope.measurement.activations import measure_activations

    if isinstance(data, str):
        from planescope.data.batches import batches
        from planescope.data.load import load

        data = batches(
            load(data, split="val", path=None if path is None else Path(path)), batch_size=100
        )
    # z is what enters the ReLU: the norm's output where there is a norm.
    names = {layer.name: layer.name if layer.norm is None else layer.norm.name for layer in layers}
    return measure_activations(module, data, names)


def _module_contents(module: torch.nn.Module, name: str) -> tuple[Source, StateDict]:
    from planescope.networks.module import read_module

    return Source(path=name, format="module", bytes=None), read_module(module)


def _bytes(path: Path, form: str) -> int:
    return sum(size_of(file) for file in files(path, form))


def select(
    found: Found, kinds: Sequence[Kind], pattern: re.Pattern[str] | None, /
) -> tuple[list[Layer], list[Skipped]]:
    """Choose the layers to measure; the others are given with the reason.

    Raises
    ------
    NoLayersError
        If none is left; the message says which kinds there are.
    """
    chosen, skipped = [], []
    for layer in found.layers:
        if layer.kind not in kinds:
            reason = f"a {_NAMED[layer.kind]}; measured with --kinds {layer.kind}"
            skipped.append(Skipped(name=layer.name, reason=reason))
        elif pattern is not None and not pattern.search(layer.name):
            skipped.append(Skipped(name=layer.name, reason="its name was not chosen by --layers"))
        else:
            chosen.append(layer)
    if not chosen:
        raise NoLayersError(f"{found.source.path}: no layer to measure; {_what_there_is(found)}")
    return chosen, skipped


def _what_there_is(found: Found) -> str:
    counts = {kind: sum(layer.kind is kind for layer in found.layers) for kind in Kind}
    held = [f"{count} {kind}" for kind, count in counts.items() if count]
    if not held:
        return "it holds no weights of convolutions or linear layers"
    return f"it holds layers of the kinds {', '.join(held)} (choose by --kinds and --layers)"


def refuse_claims(source: Source, layers: Sequence[Layer], /) -> None:
    """Refuse more filters than a file has bytes; what is kept of each takes some fifty.

    Raises
    ------
    CheckpointError
        If a file claims them.
    """
    filters = sum(layer.filters for layer in layers)
    if source.bytes is not None and filters > max(MAX_FILTERS, source.bytes):
        raise CheckpointError(
            f"{source.path}: claims {filters} filters in a file of {source.bytes} bytes; refused "
            "as a bomb"
        )


def _norm_notes(layers: Sequence[Layer], view: View) -> list[str]:
    notes = []
    if any(layer.norm_assumed for layer in layers):
        notes.append(
            "norms were paired with convolutions by name and order, and convolution, norm, ReLU is "
            "assumed to be their order: a state dict does not tell (--network or ONNX does)"
        )
    assumed = Counter(x.norm.eps for x in layers if x.norm is not None and x.norm.eps_assumed)
    notes += [
        f"an epsilon of {eps:g} is assumed in {count} of the norms, as their framework has it; "
        "--eps sets it"
        for eps, count in sorted(assumed.items())
    ]
    bare = sum(layer.norm is None for layer in layers)
    if view is View.EFFECTIVE and bare:
        notes.append(
            f"{bare} of {len(layers)} layers have no known batch norm and are measured raw"
        )
    return notes


def chosen_kinds(kinds: Iterable[Kind | str] | str, /) -> tuple[Kind, ...]:
    """Kinds by their names; "all" stands for every one.

    Raises
    ------
    UsageError
        If a name is unknown.
    """
    names = [kinds] if isinstance(kinds, str) else list(kinds)
    if "all" in names:
        return tuple(Kind)
    return tuple(choice(Kind, name, "kind") for name in names)


def choice(enum: type[E], value: str, option: str, /) -> E:
    """Member of a closed choice by its value.

    Raises
    ------
    UsageError
        If there is none.
    """
    try:
        return enum(value)
    except ValueError:
        known = ", ".join(str(member) for member in enum)
        raise UsageError(f"unknown {option} {value!r}; there are {known}") from None


def compiled(pattern: str | None, option: str, /) -> re.Pattern[str] | None:
    """Compile a user's regular expression.

    Raises
    ------
    UsageError
        If it is broken.
    """
    if pattern is None:
        return None
    try:
        return re.compile(pattern)
    except re.error as exc:
        raise UsageError(f"--{option} {pattern!r}: broken regular expression: {exc}") from exc
