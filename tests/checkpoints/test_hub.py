"""The real client of the Hugging Face hub against a hub on this machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest
from hub_server import commit_of, serve
from safetensors.numpy import save_file

# Answers one target after the other, as the command line would: a path or a sentence.
CLIENT = """
import json, sys
from planescope.checkpoints import read_contents
from planescope.checkpoints.locate import locate
from planescope.files.errors import CheckpointError

def answer(target):
    try:
        path = locate(target)
        form, contents = read_contents(path)
    except CheckpointError as exc:
        return {"error": str(exc)}
    values = {name: tensor.read().tolist() for name, tensor in contents.tensors.items()}
    return {"path": str(path), "format": form, "values": values}

print(json.dumps([answer(target) for target in sys.argv[1:]]))
"""


def ask(targets, url, home, **environment):
    """Locate and read targets in one new process; its answers, and what it said beside them."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, *targets],
        env={**inherited, "HF_ENDPOINT": url, "HF_HOME": str(home), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(targets, json.loads(done.stdout), strict=True)), done.stderr


def put(folder, value):
    """Write a model of one tensor, `w`, under the standard name."""
    folder.mkdir(parents=True)
    save_file({"w": np.full((2,), value, np.float32)}, folder / "model.safetensors")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    put(root / "lab/net/main", 1)
    put(root / "lab/net/v2", 2)
    put(root / "lab/net/refs%2Fpr%2F3", 3)
    for name in ("README.md", "training_args.bin", "pytorch_model.bin", "tf_model.h5"):
        (root / "lab/net/main" / name).write_bytes(b"not to be fetched")
    put(root / "lab/net/main/onnx", 4)
    put(root / "lab/shards/main", 0)
    first = root / "lab/shards/main/model.safetensors"
    first.rename(first.with_name("model-00001-of-00002.safetensors"))
    save_file({"v": np.ones(1, np.float32)}, first.with_name("model-00002-of-00002.safetensors"))
    save_file({"x": np.ones(1, np.float32)}, first.with_name("unrelated.safetensors"))
    index = {"w": "model-00001-of-00002.safetensors", "v": "model-00002-of-00002.safetensors"}
    first.with_name("model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    put(root / "lab/torn/main", 0)
    (root / "lab/torn/main/model.safetensors").rename(root / "lab/torn/main/b.safetensors")
    (root / "lab/torn/main/model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"w": "../../../secret"}})
    )
    put(root / "lab/short/main/half", 0)
    (root / "lab/short/main/half/model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"w": "model.safetensors", "v": "gone.safetensors"}})
    )
    put(root / "lab/gated/main", 0)
    (root / "lab/gated/GATED").touch()
    put(root / "lab/several/main", 0)
    (root / "lab/several/main/model.safetensors").rename(root / "lab/several/main/a.safetensors")
    (root / "lab/several/main/b.onnx").touch()
    (root / "lab/words/main").mkdir(parents=True)
    (root / "lab/words/main/README.md").touch()
    return root


FOUND = {
    "hf:lab/net": ("safetensors", {"w": [1, 1]}),
    "hf:lab/net@v2": ("safetensors", {"w": [2, 2]}),
    "hf:lab/net@refs/pr/3": ("safetensors", {"w": [3, 3]}),
    "hf:lab/net@refs%2Fpr%2F3/model.safetensors": ("safetensors", {"w": [3, 3]}),
    "hf:lab/net@main/onnx/model.safetensors": ("safetensors", {"w": [4, 4]}),
    "hf:lab/shards": ("sharded", {"w": [0, 0], "v": [1]}),
}

REFUSED = {
    "hf:lab": "names no model; write hf:OWNER/NAME[@REVISION][/FILE]",
    "hf:lab/net@": "names no model; write hf:OWNER/NAME[@REVISION][/FILE]",
    "hf:lab/a--b": "cannot be on the hub: Cannot have -- or .. in repo_id: 'lab/a--b'.",
    "hf:lab/nothing": "the hub has no such model, or it is private; check the name, or log in "
    "(`hf auth login`)",
    "hf:lab/gated": "its author gives access on request; ask on the model's page, then log in "
    "(`hf auth login`)",
    "hf:lab/net@v9": "the model has no such branch, tag or commit; leave out @ for the main one",
    "hf:lab/net/net.pt": "has no such file; it has model.safetensors, onnx/model.safetensors",
    "hf:lab/several": "holds 2 models, a.safetensors, b.onnx; give one of them, as in "
    "hf:lab/several/a.safetensors",
    "hf:lab/words": "holds no model, only README.md; give a model's file",
}

SHORT = "hf:lab/short/half/model.safetensors.index.json"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def online(models, home):
    """What the client answered while the hub was there, and what it printed."""
    with serve(models) as url:
        return ask([*FOUND, *REFUSED, "hf:lab/torn", SHORT], url, home)


@pytest.fixture(scope="module")
def dead_url():
    """Nobody listens here, so that a connection is refused at once."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize("target", FOUND)
def test_a_model_is_fetched_and_read(online, target):
    answer = online[0][target]
    assert (answer.get("format"), answer.get("values")) == FOUND[target], answer


@pytest.mark.parametrize("target", REFUSED)
def test_what_the_hub_does_not_give_is_one_sentence(online, target):
    assert online[0][target] == {"error": f"{target}: {REFUSED[target]}"}


def test_an_index_that_points_outside_its_model_is_refused(online):
    error = online[0]["hf:lab/torn"]["error"]
    assert "the index names the shard '../../../secret', which is no file of its own" in error


def test_a_shard_that_the_hub_lacks_is_named(online):
    assert "its shard gone.safetensors is missing" in online[0][SHORT]["error"]


def test_only_what_is_needed_is_fetched(online, home):
    fetched = {path.name for path in home.rglob("snapshots/*/*") if path.is_file()}
    assert fetched == {
        "model.safetensors",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }


def test_no_progress_bar_is_drawn_into_a_pipe(online):
    assert online[1] == ""


def test_the_cache_serves_while_the_hub_is_out_of_reach(online, home, dead_url):
    answers, _ = ask(FOUND, dead_url, home)
    assert answers == {target: online[0][target] for target in FOUND}


def test_the_cache_serves_offline(online, home, dead_url):
    answers, _ = ask(FOUND, dead_url, home, HF_HUB_OFFLINE="1")
    assert answers == {target: online[0][target] for target in FOUND}


def test_a_file_that_was_never_fetched_is_not_said_to_be_missing(online, home, dead_url):
    target = "hf:lab/net/pytorch_model.bin"
    answers, _ = ask([target], dead_url, home, HF_HUB_OFFLINE="1")
    assert "the hub is out of reach (HF_HUB_OFFLINE is set)" in answers[target]["error"]


def test_a_commit_is_a_revision_too(models, tmp_path):
    target = f"hf:lab/net@{commit_of(models / 'lab/net/v2')}"
    with serve(models) as url:
        answers, _ = ask([target], url, tmp_path)
    assert answers[target]["values"] == {"w": [2, 2]}


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        pytest.param({}, "refused", id="no-server"),
        pytest.param({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set", id="offline"),
    ],
)
def test_no_hub_and_nothing_in_the_cache(tmp_path, dead_url, environment, reason):
    answers, said = ask(["hf:lab/net", "hf:lab/net/a.pt"], dead_url, tmp_path, **environment)
    for target, answer in answers.items():
        head, _, tail = answer["error"].partition(reason)
        assert head.startswith(f"{target}: the hub is out of reach (")
        assert tail.endswith(") and the cache has no copy; connect, or give a file")
    assert said == ""


def test_a_cache_that_cannot_be_written(models, tmp_path):
    file = tmp_path / "file"
    file.touch()
    with serve(models) as url:
        answers, _ = ask(["hf:lab/net"], url, tmp_path, HF_HUB_CACHE=str(file))
    assert answers["hf:lab/net"]["error"].startswith("hf:lab/net: the download failed ([Errno ")


MEASURE = """
import sys
import planescope as ps
for target in sys.argv[1:]:
    print(ps.measure(target).to_json(indent=None))
"""


def test_of_a_large_file_what_is_measured_travels(tmp_path):
    """Most of it is a linear layer; in the cache, and so offline, is what was fetched whole."""
    folder = tmp_path / "hub/lab/large/main"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    weights = {
        "conv.weight": rng.normal(size=(8, 3, 3, 3)).astype(np.float32),
        "linear.weight": np.zeros((1024, 12_000), np.float32),
    }
    save_file(weights, folder / "model.safetensors")
    size = (folder / "model.safetensors").stat().st_size
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    home = tmp_path / "home"

    def measure(target, url):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, target],
            env={**inherited, "HF_ENDPOINT": url, "HF_HOME": str(home)},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return json.loads(done.stdout)

    sent = []
    with serve(tmp_path / "hub", sent) as url:
        found = measure("hf:lab/large", url)
        assert sum(sent) < size // 20
        assert found["layers"] == measure(str(folder), url)["layers"]
        assert (found["source"]["path"], found["source"]["bytes"]) == ("hf:lab/large", size)
        assert not list(home.rglob("blobs/*"))
        # A file in the cache is taken before the hub is asked for bytes of it.
        fetch = "from huggingface_hub import hf_hub_download as f; f('lab/large', sys.argv[1])"
        subprocess.run(
            [sys.executable, "-c", f"import sys; {fetch}", "model.safetensors"],
            env={**inherited, "HF_ENDPOINT": url, "HF_HOME": str(home)},
            check=True,
            capture_output=True,
            timeout=60,
        )
        sent.clear()
        assert measure("hf:lab/large", url)["layers"] == found["layers"]
        assert sum(sent) < 10_000
