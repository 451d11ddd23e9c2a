"""``planescope train``."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, get_origin

import click

from planescope.cli.options import TRUST, consent, tell_data_path, words_of
from planescope.cli.printing import console
from planescope.cli.progress import layer_progress
from planescope.cli.status import print_status

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from planescope.training.config import RunConfig


# What other programs call these fields.
OTHER_NAMES = {"network": ("model",), "learning_rate": ("lr",), "optimiser": ("optimizer",)}


class _ConfigCommand(click.Command):
    """A command that also has an option for each field of a config.

    They are looked up when the command is asked for: pydantic takes a while to import.
    """

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*_options(), *super().get_params(ctx)]


@functools.cache
def _options() -> tuple[click.Option, ...]:
    from planescope.training.config import RunConfig

    return tuple(_option(name, field) for name, field in RunConfig.model_fields.items())


def _option(name: str, field: FieldInfo) -> click.Option:
    """Return an option for a field; values are checked by the config, not here."""
    flag = "--" + name.replace("_", "-")
    types = list(words_of(field.annotation))
    is_tuple = get_origin(field.annotation) is tuple
    text = (field.description or "").rstrip()
    if field.default not in (None, ()):
        text += f" [default: {str(field.default).lower() if bool in types else field.default}]"
    if bool in types:
        return click.Option([f"{flag}/--no-{name.replace('_', '-')}"], default=None, help=text)
    metavar = "|".join(str(t) for t in types) if isinstance(types[0], str) else None
    if metavar is None:
        metavar = {int: "N", float: "X"}.get(types[0], "TEXT")
    others = [f"--{other}" for other in OTHER_NAMES.get(name, ())]
    return click.Option([flag, *others], multiple=is_tuple, metavar=metavar, help=text)


@click.command(cls=_ConfigCommand)
@click.option(
    "--config", metavar="FILE", help="YAML with these options; those given here go before it."
)
@click.option("--out", metavar="RUN", default="run", show_default=True, help="Folder of the run.")
@click.option("--resume", is_flag=True, help="Go on after the last epoch that was finished.")
@TRUST
def train(*, config: str | None, out: str, resume: bool, trust: bool, **options: Any) -> None:
    """Train a network and measure it on the way; by default LeNet on digits, half a minute.

    RUN gets config.yaml, metrics.csv, snapshots/, measurements and what resuming needs. With
    --resume, options that are not given are those of the run.
    """
    from planescope.training.loop import rank
    from planescope.training.loop import train as train_run
    from planescope.training.memory import keep_memory
    from planescope.training.run import Run

    keep_memory()
    given = {name: value for name, value in options.items() if value not in (None, ())}
    wanted, own, sends = _config(config, out, given, resume=resume)
    if resume:
        consent([out], network=own.get("network"), data=own.get("data"), trust=trust)
        if Run(out).exists and "data_path" not in given:
            tell_data_path(out)
    with layer_progress() as advance:
        run = train_run(
            wanted, out, resume=resume, progress=advance,
            trust=trust or frozenset((*own.values(), *sends)),
        )  # fmt: skip
    if rank() == 0:
        if wanted.precision == "auto":
            console().print(f"precision: {run.config.precision}, chosen for this device")
        print_status([run])


def _config(
    path: str | None, out: str, given: dict[str, Any], *, resume: bool
) -> tuple[RunConfig, dict[str, str], tuple[str, ...]]:
    """Return the config, the options given laid over it, and which names in it are the user's own.

    Those of network and data, by kind, and of loggers. What a run says that is resumed is not the
    user's.
    """
    from planescope.training.config import RunConfig, load_config
    from planescope.training.run import Run

    if path is None and resume and Run(out).exists:
        own: dict[str, str] = {kind: given[kind] for kind in ("network", "data") if kind in given}
        return Run(out).config.but({"download": False, **given}), own, given.get("loggers", ())
    config = (RunConfig() if path is None else load_config(path)).but(given)
    return config, {"network": config.network, "data": config.data}, config.loggers
