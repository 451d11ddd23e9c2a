"""Options that several commands share, and what they have in common to say."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from planescope.cli.printing import say

F = TypeVar("F", bound=Callable[..., Any])


def _together(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Return a decorator that adds options in the order in which they are listed in the help."""

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


TRUST = click.option(
    "--trust",
    is_flag=True,
    help="Run whatever code the run names as its network or data; modules in the working folder "
    "too.",
)


KIND = click.Choice(["conv", "pointwise", "transposed", "linear", "all"])
KINDS = click.option(
    "--kinds",
    type=KIND,
    multiple=True,
    default=["conv"],
    show_default=True,
    help="Which layers; repeatable. conv: a kernel larger than 1, as in the paper.",
)

LAYERS = click.option("--layers", metavar="REGEX", help="Only layers in whose name this is found.")

ENTRY = click.option(
    "--entry", metavar="NAME", help="Which of several state dicts in a file, as ema."
)


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def _bytes(_context: click.Context, _option: click.Parameter, text: str | None) -> int | None:
    """Read bytes, as in 500M or 4G."""
    from planescope.files.errors import UsageError

    if text is None:
        return None
    match = re.fullmatch(r"(\d+)([KMG]?)(i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise UsageError(f"--memory {text!r}: give bytes, as in 500M or 4G")
    return int(match[1]) * _UNITS[match[2].upper()]


MEMORY = click.option(
    "--memory",
    metavar="BYTES",
    callback=_bytes,
    help="For what is kept, as in 500M or 4G.  [default: by what is free]",
)

# Of a command that reads runs.
code_options = _together(
    click.option(
        "--network",
        "--model",
        metavar="NAME",
        help="Network of the run: its own name allows code that it names, another replaces it.",
    ),
    click.option(
        "--data",
        metavar="NAME",
        help="Data of the run: its own name allows code that it names, another replaces it.",
    ),
    TRUST,
)

# Of a command that measures the checkpoints that it is given, beside runs.
measured_options = _together(
    click.option("--init", metavar="FILE", help="Of checkpoints: the same at initialisation."),
    click.option(
        "--kinds",
        type=KIND,
        multiple=True,
        help="Of checkpoints: which layers; repeatable.  [default: conv]",
    ),
)

# Of a command that runs a network with other weights in its layers: the network, inputs without
# labels, how inputs are prepared, and which layers on how many of them.
NETWORK = click.option(
    "--network",
    "--model",
    metavar="NAME",
    help="Of a checkpoint: lenet, vgg16_bn, timm:NAME, package.module:callable, ...",
)
INPUTS = click.option(
    "--inputs",
    metavar="DATA",
    help="Inputs whose labels are not looked at: a folder, FILE.npy, a data set by name, or "
    "package.module:callable.",
)
prepared_options = _together(
    click.option("--data-path", metavar="FOLDER", help="Where the files of the data set lie."),
    click.option("--input-shape", metavar="C,H,W", help="Of synthetic pictures."),
    click.option(
        "--mean", metavar="X,..", help="Of the inputs that the network takes, by channel."
    ),
    click.option("--std", metavar="X,..", help="Likewise their standard deviation."),
)
cell_options = _together(
    click.option(
        "--examples", metavar="N", type=click.IntRange(1), help="Take the first N inputs."
    ),
    click.option(
        "--kinds",
        type=KIND,
        multiple=True,
        help="Which layers; repeatable.  [default: conv, or linear where there is none]",
    ),
    click.option(
        "--layers", metavar="NAMES", help="Only these; names or patterns, commas between."
    ),
    click.option("--split", type=click.Choice(["val", "train"]), default="val", show_default=True),
    click.option("--device", default="auto", show_default=True, metavar="NAME"),
    click.option("--seed", type=int, default=0, show_default=True, help="Of synthetic pictures."),
    MEMORY,
    TRUST,
    click.option("--dry-run", is_flag=True, help="Tell cells and time, and do nothing else."),
)


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

    if Run(run).is_tracked:
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


def check_inputs(inputs: str | None, data: str | None) -> None:
    """Refuse inputs without labels and with them at once.

    Raises
    ------
    UsageError
        If both are given.
    """
    from planescope.files.errors import UsageError

    if inputs is not None and data is not None:
        raise UsageError("give --inputs, whose labels are not looked at, or --data, not both")


def of_inputs(choices: dict[str, Any], *, synthetic: bool) -> dict[str, Any]:
    """Give what the library takes of --input-shape, --mean and --std; heed --trust.

    Raises
    ------
    UsageError
        If they are not understood, or are not of such inputs.
    """
    from planescope.data.load import DataOptions
    from planescope.files.errors import UsageError
    from planescope.files.optional import search_working_folder

    if choices.get("trust"):
        search_working_folder()
    shape = choices.pop("input_shape")
    mean, std = (numbers(f"--{name}", choices.pop(name)) for name in ("mean", "std"))
    if synthetic:
        choices |= {name: value for name, value in (("mean", mean), ("std", std)) if value}
    elif mean or std:
        choices["data_options"] = DataOptions(mean=mean, std=std)
    if shape is not None:
        if not synthetic:
            raise UsageError("--input-shape is of synthetic pictures; inputs have their own")
        choices["input_shape"] = shape_of(shape)
    return choices


def shape_of(text: str, /) -> tuple[int, ...]:
    """Read channels, height and width with commas between."""
    from planescope.files.errors import UsageError

    sizes = numbers("--input-shape", text)
    if len(sizes) != 3 or any(size % 1 != 0 for size in sizes):
        raise UsageError(f"--input-shape {text!r}: give channels, height and width: 3,32,32")
    return tuple(int(size) for size in sizes)


def numbers(option: str, text: str | None, /) -> tuple[float, ...]:
    """Read numbers with commas between; none where the option was left out."""
    from planescope.files.errors import UsageError

    if text is None:
        return ()
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} {text!r}: give numbers with commas between") from None
