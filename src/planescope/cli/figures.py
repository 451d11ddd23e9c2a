"""``planescope figures``."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from planescope.cli.options import code_options, consent, measured_options
from planescope.cli.printing import say
from planescope.cli.progress import layer_progress
from planescope.files.errors import UsageError

SCHEMA = "planescope.figures/1"


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="RUN|FILE...")
@click.option("--out", required=True, metavar="DIR", help="Folder for figures and tables.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["pdf", "svg", "png"]),
    default="pdf",
    show_default=True,
)
@click.option("--column", is_flag=True, help="As wide as a column, 3.35 inches.")
@click.option("--page", is_flag=True, help="As wide as a page, 6.9 inches.  [default]")
@click.option("--width", type=float, metavar="INCHES", help="So wide.")
@click.option(
    "--style",
    metavar="FILE",
    help="A Matplotlib style sheet (.mplstyle), laid over planescope's own.",
)
@click.option(
    "--each/--together",
    default=True,
    help="Figures of every network, and of several together; or only the latter.",
)
@code_options
@measured_options
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def figures(
    sources: tuple[str, ...],
    *,
    out: str,
    form: Any,
    style: str | None,
    each: bool,
    network: str | None,
    data: str | None,
    trust: bool,
    init: str | None,
    kinds: tuple[str, ...],
    as_json: bool,
    **widths: Any,
) -> None:
    """Write every figure of a paper on some networks, each with its numbers as CSV beside it.

    RUN is the folder of a training or of a study; FILE a checkpoint, measured as --network, --init
    and --kinds say, or a measurement, resets, a relation, a prediction or a sensitivity that
    --out of those commands saved, or what a Tracker saved. Several are compared.
    """
    from planescope.figures import write_all

    width = _width(**widths)
    given = consent(sources, network=network, data=data, trust=trust)
    with layer_progress() as advance:
        written = write_all(
            sources,
            out,
            form=form,
            width=width,
            style_sheet=style,
            each=each,
            progress=advance,
            init=init,
            kinds=kinds,
            **given,
        )
    if as_json:
        fields = {
            "schema": SCHEMA,
            "files": [str(path) for path in written.files],
            "left_out": list(written.left_out),
        }
        sys.stdout.write(json.dumps(fields, indent=2) + "\n")
        return
    for path in written.files:
        say(f"written: {path}")
    for reason in written.left_out:
        say(f"left out: {reason}")


def _width(*, column: bool, page: bool, width: float | None) -> Any:
    if column + page + (width is not None) > 1:
        raise UsageError("give one of --column, --page and --width")
    return width if width is not None else ("column" if column else "page")
