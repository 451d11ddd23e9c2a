"""``planescope quickstart``."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import click

from planescope.cli.printing import console
from planescope.cli.progress import layer_progress
from planescope.cli.reset_table import print_resets

if TYPE_CHECKING:
    from planescope.cli.story import Loss, Published, Quickstart


@click.command()
@click.option(
    "--out",
    metavar="FOLDER",
    default="quickstart",
    show_default=True,
    help="Where tables, figures and the run go.",
)
@click.option(
    "--epochs", type=click.IntRange(1), default=15, show_default=True, help="Of the training."
)
def quickstart(*, out: str, epochs: int) -> None:
    """Measure two published networks, train one on digits, and see what its layers are worth.

    VGG16 of ImageNet, one of the paper's own, and EfficientNet-Lite0, which behaves otherwise. Then
    a bias emerges as a network learns; each of its layers is put back to earlier weights, and the
    loss is held against the bias. Without what training needs (pip install '.[train]')
    only the published networks are measured.
    """
    from planescope.cli import story as parts
    from planescope.cli.relate import print_relation
    from planescope.cli.tables import print_measurement
    from planescope.training.memory import keep_memory

    out_of = console()
    published = parts.measure_published(out)
    for title, measurement in published.measurements.items():
        out_of.print(f"{title}:", style="bold")
        print_measurement(measurement)
        out_of.print()
    for sentence in published.missing:
        out_of.print(sentence, style="bold")
    _print_files(published)
    if any(find_spec(package) is None for package in ("torch", "pytorch_lightning", "mlxtend")):
        out_of.print()
        out_of.print("To train a network too: pip install '.[train]'")
        return
    keep_memory()
    out_of.print()
    out_of.print(f"A LeNet on 4,000 real digits, {epochs} epochs:", style="bold")
    with layer_progress() as progress:
        trained = parts.train_on_digits(out, epochs=epochs, progress=progress)
    print_measurement(trained.measurement)
    _print_emergence(trained)
    _print_files(trained)
    out_of.print()
    out_of.print("Each of its layers put back to earlier weights:", style="bold")
    with layer_progress() as progress:
        lost = parts.reset_and_relate(trained.run, out, progress=progress)
    print_resets(lost.resets)
    if lost.relation is not None:
        print_relation(lost.relation)
    _print_files(lost)
    page = parts.report_page(trained.run, out)
    if page is None:
        out_of.print("To have all of it on one page: pip install '.[report]'")
    else:
        out_of.print(f"all of it on one page: {page}", style="bold")


def _print_emergence(trained: Quickstart) -> None:
    """Say what the training changed: before, after, accuracy."""
    before, after = trained.initial.network, trained.measurement.network
    accuracy = trained.run.metrics[-1].val_accuracy
    console().print(
        f"Before training {before.biased_layers} of {before.layers} layers were biased (negative "
        f"mass of all filters {before.negative_mass:.3f}, chance gives 0.500); after it "
        f"{after.biased_layers} of {after.layers} ({after.negative_mass:.3f}), at an accuracy of "
        f"{accuracy:.1%} on the 1,000 other digits."
    )


def _print_files(made: Published | Quickstart | Loss) -> None:
    for path in made.files:
        console().print(f"written: {path}", style="bold")
