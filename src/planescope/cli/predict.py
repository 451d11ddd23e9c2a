"""``planescope predict``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from planescope.cli.options import INPUTS, NETWORK, cell_options, of_inputs, prepared_options
from planescope.cli.printing import console, plain_table, say_costs
from planescope.cli.progress import layer_progress
from planescope.cli.sensitivity import cost_in_words
from planescope.files.errors import UsageError
from planescope.files.targets import FIGURES, TABLES, check_targets
from planescope.training.memory import keep_memory

if TYPE_CHECKING:
    from rich.table import Table

    from planescope.criticality.prediction import Prediction


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE|RUN...")
@click.option(
    "--init",
    metavar="FILE",
    help="The initialisation that this very network started from; or timm:NAME. Of a run, its own.",
)
@NETWORK
@INPUTS
@prepared_options
@cell_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--out", metavar="FILE", help="Write the table: .json, .csv or .parquet.")
@click.option("--figure", metavar="FILE", help="Draw it, of one network: .pdf, .svg or .png.")
def predict(
    files: tuple[str, ...],
    *,
    inputs: str | None,
    as_json: bool,
    out: str | None,
    figure: str | None,
    **choices: Any,
) -> None:
    """Say which layers a network cannot do without, without labels.

    Each layer is put back to the initialisation. With nothing but that, synthetic pictures rank
    layers and tell the clear cases; inputs without labels tell the loss that the network itself
    expects. Without the initialisation there is no verdict: layers have their agreement.
    """
    from planescope.criticality.prediction import predict_critical
    from planescope.criticality.sensitivity import Cost
    from planescope.files.results import result as results

    keep_memory()
    check_targets((out, TABLES), (figure, FIGURES))
    if figure is not None and len(files) > 1:
        raise UsageError("--figure draws one network; give one FILE, or draw them one by one")
    options = of_inputs(choices, synthetic=inputs is None)
    predictions, costs = [], []
    for file in files:
        with layer_progress() as advance:
            found = predict_critical(file, data=inputs, on_cell=advance, **options)
        if isinstance(found, Cost):
            costs.append((file, found))
        else:
            predictions.append(found)
    if costs:
        say_costs("planescope.prediction-forecast/1", costs, cost_in_words, as_json=as_json)
        return
    if out is not None:
        results.save(predictions, out)
    if figure is not None:
        from planescope import figures

        figures.save(figures.prediction(predictions[0]), figure)
    if as_json:
        sys.stdout.write(results.to_json(predictions) + "\n")
        return
    for one in predictions:
        print_prediction(one)


def print_prediction(found: Prediction) -> None:
    """Print scores and verdicts, what the scores are, and warnings."""
    from rich.text import Text

    from planescope.files.results.result import skipped_lines

    out = console()
    where = "" if found.init is None else f" put back to {found.init}, on {found.data}"
    out.print(Text(f"{found.source}: {found.network}{where}", style="bold"))
    if found.expected is not None:
        out.print(Text(f"whole network: expects itself to be right in {found.expected:.1%}"))
    out.print(_table(found))
    out.print(Text(found.sentence))
    for line in (*found.notes, *skipped_lines(found.skipped)):
        out.print(Text(line, style="dim"))


_STYLES = {"yes": "red", "no": "green", "undecided": "yellow"}


def _table(found: Prediction) -> Table:
    from rich.text import Text

    losses = ("loss", "95 % interval") if found.has_loss else ()
    verdicts = ("critical",) if any(layer.critical for layer in found.layers) else ()
    table = plain_table(
        "layer", "kind", "score", *losses, *verdicts, left=("layer", "kind", "critical")
    )
    for layer in found.layers:
        cells: list[str | Text] = [layer.name, layer.kind.value, f"{layer.score:.3g}"]
        if losses and layer.loss is not None:
            span = "" if layer.lower is None else f"{layer.lower:.1%} to {layer.upper:.1%}"
            cells += [f"{layer.loss:.1%}", span]
        elif losses:
            cells += ["", ""]
        if verdicts:
            text = "" if layer.critical is None else layer.critical.value
            cells.append(Text(text, style=_STYLES.get(text, "")))
        table.add_row(*cells)
    return table
