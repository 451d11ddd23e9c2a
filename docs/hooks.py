"""What MkDocs runs while it builds: puts each command's own help into its page."""

from __future__ import annotations

from typing import Any

MARK = "<!-- help of every command -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the mark in a page by a section a command, with what its ``--help`` prints."""
    return markdown.replace(MARK, _help()) if MARK in markdown else markdown


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
