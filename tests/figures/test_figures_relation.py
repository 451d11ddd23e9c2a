"""Figures of a relation draw what was found, and can be read, with few runs and with many."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

import numpy as np
import pytest
from drawn_text import assert_apart, assert_inside
from scipy.stats import rankdata

from planescope import figures
from planescope.criticality.definition import Critical
from planescope.criticality.relation import ranks as association
from planescope.criticality.relation.record import RelatedLayer, Relation, Selection
from planescope.criticality.relation.relate import relate_layers
from planescope.criticality.scores import SCORES
from planescope.figures.relation import FACES
from planescope.files.errors import UsageError
from planescope.hyperplanes.layer import Input, Kind

pytestmark = pytest.mark.filterwarnings("error::UserWarning")


def relation(runs: int, layers: int, *, names="features.{}", critical=None) -> Relation:
    rng = np.random.default_rng(runs * 100 + layers)
    rows = []
    for run in range(runs):
        for i in range(layers):
            score, drop = rng.random(2)
            verdict = Critical.YES if drop > 0.5 else Critical.NO
            if critical is not None:
                verdict = Critical.YES if critical else Critical.NO
            elif 0.4 < drop < 0.6:
                verdict = Critical.UNDECIDED
            rows.append(
                RelatedLayer(
                    run=f"runs/seed-{run}",
                    network="net" if run % 2 else "a-network-of-a-long-name",
                    name=names.format(i),
                    kind=Kind.CONV,
                    input=Input.RELU if i else Input.IMAGE,
                    biased=score > 0.5,
                    relative_drop=float(drop),
                    loss=float(drop),
                    critical=verdict,
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
    drawn = defaultdict(set)
    for line in axes.lines:
        if line.get_markersize() < 6:  # rings of first layers are larger
            drawn[line.get_markerfacecolor()] |= {
                tuple(xy) for xy in np.column_stack(line.get_data())
            }
    assert {layer.critical for layer in found.layers} == {*Critical}
    for verdict in Critical:
        wanted = {
            (x.scores["agreement"], 100 * x.relative_drop)
            for x in found.layers
            if x.critical is verdict
        }
        assert wanted <= drawn[FACES[verdict][0]]


def test_marks_of_a_layer_are_its_mean_ranks():
    found = relation(3, 5)
    (axes,) = figures.ranks(found).axes
    runs = [
        [x for x in found.layers if x.run == run and x.input is Input.RELU]
        for run in ("runs/seed-0", "runs/seed-2")  # of the commonest network
    ]
    by_score = np.mean([rankdata([x.scores["agreement"] for x in run]) for run in runs], axis=0)
    by_drop = np.mean([rankdata([x.relative_drop for x in run]) for run in runs], axis=0)
    lines = {line.get_label(): line.get_xdata() for line in axes.lines}
    assert lines["agreement"] == pytest.approx(by_score)
    assert lines["relative drop"] == pytest.approx(by_drop)


def test_a_curve_is_that_of_the_layers_and_its_area_that_of_the_relation():
    found = relation(3, 5)
    (axes,) = figures.roc(found).axes
    (curve,) = (x for x in axes.lines if str(x.get_label()).startswith("agreement, area"))
    layers = [x for x in found.layers if x.input is Input.RELU and x.is_decided]
    scores = np.array([x.scores["agreement"] for x in layers])
    critical = np.array([x.critical is Critical.YES for x in layers])
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
