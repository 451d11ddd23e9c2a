"""What moved between two checkpoints: worked values, matching, other formats, the command."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import planescope as ps
from planescope import figures
from planescope.hyperplanes import chance
from planescope.measurement.difference import Difference
from planescope.measurement.matching import Matched

BEFORE, AFTER = "tests/parity/lenet-epoch-0.pt", "tests/parity/lenet-epoch-12.tar"


def network(seed: int = 0, *, widths: tuple[int, ...] = (8, 8, 8)) -> dict[str, np.ndarray]:
    rng, channels, state = np.random.default_rng(seed), 3, {}
    for i, width in enumerate(widths):
        state[f"conv{i}.weight"] = rng.normal(size=(width, channels, 3, 3)).astype("f4")
        channels = width
    return state


def test_a_worked_example():
    # Two filters of one weight each: the first changes sides, the second stays.
    before = {"c.weight": np.array([[[[3.0, 0.0]]], [[[0.0, -4.0]]]])}
    after = {"c.weight": np.array([[[[-3.0, 0.0]]], [[[0.0, -4.0]]]])}
    found = ps.diff(before, after)
    (layer,) = found.layers
    assert (layer.mass_before, layer.mass_after) == (0.5, 1.0)
    assert (layer.turned_away, layer.turned_toward) == (1, 0)
    assert layer.l2 == pytest.approx(6 / 5)
    assert layer.linf == pytest.approx(6 / 4)
    assert (layer.zeros_before, layer.zeros_after) == (0.5, 0.5)
    assert "1 of 2 filters changed sides, 1 away" in found.verdict


def test_the_distances_and_masses_are_those_of_two_measurements():
    found = ps.diff(BEFORE, AFTER, network="lenet")
    first = ps.measure(BEFORE, network="lenet")
    second = ps.measure(AFTER, network="lenet", init=BEFORE)
    for layer, was, now in zip(found.layers, first.layers, second.layers, strict=True):
        assert (layer.mass_before, layer.mass_after) == (was.negative_mass, now.negative_mass)
        assert (layer.biased_before, layer.biased_after) == (was.biased, now.biased)
        assert (layer.l2, layer.linf) == (now.l2, now.linf)
        assert was.values is not None
        assert now.values is not None
        sides = (was.values.projection <= 0, now.values.projection <= 0)
        assert layer.turned_away == np.count_nonzero(~sides[0] & sides[1])
        assert layer.turned_toward == np.count_nonzero(sides[0] & ~sides[1])


def test_both_sides_are_measured_as_measure_does():
    found = ps.diff(BEFORE, AFTER, network="lenet", view="effective")
    alone = tuple(ps.measure(x, network="lenet", view="effective") for x in (BEFORE, AFTER))
    assert found.measurements == alone


def test_what_is_assumed_of_norms_is_said_of_each_side():
    state = network(widths=(8,)) | {
        f"bn.{name}": np.ones(8, "f4") for name in ("weight", "bias", "running_mean", "running_var")
    }
    notes = ps.diff(state, state, view="effective").notes
    for which in ("first", "second"):
        assert any(note.startswith(f"the {which}: an epsilon of 1e-05") for note in notes)


def test_nothing_moves_between_a_network_and_itself():
    found = ps.diff(network(), network())
    assert all(layer.same and not layer.turned for layer in found.layers)
    assert found.verdict.startswith("Does not hold that weights moved: those of 3 layers are the ")


def test_each_weight_is_read_once(monkeypatch):
    from planescope.measurement import source

    read = []
    real = source.read_state_dict

    def counting(state):
        found = real(state)
        for name, tensor in found.tensors.items():

            def once(tensor=tensor, name=name):
                read.append(name)
                return tensor.read()

            found.tensors[name] = type(tensor)(tensor.shape, tensor.dtype, once)
        return found

    monkeypatch.setattr(source, "read_state_dict", counting)
    ps.diff(network(0), network(1))
    assert sorted(read) == sorted(2 * [f"conv{i}.weight" for i in range(3)])


def test_prefixes_are_seen_through():
    wrapped = {f"module.{name}": weight for name, weight in network().items()}
    found = ps.diff(network(), wrapped)
    assert [layer.matched for layer in found.layers] == 3 * [Matched.ENDING]
    assert all(layer.same for layer in found.layers)


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(4)), st.integers(0, 2**32 - 1))
def test_layers_of_one_shape_are_told_by_their_filters(order, seed):
    """Whatever the order and the names: a slightly changed network finds itself again."""
    state = network(seed, widths=(3, 3, 3, 3))
    rng = np.random.default_rng(seed)
    weights = list(state.values())
    other = {
        f"x{i}.weight": weights[k] + 0.01 * rng.normal(size=weights[k].shape).astype("f4")
        for i, k in enumerate(order)
    }
    found = ps.diff(state, other)
    assert [layer.other for layer in found.layers] == [f"x{order.index(k)}" for k in range(4)]
    assert all(layer.l2 is not None and layer.l2 < 0.03 for layer in found.layers)


def test_what_nothing_tells_is_paired_in_order_and_said():
    one, other = network(0, widths=(3, 3)), network(1, widths=(3, 3))
    found = ps.diff(one, {f"x.{name[-8:]}{name}": w for name, w in other.items()})
    assert {layer.matched for layer in found.layers} <= {Matched.ORDER, Matched.FILTERS}
    assert any("order alone, which may deceive" in note for note in found.notes)


def test_a_layer_without_a_partner_is_named_on_its_side():
    found = ps.diff(network(widths=(8, 8)), network(widths=(8, 8, 5)))
    assert [each.name for each in found.skipped_after] == ["conv2"]
    assert "5×8×3×3" in found.skipped_after[0].reason
    assert not found.skipped_before


def test_two_networks_without_a_layer_in_common_are_refused():
    with pytest.raises(ps.NoLayersError, match="no layer in common"):
        ps.diff(network(widths=(8,)), network(widths=(9,)))


def test_inputs_in_another_order_have_no_distance():
    """As a dense layer behind a flattened image, between channels first and last."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(6, 40))
    found = ps.diff({"fc.weight": weight}, {"fc.weight": weight[:, ::-1]}, kinds="all")
    (layer,) = found.layers
    assert layer.l2 is None
    assert not layer.turned
    assert any("stand in another order" in note for note in found.notes)


