"""One tensor under several names, and in several forms, is one layer in every container."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from planescope.measurement.source import find

EXAMPLE = torch.zeros(1, 3, 6, 6)


class Viewed(nn.Module):
    """A convolution whose weight a linear layer before it has as a matrix."""

    def __init__(self):
        super().__init__()
        self.lin, self.conv = nn.Linear(27, 8, bias=False), nn.Conv2d(3, 8, 3, bias=False)
        self.back = nn.ConvTranspose2d(8, 8, 3, bias=False)
        self.last = nn.Conv2d(8, 8, 3, bias=False)
        self.lin.weight = nn.Parameter(self.conv.weight.view(8, 27))
        self.back.weight = self.last.weight

    def forward(self, x):
        patches = nn.functional.unfold(x, 3).transpose(1, 2)
        x = self.conv(x).relu() + self.lin(patches).relu().transpose(1, 2).reshape(1, 8, 4, 4)
        return self.back(self.last(x).relu())


@pytest.mark.parametrize("container", ["arrays", "pt", "module", "safetensors", "onnx", "pt2"])
def test_a_matrix_that_views_a_convolutions_weight_is_no_second_layer(tmp_path, container):
    net, path = Viewed().eval(), tmp_path / f"net.{container}"
    match container:
        case "arrays":
            path = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
        case "pt":
            torch.save(net.state_dict(), path)
        case "module":
            torch.save(net, path)
        case "safetensors":
            safetensors.torch.save_model(net, str(path))
        case "onnx":
            torch.onnx.export(net, EXAMPLE, path, dynamo=False)
        case "pt2":
            torch.export.save(torch.export.export(net, (EXAMPLE,)), path)
    found = {layer.name: layer for layer in find(path).layers}
    assert "lin" not in found
    assert found["conv"].aliases == ("lin",)
    assert found["conv"].weight.shape == (8, 3, 3, 3)
    if container in ("module", "onnx", "pt2"):  # these tell that one is transposed
        assert len(found) == 3


class Tied(nn.Module):
    """A decoder that has the weight of its encoder turned, and no bias."""

    def __init__(self):
        super().__init__()
        self.code = nn.Linear(6, 6)

    def forward(self, x):
        return self.code(x).relu() @ self.code.weight.t()


@pytest.mark.parametrize("container", ["live", "onnx", "unfolded.onnx", "pt2"])
def test_a_weight_that_acts_again_without_its_bias_is_one_layer_and_told(tmp_path, container):
    net, path, example = Tied().eval(), tmp_path / f"net.{container}", torch.zeros(1, 6)
    if container.endswith("onnx"):
        is_folded = container == "onnx"  # the exporter then writes the weight again, turned
        torch.onnx.export(net, example, path, dynamo=False, do_constant_folding=is_folded)
    elif container == "pt2":
        torch.export.save(torch.export.export(net, (example,)), path)
    found = find(net if container == "live" else str(path))
    ((name, layer),) = [(layer.name, layer) for layer in found.layers]
    assert name == "code"
    np.testing.assert_array_equal(np.asarray(layer.weight.read()), net.code.weight.detach())
    told = " ".join([*found.notes, *(one.reason for one in found.skipped)])
    assert "bias" in told
