"""A study's answers to the paper's claims: a figure each, and all of them in a folder."""

from __future__ import annotations

import html
import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planescope.figures.canvas import (
    AWAY,
    CHANCE,
    FAINT,
    NEUTRAL,
    SIGNS_AN_INCH,
    TOWARD,
    Width,
    canvas,
    inches,
    save,
    shown,
    styled,
)
from planescope.figures.dynamics import ASIDE
from planescope.figures.relation import relation
from planescope.files.errors import printable
from planescope.files.folders import inside, make_inside, replacing_inside
from planescope.hyperplanes import chance
from planescope.study.claims.claims import CLAIMS, Claims, claims
from planescope.study.claims.conditions import (
    NOISE,
    PLAIN,
    RANDOM,
    UNLEARNED,
    WRONG,
    with_conditions,
)
from planescope.study.claims.effects import ALL, COLUMNS, Effect

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from planescope.study.folder import Study

# Inches: a panel's height, a row of effects, and what stands around the rows.
PANEL, PITCH, FRAME, NARROWEST = 1.55, 0.15, 0.75, 1.5
# Inches that a legend of one line needs.
WIDE = 5.0
# Of a network's name; and inches left of a heading.
LONGEST, MARGIN = 24, 0.05


@styled
def masses_before_and_after(table: pd.DataFrame, /, *, width: Width = "page") -> Figure:
    """Draw negative mass of each layer at initialisation and trained, a point a run, by network.

    Runs with true labels, all classes and whole images. Grey bars are the bands of chance that
    were tested, each run's before and after training, corrected over its layers: within the dark
    part no run is beyond chance, beyond the pale part every one is.

    Parameters
    ----------
    table : DataFrame
        As `Study.table` gives it.
    width : {"column", "page"} or inches

    Raises
    ------
    UsageError
        If `width` is invalid.
    """
    plain = _inner_of(_with_levels(table), (PLAIN,))
    figure, panels = _panels(sorted(set(plain["network"])), width)
    for network, axes in panels.items():
        own = plain[plain["network"] == network]
        names = list(dict.fromkeys(own["layer"]))
        for i, name in enumerate(names):
            layer = own[own["layer"] == name]
            first, last = layer[layer["epoch"] == 0], _last(layer)
            _tested(axes, i - 0.2, first)
            _tested(axes, i + 0.2, last)
            _dots(axes, i - 0.18, first["negative_mass"], NEUTRAL, "white")
            _dots(axes, i + 0.18, last["negative_mass"], AWAY, AWAY)
        axes.axhline(0.5, color=NEUTRAL, linewidth=0.5, zorder=1)
        axes.set(ylim=(-0.03, 1.03), xlim=(-0.7, len(names) - 0.3))
        axes.set_xticks(range(len(names)), [str(i + 2) for i in range(len(names))])
        axes.set_xlabel("layer")
    _label_first(panels, "negative mass")
    _legend(
        figure,
        [
            {"marker": "o", "color": NEUTRAL, "markerfacecolor": "white", "label": "initialised"},
            {"marker": "o", "color": AWAY, "label": "trained"},
            {"marker": "s", "color": CHANCE, "label": "chance, tested: in all runs"},
            {"marker": "s", "color": FAINT, "label": "in some runs"},
        ],
    )
    return figure


@styled
def agreement_through_training(table: pd.DataFrame, /, *, width: Width = "page") -> Figure:
    """Draw the mean agreement of the layers behind a ReLU over the epochs, by network.

    Thin lines are runs, thick ones their means: with true labels, and where nothing that holds of
    other images can be learned (all labels wrong, random labels, noise), each where there are such.

    Parameters
    ----------
    table : DataFrame
        As `Study.table` gives it.
    width : {"column", "page"} or inches

    Raises
    ------
    UsageError
        If `width` is invalid.
    """
    chosen = _inner_of(table, (PLAIN, *UNLEARNED))
    figure, panels = _panels(sorted(set(chosen["network"])), width)
    looks: dict[str, dict[str, Any]] = {
        PLAIN: {"color": AWAY, "linestyle": "-"},
        WRONG: {"color": TOWARD, "linestyle": (0, (3, 1))},
        RANDOM: {"color": NEUTRAL, "linestyle": (0, (1, 1))},
        NOISE: {"color": TOWARD, "linestyle": (0, (3, 1, 1, 1))},
    }
    there = set(chosen["condition"])
    looks = {condition: look for condition, look in looks.items() if condition in there}
    for network, axes in panels.items():
        for condition, look in looks.items():
            own = chosen[(chosen["network"] == network) & (chosen["condition"] == condition)]
            for _, run in own.groupby("run", observed=True):
                means = run.groupby("epoch")["agreement"].mean()
                axes.plot(means.index, means, linewidth=0.5, alpha=0.45, **look)
            means = own.groupby("epoch")["agreement"].mean()
            axes.plot(means.index, means, linewidth=1.6, **look)
        axes.set(ylim=(0, 1.03), xlabel="epoch")
    _label_first(panels, "agreement")
    titles = {PLAIN: "true labels"}
    _legend(figure, [{**look, "label": titles.get(name, name)} for name, look in looks.items()])
    return figure


