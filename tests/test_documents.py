"""README and documentation do what they say: every block is run, the site builds, links lead on."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from planescope.cli.app import COMMANDS, app

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
NOTEBOOK = DOCS / "from-checkpoint-to-verdict.ipynb"
PAGES = ("README.md", *sorted(str(p.relative_to(ROOT)) for p in DOCS.rglob("*.md")))

# What later blocks begin with, made once for all pages.
BEGINNING = (
    "planescope train --network lenet --data digits --epochs 2 --out run",
    "planescope reset run",
)
# Blocks that are not run, by page, with the reason that the page gives; nothing else is left out.
NOT_RUN = {
    "README.md": ["installs packages"],
    "docs/index.md": ["installs packages"],
    "docs/guides/paper.md": ["takes half an hour", "needs a GPU"],
    "docs/guides/plan.md": ["there is no such file"],
    "docs/results/index.md": [
        "takes half an hour", "takes three quarters of an hour",
    ],
    "docs/results/drift.md": ["takes half an hour", "takes half an hour"],
    "docs/results/cifar10.md": ["takes hours"],
    "docs/results/fashion-mnist.md": ["takes hours"],
    "docs/results/critical.md": [
        "needs the runs of the studies", "takes hours", "takes half an hour",
    ],
    "docs/results/sensitivity.md": ["takes an hour"],
    "docs/atlas.md": ["fetches packages"],
    "docs/guides/train.md": ["needs a model and data of yours"],
    "docs/studies.md": [
        "takes half an hour", "needs that study", "needs a queue", "needs Kubernetes",
    ],
}  # fmt: skip

# A whole program that loads two frameworks.
LONG = ("docs/guides/keras.md",)
# Keras has one backend a process, and other tests have another.
ALONE = ("docs/guides/keras.md",)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and why it is not run, if it is not."""

    language: str
    text: str
    reason: str


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    fence = re.compile(
        r"^(?:<!-- not run: (?P<reason>[^\n]*) -->\n)?(?P<indent> *)```(?P<language>\w*)[^\n]*\n"
        r"(?P<text>.*?)^(?P=indent)```$",
        flags=re.M | re.S,
    )
    return [Block(m["language"], m["text"], m["reason"] or "") for m in fence.finditer(text)]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A folder that looks like a clone, in which commands may write; a command is run once."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "tests" / "parity", folder / "tests" / "parity")
    shutil.copytree(ROOT / "studies", folder / "studies")
    before = Path.cwd()
    os.chdir(folder)
    sys.path.insert(0, str(folder))  # modules that a page writes
    printed: dict[str, str] = {}
    try:
        for line in BEGINNING:
            shell(line, printed)
        yield printed
    finally:
        os.chdir(before)
        sys.path.remove(str(folder))


def shell(line: str, printed: dict[str, str]) -> str:
    """What a command prints; each is run in this process, and once."""
    command = shlex.join(shlex.split(line, comments=True))
    if command not in printed:
        program, *args = shlex.split(command)
        assert program == "planescope", f"{line}: only planescope's commands are run"
        with contextlib.redirect_stdout(io.StringIO()) as out:
            app.main(args, prog_name=program, standalone_mode=False)
        printed[command] = out.getvalue()
    return printed[command]


def lines(text: str) -> list[str]:
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=pytest.mark.long if p in LONG else ()) for p in PAGES]
)
def test_every_block_of_a_page_runs(clone, page):
    names: dict = {"__name__": "__main__"}
    found = blocks(page)
    assert [block.reason for block in found if block.reason] == NOT_RUN.get(page, [])
    for block in found:
        if block.reason:
            continue
        match block.language:
            case "sh":
                for line in lines(block.text):
                    shell(line, clone)
            case "python" if page in ALONE:
                subprocess.run([sys.executable, "-c", block.text], check=True, timeout=300)
            case "python":
                with contextlib.redirect_stdout(io.StringIO()):
                    exec(compile(block.text, page, "exec"), names)  # noqa: S102
            case "text" if block.text.startswith("$ "):
                command, _, shown = block.text.partition("\n")
                printed = shell(command.removeprefix("$ "), clone)
                assert stripped(shown) == stripped(printed)
            case language:
                assert language in ("text", "yaml", "json"), f"{language}: nothing runs this"


