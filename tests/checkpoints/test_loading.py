"""A checkpoint in the network it belongs to: sizes follow from its shapes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from planescope.checkpoints import read_contents
from planescope.files.errors import CheckpointError
from planescope.networks.build import build
from planescope.networks.live.module import read_module
from planescope.networks.load import load_network


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lenet", {}),
        ("lenet", {"in_channels": 1, "image_size": 28, "classes": 3}),
        ("vgg11_bn", {"width": 0.13, "classes": 7, "in_channels": 1}),
        ("alexnet", {"width": 0.25, "image_size": 64}),
        ("mlp", {"width": 0.1, "image_size": 28, "in_channels": 1}),
        ("mlp_bn", {"width": 0.01}),
        ("torchvision:resnet18", {"classes": 4}),
    ],
)
def test_a_network_is_built_in_the_size_that_its_weights_show(name, options):
    built = build(name, **options).eval()
    loaded = load_network(name, read_module(built))
    assert not loaded.training
    assert loaded.state_dict().keys() == built.state_dict().keys()
    for key, value in built.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key]), key


@pytest.mark.parametrize("name", ["lenet", "mlp_bn", "torchvision:resnet18"])
def test_the_order_of_the_tensors_in_a_file_does_not_matter(name):
    built = build(name, in_channels=1, classes=7)
    state = read_module(built)
    by_name = dataclasses.replace(state, tensors=dict(sorted(state.tensors.items())))
    loaded = load_network(name, by_name).state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in built.state_dict().items())


def test_the_loaded_network_classifies_the_digits_as_the_independent_implementation_says():
    import gzip
    import json

    import numpy as np

    parity = Path("tests/parity")
    state = read_contents(parity / "lenet-epoch-12.tar")[1]
    raw = parity / "MNIST" / "raw"
    images = gzip.decompress((raw / "t10k-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((raw / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:]
    pixels = torch.from_numpy(np.frombuffer(images, np.uint8).reshape(-1, 1, 28, 28).copy())
    with torch.inference_mode():
        outputs = load_network("lenet", state)((pixels / 255 - 0.1307) / 0.3015)
    right = int((outputs.argmax(1).numpy() == np.frombuffer(labels, np.uint8)).sum())
    expected = json.loads((parity / "expected.json").read_text(encoding="utf-8"))["validation"]
    assert right / len(labels) == expected["top1"]


@pytest.mark.parametrize(
    ("key", "shape", "sentence"),
    [
        (
            "features.2.weight",
            (6, 6, 5, 5),
            r"features\.2 should be a 3×3 convolution, but has shape \(6, 6, 5, 5\)",
        ),
        ("features.0.weight", (6, 2, 3, 3), None),
        ("features.0.bias", (7,), r"features\.0\.bias has shape \(7,\) in the file, \(6,\)"),
    ],
)
def test_weights_of_another_network_are_refused_by_the_first_difference(key, shape, sentence):
    state = read_module(build("lenet"))
    from planescope.hyperplanes.layer import Tensor

    wrong = Tensor(shape, "float32", lambda: torch.zeros(shape))
    state = dataclasses.replace(state, tensors={**state.tensors, key: wrong})
    if sentence is None:  # another number of channels is another size of the same network
        assert load_network("lenet", state).features[0].in_channels == 2
        return
    with pytest.raises(CheckpointError, match=sentence):
        load_network("lenet", state)