def test_a_folded_norm_is_the_same_network_in_the_effective_view(tmp_path):
    import torch
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    torch.manual_seed(0)
    conv, norm = torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)
    norm.running_var.uniform_(0.5, 2)
    norm.weight.data.uniform_(-1, 1)
    whole = torch.nn.Sequential(conv, norm, torch.nn.ReLU()).eval()
    folded = torch.nn.Sequential(fuse_conv_bn_eval(conv.eval(), norm.eval()), torch.nn.ReLU())
    raw = ps.diff(whole, folded)
    assert raw.layers[0].l2 > 0.1
    assert any("--view effective" in note for note in raw.notes)
    acting = ps.diff(whole, folded, view="effective")
    assert acting.layers[0].l2 < 1e-6
    assert acting.layers[0].mass_before == acting.layers[0].mass_after


def test_an_exported_network_is_the_one_it_came_from(tmp_path):
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3), torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 3),
    ).eval()  # fmt: skip
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(model, (torch.zeros(1, 3, 9, 9),)), path)
    found = ps.diff(model, path)
    assert len(found.layers) == 3
    assert all(layer.same for layer in found.layers)


@pytest.mark.parametrize("suffix", [".json", ".parquet"])
def test_what_is_saved_comes_back(tmp_path, suffix):
    found = ps.diff(BEFORE, AFTER, network="lenet")
    path = tmp_path / f"d{suffix}"
    found.save(path)
    assert Difference.load(path) == found


