"""Results as Rich tables for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from planescope.cli.printing import PIPE_WIDTH, console, table
from planescope.files.errors import counted
from planescope.files.results.result import skipped_lines
from planescope.measurement.record import LayerMeasurement, Measurement, PoolMeasurement

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Row = LayerMeasurement | PoolMeasurement


@dataclass(frozen=True)
class _Column:
    """A column of the table.

    `needed` says whether this table has anything to put there; where the terminal is too narrow for
    all columns, those of the highest `rank` go first.
    """

    title: str
    show: Callable[[Row], str]
    needed: Callable[[Measurement], bool] = lambda _: True
    rank: int = 0


def _number(key: str, form: str) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        value = getattr(row, key, None)
        return "" if value is None else format(value, form)

    return show


def _p_value(key: str) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        value = getattr(row, key, None)
        if value is None:
            return ""
        # 0 would read as certain; it is only below what a float holds.
        return "< 1e-300" if value < 1e-300 else f"{value:.1e}"

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


def _name(row: Row) -> str:
    if isinstance(row, LayerMeasurement):
        return row.name
    if row.stage is None:
        return "network"
    return f"stage {row.stage}, {counted(row.layers, 'layer')}"


def _verdict(row: Row) -> str:
    """Return a word and a sign, so that colour is not all that tells."""
    if isinstance(row, PoolMeasurement):
        return f"{row.biased_layers} of {row.layers}"
    if not row.biased or row.negative_mass is None:
        return ""
    return "▼ away" if row.negative_mass > 0.5 else "▲ toward"


_COLUMNS = (
    _Column("layer", lambda row: _name(row)),
    _Column("kind", _text("kind"), lambda m: len({layer.kind for layer in m.layers}) > 1, rank=2),
    _Column("stage", _text("stage"), _any("stage"), rank=3),
    _Column("input", _text("input"), _any("stage"), rank=2),
    _Column("filters", _number("filters", "d"), rank=1),
    _Column("left\nout", _left_out, lambda m: bool(m.network.degenerate + m.network.non_finite)),
    _Column("fan-in", _text("fan_in"), rank=5),
    _Column("no\nside", _number("sideless", "d"), lambda m: bool(m.network.sideless), rank=3),
    _Column("negative\nmass", _number("negative_mass", ".3f")),
    _Column("mean\ncosine", _number("mean_cosine", "+.4f")),
    _Column("z", _number("z", "+.1f"), rank=6),
    _Column("q\nmass", _p_value("q_mass"), rank=1),
    _Column("q\ncosine", _p_value("q_cosine"), rank=4),
    _Column("biased", _verdict),
    _Column("neg.\ncentre", _number("negative_centre", ".3f"), _any("negative_centre"), rank=1),
    _Column("mean\ncentre", _number("mean_centre", "+.3f"), _any("negative_centre"), rank=5),
    _Column("active", _number("activation_rate", ".3f"), _any("activation_rate"), rank=1),
    _Column("l2", _number("l2", ".3f"), _any("l2"), rank=1),
    _Column("linf", _number("linf", ".3f"), _any("linf"), rank=4),
)
_LEFT_ALIGNED = ("layer", "kind", "input", "left\nout", "biased")


def print_measurement(
    measurement: Measurement,
    *,
    pairing: bool = False,
    top: int | None = None,
    by_stage: bool = False,
) -> None:
    """Print the table of a network, its pool last, and what it says in a sentence.

    With `pairing` the norm behind each layer follows, and what told it. `top` is how many layers
    are shown, those that are turned most; with `by_stage` stages take the place of layers.
    """
    from rich.text import Text

    out = console()
    source = measurement.source
    out.print(Text(f"{source.path} ({source.format}), {measurement.view} view", style="bold"))
    rows, told = _rows(measurement, top, by_stage=by_stage)
    fitting, dropped = _fitting_table(measurement, rows, out)
    out.print(fitting)
    if told:
        out.print(Text(told, style="dim"))
    if dropped:
        titles = ", ".join(column.title.replace("\n", " ") for column in dropped)
        out.print(Text(f"left out at {out.width} columns: {titles}; --json has them", style="dim"))
    # A pipe has no edge at which to break a sentence.
    out.print(Text(measurement.verdict), soft_wrap=not out.is_terminal)
    if pairing:
        for layer in measurement.layers:
            told = "no norm" if layer.norm is None else f"{layer.norm} (told by {layer.pairing})"
            out.print(Text(f"{layer.name}: {told}"))
    for line in (*measurement.notes, *skipped_lines(measurement.skipped)):
        out.print(Text(line, style="dim"))


def _rows(
    measurement: Measurement, top: int | None, *, by_stage: bool
) -> tuple[Sequence[Row], str]:
    """Return what the table has a row of, and what is said of the rest."""
    if by_stage:
        if not measurement.stages:
            return measurement.layers, "no graph tells the stages; give --network"
        return measurement.stages, f"by stage: {counted(len(measurement.layers), 'layer')}"
    layers = measurement.layers
    if top is None or top >= len(layers):
        return layers, ""

    def strength(layer: LayerMeasurement) -> tuple[float, float, float]:
        share = layer.negative_centre
        return (
            max(layer.agreement or 0.0, 0.0 if share is None else abs(2 * share - 1)),
            abs(layer.z or 0.0),
            layer.filters,
        )

    chosen = sorted(layers, key=strength, reverse=True)[:top]
    told = f"{top} of {counted(len(layers), 'layer')}, turned most by mass or centre"
    return [layer for layer in layers if layer in chosen], told


def _fitting_table(
    measurement: Measurement, rows: Sequence[Row], out: Console
) -> tuple[Table, list[_Column]]:
    """Return the table with as many columns as the terminal has room for, and those left out."""
    wanted_columns = columns = [column for column in _COLUMNS if column.needed(measurement)]
    while True:
        fitting = _table(measurement, rows, columns)
        rank = max(column.rank for column in columns)
        # Measured against an endless line: against the terminal's own, every table fits, folded.
        wanted = out.measure(fitting, options=out.options.update(width=PIPE_WIDTH)).maximum
        if rank == 0 or wanted <= out.width:
            return fitting, [column for column in wanted_columns if column not in columns]
        columns = [column for column in columns if column.rank < rank]


def _table(measurement: Measurement, rows: Sequence[Row], columns: list[_Column]) -> Table:
    from rich import box

    made = table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        left = column.title in _LEFT_ALIGNED
        # A name that does not fit is folded: cut, two layers could look the same.
        justify: Literal["left", "right"] = "left" if left else "right"
        made.add_column(column.title, justify=justify, overflow="fold")
    last = len(rows) - 1
    for i, row in enumerate(rows):
        style = "bold" if getattr(row, "biased", False) else None
        cells = [column.show(row) for column in columns]
        made.add_row(*cells, style=style, end_section=i == last)
    made.add_row(*(column.show(measurement.network) for column in columns))
    return made
