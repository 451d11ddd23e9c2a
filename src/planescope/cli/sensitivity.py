"""``planescope sensitivity``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from planescope.cli.options import TRUST

if TYPE_CHECKING:
    from rich.table import Table

    from planescope.criticality.sensitivity import Cost
    from planescope.criticality.sensitivity.record import LayerSensitivity, Sensitivity


@click.command()
@click.argument("model", metavar="FILE|RUN")
@click.option(
    "--network",
    metavar="NAME",
    help="Of a checkpoint: lenet, vgg16_bn, timm:NAME, package.module:callable, ...",
)
@click.option(
    "--ways",
    metavar="WAYS",
    help="prune:0.9,filters:0.5,rank:0.25,bits:3,noise:0.5, ...  [default: a short ladder]",
)
@click.option(
    "--inputs",
    metavar="DATA",
    help="Inputs whose labels are not looked at: a folder, FILE.npy, a data set by name, or "
    "package.module:callable.",
)
@click.option("--data", metavar="DATA", help="Labelled inputs: what is lost is measured.")
@click.option("--data-path", metavar="FOLDER", help="Where the files of the data set lie.")
@click.option("--input-shape", metavar="C,H,W", help="Of synthetic pictures.")
@click.option("--mean", metavar="X,..", help="Of the inputs that the network takes, by channel.")
@click.option("--std", metavar="X,..", help="Likewise their standard deviation.")
@click.option("--examples", metavar="N", type=click.IntRange(1), help="Take the first N inputs.")
@click.option(
    "--kinds",
    type=click.Choice(["conv", "pointwise", "transposed", "linear", "all"]),
    multiple=True,
    help="Which layers; repeatable.  [default: conv, or linear where there is none]",
)
@click.option("--layers", metavar="NAMES", help="Only these; names or patterns, commas between.")
@click.option("--split", type=click.Choice(["val", "train"]), default="val", show_default=True)
@click.option("--device", default="auto", show_default=True, metavar="NAME")
@click.option("--seed", type=int, default=0, show_default=True, help="Of synthetic pictures.")
@TRUST
@click.option("--dry-run", is_flag=True, help="Tell cells and time, and do nothing else.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--out", metavar="FILE", help="Write the table: .json, .csv or .parquet.")
def sensitivity(
    model: str,
    *,
    inputs: str | None,
    data: str | None,
    as_json: bool,
    out: str | None,
    **choices: Any,
) -> None:
    """Say what it costs to prune, thin, factor or quantise each layer alone.

    With nothing but the network, synthetic pictures rank layers and ways; inputs without labels
    tell the loss that the network itself expects; labelled ones measure it.
    """
    from planescope.cli.progress import layer_progress
    from planescope.criticality.sensitivity import Cost
    from planescope.criticality.sensitivity import sensitivity as find
    from planescope.files.errors import UsageError
    from planescope.files.results import FORMS
    from planescope.files.writing import check_target

    if inputs is not None and data is not None:
        raise UsageError("give --inputs, whose labels are not looked at, or --data, not both")
    if out is not None:
        check_target(out, FORMS)
    options = data_choices(choices, synthetic=inputs is None and data is None)
    with layer_progress() as advance:
        found = find(
            model, data=data or inputs, labelled=data is not None, on_cell=advance, **options
        )
    if isinstance(found, Cost):
        print_cost(found)
        return
    if out is not None:
        found.save(out)
    if as_json:
        sys.stdout.write(found.to_json() + "\n")
    else:
        print_sensitivity(found)


def data_choices(choices: dict[str, Any], *, synthetic: bool) -> dict[str, Any]:
    """Give what a call takes of --input-shape, --mean and --std."""
    from planescope.data.load import DataOptions
    from planescope.files.errors import UsageError

    shape = choices.pop("input_shape")
    mean, std = (numbers(f"--{name}", choices.pop(name)) for name in ("mean", "std"))
    if synthetic:
        choices |= {"mean": mean or (0.0,), "std": std or (1.0,)}
    elif mean or std:
        choices["data_options"] = DataOptions(mean=mean, std=std)
    if shape is not None:
        sizes = numbers("--input-shape", shape)
        if not synthetic:
            raise UsageError("--input-shape is of synthetic pictures; inputs have their own")
        if len(sizes) != 3 or any(size != int(size) for size in sizes):
            raise UsageError(f"--input-shape {shape!r}: give channels, height and width: 3,32,32")
        choices["input_shape"] = tuple(int(size) for size in sizes)
    return choices


def numbers(option: str, text: str | None, /) -> tuple[float, ...]:
    """Read numbers with commas between; none where the option was left out."""
    from planescope.files.errors import UsageError

    if text is None:
        return ()
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} {text!r}: give numbers with commas between") from None


def print_cost(cost: Cost) -> None:
    """Print what a call would take."""
    from planescope.cli.printing import say

    inputs = "as many inputs as there are" if cost.inputs is None else f"{cost.inputs} inputs"
    time = "" if cost.seconds is None else f", at most about {cost.seconds:.0f} s"
    say(f"{cost.layers} layers, {cost.cells} cells on {inputs}{time}")


def print_sensitivity(found: Sensitivity) -> None:
    """Print layers by ways, and what the numbers are."""
    from rich.text import Text

    from planescope.cli.printing import console

    out = console()
    out.print(Text(f"{found.source}: {found.network} on {found.data}", style="bold"))
    if found.trained is not None:
        out.print(Text(f"whole network: {found.metric} {found.trained:.4g}"))
    if found.expected is not None:
        out.print(Text(f"whole network: expects itself to be right in {found.expected:.1%}"))
    out.print(_table(found))
    out.print(Text(found.sentence))
    for note in found.notes:
        out.print(Text(note, style="dim"))


def _table(found: Sensitivity) -> Table:
    from planescope.cli.printing import plain_table

    table = plain_table("layer", "parameters", "multiply-adds", *found.ways)
    for layer in found.layers:
        work = "" if layer.multiply_adds is None else f"{layer.multiply_adds:,}"
        cells = [_cell(layer, key, has_loss=found.has_loss) for key in found.ways]
        table.add_row(layer.name, f"{layer.parameters:,}", work, *cells)
    return table


def _cell(layer: LayerSensitivity, key: str, *, has_loss: bool) -> Any:
    from rich.text import Text

    one = layer.ways.get(key)
    value = None if one is None else one.loss if has_loss else one.score
    if value is None:
        return Text("")
    style = "red" if value > 0.3 else "yellow" if value > 0.1 else "green"
    return Text(f"{value:.1%}" if abs(value) < 10 else f"{value:.3g}", style=style)
