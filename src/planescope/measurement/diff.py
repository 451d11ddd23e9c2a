"""From two checkpoints to what moved between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from planescope.files.errors import NoLayersError
from planescope.hyperplanes.chance import called_level
from planescope.hyperplanes.distances import distances
from planescope.hyperplanes.layer import Array, Input, Kind, Layer, Skipped, Structure, View
from planescope.hyperplanes.statistics import Filters
from planescope.measurement.assemble import (
    assemble,
    finite,
    measure_layers,
    scale_in_view,
    size_of,
)
from planescope.measurement.choice import DEFAULT_KINDS, Choice, hints_of, select
from planescope.measurement.difference import Difference, LayerDifference, Side
from planescope.measurement.matching import Matched, Pair, by_filters, by_names
from planescope.measurement.measure import norm_notes, refuse_claims
from planescope.measurement.record import LayerMeasurement, Measurement, filter_values
from planescope.measurement.source import Found, find
from planescope.measurement.verdict import finding

# Norms and projections that agree so well, relative to their size, are of the same weights; weights
# that lie further apart than the second stand in another order then.
SAME, REORDERED = 1e-5, 1e-2


@dataclass(frozen=True)
class _Moved:
    """The parts of a difference that need the weights of both."""

    l2: float | None
    linf: float | None
    zeros_before: float
    zeros_after: float


def diff(
    before: Any,
    after: Any,
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
    on_layer: Callable[[int, int, str], None] | None = None,
) -> Difference:
    """Tell what moved between two checkpoints of a network: fine-tuned, pruned, converted.

    Each layer of both is measured once, as `measure` does. Layers are matched by name and shape;
    where the names say nothing, as between formats, by shape and by what their filters are.

    Parameters
    ----------
    before, after : as `planescope.measure` takes
        Any two forms: a file and a live module, a ``.pt`` and an ``.onnx``.
    view : {"raw", "effective"}
        With "effective" the weights too are those that act behind batch norm, so that a network
        whose norms were folded is compared with the one it came from.
    kinds, layers, transposed, layout, norms, eps, entry, network
        As in `planescope.measure`, for both.
    on_layer : callable, optional
        Called with (layers done, layers in all, name of the next one), to show progress.

    Returns
    -------
    Difference

    Raises
    ------
    UsageError, CheckpointError, MissingDependencyError
        As `planescope.measure`.
    NoLayersError
        If one has no layer left to measure, or the two have no layer in common.
    """
    choice = Choice.of(kinds, layers, view)
    hints = hints_of(transposed=transposed, layout=layout, norms=norms, eps=eps)
    found = [find(x, hints=hints, network=network, entry=entry) for x in (before, after)]
    picked, left_out = zip(*(select(one, choice) for one in found), strict=True)
    for one, chosen in zip(found, picked, strict=True):
        refuse_claims(one.source, chosen)
    work = _Work(found, picked, choice.view, on_layer)
    named, rest_before, rest_after = by_names(*picked)
    moved = {id(pair.before): work.moved(pair) for pair in named}
    for side, rest in enumerate((rest_before, rest_after)):
        for layer in rest:
            work.measure(side, layer)
    told = by_filters(rest_before, rest_after, work.filters)
    moved |= {id(pair.before): work.moved(pair) for pair in told}
    pairs = {id(pair.before): pair for pair in (*named, *told)}
    if not pairs:
        raise NoLayersError(
            f"{found[0].source.path} and {found[1].source.path}: have no layer in common, by name "
            "and shape; give two checkpoints of one network"
        )
    first, second = (work.table(side, left_out[side]) for side in (0, 1))
    rows_of = {
        id(layer): row
        for layers, table in zip(picked, (first, second), strict=True)
        for layer, row in zip(layers, table.layers, strict=True)
    }
    ordered = [pairs[id(layer)] for layer in picked[0] if id(layer) in pairs]
    rows = [
        _row(pair, moved[id(pair.before)], rows_of[id(pair.before)], rows_of[id(pair.after)])
        for pair in ordered
    ]
    partners = {id(layer) for pair in ordered for layer in (pair.before, pair.after)}
    skipped = [
        (*_without_partner(layers, partners), *table.skipped)
        for layers, table in zip(picked, (first, second), strict=True)
    ]
    return Difference(
        before=found[0].source,
        after=found[1].source,
        view=choice.view,
        layers=tuple(row for row, _ in rows),
        skipped_before=skipped[0],
        skipped_after=skipped[1],
        notes=tuple(_notes((first, second), ordered, [note for _, note in rows if note])),
        level_before=called_level([layer.p_mass for layer in first.layers]),
        level_after=called_level([layer.p_mass for layer in second.layers]),
        measurements=(first, second),
    )


class _Work:
    """Measures each layer once; the weights of a pair are read together, and let go."""

    def __init__(
        self,
        found: Sequence[Found],
        layers: Sequence[Sequence[Layer]],
        view: View,
        on_layer: Callable[[int, int, str], None] | None,
    ) -> None:
        self._found, self._layers, self._view = found, layers, view
        self._on_layer, self._total = on_layer, sum(map(len, layers))
        self._measured: dict[int, LayerMeasurement] = {}
        self.filters: dict[int, Filters] = {}

    def measure(self, side: int, layer: Layer) -> None:
        if self._on_layer is not None:
            self._on_layer(len(self._measured), self._total, layer.name)
        one = measure_layers([layer], source=self._found[side].source, view=self._view)
        self._measured[id(layer)] = one.layers[0]
        self.filters[id(layer)] = filter_values(one, one.layers[0])

    def moved(self, pair: Pair) -> _Moved:
        """Measure a pair whose layers are not, and hold their weights against each other."""
        kept = [_read_once(layer) for layer in (pair.before, pair.after)]
        for side, (layer, held) in enumerate(zip((pair.before, pair.after), kept, strict=True)):
            if id(layer) not in self._measured:
                self.measure(side, held)
                self._measured[id(layer)] = self._measured.pop(id(held))
                self.filters[id(layer)] = self.filters.pop(id(held))
        rows = [_host(layer.weight.read()).reshape(layer.filters, layer.fan_in) for layer in kept]
        zeros = [1.0 - np.count_nonzero(part) / max(1, part.size) for part in rows]
        if self._view is View.EFFECTIVE:
            rows = [_scaled(part, layer) for part, layer in zip(rows, kept, strict=True)]
        with np.errstate(all="ignore"):
            l2, linf = distances(rows[1], rows[0])
        return _Moved(finite(l2), finite(linf), *zeros)

    def table(self, side: int, left_out: Sequence[Skipped]) -> Measurement:
        """Return the measurement of a checkpoint, as `planescope.measure` gives it."""
        found, layers = self._found[side], self._layers[side]
        return assemble(
            [self._measured[id(layer)] for layer in layers],
            source=found.source,
            view=self._view,
            skipped=(*left_out, *found.skipped),
            notes=(*found.notes, *norm_notes(layers, self._view)),
        )


def _without_partner(layers: Iterable[Layer], partners: Collection[int]) -> Iterator[Skipped]:
    for layer in layers:
        if id(layer) not in partners:
            reason = f"{size_of(layer)}: no layer of the other is it, by name and shape"
            yield Skipped(name=layer.name, reason=reason)


def _read_once(layer: Layer) -> Layer:
    """Return the layer with its weight kept from the first reading on."""
    weight = layer.weight
    kept: list[Array] = []

    def read() -> Array:
        if not kept:
            kept.append(weight.read())
        return kept[0]

    return replace(layer, weight=replace(weight, read=read))


def _row(
    pair: Pair, moved: _Moved, before: LayerMeasurement, after: LayerMeasurement
) -> tuple[LayerDifference, str | None]:
    assert before.values is not None  # noqa: S101 - measured here, not loaded
    assert after.values is not None  # noqa: S101
    values = before.values, after.values
    sided = values[0].sided & values[1].sided & values[0].usable & values[1].usable
    was, now = ((v.projection <= 0)[sided] for v in values)
    note = None
    if moved.l2 is not None and moved.l2 > REORDERED and _same_sums(*values):
        moved = replace(moved, l2=None, linf=None)
        note = (
            f"{before.name}: its filters have the same lengths and sums in both, so its inputs "
            "stand in another order; distances would compare weights of different inputs"
        )
    row = LayerDifference(
        name=before.name,
        other=after.name,
        matched=pair.by,
        kind=before.kind,
        filters=before.filters,
        fan_in=before.fan_in,
        mass_before=before.negative_mass,
        mass_after=after.negative_mass,
        cosine_before=before.mean_cosine,
        cosine_after=after.mean_cosine,
        centre_before=before.mean_centre,
        centre_after=after.mean_centre,
        biased_before=before.biased,
        biased_after=after.biased,
        turned_away=int(np.count_nonzero(~was & now)),
        turned_toward=int(np.count_nonzero(was & ~now)),
        l2=moved.l2,
        linf=moved.linf,
        zeros_before=moved.zeros_before,
        zeros_after=moved.zeros_after,
        input=after.input if after.input is not Input.UNKNOWN else before.input,
        side_before=_side(before),
        side_after=_side(after),
        tested_before=_tested(before),
        tested_after=_tested(after),
    )
    return row, note


def _side(layer: LayerMeasurement) -> Side:
    found = finding(layer)
    if not found.by:
        return Side.NONE
    return Side.AWAY if found.away else Side.TOWARD


def _tested(layer: LayerMeasurement) -> int:
    """Return how many filters have a side."""
    return layer.filters - layer.degenerate - layer.non_finite - layer.sideless


def _same_sums(one: Filters, other: Filters) -> bool:
    pairs = ((one.projection, other.projection), (one.norm, other.norm))
    size = float(np.nanmax(one.norm, initial=0.0))
    return all(float(np.nanmax(abs(a - b), initial=0.0)) <= SAME * size for a, b in pairs)


def _notes(
    tables: Sequence[Measurement], pairs: Sequence[Pair], reordered: Sequence[str]
) -> Iterator[str]:
    counts = Counter(pair.by for pair in pairs)
    for by, how in _HOW.items():
        if counts[by]:
            yield f"{counts[by]} of {len(pairs)} layers were matched {how}"
    yield from reordered
    folded = sum((pair.before.norm is None) != (pair.after.norm is None) for pair in pairs)
    if folded:
        yield (
            f"{folded} of {len(pairs)} layers have a batch norm in one of the two and none in the "
            "other"
            + (
                ", where it may be folded into the weights: --view effective compares what acts"
                if tables[0].view is View.RAW
                else "; the weights that act are compared"
            )
        )
    for table, which in zip(tables, ("first", "second"), strict=True):
        yield from (f"the {which}: {note}" for note in table.notes)


_HOW = {
    Matched.ENDING: "by the ends of their names",
    Matched.SHAPE: "by shape, being the only ones left of theirs",
    Matched.FILTERS: "by shape and by what their filters are",
    Matched.ORDER: "by shape and order alone, which may deceive",
}


def _scaled(rows: Array, layer: Layer) -> Array:
    scale = scale_in_view(layer, View.EFFECTIVE)
    return rows if scale is None else rows * _host(scale)[:, None].astype(rows.dtype)


def _host(values: Any) -> Array:
    """Bring an array to NumPy in a type that it has: bfloat16 widened, integers as they are."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if str(values.dtype) == "torch.bfloat16":
            values = values.float()
    return np.asarray(values)
