"""Checkpoints in shards: the index, its shards, and indexes that cannot be trusted."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from planescope.checkpoints import read_contents
from planescope.checkpoints.probe import Probe
from planescope.checkpoints.sharded import files, read, recognises
from planescope.files.errors import CheckpointError
from planescope.measurement.source import find

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path):
    """Two shards; the first holds a tensor more than the index has of it."""
    save_file({"a": np.arange(3.0), "unlisted": np.zeros(1)}, tmp_path / FIRST)
    save_file({"b": np.ones((2, 2), np.float32)}, tmp_path / SECOND)
    return tmp_path


def index(folder, weight_map, name=INDEX):
    path = folder / name
    path.write_text(json.dumps({"metadata": {"total_size": 40}, "weight_map": weight_map}))
    return path


def test_tensors_come_from_the_shards_that_the_index_names(folder):
    path = index(folder, {"a": FIRST, "b": SECOND})
    form, contents = read_contents(path)
    assert form == "sharded"
    assert not contents.in_order  # no safetensors file is
    assert {name: t.read().tolist() for name, t in contents.tensors.items()} == {
        "a": [0, 1, 2],
        "b": [[1, 1], [1, 1]],
    }


def test_a_tensor_in_two_shards_is_that_of_the_index(folder):
    save_file({"a": np.full(3, 9.0), "b": np.zeros(1)}, folder / SECOND)
    contents = read(index(folder, {"a": FIRST, "b": SECOND}))
    assert contents.tensors["a"].read().tolist() == [0, 1, 2]


def test_torch_shards_keep_the_order_of_definition(tmp_path):
    # Shards follow one another as the layers do; the index is sorted by name.
    torch.save({"z.weight": torch.ones(1), "y.weight": torch.ones(2)}, tmp_path / "m-1.bin")
    torch.save({"x.weight": torch.ones(3)}, tmp_path / "m-2.bin")
    weight_map = {"x.weight": "m-2.bin", "y.weight": "m-1.bin", "z.weight": "m-1.bin"}
    contents = read(index(tmp_path, weight_map, "pytorch_model.bin.index.json"))
    assert contents.in_order
    assert list(contents.tensors) == ["z.weight", "y.weight", "x.weight"]


def test_shards_may_lie_in_a_folder_below(folder):
    (folder / "deep").mkdir()
    (folder / FIRST).rename(folder / "deep" / FIRST)
    assert list(read(index(folder, {"a": f"deep/{FIRST}"})).tensors) == ["a"]


def test_shards_may_be_links_as_in_the_cache_of_the_hub(folder):
    snapshot = folder / "snapshots"
    snapshot.mkdir()
    (snapshot / FIRST).symlink_to(f"../{FIRST}")
    assert list(read(index(snapshot, {"a": FIRST})).tensors) == ["a"]


def test_weights_are_read_when_asked_for(folder):
    contents = read(index(folder, {"a": FIRST, "b": SECOND}))
    (folder / SECOND).unlink()
    assert contents.tensors["a"].read().tolist() == [0, 1, 2]
    with pytest.raises(CheckpointError, match=rf"{SECOND}: cannot be read: No such file"):
        contents.tensors["b"].read()


def test_all_files_are_the_index_and_its_shards(folder):
    path = index(folder, {"a": FIRST, "b": SECOND})
    assert files(path) == [path, folder / FIRST, folder / SECOND]


OUTSIDE = "which is no file of its own folder"

UNTRUSTED = [
    pytest.param({"a": "/etc/passwd"}, OUTSIDE, id="absolute"),
    pytest.param({"a": "../model.safetensors"}, OUTSIDE, id="above"),
    pytest.param({"a": "sub/../../model.safetensors"}, OUTSIDE, id="above-by-a-detour"),
    pytest.param({"a": "C:\\model.safetensors"}, OUTSIDE, id="windows-drive"),
    pytest.param({"a": "..\\model.safetensors"}, OUTSIDE, id="above-on-windows"),
    pytest.param({"a": "\\\\host\\share\\model"}, OUTSIDE, id="windows-network"),
    pytest.param({"a": "./" + FIRST}, OUTSIDE, id="spelled-with-a-dot"),
    pytest.param({"a": "sub//" + FIRST}, OUTSIDE, id="spelled-with-two-slashes"),
    pytest.param({"a": ""}, OUTSIDE, id="no-name"),
    pytest.param({"a": "."}, OUTSIDE, id="the-folder"),
    pytest.param({"a": "a\0b"}, OUTSIDE, id="nul"),
    pytest.param({"a": "\ud800"}, OUTSIDE, id="half-a-character"),
    pytest.param({"a": 7}, OUTSIDE, id="number"),
    pytest.param({"a": None}, OUTSIDE, id="null"),
    pytest.param([FIRST], "the index has no weight_map", id="list"),
    pytest.param({"a": "gone.bin"}, "its shard gone.bin is missing; put it beside", id="missing"),
    pytest.param({"b": FIRST}, f"tensor 'b' is not in {FIRST}, where the index has", id="promise"),
    pytest.param({"a": INDEX}, f"its shard {INDEX} holds no named tensors", id="itself"),
]


@pytest.mark.parametrize(("weight_map", "sentence"), UNTRUSTED)
def test_an_index_that_cannot_be_trusted_is_refused(folder, weight_map, sentence):
    path = index(folder, weight_map)
    with pytest.raises(CheckpointError, match=f"^{re.escape(f'{path}: ')}.*{re.escape(sentence)}"):
        read(path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        pytest.param('{"weight_map": {', "the index is not valid JSON", id="truncated"),
        pytest.param('["weight_map"]', "the index is not a JSON object", id="list"),
        pytest.param('{"metadata": "weight_map"}', "the index has no weight_map", id="no-map"),
        pytest.param('{"weight_map": {"a": "x", "a": "y"}}', "'a' twice", id="tensor-twice"),
        pytest.param('{"weight_map": ' + "[" * 200_000, "is not valid JSON", id="nested-deep"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path, text, sentence):
    path = tmp_path / INDEX
    path.write_text(text)
    with pytest.raises(CheckpointError, match=f"{INDEX}: .*{sentence}"):
        read(path)


def test_a_damaged_shard_is_named(folder):
    path = index(folder, {"a": FIRST})
    (folder / FIRST).write_bytes((folder / FIRST).read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"{FIRST}: the header describes"):
        read(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_shard_that_is_a_pipe_does_not_block(folder):
    os.mkfifo(folder / "pipe")
    with pytest.raises(CheckpointError, match="pipe: is not a regular file"):
        read(index(folder, {"a": "pipe"}))


@pytest.mark.parametrize(
    ("content", "recognised"),
    [
        pytest.param('{"weight_map": {}}', True, id="index"),
        pytest.param('\n {\n  "metadata": {},\n  "weight_map": {}}', True, id="indented"),
        pytest.param(f'{{"metadata": "{"x" * 9000}", "weight_map": {{}}}}', True, id="long"),
        pytest.param('{"model_type": "vgg"}', False, id="other-json"),
        pytest.param('"weight_map"', False, id="no-object"),
        pytest.param("", False, id="empty"),
    ],
)
def test_an_index_is_recognised_by_content(tmp_path, content, recognised):
    path = tmp_path / "any.name"
    path.write_text(content)
    assert recognises(Probe(path, content.encode()[:4096], len(content))) is recognised


def test_a_shard_whose_name_is_too_long_for_any_file_is_missing(tmp_path):
    with pytest.raises(CheckpointError, match=r"its shard x+ is missing; put it beside"):
        read(index(tmp_path, {"a": "x" * 5000}))


@pytest.mark.parametrize(("beside", "is_told"), [("consolidated.01.pth", True), ("x.pth", False)])
def test_a_part_of_a_model_that_stands_beside_others_is_told(tmp_path, beside, is_told):
    for name in ("consolidated.00.pth", beside):
        torch.save({"fc.weight": torch.ones(2, 2)}, tmp_path / name)
    found = find(tmp_path / "consolidated.00.pth")
    assert any("join them first" in note for note in found.notes) is is_told


def test_parts_without_their_index_are_called_parts(folder):
    with pytest.raises(CheckpointError, match="holds 2 of the 2 parts of a model without their"):
        find(str(folder))
    (folder / SECOND).rename(folder / "other.safetensors")
    with pytest.raises(CheckpointError, match="holds 2 models"):
        find(str(folder))
