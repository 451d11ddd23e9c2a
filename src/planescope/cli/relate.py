"""``planescope relate``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from planescope.cli.options import code_options, consent

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from planescope.criticality.relation import Advice, Association, Relation, Share


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--critical",
    metavar="X",
    type=float,
    default=0.10,
    show_default=True,
    help="A relative drop above this, if significant, makes a layer critical.",
)
@click.option(
    "--robust",
    metavar="X",
    type=float,
    default=0.02,
    show_default=True,
    help="A relative drop up to this makes a layer robust.",
)
@click.option("--unfinished", is_flag=True, help="Take runs that are not finished, as they are.")
@click.option(
    "--draws",
    metavar="N",
    type=int,
    default=9999,
    show_default=True,
    help="Of the bootstrap and of shuffles.",
)
@click.option("--seed", metavar="N", type=int, default=0, show_default=True, help="Of these draws.")
@click.option("--alpha", is_flag=True, help="WeightWatcher's alpha too, which takes a while.")
@code_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option("--out", metavar="FILE", help="Write the relation: .json, .csv or .parquet.")
@click.option("--figure", metavar="FILE", help="Draw it: .pdf, .svg or .png.")
def relate(
    runs: tuple[str, ...],
    *,
    critical: float,
    robust: float,
    unfinished: bool,
    draws: int,
    seed: int,
    alpha: bool,
    network: str | None,
    data: str | None,
    trust: bool,
    as_json: bool,
    out: str | None,
    figure: str | None,
) -> None:
    """Ask whether the bias ranks the layers as resets do.

    RUN is the folder of a run whose layers were reset (planescope reset RUN), or of a study; with
    several runs, intervals draw whole ones anew. Scores that need no data are held against the
    relative drop of each layer put back to epoch 0.
    """
    from planescope.cli.progress import layer_progress
    from planescope.criticality.relate import relate as relate_runs
    from planescope.files.results import FORMS
    from planescope.files.writing import FIGURE_FORMS, check_targets
    from planescope.study.folder import runs_in

    check_targets((out, FORMS), (figure, FIGURE_FORMS))
    given = consent(runs, network=network, data=data, trust=trust)
    with layer_progress() as advance:
        relation = relate_runs(
            runs_in(runs, **given),
            critical=critical,
            robust=robust,
            unfinished=unfinished,
            draws=draws,
            seed=seed,
            alpha=alpha,
            on_run=advance,
        )
    if out is not None:
        relation.save(out)
    if figure is not None:
        from planescope import figures

        figures.save(figures.relation(relation), figure)
    if as_json:
        sys.stdout.write(relation.to_json() + "\n")
    else:
        print_relation(relation)


def print_relation(relation: Relation) -> None:
    """Print how each score goes with the drops, what each layer costs, and the verdict."""
    from rich.text import Text

    from planescope.cli.printing import console

    out = console()
    pooled = [
        a for a in relation.associations if a.run is None and a.selection is relation.selection
    ]
    runs = relation.runs[0] if len(relation.runs) == 1 else f"{len(relation.runs)} runs"
    out.print(Text(f"{runs}: scores against the drop, {_LAYERS[relation.selection]}", style="bold"))
    out.print(_scores_table(pooled, out))
    for line in _other_selections(relation):
        out.print(Text(line))
    out.print(Text(f"layers, critical above a drop of {relation.critical:.0%}", style="bold"))
    out.print(_advice_table(relation.advice))
    for line in _best(relation):
        out.print(Text(line))
    if relation.areas:
        out.print(Text(_AREAS, style="bold"))
        out.print(_areas_table(relation))
    out.print(Text("both directions of the claim", style="bold"))
    out.print(_shares_table([s for s in relation.shares if s.selection is relation.selection]))
    out.print(Text(relation.verdict))
    for note in relation.notes:
        out.print(Text(note, style="dim"))


_LAYERS = {"all": "all layers", "inner": "the layers behind a ReLU", "first": "first layers"}


def _other_selections(relation: Relation) -> list[str]:
    """Agreement in the layers that the table is not about: all together, the first ones apart."""
    from planescope.criticality.relation import Selection

    lines = []
    for name, text in _LAYERS.items():
        found = relation.at("agreement", Selection(name))
        if found is None or found.selection is relation.selection:
            continue
        critical = sum(
            s.count for s in relation.shares if (s.selection, s.outcome) == (name, "critical")
        )
        rho = _with_interval(found.rho, found.rho_low, found.rho_high)
        told = f"agreement has rho {rho}, p = {_p_value(found.rho_p)}; " if rho else ""
        lines.append(f"{text}: {told}{critical} of {found.layers} are critical")
    return lines


def _scores_table(pooled: list[Association], out: Console) -> Table:
    """Return all columns, or as many as the terminal has room for."""
    from planescope.cli.printing import plain_table

    for columns in (7, 5, 3):
        table = plain_table("score", *_SCORE_TITLES[:columns])
        for a in pooled:
            cells = (
                _with_interval(a.rho, a.rho_low, a.rho_high),
                _p_value(a.rho_p),
                _p_value(a.rho_q),
                _with_interval(a.auc, a.auc_low, a.auc_high),
                _with_interval(a.partial, a.partial_low, a.partial_high),
                _with_interval(a.tau, a.tau_low, a.tau_high),
                _with_interval(
                    a.average_precision, a.average_precision_low, a.average_precision_high
                ),
            )
            table.add_row(a.score, *cells[:columns])
        if out.measure(table, options=out.options.update(width=1 << 16)).maximum <= out.width:
            break
    return table


_SCORE_TITLES = (
    "Spearman's rho",
    "p",
    "q",
    "ROC AUC",
    "rho given position",
    "Kendall's tau",
    "av. precision",
)


def _advice_table(advice: tuple[Advice, ...]) -> Table:
    from planescope.cli.printing import plain_table

    several = len({one.network for one in advice}) > 1
    titles = ("layer", "drop", "95 % interval", "critical", "robust", "verdict")
    table = plain_table(*(("network",) if several else ()), *titles)
    for one in advice:
        name = (one.network, one.layer) if several else (one.layer,)
        table.add_row(
            *name,
            f"{one.drop:.1%}",
            f"{one.low:.1%} to {one.high:.1%}",
            f"{one.critical} of {one.runs}",
            f"{one.robust} of {one.runs}",
            one.decision,
        )
    return table


_AREAS = "ROC AUC, critical by the loss of what is known beyond chance (above 10 %)"


def _areas_table(relation: Relation) -> Table:
    """Return areas: over all pairs, within networks, on decided layers, and ahead of rivals."""
    from planescope.cli.printing import plain_table

    by = {(area.score, area.over.value): area for area in relation.areas}
    rivals = [r for r in ("l2", "alpha") if (r, "pooled") in by]
    table = plain_table(
        "score",
        "all pairs",
        "within networks",
        "decided",
        "random",
        *(f"minus {r}" for r in rivals),
    )
    for score in dict.fromkeys(area.score for area in relation.areas):
        found = [by.get((score, over)) for over in ("pooled", "within", "decided")]
        cells = ["" if a is None else _with_interval(a.auc, a.low, a.high) for a in found]
        whole = found[0]
        if whole is None:
            continue
        span = (
            "" if whole.random_low is None else f"{whole.random_low:.2f} to {whole.random_high:.2f}"
        )
        ahead = [
            _with_interval(*(getattr(whole, f"over_{r}{end}") for end in ("", "_low", "_high")))
            for r in rivals
        ]
        table.add_row(score, *cells, span, *ahead)
    return table


def _shares_table(shares: list[Share]) -> Table:
    from planescope.cli.printing import plain_table

    table = plain_table("", "layers", "robust", "critical")
    for biased in (False, True):
        robust, critical = (s for s in shares if s.biased is biased)
        table.add_row(
            "biased" if biased else "unbiased",
            str(robust.layers),
            _with_interval(robust.share, robust.low, robust.high),
            _with_interval(critical.share, critical.low, critical.high),
        )
    return table


def _best(relation: Relation) -> list[str]:
    """Return the score that ranks best, agreement and position aside."""
    return [
        f"best: {one.best}; |rho| larger than that of {one.other} by {one.difference:.2f} "
        f"({one.low:.2f} to {one.high:.2f})"
        for one in relation.comparisons
        if one.selection is relation.selection
        and one.other in ("agreement", "position")
        and one.low is not None
    ]


def _with_interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" + ("" if low is None else f" ({low:.2f} to {high:.2f})")


def _p_value(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"