@styled
def effects(found: Sequence[Effect], /, *, width: Width = "page") -> Figure:
    """Draw the differences with their 95 % intervals, a row a network below what is compared.

    Filled where the corrected p < 0.05.

    Parameters
    ----------
    found : sequence of Effect
        Of one claim, at least one.
    width : {"column", "page"} or inches

    Raises
    ------
    UsageError
        If `width` is invalid.
    """
    groups = [list(g) for _, g in itertools.groupby(found, key=lambda one: one.comparison)]
    rows = len(found) + len(groups)
    figure = canvas(width, FRAME + PITCH * rows)
    axes = figure.subplots()
    axes.axvline(0, color=CHANCE, linewidth=0.8, zorder=0)
    places, row = [], 0
    for group in groups:
        _heading(axes, row, group[0].comparison.removesuffix(f", against {PLAIN}"), inches(width))
        for effect in group:
            row += 1
            places.append(row)
            _draw_effect(axes, row, effect)
        row += 1
    networks = [shown(effect.network, LONGEST) for effect in found]
    axes.set_yticks(places, networks)
    axes.set(ylim=(rows - 0.4, -0.6), xlabel=f"difference in {found[0].measure}")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return figure


def _heading(axes: Axes, row: int, text: str, width: float) -> None:
    """Write what the rows below compare, from the figure's left edge on."""
    from matplotlib.transforms import blended_transform_factory

    if row:
        axes.axhline(row - 0.5, color=FAINT, linewidth=0.6, zorder=0)
    figure = axes.figure
    axes.text(
        MARGIN / width, row, shown(text, int(SIGNS_AN_INCH * width)), va="center", weight="bold",
        transform=blended_transform_factory(figure.transFigure, axes.transData),
    ).set_in_layout(False)  # fmt: skip


def _draw_effect(axes: Axes, row: int, effect: Effect) -> None:
    color = NEUTRAL if effect.network == ALL else TOWARD
    if effect.low is not None and effect.high is not None:
        axes.plot([effect.low, effect.high], [row, row], color=color)
    sure = effect.q is not None and effect.q < chance.LEVEL
    face = color if sure else "white"
    axes.plot([effect.effect], [row], "o", color=color, markerfacecolor=face, zorder=3)


def write_claims(
    study: Study | str | os.PathLike[str],
    out: str | os.PathLike[str],
    /,
    *,
    form: str = "png",
    width: Width = "page",
) -> tuple[Claims, tuple[Path, ...]]:
    """Answer the claims, and write ``claims.md`` with a table and a figure for each.

    Parameters
    ----------
    study : Study or path
    out : path
        Folder; it is made if need be. Beside ``claims.md`` it gets ``claims.json``,
        ``claims.csv`` and the figures.
    form : {"png", "svg", "pdf"}
    width : {"column", "page"} or inches

    Returns
    -------
    claims : Claims
    files : tuple of Path
        What was written.

    Raises
    ------
    OutputError
        If the folder cannot be made or written.
    CheckpointError, UsageError
        As `planescope.study.claims.claims`.
    """
    from planescope.study.folder import Study

    inches(width)
    whole = study if isinstance(study, Study) else Study(study)
    found = claims(whole)
    table = whole.table()
    folder = make_inside(out)
    drawn: dict[int, Figure] = {
        1: masses_before_and_after(table, width=width),
        2: agreement_through_training(table, width=width),
    }
    if found.relation is not None:
        drawn[3] = relation(found.relation, width=width)
    if found.of(5):
        drawn[5] = effects(found.of(5), width=width)
    if found.of(4):
        drawn[4] = effects(found.of(4), width=width)
    files = []
    for claim, figure in drawn.items():
        files.append(inside(folder, f"claim-{claim}.{form}"))
        save(figure, files[-1])
    for name in ("claims.json", "claims.csv"):
        files.append(inside(folder, name))
        found.save(files[-1])
    files.append(inside(folder, "claims.md"))
    with replacing_inside(folder, "claims.md") as draft:
        names = {claim: f"claim-{claim}.{form}" for claim in drawn}
        draft.write_text(_markdown(found, names), encoding="utf-8", newline="\n")
    return found, tuple(files)


