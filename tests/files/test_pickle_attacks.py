"""Pickles of strangers: none runs, imports or takes more than the limits, in any format.

All are read in processes that are watched as the fuzzer watches: see `checks.fuzz.watching`.
"""

from __future__ import annotations

import copyreg
import io
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from pickle_payloads import ATTACKS, BOMBS

from checks.fuzz import campaign
from checks.fuzz.targets import TARGETS, preload
from planescope.checkpoints.torch.stream import _MAGIC

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

PAYLOADS = {**ATTACKS, **BOMBS}
EXTENSION = 0xF1


def in_zip(payload: bytes) -> bytes:
    """In a file as torch writes them since 1.6."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("net/data.pkl", payload)
        archive.writestr("net/constants.pkl", payload)
        archive.writestr("net/data/0", bytes(64))
    return buffer.getvalue()


def stream(*parts: object) -> bytes:
    """In a file as torch wrote them before 1.6; bytes stand for themselves."""
    return b"".join(p if isinstance(p, bytes) else pickle.dumps(p, 2) for p in parts)


def in_tar(payload: bytes) -> bytes:
    """In a file as torch wrote them before 0.1.10."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            member = tarfile.TarInfo(name)
            member.size = len(payload)
            archive.addfile(member, io.BytesIO(payload))
    return buffer.getvalue()


def array(payload: bytes) -> bytes:
    """A NumPy array of objects."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "|O", "fortran_order": False, "shape": (1,)}
    )
    return buffer.getvalue() + payload


def in_npz(payload: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("weight.npy", array(payload))
    return buffer.getvalue()


SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}

# How a payload is carried, and the reader that meets it.
CARRIERS = {
    "pickle": (lambda payload: payload, "pickle"),
    "file": (lambda payload: payload, "torch-stream"),
    "file-that-begins-as-one": (lambda payload: b"\x80\x02" + payload, "torch-stream"),
    "zip": (in_zip, "torch-zip"),
    "stream": (lambda p: stream(_MAGIC, 1001, SYSTEM, p, ["0"]), "torch-stream"),
    "stream-system": (lambda p: stream(_MAGIC, 1001, p, {}, []), "torch-stream"),
    "stream-keys": (lambda p: stream(_MAGIC, 1001, SYSTEM, {}, p), "torch-stream"),
    "tar": (in_tar, "torch-stream"),
    "npz": (in_npz, "npz"),
    "npy": (array, "npz"),
    "cifar": (lambda payload: payload, "cifar"),
}


@pytest.fixture(scope="module", autouse=True)
def _extension_that_runs():
    """What an extension code stands for, in programs that have registered some."""
    preload()
    copyreg.add_extension("os", "system", EXTENSION)
    yield
    copyreg.remove_extension("os", "system", EXTENSION)


def read_all(names, carry, read):
    """What becomes of the payloads of these names."""
    streams = [PAYLOADS[name] for name in names]
    return campaign.run(
        "pickles",
        read,
        {"harmless": {"input": carry(b"N.")}},
        cases=range(len(streams)),
        files=lambda case: {"input": carry(streams[case])},
    )


@pytest.mark.parametrize("carrier", CARRIERS)
def test_no_payload_runs_imports_or_takes_more_than_the_limits(carrier):
    carry, target = CARRIERS[carrier]
    names = list(PAYLOADS)
    outcome = read_all(names, carry, TARGETS[target])
    assert [(names[fault.case], fault.kind) for fault in outcome.faults] == []
    assert outcome.cases == len(names)
    assert outcome.results + sum(outcome.refusals.values()) == len(names)


# Python's own unpickler refuses these, or leaves what runs for the next one; others may not.
NOT_AT_ONCE = {
    "behind-a-frame-of-all-bytes", "in-an-unknown-protocol", "behind-another-pickle",
    "nested-twice",
}  # fmt: skip


def test_the_attacks_are_live():
    """Python's own unpickler is caught at each of them, in the same processes."""

    def read(folder, case, changed):
        pickle.loads((folder / "input").read_bytes())

    live = [name for name in ATTACKS if name not in NOT_AT_ONCE]
    outcome = read_all(live, lambda payload: payload, read)
    caught = [n for kind, n in outcome.counts.items() if kind.startswith("code: pickle.find_class")]
    assert sum(caught) == len(live) > 250
