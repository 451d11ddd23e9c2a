"""Areas for "critical" by its definition, and WeightWatcher's alpha."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from planescope.criticality.alpha import alpha
from planescope.criticality.definition import Critical
from planescope.criticality.relation.areas import areas
from planescope.criticality.relation.record import Over, RelatedLayer, Relation
from planescope.criticality.relation.relate import relate_layers
from planescope.criticality.resets.weights import state_of
from planescope.criticality.scores import SCORES
from planescope.hyperplanes.layer import Input, Kind

# What weightwatcher 0.7.7 says of tests/parity/lenet-epoch-12.tar: analyze(min_evals=8). One layer
# has fewer than 20 eigenvalues, another is no convolution.
OF_WEIGHTWATCHER = {
    "features.0": 2.10324802269415, "features.2": 2.440382939369857,
    "features.5": 2.1353011836889584, "features.7": 9.72295970383419,
    "features.10": 2.493580802881079, "features.12": 3.8621798935463225,
    "classifier.0": 3.8488575978414596, "classifier.3": 3.6308792590546832,
    "classifier.6": 1.937326378367648,
}  # fmt: skip


def test_alpha_is_that_of_the_package():
    state = state_of("tests/parity/lenet-epoch-12.tar")
    found = {name: alpha(state.tensors[f"{name}.weight"].read()) for name in OF_WEIGHTWATCHER}
    assert found == pytest.approx(OF_WEIGHTWATCHER, rel=1e-9)


def test_alpha_is_none_where_there_is_too_little_to_fit():
    assert alpha(np.ones((7, 30)) + np.eye(7, 30)) is None
    assert alpha(np.zeros((20, 30))) is None
    assert alpha(np.full((20, 30), np.nan)) is None


def layer(run, place, loss, decision, **scores):
    return RelatedLayer(
        run=run, network="net", name=f"conv{place}", kind=Kind.CONV, biased=False,
        input=Input.RELU if place else Input.IMAGE,
        relative_drop=loss, loss=loss, critical=decision,
        scores=dict.fromkeys(SCORES) | {"position": place / 2, "agreement": 0.5} | scores,
    )  # fmt: skip


YES, NO, UNDECIDED = Critical.YES, Critical.NO, Critical.UNDECIDED
# In each run "agreement" is right; between the runs it is wrong. The third layer is not decided.
LAYERS = [
    layer("a", 0, 0.5, YES, agreement=0.3, l2=1.0, alpha=2.0),
    layer("a", 1, 0.0, NO, agreement=0.1, l2=3.0, alpha=2.0),
    layer("a", 2, 0.2, UNDECIDED, agreement=0.0, l2=2.0, alpha=2.0),
    layer("b", 0, 0.4, YES, agreement=0.9, l2=1.0),
    layer("b", 1, 0.05, NO, agreement=0.8, l2=2.0),
]


def found(layers=LAYERS, draws=300):
    rng = np.random.default_rng(0)
    return {(a.score, a.over): a for a in areas(layers, [*SCORES], bound=0.1, draws=draws, rng=rng)}


def test_areas_are_those_of_the_pairs_counted_by_hand():
    by = found()
    pooled = by["agreement", Over.POOLED]
    # Critical: .3, 0, .9; not: .1, .8. Of 6 pairs 1 + 0 + 2 are in order.
    assert (pooled.auc, pooled.layers, pooled.critical, pooled.runs) == (0.5, 5, 3, 2)
    # Run a: .3 and 0 against .1: 1 of 2; run b: 1 of 1.
    assert by["agreement", Over.WITHIN].auc == pytest.approx(2 / 3)
    # Without the undecided one: .3, .9 against .1, .8: 3 of 4.
    assert by["agreement", Over.DECIDED].auc == 0.75
    # l2 pooled: 1, 2, 1 against 3, 2: half of one pair.
    assert by["l2", Over.POOLED].auc == pytest.approx(0.5 / 6)
    assert pooled.over_l2 == pytest.approx(0.5 - 0.5 / 6)
    # Of alpha one run has values, all alike.
    assert by["alpha", Over.POOLED].auc == 0.5
    assert pooled.over_alpha == pytest.approx(0.5 - 0.5)
    assert pooled.low <= pooled.auc <= pooled.high
    assert pooled.random_low < 0.5 < pooled.random_high


def test_one_run_has_no_interval_and_layers_without_a_loss_have_no_area():
    alone = found([one for one in LAYERS if one.run == "a"])["agreement", Over.POOLED]
    assert (alone.low, alone.over_l2_low) == (None, None)
    assert not found([dataclasses.replace(one, loss=None) for one in LAYERS])


def test_a_score_that_is_the_loss_is_ahead_of_random_ones_and_the_areas_are_saved(tmp_path):
    rng = np.random.default_rng(1)
    layers = []
    for run in range(6):
        for place in range(8):
            loss = float(rng.choice([0.0, 0.3]))
            scores = {"agreement": loss, "l2": float(rng.random())}
            layers.append(layer(f"run{run}", place, loss, YES if loss else NO, **scores))
    relation = relate_layers(layers, draws=199)
    area = next(a for a in relation.areas if (a.score, a.over) == ("agreement", Over.POOLED))
    assert (area.auc, area.low, area.high) == (1.0, 1.0, 1.0)
    assert area.random_high < 0.9
    assert area.over_l2_low > 0
    relation.save(tmp_path / "relation.json")
    assert Relation.load(tmp_path / "relation.json") == relation
