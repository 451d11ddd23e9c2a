"""Files are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import csv
import errno
import math
import os
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from planescope.files.errors import MissingDependencyError, OutputError, UsageError
from planescope.files.targets import check_target
from planescope.files.writing import replacing, write, write_csv, write_parquet

posix = pytest.mark.skipif(sys.platform == "win32", reason="no umask and no symlinks on Windows")


@pytest.mark.parametrize("name", ["a.json", "with space.json", "ü-名前.json", ".hidden.json"])
def test_a_file_takes_its_place_when_it_is_whole(tmp_path, name):
    with replacing(tmp_path / name) as draft:
        draft.write_text("new")
        assert not (tmp_path / name).exists()
        assert draft.suffix == ".json"  # writers choose their form by it
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(name, "new")]


@pytest.mark.parametrize(
    ("raised", "error", "sentence"),
    [
        pytest.param(ValueError("half way"), ValueError, "half way", id="a-bug"),
        pytest.param(KeyboardInterrupt("stop"), KeyboardInterrupt, "stop", id="ctrl-c"),
        pytest.param(
            OSError(errno.ENOSPC, "No space left on device"),
            OutputError,
            r"a\.json: cannot be written: No space left on device$",
            id="full-disk",
        ),
    ],
)
def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path, raised, error, sentence
):
    def writer(draft):
        draft.write_text("ne")
        raise raised

    (tmp_path / "a.json").write_text("old")
    with pytest.raises(error, match=sentence):
        write(tmp_path / "a.json", {".json": writer})
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.json", "old")]


@pytest.mark.parametrize(
    "place",
    [
        pytest.param("none/a.json", id="missing-folder"),
        pytest.param("file/a.json", id="below-a-file"),
        pytest.param("folder", id="a-folder"),
        pytest.param("x" * 300 + ".json", id="name-too-long"),
    ],
)
def test_a_place_that_cannot_be_written_is_named(tmp_path, place):
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").write_text("old")
    with (
        pytest.raises(OutputError, match="cannot be written: "),
        replacing(tmp_path / place) as draft,
    ):
        draft.write_text("new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "folder" / "kept").read_text() == "old"


@posix
@pytest.mark.parametrize(("mask", "rights"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_the_rights_that_the_umask_gives(tmp_path, mask, rights):
    before = os.umask(mask)
    try:
        with replacing(tmp_path / "a.json") as draft:
            draft.write_text("new")
        assert os.umask(mask) == mask  # put back
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == rights


@pytest.mark.parametrize(
    ("name", "error", "sentence"),
    [
        ("a.txt", UsageError, r"a\.txt: the name must end in \.json, \.csv or \.parquet"),
        ("json", UsageError, r"the name must end in"),
        ("folder.csv", OutputError, r"folder\.csv: is a folder; give the name of a file"),
        ("none/a.csv", OutputError, r"the folder .*none does not exist; make it first"),
        ("file/a.csv", OutputError, r"the folder .*file does not exist"),
    ],
)
def test_a_target_that_cannot_be_is_refused_before_work_begins(tmp_path, name, error, sentence):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(error, match=sentence):
        check_target(tmp_path / name, [".json", ".csv", ".parquet"])


def test_the_suffix_chooses_the_writer(tmp_path):
    writers = {
        suffix: lambda draft, suffix=suffix: draft.write_text(suffix) for suffix in (".a", ".b")
    }
    for name in ("x.a", "x.b", "X.A"):
        write(tmp_path / name, writers)
        assert (tmp_path / name).read_text() == f".{name[-1].lower()}"


def test_csv_is_read_back_as_it_was(tmp_path):
    columns = {
        "text": ["plain", 'with "quotes", commas', "two\nlines", "ü 名前", "broken \udcff"],
        "number": [0.1, -0.0, 1e-300, math.nan, None],
        "flag": [True, False, None, True, False],
    }
    write_csv(tmp_path / "a.csv", columns)
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["text", "number", "flag"]
    text, number, flag = zip(*rows, strict=True)
    assert text == (*columns["text"][:4], r"broken \udcff")
    assert number == ("0.1", "-0.0", "1e-300", "", "")
    assert flag == ("True", "False", "", "True", "False")


def test_columns_of_unlike_length_are_our_own_mistake(tmp_path):
    with pytest.raises(ValueError, match="shorter"):
        write_csv(tmp_path / "a.csv", {"a": [1, 2], "b": [1]})


def test_parquet_holds_columns_and_metadata(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"a": [1, None], "b": np.array([0.5, 1.5])}, {"k": "v"})
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.to_pydict() == {"a": [1, None], "b": [0.5, 1.5]}
    assert table.schema.metadata[b"k"] == b"v"


def test_text_that_utf_8_has_not_costs_no_table(tmp_path):
    texts = ["a\udcff", None, "ü", "\ud800"]
    columns = {"list": texts, "array": np.array(["a\udcff", "b", "c", "d"]), "number": [1.5] * 4}
    write_parquet(tmp_path / "a.parquet", columns, {})
    assert pq.read_table(tmp_path / "a.parquet").to_pydict() == {
        "list": [r"a\udcff", None, "ü", r"\ud800"], "array": [r"a\udcff", "b", "c", "d"],
        "number": [1.5] * 4,
    }  # fmt: skip


def test_parquet_without_pyarrow_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"pip install '\.\[parquet\]'"):
        write(tmp_path / "a.parquet", {".parquet": lambda d: write_parquet(d, {"a": [1]}, {})})
    assert not list(tmp_path.iterdir())
