"""Figures of a relation draw what was found, and can be read, with few runs and with many."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from drawn_text import assert_apart, assert_inside
from scipy.stats import rankdata

from planescope import figures
from planescope.criticality import ranks as association
from planescope.criticality.relate import relate_layers
from planescope.criticality.relation import RelatedLayer, Relation, Selection
from planescope.criticality.scores import SCORES
from planescope.files.errors import UsageError
from planescope.hyperplanes.layer import Kind

pytestmark = pytest.mark.filterwarnings("error::UserWarning")


def relation(runs: int, layers: int, *, names="features.{}", critical=None) -> Relation:
    rng = np.random.default_rng(runs * 100 + layers)
    rows = []
    for run in range(runs):
        for i in range(layers):
            score, drop = rng.random(2)
            is_critical = drop > 0.5 if critical is None else critical
            rows.append(
                RelatedLayer(
                    run=f"runs/seed-{run}",
                    network="net" if run % 2 else "a-network-of-a-long-name",
                    name=names.format(i),
                    kind=Kind.CONV,
                    first=i == 0,
                    biased=score > 0.5,
                    drop=float(drop),
                    drop_low=float(drop) - 0.1,
                    drop_high=min(1.0, float(drop) + 0.1),
                    critical=bool(is_critical),
                    robust=False,
                    scores=dict.fromkeys(SCORES, None)
                    | {"agreement": float(score), "position": i / layers, "random": 0.5},
                )
            )
    return relate_layers(rows, draws=99)


SHAPES = {
    "one-run": lambda: relation(1, 6),
    "many-runs": lambda: relation(30, 5),
    "many-layers": lambda: relation(2, 60, names="backbone.stage{}.residual.branch.convolution"),
    "odd-names": lambda: relation(2, 4, names="<script>$x_{}^2$\n"),
    "none-critical": lambda: relation(2, 4, critical=False),
    "two-layers": lambda: relation(1, 2),
}


@pytest.mark.parametrize("width", ["column", "page"])
@pytest.mark.parametrize("shape", SHAPES)
def test_no_text_is_cut_off_and_none_overlaps(shape, width):
    found = SHAPES[shape]()
    for draw in (figures.relation, figures.score_against_drop, figures.ranks, figures.roc):
        figure = draw(found, width=width)
        assert_inside(figure)
        assert_apart(figure)


def test_a_point_a_layer_filled_where_it_is_critical():
    found = relation(3, 5)
    (axes,) = figures.score_against_drop(found).axes
    drawn = {True: set(), False: set()}
    for line in axes.lines:
        if line.get_markersize() < 6:  # rings of first layers are larger
            filled = line.get_markerfacecolor() != "white"
            drawn[filled] |= {tuple(xy) for xy in np.column_stack(line.get_data())}
    for critical in (True, False):
        wanted = {
            (x.scores["agreement"], 100 * x.drop) for x in found.layers if x.critical is critical
        }
        assert wanted <= drawn[critical]


def test_marks_of_a_layer_are_its_mean_ranks():
    found = relation(3, 5)
    (axes,) = figures.ranks(found).axes
    runs = [
        [x for x in found.layers if x.run == run and not x.first]
        for run in ("runs/seed-0", "runs/seed-2")  # of the commonest network
    ]
    by_score = np.mean([rankdata([x.scores["agreement"] for x in run]) for run in runs], axis=0)
    by_drop = np.mean([rankdata([x.drop for x in run]) for run in runs], axis=0)
    lines = {line.get_label(): line.get_xdata() for line in axes.lines}
    assert lines["agreement"] == pytest.approx(by_score)
    assert lines["drop"] == pytest.approx(by_drop)


def test_a_curve_is_that_of_the_layers_and_its_area_that_of_the_relation():
    found = relation(3, 5)
    (axes,) = figures.roc(found).axes
    (curve,) = (x for x in axes.lines if str(x.get_label()).startswith("agreement, area"))
    layers = [x for x in found.layers if not x.first]
    scores = np.array([x.scores["agreement"] for x in layers])
    critical = np.array([x.critical for x in layers])
    grid = np.asarray(curve.get_xdata())
    expected = association.roc(scores, critical, np.ones((1, len(layers))), grid)[0]
    assert np.asarray(curve.get_ydata()) == pytest.approx(expected)
    area = found.at("agreement", Selection.INNER).auc
    assert curve.get_label() == f"agreement, area {area:.2f}"


def test_without_both_kinds_of_layers_there_is_a_word_in_place_of_curves():
    (axes,) = figures.roc(relation(2, 4, critical=True)).axes
    assert any("all layers are alike" in text.get_text() for text in axes.texts)


def test_an_unknown_score_is_refused():
    with pytest.raises(UsageError, match="unknown score 'size'; there are agreement, abs_z"):
        figures.score_against_drop(relation(1, 3), score="size")


def test_layers_without_the_score_are_left_out():
    found = relation(2, 4)
    layers = [dataclasses.replace(x, scores=x.scores | {"l2": None}) for x in found.layers]
    figure = figures.score_against_drop(
        dataclasses.replace(found, layers=tuple(layers)), score="l2"
    )
    assert figure.axes
