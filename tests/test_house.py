"""The house keeps its sizes: modules up to 400 lines, bodies up to 50, docstrings that say it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODULE, BODY, FOLDER = 400, 50, 12
# Folders with a module for each format, command or figure that there is.
LISTS = ("src/planescope/checkpoints", "src/planescope/cli", "src/planescope/figures")

# Modules above 400 lines, each with the reason; a new one is split where it has two subjects.
LONG_MODULES = {
    "checks/fuzz/seeds.py": "cases: a file of each format",
    "checks/fuzz/structures.py": "cases: the marks of each format",
    "checks/reliability/hostile.py": "cases: what attackers write",
    "checks/reliability/odd.py": "cases: odd places, disks and streams",
}
# Bodies above 50 lines, without their docstrings.
LONG_BODIES = {
    "checks/reliability/disks.py:_writes": "a table: a command for each form of a result",
    "src/planescope/cli/reset.py:reset": "hands on the options of the command",
    "src/planescope/criticality/plan/repair.py:repair": "the public call, step by step",
    "src/planescope/criticality/plan/search.py:plan": "the public call, step by step",
    "src/planescope/criticality/sensitivity/inputs/pictures.py:synthetic": "one draw after another",
    "src/planescope/training/tracker/frameworks/keras.py:callback": (
        "a class whose base is imported there"
    ),
    "src/planescope/training/tracker/frameworks/transformers.py:callback": (
        "a class whose base is imported there"
    ),
}
# Our own modules are imported at the top, but for those that bring a library that is slow, cut a
# circle, or bring so many more of ours that a start would be slower; and these, for what they cost.
MORE = 4
LATE_IMPORTS = {
    ("checkpoints.locate", "checkpoints.ranges"): "urllib, a tenth of measure on a small file",
    ("checkpoints.probe", "files.zips"): "zipfile, which most files need not",
    (
        "measurement.processes",
        "files.results.versions",
    ): "importlib.metadata, an eighth of a helper's start",
    ("measurement.source", "checkpoints.ranges"): "urllib again",
    ("measurement.source", "networks.paper"): "a tenth of measure on a small file",
    ("cli", "files.errors"): "nothing of ours is imported before streams are looked at",
    ("cli.app", "cli.about"): "importlib.metadata, half of a start",
    ("cli.quickstart", "training.memory"): "ctypes",
    ("cli.train", "training.memory"): "ctypes",
}
# The first line of a docstring says what is done, or what a class is; it asks nothing.
QUESTIONS = {"What", "Whether", "Where", "How", "Which", "Why"}
# Nor does that of a function begin with what it gives.
NAMED = {
    *(
        "A",
        "All",
        "An",
        "Array",
        "As",
        "Areas",
        "Batches",
        "Both",
        "By",
        "Columns",
        "Cosine",
        "During",
    ),
    *(
        "Each",
        "Every",
        "Everything",
        "Few",
        "Filters",
        "In",
        "Its",
        "Largest",
        "Layers",
        "Mean",
        "Names",
    ),
    *("Negative", "Nothing", "Of", "One", "Only", "Output", "Parameters", "Path", "Rows", "Runs"),
    *(
        "Second",
        "Seconds",
        "Shapes",
        "Size",
        "Some",
        "Statistic",
        "Tensor",
        "Tensors",
        "That",
        "The",
    ),
    *(
        "There",
        "Those",
        "To",
        "Two",
        "Type",
        "Value",
        "Values",
        "Weight",
        "Weights",
        "When",
        "Without",
    ),
}


@cache
def modules() -> dict[str, str]:
    """Return the text of each module of ours by its path."""
    folders = (ROOT / "src", ROOT / "checks")
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for folder in folders
        for path in sorted(folder.rglob("*.py"))
    }


@cache
def trees() -> dict[str, ast.Module]:
    return {path: ast.parse(text) for path, text in modules().items()}


def bodies() -> Iterator[tuple[str, int]]:
    """Yield each function with the lines of its body, without its docstring."""
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                rest = node.body[ast.get_docstring(node) is not None :]
                lines = rest[-1].end_lineno - rest[0].lineno + 1 if rest else 0
                yield f"{path}:{node.name}", lines


def test_modules_have_up_to_400_lines_but_for_those_with_a_reason():
    long = {path for path, text in modules().items() if text.count("\n") > MODULE}
    assert long - LONG_MODULES.keys() == set()
    assert LONG_MODULES.keys() <= modules().keys()


def test_folders_have_up_to_12_modules_but_for_those_that_list():
    of = [
        path.rpartition("/")[0]
        for path in modules()
        if path.startswith("src/") and not path.endswith("/__init__.py")
    ]
    assert {folder for folder in of if of.count(folder) > FOLDER} == set(LISTS)


def test_bodies_have_up_to_50_lines_but_for_those_with_a_reason():
    found = dict(bodies())
    assert {name for name, lines in found.items() if lines > BODY} - LONG_BODIES.keys() == set()
    assert LONG_BODIES.keys() <= found.keys()


def imported(tree: ast.AST, known: set[str]) -> Iterator[tuple[bool, str]]:
    """Yield each import but those for types: whether it stands in a function, and the module."""
    left: list[tuple[ast.AST, bool]] = [(tree, False)]
    while left:
        node, inside = left.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            left += [(each, inside) for each in node.orelse]
            continue
        if isinstance(node, ast.Import):
            yield from ((inside, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            parts = {f"{node.module}.{name.name}" for name in node.names}
            yield from ((inside, part) for part in parts & known or {node.module})
        within = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        left += [(each, within) for each in ast.iter_child_nodes(node)]


def test_own_modules_are_imported_at_the_top():
    """A reader sees what a module needs without looking into its functions."""
    trees_of = {
        path.removeprefix("src/").removesuffix(".py").removesuffix("/__init__").replace("/", "."): t
        for path, t in trees().items()
        if path.startswith("src/")
    }
    imports = {name: list(imported(tree, set(trees_of))) for name, tree in trees_of.items()}

    @cache
    def loaded(name: str) -> frozenset[str]:
        found: set[str] = set()
        left = [name]
        while left:
            each = left.pop()
            if each not in found:
                found.add(each)
                left += [each.rpartition(".")[0]] if "." in each and each in trees_of else []
                left += [module for inside, module in imports.get(each, ()) if not inside]
        return frozenset(found)

    def may_be_late(own: str, other: str) -> bool:
        new = loaded(other) - loaded(own)
        is_slow = any(name not in trees_of and not is_of_python(name) for name in new)
        more = sum(name in trees_of for name in new)
        short = own.removeprefix("planescope."), other.removeprefix("planescope.")
        return is_slow or own in loaded(other) or more > MORE or short in LATE_IMPORTS

    late = {
        (own, other)
        for own, modules in imports.items()
        for inside, other in modules
        if inside and other in trees_of and not may_be_late(own, other)
    }
    assert late == set()


def is_of_python(name: str) -> bool:
    return name.partition(".")[0] in {*sys.stdlib_module_names, "planescope"}


def test_docstrings_say_what_is_done():
    """Their first line is no question: it begins with a verb, or names what a class is."""
    asked = [
        f"{path}: {text.splitlines()[0]}"
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and (text := ast.get_docstring(node)) is not None
        and text.split()[0] in QUESTIONS
    ]
    assert asked == []


def test_docstrings_of_functions_begin_with_a_verb():
    named = [
        f"{path}: {node.name}: {text.splitlines()[0]}"
        for path, tree in trees().items()
        if path.startswith("src/")
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (text := ast.get_docstring(node)) is not None
        and text.split()[0].rstrip(",.;:") in NAMED
    ]
    assert named == []
