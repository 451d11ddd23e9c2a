"""Nested mappings of live arrays are read as a file of the same is."""

from __future__ import annotations

import pickle
from collections import UserDict
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

import planescope as ps
from planescope.files.errors import CheckpointError, UsageError

RNG = np.random.default_rng(0)
KERNEL, OTHER = (RNG.normal(size=(3, 3, 3, n)).astype("f4") for n in (16, 8))
SCALE = np.ones(16, "f4")
FLAX = {
    "params": {
        "conv": {"kernel": KERNEL, "bias": SCALE},
        "bn": {"scale": SCALE, "bias": SCALE},
    },
    "batch_stats": {"bn": {"mean": SCALE, "var": SCALE}},
}
NESTED = {
    "flax": FLAX,
    "checkpoint": {"epoch": 3, "state_dict": {"c.kernel": KERNEL}, "ema": {"c.kernel": OTHER}},
    "pairs": {"layers": [(KERNEL, SCALE), (), (OTHER, SCALE[:8])]},
    "student": {"student": {"c.kernel": KERNEL}, "teacher": {"c.kernel": 2 * KERNEL}},
}


def rows(found):
    return [(x.name, str(x.kind), x.filters, x.fan_in, x.mean_cosine, x.norm) for x in found.layers]


@pytest.mark.parametrize("case", NESTED)
def test_a_mapping_gives_the_table_of_its_file(tmp_path, case):
    path = tmp_path / "net.pkl"
    path.write_bytes(pickle.dumps(NESTED[case]))
    live, saved = ps.measure(NESTED[case]), ps.measure(path)
    assert rows(live) == rows(saved)
    assert live.notes == saved.notes
    assert live.layers[0].filters == 16


def test_mappings_of_any_class_and_arrays_in_boxes_are_read():
    boxed = {"conv": UserDict({"kernel": SimpleNamespace(value=KERNEL)})}
    assert rows(ps.measure(UserDict({"params": boxed})))[0][:3] == ("conv", "conv", 16)


def test_an_entry_is_chosen_within_a_mapping():
    assert ps.measure(NESTED["checkpoint"], entry="ema").layers[0].filters == 8
    flat = {"encoder.c.kernel": KERNEL, "decoder.c.kernel": OTHER}
    assert ps.measure(flat, entry="decoder").layers[0].filters == 8
    with pytest.raises(UsageError, match="has no entry 'nothing'"):
        ps.measure(NESTED["checkpoint"], entry="nothing")


def test_an_average_beside_the_weights_is_left_out_of_a_flat_mapping():
    found = ps.measure({"model.c.kernel": KERNEL, "model_ema.c.kernel": KERNEL})
    assert [layer.name for layer in found.layers] == ["model.c"]
    assert "model_ema holds another copy" in " ".join(found.notes)


def test_an_optimiser_of_torch_is_passed_over_and_what_holds_itself_ends():
    state = {"net": {"c.kernel": KERNEL}, "opt": {"state": {0: {"m": OTHER}}, "param_groups": []}}
    state["net"]["self"] = state
    assert [layer.filters for layer in ps.measure(state).layers] == [16]


def test_a_mapping_without_arrays_is_refused():
    with pytest.raises(CheckpointError, match="holds no arrays by name"):
        ps.measure({"state": {"epoch": 3}})


AVERAGED = {
    "c1.weight": np.ones((4, 3, 3, 3), np.float32), "n1.weight": np.ones(4, np.float32),
    "n1.bias": np.ones(4, np.float32), "n1.running_mean": np.ones(4, np.float32),
    "n1.running_var": np.ones(4, np.float32),
}  # fmt: skip


@pytest.mark.parametrize("joint", [".", "_"])
@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_averages_behind_a_word_in_front_of_each_name_are_a_copy(tmp_path, ending, joint):
    copy = {f"ema_{name.replace('.', joint)}": -array for name, array in AVERAGED.items()}
    path = tmp_path / f"net.{ending}"
    if ending == "npz":
        np.savez(path, **AVERAGED, **copy)
    else:
        save_file(AVERAGED | copy, path)
    (layer,) = ps.measure(path).layers
    assert (layer.name, layer.negative_mass, layer.norm) == ("c1", 0.0, "n1")
    (average,) = ps.measure(path, entry="ema_").layers
    assert (average.name, average.negative_mass) == ("c1", 1.0)


def _weights(prefix, separator="."):
    parts = {"conv.weight": (8, 3, 3, 3), "conv.bias": (8,), "fc.weight": (4, 8)}
    names = {name: name.replace(".", separator) for name in parts}
    return {prefix + names[name]: np.ones(shape, "f4") for name, shape in parts.items()}


BESIDE = {
    "an optimiser's": ("model.", ["optimizer.state.exp_avg.", "optimizer.state.exp_avg_sq."]),
    "without a name of its own": ("", ["moments."]),
    "of optax": ("params/", ["opt_state/0/mu/", "opt_state/0/nu/"]),
    "gradients": ("", ["grad."]),
    "a copy": ("model.", ["best_model."]),
}


@pytest.mark.parametrize("kind", BESIDE)
def test_what_a_training_keeps_for_each_weight_is_no_layer(kind):
    own, beside = BESIDE[kind]
    separator = "/" if "/" in own else "."
    arrays = dict(_weights(own, separator))
    for prefix in beside:
        arrays |= _weights(prefix, separator)
    found = ps.measure(arrays, kinds="all")
    assert [layer.name for layer in found.layers] == [f"{own}conv", f"{own}fc"]
    assert any(beside[0][:-1] in note for note in found.notes)
    again = ps.measure(arrays, kinds="all", entry=beside[0][:-1])
    assert [layer.name for layer in again.layers] == ["conv", "fc"]


def test_a_part_of_a_network_that_is_called_as_a_mask_is_a_layer():
    arrays = _weights("") | {"mask.conv.weight": np.ones((8, 3, 3, 3), "f4")}
    assert len(ps.measure(arrays, kinds="all").layers) == 3
