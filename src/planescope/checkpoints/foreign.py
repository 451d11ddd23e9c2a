"""Files that are not read: what each is, and how to get one that can be measured.

Each way that a sentence names was tried, on a file that the format's own library had written.
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path

from planescope.checkpoints.choose import GGUF, SOURCE, listing, models_among
from planescope.checkpoints.probe import Probe, probe
from planescope.checkpoints.protobuf import BYTES, VARINT, WireFile
from planescope.files.errors import CheckpointError

NAME = "foreign"

KNOWN = (
    "safetensors, PyTorch, ONNX, Keras, TensorFlow, TensorFlow Lite, TensorFlow.js, Flax, Caffe, "
    "HDF5, NumPy and pickled arrays can be measured"
)

# Without -c they refuse a file without a suffix of their own.
_UNPACK = "unpack it by {} FILE > NEW first"
_SAVED = "and save the arrays by numpy.savez"

_GZIP = "compressed by gzip"
_TAR = re.compile(rb".{257}ustar", re.DOTALL)

# By the first bytes: what a file is, and what to do.
_SIGNS = tuple(
    (re.compile(sign, re.DOTALL), what, how)
    for sign, what, how in (
        (rb".{4}TFL3", "a TensorFlow Lite model", SOURCE),
        (
            rb".{4}PTMF",
            "a PyTorch Mobile model in flatbuffer form",
            "measure the .pt or .ptl file that it was made from",
        ),
        (
            rb".{4}ET\d\d",
            "an ExecuTorch program, whose weights are laid out for one runtime",
            "measure the module that it was made from, or its torch.export.save file (.pt2)",
        ),
        (rb".{4}ORTM", "an ORT model of onnxruntime's", "measure the .onnx file it was made from"),
        (
            rb"GGUF",
            "a GGUF file of llama.cpp's",
            GGUF,
        ),
        (rb"lmgg|tjgg|fmgg", "a ggml file of llama.cpp's", SOURCE),
        (
            rb"([fp]trt|.{2}\0\0\{\"\w+\": .{0,9999}[fp]trt)",
            "a TensorRT engine, compiled for one GPU",
            "measure the ONNX file behind it",
        ),
        (
            rb"(\x01[\0-\x09])?\x01[\x06-\x40]loss_[a-z]",
            "a network of dlib's",
            "measure a version of the model for PyTorch or ONNX",
        ),
        (
            rb"ML\xefR",
            "a program of MLIR's (StableHLO, IREE) in bytes",
            "save the arrays that it was exported with by numpy.savez",
        ),
        (rb"RKNN", "an RKNN model, compiled for one chip", SOURCE),
        (rb"7767517\s|\xdd\x85\x76\0", "an NCNN network, whose weights lie beside it", SOURCE),
        (
            rb"\x12\x01\0{14}",
            "an MXNet parameter file",
            "load it by mxnet.nd.load " + _SAVED,
        ),
        (
            rb"MATLAB 5\.0 MAT-file",
            "a MATLAB file, as MatConvNet saves networks",
            "load it by scipy.io.loadmat(file, simplify_cells=True) " + _SAVED,
        ),
        (
            rb"\0{16}.{4}\x08[\0-\x1f]\x10",
            "a parameter file of Paddle's for inference",
            "load it by paddle.jit.load(name).state_dict() " + _SAVED + ", or give the .pdparams",
        ),
        (
            rb"\0{4}[\x01\x02]\0{3}[\0-\x09]\0{3}",
            "a weight file of Darknet's, as far as its head tells",
            "load it with its .cfg by readNetFromDarknet of OpenCV 4 " + _SAVED,
        ),
        (
            rb"\x04\0{3}\x01\0{3}\x03\0{3}V \d|\x03\0{3}\x01\0{3}",
            "a file of Torch 7's (Lua)",
            "measure a version of the model for PyTorch or ONNX",
        ),
        (rb"\x1f\x8b\x08", _GZIP, _UNPACK.format("gunzip -c")),
        (rb"BZh[1-9]", "compressed by bzip2", _UNPACK.format("bunzip2 -c")),
        (rb"\xfd7zXZ\0", "compressed by xz", _UNPACK.format("unxz -c")),
        (rb"\x28\xb5\x2f\xfd", "compressed by zstd", _UNPACK.format("unzstd -c")),
        (rb"\x04\x22\x4d\x18", "compressed by lz4", _UNPACK.format("unlz4 -c")),
        (rb"7z\xbc\xaf\x27\x1c|Rar!\x1a\x07", "an archive", "unpack it and give the model's file"),
        (
            rb"(storages|tensors|pickle|sys_info)\0.{240,260}ustar",
            "a file of PyTorch before 0.1.10",
            "load it by torch.load and save it again by torch.save",
        ),
        (_TAR.pattern, "a tar archive", "unpack it by tar xf and give the model's file in it"),
        (rb"\x89PNG|\xff\xd8\xff|GIF8|%PDF", "a picture or document", KNOWN),
        (rb"\x7fELF|MZ.{58}|\xcf\xfa\xed\xfe", "a program or a compiled model", SOURCE),
        (rb"PAR1|ARROW1", "a table, not a checkpoint", KNOWN),
    )
)
# The same of files of text.
_TEXTS = tuple(
    (re.compile(sign, re.DOTALL | re.IGNORECASE), what, how)
    for sign, what, how in (
        (
            rb"version https://git-lfs",
            "a Git LFS pointer, not the file itself",
            "fetch it with git lfs pull",
        ),
        (
            rb"model_checkpoint_path:",
            "a list of checkpoints of TensorFlow's",
            "give the .index file of one of them",
        ),
        (
            rb"\s*<(!doctype html|html)",
            "a web page: the download gave a page in place of the file",
            "download the file itself",
        ),
        (rb"\s*<\?xml.{0,400}?<net ", "an OpenVINO model", SOURCE),
        (
            rb"\s*\{.*\"(modelTopology|weightsManifest)\"",
            "a TensorFlow.js model",
            SOURCE,
        ),
        (
            rb"\s*\{.*\"class_name\"",
            "the architecture of a Keras model, without its weights",
            "give the .keras, .h5 or .weights.h5 file",
        ),
        (
            rb"\s*\{.*\"(architectures|model_type|_name_or_path)\"",
            "the configuration of a model, without its weights",
            "give the .safetensors or .bin file beside it",
        ),
        (
            rb"\s*\{.*\"nodes\".*\"op\"",
            "the graph of an MXNet model, without its weights",
            "load the .params file by mxnet.nd.load " + _SAVED,
        ),
        (
            rb"\s*(#[^\n]*\n\s*)*(name\s*:|layers?\s*\{|input\s*:|input_dim\s*:)",
            "the text of a Caffe network, without its weights",
            "give the .caffemodel file",
        ),
        (
            rb"\s*([#;][^\n]*\n\s*)*\[net(work)?\]",
            "the configuration of a Darknet network, without its weights",
            "load it with its .weights by readNetFromDarknet of OpenCV 4 " + _SAVED,
        ),
        (rb"\s*\{", "a file of JSON text, not a checkpoint", KNOWN),
    )
)


def recognises(probe: Probe) -> bool:
    """Tell a format by first bytes that no other has."""
    return _by_sign(probe) is not None


def read(path: Path) -> object:
    """Raise with what the file is, and what to do.

    Raises
    ------
    CheckpointError
        Always.
    """
    raise CheckpointError(f"{path}: is {_by_sign(probe(path))}")


def outline(look: Probe) -> str:
    """Say of a file that no format recognises what it is, and what to do."""
    if not look.size:
        return "the file is empty; is the download complete?"
    for tell in (_by_sign, _by_neighbour, _by_text, _by_members, _by_fields):
        if (found := tell(look)) is not None:
            return f"is {found}"
    if not look.head.strip(b"\0"):
        return "begins with nothing but zeros; is the download complete?"
    return f"is no checkpoint of a known format; {KNOWN}"


def _by_sign(look: Probe) -> str | None:
    for sign, what, how in _SIGNS:
        if sign.match(look.head):
            if what == _GZIP and _TAR.match(_unpacked(look.head, 31)):
                return (
                    f"a tar archive, {_GZIP}; unpack it by tar xzf and give the model's file in it"
                )
            return f"{what}; {how}"
    if look.head[:1] == b"\x78" and look.head[1:2] in (b"\x01", b"\x5e", b"\x9c", b"\xda"):
        return _packed(look.head)
    return None


# By the suffix of the file that describes weights without a sign of their own, which lies beside
# them under the same name: how it begins, and what it describes.
_DESCRIPTIONS = {
    ".xml": (re.compile(rb"\s*<\?xml.{0,400}?<net ", re.DOTALL), "an OpenVINO model"),
    ".param": (re.compile(rb"7767517\s"), "an NCNN network"),
}


def _by_neighbour(look: Probe) -> str | None:
    """Tell weights by the description of their network that lies beside them."""
    if look.path.name.endswith((".onnx.data", ".onnx_data")):
        return "weights of an ONNX model, without its graph; give the .onnx file beside them"
    for suffix, (sign, what) in _DESCRIPTIONS.items():
        try:
            beside = probe(look.path.with_suffix(suffix))
        except (CheckpointError, ValueError):  # there is none, or no such name can be made
            continue
        if beside.path != look.path and sign.match(beside.head):
            return f"a weight file of {what}, which {beside.path.name} describes; {SOURCE}"
    return None


def _packed(head: bytes) -> str | None:
    """Say what a stream of zlib's holds."""
    begin = _unpacked(head, 15)
    if not begin:
        return None
    if begin[:1] == b"\x80":
        return "a pickle that joblib compressed; save it again by joblib.dump(x, file, compress=0)"
    return "compressed by zlib; unpack it first"


