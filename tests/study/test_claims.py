"""The paper's four claims, answered from a study's table: effects by hand, honest answers."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawn_text import assert_inside
from scipy import stats

from planescope import figures
from planescope.criticality.relation.record import Relation
from planescope.files.errors import UsageError
from planescope.hyperplanes import chance
from planescope.study.claims.answers import conclude
from planescope.study.claims.claims import Claims, claims_of, plain_runs
from planescope.study.claims.conditions import PLAIN, with_conditions
from planescope.study.claims.effects import ALL, Effect, effect_of, mean, with_all
from planescope.study.claims.turns import turns

BEFORE = Path(__file__).parents[1] / "before" / "run"

CONDITIONS = {
    PLAIN: {},
    "all labels wrong": {"label_noise": 1.0},
    "2 classes": {"classes": 2},
    "shuffled pixels": {"shuffle_pixels": True},
}


def made_up(
    effects: dict[str, float], *, seeds: int = 4, networks=("net", "net_bn")
) -> pd.DataFrame:
    """A table in which training adds so much to the agreement, by condition; noise of 0.02."""
    rng = np.random.default_rng(0)
    rows = []
    for network in networks:
        for condition, effect in effects.items():
            for seed in range(seeds):
                about = {"classes": np.nan, "label_noise": 0.0, "shuffle_pixels": False}
                about |= CONDITIONS[condition]
                for epoch in (0, 1, 2):
                    for layer in range(4):
                        agreement = 0.2 + effect * epoch / 2 + rng.normal() * 0.02
                        rows.append(
                            {
                                "run": f"{network}-{condition}-{seed}",
                                "network": network,
                                **about,
                                "epoch": epoch,
                                "layer": f"conv{layer}",
                                "input": "relu" if layer else "image",
                                "filters": 32,
                                "agreement": agreement,
                                "negative_mass": (1 + agreement) / 2,
                                "biased": agreement > 0.4,
                                "negative_centre": 0.9 if network.endswith("_bn") else np.nan,
                            }
                        )
    return pd.DataFrame(rows)


EFFECTS = {PLAIN: 0.4, "all labels wrong": 0.0, "2 classes": 0.4}


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return made_up(EFFECTS)


@pytest.fixture(scope="module")
def found(table):
    return claims_of(table, study="made up")


def effect(found, claim, network, comparison, measure="agreement"):
    (one,) = (
        e
        for e in found.of(claim)
        if (e.network, e.measure) == (network, measure) and e.comparison.startswith(comparison)
    )
    return one


def test_runs_have_the_condition_of_their_config(table):
    conditions = with_conditions(table).groupby("run")["condition"].first()
    assert set(conditions) == {PLAIN, "all labels wrong", "2 classes"}
    assert all(name.split("-")[1] == condition for name, condition in conditions.items())
    assert len(plain_runs(table)) == 8


def test_runs_that_cannot_learn_or_are_centred_are_none_of_the_plain_ones():
    plain = made_up({PLAIN: 0.4}, seeds=2)
    parts = [plain.assign(data="cifar10", labels="given", centred=False)]
    for name, about in {
        "random labels": {"labels": "random"},
        "Gaussian noise": {"data": "noise:cifar10"},
        "centred filters": {"centred": True},
    }.items():
        other = parts[0].assign(run=parts[0]["run"] + name, **about)
        parts.append(other.assign(agreement=other["agreement"] / 2))
    whole = pd.concat(parts)
    conditions = with_conditions(whole).groupby("run")["condition"].first()
    assert conditions.value_counts().to_dict() == dict.fromkeys(
        (PLAIN, "random labels", "Gaussian noise", "centred filters"), 4
    )
    assert set(plain_runs(whole)) == set(plain["run"])
    found = claims_of(whole)
    told = {e.comparison for e in found.of(2) if e.network == ALL}
    assert {f"random labels, against {PLAIN}", f"Gaussian noise, against {PLAIN}"} <= told
    # Runs made before a column was there are what every run then was.
    older = pd.concat([plain.assign(labels=None, centred=None), parts[1]])
    assert set(plain_runs(older)) == set(plain["run"])


def test_training_is_compared_with_the_same_runs_before_it(table, found):
    one = effect(found, 1, "net", "trained")
    inner = table[(table["input"] == "relu") & (table["network"] == "net")]
    inner = inner[inner["label_noise"].eq(0) & inner["classes"].isna()]
    means = inner.groupby(["run", "epoch"])["agreement"].mean().unstack()
    expected = stats.ttest_1samp(means[2] - means[0], 0)
    interval = expected.confidence_interval()
    assert one.effect == pytest.approx((means[2] - means[0]).mean())
    assert (one.low, one.high) == pytest.approx((interval.low, interval.high))
    assert one.p == pytest.approx(expected.pvalue)
    assert (one.runs, one.others) == (4, 0)


def test_conditions_are_compared_by_welchs_test(table, found):
    one = effect(found, 2, "net_bn", "all labels wrong, against")
    inner = table[
        (table["input"] == "relu") & (table["network"] == "net_bn") & table["epoch"].eq(2)
    ]
    means = inner.groupby(["run"]).agg(
        {"agreement": "mean", "label_noise": "first", "classes": "first"}
    )
    wrong = means[means["label_noise"] == 1]["agreement"]
    plain = means[(means["label_noise"] == 0) & means["classes"].isna()]["agreement"]
    expected = stats.ttest_ind(wrong, plain, equal_var=False)
    interval = expected.confidence_interval()
    assert (one.low, one.high) == pytest.approx((interval.low, interval.high))
    assert one.p == pytest.approx(expected.pvalue)
    assert (one.runs, one.others) == (4, 4)


def test_all_networks_are_the_mean_of_each(found):
    parts = [effect(found, 4, name, "2 classes").effect for name in ("net", "net_bn")]
    assert effect(found, 4, ALL, "2 classes").effect == pytest.approx(np.mean(parts))


def test_what_was_planted_is_found_and_what_was_not_is_not(found):
    assert effect(found, 1, ALL, "trained").q < 0.001
    assert effect(found, 2, ALL, "all labels wrong, against").q < 0.001
    assert effect(found, 4, ALL, "2 classes").q > 0.05
    assert found.conclusions[:2] == ("holds", "holds")
    assert found.answers[0].startswith("Holds: trained, against initialised: share of biased")
    assert found.answers[1].startswith("Holds, taken together. During training: holds, after epoch")
    assert "With learning: holds, by runs with all labels wrong" in found.answers[1]
    assert "2 classes, against true labels" in found.answers[3]


def test_a_comparison_is_answered_once(found):
    """What cannot learn is the second claim's alone; its last epoch is the first claim's end."""
    assert not [e for e in found.of(4) if e.comparison.startswith("all labels wrong")]
    ends = effect(found, 1, ALL, "trained"), effect(found, 2, ALL, "after epoch 2,")
    assert ends[0].p == ends[1].p
    assert ends[0].q == ends[1].q


def test_a_bias_that_comes_without_learning_does_not_need_it():
    """Runs on wrong labels turn as far as the others do."""
    alike = claims_of(made_up({PLAIN: 0.4, "all labels wrong": 0.4}))
    assert alike.conclusions[1] == "does not hold"
    assert "With learning: does not hold" in alike.answers[1]
    assert "During training: holds" in alike.answers[1]


def test_networks_of_different_answers_are_named():
    """One network turns whatever the labels are, the other by true ones of all classes alone."""
    alike = made_up({PLAIN: 0.4, "all labels wrong": 0.4, "2 classes": 0.4}, networks=("alike",))
    apart = made_up({PLAIN: 0.4, "all labels wrong": 0.0, "2 classes": 0.0}, networks=("apart",))
    found = claims_of(pd.concat([alike, apart], ignore_index=True))
    assert "With learning: holds" in found.answers[1]
    told = "by network: holds in apart, does not hold in alike"
    assert told in found.answers[1]
    assert told in found.answers[3]


def test_intervals_of_shares_stay_within_what_they_can_be():
    """Two runs, 0.1 and 1.0: Student's interval with one degree of freedom reaches from -5 to 6."""
    one = effect_of(mean([0.1, 1.0]), before=0.0, after=0.55, claim=1, network="net",
                    comparison="", measure="", runs=2, others=0)  # fmt: skip
    assert (one.low, one.high) == (-1.0, 1.0)


