"""``planescope measure``."""

from __future__ import annotations

import sys
from typing import Any

import click

from planescope.cli.options import ENTRY, KINDS, LAYERS
from planescope.cli.progress import layer_progress
from planescope.files.errors import UsageError
from planescope.files.targets import CARDS, FIGURES, FILTERS, TABLES, check_targets


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--view",
    type=click.Choice(["raw", "effective"]),
    default="raw",
    show_default=True,
    help="The convolutions' own hyperplanes, as in the paper, or with batch norm folded in.",
)
@click.option(
    "--each", is_flag=True, help="Of a folder, measure every model in it, in order of their names."
)
@KINDS
@LAYERS
@click.option(
    "--transposed",
    metavar="REGEX",
    help="Names of transposed convolutions, which a state dict does not tell.",
)
@click.option(
    "--layout",
    metavar="[REGEX=]LAYOUT",
    multiple=True,
    help="Where a state dict has its filters: filters-first (PyTorch), filters-last (Keras, "
    "Flax) or first with channels-last (MLX). Otherwise judged by names, biases, norms and "
    "shapes; repeatable.",
)
@click.option(
    "--norms",
    metavar="LAYER=NORM",
    multiple=True,
    help="The batch norm behind a layer of a state dict; LAYER= for none; repeatable.",
)
@click.option("--eps", type=float, help="Epsilon of a state dict's norms, which it does not hold.")
@ENTRY
@click.option("--pairing", is_flag=True, help="Show the norm of each layer, and what told it.")
@click.option(
    "--network",
    "--model",
    metavar="NAME",
    help="Network of a state dict (lenet, vgg16_bn, ...): tells stages, inputs and norms.",
)
@click.option("--init", metavar="FILE", help="The same at initialisation: gives l2 and linf.")
@click.option(
    "--data",
    metavar="NAME",
    help="Data set (digits, mnist, cifar10, ...), or package.module:callable, which returns a "
    "DataLoader or a Dataset: measures centre and activation rate. Needs torch and --network.",
)
@click.option("--data-path", metavar="FOLDER", help="Where the files of the data set lie.")
@click.option(
    "--top", type=click.IntRange(min=1), metavar="N", help="Show the N layers turned most."
)
@click.option("--by-stage", is_flag=True, help="Show a row a stage in place of a row a layer.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--out", metavar="FILE", help="Write the table: .json, .csv or .parquet.")
@click.option(
    "--filters", metavar="FILE", help="Write the values of each filter: .npz, .csv or .parquet."
)
@click.option("--figure", metavar="FILE", help="Draw the network: .pdf, .svg or .png.")
@click.option(
    "--card", metavar="FILE", help="Write a section for a model card: .md, and a .png beside it."
)
def measure(
    files: tuple[str, ...],
    *,
    view: str,
    each: bool,
    kinds: tuple[str, ...],
    layers: str | None,
    transposed: str | None,
    layout: tuple[str, ...],
    norms: tuple[str, ...],
    eps: float | None,
    entry: str | None,
    pairing: bool,
    network: str | None,
    init: str | None,
    data: str | None,
    data_path: str | None,
    top: int | None,
    by_stage: bool,
    as_json: bool,
    out: str | None,
    filters: str | None,
    figure: str | None,
    card: str | None,
) -> None:
    """Measure the hyperplanes of checkpoints: no data, no GPU; nothing in a file is executed.

    FILE is a checkpoint, a folder with one model, hf:OWNER/NAME[@REVISION][/FILE],
    torchvision:NAME or timm:NAME.
    """
    from planescope.checkpoints.locate import locate_each
    from planescope.files.results import result as results
    from planescope.measurement.measure import measure as measure_one
    from planescope.measurement.record import save_filters

    if each:
        files = tuple(model for file in files for model in locate_each(file))
    _check_outputs(files, out=out, filters=filters, figure=figure, card=card)
    options: dict[str, Any] = {
        "view": view,
        "kinds": kinds,
        "layers": layers,
        "transposed": transposed,
        "layout": layout,
        "norms": norms,
        "eps": eps,
        "entry": entry,
        "network": network,
        "init": init,
        "data": data,
        "data_path": data_path,
    }
    with layer_progress() as advance:
        if len(files) == 1:
            measured = [measure_one(files[0], on_layer=advance, **options)]
        else:
            from planescope.measurement.processes import measure_all

            measured = measure_all(files, on_layer=advance, **options)
    if out is not None:
        results.save(measured, out)
    if filters is not None:
        save_filters(measured, filters)
    if figure is not None:
        from planescope import figures

        figures.save(figures.overview(measured[0]), figure)
    if card is not None:
        from planescope.figures.card import write_card

        write_card(measured[0], card)
    if as_json:
        sys.stdout.write(results.to_json(measured) + "\n")
        return
    from planescope.cli.tables import print_measurement

    for one in measured:
        print_measurement(one, pairing=pairing, top=top, by_stage=by_stage)


def _check_outputs(
    files: tuple[str, ...],
    *,
    out: str | None,
    filters: str | None,
    figure: str | None,
    card: str | None,
) -> None:
    """Refuse what could not be written before the files are read."""
    check_targets(
        (out, TABLES),
        (filters, FILTERS),
        (figure, FIGURES),
        (card, CARDS),
    )
    for option, target in (("--figure", figure), ("--card", card)):
        if target is not None and len(files) > 1:
            raise UsageError(f"{option} shows one network; give one file")
