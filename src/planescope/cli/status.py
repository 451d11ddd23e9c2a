"""``planescope status``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from planescope.cli.options import code_options, consent
from planescope.cli.printing import console

if TYPE_CHECKING:
    from planescope.training.run import Run

SCHEMA = "planescope.status/1"


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@code_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON, an object a line.")
def status(
    runs: tuple[str, ...],
    *,
    network: str | None,
    data: str | None,
    trust: bool,
    as_json: bool,
) -> None:
    """Tell what training runs are, how far they came, and their last figures."""
    from planescope.training.run import Run

    given = consent(runs, network=network, data=data, trust=trust)
    found = [Run.open(Run(path, **given)) for path in runs]
    if as_json:
        for run in found:
            sys.stdout.write(json.dumps(_fields(run)) + "\n")
        return
    print_status(found)


def _fields(run: Run) -> dict[str, Any]:
    config, metrics, state = run.about, run.metrics, run.status
    return {
        "schema": SCHEMA,
        "path": str(run.path),
        "state": str(state.state),
        "message": state.message,
        "network": config.network,
        "data": config.data,
        "precision": getattr(config, "precision", None),
        "epochs": getattr(config, "epochs", None),
        "unit": run.unit,
        "snapshots": list(run.snapshots),
        "last": vars(metrics[-1]) if metrics else None,
    }


def print_status(runs: Sequence[Run]) -> None:
    """Print a line a run, and one for what happened to it."""
    out = console()
    for run in runs:
        fields = _fields(run)
        out.print(_line(fields))
        if fields["message"]:
            out.print(f"  {fields['message']}", style="dim")


def _line(fields: dict[str, Any]) -> str:
    last = fields["last"]
    parts = [f"{fields['path']}: {fields['network']} on {fields['data']}"]
    if fields["precision"] not in ("32-true", None):
        parts.append(fields["precision"])
    parts.append(fields["state"])
    if last is not None:
        in_all = "" if fields["epochs"] is None else f" of {fields['epochs']}"
        parts.append(f"{fields['unit']} {last['epoch']}{in_all}")
        if last["train_loss"] is not None:
            parts.append(f"training loss {last['train_loss']:.4f}")
        if last["train_accuracy"] is not None:
            parts.append(f"training accuracy {last['train_accuracy']:.1%}")
        told = []
        if last["val_loss"] is not None:
            told.append(f"loss {last['val_loss']:.4f}")
        if last["val_accuracy"] is not None:
            told.append(f"accuracy {last['val_accuracy']:.1%}")
        if told:
            parts.append(f"validation {', '.join(told)}")
    return ", ".join(parts)