@pytest.mark.parametrize(
    ("low", "high", "q", "sign", "conclusion"),
    [
        (0.2, 0.4, 0.01, 1, "holds"),
        (0.2, 0.4, 0.01, -1, "does not hold"),  # it goes the other way
        (-0.05, 0.08, 0.4, 1, "does not hold"),  # nothing to speak of, for certain
        (0.01, 0.05, 0.01, 1, "does not hold"),
        (-0.2, 0.4, 0.4, 1, "undecided"),
        (None, None, None, 1, "undecided"),
        (-0.4, -0.2, 0.01, 0, "holds"),  # either way
    ],
)
def test_conclusions_follow_the_interval(low, high, q, sign, conclusion):
    one = Effect(claim=1, network="net", comparison="", measure="", runs=4, others=0, before=0.0,
                 after=0.0, effect=0.0 if low is None else (low + high) / 2, low=low, high=high,
                 p=q, q=q)  # fmt: skip
    assert conclude([one], sign) == conclusion


def test_the_bias_is_followed_through_the_epochs(found):
    steps = [effect(found, 2, ALL, f"after epoch {epoch},").effect for epoch in (1, 2)]
    assert steps == pytest.approx([0.2, 0.4], abs=0.02)


def test_batch_norm_and_the_centre_are_compared(found):
    centre = effect(found, 4, "net_bn", "agreement of the centres")
    assert centre.after == pytest.approx(0.8)  # |2 · 0.9 - 1|
    assert effect(found, 4, "net", "with batch norm").effect == pytest.approx(0.0, abs=0.05)


