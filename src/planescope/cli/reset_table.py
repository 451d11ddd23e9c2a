"""The table of resets on a terminal, and what it says in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planescope.cli.printing import console
from planescope.cli.printing import table as empty_table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from planescope.criticality.resets.record import Resets


def print_resets(resets: Resets) -> None:
    """Print relative drops, layers × snapshots, and what they say in a sentence."""
    from rich.text import Text

    out = console()
    out.print(Text(f"{resets.source}: {resets.network} on {resets.data}", style="bold"))
    out.print(_trained_line(resets))
    if resets.preprocessing is not None:
        out.print(Text(f"inputs: {resets.preprocessing}", style="dim"))
    warnings = [note for note in resets.notes if note.startswith("no relative drops")]
    for note in warnings:
        out.print(Text(note, style="bold"))
    out.print(_fitting_table(resets, out))
    out.print(Text(resets.verdict), soft_wrap=not out.is_terminal)
    for note in resets.notes:
        if note not in warnings:
            out.print(Text(note, style="dim"))


def _trained_line(resets: Resets) -> str:
    trained = resets.trained
    if resets.split == "synthetic":
        return f"trained: {trained.examples} {resets.data.replace(' of ', ', ', 1)}"
    if trained.value is None:
        return f"trained: {trained.examples} examples without labels"
    if trained.top1 is None:
        interval = "" if trained.low is None else (
            f" (95 % interval {trained.low:.4g} to {trained.high:.4g})"
        )  # fmt: skip
        return (
            f"trained: {resets.metric} {trained.value:.4g} over {trained.examples} examples"
            f"{interval}"
        )
    return (
        f"trained: {trained.top1:.1%} of {trained.examples} examples right "
        f"(95 % interval {trained.low:.1%} to {trained.high:.1%})"
    )


def _fitting_table(resets: Resets, out: Console) -> Table:
    """Make a table of as many snapshots as there is room for, first and last among them."""
    every = list(resets.snapshots)
    for count in range(len(every), 1, -1):
        shown = [every[round(i * (len(every) - 1) / (count - 1))] for i in range(count)]
        table = _table(resets, shown, left_out=len(every) - count)
        if out.measure(table, options=out.options.update(width=1 << 16)).maximum <= out.width:
            return table
    return _table(resets, every[:1], left_out=len(every) - 1)


def _title(snapshot: int | str) -> str:
    return f"epoch {snapshot}" if isinstance(snapshot, int) else snapshot


def _kind(resets: Resets) -> str:
    """Name what the cells of the table show."""
    if any(cell.relative_drop is not None for cell in resets.cells):
        return "relative drop in %, in parentheses within noise"
    if resets.metric is not None:
        return f"{resets.metric}"
    of_classes = any(cell.disagreement is not None for cell in resets.cells)
    return "disagreement with the trained network" if of_classes else "relative change of outputs"


def _table(resets: Resets, snapshots: list[int | str], *, left_out: int) -> Table:
    from rich import box

    kind = _kind(resets)
    first = resets.snapshots[0]
    told = any(cell.critical is not None for cell in resets.cells if cell.snapshot == first)
    more = f"; critical: of {_title(first)}" if told and len(resets.snapshots) > 1 else ""
    more += f"; {left_out} snapshots left out, --json has them" if left_out else ""
    table = empty_table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        caption=f"{kind}{more}",
        caption_justify="left",
    )
    table.add_column("layer", overflow="fold")
    table.add_column("negative\nmass", justify="right")
    for snapshot in snapshots:
        table.add_column(_title(snapshot), justify="right", overflow="fold")
    if told:
        table.add_column("critical", justify="right")
    layers = {layer.name: layer for layer in resets.layers}
    for row in resets.rows:
        mass = layers[row].negative_mass if row in layers else None
        shown = "" if mass is None else f"{mass:.3f}"
        style = "bold" if row in layers and layers[row].biased else None
        cells = [resets.shown(row, s) for s in snapshots]
        if told:
            cells.append(resets.critical(row, first) or "")
        table.add_row(row, shown, *cells, style=style)
    return table
