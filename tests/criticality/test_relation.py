"""Scores against drops: what is found where something was planted, and where nothing was."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from planescope.criticality.definition import Critical, decide, is_robust
from planescope.criticality.relation.associate import Sample, selected
from planescope.criticality.relation.record import RelatedLayer, Relation, Selection
from planescope.criticality.relation.relate import relate_layers
from planescope.criticality.relation.sources import gather
from planescope.criticality.scores import SCORES
from planescope.files.errors import CheckpointError, UsageError
from planescope.hyperplanes.chance import LEVEL
from planescope.hyperplanes.layer import Input, Kind

LAYERS = 7  # one of them the first


def layer(
    run, index, agreement, drop, *, network="net", noise=0.0, count=LAYERS, width=0.02, **scores
):
    """A layer of a loss, with so wide an interval to each side; other scores of a plain network."""
    values = dict.fromkeys(SCORES, None) | {
        "agreement": agreement,
        "position": index / (count - 1),
        "random": noise,
    }
    return RelatedLayer(
        run=run,
        network=network,
        name=f"conv{index}",
        kind=Kind.CONV,
        input=Input.IMAGE if index == 0 else Input.RELU,
        biased=agreement > 0.5,
        relative_drop=0.9 * drop,  # a = 1, a_0 = 0.1
        loss=drop,
        loss_low=drop - width,
        loss_high=drop + width,
        critical=(critical := decide(drop - width, drop + width)),
        robust=is_robust(critical, drop, True, bound=0.02),
        scores=values | scores,
    )


def simulated(rng, *, planted, runs=6, shared=0.0):
    """Runs of one network; `shared`: how much of a layer's score and drop all runs have alike."""
    places = rng.normal(size=(2, LAYERS))
    layers = []
    for run in range(runs):
        own = shared * places + rng.normal(size=(2, LAYERS))
        score = own[0] + planted * own[1]
        agreement, drop = (np.argsort(np.argsort(v)) / LAYERS for v in (score, own[1]))
        layers += [
            layer(f"run{run}", i, float(agreement[i]), float(drop[i]), noise=float(rng.random()))
            for i in range(LAYERS)
        ]
    return layers


def pooled(layers, draws=99):
    """What relate says of agreement in the layers behind a ReLU, its verdict's basis."""
    inner = selected(layers, Selection.INNER)
    sample = Sample(inner, Selection.INNER, draws=draws, rng=np.random.default_rng(0))
    return sample.associate("agreement")


@pytest.mark.parametrize("shared", [0.0, 3.0], ids=["runs-apart", "runs-share-their-layers"])
def test_where_nothing_is_planted_a_relation_shows_in_one_of_twenty_cases(shared):
    # 200 cases at 5 %: more than 21 have a probability below 0.1 %, so that this test fails by
    # chance in less than one of a thousand (each of the two).
    rng = np.random.default_rng(20)
    cases = (simulated(rng, planted=0.0, shared=shared) for _ in range(200))
    assert sum(pooled(case).rho_p < LEVEL for case in cases) <= 21


def test_where_a_relation_is_planted_it_shows():
    # The score is the drop's order but for noise of half its size: at least 95 of 100 cases.
    rng = np.random.default_rng(21)
    cases = (simulated(rng, planted=2.0) for _ in range(100))
    assert sum(pooled(case).rho_p < LEVEL for case in cases) >= 95


def test_what_a_score_adds_to_position_is_seen_only_where_it_adds_something():
    # Agreement that merely follows position, with a drop that does: nothing is left; 100 cases at
    # 5 %, more than 14 of which have a probability below 0.1 %.
    rng = np.random.default_rng(22)
    false = 0
    for _ in range(100):
        noise = rng.normal(size=(6, 2, LAYERS))
        found = pooled(
            [
                layer(f"run{run}", i, i + noise[run, 0, i], i + noise[run, 1, i])
                for run in range(6)
                for i in range(LAYERS)
            ]
        )
        assert found.rho > 0.3
        false += found.partial_p < LEVEL
    assert false <= 14


@pytest.fixture(scope="module")
def planted() -> Relation:
    return relate_layers(simulated(np.random.default_rng(1), planted=3.0), draws=499)


def test_the_mean_rho_is_that_of_the_runs(planted):
    whole = planted.at("agreement", Selection.INNER)
    runs = [planted.at("agreement", Selection.INNER, run) for run in planted.runs]
    assert whole.rho == pytest.approx(np.mean([one.rho for one in runs]))
    assert whole.rho_low <= whole.rho <= whole.rho_high
    assert (whole.runs, whole.layers) == (6, 6 * (LAYERS - 1))


def test_first_layers_are_looked_at_apart_and_together(planted):
    assert planted.at("agreement", Selection.ALL).layers == 6 * LAYERS
    first = planted.at("agreement", Selection.FIRST)
    assert (first.layers, first.rho) == (6, None)
    assert planted.selection is Selection.INNER