def test_late_layers_turn_by_the_epoch_of_the_other_runs():
    # Mean mass of the last third (two of six layers) by epoch, in two runs.
    masses = {"a": [0.5, 0.9, 0.6], "b": [0.5, 0.7, 0.8]}
    rows = [
        {"run": run, "network": "net", "layer": f"conv{layer}", "epoch": 5 * at,
         "negative_mass": mass + shift if layer >= 4 else 1.0}
        for run, line in masses.items()
        for at, mass in enumerate(line)
        for layer, shift in zip(range(6), (0, 0, 0, 0, -0.1, 0.1), strict=True)
    ]  # fmt: skip
    away, back = turns(pd.DataFrame(rows))
    # a turns at epoch 10, where b is largest (0.5, 0.6, 0.6), and b at 5 (0.5, 0.7, 0.8).
    assert (away.before, away.after) == pytest.approx((0.5, 0.65))
    assert away.effect == pytest.approx((0.1 + 0.2) / 2)
    assert back.effect == pytest.approx((0.0 + 0.1) / 2)
    assert (away.claim, away.runs, away.network) == (5, 2, "net")
    expected = stats.ttest_1samp([0.1, 0.2], 0)
    assert away.p == pytest.approx(expected.pvalue)
    assert list(turns(pd.DataFrame(rows).query("run == 'a'"))) == []


def test_where_nothing_emerges_the_answer_says_so():
    nothing = claims_of(made_up({PLAIN: 0.0}))
    assert nothing.conclusions[0] == "does not hold"
    assert nothing.answers[0].startswith("Does not hold: trained, against initialised")
    assert nothing.answers[2] == (
        "Undecided: no layers of plain runs were reset, of networks better than chance."
    )


