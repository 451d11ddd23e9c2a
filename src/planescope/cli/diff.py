"""``planescope diff``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from planescope.cli.options import ENTRY, KINDS, LAYERS
from planescope.cli.printing import console, plain_table
from planescope.cli.progress import layer_progress
from planescope.files.targets import FIGURES, PAGES, TABLES, check_targets

if TYPE_CHECKING:
    from planescope.measurement.difference import Difference, LayerDifference


@click.command()
@click.argument("before", metavar="BEFORE")
@click.argument("after", metavar="AFTER")
@click.option(
    "--view",
    type=click.Choice(["raw", "effective"]),
    default="raw",
    show_default=True,
    help="The layers' own weights, or those that act behind batch norm.",
)
@KINDS
@LAYERS
@click.option(
    "--network", "--model", metavar="NAME", help="Network of two state dicts, as for measure."
)
@ENTRY
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--out", metavar="FILE", help="Write the table: .json, .csv or .parquet.")
@click.option("--figure", metavar="FILE", help="Draw it: .pdf, .svg or .png.")
@click.option("--page", metavar="FILE", help="Write one HTML page of both and what moved.")
def diff(
    before: str,
    after: str,
    *,
    view: str,
    kinds: tuple[str, ...],
    layers: str | None,
    network: str | None,
    entry: str | None,
    as_json: bool,
    out: str | None,
    figure: str | None,
    page: str | None,
) -> None:
    """Tell what moved between two checkpoints, layer by layer.

    BEFORE and AFTER are what planescope measure takes: a network before and after fine-tuning,
    pruning, quantising or converting. Layers are matched by name and shape, across formats by
    their filters; what has no partner is named.
    """
    from planescope.measurement.diff import diff as compare

    check_targets((out, TABLES), (figure, FIGURES), (page, PAGES))
    with layer_progress() as advance:
        found = compare(
            before,
            after,
            view=view,
            kinds=kinds,
            layers=layers,
            network=network,
            entry=entry,
            on_layer=advance,
        )
    if out is not None:
        found.save(out)
    if figure is not None:
        from planescope import figures

        figures.save(figures.difference(found), figure)
    if page is not None:
        from planescope.figures.report import report

        command = f"planescope diff {before} {after}"
        report(*found.measurements or (), difference=found, command=command).save(page)
    if as_json:
        sys.stdout.write(found.to_json() + "\n")
    else:
        print_difference(found)


def print_difference(found: Difference) -> None:
    """Print the table of a difference, what it says in a sentence, and what was left out."""
    from rich.text import Text

    from planescope.files.results.result import skipped_lines

    out = console()
    title = f"{found.before.path} → {found.after.path}, {found.view} view"
    out.print(Text(title, style="bold"))
    renamed = any(layer.other != layer.name for layer in found.layers)
    table = plain_table(
        "layer",
        *(["in the second"] if renamed else []),
        "filters",
        "mass",
        "after",
        "cosine",
        "after",
        "to ▼",
        "to ▲",
        "l2",
        "zeros",
        "after",
        left=("layer", "in the second"),
    )
    for layer in found.layers:
        table.add_row(*_cells(layer, renamed=renamed), style=None if layer.same else "bold")
    out.print(table)
    out.print(Text(found.verdict), soft_wrap=not out.is_terminal)
    for line in found.notes:
        out.print(Text(line, style="dim"))
    for which, skipped in (("first", found.skipped_before), ("second", found.skipped_after)):
        for line in skipped_lines(skipped, f"left out of the {which}"):
            out.print(Text(line, style="dim"))


def _cells(layer: LayerDifference, *, renamed: bool) -> list[str]:
    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return [
        layer.name,
        *([layer.other if layer.other != layer.name else ""] if renamed else []),
        str(layer.filters),
        number(layer.mass_before, ".3f"),
        number(layer.mass_after, ".3f"),
        number(layer.cosine_before, "+.4f"),
        number(layer.cosine_after, "+.4f"),
        str(layer.turned_away),
        str(layer.turned_toward),
        "0" if layer.same else number(layer.l2, ".3g"),
        number(layer.zeros_before, ".1%"),
        number(layer.zeros_after, ".1%"),
    ]
