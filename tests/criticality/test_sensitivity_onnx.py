"""An ONNX file gives the table of the torch network that it came from, in a process with bounds."""

from __future__ import annotations

import copy
import importlib
import subprocess
import sys
import time

import numpy as np
import pytest

import planescope as ps
from planescope.files.errors import CheckpointError, RunError, UsageError

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
nn = torch.nn
sensitivity_onnx = importlib.import_module("planescope.criticality.sensitivity.onnx")

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


def test_a_graph_that_does_not_end_is_stopped_with_a_sentence(network, tmp_path, monkeypatch):
    monkeypatch.setattr(sensitivity_onnx, "SECONDS", 1.0)
    monkeypatch.setattr(sensitivity_onnx, "TIMES", 1.0)
    make, array = onnx.helper.make_node, onnx.numpy_helper.from_array
    value = onnx.helper.make_tensor_value_info
    body = onnx.helper.make_graph(
        [make("Identity", ["on"], ["still"]), make("Add", ["sum", "one"], ["more"])], "body",
        [value("i", onnx.TensorProto.INT64, []), value("on", onnx.TensorProto.BOOL, []),
         value("sum", onnx.TensorProto.FLOAT, [])],
        [value("still", onnx.TensorProto.BOOL, []), value("more", onnx.TensorProto.FLOAT, [])],
    )  # fmt: skip
    behind = [make("Loop", ["times", "yes", "zero"], ["end"], body=body),
              make("Add", ["logits", "end"], ["y"])]  # fmt: skip
    model = graph_of(network, behind=behind, outputs=("y",))
    model.graph.initializer.extend([
        array(np.array(1 << 60), "times"), array(np.array(True), "yes"),
        array(np.array(0, np.float32), "zero"), array(np.array(1, np.float32), "one"),
    ])  # fmt: skip
    began = time.monotonic()
    with pytest.raises(RunError, match="ran for more than 1 s on one batch and was stopped"):
        ps.sensitivity(saved(model, tmp_path / "net.onnx"), ways="bits:2", data=images(4))
    assert time.monotonic() - began < 20


class Gated(nn.Module):
    """A group norm, a squeeze and excitation, and a gate of the layer's own output."""

    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.squeeze, self.b = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.out = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.a(x)))
        x = x * torch.sigmoid(self.squeeze(x.mean((2, 3), keepdim=True)))
        x = self.b(x)
        return self.out((x * torch.sigmoid(x)).mean((2, 3)))


def gated_graph(state):
    """`Gated` as PyTorch exports it: a group norm is an instance norm between reshapes."""
    make, array = onnx.helper.make_node, onnx.numpy_helper.from_array
    conv, one = {"pads": [1] * 4, "kernel_shape": [3, 3]}, {"kernel_shape": [1, 1]}
    nodes = [
        make("Conv", ["x", "a.weight", "a.bias"], ["c0"], **conv),
        make("Reshape", ["c0", "grouped"], ["r"]),
        make("InstanceNormalization", ["r", "ones", "zeros"], ["i"], epsilon=1e-5),
        make("Reshape", ["i", "back"], ["r2"]),
        make("Mul", ["r2", "scale"], ["m"]), make("Add", ["m", "shift"], ["n"]),
        make("Relu", ["n"], ["h"]),
        make("ReduceMean", ["h"], ["p"], axes=[2, 3], keepdims=1),
        make("Conv", ["p", "squeeze.weight", "squeeze.bias"], ["f"], **one),
        make("Sigmoid", ["f"], ["gate"]), make("Mul", ["h", "gate"], ["h2"]),
        make("Conv", ["h2", "b.weight", "b.bias"], ["y"], **conv),
        make("Sigmoid", ["y"], ["own"]), make("Mul", ["y", "own"], ["y2"]),
        make("ReduceMean", ["y2"], ["q"], axes=[2, 3], keepdims=0),
        make("Gemm", ["q", "out.weight", "out.bias"], ["z"], transB=1),
    ]  # fmt: skip
    stored = {k: t.detach().numpy() for k, t in state.items() if not k.startswith("norm.")} | {
        "grouped": np.array([0, 2, -1]), "back": np.array([-1, 8, 10, 10]),
        "ones": np.ones(2, np.float32), "zeros": np.zeros(2, np.float32),
        "scale": state["norm.weight"].numpy().reshape(8, 1, 1),
        "shift": state["norm.bias"].numpy().reshape(8, 1, 1),
    }  # fmt: skip
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "g", [value("x", onnx.TensorProto.FLOAT, [None, 3, 10, 10])],
        [value("z", onnx.TensorProto.FLOAT, None)], [array(a, n) for n, a in stored.items()],
    )  # fmt: skip
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )


