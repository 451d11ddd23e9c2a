"""Small files of every format, written by the libraries whose formats they are.

    python -m checks.fuzz.seeds FOLDER TARGET...     # FOLDER/TARGET/SEED/files

In a process of its own: torch and Keras would make the processes that read heavy, and hide that a
file made planescope import them.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import pickle
import re
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from checks.fuzz import mappings, trees
from checks.fuzz.structures import zipped

# Of this name is the file that is read, unless a target reads a folder.
INPUT = "input"

ROOT = Path(__file__).parents[2]

Seeds = Iterator[tuple[str, dict[str, bytes]]]


def _draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _weights() -> dict[str, np.ndarray]:
    return {
        "features.0.weight": _draw(4, 3, 3, 3),
        "features.0.bias": _draw(4),
        "features.1.weight": _draw(4),
        "features.1.bias": _draw(4, seed=1),
        "features.1.running_mean": _draw(4, seed=2),
        "features.1.running_var": abs(_draw(4, seed=3)),
        "classifier.weight": _draw(2, 4),
    }


def _torch_network() -> Any:
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.ConvTranspose2d(2, 2, 2), nn.Flatten(),
        nn.Linear(2, 2),
    )  # fmt: skip


def _safetensors() -> Seeds:
    import torch
    from safetensors.numpy import save
    from safetensors.torch import save as save_torch

    yield "weights", {INPUT: save(_weights(), {"format": "pt", "note": "é"})}
    every = ("float16", "bfloat16", "float64", "float8_e4m3fn", "float8_e5m2", "int8", "bool")
    typed = {name: torch.ones(2, 1, 2).to(getattr(torch, name)) for name in every}
    yield "types", {INPUT: save_torch({f"{name}.weight": each for name, each in typed.items()})}
    yield "empty", {INPUT: save({"a.weight": np.zeros((0, 3, 3, 3), np.float32), **_weights()})}


def _torch_saved() -> Iterator[tuple[str, Any]]:
    import torch
    from torch import nn

    net = _torch_network()
    state = net.state_dict()
    yield "state", state
    optimizer = torch.optim.Adam(net.parameters())
    yield "lightning", {
        "epoch": 3, "global_step": 30, "pytorch-lightning_version": "2.4.0", "loops": {"a": [1]},
        "callbacks": {}, "hyper_parameters": {"lr": 0.1},
        "state_dict": {f"model.{name}": value for name, value in state.items()},
        "optimizer_states": [optimizer.state_dict()], "lr_schedulers": [],
    }  # fmt: skip
    yield "module", nn.DataParallel(net)
    quantised = torch.quantize_per_tensor(torch.ones(2, 1, 3, 3), 0.1, 1, torch.qint8)
    scales, zeros = torch.tensor([0.1, 0.2]), torch.tensor([0, 1])
    channels = torch.quantize_per_channel(torch.ones(2, 2, 2, 2), scales, zeros, 0, torch.qint8)
    shared = torch.arange(16.0)
    yield "views", {
        "a.weight": quantised, "b.weight": channels, "c.weight": shared[:8].view(2, 1, 2, 2),
        "d.weight": shared.view(4, 4).t(), "e.weight": nn.Parameter(shared[::2].reshape(2, 4)),
        "f.weight": torch.ones(2, 2, dtype=torch.bfloat16),
    }  # fmt: skip


def _torch_zip() -> Seeds:
    import torch

    for name, value in _torch_saved():
        buffer = io.BytesIO()
        torch.save(value, buffer)
        yield name, {INPUT: buffer.getvalue()}
    buffer = io.BytesIO()
    net = _torch_network().eval()
    torch.jit.save(torch.jit.trace(net[:3], torch.zeros(1, 1, 8, 8)), buffer)
    yield "torchscript", {INPUT: buffer.getvalue()}


def _torch_stream() -> Seeds:
    import torch

    for name, value in _torch_saved():
        for protocol in (2, 4) if name == "state" else (2,):
            buffer = io.BytesIO()
            torch.save(
                value, buffer, pickle_protocol=protocol, _use_new_zipfile_serialization=False
            )
            yield f"{name}-{protocol}", {INPUT: buffer.getvalue()}


def _npz() -> Seeds:
    for name, save in (("stored", np.savez), ("deflated", np.savez_compressed)):
        buffer = io.BytesIO()
        save(buffer, **_weights())
        yield name, {INPUT: buffer.getvalue()}
    buffer = io.BytesIO()
    odd = {"a": np.asfortranarray(_draw(3, 3)), "b": np.array("text"), "c": _draw(2).astype(">f8")}
    np.savez(buffer, **odd, d=np.zeros(2, "M8[s]"), **{"w.weight": _draw(2, 1, 3, 3)})
    yield "odd", {INPUT: buffer.getvalue()}
    buffer = io.BytesIO()
    np.savez(buffer, a=np.array([{}, []], object), **_weights())
    yield "refused-objects", {INPUT: buffer.getvalue()}
    buffer = io.BytesIO()
    np.save(buffer, _draw(3, 3))
    yield "refused-npy", {INPUT: buffer.getvalue()}


def _onnx() -> Seeds:
    from onnx import TensorProto, helper, numpy_helper

    def stored(name: str, values: np.ndarray) -> TensorProto:
        return numpy_helper.from_array(np.ascontiguousarray(values), name)

    node = helper.make_node
    nodes = [
        node("Sub", ["image", "mean"], ["x0"]),
        node("Conv", ["x0", "0.weight", "0.bias"], ["x1"], pads=[1, 1, 1, 1], strides=[2, 2]),
        node("BatchNormalization", ["x1", "g", "b", "m", "v"], ["x2"], epsilon=0.001),
        node("Relu", ["x2"], ["x3"]),
        node("MaxPool", ["x3"], ["x4"], kernel_shape=[2, 2], strides=[2, 2]),
        node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=0),
        node("Transpose", ["w"], ["wt"], perm=[0, 1, 3, 2]),
        node("ConvTranspose", ["x4", "wt"], ["x5"], group=1),
        node("Clip", ["x5", "zero", "six"], ["x6"]),
        node("Constant", [], ["shape"], value=stored("", np.array([-1, 8]))),
        node("Reshape", ["x6", "shape"], ["x7"]),
        node("Gemm", ["x7", "head", "head.bias"], ["answer"], transB=1),
    ]
    weights = _onnx_weights()
    tensors = [stored(name, np.asarray(values)) for name, values in weights.items()]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])
    answer = helper.make_tensor_value_info("answer", TensorProto.FLOAT, [1, 2])
    graph = helper.make_graph(nodes, "net", [image], [answer], tensors)
    yield "raw", {INPUT: helper.make_model(graph).SerializeToString()}

    typed = [
        helper.make_tensor(t.name, TensorProto.FLOAT, t.dims, weights[t.name].ravel().tolist())
        if t.data_type == TensorProto.FLOAT
        else t
        for t in tensors
    ]
    branch = helper.make_graph([node("Relu", ["image"], ["i"])], "b", [], [answer])
    nodes[0] = node("If", ["c"], ["x0"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph(nodes, "net", [image], [answer], typed)
    yield "typed", {INPUT: helper.make_model(graph).SerializeToString()}

    for tensor in tensors[1:3]:
        raw = len(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "net.data"), ("offset", "16"), ("length", str(raw))):
            tensor.external_data.add(key=key, value=value)
    nodes[0] = node("Identity", ["image"], ["x0"])
    graph = helper.make_graph(nodes, "net", [image], [answer], tensors)
    data = _draw(200).tobytes()
    yield "external", {INPUT: helper.make_model(graph).SerializeToString(), "net.data": data}
    yield from _onnx_operators()
    yield from _onnx_blocks()


def _onnx_blocks() -> Seeds:
    """Yield convolutions in the order of one processor, and norms behind views."""
    from onnx import TensorProto, helper, numpy_helper

    node, own = helper.make_node, {"domain": "com.microsoft.nchwc"}
    nodes = [
        node("Conv", ["image", "reorder", "b"], ["x0"], activation="Relu", **own),
        node("MaxPool", ["x0"], ["x1"], strides=[2, 2], **own),
        node("Conv", ["x1", "reorder_1", "", "x0"], ["x2"], **own),
        node("Conv", ["x2", "reorder_2"], ["x3"], group=16, **own),
        node("ReorderOutput", ["x3"], ["x4"], channels=12, **own),
        node("Transpose", ["x4"], ["x5"], perm=[0, 2, 3, 1]),
        node("MatMul", ["x5", "w"], ["x6"]),
        node("Reshape", ["x6", "rows"], ["x7"]),
        node("BatchNormalization", ["x7", "n", "n", "n", "n"], ["x8"]),
        node("Unsqueeze", ["x8", "axes"], ["answer"]),
    ]
    weights = {
        "reorder": np.pad(_draw(12, 3, 3, 3), ((0, 4), (0, 0), (0, 0), (0, 0))), "b": _draw(16),
        "reorder_1": _draw(16, 16, 1, 1), "reorder_2": _draw(16, 1, 3, 3), "w": _draw(12, 5),
        "rows": np.array([-1, 5]), "n": abs(_draw(5)), "axes": np.array([2]),
    }  # fmt: skip
    tensors = [numpy_helper.from_array(np.asarray(v), name) for name, v in weights.items()]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])
    answer = helper.make_tensor_value_info("answer", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "net", [image], [answer], tensors)
    yield "blocks", {INPUT: helper.make_model(graph).SerializeToString()}


def _onnx_weights() -> dict[str, Any]:
    return {
        "mean": np.full((3, 1, 1), 0.5, np.float32), "0.weight": _draw(4, 3, 3, 3),
        "0.bias": _draw(4), "g": _draw(4), "b": _draw(4), "m": _draw(4), "v": abs(_draw(4)),
        "q": np.arange(16, dtype=np.int8).reshape(4, 1, 2, 2), "s": _draw(4),
        "z": np.zeros(4, np.int8), "zero": np.float32(0), "six": np.float32(6),
        "head": _draw(2, 8), "head.bias": _draw(2),
    }  # fmt: skip


def _onnx_operators() -> Seeds:
    """Weights made by arithmetic, sparse and packed, and the operators of onnxruntime."""
    from onnx import TensorProto, helper, numpy_helper

    node, ms = helper.make_node, {"domain": "com.microsoft"}
    rectified = [node("Conv", ["x", "w"], ["c"]), node("Relu", ["c"], ["y"])]
    opsets = [helper.make_opsetid("", 21)]
    block = helper.make_function("own", "block", ["x", "w"], ["y"], rectified, opsets)
    nodes = [
        node("ReduceL2", ["v"], ["n"], axes=[1, 2, 3], keepdims=1),
        node("Div", ["v", "n"], ["d"]),
        node("Mul", ["d", "g"], ["w0"]),
        node("block", ["image", "w0"], ["x1"], domain="own"),
        node("FusedConv", ["x1", "v4", "b4"], ["x2"], activation="Relu", **ms),
        node("Concat", ["half", "half"], ["w3"], axis=0),
        node("Slice", ["w3", "starts", "ends"], ["w4"]),
        node("Conv", ["x2", "w4"], ["x3"], group=2),
        node("QLinearConv", ["x3", "s", "u", "q", "s4", "z", "s", "u", "i4"], ["x4"]),
        node("ConvInteger", ["x4", "q", "u", "z"], ["x5"]),
        node("Cast", ["x5"], ["x6"], to=1),
        node("Mul", ["x3", "s"], ["xs"]),
        node("Mul", ["xs", "s"], ["scales"]),
        node("Mul", ["x6", "scales"], ["x7"]),
        node("MatMul", ["x7", "sparse"], ["x8"]),
        node("Add", ["x8", "b4"], ["x9"]),
        node("MatMulNBits", ["x9", "packed", "ps"], ["y1"], K=32, N=2, bits=4, block_size=16, **ms),
        node("QGemm", ["y1", "s", "u", "q2", "s", "z1", "i4"], ["y2"], transB=1, **ms),
        node("Einsum", ["y2", "m"], ["y3"], equation="ab,cb->ac"),
        node("LSTM", ["y3", "v", "v"], ["y4"]),
        node("LinearRegressor", ["y4"], ["answer"], coefficients=[1.0, 2.0], domain="ai.onnx.ml"),
    ]
    weights = {
        "v": _draw(4, 3, 3, 3), "g": _draw(4, 1, 1, 1), "v4": _draw(4, 4, 3, 3), "b4": _draw(4),
        "half": _draw(2, 2, 1, 1), "starts": np.array([0]), "ends": np.array([4]),
        "s": np.float32(0.5), "u": np.uint8(0), "z": np.zeros(4, np.int8), "s4": abs(_draw(4)),
        "q": np.arange(16, dtype=np.int8).reshape(4, 4, 1, 1), "i4": np.arange(4, dtype=np.int32),
        "q2": np.arange(16, dtype=np.int8).reshape(4, 4), "z1": np.int8(0), "m": _draw(3, 4),
        "packed": np.arange(32, dtype=np.uint8).reshape(2, 2, 8), "ps": abs(_draw(4)),
    }  # fmt: skip
    tensors = [numpy_helper.from_array(np.asarray(v), name) for name, v in weights.items()]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])
    answer = helper.make_tensor_value_info("answer", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "net", [image], [answer], tensors)
    values = numpy_helper.from_array(np.ones(3, np.float32), "sparse")
    places = numpy_helper.from_array(np.array([1, 5, 14]), "places")
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [4, 4]))
    model = helper.make_model(graph, functions=[block])
    yield "operators", {INPUT: model.SerializeToString()}


def _keras() -> Seeds:
    """Yield files that Keras 2 wrote, as the tests keep them, and files that Keras 3 writes."""
    for path in sorted((ROOT / "tests" / "keras").glob("*.*")):
        if path.name in ("branches-weights.h5", "sequence.h5", "residual.keras"):
            yield f"keras2-{path.name}", {INPUT: _without_times(path.read_bytes())}
    os.environ["KERAS_BACKEND"] = "numpy"  # the quickest to start
    import keras

    layers = keras.layers
    net = keras.Sequential(
        [keras.Input((6, 6, 1)), layers.Conv2D(2, 3), layers.BatchNormalization(), layers.ReLU()]
    )
    for suffix in (".keras", ".h5", ".weights.h5"):
        name = f"net{suffix}"
        (net.save_weights if "weights" in suffix else net.save)(name)
        yield f"keras3{suffix}", {INPUT: _without_times(Path(name).read_bytes())}
    image = keras.Input((4, 3))
    x = layers.Dense(2, activation="relu", name="whole")(layers.LSTM(3)(image / 255))
    low = layers.Dense(3, name="low")
    net = keras.Model(image, low(x + 1.0))
    net.get_layer("whole").quantize("int8")
    low.enable_lora(1)
    for suffix in (".keras", ".h5"):
        net.save(f"quantised{suffix}")
        yield f"quantised{suffix}", {INPUT: _without_times(Path(f"quantised{suffix}").read_bytes())}


def _without_times(data: bytes) -> bytes:
    """The same archive at another time is the same seed."""
    if not data.startswith(b"PK"):
        return data
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(i.filename, archive.read(i), i.compress_type) for i in archive.infolist()]
    return zipped([each for each in members if each[0] != "metadata.json"])


def _tensorflow(*seeds: tuple[str, str]) -> Callable[[], Seeds]:
    """Yield files that TensorFlow wrote, as the tests keep them: the one to read, and the rest."""

    def made() -> Seeds:
        for name, pattern in seeds:
            path = ROOT / "tests" / "tensorflow_files" / name
            beside = {
                str(file.relative_to(path.parent)): file.read_bytes()
                for file in sorted(path.parent.glob(pattern or "no file"))
            }
            # The data of a checkpoint are called as its index is.
            named = {
                re.sub(r"^[^/]*(?=\.data-)", INPUT, file): data for file, data in beside.items()
            }
            yield name.replace("/", "-"), {INPUT: path.read_bytes(), **named}

    return made


def _tfjs() -> Seeds:
    kinds = ("layers-plain", "layers-uint8", "graph-uint8")
    for name, files in _tensorflow(*((f"{n}/model.json", "*.bin") for n in kinds))():
        yield name, files
        if "uint8" in name:  # a manifest alone, as face-api.js keeps it
            manifest = json.loads(files[INPUT])["weightsManifest"]
            yield f"{name}-manifest", {**files, INPUT: json.dumps(manifest).encode()}


def _hdf5() -> Seeds:
    import h5py

    kernel = _draw(3, 3, 2, 2)
    ways: dict[str, dict[str, Any]] = {
        "contiguous": {},
        "chunked": {"chunks": (3, 3, 1, 2)},
        "packed": {"compression": "gzip", "shuffle": True, "fletcher32": True, "chunks": True},
        "growing": {"maxshape": (None, 3, 2, 2), "chunks": (1, 3, 2, 2)},
        "two-unlimited": {"maxshape": (None, None, 2, 2), "chunks": (2, 2, 2, 2)},
        "halves": {"dtype": ">f2"},
        "user-block": {},
        "latest-contiguous": {},
        "latest-chunked": {"chunks": (1, 3, 1, 2)},
        "latest-packed": {"compression": "gzip", "chunks": (3, 3, 1, 2)},
        "latest-growing": {"maxshape": (None, 3, 2, 2), "chunks": (1, 3, 2, 2)},
        "latest-two-unlimited": {"maxshape": (None, None, 2, 2), "chunks": (2, 2, 2, 2)},
        "many": {},
        "latest-many": {},
    }
    for name, options in ways.items():
        buffer = io.BytesIO()
        version = {"libver": "latest"} if name.startswith("latest") else {}
        block = {"userblock_size": 512} if name == "user-block" else {}
        with h5py.File(buffer, "w", **version, **block) as file:
            group = file.create_group("layers/conv2d/vars")
            group.create_dataset("0", data=kernel, **options)
            group.create_dataset("1", data=_draw(2))
            group.attrs["name"] = "first"
            if name.endswith("many"):
                for number in range(40):
                    file.create_group(f"layers/dense_{number}/vars").attrs["name"] = str(number)
                    group.attrs[f"a{number}"] = "text" * number
        yield name, {INPUT: buffer.getvalue()}
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file["layers/conv2d/vars/0"] = kernel
        file["layers/other"] = h5py.ExternalLink("/etc/hosts", "/x")
    yield "refused-external-link", {INPUT: buffer.getvalue()}
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        outside = [("/etc/hosts", 0, 64)]
        file.create_dataset("layers/conv2d/vars/0", (4, 4), "f4", external=outside)
    yield "refused-external-data", {INPUT: buffer.getvalue()}


def _sharded() -> Seeds:
    import torch
    from safetensors.numpy import save

    weights = _weights()
    parts = [dict(list(weights.items())[:3]), dict(list(weights.items())[3:])]
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = {
        "metadata": {"total_size": sum(each.nbytes for each in weights.values())},
        "weight_map": {n: names[i] for i, part in enumerate(parts) for n in part},
    }
    files = {name: save(part) for name, part in zip(names, parts, strict=True)}
    yield "safetensors", {INPUT: json.dumps(index).encode(), **files}
    buffer = io.BytesIO()
    torch.save({"a.weight": torch.ones(2, 1, 3, 3)}, buffer)
    index = {"weight_map": {"a.weight": "pytorch_model.bin"}}
    yield "torch", {INPUT: json.dumps(index).encode(), "pytorch_model.bin": buffer.getvalue()}


class _Reducing:
    def __reduce__(self) -> Any:
        return (dict, ((("a", 1),),), {"state": (1, 2)}, iter([3, 4]), iter([("b", b"c")]))


def _pickle() -> Seeds:
    value: list[Any] = [
        None, True, 1, -70000, 2**70, 1.5, "text é", b"bytes", bytearray(b"a"), (), (1,), (1, 2, 3),
        {"a": {"b": [1, 2]}, 3: "c", (1, 2): 4}, {1, 2}, frozenset({"x"}), complex(1, 2), range(3),
        ValueError("x"), np.arange(3), np.float32(1), _Reducing(), os.path.join, "long" * 100,
    ]  # fmt: skip
    value.append(value)
    for protocol in range(6):
        yield f"protocol-{protocol}", {INPUT: pickle.dumps(value, protocol)}


_CONFIG = """\
schema: planescope.config/1
network: lenet   # a comment
data: digits
epochs: 3
learning_rate: 0.05
milestones: [1, 2]
kinds:
  - conv
  - linear
