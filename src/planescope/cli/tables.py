"""Results as Rich tables for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from planescope.cli.printing import PIPE_WIDTH, console, table
from planescope.hyperplanes.layer import Skipped
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


def _verdict(row: Row) -> str:
    """Return a word and a sign, so that colour is not all that tells."""
    if isinstance(row, PoolMeasurement):
        return f"{row.biased_layers} of {row.layers}"
    if not row.biased or row.negative_mass is None:
        return ""
    return "▼ away" if row.negative_mass > 0.5 else "▲ toward"


_COLUMNS = (
    _Column("layer", lambda row: getattr(row, "name", "network")),
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


def print_measurement(measurement: Measurement, *, pairing: bool = False) -> None:
    """Print the table of a network, its pool last, and what it says in a sentence.

    With `pairing` the norm behind each layer follows, and what told it.
    """
    from rich.text import Text

    out = console()
    source = measurement.source
    out.print(Text(f"{source.path} ({source.format}), {measurement.view} view", style="bold"))
    out.print(_fitting_table(measurement, out))
    out.print(Text(measurement.verdict))
    if pairing:
        for layer in measurement.layers:
            told = "no norm" if layer.norm is None else f"{layer.norm} (told by {layer.pairing})"
            out.print(Text(f"{layer.name}: {told}"))
    for line in (*measurement.notes, *skipped_lines(measurement.skipped)):
        out.print(Text(line, style="dim"))


def _fitting_table(measurement: Measurement, out: Console) -> Table:
    """Return the table with as many columns as the terminal has room for."""
    columns = [column for column in _COLUMNS if column.needed(measurement)]
    while True:
        fitting = _table(measurement, columns)
        rank = max(column.rank for column in columns)
        # Measured against an endless line: against the terminal's own, every table fits, folded.
        wanted = out.measure(fitting, options=out.options.update(width=PIPE_WIDTH)).maximum
        if rank == 0 or wanted <= out.width:
            return fitting
        columns = [column for column in columns if column.rank < rank]


def _table(measurement: Measurement, columns: list[_Column]) -> Table:
    from rich import box

    made = table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        left = column.title in _LEFT_ALIGNED
        # A name that does not fit is folded: cut, two layers could look the same.
        justify: Literal["left", "right"] = "left" if left else "right"
        made.add_column(column.title, justify=justify, overflow="fold")
    last = len(measurement.layers) - 1
    for i, layer in enumerate(measurement.layers):
        style = "bold" if layer.biased else None
        cells = [column.show(layer) for column in columns]
        made.add_row(*cells, style=style, end_section=i == last)
    made.add_row(*(column.show(measurement.network) for column in columns))
    return made


def skipped_lines(skipped: Iterable[Skipped], words: str = "left out", /) -> list[str]:
    """Return one line a reason, with how many layers it left out."""
    reasons: dict[str, list[str]] = {}
    for each in skipped:
        reasons.setdefault(each.reason, []).append(each.name)
    return [
        f"{words}: {names[0] if len(names) == 1 else f'{len(names)} layers'} ({reason})"
        for reason, names in reasons.items()
    ]
