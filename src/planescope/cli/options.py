"""Options that several commands share, and what they have in common to say."""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import click

from planescope.cli.printing import say
from planescope.criticality.options import Task
from planescope.data.options import DataOptions, Split
from planescope.files.errors import UsageError
from planescope.files.optional import search_working_folder
from planescope.hyperplanes.layer import KindName

F = TypeVar("F", bound=Callable[..., Any])


def _together(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Return a decorator that adds options in the order in which they are listed in the help."""

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def words_of(annotation: Any, /) -> Iterator[Any]:
    """Yield what a field may be: types, or words of a closed choice."""
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    elif isinstance(annotation, type) and issubclass(annotation, Enum):
        yield from (member.value for member in annotation)
    elif parts := get_args(annotation):
        for part in parts:
            if part not in (type(None), ...):
                yield from words_of(part)
    else:
        yield annotation


def options_of(
    model: type, described: Mapping[str, tuple[str | None, str | None]], /, **types: Any
) -> Callable[[F], F]:
    """Return a decorator that adds an option for each field of a dataclass that is described.

    Parameters
    ----------
    model : type
        It has the names, types, words and defaults.
    described : mapping of field to (metavar, help)
    **types
        Of fields that a command takes in one form of several.
    """
    hints = get_type_hints(model) | types
    defaults = {field.name: field.default for field in dataclasses.fields(model)}
    return _together(
        *(
            _option(name, hints[name], defaults[name], metavar, text)
            for name, (metavar, text) in described.items()
        )
    )


def _option(
    name: str, annotation: Any, default: Any, metavar: str | None, text: str | None
) -> Callable[[F], F]:
    flag = "--" + name.replace("_", "-")
    if annotation is bool:
        return click.option(flag, is_flag=True, help=text)
    words = list(words_of(annotation))
    kind = click.Choice(words) if isinstance(words[0], str) else words[0]
    if default == ():
        return click.option(flag, type=kind, multiple=True, metavar=metavar, help=text)
    return click.option(
        flag, type=kind, default=default, show_default=default is not None, metavar=metavar,
        help=text,
    )  # fmt: skip


TRUST = click.option(
    "--trust",
    is_flag=True,
    help="Run whatever code the run names as its network or data; modules in the working folder "
    "too.",
)


KIND = click.Choice(get_args(KindName))
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
TASK = click.option(
    "--task",
    type=click.Choice(get_args(Task)),
    help="Of the network: outputs are scores of classes, or values.  [default: labels tell, else "
    "several outputs are scores]",
)
prepared_options = _together(
    click.option("--data-path", metavar="FOLDER", help="Where the files of the data set lie."),
    click.option("--input-shape", metavar="C,H,W", help="Of synthetic pictures."),
    click.option(
        "--mean", metavar="X,..", help="Of the inputs that the network takes, by channel."
    ),
    click.option("--std", metavar="X,..", help="Likewise their standard deviation."),
    TASK,
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
    click.option("--split", type=click.Choice(get_args(Split)), default="val", show_default=True),
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


def typed_command() -> str:
    """Return the command as the user typed it, for a page."""
    return shlex.join(["planescope", *sys.argv[1:]])


def check_inputs(inputs: str | None, data: str | None) -> None:
    """Refuse inputs without labels and with them at once.

    Raises
    ------
    UsageError
        If both are given.
    """
    if inputs is not None and data is not None:
        raise UsageError("give --inputs, whose labels are not looked at, or --data, not both")


def of_inputs(choices: dict[str, Any], *, synthetic: bool) -> dict[str, Any]:
    """Give what the library takes of --input-shape, --mean and --std; heed --trust.

    Raises
    ------
    UsageError
        If they are not understood, or are not of such inputs.
    """
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
    sizes = numbers("--input-shape", text)
    if len(sizes) != 3 or any(size % 1 != 0 for size in sizes):
        raise UsageError(f"--input-shape {text!r}: give channels, height and width: 3,32,32")
    return tuple(int(size) for size in sizes)


def numbers(option: str, text: str | None, /) -> tuple[float, ...]:
    """Read numbers with commas between; none where the option was left out."""
    if text is None:
        return ()
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} {text!r}: give numbers with commas between") from None
