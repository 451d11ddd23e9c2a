"""Results as Rich tables for people."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planescope.measurement import LayerMeasurement, Measurement, PoolMeasurement

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Row = LayerMeasurement | PoolMeasurement

# Wide enough for every column: a pipe has no edge at which to cut a name.
PIPE_WIDTH = 240


@dataclass(frozen=True)
class _Column:
    """A column of the table: what it shows of a row, and whether this table needs it."""

    title: str
    show: Callable[[Row], str]
    needed: Callable[[Measurement], bool] = lambda _: True


def _number(key: str, form: str) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        value = getattr(row, key, None)
        return "" if value is None else format(value, form)

    return show


def _text(key: str) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        value = getattr(row, key, None)
        return "" if value is None else str(value)

    return show


def _any(key: str) -> Callable[[Measurement], bool]:
    return lambda m: any(getattr(layer, key) is not None for layer in m.layers)


def _left_out(row: Row) -> str:
    parts = ((row.degenerate, "zero"), (row.non_finite, "not finite"))
    return ", ".join(f"{count} {what}" for count, what in parts if count)


def _verdict(row: Row) -> str:
    """A word and a sign, so that colour is not all that tells."""
    if isinstance(row, PoolMeasurement):
        return f"{row.biased_layers} of {row.layers}"
    if not row.biased or row.negative_mass is None:
        return ""
    return "▼ away" if row.negative_mass > 0.5 else "▲ toward"


_COLUMNS = (
    _Column("layer", lambda row: getattr(row, "name", "network")),
    _Column("kind", _text("kind"), lambda m: len({layer.kind for layer in m.layers}) > 1),
    _Column("stage", _text("stage"), _any("stage")),
    _Column("input", _text("input"), _any("stage")),
    _Column("filters", _number("filters", "d")),
    _Column("left out", _left_out, lambda m: bool(m.network.degenerate + m.network.non_finite)),
    _Column("fan-in", _text("fan_in")),
    _Column("negative mass", _number("negative_mass", ".3f")),
    _Column("mean cosine", _number("mean_cosine", "+.4f")),
    _Column("z", _number("z", "+.1f")),
    _Column("q mass", _number("q_mass", ".1e")),
    _Column("q cosine", _number("q_cosine", ".1e")),
    _Column("biased", _verdict),
    _Column("neg. centre", _number("negative_centre", ".3f"), _any("negative_centre")),
    _Column("mean centre", _number("mean_centre", "+.3f"), _any("negative_centre")),
    _Column("active", _number("activation_rate", ".3f"), _any("activation_rate")),
    _Column("l2", _number("l2", ".3f"), _any("l2")),
    _Column("linf", _number("linf", ".3f"), _any("linf")),
)
_LEFT_ALIGNED = ("layer", "kind", "input", "left out", "biased")


def console(*, stderr: bool = False) -> Console:
    """Console for people; as wide as needed where there is no terminal."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    # highlight and markup off: names come from files and are shown as they are.
    return Console(
        stderr=stderr,
        width=None if stream.isatty() else PIPE_WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
    )


def print_measurement(measurement: Measurement) -> None:
    """Print the table of a network, its pool last, and what it says in a sentence."""
    from rich.text import Text

    out = console()
    source = measurement.source
    out.print(Text(f"{source.path} ({source.format}), {measurement.view} view", style="bold"))
    out.print(_table(measurement))
    out.print(Text(verdict(measurement)))
    for line in (*measurement.notes, *_skipped_lines(measurement)):
        out.print(Text(line, style="dim"))


def verdict(measurement: Measurement) -> str:
    """Which layers are biased, in a sentence."""
    network = measurement.network
    biased = [layer for layer in measurement.layers if layer.biased]
    if not biased:
        return f"None of {network.layers} layers is biased beyond chance (corrected p >= 0.05)."
    strongest = max(biased, key=lambda layer: (layer.agreement or 0.0, -(layer.q_mass or 0.0)))
    away = sum((layer.negative_mass or 0.0) > 0.5 for layer in biased)
    return (
        f"{len(biased)} of {network.layers} layers are biased beyond chance (corrected p < 0.05): "
        f"the normals of {away} point away from the positive orthant (▼), of {len(biased) - away} "
        f"toward it (▲); most of all {strongest.name}, with a negative mass of "
        f"{strongest.negative_mass:.3f}."
    )


def _table(measurement: Measurement) -> Table:
    from rich import box
    from rich.table import Table

    columns = [column for column in _COLUMNS if column.needed(measurement)]
    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        left = column.title in _LEFT_ALIGNED
        # A name that does not fit is folded: cut, two layers could look the same.
        table.add_column(column.title, justify="left" if left else "right", overflow="fold")
    last = len(measurement.layers) - 1
    for i, layer in enumerate(measurement.layers):
        style = "bold" if layer.biased else None
        cells = [column.show(layer) for column in columns]
        table.add_row(*cells, style=style, end_section=i == last)
    table.add_row(*(column.show(measurement.network) for column in columns))
    return table


def _skipped_lines(measurement: Measurement) -> list[str]:
    """One line a reason, with how many layers it left out."""
    reasons: dict[str, list[str]] = {}
    for skipped in measurement.skipped:
        reasons.setdefault(skipped.reason, []).append(skipped.name)
    return [
        f"left out: {names[0] if len(names) == 1 else f'{len(names)} layers'} ({reason})"
        for reason, names in reasons.items()
    ]
