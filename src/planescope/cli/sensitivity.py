"""``planescope sensitivity``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from planescope.cli.options import (
    INPUTS,
    NETWORK,
    cell_options,
    check_inputs,
    of_inputs,
    prepared_options,
    typed_command,
)
from planescope.cli.printing import console, plain_table, say_costs
from planescope.cli.progress import layer_progress
from planescope.files.errors import counted
from planescope.files.targets import FIGURES, PAGES, TABLES, check_targets
from planescope.training.memory import keep_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table
    from rich.text import Text

    from planescope.criticality.sensitivity import Cost
    from planescope.criticality.sensitivity.record import LayerSensitivity, Sensitivity


@click.command()
@click.argument("model", metavar="FILE|RUN")
@NETWORK
@click.option(
    "--ways",
    metavar="WAYS",
    help="prune:0.9,filters:0.5,rank:0.25,bits:3,noise:0.5, ...  [default: a short ladder]",
)
@INPUTS
@click.option("--data", metavar="DATA", help="Labelled inputs: what is lost is measured.")
@prepared_options
@cell_options
@click.option(
    "--top", metavar="N", type=click.IntRange(1), help="Print the N dearest layers alone."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--out", metavar="FILE", help="Write the table: .json, .csv or .parquet.")
@click.option("--figure", metavar="FILE", help="Draw layers × ways: .pdf, .svg or .png.")
@click.option("--curves", metavar="FILE", help="Draw a curve a layer: .pdf, .svg or .png.")
@click.option("--page", metavar="FILE", help="Write one HTML page of the network with this in it.")
def sensitivity(
    model: str,
    *,
    inputs: str | None,
    data: str | None,
    top: int | None,
    as_json: bool,
    out: str | None,
    figure: str | None,
    curves: str | None,
    page: str | None,
    **choices: Any,
) -> None:
    """Say what it costs to prune, thin, factor or quantise each layer alone.

    With nothing but the network, synthetic pictures rank layers and ways; inputs without labels
    tell the loss that the network itself expects; labelled ones measure it.
    """
    from planescope.criticality.sensitivity import Cost
    from planescope.criticality.sensitivity import sensitivity as find

    keep_memory()
    check_inputs(inputs, data)
    check_targets(
        (out, TABLES),
        (figure, FIGURES),
        (curves, FIGURES),
        (page, PAGES),
    )
    options = of_inputs(choices, synthetic=inputs is None and data is None)
    with layer_progress() as advance:
        found = find(
            model, data=data or inputs, labelled=data is not None, on_cell=advance, **options
        )
    if isinstance(found, Cost):
        costs = [(model, found)]
        say_costs("planescope.sensitivity-forecast/1", costs, cost_in_words, as_json=as_json)
        return
    if out is not None:
        found.save(out)
    _draw(found, figure=figure, curves=curves)
    if page is not None:
        from planescope.figures.report import report

        told = {name: options[name] for name in ("network", "trust")}
        report(model, found, command=typed_command(), **told).save(page)
    if as_json:
        sys.stdout.write(found.to_json() + "\n")
    else:
        print_sensitivity(found, top=top)


def _draw(found: Sensitivity, *, figure: str | None, curves: str | None) -> None:
    if figure is None and curves is None:
        return
    from planescope import figures

    if figure is not None:
        figures.save(figures.sensitivity_map(found), figure)
    if curves is not None:
        figures.save(figures.sensitivity(found), curves)


def cost_in_words(cost: Cost) -> str:
    """Say what a call would take."""
    inputs = "as many inputs as there are" if cost.inputs is None else counted(cost.inputs, "input")
    time = "" if cost.seconds is None else f", at most about {cost.seconds:.0f} s"
    return f"{counted(cost.layers, 'layer')}, {counted(cost.cells, 'cell')} on {inputs}{time}"


def print_sensitivity(found: Sensitivity, *, top: int | None = None) -> None:
    """Print layers by ways, and what the numbers are.

    Ways that the terminal has no room for beside one another follow below, so that none is left
    out; with `top` the layers that cost least are, and their number is told.
    """
    from rich.text import Text

    from planescope.files.results.result import skipped_lines

    out = console()
    out.print(Text(f"{found.source}: {found.network} on {found.data}", style="bold"))
    if found.trained is not None:
        out.print(Text(f"whole network: {found.metric} {found.trained:.4g}"))
    if found.expected is not None:
        out.print(Text(f"whole network: expects itself to be right in {found.expected:.1%}"))
    layers = _dearest(found, top)
    for table in _tables(found, layers, out.width):
        out.print(table)
    out.print(Text(found.sentence))
    for note in found.notes:
        out.print(Text(note, style="dim"))
    if left := len(found.layers) - len(layers):
        those = "layer that costs" if left == 1 else f"{left} layers that cost"
        out.print(Text(f"not shown: the {those} least (--top {top})", style="dim"))
    for line in skipped_lines(found.skipped):
        out.print(Text(line, style="dim"))


def _dearest(found: Sensitivity, top: int | None) -> list[LayerSensitivity]:
    """Return the layers of the largest mean cost, in the order of the network."""
    if top is None or top >= len(found.layers):
        return list(found.layers)

    def mean(layer: LayerSensitivity) -> float:
        values = [v for key in found.ways if (v := found.value(layer, key)) is not None]
        return sum(values) / len(values) if values else 0.0

    kept = sorted(found.layers, key=mean, reverse=True)[:top]
    return [layer for layer in found.layers if layer in kept]


def _tables(found: Sensitivity, layers: Sequence[LayerSensitivity], width: int) -> Iterator[Table]:
    """Give tables of all ways, each as wide as there is room for."""
    names = max(5, *(len(layer.name) for layer in layers))
    sizes = [
        [f"{layer.parameters:,}", "" if (w := layer.multiply_adds) is None else f"{w:,}"]
        for layer in layers
    ]
    beside = ["parameters", "multiply-adds"]
    is_narrow = width < names + 28 + sum(len(key) + 2 for key in found.ways)
    if is_narrow:  # a colon ends a line
        beside = ["para-\nmeters", "multiply-\nadds"]
    titles = {key: key.replace(":", ":\n", 1) if is_narrow else key for key in found.ways}
    left = list(found.ways)
    while left:
        room = width - names - sum(_wide(beside, sizes)) - 2
        taken = 0
        while taken < len(left):
            cells = [[_cell(found, layer, left[taken]).plain] for layer in layers]
            room -= sum(_wide([titles[left[taken]]], cells))
            if room < 0 and taken:
                break
            taken += 1
        keys, left = left[:taken], left[taken:]
        table = plain_table("layer", *beside, *(titles[key] for key in keys))
        for layer, own in zip(layers, sizes, strict=True):
            table.add_row(layer.name, *own, *(_cell(found, layer, key) for key in keys))
        yield table
        sizes, beside = [[] for _ in layers], []


def _wide(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """Return the widths of columns, with what stands between them."""
    heads = [max(map(len, title.split("\n"))) for title in titles]
    return [3 + max([head, *(len(row[i]) for row in rows)]) for i, head in enumerate(heads)]


def _cell(found: Sensitivity, layer: LayerSensitivity, key: str) -> Text:
    from rich.text import Text

    value = found.value(layer, key)
    if value is None:
        return Text("")
    if not found.is_share:
        return Text(f"{value:.3g}" if value < 1e6 else "∞")
    style = "red" if value > 0.3 else "yellow" if value > 0.1 else "green"
    return Text(f"{value:.1%}", style=style)