def _unpacked(head: bytes, window: int) -> bytes:
    """Return the first bytes of what a stream holds; none where it is damaged."""
    try:
        return zlib.decompressobj(window).decompress(head, 512)
    except zlib.error:
        return b""


def _by_text(look: Probe) -> str | None:
    if b"\0" in look.head:
        return None
    for sign, what, how in _TEXTS:
        if sign.match(look.head):
            return f"{what}; {how}"
    return f"a text file, not a checkpoint; {KNOWN}"


def _by_members(look: Probe) -> str | None:
    names = sorted(name for name in look.zip_names if not name.endswith("/"))
    if not names:
        return None
    if any(name.startswith("MAR-INF/") for name in names):
        what = "an archive of TorchServe's"
    elif any(".mlpackage/" in name or name.endswith(".mlmodel") for name in names):
        return f"a Core ML package; {SOURCE}"
    elif "dlc.metadata" in names:
        return f"a model of Qualcomm's for one chip (DLC); {SOURCE}"
    elif any("/aotinductor/" in name for name in names):
        return (
            "a package of AOTInductor's, compiled for one machine; measure the module that it was "
            "made from, or its torch.export.save file (.pt2)"
        )
    elif {"config.json", "metadata.json"} <= set(names) and len(names) == 2:
        return "a Keras model without its weights; give the whole .keras file, or a .weights.h5"
    elif not models_among(names):
        return f"a zip archive of {listing(names)}, none of them a model by its name; {KNOWN}"
    else:
        what = "a zip archive"
    return f"{what} of {listing(names)}; unpack it and give the model's file"


# Numbers from which on Core ML tells the kind of a model.
_CORE_ML_KINDS = range(200, 4000)


def _by_fields(look: Probe) -> str | None:
    """Tell the formats that are one message of protocol buffers, by its fields."""
    found: dict[int, int] = {}
    try:
        with WireFile(look.path) as wire:
            for part in wire.fields(wire.span):
                if part.number not in found and part.number == 1 and part.wire == BYTES:
                    inner = wire.find(part.span, 1)
                    found[-1] = -1 if inner is None else inner.wire
                found.setdefault(part.number, part.wire)
    except CheckpointError:
        return None
    if found.get(1) == VARINT and any(number in _CORE_ML_KINDS for number in found):
        return f"a Core ML model; {SOURCE}"
    if found == {1: VARINT, 2: BYTES}:
        return f"a TensorFlow SavedModel, whose weights lie beside it; {SOURCE}"
    if found.get(-1) == VARINT and found.get(1) == BYTES:
        return "a Paddle program, without its weights; give the .pdparams file"
    if found.get(-1) == BYTES and found.keys() <= {-1, 1, 2, 3, 4, 5}:
        return f"a TensorFlow graph; {SOURCE}"
    return None
