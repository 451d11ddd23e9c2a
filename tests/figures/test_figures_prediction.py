"""The figure of a prediction shows its numbers, and where the verdicts change."""

from __future__ import annotations

import pytest

from planescope import figures
from planescope.criticality.definition import THRESHOLD, Critical
from planescope.criticality.prediction.cuts import LOWER, UPPER
from planescope.criticality.prediction.record import LayerPrediction, Method, Prediction
from planescope.files.errors import UsageError
from planescope.hyperplanes.layer import Kind

VERDICTS = (Critical.YES, Critical.NO, Critical.UNDECIDED, Critical.YES)


def prediction(method, *, loss, layers=4):
    made = tuple(
        LayerPrediction(
            name=f"features.{i}", kind=Kind.CONV, score=0.1 + 0.2 * i,
            loss=0.05 + 0.2 * i if loss else None, lower=0.2 * i if loss else None,
            upper=0.1 + 0.2 * i if loss else None,
            critical=None if method is Method.WEIGHTS else VERDICTS[i % 4],
        )
        for i in range(layers)
    )  # fmt: skip
    return Prediction(source="net.pt", network="lenet", method=method, layers=made, inputs=400)


def drawn(figure):
    """Points by (place, x), spans of intervals, and dashed lines."""
    (axes,) = figure.axes
    points, spans, marks = {}, {}, []
    for line in axes.lines:
        x, y = line.get_xdata(), line.get_ydata()
        if line.get_linestyle() == "--":
            marks.append(x[0])
        elif line.get_marker() != "None":
            points |= dict(zip(y, x, strict=True))
        else:
            spans[y[0]] = tuple(x)
    return points, spans, marks


@pytest.mark.parametrize(
    ("method", "loss", "marks"),
    [
        (Method.UNLABELLED, True, [THRESHOLD]),
        (Method.SYNTHETIC, False, [LOWER, UPPER]),
        (Method.WEIGHTS, False, []),
    ],
)
def test_each_layer_has_its_value_and_the_verdicts_their_lines(method, loss, marks):
    found = prediction(method, loss=loss)
    points, spans, lines = drawn(figures.prediction(found))
    assert points == {i: (one.loss if loss else one.score) for i, one in enumerate(found.layers)}
    assert spans == (
        {i: (one.lower, one.upper) for i, one in enumerate(found.layers)} if loss else {}
    )
    assert lines == marks


def test_a_prediction_without_layers_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no predicted layer to draw"):
        figures.prediction(prediction(Method.WEIGHTS, loss=False, layers=0))
    figures.save(figures.prediction(prediction(Method.SYNTHETIC, loss=False, layers=60)),
                 tmp_path / "p.svg")  # fmt: skip
    assert (tmp_path / "p.svg").stat().st_size > 5000
