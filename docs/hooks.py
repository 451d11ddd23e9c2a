"""What MkDocs runs as it builds: commands' own help and a config's fields go into their pages."""

from __future__ import annotations

from enum import Enum
from typing import Any, get_args

HELP = "<!-- help of every command -->"
FIELDS = "<!-- fields of RunConfig -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marks in a page by what each ``--help`` prints, and by the fields of a config."""
    for mark, made in ((HELP, _help), (FIELDS, _fields)):
        if mark in markdown:
            markdown = markdown.replace(mark, made())
    return markdown


def _fields() -> str:
    from planescope.training.config import RunConfig

    lines = []
    for name, field in RunConfig.model_fields.items():
        kind = getattr(field.annotation, "__name__", "")
        enums = [part for part in (field.annotation, *get_args(field.annotation)) if _is_enum(part)]
        if enums:
            words = ", ".join(repr(member.value) for member in enums[0])
            kind = f"Literal[{words}]{' | None' if kind != enums[0].__name__ else ''}"
        elif kind in ("", "Literal", "Optional", "Union", "UnionType", "tuple") or "|" in kind:
            kind = str(field.annotation).replace("typing.", "").replace("NoneType", "None")
        lines.append(f"- **`{name}`** : `{kind}`, default `{field.default!r}`  \n"
                     f"  {field.description}")  # fmt: skip
    return "\n".join(["**Fields**", "", *lines])


def _is_enum(part: Any) -> bool:
    return isinstance(part, type) and issubclass(part, Enum)


def _help() -> str:
    from click.testing import CliRunner

    from planescope.cli.app import COMMANDS, app

    sections = []
    for name in COMMANDS:
        done = CliRunner().invoke(app, [name, "--help"], "planescope", terminal_width=88)
        if done.exit_code:
            raise RuntimeError(f"planescope {name} --help failed: {done.output}")
        text = done.output.replace("Usage: app ", "Usage: planescope ", 1)
        sections.append(f"## planescope {name}\n\n```text\n{text.rstrip()}\n```\n")
    return "\n".join(sections)
