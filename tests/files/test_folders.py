"""Paths that records of strangers name, held against those of a user."""

from __future__ import annotations

import pytest

from planescope.files.folders import is_same_place


def test_a_link_and_its_target_are_one_place(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    assert is_same_place(tmp_path / "link", str(tmp_path / "run"))
    assert not is_same_place(tmp_path / "link", tmp_path)


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 5000, "loop"])
def test_a_name_that_no_file_can_have_is_no_place(tmp_path, name):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert not is_same_place(tmp_path / name, tmp_path)
