"""The table of resets on a terminal, and what it says in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from planescope.cli.printing import console
from planescope.cli.printing import table as empty_table
from planescope.files.errors import counted

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from planescope.criticality.resets.record import ResetCell, Resets


def print_resets(resets: Resets, *, top: int | None = None) -> None:
    """Print relative drops, layers × snapshots, and what they say in a sentence.

    `top` is how many rows are shown, those that cost most at the first snapshot.
    """
    from rich.text import Text

    # Not at the top: the help would load torch.
    from planescope.criticality.resets.verdict import title, trained_line

    out = console()
    out.print(Text(f"{resets.source}: {resets.network} on {resets.data}", style="bold"))
    out.print(trained_line(resets))
    if resets.preprocessing is not None:
        out.print(Text(f"inputs: {resets.preprocessing}", style="dim"))
    warnings = [note for note in resets.notes if note.startswith("no relative drops")]
    for note in warnings:
        out.print(Text(note, style="bold"))
    rows = _dearest(resets, top)
    out.print(_fitting_table(resets, rows, out))
    if len(rows) < len(resets.rows):
        every = counted(len(resets.rows), "row")
        where = title(resets.snapshots[0])
        out.print(Text(f"{len(rows)} of {every}, which cost most at {where}", style="dim"))
    out.print(Text(resets.verdict), soft_wrap=not out.is_terminal)
    for note in resets.notes:
        if note not in warnings:
            out.print(Text(note, style="dim"))


def _dearest(resets: Resets, top: int | None) -> list[str]:
    """Return the rows that cost most at the first snapshot, in the order of the network."""
    if top is None or top >= len(resets.rows):
        return list(resets.rows)
    first = resets.snapshots[0]

    def cost(row: str) -> float:
        costs = [c for cell in resets.at(row, first) if (c := _cost(cell)) is not None]
        return sum(costs) / len(costs) if costs else -math.inf

    kept = sorted(resets.rows, key=cost, reverse=True)[:top]
    return [row for row in resets.rows if row in kept]


def _cost(cell: ResetCell) -> float | None:
    """Return what a cell costs, by the first of its quantities that there is; more is dearer."""
    if cell.loss is None and cell.value is not None:
        return -cell.value
    found = (cell.loss, cell.disagreement, cell.relative_l2)
    return next((one for one in found if one is not None), None)


def _fitting_table(resets: Resets, rows: Sequence[str], out: Console) -> Table:
    """Make a table of as many snapshots as there is room for, first and last among them."""
    every = list(resets.snapshots)
    for count in range(len(every), 1, -1):
        shown = [every[round(i * (len(every) - 1) / (count - 1))] for i in range(count)]
        table = _table(resets, rows, shown, left_out=len(every) - count)
        if out.measure(table, options=out.options.update(width=1 << 16)).maximum <= out.width:
            return table
    return _table(resets, rows, every[:1], left_out=len(every) - 1)


def _table(
    resets: Resets, rows: Sequence[str], snapshots: list[int | str], *, left_out: int
) -> Table:
    from rich import box

    from planescope.criticality.resets.verdict import cells_are, title

    kind = cells_are(resets)
    first = resets.snapshots[0]
    told = any(cell.critical is not None for cell in resets.cells if cell.snapshot == first)
    more = f"; critical: of {title(first)}" if told and len(resets.snapshots) > 1 else ""
    more += f"; {counted(left_out, 'snapshot')} left out, --json has all" if left_out else ""
    table = empty_table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        caption=f"{kind}{more}",
        caption_justify="left",
    )
    table.add_column("layer", overflow="fold")
    table.add_column("negative\nmass", justify="right")
    for snapshot in snapshots:
        table.add_column(title(snapshot), justify="right", overflow="fold")
    if told:
        table.add_column("critical", justify="right")
    layers = {layer.name: layer for layer in resets.layers}
    for row in rows:
        mass = layers[row].negative_mass if row in layers else None
        shown = "" if mass is None else f"{mass:.3f}"
        style = "bold" if row in layers and layers[row].biased else None
        cells = [resets.shown(row, s) for s in snapshots]
        if told:
            cells.append(resets.critical(row, first) or "")
        table.add_row(row, shown, *cells, style=style)
    return table
