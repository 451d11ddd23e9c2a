"""``planescope reset``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planescope.cli.options import (
    MEMORY,
    TASK,
    TRUST,
    consent,
    numbers,
    options_of,
    shape_of,
    tell_data_path,
)
from planescope.cli.printing import say
from planescope.cli.progress import layer_progress
from planescope.cli.reset_table import print_resets
from planescope.criticality.options import ResetOptions
from planescope.data.options import DataOptions
from planescope.files.errors import StoppedError, UsageError
from planescope.files.optional import is_foreign
from planescope.files.targets import FIGURES, TABLES, check_targets
from planescope.hyperplanes.layer import KindName
from planescope.training.memory import keep_memory

if TYPE_CHECKING:
    from planescope.training.run import Run

FORECAST_SCHEMA = "planescope.reset-forecast/1"


# Fields of `ResetOptions`, which has their types, words and defaults, as the command tells them.
EVALUATED = {
    "layers": (
        "NAMES",
        "Only layers of these names, or in whose name such a regular expression is found; commas "
        "between.",
    ),
    "kinds": (None, "Which layers; repeatable.  [default: conv, or linear where there is none]"),
    "with_norm": (None, "Put the batch norm behind a layer back with it."),
    "together": ("L1,L2", "Layers, blocks or patterns to put back at once; repeatable."),
    "subset": ("N", "Evaluate on N examples, drawn at random."),
    "split": (None, None),
    "precision": (
        None,
        "Of computing. auto: bf16-mixed where the devices have instructions for it; the result "
        "tells.",
    ),
    "tolerance": (
        "X",
        "End a cell as soon as its accuracy is known to this (0.01), with 95 % confidence.",
    ),
    "seed": ("N", "Of draws, subset and order."),
}


@click.command()
@click.argument("run", required=False, metavar="[RUN]")
@click.option("--trained", metavar="FILE", help="Trained checkpoint, in place of a run.")
@click.option(
    "--snapshot",
    "snapshots",
    multiple=True,
    metavar="FILE|EPOCH",
    help="What layers are put back to; repeatable. In a run an epoch, by default every one.",
)
@click.option(
    "--network",
    "--model",
    metavar="NAME",
    help="With --trained: lenet, vgg16_bn, ... Of a run its own name allows code that it names, "
    "another replaces it.",
)
@click.option(
    "--data",
    metavar="NAME",
    help="With --trained: digits, mnist, cifar10, folder:PATH, or package.module:callable, which "
    "returns a DataLoader or a Dataset. Of a run as --network.",
)
@click.option(
    "--synthetic",
    is_flag=True,
    help="On synthetic pictures in place of data: ranks layers; RUN does not get the result.",
)
@click.option("--input-shape", metavar="C,H,W", help="Of synthetic pictures.")
@TRUST
@click.option("--data-path", metavar="FOLDER", help="Where the files of the data set lie.")
@click.option("--rand", is_flag=True, help="Also put layers to fresh draws from the initialiser.")
@click.option("--fresh", is_flag=True, help="Also draw layers anew by their own reset_parameters.")
@click.option(
    "--path",
    metavar="K",
    type=click.IntRange(1),
    help="Go from the one snapshot to the trained weights in K steps.",
)
@click.option("--draws", metavar="K", type=click.IntRange(1), help="How many.  [default: 1]")
@TASK
@click.option("--mean", metavar="X,..", help="Of a data set by name: subtract these, by channel.")
@click.option("--std", metavar="X,..", help="Divide by these, by channel.")
@click.option("--no-normalise", is_flag=True, help="Leave inputs in [0, 1].")
@click.option("--image-size", metavar="N", type=int, help="Resize the shorter side of image files.")
@click.option("--crop", metavar="N", type=int, help="Take the middle N × N pixels of image files.")
@click.option(
    "--devices",
    "--device",
    default="auto",
    show_default=True,
    metavar="NAMES",
    help="cpu, cuda, or several that share the work: cuda:0,cuda:1.",
)
@options_of(ResetOptions, EVALUATED, kinds=Sequence[KindName])
@MEMORY
@click.option("--unfinished", is_flag=True, help="Take a run that is not finished, as it is.")
@click.option("--dry-run", is_flag=True, help="Tell cells and time; evaluate none.")
@click.option(
    "--top", metavar="N", type=click.IntRange(1), help="Print the N rows that cost most alone."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--out", metavar="FILE", help="Write the table: .json, .csv or .parquet.")
@click.option("--figure", metavar="FILE", help="Draw the heat map: .pdf, .svg or .png.")
def reset(
    run: str | None,
    *,
    trained: str | None,
    snapshots: tuple[str, ...],
    network: str | None,
    data: str | None,
    data_path: str | None,
    synthetic: bool,
    input_shape: str | None,
    trust: bool,
    unfinished: bool,
    dry_run: bool,
    top: int | None,
    as_json: bool,
    out: str | None,
    figure: str | None,
    **choices: Any,
) -> None:
    """Put each layer of a trained network back to earlier weights, and see what accuracy it costs.

    RUN gets resets.json. Finished work is kept in RUN, or beside --out: broken off, the same
    command goes on where it was.
    """
    fresh, path, task = (choices.pop(name) for name in ("fresh", "path", "task"))
    draws = choices["draws"] or 1
    prepared = _data_options(choices)
    options = _options(choices, fresh=fresh)
    _check(
        run, trained, network, data, data_path, prepared,
        unfinished=unfinished, synthetic=synthetic,
    )  # fmt: skip
    _check_outputs(out, figure)
    own_data = data is not None and is_foreign(data, "data")
    keep = None if out is None or own_data or synthetic else Path(f"{out}.progress")
    common: dict[str, Any] = {"draws": draws, "path": path, "task": task, "options": options}
    subject: Run | str = str(trained)
    if run is not None:
        from planescope.training.run import Run

        given = consent([run], network=network, data=data, trust=trust)
        tell_data_path(run)
        subject = found = Run(run, **given)
        epochs = _epochs(snapshots)
        common |= {"to": [*(epochs or ()), "fresh"] if fresh else epochs, "unfinished": unfinished}
        if synthetic:
            common |= {"data": None}
        if found.is_tracked or synthetic:
            common |= {"data_path": data_path, "data_options": prepared}
    else:
        common |= {
            "to": [*snapshots, "fresh"] if fresh else list(snapshots),
            "network": str(network),
            "data": data,
            "data_path": data_path,
            "data_options": prepared,
        }
    common |= {"input_shape": None if input_shape is None else shape_of(input_shape)}
    if dry_run:
        _tell_forecast(subject, common, as_json=as_json)
        return
    try:
        with layer_progress() as advance:
            from planescope.criticality.resets import reset as put_back

            keep_memory()
            common |= {} if run is not None else {"keep": keep}
            resets = put_back(subject, on_cell=advance, **common)
    except KeyboardInterrupt:
        kept = run is not None or keep is not None
        raise StoppedError(
            "interrupted; " + ("the same command goes on" if kept else "only --out keeps its work")
        ) from None
    if out is not None:
        resets.save(out)
        if run is None and keep is not None:
            keep.unlink(missing_ok=True)
    if figure is not None:
        from planescope import figures

        figures.save(figures.heatmap(resets), figure)
    if as_json:
        sys.stdout.write(resets.to_json() + "\n")
    else:
        if options.precision == "auto":
            say(f"precision: {resets.precision}, chosen for this device")
        print_resets(resets, top=top)


def _tell_forecast(subject: Run | str, common: dict[str, Any], *, as_json: bool) -> None:
    """Print what a reset would take."""
    from planescope.criticality.resets import forecast

    found = forecast(subject, **common)
    say(json.dumps({"schema": FORECAST_SCHEMA, **vars(found)}) if as_json else str(found))


def _data_options(choices: dict[str, Any]) -> DataOptions | None:
    """Return the options of a data set by name; None for the usual preparation."""
    mean, std = (numbers(f"--{name}", choices.pop(name)) for name in ("mean", "std"))
    sizes = {name: choices.pop(name) for name in ("image_size", "crop")}
    normalise = not choices.pop("no_normalise")
    if normalise and not (mean or std or any(sizes.values())):
        return None
    return DataOptions(normalise=normalise, mean=mean, std=std, **sizes)


def _options(choices: dict[str, Any], *, fresh: bool) -> ResetOptions:
    rand, draws = choices.pop("rand"), choices.pop("draws")
    if draws is not None and not rand and not fresh:
        raise UsageError("--draws says how many draws --fresh or --rand takes; give one of them")
    devices = choices.pop("devices")
    return ResetOptions(
        **choices,
        draws=(draws or 1) if rand else 0,
        devices=tuple(name.strip() for name in devices.split(",")),
    )


def _check(
    run: str | None,
    trained: str | None,
    network: str | None,
    data: str | None,
    data_path: str | None,
    prepared: DataOptions | None,
    *,
    unfinished: bool,
    synthetic: bool,
) -> None:
    from planescope.training.run import Run

    if (run is None) == (trained is None):
        raise UsageError("give a run, or a checkpoint with --trained")
    if synthetic and (data or data_path):
        raise UsageError("give --synthetic, or --data, not both")
    if trained is not None and (network is None or (data is None and not synthetic)):
        raise UsageError(
            "--trained needs --network and --data (or --synthetic); a checkpoint tells neither"
        )
    if trained is not None and unfinished:
        raise UsageError("--unfinished is about runs; a checkpoint is taken as it is")
    if run is not None and not Run(run).is_tracked:
        if data_path:
            raise UsageError("a run knows its --data-path; leave it out")
        if prepared is not None and not synthetic:
            raise UsageError("a run knows how its data are prepared; leave out --mean and the like")


def _check_outputs(out: str | None, figure: str | None) -> None:
    """Refuse what could not be written before the work begins."""
    check_targets((out, TABLES), (figure, FIGURES))


def _epochs(snapshots: tuple[str, ...]) -> list[int] | None:
    for snapshot in snapshots:
        if not snapshot.isdecimal():
            raise UsageError(f"--snapshot {snapshot!r}: give the epoch of a snapshot of the run")
    return [int(snapshot) for snapshot in snapshots] or None
