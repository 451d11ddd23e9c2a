"""What is refused is called by its name, and a way is told that leads to a file that is read."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import struct
import tarfile
import zipfile
import zlib

import joblib
import numpy as np
import pytest
import scipy.io

import planescope as ps
from planescope.checkpoints import read_contents
from planescope.checkpoints.locate import locate
from planescope.files.errors import CheckpointError


def zipped(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(name):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
    return buffer.getvalue()


def mat():
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"a": np.zeros(2)})
    return buffer.getvalue()


PICKLE = pickle.dumps({"w": np.zeros((2, 2))})

# What begins so, what it is called, and what is advised.
FILES = {
    "flatbuffer-of-torch": (b"0\0\0\0PTMF" + bytes(64), "PyTorch Mobile.*flatbuffer form; .*ptl"),
    "onnxruntime": (b"0\0\0\0ORTM" + bytes(64), "an ORT model.*measure the .onnx"),
    "executorch": (b"0\0\0\0ET12eh00" + bytes(64), "an ExecuTorch program.*torch.export.save"),
    "gguf": (b"GGUF\3\0\0\0", "a GGUF file.*gguf.GGUFReader"),
    "dlib": (
        b"\1\1\1\x0dloss_metric_2\3\x0a" + bytes(64),
        "a network of dlib's; .*PyTorch or ONNX",
    ),
    "dlib-detector": (b"\1\x0aloss_mmod_\1\1" + bytes(64), "a network of dlib's"),
    "tensorrt": (b"ftrt" + bytes(64), "TensorRT engine.*ONNX"),
    "ncnn": (b"7767517\n75 83\n", "an NCNN network"),
    "mxnet": (struct.pack("<3Q", 0x112, 0, 1), "MXNet parameter file; load it by mxnet.nd.load"),
    "matlab": (mat(), r"MATLAB file, as MatConvNet.*scipy\.io\.loadmat"),
    "paddle": (struct.pack("<IQIi", 0, 0, 0, 4) + b"\x08\x05\x10\x06", "Paddle.*paddle.jit.load"),
    "darknet": (struct.pack("<3iq", 0, 2, 5, 0) + bytes(64), "Darknet.*readNetFromDarknet"),
    "darknet-config": (b"# yolo\n[net]\nwidth=8\n", "configuration of a Darknet network"),
    "torch-7": (struct.pack("<3i", 4, 1, 3) + b"V 1", "Torch 7"),
    "gzip": (gzip.compress(PICKLE), "compressed by gzip; .*gunzip -c FILE"),
    "bzip2": (bz2.compress(PICKLE), "compressed by bzip2; .*bunzip2 -c"),
    "xz": (lzma.compress(PICKLE), "compressed by xz; .*unxz -c"),
    "zlib": (zlib.compress(PICKLE), "joblib compressed.*compress=0"),
    "zlib-of-something": (zlib.compress(b"text"), "compressed by zlib"),
    "tar": (tarred("net.pt"), "a tar archive; unpack it"),
    "torch-0.1": (tarred("storages"), "PyTorch before 0.1.10; load it by torch.load"),
    "zip": (zipped(**{"a.pt": b"1", "b": b"2"}), "a zip archive of a.pt, b; unpack it"),
    "torchserve": (zipped(**{"MAR-INF/MANIFEST.json": b"{}"}), "archive of TorchServe's"),
    "tar-in-gzip": (gzip.compress(tarred("a.ckpt")), "a tar archive.*; unpack it by tar xzf"),
    "zip-of-pictures": (zipped(**{"a.png": b"1"}), "none of them a model by its name"),
    "dlc": (zipped(**{"dlc.metadata": b"1", "model.params": b""}), "a model of Qualcomm's"),
    "aotinductor": (
        zipped(**{"m/data/aotinductor/model/a.so": b"\x7fELF", "m/version": b"0"}),
        "a package of AOTInductor's.*torch.export.save",
    ),
    "half-of-keras": (
        zipped(**{"config.json": b"{}", "metadata.json": b"{}"}),
        "a Keras model without its weights",
    ),
    "ultralytics": (
        struct.pack("<i", 15) + b'{"stride": 32}\0ftrt' + bytes(64),
        "a TensorRT engine",
    ),
    "mlir": (b"ML\xefR\x0dStableHLO_v1\0" + bytes(64), "a program of MLIR's"),
    "list-of-tensorflow": (
        b'model_checkpoint_path: "ckpt-1"\n',
        "a list of checkpoints of TensorFlow's; give the .index",
    ),
    "web-page": (b"\n<!DOCTYPE html>\n<html>", "a web page: the download gave a page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer.*git lfs pull"),
    "openvino": (b'<?xml version="1.0"?>\n<net name="a" version="11">', "an OpenVINO model"),
    "prototxt": (b'# a net\nname: "AlexNet"\nlayer {\n', "text of a Caffe network.*caffemodel"),
    "hub-config": (json.dumps({"architectures": ["A"]}).encode(), "configuration of a model"),
    "mxnet-graph": (json.dumps({"nodes": [{"op": "null"}]}).encode(), "graph of an MXNet model"),
    "json": (b'{"a": 1}', "a file of JSON text"),
    "text": (b"hello\n" * 99, "is a text file"),
    "core-ml": (b"\x08\x04\x12\x00\xb2\x1f\x00", "a Core ML model"),
    "paddle-program": (b"\x0a\x04\x08\x00\x10\x01", "a Paddle program"),
    "zeros": (bytes(5000), "begins with nothing but zeros"),
    "nothing": (b"", "the file is empty"),
    "unknown": (b"\x99\x01\x02\x00\x03" * 9, "no checkpoint of a known format"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_format_is_called_by_its_name(tmp_path, name):
    content, match = FILES[name]
    (tmp_path / "net.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=match):
        read_contents(tmp_path / "net.bin")


@pytest.mark.parametrize(
    ("name", "description", "match"),
    [
        ("net.xml", FILES["openvino"][0], "is a weight file of an OpenVINO model, which net.xml"),
        ("net.param", FILES["ncnn"][0], "is a weight file of an NCNN network, which net.param"),
        ("net.xml", b"<?xml version='1.0'?><page/>", "no checkpoint of a known format"),
        ("other.xml", FILES["openvino"][0], "no checkpoint of a known format"),
    ],
)
def test_bare_weights_are_told_by_what_describes_them(tmp_path, name, description, match):
    (tmp_path / name).write_bytes(description)
    (tmp_path / "net.bin").write_bytes(FILES["unknown"][0])
    with pytest.raises(CheckpointError, match=match):
        read_contents(tmp_path / "net.bin")


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["_METADATA", "manifest.ocdbt", "d"], "an Orbax checkpoint; restore it by orbax"),
        (["Manifest.json", "Data"], "a Core ML package"),
        ([".metadata", "__0_0.distcp"], "torch.distributed wrote in parts; .*dcp_to_torch_save"),
        (["net.pdmodel", "net.pdiparams"], "a Paddle model for inference; .*pdparams"),
        (["config.yaml", "state.json", "metrics.csv"], "a run; weights by epoch are in snapshots"),
        (["study.yaml"], "a study; weights by epoch are in runs/NAME/snapshots"),
        (["config.yaml", "notes.txt"], "holds no model"),
        (["net.xml", "notes.txt"], "holds no model"),
        (["config.json", "model.gguf"], "holds a GGUF file of llama.cpp's; read its tensors"),
        (["coremldata.bin", "model.mil"], "a Core ML model, compiled"),
    ],
)
def test_a_folder_of_another_format_is_called_by_its_name(tmp_path, names, match):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=match):
        locate(tmp_path)


def test_a_part_of_a_distributed_checkpoint_is_called_so(tmp_path):
    names = (".metadata", "__0_0.distcp")
    for name in names:
        (tmp_path / name).touch()
    for name in names:
        with pytest.raises(CheckpointError, match=r"is a part of .*dcp_to_torch_save"):
            locate(tmp_path / name)


def test_the_ways_that_need_no_other_framework_lead_to_a_table(tmp_path):
    weight = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32)
    joblib.dump({"conv.weight": weight}, tmp_path / "packed", compress=3)
    joblib.dump(joblib.load(tmp_path / "packed"), tmp_path / "plain", compress=0)
    (tmp_path / "unpacked").write_bytes(
        gzip.decompress(gzip.compress(pickle.dumps({"conv.weight": weight})))
    )
    scipy.io.savemat(tmp_path / "net.mat", {"net": {"conv": {"weight": weight}}})
    net = scipy.io.loadmat(tmp_path / "net.mat", simplify_cells=True)["net"]
    np.savez(tmp_path / "net.npz", **{"conv.weight": net["conv"]["weight"]})
    wanted = ps.measure({"conv.weight": weight}).layers[0].negative_mass
    for name in ("plain", "unpacked", "net.npz"):
        assert ps.measure(tmp_path / name).layers[0].negative_mass == wanted


def test_a_folder_of_folders_is_not_called_empty(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.pt").touch()
    with pytest.raises(CheckpointError, match=r"its folders hold checkpoints/last\.pt; give one"):
        locate(tmp_path)


def test_weights_of_onnx_alone_are_called_so(tmp_path):
    (tmp_path / "net.onnx.data").write_bytes(FILES["unknown"][0])
    with pytest.raises(CheckpointError, match=r"weights of an ONNX model.*\.onnx file"):
        read_contents(tmp_path / "net.onnx.data")


def test_the_state_of_an_optimiser_of_paddles_is_no_network(tmp_path):
    state = {f"fc.w_0_{slot}_0": np.ones((4, 3), np.float32) for slot in ("moment1", "moment2")}
    (tmp_path / "net.pdopt").write_bytes(pickle.dumps(state))
    with pytest.raises(CheckpointError, match="what an optimiser or a table keeps"):
        read_contents(tmp_path / "net.pdopt")


def test_the_best_of_an_early_stop_is_not_the_perceptron(tmp_path):
    held = {"coefs_": [np.ones((3, 5))], "intercepts_": [np.ones(5)]}
    held |= {"_best_coefs": [np.zeros((3, 5))], "_best_intercepts": [np.zeros(5)]}
    (tmp_path / "net.pkl").write_bytes(pickle.dumps(held))
    (layer,) = ps.measure(tmp_path / "net.pkl", kinds="all").layers
    assert (layer.name, layer.filters, layer.fan_in) == ("coefs_.0", 5, 3)
