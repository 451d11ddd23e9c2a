"""``planescope quickstart``."""

from __future__ import annotations

import click


@click.command()
@click.option(
    "--out",
    metavar="FOLDER",
    default="quickstart",
    show_default=True,
    help="Where the table and the figure go.",
)
def quickstart(*, out: str) -> None:
    """Measure a real ImageNet network: a table, a figure, and which of its layers are biased."""
    from planescope.cli.tables import console, print_measurement
    from planescope.quickstart import quickstart as run

    result = run(out)
    print_measurement(result.measurement)
    console().print(f"table:  {result.table}\nfigure: {result.figure}", style="bold")