def test_the_verdict_says_what_was_found_and_what_to_do(planted):
    assert planted.verdict.startswith(
        "Holds: agreement ranks the layers behind a ReLU as the resets do"
    )
    assert "6 runs" in planted.verdict


def test_where_the_claim_does_not_show_the_verdict_says_so():
    nothing = relate_layers(simulated(np.random.default_rng(2), planted=0.0), draws=199)
    assert nothing.at("agreement", Selection.INNER).rho_p >= LEVEL
    assert nothing.verdict.startswith(("Does not hold: agreement", "Undecided: agreement"))
    assert "does not rank the layers behind a ReLU as the resets do, beyond chance" in (
        nothing.verdict
    )
    high = nothing.at("agreement", Selection.INNER).rho_high
    assert nothing.verdict.startswith("Does not hold") == (high < 0.5)


def test_words_tell_what_resets_cost_and_give_no_other_advice(planted):
    for word in ("prune", "freeze", "quantise", "spare", "first:"):
        assert word not in planted.verdict


def test_both_directions_of_the_claim_are_counted_apart():
    drops = [0.5, 0.01, 0.3, 0.0, 0.05, 0.02, 0.2, 0.11, 0.09]
    agreements = [0.9, 0.1, 0.9, 0.2, 0.8, 0.3, 0.1, 0.9, 0.1]
    layers = [layer("run", i, a, d) for i, (a, d) in enumerate(zip(agreements, drops, strict=True))]
    shares = {
        (s.biased, s.outcome): (s.count, s.layers, s.undecided)
        for s in relate_layers(layers, draws=99).shares
        if s.selection is Selection.ALL
    }
    # Biased: 0.5 and 0.3 critical, 0.05 neither. Unbiased: 0.01, 0 and 0.02 robust, 0.2 critical.
    # Of 0.11 and 0.09, with 0.02 to each side, nothing can be said.
    assert shares == {
        (False, "robust"): (3, 4, 1),
        (False, "critical"): (1, 4, 1),
        (True, "robust"): (0, 3, 1),
        (True, "critical"): (2, 3, 1),
    }


def test_undecided_layers_are_in_no_curve():
    losses, scores = (0.5, 0.11, 0.0, 0.09, 0.3), (0.9, 0.0, 0.5, 1.0, 0.8)
    layers = [
        layer("run", i, score, loss)
        for i, (score, loss) in enumerate(zip(scores, losses, strict=True))
    ]
    found = relate_layers(layers, draws=99).at("agreement", Selection.ALL)
    # Critical 0.9 and 0.8, not 0.5; the wide ones, 0 and 1, would be out of order.
    assert (found.auc, found.average_precision) == (1.0, 1.0)
    assert (found.layers, found.decided) == (5, 3)


def test_advice_follows_the_interval_of_the_loss():
    layers = [layer("run", i, 0.5, drop) for i, drop in enumerate((0.5, 0.11, 0.0, 0.09))]
    advice = {a.layer: a.critical for a in relate_layers(layers, draws=99).advice}
    assert advice == {
        "conv0": Critical.YES,
        "conv1": Critical.UNDECIDED,  # 9 % to 13 %
        "conv2": Critical.NO,
        "conv3": Critical.UNDECIDED,  # 7 % to 11 %
    }


def test_advice_over_runs_stays_within_what_a_loss_can_be():
    """Two runs of accuracy 0.6, chance 0.1: no loss beyond 1.2, nor below -0.8."""
    found = [
        dataclasses.replace(layer(run, 0, 0.5, loss), metric="accuracy", trained=0.6, chance=0.1)
        for run, loss in (("a", 0.0), ("b", 1.0))
    ]
    (advice,) = relate_layers(found, draws=99).advice
    # Student's with one degree of freedom would reach from -5.9 to 6.9.
    assert (advice.loss, advice.loss_low, advice.loss_high) == pytest.approx((0.5, -0.8, 1.2))
    assert advice.critical is Critical.UNDECIDED
    assert (advice.yes, advice.no, advice.undecided) == (1, 1, 0)


def test_the_verdict_agrees_with_its_numbers():
    drops = [0.5, 0.4, 0.3, 0.6, 0.5, 0.4, 0.3]
    verdict = relate_layers(
        [layer("run", i, 0.1, d) for i, d in enumerate(drops)], draws=99
    ).verdict
    assert "Does not hold that most unbiased layers are robust: 0 of 6 are" in verdict
    assert "Undecided whether biased layers are critical: there is none to tell by." in verdict
    assert "Apart, for the theory does not speak of it: conv0, whose input is an image; 1 of 1" in (
        verdict
    )
    assert "not critical" not in verdict


