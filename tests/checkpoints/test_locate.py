"""From what a user names to the one file to read."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from planescope.checkpoints import read_contents
from planescope.checkpoints.locate import locate, locate_each
from planescope.files.errors import CheckpointError


def touch(folder, *names):
    for name in names:
        (folder / name).touch()
    return folder


def refuses(target, sentence):
    return pytest.raises(CheckpointError, match=f"^{re.escape(f'{target}: {sentence}')}$")


@pytest.mark.parametrize("kind", [str, Path, os.fsencode])
def test_a_file_is_itself_whatever_its_name(tmp_path, kind):
    file = touch(tmp_path, "weights") / "weights"
    assert locate(kind(file)) == file


@pytest.mark.parametrize(
    ("names", "model"),
    [
        pytest.param(["net.pt", "README.md", "config.json"], "net.pt", id="one-model"),
        *(
            pytest.param([f"net{suffix}", "log.txt"], f"net{suffix}", id=suffix)
            for suffix in (".safetensors", ".pt", ".pth", ".bin", ".tar", ".ckpt", ".onnx")
        ),
        *(
            pytest.param([f"net{suffix}"], f"net{suffix}", id=suffix)
            for suffix in (".keras", ".h5", ".weights.h5", ".npz", ".PT")
        ),
        pytest.param(
            ["pytorch_model.bin", "model.safetensors", "tf_model.h5", "flax_model.msgpack"],
            "model.safetensors",
            id="twins-of-one-model",
        ),
        pytest.param(
            ["net.pt", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth"],
            "net.pt",
            id="what-a-trainer-leaves",
        ),
        pytest.param(["net.pt", "._net.pt", ".cache.bin"], "net.pt", id="hidden-files"),
    ],
)
def test_a_folder_with_one_model_is_that_model(tmp_path, names, model):
    assert locate(touch(tmp_path, *names)) == tmp_path / model


def test_folders_inside_a_folder_are_no_models(tmp_path):
    (tmp_path / "old.pt").mkdir()
    assert locate(touch(tmp_path, "net.pt")) == tmp_path / "net.pt"


def test_an_index_stands_for_its_shards_whatever_their_names(tmp_path):
    touch(tmp_path, "first.safetensors", "second.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    weight_map = {"a": "first.safetensors", "b": "second.safetensors"}
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert locate(tmp_path) == index


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        pytest.param([], "holds no model, it is empty; give a model's file", id="empty"),
        pytest.param(
            ["a.txt", "b.txt", "c.txt", "d.txt", "e.txt", "f.txt", "optimizer.pt"],
            "holds no model, only a.txt, b.txt, c.txt, d.txt, e.txt and 2 more; "
            "give a model's file",
            id="none",
        ),
        pytest.param(
            ["a.pt", "b.onnx", "notes.txt"],
            "holds 2 models, a.pt, b.onnx; give one of them, as in {folder}/a.pt",
            id="several",
        ),
        pytest.param(
            [f"epoch-{n}.pt" for n in range(8)],
            "holds 8 models, epoch-0.pt, epoch-1.pt, epoch-2.pt, epoch-3.pt, epoch-4.pt "
            "and 3 more; give one of them, as in {folder}/epoch-0.pt",
            id="many",
        ),
    ],
)
def test_a_folder_without_one_model_says_what_it_holds(tmp_path, names, sentence):
    touch(tmp_path, *names)
    with refuses(tmp_path, sentence.format(folder=tmp_path)):
        locate(tmp_path)


def test_each_model_of_a_folder_is_named_in_turn(tmp_path):
    touch(tmp_path, "b.pt", "a.onnx", "notes.txt", "optimizer.pt")
    assert locate_each(str(tmp_path)) == [str(tmp_path / "a.onnx"), str(tmp_path / "b.pt")]
    assert locate_each(str(tmp_path / "b.pt")) == [str(tmp_path / "b.pt")]
    assert locate_each("hf:owner/name") == ["hf:owner/name"]
    (tmp_path / "empty").mkdir()
    with refuses(tmp_path / "empty", "holds no model, it is empty; give a model's file"):
        locate_each(str(tmp_path / "empty"))


def test_what_is_missing_is_answered_with_the_nearest_name(tmp_path):
    touch(tmp_path, "vgg19.pt", "lenet.pt")
    missing = tmp_path / "vg19.pt"
    with refuses(missing, f"no such file or folder; did you mean {tmp_path / 'vgg19.pt'}?"):
        locate(missing)


def test_a_missing_folder_on_the_way_is_the_one_that_is_corrected(tmp_path):
    (tmp_path / "lenet").mkdir()
    missing = tmp_path / "lennet" / "snapshots" / "last.pt"
    with refuses(missing, f"no such file or folder; did you mean {tmp_path / 'lenet'}?"):
        locate(missing)


def test_nothing_near_is_no_guess(tmp_path):
    missing = touch(tmp_path, "vgg19.pt") / "xyz"
    with refuses(missing, "no such file or folder; check the path"):
        locate(missing)


def test_standard_input_is_not_read():
    with refuses("-", "a model is not read from standard input; give its file"):
        locate("-")


def test_links_that_lead_nowhere(tmp_path):
    (tmp_path / "gone").symlink_to("nowhere")
    with refuses(tmp_path / "gone", "is a link to a file that is gone; give the file itself"):
        locate(tmp_path / "gone")
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(CheckpointError, match=r"round: cannot be read: .*symbolic links; give"):
        locate(tmp_path / "round")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("net.pt/weights", id="inside-a-file"),
        pytest.param("a\0b", id="nul"),
        pytest.param("x" * 5000, id="too-long"),
    ],
)
def test_names_that_cannot_be(tmp_path, name):
    touch(tmp_path, "net.pt")
    with pytest.raises(CheckpointError, match=r"cannot be read: .*; give another file"):
        locate(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_pipes_and_devices_are_refused_without_blocking(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        with refuses(path, "is not a regular file; copy it into one first"):
            read_contents(locate(path))