loggers: []
augment: null
shuffle_pixels: false
patience: 4
precision: 32-true
"""

_STUDY = """\
schema: planescope.study/1
base: &base
  network: lenet
  data: digits
  epochs: 2
grid:
  - label_noise: [0.0, 0.5]
    network: [lenet, vgg11]
    seeds: 2
  - <<: *base
    shuffle_pixels: [true, false]
seeds: [0, 1]
when:
  - if: {network: vgg11}
    set: {learning_rate: 0.05}
exclude:
  - {network: vgg11, label_noise: 0.5}
make: [train, measure, reset, relate]
reset: {snapshots: [0, rand], draws: 2, together: true}
"""


def _config() -> Seeds:
    from planescope.training.config import RunConfig, dump_config

    # PyYAML is slow: half of it at a time.
    lines = dump_config(RunConfig()).splitlines(keepends=True)
    yield "written", {INPUT: "".join(lines[:20]).encode()}
    yield "written-too", {INPUT: "".join(lines[20:]).encode()}
    yield "by-hand", {INPUT: _CONFIG.encode()}
    yield "empty", {INPUT: b""}


def _study() -> Seeds:
    for name in ("digits", "held-out", "paper-mnist"):
        path = ROOT / "studies" / f"{name}.yaml"
        # Without the comments, which are most of it.
        yield path.name, {INPUT: re.sub(rb"(?m)^ *#.*\n", b"", path.read_bytes())}
    yield "by-hand", {INPUT: _STUDY.encode()}


def _made_run(folder: Path) -> Any:
    """A run as training writes it, its relation among its files."""
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "criticality")]
    from report_runs import make_run
    from test_relation import simulated

    from planescope.criticality.relation.relate import relate_layers

    run = make_run(folder, names=("features.0", "features.2", "features.5"))
    related = simulated(np.random.default_rng(0), planted=1.0, runs=1)
    relate_layers(related[:4], draws=99).save(run.relation)
    run.save_snapshot(0, _as_torch(_weights()), {"network": "lenet"})
    return run


def _as_torch(weights: dict[str, np.ndarray]) -> Any:
    import torch

    return {name: torch.from_numpy(values) for name, values in weights.items()}


def _result(form: str) -> Callable[[], Seeds]:
    def seeds() -> Seeds:
        import planescope as ps

        run = _made_run(Path("made"))
        result = {
            "measurement": lambda: ps.measure(_weights()),
            "resets": lambda: ps.Resets.load(run.resets),
            "relation": lambda: ps.Relation.load(run.relation),
        }[form]()
        for suffix in (".json", ".parquet"):
            result.save(f"result{suffix}")
            yield form + suffix, {INPUT: Path(f"result{suffix}").read_bytes()}

    return seeds


def _run() -> Seeds:
    """Without resets and relation, which are targets of their own."""
    run = _made_run(Path("run"))
    run.resets.unlink()
    run.relation.unlink()
    (run.path / ".lock").touch()
    files = {str(p): p.read_bytes() for p in sorted(run.path.rglob("*")) if p.is_file()}
    kept = {p: d for p, d in files.items() if "epoch-0000" in p or "epoch-" not in p}
    yield "parquet", kept
    from planescope.files.writing import write_csv

    write_csv(Path("table.csv"), run._measured())
    kept.pop("run/measurements.parquet")
    yield "csv", {**kept, "run/measurements.csv": Path("table.csv").read_bytes()}


def _progress() -> Seeds:
    from planescope.criticality.resets.engine.progress import Progress

    progress = Progress(Path("kept"), "protocol")
    for name in ("trained", "features.0 0"):
        tally = progress[name]
        tally.examples = 20
        tally.add("right", np.arange(20) % 3 == 0)
        tally.add("value", np.linspace(0, 1, 20))
        tally.sums["loss"] = 12.5
    progress.save(now=True)
    yield "two", {INPUT: Path("kept").read_bytes()}


def _idx() -> Seeds:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 4), dtype=np.uint8)
    plain = struct.pack(">BBBBIII", 0, 0, 8, 3, *pixels.shape) + pixels.tobytes()
    yield "plain", {INPUT: plain}
    yield "gzip", {INPUT: gzip.compress(plain, mtime=0)}


def _mat() -> Seeds:
    import scipy.io

    arrays = {"X": np.zeros((2, 2, 3, 3), np.uint8), "y": np.arange(3.0)[:, None] + 9}
    for name, packed in (("plain", False), ("packed", True)):
        buffer = io.BytesIO()
        scipy.io.savemat(buffer, arrays, do_compression=packed)
        data = buffer.getvalue()  # the header's text has the time
        yield name, {INPUT: b"MATLAB 5.0 MAT-file".ljust(116) + data[116:]}


def _cifar() -> Seeds:
    sys.path.insert(0, str(ROOT / "tests"))
    from data_files import python2_batch

    images = np.random.default_rng(0).integers(0, 256, (2, 3072), dtype=np.uint8)
    yield "python2", {INPUT: python2_batch(images, [3, 4])}
    for protocol in (2, 5):
        batch = {b"data": images, b"fine_labels": [1, 2]}
        yield f"protocol-{protocol}", {INPUT: pickle.dumps(batch, protocol)}


def _fixtures(*patterns: str) -> Seeds:
    """Files that the tests keep, of formats whose libraries are heavy."""
    for pattern in patterns:
        for path in sorted((ROOT / "tests" / "formats").glob(pattern)):
            yield path.name, {INPUT: path.read_bytes()}


def _torch_export() -> Seeds:
    import torch

    program = torch.export.export(_torch_network().eval()[:4], (torch.zeros(1, 1, 4, 4),))
    torch.export.save(program, "net.pt2")
    with zipfile.ZipFile("net.pt2") as archive:
        members = [(i.filename, archive.read(i), i.compress_type) for i in archive.infolist()]
    # Not read, and most of the file.
    kept = [each for each in members if "sample_inputs" not in each[0]]
    yield "net", {INPUT: zipped(kept)}
    weights = io.BytesIO()
    torch.save(_torch_network().state_dict(), weights)
    # Torch 2.6 writes the older form itself.
    graphs = ("models/model.json", "serialized_exported_program.json")
    (graph,) = (content for name, content, _ in members if name.endswith(graphs))
    older = [
        ("serialized_exported_program.json", graph, zipfile.ZIP_STORED),
        ("serialized_state_dict.pt", weights.getvalue(), zipfile.ZIP_STORED),
    ]
    yield "older", {INPUT: zipped(older)}


def _pickled() -> Seeds:
    import joblib

    yield from _fixtures("*.pkl", "*.ckpt", "*.pdparams")
    for protocol in range(6):
        yield f"protocol-{protocol}", {INPUT: pickle.dumps({"model": _weights()}, protocol)}
    joblib.dump({"net": _weights(), "objects": np.array([{}], object)}, "net.joblib")
    yield "joblib", {INPUT: Path("net.joblib").read_bytes()}
    np.save("pairs.npy", np.array({"conv": [_draw(3, 3, 2, 4), _draw(4)]}, object))
    yield "objects", {INPUT: Path("pairs.npy").read_bytes()}
    yield "torch", {INPUT: pickle.dumps(_torch_network().state_dict())}


def _flax() -> Seeds:
    yield from _fixtures("*.msgpack")


def _caffe() -> Seeds:
    yield from _fixtures("*.caffemodel")


def _datasets() -> Seeds:
    import h5py

    for name, version in (("plain", "earliest"), ("latest", "latest")):
        with h5py.File("net.h5", "w", libver=version) as file:
            for key, values in _weights().items():
                file[key.replace(".", "/")] = values
            file["text"] = "a"
        yield name, {INPUT: Path("net.h5").read_bytes()}


def _foreign() -> Seeds:
    """Beginnings of files that are refused by name."""
    heads = {
        "tflite": b"\x1c\0\0\0TFL3", "gguf": b"GGUF\x03\0\0\0", "zlib": b"\x78\x9c",
        "gzip": gzip.compress(b"\x80\x04N.", mtime=0),
        "xml": b'<?xml version="1.0"?>\n<net name=""',
        "json": b'{"modelTopology": {}, "weightsManifest": []}', "caffe": b'name: "a"\nlayer {\n',
        "saved-model": b"\x08\x01\x12\x02\x0a\x00", "core-ml": b"\x08\x04\x12\x00\xb2\x1f\x00",
        "zip": zipped([("a/model.mlmodel", b"x" * 50, zipfile.ZIP_STORED)]),
    }  # fmt: skip
    for name, head in heads.items():
        yield f"refused-{name}", {INPUT: head + bytes(64) if name != "zip" else head}


MAKERS: dict[str, Callable[[], Seeds]] = {
    "safetensors": _safetensors,
    "torch-zip": _torch_zip,
    "torch-stream": _torch_stream,
    "npz": _npz,
    "onnx": _onnx,
    "pickled": _pickled,
    "flax": _flax,
    "caffe": _caffe,
    "datasets": _datasets,
    "foreign": _foreign,
    "torch-export": _torch_export,
    "keras": _keras,
    "hdf5": _hdf5,
    "tensorflow-graph": _tensorflow(("net.pb", ""), ("grouped.pb", "")),
    "tensorflow-checkpoint": _tensorflow(
        ("checkpoint/net.ckpt.index", "net.ckpt.data-*"),
        ("checkpoint/packed.ckpt.index", "packed.ckpt.data-*"),
        ("old/net-7.index", "net-7.data-*"),
    ),
    "saved-model": _tensorflow(("by-hand/saved_model.pb", "variables/*")),
    "tflite": _tensorflow(*((f"{n}.tflite", "") for n in ("net", "int8", "sparse", "grouped"))),
    "tfjs": _tfjs,
    "sharded": _sharded,
    "mappings": mappings.seeds,
    "pickle": _pickle,
    "config": _config,
    "study": _study,
    "measurement": _result("measurement"),
    "resets": _result("resets"),
    "relation": _result("relation"),
    "progress": _progress,
    "run": _run,
    "state": trees.state_seeds,
    "environment": trees.environment_seeds,
    "network": trees.network_seeds,
    "study-record": trees.study_record_seeds,
    "links": trees.link_seeds,
    "idx": _idx,
    "mat": _mat,
    "cifar": _cifar,
}


def main(folder: str, *targets: str) -> None:
    """Write the seeds of some targets, each into a folder of its name."""
    out = Path(folder).resolve()
    for target in targets:
        with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
            for name, files in MAKERS[target]():
                for path, data in files.items():
                    file = out / target / name / path
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(data)


if __name__ == "__main__":
    main(*sys.argv[1:])
