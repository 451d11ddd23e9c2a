"""What ``import planescope`` gives, and what it costs."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest

import planescope as ps

CHECKPOINT = "tests/parity/lenet-epoch-12.tar"
HEAVY = (
    "torch",
    "torchvision",
    "pandas",
    "matplotlib",
    "scipy",
    "pyarrow",
    "onnx",
    "keras",
    "h5py",
)


def test_every_public_name_is_there():
    assert set(ps.__all__) == {*ps._HOMES, *ps._MODULES, "__version__"}
    for name in ps.__all__:
        assert getattr(ps, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = ps.nonsense


def imported_by(code: str, *names: str) -> list[str]:
    """Which of some modules a fresh interpreter holds after running `code`."""
    probe = f"{code}\nimport sys\nprint(*[n for n in {names!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()


def test_importing_planescope_imports_nothing_heavy():
    assert imported_by("import planescope", "numpy", "rich", "click", *HEAVY) == []


def test_asking_for_the_version_imports_neither_numpy_nor_rich():
    code = "import sys; sys.argv = ['planescope', '--version']\n"
    code += "from planescope.cli import main\ntry:\n    main()\nexcept SystemExit: pass"
    assert imported_by(code, "numpy", "rich", *HEAVY) == []


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["table", "json"])
def test_from_file_to_table_nothing_heavy_is_imported(options):
    code = f"import sys; sys.argv = ['planescope', 'measure', {CHECKPOINT!r}, *{options!r}]\n"
    code += "from planescope.cli import main\ntry:\n    main()\nexcept SystemExit: pass"
    assert imported_by(code, "rich" if options else "jax", *HEAVY) == []


# A model of each format, and what opening it may import; in one process, the last ones last.
LIBRARIES = {
    "parity/lenet-epoch-12.tar": "",
    "parity/lenet-epoch-12-stream.tar": "",
    "keras/residual.keras": "",
    "keras/residual.h5": "",
    "formats/flax.msgpack": "",
    "formats/haiku.pkl": "",
    "formats/net.pdparams": "",
    "formats/newest.caffemodel": "",
    "tensorflow_files/layers-plain/model.json": "",
    "tensorflow_files/graph-plain/model.json": "",
    "tensorflow_files/net.pb": "",
    "net.safetensors": "",
    "net.npz": "",
    "net.hdf5": "",
    "net.onnx": "",
    "formats/flax-bfloat16.msgpack": "",
    "tensorflow_files/checkpoint/net.ckpt.index": "google_crc32c",
    "tensorflow_files/saved/saved_model.pb": "",
    "tensorflow_files/net.tflite": "tflite flatbuffers",
}


def test_a_formats_library_is_imported_when_its_file_is_opened(tmp_path):
    make_one_of_each(tmp_path)
    paths = [
        str(tmp_path / name if name.startswith("net.") else f"tests/{name}") for name in LIBRARIES
    ]
    code = f"""
import sys, numpy, planescope as ps
def known():
    return {{name.partition(".")[0] for name in sys.modules}} - sys.stdlib_module_names
before = known()
for path in {paths!r}:
    table = ps.measure(path, kinds="all")
    assert table.layers, path
    print(*(known() - before - {{"planescope"}}))
    before = known()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = zip(LIBRARIES, done.stdout.split("\n"), strict=False)
    assert {name: set(line.split()) for name, line in told} == {
        name: set(line.split()) for name, line in LIBRARIES.items()
    }


def make_one_of_each(folder):
    """Files of the formats that no folder of the tests holds."""
    import h5py
    import numpy as np
    import torch
    from safetensors.numpy import save_file

    net = torch.nn.Conv2d(2, 4, 3)
    arrays = {f"conv.{name}": tensor.numpy() for name, tensor in net.state_dict().items()}
    save_file(arrays, folder / "net.safetensors")
    np.savez(folder / "net.npz", **arrays)
    with h5py.File(folder / "net.hdf5", "w") as file:
        for name, array in arrays.items():
            file[name] = array
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the older exporter, which needs no other package
        torch.onnx.export(net, (torch.zeros(1, 2, 8, 8),), folder / "net.onnx", dynamo=False)
