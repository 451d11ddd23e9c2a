"""``planescope report``."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from planescope.figures.report import Report

SCHEMA = "planescope.report/1"


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="RUN|FILE...")
@click.option(
    "--out",
    metavar="FILE",
    default="report.html",
    show_default=True,
    help="The page, one file that needs nothing beside it.",
)
@click.option("--open", "show", is_flag=True, help="Show the page in the browser.")
@click.option(
    "--watch", is_flag=True, help="Follow a run: the page is made anew until training has ended."
)
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def report(sources: tuple[str, ...], *, out: str, show: bool, watch: bool, as_json: bool) -> None:
    """Write one HTML page that shows what is known of networks.

    RUN is the folder of a training or of a study; FILE a checkpoint, or a measurement, resets or a
    relation that --out of those commands saved. Several networks are compared.
    """
    from planescope.figures.report import FORMS
    from planescope.figures.report import report as report_on
    from planescope.files.errors import UsageError
    from planescope.files.writing import check_target

    check_target(out, FORMS)
    if watch and len(sources) != 1:
        raise UsageError("--watch follows one run; give one")
    command = shlex.join(["planescope", *sys.argv[1:]])
    if watch:
        from planescope.figures.report.watch import watch as follow

        shown = False

        def on_page(_: Report) -> None:
            nonlocal shown
            if show and not shown:
                _open(out)
            shown = True
            print(f"{out}: written; follows {sources[0]}", file=sys.stderr)

        page = follow(sources[0], out, command=command, on_page=on_page)
    else:
        page = report_on(*sources, command=command)
        page.save(out)
        if show:
            _open(out)
    sys.stdout.write(json.dumps(_fields(page, out)) + "\n" if as_json else f"{out}\n")


def _fields(page: Report, out: str) -> dict[str, Any]:
    networks = page.contents.networks
    return {
        "schema": SCHEMA,
        "path": out,
        "bytes": Path(out).stat().st_size,
        "networks": [{"name": each.name, "path": each.path} for each in networks],
    }


def _open(out: str) -> None:
    import webbrowser

    if not webbrowser.open(Path(out).resolve().as_uri()):
        print(f"no browser was found; open {out} in one", file=sys.stderr)
