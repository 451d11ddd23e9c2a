"""``planescope fit``."""

from __future__ import annotations

import click

from planescope.cli.options import code_options, consent


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--held-out",
    multiple=True,
    metavar="RUN",
    help="A run, or study, that the model is only tried on; repeatable.",
)
@click.option(
    "--critical",
    metavar="X",
    type=float,
    default=0.10,
    show_default=True,
    help="A relative drop above this, if significant, makes a layer critical.",
)
@code_options
@click.option("--out", metavar="FILE", required=True, help="Write the model: .json.")
def fit(
    runs: tuple[str, ...],
    *,
    held_out: tuple[str, ...],
    critical: float,
    network: str | None,
    data: str | None,
    trust: bool,
    out: str,
) -> None:
    """Fit the model of planescope predict to runs whose layers were reset.

    RUN is the folder of such a run, or of a study.
    """
    from planescope.cli.printing import console
    from planescope.files.optional import required
    from planescope.files.writing import check_target
    from planescope.study.folder import runs_in

    check_target(out, (".json",))
    required("sklearn")
    from planescope.criticality.fitting import fit_critical

    given = consent((*runs, *held_out), network=network, data=data, trust=trust)
    model = fit_critical(
        runs_in(runs, **given), held_out=runs_in(held_out, **given), critical=critical
    )
    model.save(out)
    print_to = console()
    print_to.print(model.fitted_on)
    for name, found in (("left out in turn", model.cross_validated), ("held out", model.held_out)):
        if found is not None:
            area = "" if found.auc is None else f", ROC AUC {found.auc:.2f}"
            print_to.print(
                f"{name}: {found.runs} runs, {found.layers} layers, {found.critical} critical; "
                f"Brier score {found.brier:.3f} (by position {found.brier_of_position:.3f}, by the "
                f"share alone {found.brier_of_rate:.3f}){area}"
            )
