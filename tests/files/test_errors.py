"""A message is one line for any terminal, whatever a file has put into it."""

from __future__ import annotations

import ast
import pickle
import re
from pathlib import Path

import pytest

import planescope
from planescope.files import errors
from planescope.files.errors import (
    MAX_MESSAGE,
    CheckpointError,
    counted,
    one_line,
    own_place,
    published,
)

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        pytest.param("net.pt: is é, ü and 網", "net.pt: is é, ü and 網", id="text-stays"),
        pytest.param("a\nb\r\tc", r"a\nb\r\tc", id="line-ends"),
        pytest.param("\x1b[2Jgone", r"\x1b[2Jgone", id="escape-sequence"),
        pytest.param("a\u202etp.exe", r"a\u202etp.exe", id="turned-round"),
        pytest.param("a\udcff", r"a\udcff", id="byte-that-is-no-text"),
        pytest.param("C:\\new", "C:\\new", id="backslash-stays"),
    ],
)
def test_what_cannot_be_printed_is_escaped(written, shown):
    error = CheckpointError(written)
    assert str(error) == shown
    assert str(CheckpointError(error)) == shown, "once is enough"
    assert str(pickle.loads(pickle.dumps(error))) == shown


def test_of_a_long_message_beginning_and_end_are_kept():
    text = str(CheckpointError("net.pt: " + "x" * 10**6 + "; get it again"))
    assert len(text) < MAX_MESSAGE
    assert text.startswith("net.pt: xxx")
    assert text.endswith("xxx; get it again")


def test_lines_of_a_library_are_joined():
    assert one_line(ValueError("No more data\n  to read.\n")) == "No more data to read."
    assert one_line(KeyError()) == "KeyError"


def test_a_number_and_what_it_counts_agree():
    assert [counted(n, "layer") for n in (0, 1, 2)] == ["0 layers", "1 layer", "2 layers"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("microsoft/resnet-50", "hf:microsoft/resnet-50"),
        ("resnet18", "torchvision:resnet18 or timm:resnet18"),
        ("mynets:small", "and --network mynets:small"),
        ("folder/net.pt", ""),
    ],
)
def test_a_name_that_is_no_file_points_to_what_it_may_be(name, meant):
    assert published(name).partition(" (from")[0].endswith(meant)
    assert bool(published(name)) == bool(meant)


def test_the_place_of_a_fault_is_told_of_code_that_is_no_library(tmp_path):
    """Whatever the folder is called in which a user has it."""
    for folder, is_own in (("torch", True), ("planescope", True), ("site-packages", False)):
        file = tmp_path / folder / "net.py"
        with pytest.raises(KeyError) as raised:
            exec(compile("\n{}['x']", file, "exec"))  # noqa: S102
        assert own_place(raised.value) == (f"{file}, line 2" if is_own else "")


def test_the_page_of_errors_lists_every_class_with_its_status_and_remedy():
    """What a user can meet is in the table, by the words of its docstring."""
    page = (ROOT / "docs/reference/errors.md").read_text(encoding="utf-8")
    rows = {
        cells[0].strip("`"): cells
        for line in page.splitlines()
        if (cells := [cell.strip() for cell in line.strip("|").split("|")])[0].endswith("Error`")
    }
    every = dict(classes())
    found = {name: node for name, node in every.items() if descends(name)}
    assert set(found) == set(rows)
    for name, node in found.items():
        _, status, what, remedy = rows[name]
        assert remedy
        kind = getattr(errors, name, errors.UsageError)
        assert status == str(kind.status)
        if hasattr(errors, name):
            assert ast.get_docstring(node).startswith(what)
    assert {name for name in planescope.__all__ if name.endswith("Error")} <= {
        *rows, "PlanescopeError",
    }  # fmt: skip


def test_the_page_of_errors_names_every_status_of_the_command_line():
    page = (ROOT / "docs/reference/errors.md").read_text(encoding="utf-8")
    for status in ("0", "1", "2", "129", "130", "143"):
        assert re.search(rf"^\|[^|]*\b{status}\b", page, re.MULTILINE)


BASES: dict[str, list[str]] = {}


def classes():
    """Classes of the package whose names end as those of errors do, underscores left out."""
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Error"):
                BASES[node.name] = [ast.unparse(base) for base in node.bases]
                yield node.name, node


def descends(name: str) -> bool:
    is_ours = any(base == "PlanescopeError" or descends(base) for base in BASES.get(name, ()))
    return is_ours and not name.startswith("_")