def _markdown(found: Claims, figures: dict[int, str]) -> str:
    name = Path(found.study).name
    lines = [
        f"# The claims, by the study {_as_text(name)}",
        "",
        f"    planescope claims {printable(name)} --out DIR",
        "",
        "A value is the mean over a run's layers behind a ReLU; intervals (95 %) and tests are "
        "over runs; q-values are corrected over the tests of a claim.",
        "",
    ]
    for (claim, text), answer in zip(CLAIMS.items(), found.answers, strict=True):
        lines += [f"## Claim {claim}", "", f"*{text}*", "", _as_text(answer), ""]
        if claim in figures:
            lines += [f"![Claim {claim}]({figures[claim]})", ""]
        lines += [
            f"| {' | '.join(COLUMNS)} |",
            "| --- " * len(COLUMNS) + "|",
            *(f"| {' | '.join(map(_as_text, effect.cells()))} |" for effect in found.of(claim)),
            "",
        ]
    return "\n".join(lines)


def _as_text(text: str, /) -> str:
    """Return text from a study's files as what marks nothing up; ours stays as it is."""
    return re.sub(r"([\\`*\[\]|~$!])", r"\\\1", html.escape(printable(text), quote=False))


def _with_levels(table: pd.DataFrame) -> pd.DataFrame:
    """Add the p-value below which a mass was beyond chance, by run and epoch.

    Each is corrected over all of its layers, so that the layers must still be whole. A table of
    before that has no corrected p-values tells of each layer alone.
    """
    if "q_mass" not in table:
        return table.assign(level=chance.LEVEL)
    tests = table.groupby(["run", "epoch"], observed=True)["q_mass"]
    levels = tests.transform(lambda q: chance.level_of(q.dropna().astype(float)))
    return table.assign(level=levels)


def _tested(axes: Axes, x: float, rows: pd.DataFrame) -> None:
    """Draw the band of a layer: dark what lies in the bands of all runs, pale of some."""
    bands = [
        chance.mass_band(int(count), level=1 - level)
        for count, level in zip(_usable(rows), rows["level"], strict=True)
        if count > 0
    ]
    if not bands:
        return
    lows, highs = zip(*bands, strict=True)
    for low, high, color in ((min(lows), max(highs), FAINT), (max(lows), min(highs), CHANCE)):
        axes.bar(x, high - low, 0.4, low, color=color, linewidth=0, zorder=0)


def _usable(rows: pd.DataFrame) -> pd.Series:
    """Return the filters that a mass is a share of."""
    return rows["filters"] - sum(rows[name].fillna(0) for name in ASIDE if name in rows)


def _inner_of(table: pd.DataFrame, conditions: Sequence[str]) -> pd.DataFrame:
    """Return the layers behind a ReLU of the runs of some conditions."""
    inner = with_conditions(table)
    return inner[inner["condition"].isin(conditions)]


def _last(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the last epoch of each run."""
    return rows.loc[rows.groupby("run", observed=True)["epoch"].idxmax()]


def _panels(networks: Sequence[str], width: Width) -> tuple[Figure, dict[str, Axes]]:
    """Return a panel a network, as many abreast as there is room for."""
    abreast = max(1, min(len(networks), int(inches(width) / NARROWEST)))
    rows = -(-len(networks) // abreast)
    figure = canvas(width, 0.3 + PANEL * rows)
    grid = figure.subplots(rows, abreast, sharey=True, squeeze=False)
    panels = dict(zip(networks, grid.flat, strict=False))
    for axes in grid.flat[len(networks) :]:
        axes.set_visible(False)
    for network, axes in panels.items():
        axes.set_title(shown(network, 20))
    return figure, panels


def _label_first(panels: dict[str, Axes], label: str) -> None:
    for axes in panels.values():
        if axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            axes.set_ylabel(label)


def _dots(axes: Axes, x: float, values: pd.Series, color: str, face: str) -> None:
    axes.plot(
        [x] * len(values),
        values,
        linestyle="",
        marker="o",
        markersize=2.6,
        color=color,
        markerfacecolor=face,
        markeredgewidth=0.6,
        clip_on=False,
        in_layout=False,
        zorder=3,
    )


def _legend(figure: Figure, entries: Sequence[dict[str, Any]]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **({"linestyle": ""} | entry)) for entry in entries]
    columns = len(handles) if figure.get_figwidth() >= WIDE else 2
    figure.legend(handles=handles, loc="outside upper left", ncols=columns)
