"""Whatever a user has is measured alike; the options do what they say."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import planescope as ps
from planescope.checkpoints import read_contents
from planescope.hyperplanes.layer import Tensor
from planescope.measurement.choice import Choice, select
from planescope.measurement.source import find
from planescope.networks.load import load_network

PARITY = Path(__file__).parents[1] / "parity"
TRAINED = PARITY / "lenet-epoch-12.tar"


@pytest.fixture(scope="module")
def lenet():
    return load_network("lenet", read_contents(TRAINED)[1])


def rows(measured: ps.Measurement, *but: str) -> list[dict]:
    """The layers as plain data, without some keys."""
    return [
        {k: v for k, v in layer.items() if k not in but} for layer in measured.to_dict()["layers"]
    ]


def test_file_module_state_dict_and_arrays_give_the_same_statistics(lenet):
    state = lenet.state_dict()
    by_file = rows(ps.measure(TRAINED, kinds="all"), "stage", "input", "groups")
    by_path = rows(ps.measure(str(TRAINED), kinds="all"), "stage", "input", "groups")
    by_module = rows(ps.measure(lenet, kinds="all"), "stage", "input", "groups")
    by_state = rows(ps.measure(state, kinds="all"), "stage", "input", "groups")
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    by_arrays = rows(ps.measure(arrays, kinds="all"), "stage", "input", "groups")
    assert by_path == by_file == by_arrays
    for other in (by_module, by_state):  # torch adds in another order than NumPy
        for ours, theirs in zip(by_file, other, strict=True):
            assert ours.keys() == theirs.keys()
            for key, value in ours.items():
                assert theirs[key] == (
                    pytest.approx(value, rel=1e-9) if isinstance(value, float) else value
                ), key


def test_a_module_and_the_networks_name_tell_the_same_places(lenet):
    by_module, by_name = ps.measure(lenet), ps.measure(TRAINED, network="lenet")
    keys = ("name", "kind", "stage", "input", "groups")
    assert [[row[k] for k in keys] for row in rows(by_module)] == [
        [row[k] for k in keys] for row in rows(by_name)
    ]


def test_a_network_of_a_library_tells_the_places_too(tmp_path):
    from torchvision.models import resnet18

    network = resnet18(num_classes=4)
    torch.save(network.state_dict(), tmp_path / "r.pt")
    by_name = ps.measure(tmp_path / "r.pt", network="torchvision:resnet18", view="effective")
    by_module = ps.measure(network, view="effective")
    assert rows(by_name) == rows(by_module)
    assert by_name.layers[1].input == "relu"


def test_only_what_is_measured_is_read():
    read = []

    def tensor(name: str, shape: tuple[int, ...]) -> Tensor:
        def values():
            read.append(name)
            return np.ones(shape, np.float32)

        return Tensor(shape, "float32", values)

    state = read_contents(TRAINED)[1]
    spied = {name: tensor(name, stored.shape) for name, stored in state.tensors.items()}
    from planescope.measurement.assemble import measure_layers
    from planescope.measurement.record import Source
    from planescope.networks.state.layers import find_layers

    layers, _ = find_layers(dataclasses.replace(state, tensors=spied))
    source = Source(path="x", format="x", bytes=None)
    measure_layers([layer for layer in layers if layer.kind == "conv"], source=source)
    assert set(read) == {name for name in spied if name.startswith("features")}


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"kinds": ["linear"]}, ["classifier.0", "classifier.3", "classifier.6"]),
        ({"layers": r"features\.1"}, ["features.10", "features.12"]),
        ({"kinds": "all", "layers": r"\.0$"}, ["features.0", "classifier.0"]),
        ({"transposed": r"features\.2$", "kinds": "transposed"}, ["features.2"]),
    ],
)
def test_kinds_and_names_choose_the_layers_and_the_rest_is_listed(options, names):
    measured = ps.measure(TRAINED, **options)
    assert [layer.name for layer in measured.layers] == names
    assert {skipped.name for skipped in measured.skipped}.isdisjoint(names)
    assert len(measured.skipped) + len(names) == 9


def test_skipped_layers_say_how_to_measure_them():
    reasons = {skipped.name: skipped.reason for skipped in ps.measure(TRAINED).skipped}
    assert reasons["classifier.0"] == "a linear layer; measured with --kinds linear"


def test_distances_from_a_module_and_from_its_file_agree():
    began = load_network("lenet", read_contents(PARITY / "lenet-epoch-0.pt")[1])
    by_module = ps.measure(TRAINED, init=began)
    by_file = ps.measure(TRAINED, init=PARITY / "lenet-epoch-0.pt")
    for ours, theirs in zip(by_module.layers, by_file.layers, strict=True):
        assert (ours.l2, ours.linf) == pytest.approx((theirs.l2, theirs.linf), rel=1e-9)


class Normed(nn.Sequential):
    def __init__(self, *, relu_first: bool) -> None:
        conv, norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        super().__init__(conv, *((nn.ReLU(), norm) if relu_first else (norm, nn.ReLU())))
        with torch.no_grad():
            norm.weight.copy_(torch.tensor([-2.0, 0.0, 1, 1, 1, 1, 1, 1]))
            norm.bias.copy_(torch.linspace(-1, 1, 8))
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)


def test_a_graph_pairs_the_norm_exactly_and_a_state_dict_says_that_it_assumes():
    network = Normed(relu_first=False)
    by_graph = ps.measure(network, view="effective")
    by_names = ps.measure(network.state_dict(), view="effective")
    assert by_graph.notes == ()
    assert any("assumed" in note for note in by_names.notes)
    assert by_graph.network.mean_cosine == pytest.approx(by_names.network.mean_cosine)
    assert by_graph.layers[0].degenerate == 1  # gamma = 0


def test_a_norm_behind_the_relu_is_not_folded_where_a_graph_shows_it():
    measured = ps.measure(Normed(relu_first=True), view="effective")
    assert measured.layers[0].degenerate == 0
    assert measured.layers[0].mean_centre is None
    assert any("measured raw" in note for note in measured.notes)


def test_centre_and_rate_from_data_are_those_of_the_preactivations():
    torch.manual_seed(0)
    network = Normed(relu_first=False).eval()
    inputs = torch.randn(64, 3, 12, 12)
    layer = ps.measure(network, data=inputs.split(16)).layers[0]
    with torch.inference_mode():
        z = network[1](network[0](inputs)).double().transpose(0, 1).flatten(1)
    kappa = (z.mean(1) / z.std(1, correction=0)).numpy()
    np.testing.assert_allclose(layer.values.rate, (z > 0).double().mean(1).numpy(), rtol=1e-12)
    varies = z.std(1, correction=0).numpy() > 0
    np.testing.assert_allclose(layer.values.centre[varies], kappa[varies], rtol=1e-4, atol=1e-6)
    assert layer.activation_rate == pytest.approx(float(layer.values.rate.mean()))


def test_data_by_name_go_through_the_named_network():
    measured = ps.measure(TRAINED, network="lenet", data="mnist", data_path=PARITY)
    last = measured.layers[-1]
    assert last.negative_centre == 1.0  # every filter of the last convolution is mostly silent
    assert 0 < last.activation_rate < 0.2


def test_data_without_a_network_are_refused():
    with pytest.raises(ps.UsageError, match="say which by --network"):
        ps.measure(TRAINED, data="digits")


@pytest.mark.parametrize(
    ("x", "sentence"),
    [(3, "cannot measure a int"), ([1], "cannot measure a list"), ({}, "holds no weights")],
)
def test_what_cannot_be_measured_is_named(x, sentence):
    with pytest.raises(ps.PlanescopeError, match=sentence):
        ps.measure(x)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"view": "odd"}, r"unknown view 'odd'; there are raw, effective"),
        ({"kinds": ["convolution"]}, r"unknown kind 'convolution'; there are conv, "),
        ({"layers": "["}, r"--layers '\[': broken regular expression"),
        ({"transposed": "*"}, r"--transposed '\*': broken regular expression"),
        ({"layers": "nothing"}, r"no layer to measure; it holds layers of the kinds 6 conv"),
    ],
)
def test_options_that_cannot_be_are_refused(options, sentence):
    with pytest.raises(ps.PlanescopeError, match=sentence):
        ps.measure(TRAINED, **options)


def test_finding_reads_no_weights(tmp_path):
    found = find(TRAINED)
    assert len(found.layers) == 9
    assert len(select(found, Choice(kinds=tuple(ps.Kind)))[0]) == 9


def test_the_published_weights_of_timm_come_from_the_hub(tmp_path, monkeypatch):
    import json
    import subprocess
    import sys

    import timm
    from hub_server import serve
    from safetensors.torch import save_file

    folder = tmp_path / "hub" / "timm" / "resnet10t.c3_in1k" / "main"
    folder.mkdir(parents=True)
    network = timm.create_model("resnet10t.c3_in1k", pretrained=False)
    save_file(network.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": "resnet10t"}), "utf-8")
    with serve(tmp_path / "hub") as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
        done = subprocess.run(
            [sys.executable, "-m", "planescope", "measure", "timm:resnet10t.c3_in1k", "--json"],
            capture_output=True,
            text=True,
        )
    assert (done.returncode, done.stderr) == (0, "")
    measured = json.loads(done.stdout)
    assert measured["network"]["mean_cosine"] == pytest.approx(
        ps.measure(network).network.mean_cosine, rel=1e-9
    )
