"""The house keeps its sizes: modules up to 400 lines, bodies up to 50, docstrings that say it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODULE, BODY = 400, 50

# Modules above 400 lines, each with the reason; a new one is split where it has two subjects.
LONG_MODULES = {
    "checks/fuzz/seeds.py": "cases: a file of each format",
    "checks/fuzz/structures.py": "cases: the marks of each format",
    "checks/reliability/hostile.py": "cases: what attackers write",
    "checks/reliability/odd.py": "cases: odd places, disks and streams",
    "src/planescope/hyperplanes/geometry.py": "the formulas of the reference, each in full",
    "src/planescope/training/run.py": "one class of the reference: what a run has, in a line each",
    "src/planescope/training/tracker/tracker.py": "one class of the reference",
}
# Bodies above 50 lines, without their docstrings.
LONG_BODIES = {
    "src/planescope/cli/reset.py:reset": "hands on the options of the command",
    "src/planescope/criticality/plan/repair.py:repair": "the public call, step by step",
    "src/planescope/criticality/plan/search.py:plan": "the public call, step by step",
    "src/planescope/criticality/sensitivity/inputs/pictures.py:synthetic": "one draw after another",
    "src/planescope/training/tracker/keras.py:callback": "a class whose base is imported there",
    "src/planescope/training/tracker/transformers.py:callback": (
        "a class whose base is imported there"
    ),
}
# The first line of a docstring says what is done, or what a class is; it asks nothing.
QUESTIONS = {"What", "Whether", "Where", "How", "Which", "Why"}


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


def test_bodies_have_up_to_50_lines_but_for_those_with_a_reason():
    found = dict(bodies())
    assert {name for name, lines in found.items() if lines > BODY} - LONG_BODIES.keys() == set()
    assert LONG_BODIES.keys() <= found.keys()


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
