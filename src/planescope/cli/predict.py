"""``planescope predict``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from planescope.cli.options import KINDS

if TYPE_CHECKING:
    from planescope.criticality.prediction import Prediction


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--network",
    "--model",
    metavar="NAME",
    help="Network of a state dict (lenet, vgg16_bn, ...): tells what feeds each layer, and norms.",
)
@KINDS
@click.option("--model", metavar="FILE", help="Another model, as planescope fit writes it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--out", metavar="FILE", help="Write the table: .json, .csv or .parquet.")
def predict(
    files: tuple[str, ...],
    *,
    network: str | None,
    kinds: tuple[str, ...],
    model: str | None,
    as_json: bool,
    out: str | None,
) -> None:
    """Say how likely each layer of a checkpoint is critical, without data.

    A layer is critical where putting it back to its initialisation costs much accuracy. The model
    was fitted on small networks whose layers were reset; a network far from those gets a warning.
    FILE is as for planescope measure.
    """
    from planescope.criticality import prediction
    from planescope.files import results
    from planescope.files.writing import check_targets
    from planescope.measurement.measure import measure

    check_targets((out, results.FORMS))
    fitted = None if model is None else prediction.CriticalModel.load(model)
    predictions = [
        prediction.predict_critical(measure(file, network=network, kinds=kinds), model=fitted)
        for file in files
    ]
    if out is not None:
        results.save(predictions, out)
    if as_json:
        sys.stdout.write(results.to_json(predictions) + "\n")
        return
    for one in predictions:
        print_prediction(one)


def print_prediction(prediction: Prediction) -> None:
    """Print the probabilities, what they were fitted on, and warnings."""
    from rich.text import Text

    from planescope.cli.printing import console, plain_table

    out = console()
    out.print(Text(prediction.source, style="bold"))
    table = plain_table("layer", f"P(drop > {prediction.critical:.0%})", "")
    for layer in prediction.layers:
        shown = "" if layer.probability is None else f"{layer.probability:.2f}"
        table.add_row(layer.name, shown, "unlike those fitted on" if layer.far else "")
    out.print(table)
    for line in (*prediction.notes, prediction.fitted_on):
        out.print(Text(line, style="dim"))
