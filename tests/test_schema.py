"""The JSON that is printed follows the schema that ships."""

from __future__ import annotations

import json
from importlib.resources import files

import jsonschema
import numpy as np
import pytest

import planescope as ps
from planescope.measurement.record import LAYER_KEYS, SCHEMA, TOLD_KEYS

CHECKPOINT = "tests/parity/lenet-epoch-12.tar"


@pytest.fixture(scope="module")
def schema() -> dict:
    return json.loads(
        (files("planescope.files") / "schemas" / "measurement-1.json").read_text("utf-8")
    )


def test_the_schema_is_a_schema_and_names_itself(schema):
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$id"] == SCHEMA
    assert set(schema["$defs"]["layer"]["required"]) == {*LAYER_KEYS, *TOLD_KEYS}


@pytest.mark.parametrize(
    ("x", "options"),
    [
        pytest.param(CHECKPOINT, {}, id="state-dict"),
        pytest.param(
            CHECKPOINT,
            {"network": "lenet", "kinds": "all", "init": "tests/parity/lenet-epoch-0.pt"},
            id="network-and-distances",
        ),
        pytest.param({"conv": np.zeros((4, 3, 3, 3))}, {}, id="all-filters-degenerate"),
        pytest.param({"conv": np.full((4, 1, 1, 2), np.nan)}, {}, id="all-filters-non-finite"),
        pytest.param({"conv": np.ones((4, 1, 1))}, {"kinds": "all"}, id="fan-in-of-one"),
    ],
)
def test_every_measurement_follows_the_schema(schema, x, options):
    text = ps.measure(x, **options).to_json()
    jsonschema.validate(json.loads(text, parse_constant=pytest.fail), schema)