def test_gates_couple_channels_where_they_are_others_and_group_norms_go_with_filters(tmp_path):
    torch.manual_seed(0)
    network = Gated().eval()
    with torch.no_grad():
        network.norm.weight.uniform_(0.5, 1.5)
        network.norm.bias.uniform_(-0.5, 0.5)
        network.out.weight *= 30
        network.out.bias -= network(images(64)).mean(0)
    options = {"ways": "filters:0.5", "kinds": "all", "data": images(60)}
    of_torch = ps.sensitivity(network, **options)
    path = saved(gated_graph(network.state_dict()), tmp_path / "net.onnx")
    of_file = ps.sensitivity(path, **options)
    wanted, found = table(of_torch), table(of_file)
    assert {k: v for k, v in wanted.items() if v} == pytest.approx(
        {k: v for k, v in found.items() if v}, abs=1e-5
    )
    assert wanted["a", "filters:0.5"] > 0.05
    for one in (of_torch, of_file):
        assert one.notes[-1].endswith("channels are coupled with others' behind a, squeeze")


def test_a_norm_that_stays_when_filters_go_is_named(tmp_path):
    class Turned(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    network = nn.Sequential(nn.Conv2d(3, 8, 3), Turned(8), nn.Flatten(), nn.Linear(512, 4)).eval()
    found = ps.sensitivity(network, ways="filters:0.5", data=images(20))
    sentence = "without scale and shift of the norm"
    assert sentence in found.notes[-1]
    make, array = onnx.helper.make_node, onnx.numpy_helper.from_array
    nodes = [
        make("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3]),
        make("Transpose", ["c"], ["t"], perm=[0, 2, 3, 1]),
        make("LayerNormalization", ["t", "s", "b"], ["n"], axis=-1),
        make("ReduceMean", ["n"], ["z"], axes=[1, 2], keepdims=0),
    ]
    stored = {
        "w": network[0].weight.detach().numpy(), "s": np.ones(8, np.float32),
        "b": np.zeros(8, np.float32),
    }  # fmt: skip
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [*nodes, make("Gemm", ["z", "o"], ["y"], transB=1)], "g",
        [value("x", onnx.TensorProto.FLOAT, [None, 3, 10, 10])],
        [value("y", onnx.TensorProto.FLOAT, None)],
        [array(a, n) for n, a in stored.items()] + [array(np.eye(4, 8, dtype=np.float32), "o")],
    )  # fmt: skip
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )
    path = saved(model, tmp_path / "net.onnx")
    of_file = ps.sensitivity(path, ways="filters:0.5", data=images(20))
    assert any(sentence in note for note in of_file.notes)


def test_what_cannot_be_is_said(network, tmp_path):
    path = saved(graph_of(network), tmp_path / "net.onnx")
    with pytest.raises(UsageError, match="an ONNX file carries its network; leave out --network"):
        ps.sensitivity(path, network="lenet")
    with pytest.raises(UsageError, match="does not take its batches"):
        ps.sensitivity(path, ways="bits:2", data=torch.randn(8, 1, 10, 10))
    integers = torch.randint(0, 256, (8, 3, 10, 10), dtype=torch.uint8)
    for given in (integers, integers.numpy(), torch.utils.data.TensorDataset(integers)):
        with pytest.raises(UsageError, match="is float32, and uint8 came; scale them first"):
            ps.sensitivity(path, ways="bits:2", data=given)
        with pytest.raises(UsageError, match="is float32, and uint8 came; scale them first"):
            ps.plan(path, size=0.5, data=given)
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


def test_layers_go_back_to_those_of_another_file_as_in_torch(network, tmp_path):
    start = copy.deepcopy(network)
    with torch.no_grad():
        for tensor in start.parameters():
            tensor += 0.3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(2))
    paths = [saved(graph_of(one), tmp_path / f"{i}.onnx") for i, one in enumerate((network, start))]
    found = ps.predict_critical(paths[0], init=paths[1], data=images(60), kinds="all")
    whole = ps.predict_critical(network, init=start, data=images(60), kinds="all")
    assert [one.name for one in found.layers] == [one.name for one in whole.layers]
    for own, other in zip(found.layers, whole.layers, strict=True):
        assert own.score == pytest.approx(other.score, abs=1e-5)
        assert own.critical == other.critical
    assert len({round(one.score, 3) for one in found.layers}) > 2
    with pytest.raises(UsageError, match="go back to those of another ONNX file"):
        ps.predict_critical(paths[0], init=start, data=images(60))
    with pytest.raises(UsageError, match="equals its initialisation"):
        ps.predict_critical(paths[0], init=paths[0], data=images(60))
    other = graph_of(start)
    weights = np.ones((9, 3, 3, 3), np.float32)
    other.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "0.weight"))
    path = saved(other, tmp_path / "other.onnx")
    left = ps.predict_critical(paths[0], init=path, data=images(60)).skipped
    assert ("0", f"{path} has no such weight of its shape") in [(x.name, x.reason) for x in left]


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
