"""The page shows a saved prediction beside the network that it is of, and what resets measured."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from planescope import figures
from planescope.criticality.definition import Critical
from planescope.criticality.prediction.record import LayerPrediction, Method, Prediction
from planescope.criticality.resets.record import Accuracy, ResetCell, ResetLayer, Resets
from planescope.figures.report import report
from planescope.files.errors import CheckpointError, UsageError
from planescope.files.results import result as results
from planescope.hyperplanes.layer import Kind

CHECKPOINT, INIT = "tests/parity/lenet-epoch-12.tar", "tests/parity/lenet-epoch-0.pt"
LAYERS = ("features.0", "features.2", "features.5")


def unlabelled(**options) -> Prediction:
    """Losses of 0.5, 0.05 and 0.1: critical, not, undecided."""
    verdicts = (Critical.YES, Critical.NO, Critical.UNDECIDED)
    return Prediction(
        source=CHECKPOINT, network="lenet", method=Method.UNLABELLED, init=INIT, data="digits",
        inputs=100, expected=0.9, chance=0.1,
        layers=tuple(
            LayerPrediction(
                name=name, kind=Kind.CONV, score=loss - 0.01, loss=loss, lower=loss - 0.02,
                upper=loss + 0.02, critical=verdict,
            )
            for name, loss, verdict in zip(LAYERS, (0.5, 0.05, 0.1), verdicts, strict=True)
        ),
        **options,
    )  # fmt: skip


def resets(snapshot: str, critical=(Critical.YES, Critical.YES, Critical.NO)) -> Resets:
    return Resets(
        source=CHECKPOINT, network="lenet", data="digits", split="val",
        trained=Accuracy(value=0.9, low=0.8, high=1.0, examples=100, top1=0.9),
        layers=tuple(
            ResetLayer(name=n, kind=Kind.CONV, stage=0, negative_mass=0.5, agreement=0.5,
                       biased=False)
            for n in LAYERS
        ),
        cells=tuple(
            ResetCell(
                value=0.5, low=0.4, high=0.6, examples=100, top1=0.5, layer=name,
                snapshot=snapshot, draw=None, relative_drop=0.4, loss=0.512, loss_low=0.4,
                loss_high=0.6, critical=verdict, p_value=0.0, significant=True,
            )
            for name, verdict in zip(LAYERS, critical, strict=True)
        ),
        chance=0.1,
    )  # fmt: skip


def sections(page) -> list[str]:
    return re.findall(r'<section id="prediction.*?</section>', page.html, flags=re.S)


def test_a_saved_prediction_stands_beside_its_network_with_marks_in_their_places(tmp_path):
    unlabelled().save(tmp_path / "told.json")
    (section,) = sections(report(CHECKPOINT, tmp_path / "told.json"))
    assert "Of 3 layers 1 is critical, 1 not, 1 undecided." in section
    assert section.count("<tr>") == 1 + 3
    assert "50.0 % (48.0 % to 52.0 %)" in section
    # The axis goes from 0 at 8 to 1 at 232; the threshold of a tenth is dashed in each row.
    assert '<path d="M120.0 3.5' in section
    assert '<circle cx="19.2" cy="9" r="4.5"/>' in section
    assert section.count('class="cut" x1="30.4"') == 3
    assert "measured" not in section


def test_what_a_reset_measured_stands_beside_it_if_it_was_put_back_to_the_same():
    page = report(CHECKPOINT, unlabelled(), resets(Path(INIT).name))
    (section,) = sections(page)
    assert section.count('<circle class="ring" cx="122.7"') == 3
    assert "Resets with labels decide 2 of these verdicts: 1 right." in section
    (section,) = sections(report(CHECKPOINT, unlabelled(), resets("fresh")))
    assert "ring" not in section
    assert "measured" not in section


def test_several_predictions_of_a_network_are_all_shown_and_no_loss_is_made_up():
    def ranked(method: Method, score: float) -> Prediction:
        layer = LayerPrediction(name="<b>features.0", kind=Kind.CONV, score=score)
        return Prediction(source=CHECKPOINT, network="lenet", method=method, layers=(layer,))

    drawn = ranked(Method.SYNTHETIC, 0.25), ranked(Method.WEIGHTS, 0.75)
    both = sections(report(CHECKPOINT, *drawn))
    assert [re.search(r'id="([\w-]+)"', one)[1] for one in both] == ["prediction", "prediction-2"]
    for section, score in zip(both, ("0.25", "0.75"), strict=True):
        assert f"<td>{score}</td>" in section
        assert "<b>features.0" not in section
        assert "expected loss</th>" not in section
        assert 'class="cut"' not in section


def test_two_tables_of_resets_of_one_network_are_refused_and_none_is_left_out():
    with pytest.raises(UsageError, match="are resets of one network; give one"):
        report(CHECKPOINT, resets("a"), resets("b"))


def test_a_file_of_several_predictions_is_refused_by_its_own_name(tmp_path):
    results.save([unlabelled(), unlabelled()], tmp_path / "two.json")
    with pytest.raises(CheckpointError, match="holds 2 results; save each prediction in its own"):
        report(CHECKPOINT, tmp_path / "two.json")


def test_a_saved_prediction_is_drawn_with_its_numbers(tmp_path):
    unlabelled().save(tmp_path / "told.parquet")
    written = figures.write_all([tmp_path / "told.parquet"], tmp_path / "out", form="svg").files
    assert [path.name for path in written] == ["prediction.svg", "prediction.csv"]
    rows = list(csv.DictReader((tmp_path / "out" / "prediction.csv").open()))
    assert [row["critical"] for row in rows] == ["yes", "no", "undecided"]
    assert json.loads(unlabelled().to_json())["layers"][0]["loss"] == float(rows[0]["loss"])
