"""``planescope claims``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planescope.cli.options import code_options, consent
from planescope.cli.printing import console, plain_table
from planescope.files.errors import UsageError

if TYPE_CHECKING:
    from planescope.study.claims.claims import Claims
    from planescope.study.claims.reference import Deviation
    from planescope.study.folder import Study


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="STUDY|RUN...")
@click.option(
    "--reference",
    metavar="CSV",
    help="Hold the runs against a published figure: deviation by layer and epoch.",
)
@click.option(
    "--drift",
    is_flag=True,
    help="Hold masses against those of the study's runs on noise, where nothing can be learned.",
)
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
    sources: tuple[str, ...],
    *,
    reference: str | None,
    drift: bool,
    network: str | None,
    data: str | None,
    trust: bool,
    as_json: bool,
    out: str | None,
    form: str,
) -> None:
    """Answer the paper's claims from the runs of a study.

    Each by a table with effects, intervals over runs and corrected p-values; with --out also by a
    figure. Claims that do not hold are said not to. With --reference, runs that differ in their
    seeds alone are held against the numbers of a published figure instead; with --drift, all runs
    against those on noise.
    """
    from planescope.study.folder import Study

    if drift and reference is not None:
        raise UsageError("give --drift or --reference")
    given = consent(sources, network=network, data=data, trust=trust)
    if reference is not None:
        _compare(sources, reference, given, as_json=as_json, out=out, form=form)
        return
    if len(sources) > 1:
        raise UsageError("claims are answered by one study; several runs need --reference")
    (study,) = sources
    whole = Study(study, **given)
    if drift:
        _drift(whole, as_json=as_json, out=out)
        return
    files: tuple[Path, ...] = ()
    if out is None:
        from planescope.study.claims.claims import claims as answer

        found = answer(whole)
    else:
        from planescope.figures.claims import write_claims

        found, files = write_claims(whole, out, form=form)
    if as_json:
        sys.stdout.write(found.to_json() + "\n")
        return
    print_claims(found)
    for file in files:
        console().print(f"written: {file}", style="bold")


def _compare(
    sources: Sequence[str],
    reference: str,
    given: Mapping[str, Any],
    *,
    as_json: bool,
    out: str | None,
    form: str,
) -> None:
    """Hold runs against a published figure; print it, and write it to a folder where asked."""
    from planescope.study.folder import runs_in

    runs = runs_in(sources, **given)
    files: tuple[Path, ...] = ()
    if out is None:
        from planescope.study.claims.reference import deviation

        found = deviation(runs, reference)
    else:
        from planescope.figures import write_deviation

        found, files = write_deviation(runs, reference, out, form=form)
    if as_json:
        sys.stdout.write(found.to_json() + "\n")
        return
    print_deviation(found)
    for file in files:
        console().print(f"written: {file}", style="bold")


def _drift(study: Study, *, as_json: bool, out: str | None) -> None:
    """Hold a study's runs against those on noise; print it, and write it where asked."""
    from rich.text import Text

    from planescope.files.folders import inside, make_inside
    from planescope.study.claims.drift import COLUMNS, drift_band

    found = drift_band(study)
    if as_json:
        sys.stdout.write(found.to_json() + "\n")
    else:
        table = plain_table(*COLUMNS, left=COLUMNS[:3])
        for layer in found.layers:
            table.add_row(*layer.cells())
        console().print(table)
        for line in (found.sentence, *(f"note: {note}" for note in found.notes)):
            console().print(Text(line))
    if out is not None:
        folder = make_inside(out)
        for name in ("drift.json", "drift.csv"):
            found.save(inside(folder, name))
            console(stderr=True).print(f"written: {inside(folder, name)}", style="bold")


def print_deviation(found: Deviation) -> None:
    """Print a row a layer, and what the deviations come to."""
    from rich.text import Text

    from planescope.study.claims.reference import COLUMNS

    out = console()
    table = plain_table(*COLUMNS, left=COLUMNS[1:2])
    for cells in found.rows():
        table.add_row(*cells)
    out.print(table)
    out.print(Text(found.sentence))
    for note in found.notes:
        out.print(Text(f"note: {note}"))


def print_claims(found: Claims) -> None:
    """Print a table and an answer a claim."""
    from rich.text import Text

    from planescope.study.claims.claims import CLAIMS
    from planescope.study.claims.effects import COLUMNS

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
