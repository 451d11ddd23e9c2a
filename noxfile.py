"""The whole suite on each Python and with the lowest dependencies: `make matrix`.

    nox --session newest-3.13          all tests with the newest versions
    nox --session lowest               all tests with the lowest that pyproject.toml admits
    nox --session core                 the package without torch, on each Python

A Python that is not on the machine is fetched by uv, where it may.
"""

from __future__ import annotations

import nox

PYTHONS = ["3.11", "3.12", "3.13"]
SUITE = ["python", "-m", "pytest", "-m", "long or not long"]
SUITE += ["--numprocesses", "auto", "--dist", "loadfile"]

nox.options.default_venv_backend = "uv"
nox.options.sessions = ["newest", "lowest", "core"]
nox.options.error_on_missing_interpreters = True


@nox.session(python=PYTHONS)
def newest(session: nox.Session) -> None:
    """Run all tests with the newest versions."""
    # The tests of the wheel build one by pip, which uv's environments have not.
    session.install("--editable", ".[all]", "--group", "dev", "pip")
    session.run(*SUITE, *session.posargs)


@nox.session(python=PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """Run all tests with the lowest versions that the package admits, of what it names itself."""
    session.install("--resolution", "lowest-direct", "--editable", ".[all]")
    # What only the tests need is as new as goes with these.
    session.install("--group", "test", "pip")
    session.run(*SUITE, *session.posargs)


@nox.session(python=PYTHONS)
def core(session: nox.Session) -> None:
    """Measure, compare and draw where there is no torch."""
    session.install(".")
    old, new = "tests/parity/lenet-epoch-0.pt", "tests/parity/lenet-epoch-12.tar"
    folder = session.create_tmp()
    session.run("python", "-c", "import importlib.util as u; assert u.find_spec('torch') is None")
    session.run("planescope", "--about")
    session.run("planescope", "measure", new, "--network", "lenet", "--init", old)
    session.run("planescope", "measure", new, "--figure", f"{folder}/lenet.pdf")
    session.run("planescope", "diff", old, new, "--network", "lenet", "--json", silent=True)
