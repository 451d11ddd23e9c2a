"""Records of plain data: the right types come through, every other one is named and refused."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest

from planescope.files.results.records import record
from planescope.hyperplanes.layer import Kind


@dataclass(frozen=True)
class Inner:
    rate: float | None
    count: int = 0


@dataclass(frozen=True)
class Outer:
    name: str
    kind: Kind
    inner: Inner
    rows: tuple[Inner, ...] = ()
    kernel: tuple[int, ...] = ()
    scores: dict[str, float | None] = field(default_factory=dict)
    snapshot: int | str = 0
    biased: bool | None = None
    anything: Any = None
    kept_apart: object = field(default=None, compare=False)


WHOLE = {"name": "a", "kind": "conv", "inner": {"rate": 1}}


def test_every_kind_of_field_comes_through():
    data = WHOLE | {
        "rows": [{"rate": None, "count": 3}], "kernel": [3, 3], "scores": {"z": 0.5, "n": None},
        "snapshot": "rand", "biased": True, "anything": {"a": [1]},
    }  # fmt: skip
    made = record(Outer, data)
    assert made == Outer(
        "a", Kind.CONV, Inner(1.0), (Inner(None, 3),), (3, 3), {"z": 0.5, "n": None}, "rand", True,
        {"a": [1]},
    )  # fmt: skip
    assert type(made.inner.rate) is float


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        pytest.param({"name": 3}, "the name of a Outer is 3", id="number-for-text"),
        pytest.param({"name": None}, "the name of a Outer is None", id="nothing-for-text"),
        pytest.param({"kind": "round"}, "the kind of a Outer is 'round'", id="no-such-choice"),
        pytest.param({"kind": []}, "the kind of a Outer is a list", id="list-for-a-choice"),
        pytest.param({"inner": 3}, "the inner of a [A-Za-z]+ is 3", id="no-record"),
        pytest.param({"inner": {}}, "a Inner lacks 'rate'", id="field-missing"),
        pytest.param({"inner": {"rate": "1"}}, "rate of a Inner is '1'", id="text-for-a-number"),
        pytest.param({"inner": {"rate": True}}, "rate of a Inner is True", id="truth-for-a-number"),
        pytest.param({"inner": {"rate": math.nan}}, "rate of a Inner is nan", id="nan"),
        pytest.param({"inner": {"rate": math.inf}}, "rate of a Inner is inf", id="infinity"),
        pytest.param({"inner": {"rate": 10**5000}}, "is a huge number", id="no-float-is-so-large"),
        pytest.param({"kernel": [1.0]}, "the kernel of a Outer is 1.0", id="float-for-a-count"),
        pytest.param({"kernel": [1 << 63]}, "the kernel of a Outer is a huge", id="beyond-64-bits"),
        pytest.param({"kernel": "33"}, "the kernel of a Outer is '33'", id="text-for-a-list"),
        pytest.param({"scores": {1: 0.5}}, "the scores of a Outer is a dict", id="key-is-no-text"),
        pytest.param({"scores": {"z": []}}, "the scores of a Outer is a list", id="score-is-none"),
        pytest.param({"snapshot": 1.5}, "the snapshot of a Outer is 1.5", id="neither-of-two"),
        pytest.param({"biased": 1}, "the biased of a Outer is 1", id="number-for-truth"),
        pytest.param({"other": 1}, "a Outer has no 'other'", id="unknown"),
        pytest.param({"kept_apart": 1}, "a Outer has no 'kept_apart'", id="not-of-the-file"),
        pytest.param({3: 1}, "a Outer has no 3", id="unknown-number"),
        pytest.param({"name": "x" * 999}, None, id="long-text-is-fine"),
        pytest.param({"x" * 999: 1}, "a Outer has no 'xxxxx", id="long-key-is-cut"),
    ],
)
def test_a_value_of_another_type_is_refused(change, sentence):
    if sentence is None:
        assert record(Outer, WHOLE | change).name
        return
    with pytest.raises(ValueError, match=sentence) as caught:
        record(Outer, WHOLE | change)
    assert len(str(caught.value)) < 100
