"""An ONNX file gives the table of the torch network that it came from, in a process with bounds."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import planescope as ps
from planescope.files.errors import CheckpointError, RunError, UsageError

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
nn = torch.nn

WAYS = "prune:0.5,filters:0.5,rank:0.5,bits:2,noise:0.5"


@pytest.fixture(scope="module")
def network():
    """Convolutions with a norm, with groups, spread out, and linear layers."""
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2), nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4),
    ).eval()  # fmt: skip
    with torch.no_grad():
        made[1].running_mean.uniform_(-0.2, 0.2)
        made[1].weight.uniform_(0.5, 1.5)
        made[1].bias.uniform_(-0.3, 0.3)
        made[11].weight *= 30
        made[11].bias -= made(images(64)).mean(0)
    return made


def images(count: int):
    return torch.randn(count, 3, 10, 10, generator=torch.Generator().manual_seed(1)) * 2


def graph_of(network, *, batch=None, behind=(), outputs=("logits",)):
    """The same network as an ONNX graph; one linear layer is a Gemm, the other MatMul and Add."""
    state = {name: t.detach().numpy() for name, t in network.state_dict().items()}
    make = onnx.helper.make_node
    conv = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    nodes = [
        make("Conv", ["x", "0.weight"], ["c0"], **conv),
        make("BatchNormalization",
             ["c0", "1.weight", "1.bias", "1.running_mean", "1.running_var"], ["n0"]),
        make("Relu", ["n0"], ["r0"]),
        make("Conv", ["r0", "3.weight", "3.bias"], ["c1"], group=2, strides=[2, 2], **conv),
        make("Relu", ["c1"], ["r1"]),
        make("ConvTranspose", ["r1", "5.weight", "5.bias"], ["t0"], strides=[2, 2]),
        make("Relu", ["t0"], ["r2"]),
        make("GlobalAveragePool", ["r2"], ["p0"]),
        make("Flatten", ["p0"], ["f0"]),
        make("Gemm", ["f0", "9.weight", "9.bias"], ["g0"], transB=1),
        make("Relu", ["g0"], ["r3"]),
        make("Transpose", ["11.weight"], ["w11"], perm=[1, 0]),
        make("MatMul", ["r3", "w11"], ["m0"]),
        make("Add", ["m0", "11.bias"], ["logits"]),
        *behind,
    ]  # fmt: skip
    kept = [name for name in state if not name.endswith("num_batches_tracked")]
    stored = [onnx.numpy_helper.from_array(state[name], name) for name in kept]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "g", [value("x", onnx.TensorProto.FLOAT, [batch, 3, 10, 10])],
        [value(name, onnx.TensorProto.FLOAT, None) for name in outputs], stored,
    )  # fmt: skip
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )


def saved(model, path):
    onnx.save(model, path)
    return path


def table(found):
    return {
        (layer.name, key): None if one is None else one.score
        for layer in found.layers
        for key, one in layer.ways.items()
    }


@pytest.mark.parametrize("batch", [None, 7])
def test_the_table_is_that_of_the_torch_network(network, tmp_path, batch):
    options = {"ways": WAYS, "kinds": "all", "data": images(30)}
    of_torch = ps.sensitivity(network, **options)
    path = saved(graph_of(network, batch=batch), tmp_path / "net.onnx")
    of_file = ps.sensitivity(path, **options)
    wanted, found = table(of_torch), table(of_file)
    assert found.keys() == wanted.keys()
    for cell, score in wanted.items():
        assert found[cell] == (None if score is None else pytest.approx(score, abs=1e-5)), cell
    for one, other in zip(of_torch.layers, of_file.layers, strict=True):
        assert (one.kind, one.parameters) == (other.kind, other.parameters)
        assert one.multiply_adds == other.multiply_adds, one.name
    assert sum(score > 0 for score in wanted.values() if score is not None) > 15


def test_nothing_but_the_file_ranks_by_its_own_size_of_pictures(network, tmp_path):
    behind = [onnx.helper.make_node("Softmax", ["logits"], ["p"], axis=1)]
    model = graph_of(network, behind=behind, outputs=("p",))
    found = ps.sensitivity(saved(model, tmp_path / "net.onnx"), ways="prune:0.1,prune:1")
    plain = ps.sensitivity(network, ways="prune:0.1,prune:1", input_shape=(3, 10, 10))
    assert (found.input_shape, found.assumed) == ((3, 10, 10), False)
    assert any("probabilities" in note for note in found.notes)
    for cell, score in table(plain).items():
        assert table(found)[cell] == pytest.approx(score, abs=0.02)


def test_external_data_are_read_from_the_folder_of_the_model_alone(network, tmp_path):
    beside = tmp_path / "net.onnx"
    onnx.save(
        graph_of(network), beside, save_as_external_data=True, location="weights.bin",
        size_threshold=0,
    )  # fmt: skip
    found = ps.sensitivity(beside, ways="bits:2", data=images(30))
    whole = ps.sensitivity(network, ways="bits:2", data=images(30))
    assert table(found) == pytest.approx(table(whole), abs=1e-5)
    model = onnx.load(beside, load_external_data=False)
    for tensor in model.graph.initializer:
        tensor.external_data[0].value = "../weights.bin"
    outside = tmp_path / "inner" / "net.onnx"
    outside.parent.mkdir()
    outside.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="not a path inside the model's folder"):
        ps.sensitivity(outside, ways="bits:2", data=images(30))


def test_a_graph_that_takes_too_much_is_stopped_with_a_sentence(network, tmp_path):
    value = onnx.helper.make_tensor("v", onnx.TensorProto.FLOAT, [1], [1.0])
    size = onnx.numpy_helper.from_array(np.array([1 << 20, 1 << 20], np.int64), "size")
    behind = [
        onnx.helper.make_node("ConstantOfShape", ["size"], ["big"], value=value),
        onnx.helper.make_node("ReduceSum", ["big"], ["one"], keepdims=0),
        onnx.helper.make_node("Add", ["logits", "one"], ["y"]),
    ]
    model = graph_of(network, behind=behind, outputs=("y",))
    model.graph.initializer.append(size)
    with pytest.raises(RunError, match="memory"):
        ps.sensitivity(saved(model, tmp_path / "net.onnx"), ways="bits:2", data=images(4))


def test_what_cannot_be_is_said(network, tmp_path):
    path = saved(graph_of(network), tmp_path / "net.onnx")
    with pytest.raises(UsageError, match="an ONNX file carries its network; leave out --network"):
        ps.sensitivity(path, network="lenet")
    with pytest.raises(UsageError, match="does not take its batches"):
        ps.sensitivity(path, ways="bits:2", data=torch.randn(8, 1, 10, 10))
    model = graph_of(network)
    model.graph.node[0].op_type = "Own"
    model.graph.node[0].domain = "not.there"
    with pytest.raises(CheckpointError, match="onnxruntime does not run it"):
        ps.sensitivity(saved(model, tmp_path / "own.onnx"), ways="bits:2", data=images(4))
    broken = graph_of(network)
    weights = np.full((8, 3, 3, 3), np.nan, np.float32)
    broken.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "0.weight"))
    with pytest.raises(CheckpointError, match="not finite"):
        ps.sensitivity(saved(broken, tmp_path / "nan.onnx"), ways="bits:2", data=images(4))


def test_a_second_input_is_asked_for(network, tmp_path):
    behind = [onnx.helper.make_node("Add", ["logits", "shift"], ["y"])]
    model = graph_of(network, behind=behind, outputs=("y",))
    model.graph.input.append(
        onnx.helper.make_tensor_value_info("shift", onnx.TensorProto.FLOAT, [None, 4])
    )
    path = saved(model, tmp_path / "net.onnx")
    with pytest.raises(UsageError, match=r"takes 2 inputs \(x, shift\)"):
        ps.sensitivity(path, ways="bits:2")
    batches = [{"x": images(8), "shift": torch.zeros(8, 4)}]
    found = ps.sensitivity(path, ways="bits:2", data=batches)
    whole = ps.sensitivity(network, ways="bits:2", data=images(8))
    assert table(found) == pytest.approx(table(whole), abs=1e-5)


def test_the_command_needs_the_file_alone(network, tmp_path):
    path = saved(graph_of(network), tmp_path / "net.onnx")
    np.save(tmp_path / "x.npy", images(20).numpy())
    command = [sys.executable, "-m", "planescope", "sensitivity", str(path), "--ways", "bits:2"]
    done = subprocess.run(
        [*command, "--inputs", str(tmp_path / "x.npy")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "no labels: loss that the network itself expects on 20 inputs" in done.stdout