def test_the_json_follows_its_schema():
    schema = json.loads(
        (files("planescope.files") / "schemas" / "difference-1.json").read_text("utf-8")
    )
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$id"] == Difference.SCHEMA
    for pair in ((BEFORE, AFTER), (network(0), network(1))):
        text = ps.diff(*pair).to_json()
        jsonschema.validate(json.loads(text, parse_constant=pytest.fail), schema)


def test_the_verdict_names_what_turned_and_keeps_the_first_layer_apart():
    found = ps.diff(BEFORE, AFTER, network="lenet")
    assert found.verdict.startswith("Holds that weights moved in 6 of 6 layers, most of all in")
    assert "0 of 5 layers face one way beyond chance before and 5 after" in found.verdict
    assert found.verdict.endswith("Apart, for the theory does not speak of it: features.0.")
    assert [layer.side_after for layer in found.layers] == ["away"] * 6
    still = ps.diff(AFTER, AFTER, network="lenet")
    assert "5 of 5 layers face one way beyond chance before and 5 after" in still.verdict
    assert "by mass, cosine or centre: the same." in still.verdict


def test_the_band_of_the_figure_is_the_one_that_was_tested():
    """Filters that are left out of the mass are left out of the band; levels are corrected."""
    before, after = network(), network(1)
    name = next(iter(after))
    after[name][:3] = 0  # no hyperplane
    found = ps.diff(before, after)
    layer = found.layers[0]
    assert (layer.tested_before, layer.tested_after) == (layer.filters, layer.filters - 3)
    rows = found.measurements[1].layers
    assert found.level_after == chance.called_level([row.p_mass for row in rows])
    (band,) = figures.difference(found).axes[0].collections[:1]
    low, _ = chance.mass_band(layer.filters - 3, level=1 - found.level_after)
    # The lower half of the first row.
    corners = band.get_paths()[0].vertices
    assert low == pytest.approx(min(x for x, y in corners if 0 < y < 0.5 or y == 0.5))
    # An older file does not say what was tested; it is read, and drawn as one layer's.
    data = json.loads(found.to_json())
    for key in ("level_before", "level_after"):
        del data[key]
    for one in data["layers"]:
        for key in ("input", "side_before", "side_after", "tested_before", "tested_after"):
            del one[key]
    older = Difference.from_dict(data)
    assert "compare again" in older.verdict
    assert figures.difference(older).axes


@pytest.mark.parametrize("width", ["column", "page"])
def test_the_figure_shows_every_layer(width, tmp_path):
    found = ps.diff(BEFORE, AFTER, network="lenet")
    drawn = figures.difference(found, width=width)
    figures.save(drawn, tmp_path / "d.png")
    masses, _sides, distances = drawn.axes
    assert next(label.get_text() for label in masses.get_yticklabels()) == "features.0"
    assert len(distances.patches) == len(found.layers)
    assert [p.get_width() for p in distances.patches] == [layer.l2 for layer in found.layers]


def run(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "planescope", "diff", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_the_command_writes_all_forms_and_bad_input_is_a_sentence(tmp_path):
    table, figure, page = (tmp_path / name for name in ("d.json", "d.svg", "d.html"))
    done = run(
        BEFORE, AFTER, "--network", "lenet", "--out", table, "--figure", figure, "--page", page
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Holds that weights moved in 6 of 6 layers" in done.stdout
    assert Difference.load(table).verdict in done.stdout
    assert "What moved" in page.read_text("utf-8")
    assert figure.stat().st_size > 1000
    for args in ((BEFORE, tmp_path / "none.pt"), (BEFORE, AFTER, "--out", tmp_path / "d.txt")):
        wrong = run(*args)
        assert wrong.returncode == 2
        assert len(wrong.stderr.strip().splitlines()) == 1
    assert {each.name for each in Path(tmp_path).iterdir()} == {"d.json", "d.svg", "d.html"}
