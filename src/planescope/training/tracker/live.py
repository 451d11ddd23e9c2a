"""The layers of a network in training: found once, measured whenever asked, where they are."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import ref

import numpy as np

from planescope.hyperplanes import geometry
from planescope.hyperplanes.layer import Array, Layer, Tensor, View, with_tensors
from planescope.measurement.assemble import (
    Observed,
    assemble,
    filters_on_host,
    in_view,
    layer_measurement,
)
from planescope.measurement.choice import Choice, select
from planescope.measurement.record import Measurement
from planescope.measurement.source import Found, find
from planescope.networks.live.copies import is_undrawn, plain_name
from planescope.networks.live.module import unwrapped
from planescope.training.tracker import abreast, onepass
from planescope.training.tracker.reference import Owner, Start, Starts, beside

if TYPE_CHECKING:
    from torch import nn

# Below as many weights, to start threads costs more than they save.
_WORTH_THREADS = 1 << 20


@dataclass(frozen=True, eq=False, slots=True)
class Live:
    """The chosen layers of a network, with what tells whether the network is still the same.

    `parts` names for each layer that is a module the one whose output enters the ReLU; `owners`
    give the module that each layer is of.
    """

    layers: tuple[Layer, ...]
    found: Found
    signature: tuple[Any, ...]
    parts: Mapping[str, str]
    owners: Mapping[str, Owner]


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Reading:
    """The values that an update took of a layer, on its device; nothing has been waited for."""

    layer: Layer
    planes: geometry.Hyperplanes
    centre: Array | None
    start: Start | None
    moved: tuple[Array | float, Array | float] | None  # length and peak of the way from the start
    observed: Observed | None


# What an update took of all layers, once it is asked for.
Readings = Callable[[], Sequence[Reading]]


def find_live(model: nn.Module, choice: Choice, /) -> Live:
    """Find the layers of a module.

    Raises
    ------
    NoLayersError
        If none is left to measure.
    UsageError
        If a weight has no values yet.
    """
    found = find(unwrapped(model))
    chosen, skipped = select(found, choice)
    layers = tuple(_named_plainly(layer) for layer in chosen)
    pairs = list(zip(layers, chosen, strict=True))
    root = unwrapped(model)
    # A layer within what `torch.compile` wraps has its plain name; the inner one comes last.
    own = {plain_name(name): name for name, _ in root.named_modules()}
    modules = {plain_name(name): part for name, part in root.named_modules()}
    parts = {
        plain.name: own[part]
        for plain, layer in pairs
        if (part := layer.name if layer.norm is None else layer.norm.name) in own
    }
    owners = {plain.name: ref(modules.get(layer.name, root)) for plain, layer in pairs}
    skipped_too = (*skipped, *found.skipped)
    return Live(layers, replace(found, skipped=skipped_too), signature(model), parts, owners)


def signature(model: nn.Module, /) -> tuple[Any, ...]:
    """Return a key that changes when modules come or go, or their parameters change shape."""
    root = unwrapped(model)
    shapes = (None if is_undrawn(p) else tuple(p.shape) for p in root.parameters())
    return (*map(id, root.modules()), *shapes)


def state(root: nn.Module, /) -> list[tuple[int, int]]:
    """Return a key that changes when an optimiser steps, without a look at the weights."""
    known = (p for p in root.parameters() if not (is_undrawn(p) or p.is_inference()))
    return [(id(p), p._version) for p in known]


def read_layers(
    layers: Sequence[Layer],
    view: View,
    starts: Starts,
    observed: Mapping[str, Observed],
    /,
    *,
    threads: int,
) -> Readings:
    """Take from each layer what its statistics need: queued on an accelerator, done on a CPU."""
    if threads == 1 or sum(layer.filters * layer.fan_in for layer in layers) < _WORTH_THREADS:
        return _queued(layers, view, starts, observed)
    # NumPy lets other threads run meanwhile.
    with ThreadPoolExecutor(min(threads, len(layers))) as pool:
        # Each thread looks at the weights of its layer, which may have to be computed, by itself.
        readings = list(
            pool.map(lambda layer: _read(layer, _rows(layer), view, starts, observed), layers)
        )
    return lambda: readings


def _queued(
    layers: Sequence[Layer], view: View, starts: Starts, observed: Mapping[str, Observed]
) -> Readings:
    """Take what can be taken abreast so, and all else by layers."""
    parts: list[Readings] = []
    window: list[tuple[Layer, Array]] = []

    def take() -> None:
        if window:
            parts.append(_abreast(window, view, starts, observed))
            window.clear()

    for layer in layers:
        rows = _rows(layer)
        if not abreast.can_take(rows):
            take()
            parts.append(_alone(_read(layer, rows, view, starts, observed)))
            continue
        if sum(held.numel() for _, held in window) + rows.numel() > abreast.MOST:
            take()
        window.append((layer, rows))
    take()
    return lambda: [reading for part in parts for reading in part()]


def _rows(layer: Layer) -> Array:
    return layer.weight.read().reshape(layer.filters, layer.fan_in)


def _read(
    layer: Layer, rows: Array, view: View, starts: Starts, observed: Mapping[str, Observed]
) -> Reading:
    with np.errstate(all="ignore"):  # filters that are left out may overflow
        start = starts.of(layer, rows)
        began = None if start is None else beside(start.weight, rows)
        views = [None if array is None else geometry.host_view(array) for array in (rows, began)]
        if views[0] is not None and (began is None or views[1] is not None):
            rows, began = views
            layer = with_tensors(layer, functools.partial(_on_host, layer))
        bias = None if layer.bias is None else layer.bias.read()
        raw, moved = onepass.read(rows, bias, began, eps=layer.weight.eps)
        planes, centre = in_view(layer, raw, view)
    return Reading(
        layer=layer,
        planes=planes,
        centre=centre,
        start=start,
        moved=moved,
        observed=observed.get(layer.name),
    )


def _on_host(layer: Layer, tensor: Tensor) -> Tensor:
    """Copy the small arrays of a layer to NumPy, which saves calls of torch."""
    if tensor is layer.weight:
        return tensor

    def read() -> Array:
        values = tensor.read()
        view = geometry.host_view(values)
        return geometry.host_view(values.float()) if view is None else view

    return replace(tensor, read=read)


def _alone(reading: Reading) -> Readings:
    return lambda: [reading]


def _abreast(
    window: Sequence[tuple[Layer, Array]],
    view: View,
    starts: Starts,
    observed: Mapping[str, Observed],
) -> Readings:
    layers = [layer for layer, _ in window]
    rows = [own for _, own in window]
    began = [starts.of(*one) for one in window]
    then = [beside(start.weight, own) for start, own in zip(began, rows, strict=True) if start]
    taken = abreast.take(layers, rows, then or None)

    def readings() -> list[Reading]:
        return [
            Reading(
                layer=one.layer,
                planes=planes,
                centre=centre,
                start=start,
                moved=one.way,
                observed=observed.get(one.layer.name),
            )
            for one, start in zip(taken(), began, strict=True)
            for planes, centre in [in_view(one.layer, one.planes, view)]
        ]

    return readings


def settle(readings: Readings, found: Found, view: View, notes: Sequence[str], /) -> Measurement:
    """Return the statistics of what an update took; waits for the device.

    The values of single filters are kept.
    """
    with np.errstate(all="ignore"):
        measured = [
            layer_measurement(
                reading.layer,
                filters_on_host(reading.planes, reading.centre, reading.observed),
                l2=_ratio(reading, 0),
                linf=_ratio(reading, 1),
            )
            for reading in readings()
        ]
    return assemble(
        measured,
        source=found.source,
        view=view,
        skipped=found.skipped,
        notes=(*found.notes, *notes),
    )


def _ratio(reading: Reading, which: int) -> float | None:
    """Return the ratio of a change of weights to their size, by length or by peak."""
    if reading.moved is None or reading.start is None:
        return None
    went, was = float(reading.moved[which]), reading.start.extent()[which]
    return went / was if was and math.isfinite(went / was) else None


def _named_plainly(layer: Layer) -> Layer:
    return replace(layer, name=plain_name(layer.name))
