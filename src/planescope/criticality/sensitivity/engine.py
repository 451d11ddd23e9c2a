"""From layers and what stands in for them to what was counted: one pass, shared prefixes.

To import this is to import torch.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from planescope.criticality.replacements import (
    NOISE_DRAWS,
    Way,
    WayKind,
    checked,
    replaced,
    weakest_filters,
    without_filters,
)
from planescope.criticality.resets.engine.cells import Plan, evaluate
from planescope.criticality.resets.engine.devices import default_memory
from planescope.criticality.resets.engine.progress import Progress, Tally
from planescope.criticality.resets.engine.tensors import Cell, names_of, under_all_names
from planescope.criticality.resets.parts.prefix import trace
from planescope.files.errors import RunError, UsageError
from planescope.networks.answer import ran_out

if TYPE_CHECKING:
    from torch import nn

    from planescope.criticality.sensitivity.inputs.given import Given
    from planescope.criticality.sensitivity.parts import Part

Array = NDArray[Any]
# (cells done, cells in all, name of the layer)
OnCell = Callable[[int, int, str], None]

WHOLE = Cell(
    key="the whole network", layer="the whole network", names=(), read=lambda _: {}, bytes=0
)


@dataclass(eq=False)
class Counted:
    """The counts of a pass.

    Attributes
    ----------
    whole : Tally
        Of the network as it is.
    draws : dict of (str, str) to list of Tally
        By layer and way: one, or several that are averaged.
    note : str
        Why the network was run as a whole for each cell; else "".
    """

    whole: Tally
    draws: dict[tuple[str, str], list[Tally]] = field(default_factory=dict)
    note: str = ""


def applies(way: Way, part: Part, /) -> bool:
    """Tell whether a way can be taken with a layer: no filter of the output layer goes."""
    return not (way.kind is WayKind.FILTERS and part.is_output)


def cells_of(
    module: nn.Module, parts: Sequence[Part], ways: Sequence[Way], /
) -> dict[tuple[str, str], list[Cell]]:
    """Make the cells of all layers and ways; nothing is computed before they are read."""
    state, every = module.state_dict(), names_of(module)
    found: dict[tuple[str, str], list[Cell]] = {}
    for part in parts:
        for way in ways:
            if not applies(way, part):
                continue
            draws = NOISE_DRAWS if way.kind is WayKind.NOISE else 1
            names: tuple[str, ...] = (part.weight,)
            if way.kind is WayKind.FILTERS:
                names = (*names, *filter(None, (part.bias, *part.norm)))
            all_names = {name: every[name] for name in names}
            found[part.layer.name, way.key] = [
                Cell(
                    key=f"{part.layer.name} {way.key} {draw}",
                    layer=part.layer.name,
                    names=tuple(itertools.chain(*all_names.values())),
                    read=functools.partial(
                        _read, {n: state[n] for n in names}, all_names, part, way, draw
                    ),
                    bytes=sum(state[n].nbytes for n in names),
                )
                for draw in range(draws)
            ]
    return found


def _read(
    held: Mapping[str, torch.Tensor],
    names: Mapping[str, tuple[str, ...]],
    part: Part,
    way: Way,
    draw: int,
    device: torch.device,
) -> dict[str, torch.Tensor]:
    made = {
        name: tensor.to(device, held[name].dtype)
        for name, tensor in stand_in(held, part, way, draw).items()
    }
    return under_all_names(made, names)


def stand_in(
    held: Mapping[str, torch.Tensor], part: Part, way: Way, draw: int = 0, /
) -> dict[str, torch.Tensor]:
    """Give the tensors that stand in for a layer's, by their names.

    Parameters
    ----------
    held : mapping of str to torch.Tensor
        The network's own, those of the layer among them.

    Raises
    ------
    UsageError
        If a user's own way gives no weight.
    """
    if way.kind is WayKind.OWN:
        return {part.weight: _of_own(way, held[part.weight])}
    weight = part.filters_first(_wide(held[part.weight]))
    if way.kind is WayKind.FILTERS:
        which = weakest_filters(weight, way.amount)
        others = {
            name: torch.from_numpy(without_filters(_wide(held[name]), which))
            for name in filter(None, (part.bias, *part.norm))
        }
        first = without_filters(weight, which)
        return {part.weight: torch.from_numpy(part.as_held(first)), **others}
    if way.kind is WayKind.PRUNE:  # of equal weights the first, as the module holds them
        return {part.weight: torch.from_numpy(replaced(way, _wide(held[part.weight]))[0])}
    first = replaced(way, weight)[draw]
    return {part.weight: torch.from_numpy(np.ascontiguousarray(part.as_held(first)))}


def _of_own(way: Way, weight: torch.Tensor) -> torch.Tensor:
    assert way.own is not None  # noqa: S101
    try:
        with torch.no_grad():
            found = way.own(weight.detach().clone())
        array = np.asarray(found.detach().cpu() if isinstance(found, torch.Tensor) else found)
    except Exception as exc:  # the user's own code
        raise UsageError(f"way {way.key!r} fails: {type(exc).__name__}: {exc}") from exc
    return torch.from_numpy(checked(way, array, _wide(weight)))


def _wide(tensor: torch.Tensor) -> Array:
    """Return the array of a tensor; of narrow types, exactly, as float32."""
    held = tensor.detach().cpu()
    if held.dtype not in (torch.float32, torch.float64):
        held = held.float()
    return np.array(held.numpy())


def count(
    module: nn.Module,
    given: Given,
    cells: Mapping[tuple[str, str], Sequence[Cell]],
    /,
    *,
    device: torch.device,
    memory: int | None = None,
    precision: str = "32-true",
    on_cell: OnCell | None = None,
) -> Counted:
    """Evaluate all cells on all inputs; no parameter of the module is written.

    Raises
    ------
    RunError
        If memory ran out.
    """
    progress = Progress(None, "")
    every = [WHOLE, *(cell for several in cells.values() for cell in several)]
    plan = Plan(
        examples=given.feed.examples, batch=given.feed.batch,
        memory=memory or default_memory(device), precision=precision, tolerance=None,
    )  # fmt: skip

    def tell(name: str) -> None:
        if on_cell is not None:
            seen = sum(progress[cell.key].examples for cell in every)
            total = plan.examples or seen + 1
            on_cell(seen // total, len(every), name)

    try:
        note = evaluate(
            module, trace(module), given.feed.on(device), every, plan, progress, given.judge,
            device=device, on_cell=tell,
        )  # fmt: skip
    except (RuntimeError, MemoryError) as exc:
        if not ran_out(exc):
            raise
        raise RunError("memory ran out; give a smaller --memory (memory=)") from exc
    if given.watched is not None:
        given.watched.seen.refuse(given.feed.name)
    draws = {key: [progress[cell.key] for cell in several] for key, several in cells.items()}
    return Counted(whole=progress[WHOLE.key], draws=draws, note=note)
