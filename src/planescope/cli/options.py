"""Options that several commands share, and what they have in common to say."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from planescope.cli.printing import say

F = TypeVar("F", bound=Callable[..., Any])

TRUST = click.option(
    "--trust",
    is_flag=True,
    help="Run whatever code the run names as its network or data; modules in the working folder "
    "too.",
)


KINDS = click.option(
    "--kinds",
    type=click.Choice(["conv", "pointwise", "transposed", "linear", "all"]),
    multiple=True,
    default=["conv"],
    show_default=True,
    help="Which layers; repeatable. conv: a kernel larger than 1, as in the paper.",
)

LAYERS = click.option("--layers", metavar="REGEX", help="Only layers in whose name this is found.")

ENTRY = click.option(
    "--entry", metavar="NAME", help="Which of several state dicts in a file, as ema."
)


def code_options(command: F) -> F:
    """Add --network, --data and --trust to a command that reads runs."""
    for option in (
        TRUST,
        click.option(
            "--data",
            metavar="NAME",
            help="Data of the run: its own name allows code that it names, another replaces it.",
        ),
        click.option(
            "--network",
            "--model",
            metavar="NAME",
            help="Network of the run: its own name allows code that it names, another replaces it.",
        ),
    ):
        command = option(command)
    return command


def consent(
    sources: Iterable[str], *, network: str | None, data: str | None, trust: bool
) -> dict[str, Any]:
    """Give what a `Run` takes of these options, and say which names are replaced."""
    from planescope.files.optional import search_working_folder

    if trust:
        search_working_folder()
    given = {
        kind: name for kind, name in (("network", network), ("data", data)) if name is not None
    }
    if given:
        for line in dict.fromkeys(_replaced(sources, given)):
            say(line, err=True)
    return {"network": network, "data": data, "trust": trust}


def tell_data_path(run: str) -> None:
    """Say where data are read that only a run names."""
    from planescope.training.run import Run

    if Run(run).exists and Run(run).tracked is not None:
        return
    if (path := Run(run).config.data_path) is not None:
        say(f"{run}: reads its data from {path}, as its config.yaml says", err=True)


def _replaced(sources: Iterable[str], given: dict[str, str]) -> Iterable[str]:
    from planescope.files.folders import inside
    from planescope.study.folder import Study
    from planescope.training.run import Run

    for source in sources:
        if inside(source, "study.yaml").is_file():
            runs = Study(source).runs
        else:
            runs = tuple(run for run in (Run(source),) if run.exists)
        for run in runs:
            if run.tracked is not None:
                continue
            config = run.config
            for kind, name in given.items():
                if (had := getattr(config, kind)) != name:
                    yield f"{source}: its {kind} {had} is replaced by {name}"
