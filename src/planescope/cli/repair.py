"""``planescope repair``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, get_args

import click

from planescope.cli.options import TRUST, check_inputs, of_inputs, prepared_options
from planescope.cli.printing import console, plain_table
from planescope.cli.progress import layer_progress
from planescope.criticality.options import EXAMPLES, RepairedBy
from planescope.files.targets import TABLES, check_apart, check_targets
from planescope.training.memory import keep_memory

if TYPE_CHECKING:
    from planescope.criticality.plan.record import Repair


@click.command()
@click.argument("changed", metavar="CHANGED")
@click.option("--reference", required=True, metavar="FILE|RUN", help="The whole network.")
@click.option("--network", "--model", metavar="NAME", help="Of checkpoints: lenet, vgg16_bn.")
@click.option(
    "--inputs",
    metavar="NAME",
    help="Inputs, whose labels are not looked at: digits, mnist, cifar10, folder:PATH, "
    "package.module:callable.  [default: synthetic pictures]",
)
@click.option("--data", metavar="NAME", help="The same: a repair takes no labels.")
@prepared_options
@click.option(
    "--by",
    type=click.Choice(get_args(RepairedBy)),
    default="least squares",
    show_default=True,
    help="Fit the weights that stay, or put back mean and deviation of each channel.",
)
@click.option(
    "--examples", metavar="N", type=click.IntRange(2), default=EXAMPLES, show_default=True,
    help="Take so many inputs; every fourth is kept back.",
)  # fmt: skip
@click.option("--seed", metavar="N", type=int, default=0, show_default=True, help="Of draws.")
@TRUST
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option(
    "--out",
    metavar="FILE",
    help="Write the repaired network: .safetensors, .pt or .pth; of ONNX, .onnx.",
)
@click.option("--table", metavar="FILE", help="Write the table: .json, .csv or .parquet.")
def repair(
    changed: str,
    *,
    reference: str,
    network: str | None,
    inputs: str | None,
    data: str | None,
    by: RepairedBy,
    as_json: bool,
    out: str | None,
    table: str | None,
    **choices: Any,
) -> None:
    """Put the layers of a pruned, quantised or reset network back to where its data lie.

    CHANGED and FILE are checkpoints of one network, or runs. Nothing is trained; shapes, names and
    zeros stay, and a layer is repaired only where that brings the network nearer to FILE's on
    inputs that the repair did not see.
    """
    from planescope.criticality.plan.forms import export
    from planescope.criticality.plan.repair import repair as put_right

    keep_memory()
    check_targets((out, () if out is None else export.forms(changed)), (table, TABLES))
    check_apart(out, changed, reference)
    check_inputs(inputs, data)
    data = data or inputs
    options = of_inputs(choices, synthetic=data is None)
    with layer_progress() as advance:
        done = put_right(
            changed,
            reference,
            architecture=network,
            data=data,
            by=by,
            on_layer=advance,
            **options,
        )
    if out is not None and done.module is not None:
        from planescope.criticality.plan.forms.opening import opened

        given = opened(changed, network, "network", trust=options["trust"])
        export.save_network(done.module, out, like=given.file, architecture=given.architecture)
    if table is not None:
        done.save(table)
    if as_json:
        sys.stdout.write(done.to_json() + "\n")
    else:
        print_repair(done)


def print_repair(done: Repair) -> None:
    """Print what was done to each layer, and what it helped."""
    from rich.text import Text

    out = console()
    out.print(
        Text(f"{done.source}: repaired after {done.reference} on {done.inputs}", style="bold")
    )
    rows = plain_table("layer", "by", "kept", "without", "", left=("layer", "by", "kept", ""))
    for layer in done.layers:
        shown = "" if layer.without is None else f"{layer.without:.4g}"
        kept = ("yes" if layer.kept else "no") if layer.by is not None else ""
        rows.add_row(layer.name, layer.by or "", kept, shown, layer.reason or "")
    out.print(rows)
    out.print(Text(f"without: {done.measure} where this layer alone is not repaired", style="dim"))
    out.print(Text(done.verdict), soft_wrap=not out.is_terminal)
    for note in done.notes:
        out.print(Text(note, style="dim"))
