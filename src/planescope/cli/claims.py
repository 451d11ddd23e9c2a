"""``planescope claims``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from planescope.cli.options import code_options, consent

if TYPE_CHECKING:
    from planescope.study.claims import Claims


@click.command()
@click.argument("study", metavar="STUDY")
@code_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option("--out", metavar="DIR", help="Write claims.md, its figures and its numbers here.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["png", "svg", "pdf"]),
    default="png",
    show_default=True,
    help="Of the figures.",
)
def claims(
    study: str,
    *,
    network: str | None,
    data: str | None,
    trust: bool,
    as_json: bool,
    out: str | None,
    form: str,
) -> None:
    """Answer the paper's four claims from the runs of a study.

    Each by a table with effects, intervals over runs and corrected p-values; with --out also by a
    figure. Claims that do not hold are said not to.
    """
    from planescope.study.folder import Study

    whole = Study(study, **consent([study], network=network, data=data, trust=trust))
    files: tuple[Path, ...] = ()
    if out is None:
        from planescope.study.claims import claims as answer

        found = answer(whole)
    else:
        from planescope.figures.claims import write_claims

        found, files = write_claims(whole, out, form=form)
    if as_json:
        sys.stdout.write(found.to_json() + "\n")
        return
    print_claims(found)
    from planescope.cli.printing import console

    for file in files:
        console().print(f"written: {file}", style="bold")


def print_claims(found: Claims) -> None:
    """Print a table and an answer a claim."""
    from rich.text import Text

    from planescope.cli.printing import console, plain_table
    from planescope.study.claims import CLAIMS, COLUMNS

    out = console()
    for (claim, text), answer in zip(CLAIMS.items(), found.answers, strict=True):
        out.print(Text(f"{claim}. {text}", style="bold"))
        table = plain_table(*COLUMNS, left=COLUMNS[:3])
        for effect in found.of(claim):
            table.add_row(*effect.cells())
        if table.row_count:
            out.print(table)
        out.print(Text(answer))
        out.print()
