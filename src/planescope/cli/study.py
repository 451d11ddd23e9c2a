"""``planescope study``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planescope.cli.printing import console, say
from planescope.cli.printing import table as empty_table
from planescope.files.errors import RunError, UsageError, counted

if TYPE_CHECKING:
    from rich.console import Group

    from planescope.study.folder import Study, StudyStatus


@click.command()
@click.argument("file", metavar="FILE")
@click.option("--out", metavar="DIR", help="Folder of the study.  [default: name of FILE]")
@click.option("--dry-run", is_flag=True, help="List the runs and how long they take; make nothing.")
@click.option("--status", "show_status", is_flag=True, help="Tell how far the study is.")
@click.option(
    "--workers",
    metavar="N",
    type=click.IntRange(1),
    help="Runs at once on this machine.  [default: one a GPU, or else one a core]",
)
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Use the workers of this Dask scheduler: tls://HOST:PORT.",
)
@click.option("--tls-ca", metavar="FILE", help="Certificate that the scheduler's is signed by.")
@click.option("--tls-cert", metavar="FILE", help="Certificate to show to it.")
@click.option("--tls-key", metavar="FILE", help="Key of that certificate.")
@click.option(
    "--dashboard",
    is_flag=True,
    help="Let Dask's dashboard show any user of this machine what the workers do.",
)
@click.option("--retry-failed", is_flag=True, help="Try again what failed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def study(
    file: str,
    *,
    out: str | None,
    dry_run: bool,
    show_status: bool,
    workers: int | None,
    scheduler: str | None,
    tls_ca: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    dashboard: bool,
    retry_failed: bool,
    as_json: bool,
) -> None:
    """Make all runs of a study: train, measure, reset, relate, as its YAML FILE says.

    What is finished is skipped and what was broken off goes on, so that the same command makes the
    rest. A run that fails is kept with its error, and the others are made.
    """
    folder = out or Path(file).stem
    if dry_run and show_status:
        raise UsageError("--dry-run and --status are two things; give one")
    if dry_run:
        _dry_run(file, folder, workers, as_json=as_json)
        return
    if show_status:
        from planescope.study.folder import Study

        _print(Study(folder), as_json=as_json)
        return
    from planescope.study.work.make import make_study

    security = _security(scheduler, tls_ca, tls_cert, tls_key)
    with _live() as on_status:
        made = make_study(
            file,
            folder,
            workers=workers,
            scheduler=scheduler,
            security=security,
            dashboard=_tell_dashboard if dashboard else None,
            retry_failed=retry_failed,
            on_status=on_status,
        )
    _print(made, as_json=as_json)
    _fail_with(made)


def _security(scheduler: str | None, *tls: str | None) -> Any:
    """Return the certificates for a scheduler that was given; warn where it asks for none."""
    from planescope.study.work import cluster

    if scheduler is not None and cluster.is_open(scheduler):
        say(
            f"{scheduler}: whoever reaches that port runs code as the owner of its workers; tls:// "
            "with --tls-ca, --tls-cert and --tls-key keeps others out",
            err=True,
        )
    return cluster.security_of(*tls)


def _tell_dashboard(address: str) -> None:
    say(f"{address} shows any user of this machine the runs and what workers do", err=True)


def _fail_with(made: Study) -> None:
    status = made.status
    if status.done < status.total:
        raise RunError(
            f"{made.path}: {status.total - status.done} of {counted(status.total, 'run')} failed; "
            "--status tells why, --retry-failed tries them again"
        )


def _dry_run(file: str, folder: str, workers: int | None, *, as_json: bool) -> None:
    from planescope.study.work.forecast import forecast

    found = forecast(file, folder, workers=workers)
    if as_json:
        sys.stdout.write(found.to_json() + "\n")
        return
    out = console()
    for run in found.runs:
        time = "unknown" if run.seconds is None else _span(run.seconds)
        out.print(f"{run.name}  {run.state}, {time}", soft_wrap=True)
    out.print(found.sentence)


def _print(made: Study, *, as_json: bool) -> None:
    status = made.status
    if as_json:
        sys.stdout.write(status.to_json() + "\n")
        return
    out = console()
    out.print(_headline(status))
    for run in status.running:
        accuracy = "" if run.accuracy is None else f", accuracy {run.accuracy:.1%}"
        out.print(f"  {run.name}: {run.step}, epoch {run.epoch} of {run.epochs}{accuracy}")
    for name, error in status.failed:
        out.print(f"  {name}: failed: {error}", soft_wrap=True)


def _headline(status: StudyStatus) -> str:
    parts = [f"{status.path}: {status.done} of {counted(status.total, 'run')} done"]
    if status.running:
        parts.append(f"{len(status.running)} running")
    if status.failed:
        parts.append(f"{len(status.failed)} failed")
    if status.seconds_left:
        parts.append(f"about {_span(status.seconds_left)} left")
    return ", ".join(parts)


def _span(seconds: float) -> str:
    from planescope.study.work.forecast import span

    return span(seconds)


@contextlib.contextmanager
def _live() -> Iterator[Callable[[StudyStatus], None] | None]:
    """Give a callback that keeps a table up to date; None where nobody would see it."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.live import Live

    with Live(console=console(stderr=True), auto_refresh=False, transient=True) as live:
        yield lambda status: live.update(_table(status), refresh=True)


def _table(status: StudyStatus) -> Group:
    from rich import box
    from rich.console import Group
    from rich.text import Text

    table = empty_table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("run", overflow="fold")
    table.add_column("step")
    table.add_column("epoch", justify="right")
    table.add_column("accuracy", justify="right")
    for run in status.running:
        accuracy = "" if run.accuracy is None else f"{run.accuracy:.1%}"
        table.add_row(Text(run.name), run.step, f"{run.epoch} of {run.epochs}", accuracy)
    # One line each: they are told whole at the end.
    failed = [
        Text(f"{name} failed: {error}", overflow="ellipsis", no_wrap=True)
        for name, error in status.failed[-5:]
    ]
    return Group(Text(_headline(status)), *([table] if status.running else []), *failed)