def test_one_run_a_network_has_no_interval():
    one = claims_of(made_up({PLAIN: 0.4}, seeds=1)).of(1)[0]
    assert (one.runs, one.low, one.p) == (1, None, None)


def test_runs_to_compare_with_are_needed():
    with pytest.raises(UsageError, match="has no runs with true labels, whole images and all"):
        claims_of(made_up({"all labels wrong": 0.0}), study="s")


def test_claims_are_written_as_json_and_csv(found, tmp_path):
    found.save(tmp_path / "c.json")
    found.save(tmp_path / "c.csv")
    data = json.loads((tmp_path / "c.json").read_text(), parse_constant=pytest.fail)
    assert data["schema"] == "planescope.claims/1"
    assert len(data["effects"]) == len(found.effects)
    assert len((tmp_path / "c.csv").read_text().splitlines()) == 1 + len(found.effects)


@pytest.mark.parametrize("width", ["column", "page"])
@pytest.mark.filterwarnings("error::UserWarning")
def test_figures_of_the_claims_can_be_read(table, found, width):
    for figure in (
        figures.masses_before_and_after(table, width=width),
        figures.agreement_through_training(table, width=width),
        figures.effects(found.of(4), width=width),
    ):
        assert_inside(figure)


def test_the_bands_of_the_masses_are_those_that_were_tested(table):
    """Nothing is beyond chance before training, two of four layers after; four filters are out."""
    q = np.where((table["epoch"] == 2) & table["layer"].isin(["conv1", "conv2"]), 0.01, 0.5)
    figure = figures.masses_before_and_after(table.assign(q_mass=q, degenerate=4))
    pale, dark, trained_pale, trained_dark = figure.axes[0].patches[:4]
    for bar, level in ((dark, 0.05 / 4), (trained_dark, 0.05 * 2 / 4)):
        low, high = chance.mass_band(28, level=1 - level)
        assert (bar.get_y(), bar.get_height()) == pytest.approx((low, high - low))
    # All runs were tested alike.
    assert pale.get_height() == pytest.approx(dark.get_height())
    assert trained_pale.get_height() == pytest.approx(trained_dark.get_height())


def test_a_folder_that_is_no_study_is_refused(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "planescope", "claims", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert done.stderr == f"planescope: {tmp_path}: is no study: it has no study.yaml\n"


@pytest.mark.parametrize("with_relation", [True, False])
@pytest.mark.parametrize("form", ["json", "parquet"])
def test_claims_come_back_from_their_file(tmp_path, form, with_relation):
    relation = Relation.load(BEFORE / "relation.json") if with_relation else None
    found = replace(claims_of(made_up({PLAIN: 0.3})), relation=relation)
    found.save(tmp_path / f"claims.{form}")
    assert Claims.load(tmp_path / f"claims.{form}") == found
    assert found.effects[0].network in found._repr_html_()


def test_claims_of_an_earlier_version_are_read_with_their_relation(tmp_path):
    older = json.loads(claims_of(made_up({PLAIN: 0.3})).to_json())
    older["relation"] = json.loads((BEFORE / "relation.json").read_text())
    del older["conclusions"]
    (tmp_path / "claims.json").write_text(json.dumps(older))
    found = Claims.load(tmp_path / "claims.json")
    assert found.relation == Relation.load(BEFORE / "relation.json")
    assert found.conclusions == ()


def test_runs_that_happen_to_agree_make_nothing_certain():
    """Two runs of one network agree but for rounding: no interval of it, and none of the mean."""
    alike = mean([0.1 + 0.2, 0.3])
    assert alike.variance == 0
    assert alike.bounds() == (None, None, None)
    every = dict(with_all({"mlp": alike, "lenet": mean([0.5, 0.7, 0.6])}))
    assert every[ALL].value == pytest.approx(0.45)
    assert every[ALL].bounds() == (None, None, None)
    assert every["lenet"].bounds()[2] is not None