def test_layers_without_a_loss_have_no_verdict_and_are_never_guessed():
    none = {"loss": None, "loss_low": None, "loss_high": None, "critical": None, "robust": None}
    layers = [
        dataclasses.replace(one, **none) for one in simulated(np.random.default_rng(5), planted=2.0)
    ]
    relation = relate_layers(layers, draws=99)
    assert {a.critical for a in relation.advice} == {None}
    assert all(share.layers == 0 and share.share is None for share in relation.shares)
    assert relation.at("agreement", Selection.INNER).auc is None
    assert relation.at("agreement", Selection.INNER).rho is not None
    assert not relation.areas
    assert "critical when put back" not in relation.verdict


def test_a_layer_that_faces_one_way_by_another_test_is_not_passed_over():
    layers = simulated(np.random.default_rng(7), planted=2.0, runs=1)
    unbiased = next(i for i, one in enumerate(layers) if i and not one.biased)
    layers[unbiased] = dataclasses.replace(layers[unbiased], tests=("cosine",))
    count = sum(not one.biased for one in layers[1:])
    told = f"1 of {count} unbiased layers faces one way beyond chance by cosine or centre."
    assert told in relate_layers(layers, draws=99).verdict


def test_layers_behind_something_else_are_named_apart():
    layers = simulated(np.random.default_rng(6), planted=2.0, runs=1)
    layers[3] = dataclasses.replace(layers[3], input=Input.OTHER)
    relation = relate_layers(layers, draws=99)
    assert relation.at("agreement", Selection.INNER).layers == LAYERS - 2
    assert "conv3, behind something else than a ReLU" in relation.verdict


def test_the_best_score_is_the_one_that_orders_the_drops():
    rng = np.random.default_rng(3)
    layers = [
        dataclasses.replace(one, scores=one.scores | {"spectral": one.loss})
        for one in simulated(rng, planted=0.0)
    ]
    relation = relate_layers(layers, draws=499)
    compared = {c.other: c for c in relation.comparisons if c.selection is Selection.INNER}
    assert {c.best for c in compared.values()} == {"spectral"}
    assert compared["agreement"].low > 0
    assert compared["random"].wins > 0.99


def test_two_layers_have_no_rank_correlation_but_a_table():
    relation = relate_layers([layer("run", i, 0.5 + i / 10, 0.2) for i in range(2)], draws=99)
    assert relation.at("agreement", Selection.ALL).rho is None
    assert len(relation.to_pandas()) == 2
    assert relation.verdict.startswith("Undecided: no run has three layers")
    assert any("fewer than 3 layers" in note for note in relation.notes)


def test_layers_that_all_agree_alike_have_no_correlation():
    relation = relate_layers([layer("run", i, 1.0, i / 10) for i in range(LAYERS)], draws=99)
    assert relation.at("agreement", Selection.INNER).rho is None


@pytest.mark.parametrize("suffix", [".json", ".parquet"])
def test_a_saved_relation_is_the_same_when_loaded(tmp_path, planted, suffix):
    planted.save(tmp_path / f"r{suffix}")
    assert Relation.load(tmp_path / f"r{suffix}") == planted


def test_the_csv_has_a_row_a_layer(tmp_path, planted):
    planted.save(tmp_path / "r.csv")
    head, *rows = (tmp_path / "r.csv").read_text().splitlines()
    assert len(rows) == len(planted.layers)
    assert {"schema", "run", "layer", "loss", "agreement", "position"} <= set(head.split(","))


def test_the_same_seed_gives_the_same_figures():
    layers = simulated(np.random.default_rng(4), planted=0.5)
    assert relate_layers(layers, draws=99, seed=5) == relate_layers(layers, draws=99, seed=5)


def test_another_schema_is_refused(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps({"schema": "planescope.relation/9"}))
    with pytest.raises(CheckpointError, match=r"its schema is 'planescope.relation/9'.*again"):
        Relation.load(tmp_path / "r.json")


def test_runs_of_one_network_with_other_layers_are_refused():
    layers = [layer("a", i, 0.5, 0.1) for i in range(4)] + [layer("b", i, 0.5, 0.1) for i in (0, 1)]
    with pytest.raises(UsageError, match=r"b and a are both net, but conv[23] was reset in one"):
        relate_layers(layers, draws=99)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"critical": 0.0}, r"critical must lie in \(0, 1\), not 0.0"),
        ({"robust": 0.2}, r"robust must lie in \[0, 0.1\]"),
        ({"draws": 10}, "10 draws tell nothing"),
        ({"seed": -1}, "a seed must be 0 or more, not -1"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        relate_layers([layer("run", 0, 0.5, 0.1)], **options)


@pytest.mark.parametrize("name", ["loop", "a\0b", "none"])
def test_what_leads_nowhere_is_refused_in_a_sentence(tmp_path, name):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises((CheckpointError, UsageError)) as refused:
        gather([str(tmp_path / name)])
    assert "\n" not in str(refused.value)
