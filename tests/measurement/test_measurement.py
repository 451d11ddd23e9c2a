"""The table of a network, and the files in which it is kept."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import re
import sys
import weakref
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import planescope as ps
from planescope.files.results.result import save
from planescope.hyperplanes import chance, geometry
from planescope.hyperplanes.layer import Input, Kind, Layer, Norm, Skipped, Tensor, View
from planescope.measurement.assemble import measure_layers
from planescope.measurement.record import LAYER_KEYS, Source, save_filters

# By default pandas reads decimals to 15 digits or so, in some versions.
read_csv = functools.partial(pd.read_csv, float_precision="round_trip")

PARITY = Path(__file__).parents[1] / "parity"
EXPECTED = json.loads((PARITY / "expected.json").read_text(encoding="utf-8"))

# As the project's plan lists them.
PLANNED_KEYS = [
    *("name", "kind", "stage", "input", "filters", "fan_in", "kernel", "groups"),
    *("degenerate", "non_finite", "sideless"),
    *("negative_mass", "mean_cosine", "std_cosine", "min_cosine"),
    *("q25_cosine", "median_cosine", "q75_cosine", "max_cosine", "mean_projection", "agreement"),
    *("z", "p_mass", "q_mass", "p_cosine", "q_cosine", "biased", "negative_centre"),
    *("mean_centre", "p_centre", "q_centre", "l2", "linf"),
    *("norm", "pairing", "aliases"),
]


def tensor(values, dtype=np.float32):
    array = np.asarray(values, dtype)
    return Tensor(array.shape, str(array.dtype), lambda: array)


def layer(name, weight, *, bias=None, **about):
    return Layer(
        name=name,
        kind=about.pop("kind", Kind.CONV),
        weight=tensor(weight),
        bias=None if bias is None else tensor(bias),
        **about,
    )


def norm(gamma, beta, mean, variance, eps=1e-5):
    return Norm(
        name="bn",
        gamma=None if gamma is None else tensor(gamma),
        beta=None if beta is None else tensor(beta),
        mean=tensor(mean),
        variance=tensor(variance),
        eps=eps,
    )


def random_layer(name, shape=(8, 3, 3, 3), seed=0, **about):
    return layer(name, np.random.default_rng(seed).standard_normal(shape), **about)


def measured(*layers, path="net.pt", **options):
    return measure_layers(layers, source=Source(path=path, format="test", bytes=7), **options)


@pytest.fixture
def network():
    """Layers of every sort: staged, with a norm, degenerate, non-finite, of one weight a filter."""
    rng = np.random.default_rng(0)
    moments = rng.random((4, 8))
    moments[1] -= 0.5
    return measured(
        random_layer("a", stage=0, input=Input.IMAGE, groups=1, bias=rng.standard_normal(8)),
        layer("b", np.ones((9, 2, 3)), stage=1, input=Input.RELU),
        random_layer("c", (8, 4), 1, stage=1, kind=Kind.LINEAR, norm=norm(*moments)),
        layer("d", np.zeros((2, 3, 3, 3))),
        layer("e", [[[np.nan]], [[1.0]]]),
        layer("f", [[[2.0]], [[-1.0]], [[0.0]]], kind=Kind.POINTWISE),
        skipped=[Skipped(name="g", reason="an embedding")],
        notes=["norms are assumed"],
    )


# --- an independent implementation's figures


def parity_layers(file, stages):
    state = torch.load(PARITY / file, weights_only=True)
    state = state.get("model_state_dict", state)
    return [
        layer(name, state[f"{name}.weight"], bias=state[f"{name}.bias"], stage=stage)
        for name, stage in stages.items()
    ]


@pytest.fixture(scope="module")
def lenet():
    stages = {row["name"]: row["stage"] for row in EXPECTED["layers"]}
    initial = {x.name: x for x in parity_layers("lenet-epoch-0.pt", stages)}
    return measured(*parity_layers("lenet-epoch-12.tar", stages), initial=initial)


def test_a_trained_network_has_the_figures_of_the_independent_implementation(lenet):
    for found, wanted in zip(lenet.layers, EXPECTED["layers"], strict=True):
        for key in ("negative_mass", "mean_projection", "mean_cosine", "l2", "linf"):
            assert getattr(found, key) == pytest.approx(wanted[key], abs=1e-5, rel=1e-5), key
        for key in ("projection", "cosine"):
            np.testing.assert_allclose(getattr(found.values, key), wanted[key], rtol=0, atol=1e-5)


def test_the_pools_put_the_filters_of_their_layers_together(lenet):
    assert [(pool.stage, pool.layers) for pool in lenet.stages] == [(0, 2), (1, 2), (2, 2), (3, 3)]
    for pool in (*lenet.stages, lenet.network):
        layers = [x for x in lenet.layers if pool.stage in (None, x.stage)]
        cosines = np.concatenate([x.values.cosine for x in layers])
        uniforms = [chance.cosine_cdf(x.values.cosine, x.fan_in) for x in layers]
        assert pool.filters == sum(x.filters for x in layers)
        assert pool.biased_layers == sum(x.biased for x in layers)
        assert pool.mean_cosine == pytest.approx(cosines.mean())
        assert pool.negative_mass == pytest.approx(np.mean(cosines <= 0))
        assert pool.p_cosine == pytest.approx(chance.kolmogorov_smirnov(np.concatenate(uniforms)))


def test_p_values_are_corrected_over_the_layers(lenet):
    for kind in ("mass", "cosine"):
        p_values = [getattr(x, f"p_{kind}") for x in lenet.layers]
        corrected = chance.benjamini_hochberg(p_values)
        assert [getattr(x, f"q_{kind}") for x in lenet.layers] == corrected
    assert [x.biased for x in lenet.layers] == [x.q_mass < 0.05 for x in lenet.layers]
    assert sum(x.biased for x in lenet.layers) == 8


# --- layers of every sort


def test_layers_without_statistics_have_none_and_their_filters_are_counted(network):
    rows = network.to_pandas()
    assert list(rows["filters"]) == [8, 9, 8, 2, 2, 3]
    assert list(rows["degenerate"]) == [0, 0, 0, 2, 0, 1]
    assert list(rows["non_finite"]) == [0, 0, 0, 0, 1, 0]
    empty = network.layers[3]
    for key in ("negative_mass", "mean_cosine", "z", "p_mass", "q_mass", "p_cosine", "biased"):
        assert getattr(empty, key) is None
    assert (network.network.filters, network.network.degenerate) == (32, 3)


def test_a_layer_of_one_weight_a_filter_is_tested_by_its_mass_alone(network):
    found = network.layers[5]
    assert (found.negative_mass, found.p_mass) == (0.5, 1.0)
    assert found.p_cosine is found.q_cosine is None


def test_a_layer_whose_filters_all_face_one_way_is_biased(network):
    assert [x.biased for x in network.layers] == [False, True, False, None, False, False]
    assert network.network.biased_layers == 1


def test_only_layers_behind_which_a_norm_follows_have_a_centre(network):
    centred = [x.name for x in network.layers if x.mean_centre is not None]
    assert centred == ["c"]
    assert network.network.mean_centre == network.layers[2].mean_centre
    assert network.layers[2].q_centre == network.layers[2].p_centre  # one test: nothing to correct


@pytest.mark.parametrize("affine", [True, False])
def test_the_effective_view_is_that_of_folded_weights(affine):
    rng = np.random.default_rng(1)
    weight, bias, mean = (rng.standard_normal(s, np.float32) for s in ((6, 2, 3), 6, 6))
    variance = rng.random(6, np.float32)
    gamma, beta = rng.standard_normal((2, 6), np.float32)
    scale = (gamma.astype(float) if affine else 1.0) / np.sqrt(variance.astype(float) + 1e-3)
    about = norm(*((gamma, beta) if affine else (None, None)), mean, variance, 1e-3)
    found = measured(layer("a", weight, bias=bias, norm=about), view=View.EFFECTIVE).layers[0]
    folded = geometry.arrangement(
        scale[:, None] * weight.reshape(6, -1), (beta if affine else 0.0) + scale * (bias - mean)
    )
    np.testing.assert_allclose(found.values.projection, folded.projection, atol=1e-12)
    np.testing.assert_allclose(found.values.cosine, folded.cosine, atol=1e-12)
    np.testing.assert_allclose(found.values.bias, folded.bias, atol=1e-6)
    assert (found.mean_centre is None) is not affine
    raw = measured(layer("a", weight, bias=bias, norm=about)).layers[0]
    assert raw.mean_centre == found.mean_centre  # in every view
    assert raw.mean_projection != found.mean_projection


def test_distances_need_the_same_layers_and_shapes():
    initial = {"a": random_layer("a"), "b": random_layer("b", (8, 3, 5, 5))}
    found = measured(random_layer("a", seed=1), initial=initial).layers[0]
    assert found.l2 > 0
    assert found.linf > 0
    with pytest.raises(ps.CheckpointError, match="initial checkpoint has no layer 'c'"):
        measured(random_layer("c"), initial=initial)
    with pytest.raises(ps.CheckpointError, match="'b' has shape 8×3×3×3, but 8×3×5×5 in the init"):
        measured(random_layer("b"), initial=initial)


def test_no_layer_is_an_error():
    with pytest.raises(ps.NoLayersError, match=r"^net\.pt: no layer to measure"):
        measured()


def test_no_two_layers_are_held_at_once():
    alive = []

    def read():
        array = np.ones((2, 1, 3), np.float32)
        assert all(reference() is None for reference in alive)
        alive.append(weakref.ref(array))
        return array

    lazy = [
        Layer(name=str(i), kind=Kind.CONV, weight=Tensor((2, 1, 3), "float32", read))
        for i in range(4)
    ]
    measured(*lazy)
    assert len(alive) == 4


def test_progress_tells_what_comes_next():
    calls = []
    measured(random_layer("a"), random_layer("b"), on_layer=lambda *call: calls.append(call))
    assert calls == [(0, 2, "a"), (1, 2, "b")]


def test_broken_filters_give_no_warnings(recwarn):
    broken = [[[np.inf, 1.0]], [[np.nan, 1.0]], [[0.0, 0.0]], [[3e38, 3e38]]]
    moments = norm([0, 1, 1, 1], [1, 0, 1, 1], [0] * 4, [-1, 0, 1, 1], 0.0)
    for view in View:
        measured(layer("a", broken, bias=[np.inf, 0, 0, 0], norm=moments), view=view)
    assert not recwarn.list


# --- the forms of a measurement


def test_the_keys_are_those_of_the_plan_in_its_order(network):
    data = json.loads(network.to_json())
    assert list(data) == [
        *("schema", "verdict", "source", "view", "layers", "stages", "network", "skipped"),
        "notes",  # beyond the plan: what had to be assumed
    ]
    assert data["schema"] == "planescope.measurement/1"
    assert list(data["source"]) == ["path", "format", "bytes"]
    assert list(data["skipped"][0]) == ["name", "reason"]
    for row in data["layers"]:
        # `activation_rate`, beyond the plan, is measured from data only.
        assert [key for key in row if key != "activation_rate"] == PLANNED_KEYS


def test_no_value_is_nan_or_infinite(network):
    json.loads(network.to_json(), parse_constant=pytest.fail)
    assert network.to_dict() == json.loads(network.to_json())


def test_weights_near_the_end_of_float64_are_still_valid_json():
    huge = np.full((3, 2), 8e307)
    found = measured(
        Layer(name="a", kind=Kind.LINEAR, weight=Tensor((3, 2), "float64", lambda: huge)),
        initial={"a": random_layer("a", (3, 2))},
    )
    assert found.layers[0].mean_projection == pytest.approx(1.6e308)
    json.loads(found.to_json(), parse_constant=pytest.fail)


@pytest.mark.parametrize("suffix", [".json", ".parquet", ".JSON"])
def test_what_was_saved_is_loaded(network, tmp_path, suffix):
    path = tmp_path / f"with space and ü{suffix}"
    network.save(path)
    loaded = ps.load(path)
    assert loaded == network  # all but the values of single filters
    assert loaded.to_json() == network.to_json()
    assert [x.values for x in loaded.layers] == [None] * 6
    assert isinstance(loaded.layers[0].kind, Kind)
    assert isinstance(loaded.layers[0].kernel, tuple)


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text there")
@pytest.mark.parametrize("suffix", [".json", ".csv", ".parquet"])
def test_a_file_whose_name_is_no_text_is_measured_and_saved(tmp_path, suffix):
    named = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.npz")
    np.savez(named, **{"a.weight": np.ones((4, 3, 3, 3), np.float32)})
    found = ps.measure(named)
    found.save(tmp_path / f"a{suffix}")
    if suffix != ".csv":
        assert ps.load(tmp_path / f"a{suffix}") == found
    other = dataclasses.replace(found.layers[0], name="a\udcff")
    assert list(dataclasses.replace(found, layers=(other,)).to_pandas().index) == [r"a\udcff"]


@pytest.mark.parametrize(
    ("suffix", "read"),
    [
        pytest.param(".csv", read_csv, id=".csv"),
        pytest.param(".parquet", pd.read_parquet, id=".parquet"),
    ],
)
def test_tables_are_read_by_pandas(network, tmp_path, suffix, read):
    network.save(tmp_path / f"table{suffix}")
    table = read(tmp_path / f"table{suffix}").set_index("layer")
    assert list(table.index) == list("abcdef")
    assert set(table["path"]) == {"net.pt"}
    assert list(table["kernel"].fillna("")) == ["3x3", "3", "", "3x3", "1", "1"]
    for key in ("negative_mass", "mean_cosine", "z", "p_mass", "q_cosine", "stage"):
        wanted = [getattr(x, key) for x in network.layers]
        np.testing.assert_array_equal(
            table[key].astype(float), [math.nan if x is None else x for x in wanted]
        )
    assert table["biased"].iloc[1]


def test_the_frame_has_a_row_a_layer(network):
    frame = network.to_pandas()
    assert list(frame.index) == list("abcdef")
    assert [frame.index.name, *frame.columns] == ["layer", *LAYER_KEYS[1:]]
    assert frame.loc["b", "negative_mass"] == 0.0


def test_several_measurements_go_into_one_file(network, tmp_path):
    other = measured(random_layer("x"), path="other.pt")
    save([network, other], tmp_path / "both.json")
    data = json.loads((tmp_path / "both.json").read_text("utf-8"))
    assert data == [network.to_dict(), other.to_dict()]
    save([network, other], tmp_path / "both.csv")
    assert list(pd.read_csv(tmp_path / "both.csv")["path"]) == ["net.pt"] * 6 + ["other.pt"]


# --- the values of single filters


def read_filters(path):
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            assert arrays["schema"] == "planescope.filters/1"
            return pd.DataFrame({name: arrays[name] for name in arrays if name != "schema"})
    return read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".parquet"])
def test_the_values_of_each_filter_are_saved(network, tmp_path, suffix):
    network.save_filters(tmp_path / f"filters{suffix}")
    table = read_filters(tmp_path / f"filters{suffix}")
    assert list(table) == ["layer", "index", "projection", "cosine", "crossing", "offset"]
    assert len(table) == 32
    for found in network.layers:
        rows = table[table["layer"] == found.name]
        assert list(rows["index"]) == list(range(found.filters))
        for key in ("projection", "cosine", "crossing", "offset"):
            np.testing.assert_array_equal(rows[key], getattr(found.values, key))


def test_the_filters_of_several_measurements_name_their_file(network, tmp_path):
    other = measured(random_layer("x", (2, 3, 3)), path="other.pt")
    save_filters([network, other], tmp_path / "both.csv")
    assert list(pd.read_csv(tmp_path / "both.csv")["path"]) == ["net.pt"] * 32 + ["other.pt"] * 2


def test_a_loaded_measurement_has_no_filters_to_save(network, tmp_path):
    network.save(tmp_path / "a.json")
    with pytest.raises(ps.NoLayersError, match="has no values of single filters; measure the"):
        ps.load(tmp_path / "a.json").save_filters(tmp_path / "filters.npz")
    assert not (tmp_path / "filters.npz").exists()


@pytest.mark.parametrize(
    ("write", "name", "error", "sentence"),
    [
        ("save", "a.txt", ps.UsageError, r"must end in \.json, \.csv or \.parquet"),
        ("save", "a", ps.UsageError, r"must end in \.json"),
        ("save_filters", "a.json", ps.UsageError, r"must end in \.npz, \.csv or \.parquet"),
        ("save", "folder.json", ps.OutputError, r"is a folder; give the name of a file"),
        ("save", "none/a.json", ps.OutputError, r"the folder .*none does not exist; make it"),
    ],
)
def test_a_place_that_cannot_be_is_refused(network, tmp_path, write, name, error, sentence):
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(error, match=sentence):
        getattr(network, write)(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.json"]


# --- notebooks


def test_names_are_escaped_in_html():
    page = measured(random_layer("<script>alert(1)</script>"), path="<b>&.pt")._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert page.startswith("<p>&lt;b&gt;&amp;.pt")


def test_the_table_of_a_notebook_has_a_row_a_layer(network):
    page = network._repr_html_()
    assert page.count("<tr>") == 7
    assert re.findall(r"<tr><td>(.*?)</td>", page) == list("abcdef")


# --- files that are no measurement


def without(data, *keys):
    return {key: value for key, value in data.items() if key not in keys}


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        pytest.param(lambda data: "", "holds no measurement; save it with --out", id="empty"),
        pytest.param(lambda data: "name,kind\na,conv\n", "holds no measurement", id="csv"),
        pytest.param(lambda data: json.dumps(data)[:-9], "holds no measurement", id="truncated"),
        pytest.param(lambda data: "[" * 100_000, "holds no measurement", id="deeply-nested"),
        pytest.param(lambda data: "[1, 2]", "holds 2 results; save each", id="several"),
        pytest.param(lambda data: "3", "its schema is None", id="number"),
        pytest.param(lambda data: "{}", "its schema is None, and this version", id="no-schema"),
        pytest.param(
            lambda data: json.dumps({**data, "schema": "planescope.relation/2"}),
            "is a result of the kind 'relation', not 'measurement'",
            id="other-kind",
        ),
        pytest.param(
            lambda data: data | {"schema": "planescope.measurement/2"},
            "its schema is 'planescope.measurement/2', and this version of planescope reads "
            "'planescope.measurement/1'; measure the checkpoint again",
            id="later-schema",
        ),
        pytest.param(lambda data: without(data, "layers"), "no whole measurement", id="no-layers"),
        pytest.param(lambda data: data | {"layers": [{}]}, "no whole measurement", id="bare-layer"),
        pytest.param(lambda data: data | {"layers": 3}, "no whole measurement", id="no-list"),
        pytest.param(lambda data: data | {"view": "?"}, "no whole measurement", id="unknown-view"),
        pytest.param(lambda data: data | {"source": {"a": 1}}, "no whole", id="unknown-key"),
    ],
)
def test_a_file_that_is_no_measurement_is_refused(network, tmp_path, damage, sentence):
    path, damaged = tmp_path / "a.json", damage(network.to_dict())
    path.write_text(damaged if isinstance(damaged, str) else json.dumps(damaged), encoding="utf-8")
    with pytest.raises(ps.CheckpointError, match=re.escape(sentence)) as error:
        ps.load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ps.CheckpointError, match="holds no measurement"):
        ps.load(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("none.json", "cannot be read: No such file"),
        ("", "cannot be read: is a folder"),
        ("a\0.json", "cannot be read: .*embedded null"),
    ],
)
def test_a_path_that_cannot_be_read_is_refused(tmp_path, path, sentence):
    with pytest.raises(ps.CheckpointError, match=sentence):
        ps.load(tmp_path / path)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda whole: whole[:200], id="truncated"),
        pytest.param(lambda whole: b"PAR1", id="magic-alone"),
        pytest.param(lambda whole: whole[:-60] + b"\xff" * 52 + whole[-8:], id="broken-footer"),
    ],
)
def test_a_damaged_parquet_file_is_refused(network, tmp_path, damage):
    network.save(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(damage((tmp_path / "a.parquet").read_bytes()))
    with pytest.raises(
        ps.CheckpointError, match=r"b\.parquet: (holds no measurement|cannot be read)"
    ):
        ps.load(tmp_path / "b.parquet")


def test_any_other_parquet_file_is_refused(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ps.CheckpointError, match="its schema is None"):
        ps.load(tmp_path / "a.parquet")


@pytest.mark.parametrize("use", [lambda m, path: m.save(path), lambda m, path: ps.load(path)])
def test_parquet_without_pyarrow_says_what_to_install(network, tmp_path, monkeypatch, use):
    network.save(tmp_path / "a.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ps.MissingDependencyError, match=r"pip install '\.\[parquet\]'"):
        use(network, tmp_path / "a.parquet")
