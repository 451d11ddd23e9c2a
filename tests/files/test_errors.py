"""A message is one line for any terminal, whatever a file has put into it."""

from __future__ import annotations

import pickle

import pytest

from planescope.files.errors import MAX_MESSAGE, CheckpointError, one_line


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
