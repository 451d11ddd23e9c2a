"""``planescope relate``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from planescope.cli.options import code_options, consent
from planescope.cli.printing import console, plain_table
from planescope.cli.progress import layer_progress
from planescope.files.targets import FIGURES, TABLES, check_targets

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from planescope.criticality.relation.record import Advice, Association, Relation, Share


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN|RESULT...")
@click.option(
    "--critical",
    metavar="X",
    type=float,
    default=0.10,
    show_default=True,
    help="Bound of the loss: critical is a layer whose 95 % interval lies above it.",
)
@click.option(
    "--robust",
    metavar="X",
    type=float,
    default=0.02,
    show_default=True,
    help="A loss up to this, or within noise, makes a layer robust that is not critical.",
)
@click.option(
    "--snapshot",
    metavar="NAME",
    help="What saved resets are about; by default the start, 0 or init, or the only one.",
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
    snapshot: str | None,
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
    several runs, intervals draw whole ones anew. Of any other network give what was saved: its
    resets (planescope reset --out) and its measurement (planescope measure --init --out). Scores
    that need no data are held against what each layer costs when it is put back to its start.
    """
    from planescope.criticality.relation.relate import relate as relate_runs

    check_targets((out, TABLES), (figure, FIGURES))
    given = consent(runs, network=network, data=data, trust=trust)
    with layer_progress() as advance:
        relation = relate_runs(
            [one for source in runs for one in _sources(source, given)],
            critical=critical,
            robust=robust,
            snapshot=snapshot,
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


def _sources(source: str, given: Mapping[str, Any]) -> Sequence[Any]:
    """Return the runs of a folder, or the file of a saved result."""
    from pathlib import Path

    from planescope.study.folder import runs_in

    return [source] if Path(source).is_file() else runs_in([source], **given)


def print_relation(relation: Relation) -> None:
    """Print how each score goes with the drops, what each layer costs, and the verdict."""
    from rich.text import Text

    from planescope.criticality.relation.conclusions import spoken

    out = console()
    pooled = [
        a for a in relation.associations if a.run is None and a.selection is relation.selection
    ]
    runs = relation.runs[0] if len(relation.runs) == 1 else f"{len(relation.runs)} runs"
    out.print(Text(f"{runs}: scores against the relative drop, {spoken(relation)}", style="bold"))
    out.print(_scores_table(pooled, out))
    for line in _other_selections(relation):
        out.print(Text(line))
    if relation.advice:
        out.print(Text(_critical(relation), style="bold"))
        out.print(_advice_table(relation.advice))
    for line in _best(relation):
        out.print(Text(line))
    if relation.areas:
        bound = f"critical by a loss above {relation.critical:.0%}"
        out.print(Text(f"ROC AUC, {bound}", style="bold"))
        out.print(_areas_table(relation))
    if shares := [s for s in relation.shares if s.selection is relation.selection]:
        out.print(Text("both directions of the claim, decided layers", style="bold"))
        out.print(_shares_table(shares))
    out.print(Text(relation.verdict), soft_wrap=not out.is_terminal)
    for note in relation.notes:
        out.print(Text(note, style="dim"))


def _critical(relation: Relation) -> str:
    return (
        "what putting a layer back costs; critical: the 95 % interval of the loss lies above "
        f"{relation.critical:.0%}"
    )


_OTHERS = {
    "all": "all layers",
    "first": "layers whose input is an image",
    "other": "layers behind something else than a ReLU",
}


def _other_selections(relation: Relation) -> list[str]:
    """Return the agreement in the layers that the table is not about.

    All together, the others apart.
    """
    from planescope.criticality.definition import Critical
    from planescope.criticality.relation.record import Selection

    lines = []
    for name, text in _OTHERS.items():
        found = relation.at("agreement", Selection(name))
        if found is None or found.selection is relation.selection:
            continue
        decided = [each for each in relation.chosen(Selection(name)) if each.is_decided]
        critical = sum(each.critical is Critical.YES for each in decided)
        rho = _with_interval(found.rho, found.rho_low, found.rho_high)
        told = f"agreement has rho {rho}, p = {_p_value(found.rho_p)}; " if rho else ""
        verb = "is" if critical == 1 else "are"
        lines.append(f"{text}: {told}{critical} of {len(decided)} decided {verb} critical")
    return lines


def _scores_table(pooled: list[Association], out: Console) -> Table:
    """Return all columns, or as many as the terminal has room for."""
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
    several = len({one.network for one in advice}) > 1
    titles = ("layer", "loss", "95 % interval", "critical", "in runs", "robust", "relative drop")
    table = plain_table(*(("network",) if several else ()), *titles)
    for one in advice:
        name = (one.network, one.layer) if several else (one.layer,)
        span = (
            "" if one.loss_low is None or one.loss_high is None
            else f"{one.loss_low:.1%} to {one.loss_high:.1%}"
        )  # fmt: skip
        table.add_row(
            *name,
            "" if one.loss is None else f"{one.loss:.1%}",
            span,
            one.critical or "",
            f"{one.yes} of {one.runs}",
            f"{one.robust} of {one.runs}",
            "" if one.relative_drop is None else f"{one.relative_drop:.1%}",
        )
    return table


def _areas_table(relation: Relation) -> Table:
    """Return areas: over all pairs, within networks, on decided layers, and ahead of rivals."""
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
    table = plain_table("", "layers", "robust", "critical", "undecided")
    for biased in (False, True):
        robust, critical = (s for s in shares if s.biased is biased)
        table.add_row(
            "biased" if biased else "unbiased",
            str(robust.layers),
            _with_interval(robust.share, robust.low, robust.high),
            _with_interval(critical.share, critical.low, critical.high),
            str(critical.undecided),
        )
    return table


def _best(relation: Relation) -> list[str]:
    """Return the score that ranks best, agreement and position aside."""
    return [
        f"best: {one.best}; its |rho| is {'' if one.low > 0 else 'not '}larger than that of "
        f"{one.other}{'' if one.low > 0 else ' beyond chance'}: by {one.difference:.2f} "
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
