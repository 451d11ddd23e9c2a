"""ONNX files are planned and repaired as the torch network that they are of, and come out so."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import planescope as ps

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
nn = torch.nn


@pytest.fixture(scope="module")
def network():
    """A norm that is not folded, groups with uneven padding, a linear layer."""
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(8, 8, 3, stride=2, groups=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip
    with torch.no_grad():
        made[1].running_mean.uniform_(-0.2, 0.2)
        made[1].weight.uniform_(0.5, 1.5)
        made[8].weight *= 30
        made[8].bias -= made(images(64)).mean(0)
    return made


def images(count: int):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    """The network as a graph: the padding in its convolution, the linear layer a turned MatMul."""
    state = {name: t.detach().numpy() for name, t in network.state_dict().items()}
    make, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    norm = ["1.weight", "1.bias", "1.running_mean", "1.running_var"]
    nodes = [
        make("Conv", ["x", "0.weight"], ["c0"], pads=[1, 1, 1, 1]),
        make("BatchNormalization", ["c0", *norm], ["n0"]),
        make("Relu", ["n0"], ["r0"]),
        make("Conv", ["r0", "4.weight", "4.bias"], ["c1"], group=2, strides=[2, 2],
             pads=[0, 0, 1, 1]),
        make("Relu", ["c1"], ["r1"]),
        make("GlobalAveragePool", ["r1"], ["p0"]),
        make("Flatten", ["p0"], ["f0"]),
        make("Transpose", ["8.weight"], ["w8"], perm=[1, 0]),
        make("MatMul", ["f0", "w8"], ["m0"]),
        make("Add", ["m0", "8.bias"], ["y"]),
    ]  # fmt: skip
    kept = [name for name in state if not name.endswith("num_batches_tracked")]
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes, "g", [value("x", kind, [None, 3, 8, 8])], [value("y", kind, None)],
        [onnx.numpy_helper.from_array(state[name], name) for name in kept],
    )  # fmt: skip
    opset = [onnx.helper.make_opsetid("", 17)]
    folder = tmp_path_factory.mktemp("onnx")
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), folder / "n.onnx")
    np.save(folder / "x.npy", images(80).numpy())
    return folder


def tensors(path):
    return {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("asked", [{"size": 0.4}, {"way": "filters", "size": 0.6}], ids=str)
def test_a_file_is_planned_as_its_network_and_comes_out_under_its_names(asked, network, folder):
    path = folder / "n.onnx"
    made = ps.plan(path, data=images(80), examples=40, **asked)
    same = ps.plan(network, data=images(80), examples=40, **asked)
    assert [one.name for one in made.layers] == [one.name for one in same.layers]
    for own, other in zip(made.rivals, same.rivals, strict=True):
        assert (own.title, own.size) == (other.title, other.size)
        assert own.divergence == pytest.approx(other.divergence, rel=1e-4, abs=1e-6)
    made.module.save(folder / "planned.onnx")
    run = runtime.InferenceSession(folder / "planned.onnx").run(None, {"x": images(9).numpy()})[0]
    np.testing.assert_allclose(run, made.module(images(9)), atol=1e-4)
    before, after = tensors(path), tensors(folder / "planned.onnx")
    assert {n: t.shape for n, t in before.items()} == {n: t.shape for n, t in after.items()}
    assert np.array_equal(before["1.running_var"], after["1.running_var"])
    if "way" not in asked:
        kept = sum(int((after[f"{n}.weight"] != 0).sum()) for n in (0, 4, 8))
        assert kept == round(0.4 * sum(before[f"{n}.weight"].size for n in (0, 4, 8)))


def test_few_bits_as_they_are_are_those_of_the_network(network, folder):
    """Behind a repair each rounding turns on the last digit of those before, in torch as well."""
    asked = {"way": "bits", "bits": 3, "examples": 40, "repair": False}
    (own,), (other,) = (
        ps.plan(one, data=images(80), **asked).rivals for one in (folder / "n.onnx", network)
    )
    assert own.divergence == pytest.approx(other.divergence, rel=1e-4)


def test_the_command_writes_onnx_and_nothing_else(folder) -> None:
    def run(*words: str):
        command = [
            sys.executable,
            "-m",
            "planescope",
            "plan",
            "n.onnx",
            "--inputs",
            "x.npy",
            *words,
        ]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)

    asked = ("--size", "0.4", "--examples", "40", "--no-repair", "--out")
    done = run(*asked, "bare.onnx")
    assert done.returncode == 0, done.stderr
    assert tensors(folder / "bare.onnx").keys() == tensors(folder / "n.onnx").keys()
    mended = ps.repair(folder / "bare.onnx", folder / "n.onnx", data=images(80), examples=40)
    assert mended.after < mended.before
    done = run(*asked, "planned.pt")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "planescope: planned.pt: the name must end in .onnx\n"
    assert not (folder / "planned.pt").exists()


def test_a_file_needs_no_other_network(folder) -> None:
    with pytest.raises(
        ps.UsageError, match="an ONNX file carries its network; leave out --network"
    ):
        ps.plan(folder / "n.onnx", network="lenet", size=0.5, data=images(20))
