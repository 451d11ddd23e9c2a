"""``planescope plan``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, get_args

import click

from planescope.cli.options import (
    TRUST,
    check_inputs,
    numbers,
    of_inputs,
    prepared_options,
    typed_command,
)
from planescope.cli.printing import console, plain_table, say_costs
from planescope.cli.progress import layer_progress
from planescope.criticality.options import EXAMPLES, PlannedWay
from planescope.files import signals
from planescope.files.errors import StoppedError, UsageError, counted
from planescope.files.targets import FIGURES, PAGES, TABLES, check_apart, check_targets
from planescope.training.memory import keep_memory

if TYPE_CHECKING:
    from planescope.criticality.plan.planned import Plan, PlanCost


# The search that it would bound was behind a repaired rival, and went (docs/results/plan.md).
NO_SEARCH = (
    "--moves: a plan has no search, which was worse than global magnitude with a repair; the "
    "allocations in its table are all that are tried, so leave it out"
)


@click.command()
@click.argument("model", metavar="FILE|RUN")
@click.option(
    "--network", "--model", metavar="NAME", help="Of a checkpoint: lenet, vgg16_bn, ..."
)  # fmt: skip
@click.option(
    "--data",
    metavar="NAME",
    help="With labels, which measure the loss: digits, mnist, cifar10, folder:PATH, "
    "package.module:callable.  [default: synthetic pictures]",
)
@click.option("--inputs", metavar="NAME", help="Likewise, but labels are not looked at.")
@prepared_options
@click.option(
    "--way",
    type=click.Choice(get_args(PlannedWay)),
    default="prune",
    show_default=True,
)
@click.option("--to", metavar="FILE|EPOCH", help="Reset or freeze to this state.")
@click.option("--size", metavar="SHARE", type=float, help="Of the weights that stays.")
@click.option("--bits", metavar="MEAN", type=float, help="With --way bits: mean over weights.")
@click.option("--budget", metavar="LOSS", type=float, help="The smallest within this loss.")
@click.option("--curve", metavar="SIZE,..", help="Tell the cost of these sizes, or bits, too.")
@click.option("--keep", multiple=True, metavar="NAME", help="Layer that stays whole; repeatable.")
@click.option("--moves", metavar="N", type=click.IntRange(0), default=0, hidden=True)
@click.option("--no-repair", is_flag=True, help="Compare the allocations as they are.")
@click.option(
    "--examples", metavar="N", type=click.IntRange(2), default=EXAMPLES, show_default=True,
    help="Inputs to repair on; as many more for the table.",
)  # fmt: skip
@click.option("--seed", metavar="N", type=int, default=0, show_default=True, help="Of draws.")
@TRUST
@click.option("--dry-run", is_flag=True, help="Count passes and tell the time, and do no more.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option(
    "--out", metavar="FILE", help="Write the network: .safetensors, .pt or .pth; of ONNX, .onnx."
)
@click.option("--table", metavar="FILE", help="Write the table: .json, .csv or .parquet.")
@click.option("--figure", metavar="FILE", help="Draw cost against size: .pdf, .svg or .png.")
@click.option("--page", metavar="FILE", help="Write an HTML page of the network and the plan.")
def plan(
    model: str,
    *,
    network: str | None,
    data: str | None,
    inputs: str | None,
    no_repair: bool,
    as_json: bool,
    out: str | None,
    table: str | None,
    figure: str | None,
    page: str | None,
    moves: int,
    **choices: Any,
) -> None:
    """Make a smaller network out of a trained one, within a size or a loss, and say what it costs.

    Weights, filters or bits go where others would take them, or layers go back to an earlier state;
    each allocation is repaired without training, and the one nearest to the whole network is the
    plan.
    """
    from planescope.criticality.plan.forms import export
    from planescope.criticality.plan.planned import PlanCost
    from planescope.criticality.plan.search import plan as make_plan

    if moves:
        raise UsageError(NO_SEARCH)
    keep_memory()
    check_inputs(inputs, data)
    check_targets(
        (out, () if out is None else export.forms(model)),
        (table, TABLES),
        (figure, FIGURES),
        (page, PAGES),
    )
    check_apart(out, model)
    options = _options(choices, synthetic=inputs is None and data is None)
    with layer_progress() as advance:
        made = make_plan(
            model, network=network, data=data or inputs, labelled=data is not None,
            repair=not no_repair, on_try=advance, **options,
        )  # fmt: skip
    if isinstance(made, PlanCost):
        costs = [(model, made)]
        say_costs("planescope.plan-forecast/1", costs, cost_in_words, as_json=as_json)
        return
    if out is not None:
        from planescope.criticality.plan.forms.opening import opened

        given = opened(model, network, "network", trust=options["trust"])
        export.save_network(made.module, out, like=given.file, architecture=given.architecture)
    if table is not None:
        made.save(table)
    if figure is not None:
        from planescope import figures

        figures.save(figures.plan(made), figure)
    if page is not None:
        from planescope.figures.report import report

        told = {"network": network, "trust": options["trust"]}
        report(model, made, command=typed_command(), **told).save(page)
    if as_json:
        sys.stdout.write(made.to_json() + "\n")
    else:
        print_plan(made)
    if signals.is_ended():
        raise StoppedError("interrupted; the plan is the best of the tries that were made")


def _options(choices: dict[str, Any], *, synthetic: bool) -> dict[str, Any]:
    to = choices.pop("to")
    if to is not None:
        choices["to"] = int(to) if to.lstrip("-").isdecimal() else to
    choices["curve"] = numbers("--curve", choices.pop("curve"))
    return of_inputs(choices, synthetic=synthetic)


def cost_in_words(cost: PlanCost) -> str:
    """Say what a plan would take."""
    return (
        f"{counted(cost.layers, 'layer')}, at most {cost.tries} tries, {cost.passes} passes of "
        f"parts of {counted(cost.examples, 'example')}: about {cost.seconds:.0f} s, and what "
        "fitting weights takes"
    )


def print_plan(made: Plan) -> None:
    """Print what stays of each layer, and the rivals."""
    from rich.text import Text

    from planescope.files.results.result import skipped_lines

    out = console()
    what = "bits" if made.way == "bits" else "size"
    out.print(Text(f"{made.source}: {made.way}, {what} {made.asked:g}", style="bold"))
    setting = {
        "prune": "pruned", "filters": "filters removed", "reset": "reset", "freeze": "frozen",
    }.get(made.way, made.way)  # fmt: skip
    rows = plain_table("layer", "weights", setting, "size", f"{made.measure} alone", "jointly")
    for layer in made.layers:
        costs = ("" if x is None else f"{x:.3g}" for x in (layer.alone, layer.jointly))
        rows.add_row(
            layer.name, f"{layer.parameters:,}", f"{layer.setting:.3g}", f"{layer.size:.3f}", *costs
        )
    out.print(rows)
    told = "accuracy" if made.method == "measured" else "agreement"
    rivals = plain_table("allocation", "size", made.measure, told, "loss", left=("allocation",))
    for rival in (*made.rivals, *made.curve):
        share = rival.accuracy if made.method == "measured" else rival.agreement
        rivals.add_row(
            f"{rival.title}{'  (the plan)' if rival == made.chosen else ''}",
            f"{rival.size:.3f}",
            "" if rival.divergence is None else f"{rival.divergence:.4g}",
            "" if share is None else f"{share:.1%}",
            "" if rival.loss is None else f"{rival.loss:.1%}",
        )
    out.print(rivals)
    out.print(Text(made.verdict), soft_wrap=not out.is_terminal)
    if made.put_back and made.way == "freeze":
        out.print(Text(f"requires_grad_(False): {', '.join(made.put_back)}"))
    for line in (*made.remarks, *made.notes, *skipped_lines(made.skipped, made.LEFT)):
        out.print(Text(line, style="dim"))
