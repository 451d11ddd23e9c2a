"""What planescope is installed with may be used by a program under MIT, and is listed whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from checks.reliability.supply import by_licence, installed, is_refused, licence_of, runtime_part


def plant(folder: Path, name: str, *fields: str) -> None:
    """Install a package of that name and metadata, as importlib finds it."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    lines = ("Metadata-Version: 2.4", f"Name: {name}", "Version: 1.0", *fields)
    (info / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def planted(tmp_path, monkeypatch):
    plant(
        tmp_path,
        "upper",
        "Requires-Dist: middle[more]",
        "Requires-Dist: Under_Score; extra == 'all'",
    )
    plant(tmp_path, "middle", "License: BSD", "Requires-Dist: lower; extra == 'more'",
          "Requires-Dist: absent; extra == 'test'", "Requires-Dist: upper")  # fmt: skip
    gpl = "Classifier: License :: OSI Approved :: GNU General Public License v3 (GPLv3)"
    plant(tmp_path, "lower", gpl, "License: The text", "        of it, over lines")
    plant(tmp_path, "under_score", "License-Expression: MIT OR GPL-2.0-only")
    plant(tmp_path, "unrelated", "License: GPL")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(
    ("licence", "refused"),
    [
        ("MIT", False),
        ("BSD-3-Clause AND Zlib", False),
        ("MPL-2.0 AND MIT", False),
        ("MIT OR GPL-2.0-only", False),
        ("GPL-3.0-or-later", True),
        ("LGPL-2.1-only", True),
        ("AGPLv3", True),
        ("GNU Lesser General Public License v3 (LGPLv3)", True),
        ("MIT AND GPL-3.0-only", True),
        ("SSPL-1.0", True),
        ("CC-BY-NC-4.0", True),
        ("unknown", True),
    ],
)
def test_a_licence_that_spreads_or_is_not_known_is_refused(licence, refused):
    assert is_refused(licence) is refused


def test_what_is_needed_is_followed_through_extras_and_no_further(planted):
    packages = installed("upper")
    assert by_licence(packages) == {
        "BSD": ["middle"],
        "GNU General Public License v3 (GPLv3)": ["lower"],
        "MIT OR GPL-2.0-only": ["under_score"],
    }
    assert [name for name in map(licence_of, packages) if is_refused(name)] == [
        "GNU General Public License v3 (GPLv3)"
    ]


def test_what_is_needed_and_not_there_is_named(tmp_path, monkeypatch):
    plant(tmp_path, "upper", "Requires-Dist: absent-one")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit, match="absent-one is needed and not installed"):
        installed("upper")


def test_a_bill_of_materials_keeps_what_a_user_installs(planted):
    bill = {
        "metadata": {"component": {"bom-ref": "root", "name": "planescope"}},
        "components": [
            {"bom-ref": f"{name}==1.0", "name": name}
            for name in ("Under-Score", "lower", "middle", "unrelated")
        ],
        "dependencies": [
            {"ref": "root", "dependsOn": ["middle==1.0", "unrelated==1.0"]},
            {"ref": "middle==1.0", "dependsOn": ["lower==1.0"]},
            {"ref": "lower==1.0"},
            {"ref": "unrelated==1.0"},
        ],
    }
    part = runtime_part(bill, installed("upper"))
    assert [each["name"] for each in part["components"]] == ["Under-Score", "lower", "middle"]
    assert part["dependencies"] == [
        {"ref": "root", "dependsOn": ["middle==1.0"]},
        {"ref": "middle==1.0", "dependsOn": ["lower==1.0"]},
        {"ref": "lower==1.0", "dependsOn": []},
    ]
    bill["components"].pop()
    bill["components"].pop()
    with pytest.raises(SystemExit, match="the bill of materials lacks middle"):
        runtime_part(bill, installed("upper"))


def test_no_package_that_planescope_needs_is_refused():
    done = subprocess.run(
        [sys.executable, "-m", "checks.reliability.supply", "licences"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    for name in ("numpy", "torch", "matplotlib"):
        assert name in done.stdout
    assert "pytest" not in done.stdout  # it tests planescope, and nobody installs it for that