def stripped(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def test_yaml_of_a_study_is_one_that_can_be_made(tmp_path):
    from planescope.study.plan import read_plan

    (block,) = [block for block in blocks("docs/studies.md") if block.language == "yaml"]
    (tmp_path / "study.yaml").write_text(block.text)
    # Networks, noises, seeds and classes zipped with batch sizes, less the narrow half of VGG11.
    assert len(read_plan(tmp_path / "study.yaml").specs) == 2 * 2 * 3 * 2 - 2 * 3


def test_the_readme_begins_with_what_a_newcomer_needs(clone):
    install, python, printed, *rest = blocks("README.md")
    assert lines(install.text)[0].startswith("pip install planescope ")
    # At most five lines, and under them what they print.
    assert (python.language, printed.language) == ("python", "text")
    assert len(lines(python.text)) <= 5
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(python.text, "README.md", "exec"), {})  # noqa: S102
    assert stripped(printed.text) == stripped(out.getvalue())
    assert next(block for block in rest if block.language == "sh").text.startswith(
        "planescope measure "
    )


def test_what_the_readme_links_to_is_there():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", readme)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


# Folders that a page's command makes.
MADE = {"studies/results/paper-figure-full"}


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "SECURITY.md"])
def test_files_of_the_repository_that_a_page_names_are_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"(?<![\w/])(?:src|checks|tests|studies|atlas)/[\w./*-]*\w", text)
    for path in set(named) - MADE:
        assert list(ROOT.glob(path)), path


# The site


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built with warnings as errors: a link that leads nowhere is one."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", folder]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_has_every_page_and_loads_nothing_from_elsewhere(site):
    for page in PAGES[1:]:
        html = site / Path(page).relative_to("docs").with_suffix(".html")
        text = html.read_text(encoding="utf-8")
        loaded = re.findall(
            r"<(?:script|img|link|iframe)\b[^>]*?(?:src|href)=\"(https?:[^\"]*)", text
        )
        assert not loaded, html
    assert (site / "from-checkpoint-to-verdict.html").exists()


def test_the_reference_names_every_public_name_and_every_command(site):
    import planescope as ps

    pages = "".join(p.read_text(encoding="utf-8") for p in (site / "reference").glob("*.html"))
    for name in ps.__all__:
        assert re.search(rf'id="planescope[\w.]*\b{name}"', pages) or name in (
            "figures",
            "__version__",
        )
    for name in ps.figures.__all__:
        assert re.search(rf'id="planescope\.figures[\w.]*\.{name}"', pages) or name == "Width"
    for name in COMMANDS:
        assert f'id="planescope-{name}"' in pages


def test_the_search_works_from_a_folder_and_finds_what_users_look_for(site):
    home = (site / "index.html").read_text(encoding="utf-8")
    assert 'src="scripts/iframe-worker.js"' in home
    assert (site / "scripts" / "iframe-worker.js").is_file()
    index = (site / "search" / "search_index.js").read_text(encoding="utf-8")
    for word in ("DataLoader", "Dataset", "--top", "--by-stage", "Symmetry about the identity"):
        assert word in index, word
    from planescope import RunConfig

    fields = (site / "reference" / "training.html").read_text(encoding="utf-8")
    for name in RunConfig.model_fields:
        assert f"<strong><code>{name}</code></strong>" in fields, name


# The notebook


def test_the_notebook_runs_and_says_what_it_shows():
    import nbformat
    from nbclient import NotebookClient

    shown = nbformat.read(NOTEBOOK, as_version=4)
    fresh = nbformat.read(NOTEBOOK, as_version=4)
    for cell in fresh.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    NotebookClient(fresh, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    assert list(map(texts, fresh.cells)) == list(map(texts, shown.cells))
    assert any("Holds in 16 of 17 layers: " in "".join(texts(cell)) for cell in shown.cells)


def texts(cell) -> list[str]:
    """What a cell printed or gave, but for pictures, which vary with versions of libraries."""
    outputs = cell.get("outputs", [])
    return [o.get("text") or o["data"]["text/plain"] for o in outputs if not pictured(o)]


def pictured(output) -> bool:
    return "image/png" in output.get("data", {})


def test_the_notebook_has_no_trace_of_the_machine_that_ran_it():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|work|tmp|Users)/", text)
    assert "execution" not in {
        key for cell in json.loads(text)["cells"] for key in cell["metadata"]
    }


# The pictures


def test_the_pictures_are_made_by_the_script_beside_them(tmp_path):
    spec = importlib.util.spec_from_file_location("make_figures", DOCS / "make_figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(tmp_path)
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*g")}
    # Those of the results are made by the commands that their pages give.
    folders = (DOCS, DOCS / "pictures")
    there = {str(p.relative_to(DOCS)) for folder in folders for p in folder.glob("*.*g")}
    # Training takes minutes; a package of the front picture may be missing.
    assert made | {"front.png"} == there - {"pictures/training.svg", "pictures/resets.svg"}
