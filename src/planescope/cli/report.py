"""``planescope report``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planescope.cli.options import code_options, consent, measured_options, typed_command
from planescope.cli.printing import say
from planescope.files.errors import UsageError
from planescope.files.targets import PAGES, check_target

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
@code_options
@measured_options
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def report(
    sources: tuple[str, ...],
    *,
    out: str,
    show: bool,
    watch: bool,
    network: str | None,
    data: str | None,
    trust: bool,
    init: str | None,
    kinds: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write one HTML page that shows what is known of networks.

    RUN is the folder of a training or of a study; FILE a checkpoint, measured as --network, --init
    and --kinds say, or a measurement, resets, a relation, a prediction or a sensitivity that
    --out of those commands saved, or what a Tracker saved. Several networks are compared.
    """
    from planescope.figures.report import report as report_on

    check_target(out, PAGES)
    if watch and (init is not None or kinds):
        raise UsageError("--init and --kinds are of checkpoints; --watch follows a run")
    if watch and len(sources) != 1:
        raise UsageError("--watch follows one run; give one")
    given = consent(sources, network=network, data=data, trust=trust)
    command = typed_command()
    if watch:
        from planescope.figures.report.watch import watch as follow
        from planescope.training.run import Run

        shown = False

        def on_page(_: Report) -> None:
            nonlocal shown
            if show and not shown:
                _open(out)
            shown = True
            say(f"{out}: written; follows {sources[0]}", err=True)

        page = follow(Run(sources[0], **given), out, command=command, on_page=on_page)
    else:
        page = report_on(*sources, command=command, init=init, kinds=kinds, **given)
        page.save(out)
        if show:
            _open(out)
    say(json.dumps(_fields(page, out)) if as_json else out)


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
        say(f"no browser was found; open {out} in one", err=True)
