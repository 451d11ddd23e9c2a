"""The wheel alone, in an environment of its own: no torch, every format and the figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
PARITY = ROOT / "tests" / "parity"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Programs of an environment that has the wheel and what it requires, nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, ROOT], check=True)
    (wheel,) = folder.glob("planescope-*.whl")
    venv.create(folder / "env", with_pip=False)
    programs = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
    target = [*pip, "--python", programs / "python", "install", "--no-compile", wheel]
    subprocess.run(target, check=True)
    return programs


def run(programs: Path, *args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [programs / "planescope", *args], capture_output=True, text=True, cwd=programs.parent
    )


def test_the_environment_has_no_torch_and_is_below_550_mb(installed):
    code = "import importlib.util as u; print([u.find_spec(n) for n in ('torch', 'pyarrow')])"
    found = subprocess.run([installed / "python", "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "[None, None]"
    files = (path for path in installed.parent.rglob("*") if path.is_file())
    # Compiled bytecode comes with use, and counts twice what the sources hold.
    size = sum(path.stat().st_size for path in files if path.suffix != ".pyc")
    assert size < 550e6


def write_every_format(folder: Path) -> list[Path]:
    """The same small network by the real libraries, which only this environment has."""
    import torch
    from onnx import TensorProto, helper, numpy_helper, save
    from safetensors.numpy import save_file

    weight = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(np.float32)
    state = {"conv.weight": weight, "conv.bias": np.zeros(8, np.float32)}
    save_file(state, folder / "n.safetensors")
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    torch.save(tensors, folder / "n.pt")
    torch.save(tensors, folder / "n.tar", _use_new_zipfile_serialization=False)
    np.savez_compressed(folder / "n.npz", **state)
    node = helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["y"])
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "xy"]
    arrays = [numpy_helper.from_array(array, name) for name, array in state.items()]
    graph = helper.make_graph([node], "n", ports[:1], ports[1:], arrays)
    save(helper.make_model(graph), folder / "n.onnx")
    return sorted(folder.iterdir())


def test_every_format_is_measured_alike_without_torch(installed, tmp_path):
    paths = write_every_format(tmp_path)
    keras = sorted((ROOT / "tests" / "keras").glob("*.h5"))
    assert len(paths) == 5
    assert keras
    done = run(installed, "measure", *paths, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    cosines = {
        entry["source"]["path"]: entry["layers"][0]["mean_cosine"]
        for entry in json.loads(done.stdout)
    }
    assert len(cosines) == 5
    assert len(set(cosines.values())) == 1
    done = run(installed, "measure", *keras, "--json")
    assert (done.returncode, done.stderr) == (0, "")


def test_figures_are_drawn_without_torch(installed, tmp_path):
    done = run(installed, "measure", PARITY / "lenet-epoch-12.tar", "--figure", tmp_path / "f.pdf")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "f.pdf").read_bytes().startswith(b"%PDF")


def test_a_page_says_what_it_needs(installed, tmp_path):
    page = tmp_path / "page.html"
    done = run(installed, "report", PARITY / "lenet-epoch-12.tar", "--out", page)
    assert (done.returncode, page.exists()) == (2, False)
    assert "pip install '.[report]'" in done.stderr


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["torchvision:resnet18"], "pip install '.[train]'"),
        (["timm:resnet18"], "timm"),
        ([PARITY / "lenet-epoch-12.tar", "--out", "t.parquet"], "'.[parquet]'"),
    ],
    ids=["torchvision", "timm", "parquet"],
)
def test_what_is_missing_is_named_with_how_to_install_it(installed, args, sentence):
    done = run(installed, "measure", *args)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert sentence in done.stderr
