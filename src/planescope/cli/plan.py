"""``planescope plan``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from planescope.criticality.plan.planned import Plan


@click.command()
@click.argument("file", metavar="FILE")
@click.option("--network", required=True, metavar="NAME", help="Of the file: lenet, vgg16_bn, ...")
@click.option(
    "--data",
    "--inputs",
    "data",
    metavar="NAME",
    help="With labels or without: digits, mnist, cifar10, folder:PATH, package.module:callable.  "
    "[default: synthetic pictures]",
)
@click.option("--data-path", metavar="FOLDER", help="Where the files of the data set lie.")
@click.option("--input-shape", metavar="C,H,W", help="Of synthetic pictures.")
@click.option(
    "--way", type=click.Choice(["prune", "rank", "bits"]), default="prune", show_default=True
)
@click.option("--size", metavar="SHARE", type=float, help="Of the weights that stays.")
@click.option("--bits", metavar="MEAN", type=float, help="With --way bits: mean over weights.")
@click.option("--budget", metavar="LOSS", type=float, help="The smallest within this loss.")
@click.option("--keep", multiple=True, metavar="NAME", help="Layer that stays whole; repeatable.")
@click.option("--no-repair", is_flag=True, help="Compare the allocations as they are.")
@click.option(
    "--examples", metavar="N", type=click.IntRange(2), default=400, show_default=True,
    help="Inputs to repair on; as many more for the table.",
)  # fmt: skip
@click.option("--seed", metavar="N", type=int, default=0, show_default=True, help="Of draws.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--out", metavar="FILE", help="Write the network: .safetensors, .pt or .pth.")
@click.option("--table", metavar="FILE", help="Write the table: .json, .csv or .parquet.")
def plan(
    file: str,
    *,
    network: str,
    data: str | None,
    data_path: str | None,
    input_shape: str | None,
    way: str,
    size: float | None,
    bits: float | None,
    budget: float | None,
    keep: tuple[str, ...],
    no_repair: bool,
    examples: int,
    seed: int,
    as_json: bool,
    out: str | None,
    table: str | None,
) -> None:
    """Make a smaller network out of a checkpoint, within a size or a loss, and say what it costs.

    What others would prune is pruned (or of lower rank, or of fewer bits), each allocation is
    repaired without training, and the one nearest to the whole network is the plan.
    """
    from planescope.cli.progress import layer_progress
    from planescope.criticality.plan import export
    from planescope.criticality.plan.search import plan as make_plan
    from planescope.files.results import FORMS
    from planescope.files.writing import check_targets

    check_targets((out, export.FORMS), (table, FORMS))
    with layer_progress() as advance:
        made = make_plan(
            file,
            network=network,
            way=way,
            size=size,
            bits=bits,
            budget=budget,
            data=data,
            data_path=data_path,
            input_shape=None if input_shape is None else _shape(input_shape),
            repair=not no_repair,
            keep=keep,
            examples=examples,
            seed=seed,
            on_try=advance,
        )
    if out is not None:
        export.save_network(made.module, out, like=file, architecture=network)
    if table is not None:
        made.save(table)
    if as_json:
        sys.stdout.write(made.to_json() + "\n")
    else:
        print_plan(made)


def _shape(text: str) -> tuple[int, ...]:
    from planescope.files.errors import UsageError

    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        raise UsageError(f"--input-shape {text!r}: give channels, height and width, as in 3,32,32")
    return tuple(map(int, parts))


def print_plan(made: Plan) -> None:
    """Print what stays of each layer, and the rivals."""
    from rich.text import Text

    from planescope.cli.printing import console, plain_table

    out = console()
    what = "bits" if made.way == "bits" else "size"
    out.print(Text(f"{made.source}: {made.way}, {what} {made.asked:g}", style="bold"))
    setting = {"prune": "pruned", "rank": "rank", "bits": "bits"}[made.way]
    rows = plain_table("layer", "weights", setting, "size", f"{made.measure} alone")
    for layer in made.layers:
        alone = "" if layer.alone is None else f"{layer.alone:.3g}"
        rows.add_row(
            layer.name, f"{layer.parameters:,}", f"{layer.setting:.3g}", f"{layer.size:.3f}", alone
        )
    out.print(rows)
    told = "accuracy" if made.method == "measured" else "agreement"
    rivals = plain_table("allocation", made.measure, told, "loss", left=("allocation",))
    for rival in made.rivals:
        share = rival.accuracy if made.method == "measured" else rival.agreement
        rivals.add_row(
            f"{rival.name}{', repaired' if rival.repaired else ''}"
            f"{'  (the plan)' if rival == made.chosen else ''}",
            "" if rival.divergence is None else f"{rival.divergence:.4g}",
            "" if share is None else f"{share:.1%}",
            "" if rival.loss is None else f"{rival.loss:.1%}",
        )
    out.print(rivals)
    out.print(Text(made.verdict))
    if made.method == "synthetic":
        out.print(Text("loss: expected on synthetic pictures, uncalibrated", style="dim"))
    for note in made.notes:
        out.print(Text(note, style="dim"))
