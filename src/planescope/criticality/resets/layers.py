"""The layers that are put back, and the names of the tensors that they hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from planescope.files.errors import UsageError, nearest
from planescope.hyperplanes.layer import Layer
from planescope.measurement.choice import compiled, no_layers, wanted_layers
from planescope.measurement.record import Source
from planescope.measurement.source import Found
from planescope.networks.live.module import read_module
from planescope.networks.load import COUNTER
from planescope.networks.state import exclusions
from planescope.networks.state.layers import find_layers
from planescope.networks.state.layout import named

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import nn

    from planescope.criticality.options import ResetOptions
    from planescope.criticality.resets.trained import Subject


# What belongs to a layer, behind its name; a weight may be stored in parts.
_OWN = re.compile(r"(weight|bias)(_(g|v|u|orig|mask))?|parametrizations\.(weight|bias)\..*")


def chosen_layers(found: Found, options: ResetOptions) -> list[Layer]:
    """Return the layers that the options choose."""
    wanted = wanted_layers(found.layers, options.kinds, options.layers)
    chosen = [layer for layer in found.layers if layer.name in wanted]
    if not chosen:
        raise no_layers(found)
    return chosen


def found_layers(subject: Subject) -> Found:
    """Find all layers of a network."""
    layers, left_out = find_layers(read_module(subject.module))
    source = Source(path=subject.source, format="module", bytes=None)
    idle = [one.name for one in left_out if one.reason == exclusions.UNCALLED]
    notes = (f"not reset, for {exclusions.UNCALLED}: {named(idle)}",) if idle else ()
    return Found(source=source, layers=tuple(layers), skipped=tuple(left_out), notes=notes)


def rows_of(
    module: nn.Module, every: Iterable[Layer], layers: Sequence[Layer], options: ResetOptions
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Return what is reset, by name: each with the names of its parameters and buffers.

    With it, in sentences, which layers a block or a pattern stands for.
    """
    known = {layer.name: layer for layer in every}
    rows = {layer.name: [layer] for layer in layers}
    notes = []
    for text in options.together:
        parts = [part.strip() for part in text.split(",")]
        names = dict.fromkeys(name for part in parts for name in _meant(part, list(known)))
        if len(names) < 2:
            raise UsageError(
                f"groups (--together) {text}: is one layer, {next(iter(names))}; give two layers "
                "or more, with commas between, a block or a pattern"
            )
        row = ",".join(parts)
        rows[row] = [known[name] for name in names]
        if len(names) != len(parts):
            notes.append(f"{row} is {', '.join(names)}, put back together")
    tensors = {
        row: _tensor_names(module, several, with_norm=options.with_norm)
        for row, several in rows.items()
    }
    return tensors, notes


def _meant(part: str, known: Sequence[str]) -> list[str]:
    """Return the layers that a part of a group means: one, those of a block, or of a pattern."""
    if part in known:
        return [part]
    pattern = compiled(part, "together")
    found = [name for name in known if name.startswith(f"{part}.")] or [
        name for name in known if pattern is not None and pattern.fullmatch(name)
    ]
    if not found:
        raise UsageError(f"no layer is called {part!r}; {nearest(part, known)}")
    return found


def _tensor_names(
    module: nn.Module, layers: Sequence[Layer], *, with_norm: bool
) -> tuple[str, ...]:
    """Return the names of the parameters and buffers of layers.

    All names of those that have several.
    """
    held = module.state_dict(keep_vars=True)
    names: set[str] = set()
    for layer in layers:
        names.update(_own_names(layer.name, held))
        if with_norm and layer.norm is not None:
            norm = f"{layer.norm.name}."
            names.update(n for n in held if n.startswith(norm) and not n.endswith(COUNTER))
    own = {id(held[name]) for name in names}
    return tuple(name for name, tensor in held.items() if id(tensor) in own)


def _own_names(layer: str, held: Mapping[str, object]) -> list[str]:
    """Return the names of what a layer is made of.

    Its weight and bias, or all that its module holds.

    Raises
    ------
    UsageError
        If it holds nothing that could be put back.
    """
    prefix = "" if layer == "weight" and layer in held else f"{layer}."  # "" where it is the module
    inner = [name for name in held if name.startswith(prefix)]
    usual = [name for name in inner if _OWN.fullmatch(name.removeprefix(prefix))]
    # A layer that a forward computes is called after the parameter that it computes it from.
    found = usual or inner or [name for name in held if name == layer.partition("@")[0]]
    if not found:
        raise UsageError(f"layer {layer!r} holds nothing that could be reset; leave it out")
    return found
