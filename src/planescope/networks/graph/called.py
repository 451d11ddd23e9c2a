"""The layers of a network as its graph calls them: themselves, as functions, or not at all."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from planescope.hyperplanes.layer import Place
from planescope.networks.graph.functional import Functional
from planescope.networks.graph.unused import SecondLook
from planescope.networks.graph.usage import Usage, key_of
from planescope.networks.live.entries import Survey
from planescope.networks.live.survey import enter_plain, is_known
from planescope.networks.state import exclusions
from planescope.networks.state.layout import named

if TYPE_CHECKING:
    from torch import nn

    from planescope.networks.graph.trace import Traced

# Functions that read the weights of linear layers as those of such: torch's, and torchvision's.
_ATTENTION = re.compile(r"attention|_transformer_encoder_layer_fwd")


@dataclass(frozen=True, eq=False)
class Called:
    """The places of the layers that act, and what to say of others."""

    places: dict[str, Place] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def enter_called(found: Survey, root: nn.Module, traced: Traced, look: SecondLook, /) -> Called:
    """Enter the layers that a graph calls as functions, and leave out those that it does not call.

    Of a network that is one layer itself all that it calls is that layer.
    """
    if root in found.leaves:
        own_places = {n: p for n, p in traced.places.items() if n in found.layers}
        return Called(own_places, traced.notes)
    modules = dict(root.named_modules())
    turned = _put_called_first(found, modules, traced.usage)
    functional = traced.functional
    layers = (n for n in found.layers if n in modules)
    used = {owner for name, owner in found.shared.items() if modules[name] in traced.usage.modules}
    idle = [n for n in layers if n not in used and modules[n] not in traced.usage.modules]
    own = {n: held for n, held in functional.items() if n in idle or n not in found.layers}
    own = {name: held for name, held in own.items() if held.tensors}
    replaced = {name: what for held in own.values() for name, what in _owners(held, idle, modules)}
    for name, what in replaced.items():
        _remove(found, name)
        if name not in own:
            found.leave_out(name, f"not called itself; what acts is {what}")
    for name, held in own.items():
        found.tensors |= {f"{name}.{part}": tensor for part, tensor in held.tensors.items()}
        for source in held.sources:
            found.loose.pop(source, None)
    for name in (n for n in idle if n not in replaced):
        reader = traced.usage.reader_of(dict(modules[name]._parameters).get("weight"))
        if reader is not None and _ATTENTION.search(reader) is None:
            _remove(found, name)
            found.leave_out(
                name,
                f"not called itself: forward gives its weight to {reader}, and how it acts there "
                "is not known",
            )
    told = {one.name for one in found.left_out}
    for name, reason in traced.left_out.items():
        if name not in found.loose and not told.intersection((name, name.rpartition(".")[0])):
            found.leave_out(name, reason)
    unused = look.find_unused(found.layers, traced.usage)
    for name in unused.never:
        _remove(found, name)
        found.leave_out(name, exclusions.UNCALLED)
    places = {turned.get(name, name): place for name, place in traced.places.items()}
    places = {n: p for n, p in places.items() if n in found.layers or n in own}
    fixed = [name for name, held in own.items() if held.is_fixed]
    notes = [f"nothing trains the weights of {named(fixed)}: they are no parameters"] * bool(fixed)
    return Called(places, (*unused.notes, *traced.notes, *notes))


def _put_called_first(found: Survey, modules: dict[str, nn.Module], usage: Usage) -> dict[str, str]:
    """Measure a shared weight with a module that is called, whose bias and place act.

    Return the names of those that it was to be measured with, each with that of the other.
    """
    turned: dict[str, str] = {}
    for name, owner in found.shared.items():
        is_idle = owner in found.layers and modules[owner] not in usage.modules
        if is_idle and modules[name] in usage.modules and is_known(modules[name]):
            place = found.layers[owner]
            _remove(found, owner)
            found.left_out = [one for one in found.left_out if one.name != name]
            found.leave_out(owner, f"not called itself; its weight acts in {name}")
            enter_plain(found, name, modules[name], place)
            turned[owner] = name
    return turned


def _owners(
    held: Functional, idle: Iterable[str], modules: dict[str, nn.Module]
) -> Iterator[tuple[str, str]]:
    """Yield the layers, themselves not called, whose weight a function is given."""
    parts = held.parameter.split(".")
    holder = modules[".".join(parts[:-1])]
    weight = getattr(holder, parts[-1])
    for name in idle:
        own = dict(modules[name]._parameters).get("weight")
        if own is not None and key_of(own) == key_of(weight):
            yield name, held.name


def _remove(found: Survey, name: str) -> None:
    del found.layers[name]
    for full in [full for full in found.tensors if full.rpartition(".")[0] == name]:
        del found.tensors[full]
