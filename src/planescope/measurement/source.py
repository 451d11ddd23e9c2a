"""Whatever a user has - a path, a name, a module, arrays - opened once, to its layers."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planescope.checkpoints import files, open_model
from planescope.checkpoints.arrays.mappings import is_nested, read_nested
from planescope.checkpoints.entries import without_copies
from planescope.checkpoints.locate import locate
from planescope.files.errors import CheckpointError, UsageError
from planescope.files.reading import size_of
from planescope.hyperplanes.layer import Described, Kind, Layer, Skipped, StateDict, Structure
from planescope.measurement.record import Source
from planescope.networks.live.mapping import read_state_dict
from planescope.networks.live.module import read_module
from planescope.networks.state.layers import Hints, describe
from planescope.networks.state.parametrisations import resolved
from planescope.networks.state.sharing import shared

if TYPE_CHECKING:
    from torch import nn

# Names of networks whose weights come with a library, not from a file.
LIBRARIES = ("torchvision:", "timm:")

_KERAS_MODEL = "keras model"


@dataclass(frozen=True, kw_only=True)
class Found:
    """The layers of a network of every kind, before any is chosen or read."""

    source: Source
    layers: tuple[Layer, ...]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Opened:
    """A source that was read once: its tensors or layers, and the network as far as it is known.

    `network` and `state` are what a module can be built of; `module` is the one there is already.
    """

    source: Source
    contents: StateDict | Described
    network: str | None = None
    state: StateDict | None = None
    module: nn.Module | None = None

    def found(self, hints: Hints | None = None, /) -> Found:
        """Find the layers; their weights stay unread."""
        source, contents = self.source, self.contents
        if isinstance(contents, Described):
            layers, joined = shared(contents.layers, by_content=True)
            return Found(
                source=source,
                layers=tuple(layers),
                skipped=contents.skipped,
                notes=(*contents.notes, *joined, *_unused(source, hints)),
            )
        found = describe(contents, hints)
        notes = [f"measured the state dict found at {contents.entry!r}"] if contents.entry else []
        if contents.note:
            notes.append(contents.note)
        notes += [*contents.notes, *_part_notes(source), *found.notes]
        return Found(source=source, layers=found.layers, skipped=found.skipped, notes=tuple(notes))

    def runnable(self) -> nn.Module:
        """Return the network as a module that data can go through.

        Raises
        ------
        UsageError
            If no network is known.
        CheckpointError
            If the weights do not fit it.
        """
        if self.module is not None:
            return self.module
        if self.source.format == _KERAS_MODEL:
            raise UsageError(
                f"{self.source.path}: data go through torch modules, not through Keras models; "
                "leave out data"
            )
        if self.network is None or self.state is None:
            raise UsageError(
                f"{self.source.path}: data go through a network, not through a file; say which by "
                "--network"
            )
        from planescope.networks.load import load_network

        return load_network(self.network, self.state)


def _unused(source: Source, hints: Hints | None) -> tuple[str, ...]:
    """Say which options were given that a file of its own form takes nothing of."""
    if hints is None or not hints.given:
        return ()
    options = ", ".join(hints.given)
    were = "was" if len(hints.given) == 1 else "were"
    return (
        f"{options} {were} not used: of a {source.format} source layers and norms are read as it "
        "names them",
    )


def open_source(
    x: Any, /, *, network: str | Structure | None = None, entry: str | None = None
) -> Opened:
    """Open whatever `planescope.measure` takes, with what a network tells of its layers.

    Raises
    ------
    UsageError, CheckpointError, MissingDependencyError
        As `planescope.measure`.
    """
    opened = _opened(x, entry)
    if network is None:
        return opened
    source, contents = opened.source, opened.contents
    if isinstance(contents, Described):
        raise UsageError(
            f"{source.path}: a {source.format} file knows its own network; leave out --network"
        )
    state = resolved(contents)
    if isinstance(network, str):
        opened = replace(opened, network=network, state=state)
    return _placed(opened, network, state)


def find(
    x: Any,
    /,
    *,
    hints: Hints | None = None,
    network: str | Structure | None = None,
    entry: str | None = None,
) -> Found:
    """Find the layers of whatever `planescope.measure` takes; their weights stay unread.

    Raises
    ------
    UsageError, CheckpointError, MissingDependencyError
        As `planescope.measure`.
    """
    return open_source(x, network=network, entry=entry).found(hints)


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
    elif match := re.fullmatch(r"(consolidated[._-]?)0*(\d+)(\.\w+)", Path(source.path).name):
        others = sorted(Path(source.path).parent.glob(f"{match[1]}*{match[3]}"))
        if len(others) > 1:
            return [
                f"one of {len(others)} parts of a model, by the names beside it; join them first"
            ]
    return []


def _opened(x: Any, entry: str | None) -> Opened:
    if isinstance(x, (str, os.PathLike)):
        return _from_path(os.fspath(x), entry)
    if isinstance(x, Mapping) and (entry is not None or is_nested(x)):
        source = Source(path=type(x).__name__, format="state dict", bytes=None)
        contents = read_nested(x, entry=entry)
        return Opened(source=source, contents=contents if entry else without_copies(contents))
    if entry is not None:
        raise UsageError("entry= chooses within a file or a mapping; leave it out")
    # On one of its backends a Keras model is a torch module too.
    if _is_keras(x):
        from planescope.checkpoints.keras.live import read_model

        source = Source(path=x.name, format=_KERAS_MODEL, bytes=None)
        return Opened(source=source, contents=read_model(x))
    program: Any = getattr(sys.modules.get("torch.export"), "ExportedProgram", ())
    if isinstance(x, program):
        return _from_module(x.module(), type(x).__name__)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.nn.Module):
        return _from_module(x, type(x).__name__)
    if isinstance(x, Mapping):
        source = Source(path=type(x).__name__, format="state dict", bytes=None)
        return Opened(source=source, contents=without_copies(read_state_dict(x)))
    raise UsageError(
        f"cannot measure a {type(x).__name__}; give a path, a torch module, a Keras model or a "
        "mapping of arrays"
    )


def _from_path(name: str, entry: str | None) -> Opened:
    if name.startswith(LIBRARIES):
        from planescope.networks.build import load_pretrained

        return _from_module(load_pretrained(name), name)
    path = locate(name)
    reader, contents = open_model(path, entry=entry)
    if name.startswith(("https://", "http://")):
        from planescope.checkpoints.ranges import public_name

        name = public_name(name)
    held = sum(size_of(file) for file in files(path, reader))
    return Opened(source=Source(path=name, format=reader.NAME, bytes=held), contents=contents)


def _from_module(module: nn.Module, name: str) -> Opened:
    source = Source(path=name, format="module", bytes=None)
    return Opened(source=source, contents=read_module(module), module=module)


def _is_keras(x: Any) -> bool:
    if sys.modules.keys().isdisjoint(("keras", "tf_keras")):
        return False
    from planescope.checkpoints.keras.live import is_model

    return is_model(x)


def _placed(opened: Opened, network: str | Structure, state: StateDict) -> Opened:
    """Add the places of layers, as the network tells them, to what was opened."""
    if isinstance(network, Structure):
        return replace(opened, contents=_as_recorded(network, state, opened.source))
    # The tables of known networks take a tenth of the time that a small file is measured in.
    from planescope.networks import paper
    from planescope.networks.load import load_network

    try:
        if ":" not in network:
            return replace(opened, contents=paper.match(network, state))
        module = load_network(network, state)
        contents = read_module(module)
        # What was said of the file, as of copies that it holds, stands whoever reads the layers.
        contents = replace(contents, notes=(*state.notes, *contents.notes))
        return replace(opened, contents=contents, module=module)
    except CheckpointError as exc:
        raise CheckpointError(f"{opened.source.path}: {exc}") from exc


def _as_recorded(structure: Structure, state: StateDict, source: Source) -> StateDict:
    """Return the state dict with what was recorded when its network was built.

    Nothing else is guessed.
    """
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
                f"{source.path}: {name} is no {place.kind.words} there, as network.json of its "
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
