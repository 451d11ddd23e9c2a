"""What ``import planescope`` gives, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import planescope as ps

CHECKPOINT = "tests/parity/lenet-epoch-12.tar"
HEAVY = (
    "torch",
    "torchvision",
    "pandas",
    "matplotlib",
    "scipy",
    "pyarrow",
    "onnx",
    "keras",
    "h5py",
)


def test_every_public_name_is_there():
    assert set(ps.__all__) == {*ps._HOMES, *ps._MODULES, "__version__"}
    for name in ps.__all__:
        assert getattr(ps, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = ps.nonsense


def imported_by(code: str, *names: str) -> list[str]:
    """Which of some modules a fresh interpreter holds after running `code`."""
    probe = f"{code}\nimport sys\nprint(*[n for n in {names!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()


def test_importing_planescope_imports_nothing_heavy():
    assert imported_by("import planescope", "numpy", "rich", "click", *HEAVY) == []


def test_asking_for_the_version_imports_neither_numpy_nor_rich():
    code = "import sys; sys.argv = ['planescope', '--version']\n"
    code += "from planescope.cli import main\ntry:\n    main()\nexcept SystemExit: pass"
    assert imported_by(code, "numpy", "rich", *HEAVY) == []


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["table", "json"])
def test_from_file_to_table_nothing_heavy_is_imported(options):
    code = f"import sys; sys.argv = ['planescope', 'measure', {CHECKPOINT!r}, *{options!r}]\n"
    code += "from planescope.cli import main\ntry:\n    main()\nexcept SystemExit: pass"
    assert imported_by(code, "rich" if options else "jax", *HEAVY) == []
